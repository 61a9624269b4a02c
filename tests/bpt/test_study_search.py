"""A study that searches: rates that were published stay, the others are chosen on validation."""

import functools
from dataclasses import replace

import pytest

import bpt
import bpt.search.recipes
import bpt.study
import burst
from bpt import Recipe, run_study
from reports.study import StudyCell, study_frame, study_markdown


@pytest.fixture
def recipe(colours):
    return Recipe(
        dataset="folder",
        data=str(colours),
        model="timm:test_vit",
        weights="random",
        method="linear",
        epochs=1,
        batch_size=6,
        image_size=32,
    )


def test_a_rate_nobody_published_is_searched_and_the_table_says_which(
    recipe, tmp_path, monkeypatch
):
    few = functools.partial(bpt.SearchOptions, lrs=(0.01, 0.1), weight_decays=(0.0,), folds=2)
    monkeypatch.setattr(bpt.study, "SearchOptions", functools.partial(few, max_trials=2))
    monkeypatch.setattr(bpt.search.recipes, "LEAST_OF_PROBE", 1)  # epochs
    recipes = {"one": recipe, "authors": replace(recipe, protocol="authors")}
    found = run_study(recipes, tmp_path, devices=("cpu",), search=True)
    assert "protocol authors trains on" in found["authors"]
    with pytest.raises(burst.BurstError, match="protocol authors trains on"):
        bpt.study_search(recipes["authors"], (0,))
    searched = found["one"]["searched"]
    assert searched["trials"] == 2 and searched["lr"] in (0.01, 0.1)
    (record,) = tmp_path.glob("one/search/search.json")
    run = record.parent / f"runs/linear/lr{searched['lr']:g}-wd0-seed0"
    assert bpt.open_run(run).result["test_accuracy"] == found["one"]["test_accuracy"]["mean"]
    cell = StudyCell(
        "variants", "cub", "mae_vitb", "linear", "", "top1", 50.0, recipe, ("dataset",)
    )
    frame = study_frame([cell], {cell.name: found["one"]})
    assert bpt.open_run(run).recipe.protocol == searched["protocol"] == "last"  # 9 to validate on
    expected = f"trained on train and val, rates searched (lr {searched['lr']:g}, weight decay 0)"
    assert frame["differs"][0].endswith(expected) and expected in study_markdown(frame)


def test_what_was_published_is_not_searched(tmp_path, monkeypatch):
    asked = []

    def train_seed(recipe, *_, **__):
        asked.append(recipe)
        return {"label": "", "scores": {}}

    monkeypatch.setattr(bpt.study, "train_seed", train_seed)
    recipe = bpt.recipe_for("cub", method="bpt-fwhiten", prompt_scale="paper")
    run_study({"one": recipe}, tmp_path, devices=("cpu",), search=True)
    assert asked == [recipe]


def test_a_search_on_a_validation_split_does_not_train_on_it(tmp_path):
    recipe = bpt.recipe_for("cub", method="spt", protocol="last")  # 600 images to validate
    assert bpt.published_rate(recipe) is None
    found = run_study({"one": recipe}, tmp_path, devices=("cpu",), search=True)
    assert "leave protocol last out" in found["one"]
