"""A detector's recipe: what was given, and the published hyper-parameters for the rest."""

import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from bpt.dataset import dataset_info
from bpt.detection.recipe import DETECTION_USED_BY, DetectionRecipe
from bpt.methods import check_used
from bpt.tuning import check_fields, check_whitening
from burst.errors import BurstError

OFFICIAL = "coco"


@cache
def detection_recipes() -> tuple[dict[str, Any], ...]:
    """The entries of `recipes.toml`, in its order."""
    text = files("bpt.detection").joinpath("recipes.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)["recipe"])


def detection_recipe_for(dataset: str, **given: Any) -> DetectionRecipe:  # noqa: ANN401
    """A recipe whose missing hyper-parameters are the published ones, with where each is from.

    On one's own images ("coco:PATH") the default backbone is the small one that comes with the
    package; the rest is as on COCO.

    Args:
        dataset: "coco" or "coco:PATH".
        **given: other fields of `DetectionRecipe`; None is as good as left out.

    Raises:
        UnknownName, BurstError: see `DetectionRecipe`; a dataset for classification; a
            hyper-parameter was given that the method makes no use of.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if dataset_info(dataset).task != "detection":
        raise BurstError(f"{dataset} is for classification; see bpt.recipe_for")
    check_fields(DetectionRecipe, given, dataset=dataset)
    origins = dict.fromkeys(given, "given")
    if "model" not in given and dataset == OFFICIAL:
        given["model"], origins["model"] = "mae_vitb", "the paper's"
    asked = DetectionRecipe(dataset=dataset, **given)
    check_used(asked.method, given, DETECTION_USED_BY)
    check_whitening(asked, given)
    for name, value, source in _published(asked):
        if name not in given and asked.method in DETECTION_USED_BY.get(name, (asked.method,)):
            given[name], origins[name] = value, source
    return DetectionRecipe(dataset=dataset, **given, origins=origins)


def _published(asked: DetectionRecipe) -> Iterator[tuple[str, Any, str]]:
    """Name, value and source of what was published, the nearest first."""
    placement = "shallow" if asked.placement == "shallow" else "deep"
    kinds = {asked.method, "any"}
    if asked.prompted:
        kinds |= {"prompts"} | ({"bpt"} if asked.method.startswith("bpt-") else set())
    for entry in detection_recipes():
        fits = (
            entry["method"] in kinds
            and entry["placement"] in (placement, "any")
            and entry.get("model") in (asked.model, None)
        )
        if fits:
            for name, value in entry["values"].items():
                yield name, value, entry["source"]
