"""The hyper-parameters that were published for a run, from `recipes.toml`, or the nearest."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from bpt.dataset import dataset_info
from bpt.prompt import METHODS as PROMPT_METHODS
from bpt.recipe import Recipe
from burst.backbone import known_backbones

ANY = "any"
# What a recipe of another kind costs; another pretraining most, for its rates differ tenfold.
COSTS = {"pretraining": 8, "placement": 4, "dataset": 3, "model": 1, "train_fraction": 1}
DECAYS = ("lr", "weight_decay", "head_weight_decay")


@dataclass(frozen=True)
class PublishedRecipe:
    """An entry of recipes.toml; "any" or None where it holds for all.

    Attributes:
        pretraining: as `burst.known_backbones` calls it.
        dataset: of `known_datasets`.
        method: a method, or "bpt" for the three of them.
        placement: "shallow" or "deep", which stands for every other.
        source: where it was published.
        values: hyper-parameters of `Recipe`.
        model: the backbone that it is for.
        train_fraction: the share of the training images that it is for.
        grid: what its source searched, if it gave no single value.
        missing: what of it our trainer does not do.
    """

    pretraining: str
    dataset: str
    method: str
    placement: str
    source: str
    values: Mapping[str, Any] = field(hash=False)
    model: str | None = None
    train_fraction: float | None = None
    grid: str | None = None
    missing: str | None = None


@cache
def published_recipes() -> tuple[PublishedRecipe, ...]:
    """All of `recipes.toml`."""
    text = files("bpt").joinpath("recipes.toml").read_text(encoding="utf-8")
    return tuple(PublishedRecipe(**entry) for entry in tomllib.loads(text)["recipe"])


def recipe_for(dataset: str, **given: Any) -> Recipe:  # noqa: ANN401  whatever Recipe takes
    """A recipe whose missing hyper-parameters are the published ones of its benchmark.

    Those that were given stay. The others are taken from the entry of recipes.toml for this
    pretraining, dataset, method and placement, or from the nearest; `Recipe.origins` says for each
    what it comes from. For one's own images and for digits there is no published recipe: learning
    rate and decays of a prompt are the paper's of CUB, the rest are the defaults of `Recipe`.

    Args:
        dataset: as `Recipe` takes it.
        **given: other fields of `Recipe`; None is as good as left out.

    Raises:
        UnknownName: an unknown dataset, method or backbone.
        BurstError: see `Recipe` and `parse_placement`.
    """
    given = {name: value for name, value in given.items() if value is not None}
    origins = dict.fromkeys(given, "given")
    info = dataset_info(dataset)
    benchmark = info.layout is not None
    if benchmark and "model" not in given:
        given["model"], origins["model"] = "mae_vitb", "the paper's headline run"
    asked = Recipe(dataset=dataset, **given)
    entry, origin = _entry(asked, benchmark)
    values = dict(entry.values) if entry else {}
    if not benchmark:
        values = {name: value for name, value in values.items() if name in DECAYS}
    if "epochs" in given:
        values.pop("warmup_epochs", None)  # it was for another length
    for name, value in values.items():
        if name not in given:
            given[name], origins[name] = value, origin
    images = int((info.sizes or (0,))[0] * (asked.train_fraction or 1.0))
    if "batch_size" in values and 0 < images < given["batch_size"]:
        given["batch_size"], origins["batch_size"] = images, "as many as there are"
    return Recipe(dataset=dataset, **given, origins=origins)


def _entry(asked: Recipe, benchmark: bool) -> tuple[PublishedRecipe | None, str]:
    """The nearest entry, and how to speak of it."""
    family = "bpt" if asked.method.startswith("bpt-") else asked.method
    wanted = {
        "pretraining": _pretraining(asked.model),
        "dataset": asked.dataset,
        "placement": "shallow" if asked.placement == "shallow" else "deep",
        "model": asked.model,
        "train_fraction": asked.train_fraction or 1.0,
    }
    if not benchmark:
        if asked.method not in PROMPT_METHODS:
            return None, ""
        family = "bpt"
        wanted |= {"dataset": "cub", "placement": "shallow"}
    candidates = [one for one in published_recipes() if one.method == family]
    if family == "spt":  # of its shallow form nothing was published
        candidates += [one for one in published_recipes() if one.method == "bpt"]

    def cost(one: PublishedRecipe) -> tuple[int, bool, int]:
        total = sum(weight for name, weight in COSTS.items() if not _fits(one, name, wanted[name]))
        anything = sum(getattr(one, name) in (ANY, None) for name in COSTS)
        return total, one.method != family, anything

    best = min(candidates, key=cost)
    other = [name for name in COSTS if not _fits(best, name, wanted[name])]
    if best.method != family:
        other.append("method")
    text = best.source
    if not benchmark:
        text = f"the paper's of CUB: {text}"
    elif other:
        text = f"none was published for this {', '.join(other)}; nearest: {text}"
    for what, note in (("one of a grid", best.grid), ("without", best.missing)):
        if note:
            text += f" ({what}: {note})"
    return best, text


def _fits(one: PublishedRecipe, name: str, wanted: Any) -> bool:  # noqa: ANN401
    return getattr(one, name) in (ANY, None, wanted)


def _pretraining(model: str) -> str:
    """Of a known backbone; that of a foreign one counts as MAE, the paper's first."""
    known = {one.name: one.pretraining for one in known_backbones()}
    return known.get(model, "mae")
