"""Every published hyper-parameter, found for the run that it is for, and said where it is from."""

from dataclasses import fields

import pytest

from bpt import Recipe, detection_recipe_for, published_recipes, recipe_for
from bpt.batches import fitted
from bpt.methods import METHODS, USED_BY
from burst import BurstError, UnknownName, known_backbones

PROMPTED, WHITENED = (", ".join(USED_BY[name]) for name in ("placement", "whitening"))
# Typed from the paper's sources anew: lr, weight decay, head's weight decay, prompts, rank.
TABLE = {
    ("mae_vitb", "cub", "shallow"): (0.05, 0.005, 0.5, 100, 75),
    ("mae_vitb", "nabirds", "shallow"): (0.05, 0.005, 0.1, 100, 75),
    ("mae_vitb", "flowers", "shallow"): (0.1, 0.005, 1.0, 100, 75),
    ("mae_vitb", "dogs", "shallow"): (0.05, 0.005, 0.1, 100, 75),
    ("mae_vitb", "cars", "shallow"): (0.05, 0.002, 0.1, 100, 75),
    ("mae_vitb", "cub", "last:4"): (0.05, 0.005, 0.5, 50, 50),
    ("mae_vitb", "nabirds", "deep"): (0.05, 0.005, 0.3, 50, 50),
    ("mae_vitb", "dogs", "last:4"): (0.05, 0.005, 0.1, 50, 50),
    ("mae_vitb", "cars", "last:4"): (0.05, 0.005, 0.1, 50, 50),
    ("moco_vitb", "cub", "shallow"): (0.05, 0.005, 0.1, 100, 75),
    ("moco_vitb", "nabirds", "shallow"): (0.05, 0.001, 0.05, 100, 75),
    ("moco_vitb", "flowers", "shallow"): (0.05, 0.001, 0.05, 100, 75),
    ("moco_vitb", "dogs", "shallow"): (0.05, 0.002, 0.1, 100, 75),
    ("moco_vitb", "dogs", "last:4"): (0.05, 0.002, 0.1, 50, 50),
    ("sup_vitb", "cub", "shallow"): (0.005, 0.1, 10.0, 100, 25),
    ("sup_vitb", "nabirds", "shallow"): (0.01, 0.05, 5.0, 100, 75),
    ("sup_vitb", "flowers", "shallow"): (0.01, 0.0005, 10.0, 100, 75),
    ("sup_vitb", "dogs", "shallow"): (0.005, 0.01, 3.0, 100, 75),
    ("sup_vitb", "cars", "shallow"): (0.02, 0.01, 3.0, 100, 75),
}


@pytest.mark.parametrize(
    ("model", "rate"), [("mae_vitb", 0.1), ("mae_vitl", 0.2), ("mae_vit2b", 0.3)]
)
@pytest.mark.parametrize(("share", "head"), [(1.0, 0.01), (0.1, 0.1)])
def test_imagenets_rate_goes_with_the_size_and_the_heads_decay_with_the_share(
    model, rate, share, head
):
    found = recipe_for("imagenet", method="bpt-bilinear", model=model, train_fraction=share)
    assert (found.lr, found.head_weight_decay) == (rate, head)
    assert not found.origins["lr"].startswith("none was published")


@pytest.mark.parametrize(("model", "dataset", "placement"), TABLE)
def test_a_published_run_has_its_published_values(model, dataset, placement):
    recipe = recipe_for(dataset, model=model, placement=placement)
    found = (recipe.lr, recipe.weight_decay, recipe.head_weight_decay)
    assert (*found, recipe.num_prompts, recipe.rank) == TABLE[model, dataset, placement]
    assert (recipe.batch_size, recipe.epochs, recipe.warmup_epochs) == (32, 100, 10)
    assert recipe.origins["lr"].startswith("WangYZ1608/BPT")
    assert "none was published" not in recipe.origins["lr"]


