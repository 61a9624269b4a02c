"""A base recipe -> the recipe of each method, of each trial and of each final training."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bpt.dataset import dataset_info, file_name
from bpt.methods import METHODS, USED_BY, WHITENED, used_by_any
from bpt.pooling import OF_PROMPTS
from bpt.published import published_rate, recipe_for
from bpt.recipe import Recipe
from bpt.search.grid import Point, rounded
from bpt.search.options import searched_decay
from bpt.tuning import MADE, OF_MATRICES, check_fields
from burst.errors import BurstError, check_known
from burst.files import safe_name

TRIED = "tried in a search"  # the origin of a trial's rate and decays
# What a search chooses, and so nobody can give.
SEARCHED = ("method", "lr", "weight_decay", "seed", "protocol", "fold", "origins")
# Epochs of a linear probe, however few the prompts have: its features are computed once, so they
# cost it seconds, and with fewer its order against prompts is one of length.
LEAST_OF_PROBE = 100
# How prompts are trained and how many there are: alike in a search, where nothing was published for
# just this. What a grid or another benchmark gives would compare SGD with AdamW, and 4,200 steps
# with 16,800.
LOOP = (
    *("optimizer", "lr", "weight_decay", "head_weight_decay", "batch_size", "epochs"),
    *("warmup_epochs", "min_lr", "augmentation", "num_prompts"),
)
LEADER = "bpt-fwhiten"
# A search on digits shall end within minutes without a GPU; said in what it prints.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "digits": {
        "placement": "last:4",  # whose first eight blocks are computed once
        "augmentation": "none",
        "num_prompts": 10,
        "rank": 8,
        "epochs": 10,
        "batch_size": 16,
        "image_size": 32,
        "train_fraction": 0.35,
    }
}


def given_of(base: Recipe) -> dict[str, Any]:
    """What of a recipe was asked for: as its `origins` say, or what is no default."""
    if base.origins:
        names = [name for name, origin in base.origins.items() if origin in ("given", MADE)]
    else:
        default = Recipe(dataset=base.dataset, method=base.method).to_dict()
        of_length = Recipe(dataset=base.dataset, method=base.method, epochs=base.epochs)
        default["warmup_epochs"] = of_length.warmup_epochs
        names = [name for name, value in base.to_dict().items() if value != default[name]]
    return {name: getattr(base, name) for name in names if name not in (*SEARCHED, "dataset")}


def as_it_stands(recipe: Recipe) -> Recipe:
    """One that was made by hand as the base of a search, which sets only its rate and decay.

    Those of `recipe_for` say in `origins` where each value is from, and are returned unchanged.
    """
    if recipe.origins:
        return recipe
    values = {name: one for name, one in recipe.to_dict().items() if one is not None}
    used = used_by_any(values, (recipe.method,)).keys() - {"dataset", "origins"}
    return dataclasses.replace(recipe, origins=dict.fromkeys(sorted(used), MADE))


def small_defaults(base: Recipe) -> str:
    """What a search on this dataset sets where nobody does, in words; empty for most."""
    given = given_of(base)
    small = {k: v for k, v in SMALL.get(base.dataset, {}).items() if k not in given}
    return ", ".join(f"{name} {value}" for name, value in small.items())


def method_recipes(base: Recipe, methods: Sequence[str]) -> dict[str, Recipe]:
    """By method the recipe that its trials vary: what was asked for, else as published.

    What a method makes no use of is left out of its recipe. A prompt whose rate was not published
    for just this is trained as the whitened ones, see `LOOP`: it is searched anyway. Where a base
    names its method, as those of `recipe_for` do, it is that method's as it stands, with neither
    this nor the small defaults of a search.

    Raises:
        UnknownName: a method that is not known; the nearest are offered.
        BurstError: no method, or one twice; an option that none of them makes use of; or see
            `recipe_for`.
    """
    methods = [methods] if isinstance(methods, str) else methods
    if not methods or len(set(methods)) < len(methods):
        raise BurstError(f"methods {list(methods)} must be at least one, and no two the same")
    for method in methods:
        check_known("method", method, METHODS)
    given = given_of(base)
    for name in given:
        users = USED_BY.get(name, methods)
        if not set(users) & set(methods):
            raise BurstError(f"{name} is for {', '.join(users)}; none of them is searched")
    used = {method: _used(base.dataset, method, given) for method in methods}
    for name in set(given).difference(*used.values()):
        for method in methods:  # so that the refusal says what would make it useful
            if method in USED_BY.get(name, methods):
                used[method].add(name)
    return {
        method: _recipe(
            base.dataset,
            method,
            {name: given[name] for name in names},
            alone=base.origins if base.origins.get("method") in ("given", MADE) else None,
        )
        for method, names in used.items()
    }


def _used(dataset: str, method: str, given: Mapping[str, Any]) -> set[str]:
    """Which of the options have an effect on the method."""
    names = {*used_by_any(given, (method,))}
    start = {name: given[name] for name in ("whitening", "bilinear_init") if name in names}
    recipe = Recipe(dataset=dataset, method=method, **start)
    if not recipe.needs_whitening:
        names -= {*OF_MATRICES}
    if not recipe.prompted and given.get("pooling") in OF_PROMPTS:
        names -= {"pooling"}
    return names


def _recipe(
    dataset: str, method: str, used: Mapping[str, Any], *, alone: Mapping[str, str] | None
) -> Recipe:
    """`alone`: the origins of a base that is of this method, and to be taken as it stands."""
    if alone is not None:
        recipe = recipe_for(dataset, method=method, **used)
        made = {name: origin for name, origin in alone.items() if origin == MADE and name in used}
        return dataclasses.replace(recipe, origins={**recipe.origins, **made})
    small = used_by_any(SMALL.get(dataset, {}), (method,))
    given = long_enough(method, {**small, **used})
    recipe = recipe_for(dataset, method=method, **given)
    if not recipe.prompted or method in WHITENED or published_rate(recipe):
        return recipe
    like = recipe_for(dataset, method=LEADER, **used_by_any(given, (LEADER,)))
    values = {name: getattr(like, name) for name in LOOP if name not in given}
    if all(getattr(recipe, name) == value for name, value in values.items()):
        return recipe
    origins = {
        name: f"as {LEADER} here, {like.origins.get(name, 'the default')}" for name in values
    }
    return dataclasses.replace(recipe, **values, origins={**recipe.origins, **origins})


def long_enough(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given of a recipe, but for a linear probe never fewer than `LEAST_OF_PROBE` epochs.

    >>> long_enough("linear", {"epochs": 12}), long_enough("vpt", {"epochs": 12})
    ({'epochs': 100}, {'epochs': 12})
    """
    found = dict(given)
    if method == "linear" and "epochs" in found:
        found["epochs"] = max(found["epochs"], LEAST_OF_PROBE)
    return found


