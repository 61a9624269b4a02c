"""Many trainings, one after another or side by side on several devices; finished ones stay."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from bpt.cost import dataset_sizes
from bpt.detection.recipe import DetectionRecipe
from bpt.errors import Interrupted
from bpt.published import published_rate
from bpt.recipe import Recipe
from bpt.search import SearchCost, SearchOptions, search_methods
from bpt.search.cost import most_costs
from bpt.search.recipes import as_it_stands
from bpt.search.record import is_crossed
from bpt.side_by_side import Result, side_by_side
from bpt.signals import this_command
from bpt.train import train_seeds
from burst.errors import BurstError, one_line
from burst.progress import Progress, Say

AnyRecipe = Recipe | DetectionRecipe


def run_study(
    recipes: Mapping[str, AnyRecipe],
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    devices: Sequence[str] = ("auto",),
    search: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> dict[str, Result | str]:
    """Train each recipe with each seed, into out/NAME/seed_N. The same call again goes on.

    What is finished is not trained again, what was interrupted goes on from its last state. A
    training that fails does not stop the others.

    Args:
        recipes: by the name of their folder.
        out: the folder above.
        seeds: for each recipe.
        devices: one training at a time on each; several have a process of their own each.
        search: choose learning rate and weight decay of a classifier on validation images first,
            where none was published for it (`published_rate`), in out/NAME/search.
        progress: called as progress(steps done, steps in all) of the training that runs; only with
            one device.
        say: called with a line now and then.

    Returns:
        By name: what `train_seeds` returns, or in one line why there is nothing. After a search
        `searched` says what was chosen: lr, weight_decay, score (validation accuracy in percent),
        trials (how many), inside (whether it is no edge of what was tried); and the `protocol`:
        "last" after a cross-validation, whose winner is trained on all images.

    Raises:
        Interrupted: by SIGINT or SIGTERM; what runs was saved.
        BurstError: no device.
    """
    if not devices:
        raise BurstError("a study needs at least one device")
    tell = say or (lambda _: None)
    found: dict[str, Result | str] = {}

    def report(name: str, outcome: Result | str) -> None:
        found[name] = outcome
        tell(f"{len(found)}/{len(recipes)} {name}: {describe(outcome)}")

    if len(devices) == 1:
        for name, recipe in recipes.items():
            tell(f"{len(found) + 1}/{len(recipes)} {name}")
            place = Path(out) / name
            outcome = _run_one(recipe, seeds, place, search, devices[0], progress, say)
            report(name, outcome)
    else:
        works = {
            name: functools.partial(_run_one, recipe, seeds, Path(out) / name, search)
            for name, recipe in recipes.items()
        }
        side_by_side(works, devices, report)
    return {name: found[name] for name in recipes if name in found}


def study_search(recipe: AnyRecipe, seeds: Sequence[int]) -> SearchCost | None:
    """What `run_study` takes at most to search this recipe's rates and train the best with seeds.

    None where it searches none: a rate was published, or it is a detector's.

    Raises:
        BurstError: a protocol that leaves nothing to choose on; one's own images cannot be opened;
            or a placement does not fit.
    """
    if not _is_searched(recipe):
        return None
    options = SearchOptions(seeds=tuple(seeds))
    _check_protocol(recipe, options)
    return most_costs({recipe.method: recipe}, dataset_sizes(recipe), options)[recipe.method]


def _is_searched(recipe: AnyRecipe) -> TypeGuard[Recipe]:
    return isinstance(recipe, Recipe) and published_rate(recipe) is None


def _check_protocol(recipe: Recipe, options: SearchOptions) -> None:
    """Refuse a protocol that leaves nothing to choose on."""
    if recipe.protocol == "authors":
        raise BurstError(
            "a search chooses on validation images, which protocol authors trains on; leave one of "
            "them out"
        )
    if recipe.protocol == "last" and options.folds_of(dataset_sizes(recipe)[1]) is None:
        raise BurstError(
            "a search chooses on the validation split, and trains what it chose as it was chosen, "
            "without it; leave protocol last out"
        )


def describe(outcome: Result | str) -> str:
    """A finished training in a few words, or why there is none."""
    if isinstance(outcome, str):
        return outcome
    numbers = {"test_accuracy": "test accuracy", "box_AP": "box AP", "mask_AP": "mask AP"}
    parts = []
    for name, spoken in numbers.items():
        if found := outcome.get(name):
            spread = "" if found["std"] is None else f" ± {found['std']:.2f}"
            parts.append(f"{spoken} {found['mean']:.2f}{spread} %")
    return ", ".join(parts) or "nothing to score"


def _run_one(
    recipe: AnyRecipe,
    seeds: Sequence[int],
    out: Path,
    search: bool,
    device: str,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Result | str:
    try:
        if search and _is_searched(recipe):
            return _search_one(recipe, seeds, out / "search", device, progress, say)
        return train_seeds(
            recipe, seeds, out, device=device, resume=True, progress=progress, say=say
        )
    except Interrupted as error:
        raise Interrupted(error.signum, this_command()) from error
    except BurstError as error:
        return one_line(error)


def _search_one(
    recipe: Recipe,
    seeds: Sequence[int],
    out: Path,
    device: str,
    progress: Progress | None,
    say: Say | None,
) -> Result:
    """What `train_seeds` would return, of the best rate and decay of a search."""
    options = SearchOptions(seeds=tuple(seeds))
    _check_protocol(recipe, options)
    recipe = as_it_stands(recipe)
    found = search_methods(
        recipe, [recipe.method], out, options=options, devices=(device,), progress=progress, say=say
    )
    (one,) = found["methods"]
    if len(one["runs"]) < len(seeds):
        raise BurstError("every trial of it diverged, or what was chosen did with another seed")
    cross = is_crossed(found)
    searched = one["chosen"] | {"trials": len(one["trials"]), "inside": one["inside"]}
    searched["protocol"] = "last" if cross else "standard"
    how = "by cross-validation, trained on train and val" if cross else "on validation images"
    label = f"rates searched {how}, test split read once"
    return {"seeds": list(seeds), "label": label, "searched": searched} | {
        "test_accuracy": one["test"]
    }
