"""`bpt.search_costs` against a count by hand."""

import pytest

import bpt
from bpt.search import options as module

METHODS = ("linear", "vpt")
IMAGES, TESTED = 551, 597  # 35 % of the training images and all to validate, which folds share


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return bpt.search_costs(
        bpt.search_base("digits"), METHODS, tmp_path_factory.mktemp("out") / "x"
    )


def test_trials_and_trainings_of_vpt_are_those_of_its_rungs(digits):
    # 8 trials of the first fold, 4 of the second; then 4 of an extension, whole
    epochs = 8 * 10 + 4 * 10 + 4 * 20
    finals = 3 * (10 * IMAGES + TESTED)
    assert digits["vpt"].trials == 12 and digits["vpt"].seeds == 3
    assert digits["vpt"].cost.images == pytest.approx(epochs * IMAGES + finals, rel=0.01)


def test_with_halving_there_are_rungs_in_the_first_fold(tmp_path):
    options = bpt.SearchOptions(halving=True)
    base = bpt.search_base("digits")
    found = bpt.search_costs(base, ["vpt"], tmp_path / "x", options=options)["vpt"]
    # after 3, 5 and 10 epochs, then the second fold: 8 trials, 4, 4, 3; then the extension
    epochs = 8 * 3 + 4 * 2 + 4 * 5 + 3 * 10 + 4 * 20
    assert found.cost.images == pytest.approx(
        epochs * IMAGES + 3 * (10 * IMAGES + TESTED), rel=0.01
    )


def test_a_probe_costs_its_features(digits):
    assert digits["linear"].recipe.total_epochs == 100
    # 8 trainings of the first fold, 4 of the second; then 4 trials of an extension, whole
    wanted = (8 + 4 + 4 * 2) * IMAGES + 3 * (IMAGES + TESTED)
    assert digits["linear"].cost.images == pytest.approx(wanted, rel=0.01)


def test_with_a_validation_split_the_best_trial_is_one_of_the_trainings(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_VALIDATION", 1)
    options = bpt.SearchOptions(lrs=(0.1,), weight_decays=(0.0,), seeds=(4, 5), max_trials=1)
    base = bpt.search_base("digits", epochs=8, train_fraction=1.0)
    found = bpt.search_costs(base, ["vpt"], tmp_path / "x", options=options)["vpt"]
    train, val, test = bpt.open_dataset("digits").sizes
    assert found.cost.images == 2 * (8 * (train + val) + test)


def test_a_backbone_that_is_not_known_has_no_cost(tmp_path):
    base = bpt.search_base("digits", model="timm:test_vit", weights="random", image_size=160)
    assert bpt.search_costs(base, ["vpt"], tmp_path / "x")["vpt"].cost is None
    assert not (tmp_path / "x").exists()