def longer_probe(recipes: Mapping[str, Recipe]) -> str:
    """That the probe trains longer than the prompts, in words; empty where it does not."""
    others = [one.total_epochs for name, one in recipes.items() if name != "linear"]
    own = recipes["linear"].total_epochs if "linear" in recipes else 0
    if not others or own <= max(others):
        return ""
    return f"linear trains {own} epochs, not {max(others)}, on features computed once"


def trial_recipe(recipe: Recipe, point: Point, seed: int, **changes: Any) -> Recipe:  # noqa: ANN401
    """The recipe with a point's learning rate and weight decay.

    The head's decay keeps its ratio to that of the prompts, unless it was given. Where neither
    decays, as published for gatevpt, both are tried with the same.
    """
    own, head = searched_decay(recipe), recipe.head_weight_decay or 0.0
    decays = {"head_weight_decay" if recipe.method == "linear" else "weight_decay": point[1]}
    if recipe.prompted and recipe.origins.get("head_weight_decay") != "given" and (own or not head):
        ratio = head / own if own else 1.0
        decays["head_weight_decay"] = rounded(ratio * point.weight_decay)
    # A rate below the least one that the schedule falls to stays as it is.
    least = {"min_lr": point.lr} if (recipe.min_lr or 0.0) > point.lr else {}
    searched: dict[str, Any] = {"lr": point.lr, **least, **decays}
    origins = {**recipe.origins, **dict.fromkeys(searched, TRIED)}
    return dataclasses.replace(recipe, **changes, **searched, seed=seed, origins=origins)


def search_base(dataset: str, **given: Any) -> Recipe:  # noqa: ANN401  whatever Recipe takes
    """A base recipe of a search: what was given, for whatever method makes use of it.

    Args:
        dataset: as `Recipe` takes it.
        **given: fields of `Recipe` that a search does not choose; None is as good as left out.

    Raises:
        BurstError: a dataset for detection; a field that a search chooses, or that there is none
            of; or see `Recipe`.
    """
    given = {name: value for name, value in given.items() if value is not None}
    check_fields(Recipe, given, dataset=dataset)
    if dataset_info(dataset).task == "detection":
        raise BurstError(f"{dataset} is for detection; a search compares classifiers")
    for name in SEARCHED:
        if name in given:
            raise BurstError(f"{name} is what a search chooses; leave it out of its recipe")
    return Recipe(dataset=dataset, **given, origins=dict.fromkeys(given, "given"))


def search_folder(base: Recipe) -> Path:
    """Where a search is left if nobody says: the same for the same dataset and backbone.

    Returns:
        searches/DATASET-MODEL.

    Raises:
        BurstError: see `recipe_for`.
    """
    model = given_of(base).get("model") or recipe_for(base.dataset).model
    parts = [file_name(base.dataset), model]
    return Path("searches") / safe_name("-".join(parts))
