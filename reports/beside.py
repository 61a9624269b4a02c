"""Trained runs beside the paper's numbers that are nearest to them, and what differs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from bpt import Recipe, Run, dataset_info, make_recipe
from bpt.configuration import untouched_splits
from bpt.dataset import SPLITS
from bpt.methods import USED_BY
from burst.backbone_spec import known_backbones
from reports.published import (
    BACKBONES,
    METHODS,
    asked_of,
    of_other_weights,
    protocol_of,
    published,
)

SHADES = ("#f4b6a6", "#f9dccf", "#ffffff", "#d3e6f3", "#a9cfe8")
STEPS = (-5.0, -1.0, 1.0, 5.0)  # points, between the shades
# How far a number is that differs in this; what is not here, such as a rate, chooses none.
WEIGHTS = {"method": 64, "pretraining": 16, "dataset": 8, "backbone": 2}
WEIGHTS |= dict.fromkeys(("placement", "num_prompts", "rank"), 1)
WEIGHTS |= dict.fromkeys(("epochs", "train_fraction", "image_size", "protocol"), 1)
OTHER_KIND = 4  # of placement: shallow, or not
FREE = {"method", "dataset", "model", "seed", "precision", "cache"}  # or told by another name
USUAL_SIZE = 224  # pixels a side, of the published numbers


def beside_published(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Each run beside the paper's number that is nearest to it.

    Columns: label, ours, published, difference (points), table, row (what the number is of), and
    differs (pretraining, dataset, images of it, backbone, weights, and every hyper-parameter that
    is not the published one). Both accuracies are in percent.

    Source: arXiv 2506.22908, see `published`.
    """
    table = published()
    accuracies = table[table["metric"] == "top1"].drop_duplicates()
    known = [
        (row, _as_published(row))
        for row in accuracies.to_dict("records")
        if row["method"] in METHODS and (row["pretraining"], row["backbone"]) in BACKBONES
    ]
    return pd.DataFrame([_nearest(label, run, known) for label, run in runs.items()])


def shade(difference: float) -> str:
    """A colour for a difference in points: warm below, cool above, white around 0."""
    if not np.isfinite(difference):
        return ""
    return SHADES[int(np.searchsorted(STEPS, difference))]


def _as_published(row: Mapping[Any, Any]) -> Recipe:
    recipe = make_recipe(**asked_of(row))
    assert isinstance(recipe, Recipe)  # accuracies are of classifiers
    return replace(recipe, protocol=protocol_of(row), normalisation="reference")


def _nearest(label: str, run: Run, known: list[tuple[dict[Any, Any], Recipe]]) -> dict[str, Any]:
    recipe = run.recipe
    placement = recipe.placement if recipe.prompted else "shallow"

    def distance(one: tuple[dict[Any, Any], Recipe]) -> int:
        other_kind = (one[1].placement == "shallow") != (placement == "shallow")
        names = _differences(run, *one)
        return OTHER_KIND * other_kind + sum(WEIGHTS.get(name, 0) for name in names)

    best, theirs = min(known, key=distance)
    differs = _differences(run, best, theirs) + ["images"] * _has_other_images(run)
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


def _differences(run: Run, row: Mapping[Any, Any], theirs: Recipe) -> list[str]:
    """Names of what of a run is not as the paper's row of it was trained, as far as is known."""
    recipe = run.recipe
    kinds = {one.name: one.pretraining for one in known_backbones()}
    told = {
        "method": recipe.method != theirs.method,
        "pretraining": kinds.get(recipe.model) != kinds[theirs.model],
        "dataset": run.config["dataset"]["name"] != row["dataset"],
        "backbone": recipe.model != theirs.model,
        "weights": bool(recipe.weights) or of_other_weights(row),
    }
    same = {
        "train_fraction": (recipe.train_fraction or 1.0) == (theirs.train_fraction or 1.0),
        "image_size": recipe.image_size in (None, USUAL_SIZE),
        "normalisation": kinds.get(recipe.model) != "supervised",  # for which alone it is another
        "warmup_epochs": recipe.epochs != theirs.epochs,  # a part of them
    }
    found = [
        name
        for name in recipe.differences(theirs)
        if name not in FREE
        and not same.get(name)
        and recipe.method in USED_BY.get(name, (recipe.method,))
    ]
    return [name for name, other in told.items() if other] + found


def _has_other_images(run: Run) -> bool:
    """Whether a benchmark has not the images that were published, as far as counts tell."""
    about = run.config["dataset"]
    counts = tuple(about.get(name) for name in SPLITS)
    info, splits = dataset_info(about["name"]), untouched_splits(run.recipe)
    return None not in counts and bool(info.unlike_published(counts, splits=splits))