def test_the_headline_run_needs_no_option():
    recipe = recipe_for("cub")
    assert (recipe.model, recipe.method, recipe.placement) == (
        "mae_vitb",
        "bpt-bilinear",
        "shallow",
    )
    assert recipe.origins["model"] == "the paper's headline run"


@pytest.mark.parametrize(
    ("model", "dataset", "placement", "missing", "nearest"),
    [
        ("moco_vitb", "cars", "shallow", "dataset", "MoCo on CUB"),
        ("mae_vitb", "flowers", "last:4", "dataset", "deep script for MAE on CUB"),
        ("moco_vitb", "cub", "last:4", "dataset", "MoCo on Dogs"),
        ("sup_vitb", "cars", "last:4", "placement", "supervised net on Cars"),
    ],
)
def test_what_was_never_published_takes_the_nearest_and_says_so(
    model, dataset, placement, missing, nearest
):
    origin = recipe_for(dataset, model=model, placement=placement).origins["lr"]
    assert origin.startswith(f"none was published for this {missing}; nearest: ")
    assert nearest in origin


@pytest.mark.parametrize(
    ("fraction", "decay"),
    [(None, 1e-2), (1.0, 1e-2), (0.3, 0.1), (0.1, 0.1), (0.03, 0.5), (0.01, 0.5)],
)
def test_imagenets_recipe_depends_on_the_share_of_its_images(fraction, decay):
    recipe = recipe_for("imagenet", train_fraction=fraction)
    assert (recipe.lr, recipe.weight_decay, recipe.head_weight_decay) == (0.1, 1e-3, decay)
    assert (recipe.batch_size, recipe.num_prompts, recipe.rank) == (1024, 100, 75)
    assert "72.15" in recipe.origins["rank"] and "rank 25" in recipe.origins["lr"]


@pytest.mark.parametrize(
    ("model", "prompted", "tuned", "epochs", "drop"),
    [
        ("mae_vitb", 0.1, 4e-3, 100, 0.1),
        ("mae_vitl", 0.2, 4e-3, 50, 0.1),
        ("mae_vith", 0.2, 4e-3, 50, 0.2),
        ("mae_vit2b", 0.3, 1e-2, 35, 0.3),
    ],
)
def test_imagenets_recipe_depends_on_the_size_of_the_backbone(model, prompted, tuned, epochs, drop):
    assert recipe_for("imagenet", model=model, train_fraction=0.1).lr == prompted
    full = recipe_for("imagenet", model=model, method="full")
    assert (full.lr, full.epochs, full.drop_path, full.batch_size) == (tuned, epochs, drop, 1024)
    assert full.layer_decay == (0.65 if model == "mae_vitb" else 0.75)
    assert (full.mixup, full.cutmix, full.label_smoothing) == (0.8, 1.0, 0.1)
    assert full.randaugment == "rand-m9-mstd0.5-inc1"
    assert full.random_erasing == 0.25


def test_what_is_given_stays_and_the_rest_is_published():
    recipe = recipe_for("cars", lr=0.3, epochs=7)
    assert (recipe.lr, recipe.epochs, recipe.weight_decay) == (0.3, 7, 2e-3)
    assert recipe.origins["lr"] == recipe.origins["epochs"] == "given"


def test_peers_have_their_own_recipes():
    vpt = recipe_for("cub", method="vpt")
    assert (vpt.optimizer, vpt.batch_size) == ("sgd", 128) and "one of a grid" in vpt.origins["lr"]
    spt = recipe_for("dogs", method="spt", placement="deep", model="moco_vitb")
    assert (spt.lr, spt.head_weight_decay, spt.num_prompts) == (1e-3, 3.0, 20)
    maes = recipe_for("imagenet", method="linear")
    assert (maes.optimizer, maes.head_norm, maes.pooling) == ("lars", "batch", "token")
    moco = recipe_for("imagenet", method="linear", model="moco_vitb")
    assert (moco.optimizer, moco.lr, moco.epochs, moco.warmup_epochs) == ("sgd", 12.0, 90, 0)


