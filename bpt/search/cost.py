"""What a search will take at most, before anything of it is run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bpt.cost import TrainingCost, training_cost
from bpt.recipe import Recipe
from bpt.search.grid import Point
from bpt.search.options import SearchOptions
from bpt.search.outlook import expected
from bpt.search.plan import first_size
from bpt.search.worker import Worker
from burst.progress import Say


@dataclass(frozen=True)
class SearchCost:
    """What the search of one method takes at most.

    Attributes:
        recipe: that its trials vary.
        trials: that begin, where its grid is extended as far as it may be.
        seeds: of the final trainings.
        cost: of both, without what is stopped; None for a backbone that is not known.
    """

    recipe: Recipe
    trials: int
    seeds: int
    cost: TrainingCost | None


def search_costs(
    base: Recipe,
    methods: Sequence[str],
    out: str | Path,
    *,
    options: SearchOptions | None = None,
    say: Say | None = None,
) -> Mapping[str, SearchCost]:
    """By method what `search_methods` would take; what it would refuse is refused here.

    What lies in the folder already counts too. Nothing is written.

    Args:
        base, methods, out, options: see `search_methods`.
        say: called with a line on how the search would be validated.

    Raises:
        RunExists, BurstError: see `search_methods`.
    """
    worker = Worker(base, methods, Path(out), options or SearchOptions(), say=say)
    worker.check_start()
    worker.begin()
    return most_costs(worker.recipes, worker.benchmark.sizes, worker.options)


def most_costs(
    recipes: Mapping[str, Recipe], sizes: tuple[int, int, int], options: SearchOptions
) -> Mapping[str, SearchCost]:
    """By method what its search takes at most.

    Args:
        recipes: that trials vary, from `method_recipes`.
        sizes: images to train, validate and test.
        options: of the search.
    """
    grids = {name: options.grid_of(recipe) for name, recipe in recipes.items()}
    most = options.most_trials(first_size(grids))
    return {
        name: _cost(one, grids[name].points, most, sizes, options) for name, one in recipes.items()
    }


def _cost(
    recipe: Recipe,
    first: Sequence[Point],
    most: int,
    sizes: tuple[int, int, int],
    options: SearchOptions,
) -> SearchCost:
    train, val, test = sizes
    seeds, folds = len(options.seeds), options.folds_of(val)
    epochs = expected(options.rungs_of(recipe, val), first, most - len(first))
    trainings = epochs / recipe.total_epochs
    if folds:
        part = (train + val) // folds
        last = replace(recipe, protocol="last")
        parts = [(recipe, (train + val - part, part, 0), trainings), (last, sizes, seeds)]
    else:  # the best trial is the first of the final trainings: it is only tested
        parts = [(recipe, (train, val, 0), trainings), (recipe, (0, 0, test), 1)]
        parts.append((recipe, sizes, seeds - 1))
    images, operations = 0.0, 0.0
    for one, counts, times in parts:
        cost = training_cost(one, counts)
        if cost is None:
            return SearchCost(recipe, most, seeds, None)
        images += times * cost.images
        operations += times * cost.operations
    return SearchCost(recipe, most, seeds, TrainingCost(round(images), operations))
