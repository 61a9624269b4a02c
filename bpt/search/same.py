"""Whether the trainings that lie in a folder are those of this search."""

from collections.abc import Iterable, Mapping
from typing import Any

from bpt.batches import fitted
from bpt.recipe import Recipe
from bpt.run_folder import Run
from bpt.search.grid import Point
from bpt.search.options import searched_decay
from bpt.search.recipes import trial_recipe


def other_recipes(before: Mapping[str, Any], now: Mapping[str, Recipe]) -> list[str]:
    """In words what of the methods that a record speaks of is other than now.

    Args:
        before: search.json.
        now: recipes of its methods and maybe of more, by today's options.
    """
    found = []
    for one in before["methods"]:
        found += Recipe.from_dict(one["recipe"]).differences_in_words(now[one["method"]])
    return list(dict.fromkeys(found))


def other_runs(runs: Iterable[Run], recipe: Recipe) -> list[str]:
    """In words what of a method's run folders is other than what its trials and final runs are.

    A search reads them without training them on, so nothing else looks at them.
    """
    found = []
    for run in runs:
        mine = run.recipe
        point = Point(mine.peak_lr, searched_decay(mine))
        changes = {"protocol": mine.protocol, "fold": mine.fold}
        images = run.config["dataset"]["train"]
        images += 0 if mine.protocol == "standard" else run.config["dataset"]["val"]
        wanted = fitted(trial_recipe(recipe, point, mine.seed, **changes), images)
        found += mine.differences_in_words(wanted)
        if bool(mine.whitening) != bool(recipe.whitening):
            kinds = ("of the training images", "of a file")
            found.append(f"matrices {kinds[bool(mine.whitening)]}, not {kinds[not mine.whitening]}")
    return list(dict.fromkeys(found))