def test_a_published_batch_is_no_larger_than_the_images_that_are_there():
    recipe = recipe_for("flowers", method="linear")
    assert recipe.batch_size == 1024
    fewer = fitted(recipe, 1020)
    assert fewer.batch_size == 1020 and "too few for 1024" in fewer.origins["batch_size"]
    assert fitted(recipe, 2040) is recipe  # with protocol authors
    given = recipe_for("flowers", method="linear", batch_size=1021)
    assert fitted(given, 1020) is given
    part = recipe_for("imagenet", method="linear", train_fraction=0.01)
    assert fitted(part, 11_530).batch_size == 11_530


def test_a_recipe_is_of_a_dataset_of_its_task():
    with pytest.raises(BurstError, match=r"coco:PATH is for detection; see bpt\.detection_rec"):
        recipe_for("coco:PATH")
    with pytest.raises(BurstError, match=r"cub is for classification; see bpt\.recipe_for"):
        detection_recipe_for("cub")


def test_a_published_warm_up_holds_for_its_length_only():
    full = {"dataset": "imagenet", "model": "mae_vit2b", "method": "full"}
    assert [recipe_for(**full, epochs=n).warmup_epochs for n in (None, 35, 100)] == [5, 5, 10]


@pytest.mark.parametrize("model", ["mae_vitb", "moco_vitb", "sup_vitb"])
def test_the_size_of_a_prompt_goes_with_its_placement(model):
    for dataset in ("cub", "flowers", "cars", "imagenet"):
        bpt = recipe_for(dataset, model=model, placement="last:4")
        assert (bpt.num_prompts, bpt.rank) == (50, 50)
        assert bpt.origins["rank"].startswith(("supplement", "WangYZ1608/BPT"))
        spt = recipe_for(dataset, model=model, method="spt", placement="deep")
        assert spt.num_prompts == 20
        assert recipe_for(dataset, model=model, method="spt").num_prompts == 100


def test_what_our_trainer_does_not_do_is_said():
    assert "(without: random crops" in recipe_for("cub", method="linear").origins["lr"]
    assert "crops of 224" in recipe_for("cub", method="vpt", placement="deep").origins["lr"]
    assert "random crops" in recipe_for("imagenet", method="linear").origins["lr"]


