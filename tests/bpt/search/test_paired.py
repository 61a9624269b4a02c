"""Differences of two methods: what they are, and how often their intervals hold the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy import stats

from bpt.run_folder import PREDICTIONS
from bpt.search.paired import holm, paired_difference, right_answers
from burst import BurstError, ShapeError


def test_one_seed_gives_the_paired_t_interval_over_images(rng):
    first, second = rng.random((2, 1, 200)) < [[[0.6]], [[0.5]]]
    found = paired_difference(first, second)
    test = stats.ttest_rel(100.0 * first[0], 100.0 * second[0])
    low, high = test.confidence_interval()
    assert [found.difference, found.low, found.high] == pytest.approx(
        [100 * (first.mean() - second.mean()), low, high]
    )
    assert found.p_value == pytest.approx(test.pvalue, rel=1e-6)
    assert (found.seeds, found.images) == (1, 200)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("images", [1, 3, 5, 6, 40])
def test_where_all_differ_alike_the_number_of_images_is_what_is_known(seeds, images):
    right = np.ones((seeds, images), bool)
    found = paired_difference(~right, right)
    exact = stats.binomtest(images, images)
    assert found.difference == -100
    assert found.p_value == pytest.approx(min(exact.pvalue, 1))
    known = found.p_value < 0.05
    assert (found.high < 0) == known
    if known:
        assert found.high == pytest.approx(-100 * exact.proportion_ci().low)


def test_seeds_that_differ_by_whole_images_give_the_t_interval_over_seeds():
    """All images of a seed agree, so only seeds vary."""
    gains = np.array([[True], [False], [True], [True]]).repeat(50, axis=1)
    found = paired_difference(gains, np.zeros_like(gains))
    low, high = stats.t.interval(0.95, 3, 75.0, stats.sem([100, 0, 100, 100]))
    assert [found.difference, found.low, found.high] == pytest.approx([75.0, low, high])


def test_the_interval_ends_at_zero_where_the_p_value_is_what_it_leaves_out(rng):
    first, second = rng.random((2, 3, 300)) < [[[0.62]], [[0.5]]]
    found = paired_difference(first, second)
    at_zero = paired_difference(first, second, level=1 - found.p_value)
    assert at_zero.low == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    "one, other", [((1, 5), (3, 5)), ((2, 5), (2, 4)), ((5,), (5,)), ((0, 5), (0, 5))]
)
def test_what_cannot_be_paired_is_refused(one, other):
    with pytest.raises(ShapeError, match="must both be"):
        paired_difference(np.ones(one, bool), np.ones(other, bool))


def test_runs_that_were_tested_on_other_images_are_refused(tmp_path):
    for name, labels in (("a", [0, 1, 1]), ("b", [0, 1, 0])):
        (tmp_path / name).mkdir()
        answers = {"predicted": np.array([0, 1, 1]), "labels": np.array(labels)}
        save_file(answers, tmp_path / name / PREDICTIONS)
    assert right_answers([tmp_path / "a"] * 2).tolist() == [[True] * 3] * 2
    with pytest.raises(BurstError, match="a and .*b were tested on other images"):
        right_answers([tmp_path / "a", tmp_path / "b"])


def test_what_never_differs_has_no_difference():
    right = np.ones((3, 20), bool)
    found = paired_difference(right, right)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_the_other_way_round_only_the_sign_changes(seeds, images, seed):
    first, second = np.random.default_rng(seed).random((2, seeds, images)) < 0.5
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert back.difference == -there.difference and back.p_value == pytest.approx(there.p_value)
    assert [back.low, back.high] == pytest.approx([-there.high, -there.low])


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seeds, of_images", [(0.0, 0.0), (0.0, 1.0), (0.15, 0.1), (0.15, 1.0)])
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds, of_seeds, of_images):
    """Two methods, each as likely right about an image as an ability says: in truth level.

    How much they differ varies with the seed and with the image, both drawn anew each time.
    """
    rng = np.random.default_rng(seeds)
    held, draws, images = 0, 300, 200
    for _ in range(draws):
        ease = rng.normal(0.5, 1.0, images)
        gain = rng.normal(0, of_images, images) + rng.normal(0, of_seeds, (seeds, 1))
        noise = rng.normal(0, 0.5, (2, seeds, images))
        found = paired_difference(ease + gain / 2 + noise[0] > 0, ease - gain / 2 + noise[1] > 0)
        held += found.low <= 0 <= found.high
    assert held >= stats.binom.ppf(0.001, draws, 0.95)  # 0.907 of 300


def test_seeds_that_agree_by_chance_make_no_interval_narrower_than_images_do(rng):
    """As many images differ with each seed, but which ones is chance."""
    first = np.zeros((3, 400), bool)
    for row in first:
        row[rng.permutation(400)[:60]] = True
    found = paired_difference(first, np.zeros_like(first))
    of_images = 1.96 * stats.sem(100 * first.mean(0))
    assert found.difference == pytest.approx(15.0)
    assert found.high - found.difference >= 0.999 * of_images > 1.5


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_what_its_definition_says(p_values):
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda one: p_values[one])
    for place, index in enumerate(order):
        steps = [(len(order) - k) * p_values[order[k]] for k in range(place + 1)]
        assert adjusted[index] == pytest.approx(min(1.0, max(steps)))
