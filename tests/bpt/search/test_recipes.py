"""What a trial's recipe takes from its point."""

from pathlib import Path

import pytest

from bpt import recipe_for
from bpt.batches import fitted
from bpt.published import published_rate
from bpt.recipe import Recipe
from bpt.search.grid import Point
from bpt.search.recipes import (
    LOOP,
    as_it_stands,
    method_recipes,
    search_base,
    search_folder,
    trial_recipe,
)
from bpt.search.same import other_recipes
from burst.errors import BurstError


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


@pytest.mark.parametrize("method", ["linear", "vpt", "bpt-fwhiten"])
def test_a_trial_says_that_its_rate_and_decays_were_tried_not_published(method):
    recipe = recipe_for("digits", method=method)
    found = trial_recipe(recipe, Point(3.0, 0.25), seed=0)
    searched = {"lr", "head_weight_decay"} | ({"weight_decay"} if method != "linear" else set())
    assert {name for name, origin in found.origins.items() if "in a search" in origin} == searched
    for line in found.provenance():
        assert ("lr 3.0" in line) == ("decay" in line) == line.endswith("tried in a search")
    kept = trial_recipe(recipe_for("digits", head_weight_decay=0.5), Point(3.0, 0.25), seed=0)
    assert kept.origins["head_weight_decay"] == "given" and kept.head_weight_decay == 0.5


def test_a_rate_below_the_least_one_of_the_schedule_stays_as_it_is():
    recipe = Recipe(lr=0.1, min_lr=1e-3)
    assert trial_recipe(recipe, Point(1e-4, 0.0), seed=0).min_lr == 1e-4
    assert trial_recipe(recipe, Point(0.01, 0.0), seed=0).min_lr == 1e-3


@pytest.mark.parametrize(
    "given, user, other",
    [
        ({"head_norm": "batch"}, "linear", "vpt"),
        ({"gate_init": 5.0}, "gatevpt", "vpt"),
        ({"bottleneck": 4}, "adapter", "vpt"),
        ({"drop_path": 0.2}, "full", "linear"),
    ],
)
def test_an_option_of_one_method_reaches_it_and_needs_no_folder_to_be_named(given, user, other):
    base = search_base("digits", **given)
    found, (name, value) = method_recipes(base, (other, user)), *given.items()
    assert getattr(found[user], name) == value != getattr(found[other], name)
    assert search_folder(base) == Path("searches/digits-mae_tiny")
    with pytest.raises(BurstError, match=f"{name} is for .*none of them is searched"):
        method_recipes(base, (other,))


PROMPTS = ("vpt", "spt", "gatevpt", "bpt-bilinear", "bpt-fwhiten", "bpt-dwhiten")


@pytest.mark.parametrize("dataset", ["cub", "cars", "imagenet", "vtab:cifar", "digits", "folder:x"])
@pytest.mark.parametrize("given", [{}, {"placement": "last:4"}, {"batch_size": 64, "epochs": 20}])
@pytest.mark.parametrize(
    "model", ["mae_vitb", "sup_vitb", "moco_vitb", "timm:vit_tiny_patch16_224"]
)
def test_prompts_that_are_searched_are_trained_alike(dataset, given, model):
    """Published loops differ: VPT's is SGD in batches of 128, BPT's AdamW in batches of 32."""
    found = method_recipes(search_base(dataset, model=model, **given), (*PROMPTS, "linear"))
    found.pop("linear")
    searched = {name: one for name, one in found.items() if not published_rate(one)}
    if "placement" in given:  # gatevpt stands where it must, and shallow prompts are more
        searched.pop("gatevpt", None)
    assert {"vpt", "bpt-fwhiten", "bpt-dwhiten"} <= searched.keys()
    for name in LOOP:
        values = {getattr(one, name) for one in searched.values()}
        assert len(values) == 1, (name, values)
    for name, value in given.items():
        assert name == "placement" or {getattr(one, name) for one in found.values()} == {value}


def test_a_base_that_names_its_method_keeps_what_was_published_for_it():
    """As `bpt study` has it, whose rows are those of a paper."""
    cell = recipe_for("cub", method="vpt", model="mae_vitb")
    (found,) = method_recipes(cell, ["vpt"]).values()
    assert (found.optimizer, found.batch_size, found.lr) == ("sgd", 128, 1.25)
    few = recipe_for("cub", method="linear", model="mae_vitb", epochs=5)
    assert method_recipes(few, ["linear"])["linear"].epochs == 5
    small = recipe_for("digits", method="vpt")
    assert method_recipes(small, ["vpt"])["vpt"].to_dict() == small.to_dict()


def test_one_method_needs_no_list():
    assert list(method_recipes(search_base("digits"), "vpt")) == ["vpt"]


def test_a_method_can_be_added_whose_published_loop_is_another():
    base, names = search_base("cub", num_prompts=20), ("linear", "vpt", "gatevpt")
    before = [
        {"method": name, "recipe": one.to_dict()}
        for name, one in method_recipes(base, names).items()
    ]
    now = method_recipes(base, (*names, "bpt-bilinear", "full"))
    assert other_recipes({"methods": before}, now) == []
    other = method_recipes(search_base("cub", num_prompts=30), (*names, "bpt-bilinear"))
    assert other_recipes({"methods": before}, other) == ["num_prompts 20, not 30"]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(dataset="cub", model="mae_tiny", method="vpt", epochs=5),
        Recipe(dataset="digits", method="vpt", num_prompts=100, batch_size=32),
        Recipe(dataset="folder", data="x", method="linear", epochs=3, head_norm="batch"),
    ],
)
def test_a_recipe_made_by_hand_can_be_searched_as_it_stands(recipe):
    """Also where a value is the class's default, such as mae_tiny."""
    found = method_recipes(as_it_stands(recipe), [recipe.method])[recipe.method]
    searched = {"lr", "weight_decay", "head_weight_decay", "origins"}
    same = {name: value for name, value in recipe.to_dict().items() if name not in searched}
    assert {name: found.to_dict()[name] for name in same if same[name] is not None} == {
        name: value for name, value in same.items() if value is not None
    }


def test_what_was_made_by_hand_is_no_choice_of_a_batch_or_of_a_heads_decay():
    """Which a given value is: it stays where images do not fill it, and keeps to itself."""
    made = Recipe(dataset="folder", data="x", method="vpt")
    (found,) = method_recipes(as_it_stands(made), ["vpt"]).values()
    assert fitted(found, 20).batch_size == fitted(made, 20).batch_size == 20
    assert trial_recipe(found, Point(0.1, 0.0), 0).head_weight_decay == 0
    assert not any("by hand" in line for line in found.provenance())
