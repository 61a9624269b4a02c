"""A run beside the published number that is nearest to it, and all that differs."""

import dataclasses

import pytest

import bpt
import reports


def beside(tmp_path, *, dataset=None, **given):
    given = {"protocol": "authors"} | given
    recipe = bpt.recipe_for(given.pop("recipe_dataset", "cub"), **given)
    config = {"recipe": recipe.to_dict(), "dataset": {"name": dataset or recipe.dataset}}
    return reports.beside_published({"x": bpt.Run(tmp_path, config)}).iloc[0]


@pytest.mark.parametrize(
    "given, value",
    [
        ({}, 77.86),
        ({"placement": "last:4"}, 82.0),
        ({"method": "vpt", "model": "moco_vitb", "protocol": "standard"}, 79.05),
        ({"method": "gatevpt", "protocol": "standard"}, 70.56),
        ({"method": "vpt", "recipe_dataset": "imagenet"}, 63.71),
        ({"method": "spt", "placement": "deep", "train_fraction": 1.0}, 80.13),
        ({"method": "bpt-fwhiten", "prompt_scale": "paper"}, 77.48),
        ({"num_prompts": 64, "image_size": 224}, 76.91),
        ({"placement": "last:4", "model": "sup_vitb", "normalisation": "reference"}, 90.5),
    ],
)
def test_a_run_that_is_the_papers_differs_in_nothing(tmp_path, given, value):
    found = beside(tmp_path, **given)
    assert (found.published, found.differs) == (value, "")


def test_whatever_is_not_as_published_is_named(tmp_path):
    given = {"num_prompts": 10, "rank": 8, "augmentation": "flip", "weights": "random"}
    given |= {"lr": 0.2, "batch_size": 16}
    found = beside(tmp_path, placement="last:4", **given)
    assert (found.published, found.row) == (82.0, "bpt-deep mae_in1k vit_base_patch16 cub")
    assert set(found.differs.split(", ")) == set(given)
    tiny = beside(tmp_path, recipe_dataset="folder:x", dataset="folder", epochs=2)
    assert tiny.differs == "dataset, backbone, epochs"  # and warmup_epochs, which are a share


def test_what_the_method_makes_no_use_of_does_not_differ(tmp_path):
    recipe = bpt.recipe_for("cub", method="vpt")
    other = dataclasses.replace(recipe, rank=3, bottleneck=9, floor=0.5)
    config = {"recipe": other.to_dict(), "dataset": {"name": "cub"}}
    assert reports.beside_published({"x": bpt.Run(tmp_path, config)})["differs"][0] == ""


@pytest.mark.parametrize(
    "counts, given, differs",
    [
        ((5_394, 600, 5_794), {}, ""),
        ((5_394, 600, 500), {}, "images"),
        ((300, 30, 5_794), {}, "images"),
        ((539, 600, 5_794), {"train_fraction": 0.1}, "train_fraction"),
        ((539, 600, 500), {"train_fraction": 0.1}, "train_fraction, images"),
    ],
)
def test_a_part_of_a_benchmark_is_not_what_the_paper_trained_on(tmp_path, counts, given, differs):
    recipe = bpt.recipe_for("cub", protocol="authors", **given)
    about = {"name": "cub", **dict(zip(("train", "val", "test"), counts, strict=True))}
    run = bpt.Run(tmp_path, {"recipe": recipe.to_dict(), "dataset": about})
    assert reports.beside_published({"x": run})["differs"][0] == differs


def test_another_scale_of_whitened_prompts_and_other_pixels_are_named(tmp_path):
    assert beside(tmp_path, method="bpt-fwhiten").differs == "prompt_scale"
    assert beside(tmp_path, model="sup_vitb").differs == "normalisation"
    vpt = beside(tmp_path, model="sup_vitb", method="vpt", normalisation="reference")
    assert vpt.published == 86.7  # of VPT's own weights, not AugReg's, and of the training split
    assert set(vpt.differs.split(", ")) == {"weights", "protocol"}


def test_of_a_method_that_the_paper_has_not_no_number_is_given(tmp_path):
    found = beside(tmp_path, method="lora")
    assert found.row == "none of this method" and "method" in found.differs
