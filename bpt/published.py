"""The hyper-parameters that were published for a run, from `recipes.toml`, or the nearest."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from typing import Any

from bpt.dataset import dataset_info
from bpt.methods import USED_BY, check_used, used_by_any
from bpt.recipe import OF_CROPS, Recipe
from bpt.tuning import Tuning, check_fields, check_whitening
from burst.backbone_spec import known_backbones
from burst.errors import BurstError

ANY = "any"
FGVC = ("cub", "nabirds", "flowers", "dogs", "cars")
# What a recipe of another kind costs; another pretraining most, for its rates differ tenfold.
# Another dataset is nearer than another method.
COSTS = {
    "pretraining": 16,
    "placement": 8,
    "method": 7,
    "dataset": 6,
    "model": 2,
    "train_fraction": 2,
}
# Of a pretraining that nothing was published for, the supervised net's rates are nearest: on a
# ViT-S of DINOv2's line vpt has 58.5 % with them and 51.9 with MAE's (docs/evidence.md).
OTHER, NEAREST = "other", "supervised"
NEAREST_METHOD = {"spt": "bpt", "bitfit": "adapter"}
SIZES = ("num_prompts", "rank", "gate_init")  # what a prompt is, not how it is trained
OF_THE_PAPER = ("bpt-fwhiten", "bpt-twhiten", "bpt-bilinear")
# Without which a rate says nothing.
OF_A_STEP = tuple(one for one in fields(Recipe) if one.name in ("batch_size", "optimizer"))
DECAYS = ("lr", "weight_decay", "head_weight_decay")


@dataclass(frozen=True)
class PublishedRecipe:
    """An entry of recipes.toml; "any" or None where it holds for all.

    Attributes:
        pretraining: as `burst.known_backbones` calls it.
        dataset: of `known_datasets`; "fgvc" is any of the five fine-grained ones.
        method: a method, or "bpt" for the four of them.
        placement: "shallow" or "deep", which stands for every other.
        source: where it was published.
        values: hyper-parameters of `Recipe`.
        model: the backbone that it is for.
        train_fraction: the share of the training images that it is for, 0..1.
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

    Those that were given stay. The others are taken from recipes.toml: number and rank of prompts
    from the entry for this pretraining, dataset, method and placement that has them, or from the
    nearest; what else there is likewise. `Recipe.origins` says for each what it comes from. For
    one's own images and for digits there is no published recipe: learning rate and decays of a
    prompt are the paper's of CUB, the rest are the defaults of `Recipe`. A backbone of another
    pretraining than MAE, MoCo v3 and supervised, by its name, takes those of the supervised net.
    Rates are not scaled where another batch size or optimiser was given; the origin says so.

    Args:
        dataset: as `Recipe` takes it.
        **given: other fields of `Recipe`; None is as good as left out.

    Raises:
        UnknownName: an unknown dataset, method or backbone.
        BurstError: a dataset for detection; a hyper-parameter was given that the method makes no
            use of; else see `Recipe` and `parse_placement`.
    """
    given = {name: value for name, value in given.items() if value is not None}
    origins = dict.fromkeys(given, "given")
    info = dataset_info(dataset)
    if info.task == "detection":
        raise BurstError(f"{dataset} is for detection; see bpt.detection_recipe_for")
    check_fields(Recipe, given, dataset=dataset)
    benchmark = info.layout is not None
    if benchmark and "model" not in given:
        given["model"], origins["model"] = "mae_vitb", "the paper's headline run"
    asked = Recipe(dataset=dataset, **given)
    check_used(asked.method, given)
    check_whitening(asked, given)
    if asked.whitening and given.get("bilinear_init", "whitening") != "whitening":
        raise BurstError(
            f"bilinear_init is {given['bilinear_init']}, but a bilinear prompt starts from the "
            f"whitening that is given, {asked.whitening}; leave one of them out"
        )
    values = _of_a_benchmark(asked) if benchmark else _of_cub(asked)
    if given.get("epochs") not in (None, values.get("epochs", (100, ""))[0]):
        values.pop("warmup_epochs", None)  # it was for another length
    if info.augmentation:
        values["augmentation"] = (info.augmentation, f"the protocol of {info.name}")
    if given.get("augmentation", values.get("augmentation", ("crop", ""))[0]) != "crop":
        for name in OF_CROPS:  # published for random crops, which are not made here
            values.pop(name, None)
    other = _other_step(given, values)
    for name, (value, origin) in values.items():
        if name not in given:
            given[name], origins[name] = value, origin + (other if name in DECAYS else "")
    return Recipe(dataset=dataset, **given, origins=origins)


def published_rate(recipe: Tuning) -> str | None:
    """Where a learning rate was published for just this: pretraining, benchmark, method, placement.

    None where `recipe_for` takes the nearest, or one out of a grid that its source searched; where
    it is that of other batches or of another optimiser; for images that nothing was published of;
    and for methods, scales and starts of prompts that are nobody's but ours: the paper's rates are
    those of W as it is. A detector's are published for all methods.

    Args:
        recipe: of a classifier or a detector.

    Returns:
        The source, in words.
    """
    kinds = {one.name for one in known_backbones()}
    if dataset_info(recipe.dataset).task == "detection":
        return recipe.origins.get("lr")
    if dataset_info(recipe.dataset).layout is None or recipe.model not in kinds:
        return None
    wanted = _wanted(recipe)
    if wanted["method"] == "bpt" and not _of_the_paper(recipe):
        return None
    if not _entries(wanted["method"], "lr"):
        return None
    entry, origin = _nearest(wanted, "lr")
    exact = all(_fits(entry, name, wanted[name]) for name in COSTS)
    same = all(getattr(recipe, name) == value for name, value in _step(entry.values).items())
    return origin if exact and same and entry.grid is None else None


def _of_the_paper(recipe: Tuning) -> bool:
    """Whether method, scale and start of its prompts are the paper's."""
    scaled = recipe.needs_whitening and recipe.prompt_scale != "paper"
    balanced = recipe.method == "bpt-bilinear" and recipe.bilinear_init == "balanced"
    return recipe.method in OF_THE_PAPER and not scaled and not balanced


