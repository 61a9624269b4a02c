"""Trained runs beside the paper's numbers that are nearest to them, and what differs."""

from typing import Any

import numpy as np
import pandas as pd

from bpt import Run
from burst.backbone_spec import known_backbones
from reports.published import BACKBONES, METHODS, published, settings

SHADES = ("#f4b6a6", "#f9dccf", "#ffffff", "#d3e6f3", "#a9cfe8")
STEPS = (-5.0, -1.0, 1.0, 5.0)  # points, between the shades
WEIGHTS = {"method": 64, "pretraining": 16, "dataset": 8, "backbone": 2}  # else 1


def beside_published(runs: dict[str, Run]) -> pd.DataFrame:
    """Each run beside the paper's number that is nearest to it.

    Columns: label, ours, published, difference (points), table, row (what the number is of), and
    differs (dataset, backbone, placement, epochs, image_size, protocol). Both accuracies are in
    percent.

    Source: arXiv 2506.22908, see `published`.
    """
    table = published()
    accuracies = table[table["metric"] == "top1"].drop_duplicates()
    known = [
        row
        for row in accuracies.to_dict("records")
        if row["method"] in METHODS and (row["pretraining"], row["backbone"]) in BACKBONES
    ]
    return pd.DataFrame([_nearest(label, run, known) for label, run in runs.items()])


def _nearest(label: str, run: Run, rows: list[dict[Any, Any]]) -> dict[str, Any]:
    recipe = run.recipe
    kinds = {one.name: one.pretraining for one in known_backbones()}
    placement = "shallow" if not recipe.prompted else recipe.placement

    def differences(row: dict[Any, Any]) -> list[str]:
        method, theirs = METHODS[row["method"]]
        asked = settings(row["setting"])
        model = BACKBONES[row["pretraining"], row["backbone"]]
        expected = {
            "method": (method, recipe.method),
            "pretraining": (kinds[model], kinds.get(recipe.model)),
            "dataset": (row["dataset"], run.config["dataset"]["name"]),
            "placement": (asked.get("placement", theirs), placement),
            "backbone": (model, recipe.model),
            "epochs": (asked.get("epochs", 100), recipe.epochs),
            "train_fraction": (asked.get("train_fraction", 1.0), recipe.train_fraction or 1.0),
            "num_prompts": (asked.get("num_prompts", recipe.num_prompts), recipe.num_prompts),
            "rank": (asked.get("rank", recipe.rank), recipe.rank),
            "image_size": (224, recipe.image_size or 224),
            "protocol": ("authors", recipe.protocol),
        }
        return [name for name, (one, other) in expected.items() if one != other]

    def distance(row: dict[Any, Any]) -> int:
        theirs = settings(row["setting"]).get("placement", METHODS[row["method"]][1])
        other_kind = (theirs == "shallow") != (placement == "shallow")
        return 4 * other_kind + sum(WEIGHTS.get(name, 1) for name in differences(row))

    best = min(rows, key=distance)
    differs = differences(best)
    ours = (run.result or {}).get("test_accuracy", np.nan)
    words = (best["method"], best["pretraining"], best["backbone"], best["dataset"])
    setting = f" ({best['setting']})" if best["setting"] else ""
    comparable = "method" not in differs
    return {
        "label": label,
        "ours": ours,
        "published": best["value"] if comparable else np.nan,
        "difference": ours - best["value"] if comparable else np.nan,
        "table": best["table"] if comparable else "",
        "row": " ".join(words) + setting if comparable else "none of this method",
        "differs": ", ".join(differs),
    }


def shade(difference: float) -> str:
    """A colour for a difference in points: warm below, cool above, white around 0."""
    if not np.isfinite(difference):
        return ""
    return SHADES[int(np.searchsorted(STEPS, difference))]
