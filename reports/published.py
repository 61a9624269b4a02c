"""The paper's numbers, from published.csv: one row a number."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from bpt.methods import USED_BY
from bpt.published import FGVC
from burst.errors import check_known

STUDIES = (
    "table11",
    "fgvc_mae",
    "fgvc_moco",
    "variants",
    "prompt_length",
    "prompt_width",
    "table9",
    "table10",
    "coco_mask_rcnn",
    "coco_cascade",
)
"""The tables of the paper that `bpt.run_study` can train."""
DETECTORS = {"mask_rcnn": "mask-rcnn", "cascade_mask_rcnn": "cascade"}  # the poster's, and ours
OF_COCO = {"coco_mask_rcnn": "mask_rcnn", "coco_cascade": "cascade_mask_rcnn"}
# What a number of the paper is, and where our results have it.
METRICS = {
    "top1": "test_accuracy",
    "box_ap": "box_AP",
    "box_ap75": "box_AP75",
    "box_ap_small": "box_APs",
    "mask_ap": "mask_AP",
    "mask_ap75": "mask_AP75",
    "mask_ap_small": "mask_APs",
}
BACKBONES = {
    ("mae_in1k", "vit_base_patch16"): "mae_vitb",
    ("mae_in1k", "vit_large_patch16"): "mae_vitl",
    ("mae_in1k", "vit_huge_patch14"): "mae_vith",
    ("mae_in1k", "vit_2b_patch14"): "mae_vit2b",
    ("moco_v3_in1k", "vit_base_patch16"): "moco_vitb",
    ("sup_in21k", "vit_base_patch16"): "sup_vitb",
}
# The paper's rows in our words. Its deep prompts stand in the last four blocks (table 10, 0+4),
# those of VPT and SPT in all.
METHODS = {
    "full": ("full", "shallow"),
    "linear": ("linear", "shallow"),
    "vpt-shallow": ("vpt", "shallow"),
    "vpt-deep": ("vpt", "deep"),
    "gatevpt": ("gatevpt", "shallow"),
    "spt-shallow": ("spt", "shallow"),
    "spt-deep": ("spt", "deep"),
    "bpt-shallow": ("bpt-bilinear", "shallow"),
    "bpt-deep": ("bpt-bilinear", "last:4"),
    "bpt-bilinear": ("bpt-bilinear", "shallow"),
    "bpt-fwhiten": ("bpt-fwhiten", "shallow"),
    "bpt-twhiten": ("bpt-twhiten", "shallow"),
}
OF_W = ("bpt-fwhiten", "bpt-twhiten")  # methods whose prompts are products with it
# Rows that the paper took from VPT, whose supervised weights are not AugReg's, and from GateVPT.
OF_VPT = ("full", "linear", "vpt-shallow", "vpt-deep")
OF_OTHER_PAPERS = (*OF_VPT, "gatevpt")
NUMBERS = {"num_prompts": int, "rank": int, "epochs": int, "train_fraction": float}


@cache
def published() -> pd.DataFrame:
    """Every number: table, source, pretraining, backbone, method, dataset, metric, value, setting.

    Values are in percent, those of the metric prompt_params_1e4 in tens of thousands of numbers.
    Table 9 does not give the epochs of fine-tuning; those of its settings are Table 8's.

    Source: arXiv 2506.22908, its supplement and its poster.
    """
    path = files("reports").joinpath("published.csv")
    with path.open(encoding="utf-8") as stream:
        return pd.read_csv(stream, keep_default_na=False)


def published_numbers(study: str) -> pd.DataFrame:
    """The numbers of one table, each once, in its order: accuracies, or average precisions.

    Args:
        study: one of `STUDIES`.

    Returns:
        Rows of `published`, in percent.

    Raises:
        UnknownName: no such table.
    """
    check_known("study", study, STUDIES)
    table = published()
    if study in OF_COCO:
        rows = table[(table.dataset == "coco") & (table.setting == OF_COCO[study])]
    else:
        rows = table[(table.table == study) & (table.metric == "top1")]
    return rows.drop_duplicates().reset_index(drop=True)


def asked_of(row: Mapping[Any, Any]) -> dict[str, Any]:
    """What to ask of `bpt.make_recipe`: dataset, model, method, and what else a row says."""
    method, placement = METHODS[row["method"]]
    model = BACKBONES[row["pretraining"], row["backbone"]]
    asked = {"dataset": row["dataset"], "model": model, **settings(row["setting"])}
    if method in USED_BY["placement"]:
        asked = {"placement": placement} | asked
    if method in OF_W:
        asked["prompt_scale"] = "paper"  # with which its rate and its number were published
    return asked | {"method": method}


def of_other_weights(row: Mapping[Any, Any]) -> bool:
    """Whether a number is of weights that its backbone of ours does not have."""
    return row["table"] == "table11" and row["method"] in OF_VPT


def protocol_of(row: Mapping[Any, Any]) -> str:
    """How a number came to be, as a `Recipe` has it, from dataset and method.

    The paper's code trains on training and validation images and takes the best epoch on the test
    split. On the fine-grained datasets the rows of VPT and GateVPT are of their code, which trains
    on the training images and chooses the epoch on the validation split.
    """
    theirs = row["dataset"] in FGVC and row["method"] in OF_OTHER_PAPERS
    return "standard" if theirs else "authors"


def settings(text: str) -> dict[str, int | float | str]:
    """`num_prompts=64`, `train_fraction=0.1 epochs=100` or `mask_rcnn` -> hyper-parameters."""
    if text in DETECTORS:
        return {"detector": DETECTORS[text]}
    found = dict(re.findall(r"(\w+)=(\S+)", text))
    if found.get("placement") == "interval":
        found["placement"] = "interval:4"  # the first block of each quarter
    return {name: NUMBERS.get(name, str)(value) for name, value in found.items()}