def _of_a_benchmark(asked: Recipe) -> dict[str, tuple[Any, str]]:
    """By hyper-parameter that the method uses: its value, and where that is from."""
    wanted = _wanted(asked)
    entry, origin = _nearest(wanted, "lr")
    used = used_by_any(entry.values, (asked.method,))
    found = {name: (value, origin) for name, value in used.items() if name not in SIZES}
    if asked.prompted:
        entry, origin = _nearest(wanted, "num_prompts")
        sizes = [name for name in SIZES if asked.method in USED_BY[name]]
        found |= {name: (entry.values[name], origin) for name in sizes}
    return found


def _of_cub(asked: Recipe) -> dict[str, tuple[Any, str]]:
    """The same for one's own images: the rates of a shallow BPT prompt on CUB."""
    if not asked.prompted:
        return {}
    wanted = _wanted(asked) | {"placement": "shallow", "method": "bpt", "dataset": "cub"}
    entry, _ = _nearest(wanted, "lr")
    near = ", the nearest to this pretraining" if wanted["pretraining"] == OTHER else ""
    origin = f"the paper's of CUB: {entry.source}{near}"
    return {name: (entry.values[name], origin) for name in DECAYS}


def _step(values: Mapping[str, Any]) -> dict[str, Any]:
    """What rates among these were published with: a value that is left out is the default."""
    return {one.name: values.get(one.name, one.default) for one in OF_A_STEP}


def _other_step(given: Mapping[str, Any], values: Mapping[str, tuple[Any, str]]) -> str:
    """Of rates that were published for another step than is asked for: for which, in words."""
    step = _step({name: value for name, (value, _) in values.items()})
    other = [name for name, value in step.items() if given.get(name, value) != value]
    words = (f"{name} {step[name]}, not {given[name]}" for name in other)
    return f", with {', '.join(words)}" if other and "lr" in values else ""


def _wanted(asked: Tuning) -> dict[str, Any]:
    return {
        "pretraining": _pretraining(asked.model),
        "placement": "shallow" if asked.placement == "shallow" else "deep",
        "method": "bpt" if asked.method.startswith("bpt-") else asked.method,
        "dataset": asked.dataset,
        "model": asked.model,
        "train_fraction": asked.train_fraction or 1.0,
    }


def _entries(method: str, what: str) -> list[PublishedRecipe]:
    """Those that give this hyper-parameter of a method, or of the one that is nearest to it."""
    methods = {method, NEAREST_METHOD.get(method, method)}
    return [one for one in published_recipes() if one.method in methods and what in one.values]


def _nearest(wanted: Mapping[str, Any], what: str) -> tuple[PublishedRecipe, str]:
    """The nearest entry that gives this hyper-parameter, and how to speak of it."""

    def cost(one: PublishedRecipe) -> tuple[int, int]:
        total = sum(weight for name, weight in COSTS.items() if not _fits(one, name, wanted[name]))
        if wanted["pretraining"] == OTHER and one.pretraining not in (ANY, NEAREST):
            total += COSTS["pretraining"]
        return total, sum(getattr(one, name) in (ANY, None) for name in COSTS)

    best = min(_entries(wanted["method"], what), key=cost)
    other = [name for name in COSTS if not _fits(best, name, wanted[name])]
    text = best.source
    if other:
        text = f"none was published for this {', '.join(other)}; nearest: {text}"
    for says, note in (("one of a grid", best.grid), ("without", best.missing)):
        if note:
            text += f" ({says}: {note})"
    return best, text


def _fits(one: PublishedRecipe, name: str, wanted: Any) -> bool:  # noqa: ANN401
    held = getattr(one, name)
    if name == "dataset":
        return wanted in FGVC if held == "fgvc" else held in (ANY, wanted.partition(":")[0])
    return held in (ANY, None, wanted)


def _pretraining(model: str) -> str:
    """One that something was published for: of a known backbone, or by a foreign one's name."""
    known = {one.name: one.pretraining for one in known_backbones()}
    kinds = {one.pretraining for one in published_recipes()} - {ANY}
    if model in known:
        return known[model] if known[model] in kinds else OTHER
    words = [(kind, kind.partition("_")[0]) for kind in sorted(kinds)]
    # "vit-mae-base" and "mocov3", but not "maestro"
    named = (kind for kind, word in words if re.search(rf"{word}(v\d+)?(?![a-z])", model.lower()))
    return next(named, OTHER)
