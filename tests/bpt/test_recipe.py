"""Hyper-parameters check themselves, and survive JSON."""

import json
from dataclasses import replace

import pytest

from bpt import DetectionRecipe
from bpt.published import recipe_for
from bpt.recipe import Recipe
from burst import BurstError, UnknownName


def test_the_defaults_are_the_papers_headline_run():
    recipe = Recipe(dataset="folder")
    assert (recipe.method, recipe.placement, recipe.num_prompts) == ("bpt-bilinear", "shallow", 100)
    assert (recipe.rank, recipe.epochs, recipe.warmup_epochs, recipe.batch_size) == (
        75,
        100,
        10,
        32,
    )
    assert (recipe.lr, recipe.weight_decay, recipe.head_weight_decay) == (5e-2, 5e-3, 0.5)


@pytest.mark.parametrize("method, lr", [("vpt", 5e-2), ("linear", 1e-2), ("full", 1.25e-4)])
def test_the_learning_rate_depends_on_the_method(method, lr):
    assert Recipe(method=method).lr == lr
    assert Recipe(method=method, lr=0.3).lr == 0.3


def test_a_recipe_survives_json():
    recipe = Recipe(dataset="folder:x", method="spt", epochs=3, ema_decay=0.9)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_recipe_of_an_earlier_version_keeps_what_it_said_under_the_name_of_now():
    for kind in (Recipe, DetectionRecipe):
        kept = kind.from_dict({"recompute": True})
        assert kept.checkpoint_activations
        assert kept.differences(kind()) == []


def test_an_unknown_hyper_parameter_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="num_prompts"):
        Recipe.from_dict({"num_prompt": 3})


def test_a_whitening_given_to_the_bilinear_prompt_is_its_start():
    assert Recipe(whitening="W.pt").bilinear_init == "whitening"


@pytest.mark.parametrize("method", ["bpt-fwhiten", "bpt-twhiten"])
def test_a_run_of_before_there_was_a_scale_has_the_papers(method):
    before = Recipe(dataset="folder", method=method).to_dict()
    for name in ("prompt_scale", "null_gain", "floor", "shrinkage", "through_norm"):
        del before[name]
    read = Recipe.from_dict(before)
    assert (read.prompt_scale, read.floor, read.shrinkage) == ("paper", 1e-6, "none")
    assert read == Recipe(dataset="folder", method=method, prompt_scale="paper", floor=1e-6)
    from_file = Recipe.from_dict({**before, "whitening": "W.pt"})
    typed = recipe_for("folder", method=method, whitening="W.pt", prompt_scale="paper")
    assert (from_file.prompt_scale, from_file.floor) == (typed.prompt_scale, typed.floor)


@pytest.mark.parametrize("method", ["vpt", "bpt-bilinear", "linear"])
def test_a_run_of_before_there_was_a_scale_goes_on_where_it_has_no_whitening(method):
    before = Recipe(dataset="folder", method=method).to_dict()
    for name in ("prompt_scale", "null_gain", "floor", "shrinkage", "through_norm"):
        del before[name]
    now = Recipe(dataset="folder", method=method)
    assert Recipe.from_dict(before).differences(now) == []


@pytest.mark.parametrize(
    "given, says",
    [
        ({"method": "vpt", "null_gain": 1.0}, "makes no use of null_gain"),
        ({"method": "bpt-bilinear", "prompt_scale": "paper"}, "bilinear from xavier has none"),
        ({"method": "bpt-bilinear", "floor": 0.1}, "floor is of whitening matrices"),
        ({"whitening": "W.pt", "floor": 0.1}, "W.pt is given, which has its own"),
        ({"whitening": "W.pt", "shrinkage": "oas"}, "shrinkage is of matrices that are made"),
        ({"whitening": "W.pt", "through_norm": True}, "through_norm is of matrices that are made"),
        ({"method": "bpt-dwhiten", "floor": 1.0}, "floor is 1.0"),
        ({"method": "bpt-dwhiten", "shrinkage": "osa"}, "oas"),
        ({"method": "bpt-dwhiten", "prompt_scale": "unti"}, "unit"),
        ({"prompt_scale": "paper", "null_gain": 0.0, "whitening": "W.pt"}, "leave null_gain out"),
    ],
)
def test_an_option_of_whitening_that_has_no_effect_is_refused_in_one_line(given, says):
    with pytest.raises(BurstError, match=says) as caught:
        recipe_for("folder", **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"method": "bpt-bilinaer"}, "bpt-bilinear"),
        ({"precision": "bf16"}, "bfloat16"),
        ({"protocol": "author"}, "authors"),
        ({"method": "vpt", "whitening": "W.pt"}, "no use of whitening, which is for bpt-fwhiten"),
        ({"method": "linear", "pooling": "prompts"}, "no prompts to pool"),
        ({"epochs": 0}, "epochs is 0"),
        ({"image_size": 0}, "image_size is 0"),
        ({"method": "vpt", "head_norm": "batch"}, "no use of head_norm, which is for linear"),
        ({"method": "linear", "head_norm": "batch", "accumulation": 2}, "leave accumulation out"),
        ({"method": "linear", "cutmix": 1.0}, "no use of cutmix"),
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": 1e-9}, "min_lr"),
        ({"epochs": 3, "warmup_epochs": 3}, "below the 3 epochs"),
        ({"batch_size": 10, "accumulation": 3}, "3 equal parts"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"num_prompts": 0}, "num_prompts is 0"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(changes, says):
    with pytest.raises(BurstError, match=says) as caught:
        Recipe(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given, says",
    [
        ({"epochs": 1.5}, r"epochs is 1\.5; it must be a whole number"),
        ({"seed": 0.5}, r"seed is 0\.5; it must be a whole number"),
        ({"batch_size": None}, "batch_size is None; it must be a whole number"),
        ({"lr": "0.1"}, r"lr is '0\.1'; it must be a number"),
        ({"train_fraction": 2}, "train_fraction is 2; it must lie in 0..1, without 0"),
        ({"train_fraction": 0.0}, "train_fraction is 0"),
    ],
)
def test_a_number_that_is_none_or_out_of_range_is_refused_before_anything_is_computed(given, says):
    with pytest.raises(BurstError, match=says):
        Recipe(**given)


def test_only_what_changes_the_numbers_tells_two_recipes_apart():
    recipe = Recipe(data="here", workers=0)
    assert recipe.differences(replace(recipe, data="there", workers=4)) == []
    assert recipe.differences(replace(recipe, lr=0.1, seed=1)) == ["lr", "seed"]


@pytest.mark.parametrize("method, differing", [("vpt", []), ("bpt-fwhiten", ["null_gain"])])
def test_options_of_matrices_differ_where_there_are_matrices(method, differing):
    recipe = Recipe(method=method, null_gain=1.0)
    assert recipe.differences(replace(recipe, null_gain=0.5)) == differing