def test_a_value_of_a_grid_is_in_its_middle():
    for entry in published_recipes():
        if entry.grid and entry.method != "full":
            grid = entry.grid.split(";")[0].split("(")[0].removeprefix("lr ")
            values = sorted(float(one) for one in grid.split(","))
            assert entry.values["lr"] in (values[len(values) // 2], values[(len(values) - 1) // 2])


def test_vpt_on_imagenet_was_never_searched():
    recipe = recipe_for("imagenet", method="vpt")
    assert recipe.origins["lr"].startswith("none was published for this dataset; nearest: KMnP")
    assert recipe.origins["num_prompts"].startswith("poster")


@pytest.mark.parametrize("dataset", ["cub", "imagenet", "vtab:cifar", "digits", "folder:x"])
@pytest.mark.parametrize("augmentation", [None, "none"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_that_nobody_gave_contradicts_itself(method, augmentation, dataset):
    """The fine-tuning recipe's RandAugment and erasing are of random crops."""
    found = recipe_for(dataset, method=method, augmentation=augmentation)
    assert found.augmentation == "crop" or not (found.randaugment or found.random_erasing)
    if method == "full" and dataset == "imagenet" and not augmentation:
        assert (found.randaugment, found.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)


@pytest.mark.parametrize("method", ["vpt", "bpt-bilinear", "linear", "full"])
def test_ones_own_images_have_the_defaults(method):
    found = recipe_for("folder:x", method=method)
    plain = Recipe(dataset="folder:x", method=method)
    assert found == plain and "lr" not in found.differences(plain)


def test_ones_own_images_take_the_rate_of_their_pretraining():
    recipe = recipe_for("folder:x", model="sup_tiny")
    assert recipe.lr == 5e-3 and "the paper's of CUB" in recipe.origins["lr"]


@pytest.mark.parametrize(
    ("model", "of"),
    [
        ("timm:vit_base_patch16_224.mae", "mae_tiny"),
        ("hf:facebook/vit-mae-base", "mae_tiny"),
        ("timm:vit_small_patch14_dinov2.lvd142m", "sup_tiny"),
        ("python:maestro:small", "sup_tiny"),
        ("hf:org/mocov3-vit-small", "moco_vits"),
        ("dinov2_vits_saliency", "sup_tiny"),
    ],
)
@pytest.mark.parametrize("dataset", ["folder:x", "cub"])
def test_a_foreign_backbone_takes_the_rates_of_its_pretraining_or_of_the_supervised_net(
    model, of, dataset
):
    found = recipe_for(dataset, method="bpt-fwhiten", model=model)
    wanted = recipe_for(dataset, method="bpt-fwhiten", model=of)
    names = ("lr", "weight_decay", "head_weight_decay")
    assert [getattr(found, one) for one in names] == [getattr(wanted, one) for one in names]
    assert ("nearest" in found.origins["lr"]) == (of == "sup_tiny")


def test_the_pretraining_counts_more_than_the_placement_for_a_foreign_backbone():
    found = recipe_for("cub", method="spt", model="timm:vit_tiny_patch16_224", placement="deep")
    assert found.lr == 1e-3 and found.origins["lr"].endswith("supervised net on Dogs)")


def test_every_entry_is_a_recipe_that_can_be_made():
    names = {one.name for one in fields(Recipe)}
    pretrainings = {one.pretraining for one in known_backbones()} | {"any"}
    for entry in published_recipes():
        assert set(entry.values) <= names and entry.source
        assert entry.pretraining in pretrainings and entry.placement in ("shallow", "deep", "any")
        method = "bpt-bilinear" if entry.method == "bpt" else entry.method
        Recipe(method=method, **entry.values)


@pytest.mark.parametrize(
    ("method", "option", "value", "users"),
    [
        ("vpt", "rank", 75, "bpt-bilinear"),
        ("bpt-fwhiten", "rank", 5, "bpt-bilinear"),
        ("vpt", "bilinear_init", "xavier", "bpt-bilinear"),
        ("bpt-bilinear", "spt_tokens", "mean", "spt"),
        ("linear", "num_prompts", 5, PROMPTED),
        ("linear", "after", "carry", ", ".join(USED_BY["after"])),
        ("linear", "weight_decay", 0.0, "for all but linear"),
        ("bitfit", "bottleneck", 4, "lora, adapter"),
        ("full", "placement", "last:4", PROMPTED),
        ("full", "head_weight_decay", 0.1, "bpt-bilinear, linear"),
        ("bpt-bilinear", "layer_decay", 0.65, "full"),
        ("linear", "drop_path", 0.0, "full"),
        ("spt", "whitening", "W.pt", WHITENED),
    ],
)
def test_an_option_that_the_method_ignores_is_refused(method, option, value, users):
    with pytest.raises(BurstError, match=f"method {method} makes no use of {option}, .*{users};"):
        recipe_for("cub", method=method, **{option: value})
    assert recipe_for("cub", method=method, **{option: None}).method == method


def test_a_whitening_and_another_start_of_the_bilinear_prompt_contradict_each_other():
    with pytest.raises(BurstError, match=r"bilinear_init is xavier, but .* W\.pt"):
        recipe_for("cub", whitening="W.pt", bilinear_init="xavier")
    assert recipe_for("cub", whitening="W.pt").bilinear_init == "whitening"


def test_what_is_unknown_is_refused():
    with pytest.raises(UnknownName, match="nabirds"):
        recipe_for("nabird")
    with pytest.raises(UnknownName, match="bpt-bilinear"):
        recipe_for("cub", method="bpt-bilinaer")
