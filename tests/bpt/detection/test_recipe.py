"""What a detector is trained with: defaults, what was published, what is refused."""

import pytest

from bpt.detection.published import detection_recipe_for, detection_recipes
from bpt.detection.recipe import DetectionRecipe
from burst.errors import BurstError, ShapeError, UnknownName


def test_the_papers_recipe_is_what_nobody_has_to_type():
    """Protocol facts, section 6: SUP table 8, and the released demo of detection."""
    recipe = detection_recipe_for("coco")
    assert (recipe.model, recipe.method, recipe.placement) == (
        "mae_vitb",
        "bpt-bilinear",
        "shallow",
    )
    assert (recipe.num_prompts, recipe.rank) == (100, 100)
    assert (recipe.lr, recipe.weight_decay, recipe.batch_size) == (5e-4, 0.1, 16)
    assert (recipe.total_epochs, recipe.milestones) == (37, (7 / 9, 25 / 27))
    assert (recipe.size, recipe.smallest_scale, recipe.largest_scale) == (1024, 0.1, 2.0)
    assert (recipe.detector, recipe.class_agnostic) == ("mask-rcnn", False)
    assert detection_recipe_for("coco", detector="cascade").class_agnostic


@pytest.mark.parametrize(
    "model, decay", [("mae_vitb", 0.7), ("mae_vitl", 0.8), ("mae_vith", 0.9), ("mae_tiny", 0.7)]
)
def test_fine_tuning_has_the_decay_of_its_size(model, decay):
    recipe = detection_recipe_for("coco", method="full", model=model)
    assert (recipe.layer_decay, recipe.lr, recipe.drop_path) == (decay, 1e-4, 0.1)


def test_every_number_that_nobody_gave_says_where_it_is_from():
    recipe = detection_recipe_for("coco", lr=1e-3)
    assert recipe.lr == 1e-3
    assert recipe.origins["lr"] == "given"
    assert "Table 8" in recipe.origins["weight_decay"]
    assert "demo_BPT_det" in recipe.origins["rank"]
    told = "\n".join(recipe.provenance())
    assert "rank 100" in told and "lr" not in told


def test_every_published_entry_is_some_recipes():
    for entry in detection_recipes():
        given = {"model": entry.get("model", "mae_tiny")}
        method = {"any": "linear", "bpt": "bpt-fwhiten", "prompts": "vpt"}
        given["method"] = method.get(entry["method"], entry["method"])
        if given["method"] not in ("linear", "full"):
            given["placement"] = "last:2" if entry["placement"] == "deep" else "shallow"
        assert entry["source"] in detection_recipe_for("coco", **given).origins.values()


@pytest.mark.parametrize(
    "model, size",
    [
        ("mae_vitb", 1024),
        ("mae_vith", 1024),
        ("mae_tiny", 512),
        ("timm:vit", 1024),
        ("timm:vit_small_patch8_224.dino", 512),
        ("timm:vit_small_patch14_dinov2", 1024),
    ],
)
def test_an_image_is_64_patches_across_unless_asked_otherwise(model, size):
    assert DetectionRecipe(model=model).size == size
    assert DetectionRecipe(model=model, image_size=256).size == 256


def test_ones_own_images_are_learned_on_the_small_backbone():
    assert detection_recipe_for("coco:mine").model == "mae_tiny"


def test_a_number_of_epochs_is_a_schedule_with_the_steps_of_3x():
    recipe = DetectionRecipe(schedule="5")
    assert (recipe.total_epochs, recipe.milestones) == (5, DetectionRecipe().milestones)
    assert DetectionRecipe(schedule="1x").total_epochs == 12
    assert DetectionRecipe(schedule="1x").milestones == (2 / 3, 8 / 9)


def test_the_warm_up_is_no_more_than_a_tenth():
    assert DetectionRecipe().warmup(270_000) == 1000
    assert DetectionRecipe().warmup(500) == 50
    assert DetectionRecipe(warmup_steps=100).warmup(500) == 50


def test_what_is_written_comes_back():
    recipe = detection_recipe_for("coco", detector="cascade", schedule="4", seed=3)
    assert DetectionRecipe.from_dict(recipe.to_dict()) == recipe
    other = DetectionRecipe.from_dict(recipe.to_dict() | {"lr": 1.0, "workers": 9})
    assert recipe.differences(other) == ["lr"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"schedule": "2.5x"}, "schedule '2.5x' is no number of epochs, and none of 1x, 3x"),
        ({"schedule": "0"}, "schedule '0'"),
        ({"image_size": 1000}, "image_size is 1000; it must be a multiple of 64"),
        ({"channels": 0}, "channels is 0; it must be at least 1"),
        ({"smallest_scale": 3.0}, "scales run from 3.0 to 2.0"),
        ({"train_fraction": 0.0}, "train_fraction is 0.0"),
        ({"eval_every": -1}, "eval_every is -1; it must not be negative"),
        ({"lr": 0.0}, "lr is 0.0; it must be positive"),
        ({"batch_size": 16, "accumulation": 3}, "cannot be cut into 3 equal parts"),
        ({"whitening": "W.pt", "method": "linear"}, "makes no use of whitening"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wrong, message):
    with pytest.raises((BurstError, ShapeError), match=message) as caught:
        DetectionRecipe(**wrong)
    assert "\n" not in str(caught.value)


def test_unknown_names_get_the_nearest():
    with pytest.raises(UnknownName, match="did you mean cascade"):
        DetectionRecipe(detector="cascad")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"method": "linear", "rank": 5}, "linear makes no use of rank"),
        ({"pooling": "token"}, "pooling is no option of a training on coco"),
        ({"epochs": 3}, "epochs is no option of a training on coco"),
    ],
)
def test_an_option_that_is_of_no_use_is_refused(given, message):
    with pytest.raises(BurstError, match=message):
        detection_recipe_for("coco", **given)


def test_weight_decay_is_of_use_without_prompts_too():
    """Pyramid and heads decay."""
    assert detection_recipe_for("coco", method="linear", weight_decay=0.2).weight_decay == 0.2
