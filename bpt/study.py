"""Many trainings, one after another or side by side on several devices; finished ones stay."""

import functools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import torch

from bpt.cost import dataset_sizes
from bpt.detection.recipe import DetectionRecipe
from bpt.errors import Interrupted, RunBusy
from bpt.published import published_rate
from bpt.recipe import Recipe
from bpt.search import SearchCost, SearchOptions, search_methods
from bpt.search.cost import most_costs
from bpt.search.recipes import as_it_stands
from bpt.search.record import is_crossed
from bpt.side_by_side import POLL, Result, side_by_side
from bpt.signals import this_command
from bpt.train import check_seeds, seeds_summary, train_seed
from burst.device import out_of_memory
from burst.distributed import rank_and_size
from burst.errors import BurstError, one_line
from burst.files import make_folder
from burst.lock import warn_without_locks
from burst.progress import Progress, Say

AnyRecipe = Recipe | DetectionRecipe
Training = tuple[str, int | None]  # a recipe's name and a seed; None: a search, and all seeds


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
    training that fails does not stop the others. Several at once, on one machine or on several
    with one disk, share the trainings: what another process trains is waited for at the end.

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
        BurstError: no device, no seed or one twice.
        OutputError: `out` cannot be made or written.
    """
    if not devices:
        raise BurstError("a study needs at least one device")
    check_seeds(seeds)
    tell = say or (lambda _: None)
    warn_without_locks(make_folder(out), tell)
    works: dict[Training, Callable[..., Result | str | None]] = {}
    for name, recipe in recipes.items():
        place = Path(out) / name
        if search and _is_searched(recipe):
            one = functools.partial(_search_one, recipe, seeds, place / "search")
            works[name, None] = functools.partial(_run, one)
            continue
        for seed in seeds:
            one = functools.partial(train_seed, recipe, seed, place, resume=True)
            works[name, seed] = functools.partial(_run, one)
    outcomes = _Outcomes(list(recipes), seeds, Path(out), tell)
    if len(devices) > 1:
        side_by_side(works, devices, outcomes.add)
    else:
        _one_by_one(works, outcomes, device=devices[0], progress=progress, say=say)
    return {name: outcomes.found[name] for name in recipes if name in outcomes.found}


class _Outcomes:
    """What comes of each recipe, as its trainings end."""

    def __init__(self, names: Sequence[str], seeds: Sequence[int], out: Path, say: Say) -> None:
        self.found: dict[str, Result | str] = {}
        self._names, self._seeds, self._out, self._say = names, seeds, out, say
        self._results: dict[str, dict[int, Result]] = {name: {} for name in names}
        self._begun: set[str] = set()
        self._held: set[Training] = set()

    def begin(self, name: str) -> None:
        """Say that it does, once."""
        if name not in self._begun:
            self._begun.add(name)
            self._say(f"{len(self._begun)}/{len(self._names)} {name}")

    def add(self, training: Training, outcome: Result | str | None) -> None:
        """Of one training; None: another process has it. The first failure of a recipe counts."""
        name, seed = training
        if outcome is None:
            if training not in self._held:
                self._held.add(training)
                self._say(f"{name}: another process trains seed {seed}")
        elif seed is None or isinstance(outcome, str):
            self._end(name, outcome)
        else:
            results = self._results[name]
            results[seed] = outcome
            if len(results) == len(self._seeds):
                self._end(name, self._summary(name))

    def _end(self, name: str, outcome: Result | str) -> None:
        if name not in self.found:
            self.found[name] = outcome
            self._say(f"{len(self.found)}/{len(self._names)} {name}: {describe(outcome)}")

    def _summary(self, name: str) -> Result | str:
        results = [self._results[name][seed] for seed in self._seeds]
        try:
            return seeds_summary(self._seeds, results, self._out / name)
        except BurstError as error:
            return one_line(error)


def _one_by_one(
    works: Mapping[Training, Callable[..., Result | str | None]],
    outcomes: _Outcomes,
    *,
    device: str,
    progress: Progress | None,
    say: Say | None,
) -> None:
    """In this process: what another one trains comes later."""
    waiting = deque(works)
    while waiting:
        training = waiting.popleft()
        outcomes.begin(training[0])
        outcome = works[training](device, progress=progress, say=say)
        outcomes.add(training, outcome)
        if outcome is None:
            waiting.append(training)
            time.sleep(POLL)


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


def _run(
    work: Callable[..., Result],
    device: str,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Result | str | None:
    """What comes of it, or in one line why nothing; None: another process has it."""
    try:
        return work(device=device, progress=progress, say=say)
    except RunBusy:
        return None
    except Interrupted as error:
        raise Interrupted(error.signum, this_command()) from error
    except BurstError as error:
        return one_line(error)
    except torch.OutOfMemoryError as error:
        if rank_and_size()[1] > 1:  # the others would go on with this training
            raise
        return out_of_memory(error)


def _search_one(
    recipe: Recipe,
    seeds: Sequence[int],
    out: Path,
    *,
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
