"""What a trial's recipe takes from its point."""

import pytest

from bpt.recipe import Recipe
from bpt.search.grid import Point
from bpt.search.recipes import trial_recipe


@pytest.mark.parametrize(
    "own, head, origin, tried, expected",
    [
        (0.005, 0.5, "default", 0.0, 0.0),
        (0.005, 0.5, "default", 0.002, 0.2),
        (0.005, 0.5, "given", 0.002, 0.5),
        (0.0, 0.0, "default", 0.05, 0.05),  # as published for gatevpt: one decay for all
        (0.0, 0.0, "given", 0.05, 0.0),
        (0.0, 0.5, "default", 0.05, 0.5),
    ],
)
def test_a_heads_decay_goes_with_that_of_the_prompts(own, head, origin, tried, expected):
    recipe = Recipe(weight_decay=own, head_weight_decay=head, origins={"head_weight_decay": origin})
    found = trial_recipe(recipe, Point(0.1, tried), seed=3)
    assert (found.lr, found.weight_decay, found.seed) == (0.1, tried, 3)
    assert found.head_weight_decay == pytest.approx(expected)


def test_a_probe_has_the_decay_of_its_head():
    found = trial_recipe(Recipe(method="linear"), Point(0.1, 0.05), seed=0)
    assert found.head_weight_decay == 0.05 and found.weight_decay == 0.0
