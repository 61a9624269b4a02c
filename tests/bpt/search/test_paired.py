"""Differences of two methods: what they are, and how often their intervals hold the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy import stats

from bpt.run_folder import PREDICTIONS
from bpt.search.paired import holm, paired_difference, right_answers
from burst import BurstError, CheckpointError, ShapeError


def test_one_seed_gives_the_interval_of_agresti_and_min(rng):
    """Their formula of the discordant counts, with Student's quantile and the unbiased variance."""
    first, second = rng.random((2, 1, 200)) < [[[0.6]], [[0.5]]]
    found = paired_difference(first, second)
    gained, lost, total = (first & ~second).sum(), (second & ~first).sum(), 202
    middle = (gained - lost) / total
    error = np.sqrt((gained + lost + 1) / total - middle**2) / np.sqrt(total - 1)
    low, high = stats.t.interval(0.95, total - 1, 100 * middle, 100 * error)
    assert [found.difference, found.low, found.high] == pytest.approx(
        [100 * (first.mean() - second.mean()), low, high]
    )
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(middle) / error, total - 1), rel=1e-6)
    assert (found.seeds, found.images) == (1, 200)
    plain = stats.ttest_rel(100.0 * first[0], 100.0 * second[0]).confidence_interval()
    assert [found.low, found.high] == pytest.approx(plain, abs=0.15)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("differing", [0, 1, 3, 5, 6, 9, 10])
@pytest.mark.parametrize("images", [10, 1000])
def test_few_images_that_differ_prove_no_more_than_the_sign_test(seeds, differing, images):
    first = np.ones((seeds, images), bool)
    second = first & (np.arange(images) >= differing)
    found = paired_difference(first, second)
    assert found.p_value >= (stats.binomtest(differing, differing).pvalue if differing else 1)
    assert (found.low <= 0) == (found.p_value >= 0.05)
    assert found.low < found.difference <= found.high <= 100
    assert found.high - found.low > 100 / images


def test_that_all_images_differ_leaves_no_more_open_than_their_number():
    right = np.ones((3, 1000), bool)
    found = paired_difference(~right, right)
    assert (found.difference, found.low, found.p_value) == (-100, -100, 1e-12)
    assert -100 < found.high < -99


def test_seeds_that_differ_by_whole_images_give_the_t_interval_over_seeds():
    """All images of a seed agree, so only seeds vary."""
    gains = np.array([[True], [False], [True], [True]]).repeat(5000, axis=1)
    found = paired_difference(gains, np.zeros_like(gains))
    low, high = stats.t.interval(0.95, 3, 75.0, stats.sem([100, 0, 100, 100]))
    assert [found.difference, found.low] == pytest.approx([75.0, low], rel=0.01)
    assert high > 100 == found.high


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


def test_runs_of_other_images_or_without_answers_are_refused(tmp_path):
    for name, labels in (("a", [0, 1, 1]), ("b", [0, 1, 0])):
        (tmp_path / name).mkdir()
        answers = {"predicted": np.array([0, 1, 1]), "labels": np.array(labels)}
        save_file(answers, tmp_path / name / PREDICTIONS)
    assert right_answers([tmp_path / "a"] * 2).tolist() == [[True] * 3] * 2
    with pytest.raises(BurstError, match="a and .*b were tested on other images"):
        right_answers([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(CheckpointError, match="c holds no predictions"):
        right_answers([tmp_path / "a", tmp_path / "c"])
    (tmp_path / "b" / PREDICTIONS).unlink()
    (tmp_path / "b" / "result.json").touch()
    with pytest.raises(CheckpointError, match=r"b holds no predictions.*: delete its result\.json"):
        right_answers([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b" / PREDICTIONS).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="b/predictions"):
        right_answers([tmp_path / "b"])


@pytest.mark.parametrize("level", [0, 1, 95, -1, np.nan])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(BurstError, match="lies between 0 and 1"):
        paired_difference(np.ones((1, 5), bool), np.ones((1, 5), bool), level=level)


@pytest.mark.parametrize("seeds, images", [(1, 20), (3, 20), (3, 2500)])
def test_what_never_differs_might_on_a_few_other_images(seeds, images):
    """The 95 % limit of a share of which none was seen is 3.7 of N by Clopper and Pearson."""
    right = np.ones((seeds, images), bool)
    found = paired_difference(right, right)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.low == -found.high
    limit = 100 * stats.binomtest(0, images).proportion_ci().high
    assert limit / 2 < found.high < 1.2 * limit


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


@pytest.mark.parametrize("seeds, alike", [(1, True), (2, True), (3, False)])
@pytest.mark.parametrize(
    "images, gained, lost", [(50, 0.02, 0.02), (360, 0.01, 0.0), (1000, 0.003, 0.003)]
)
def test_it_holds_the_truth_where_few_images_differ(seeds, alike, images, gained, lost):
    """Each image differs with this chance: with all seeds alike, or each seed anew."""
    rng = np.random.default_rng(images)
    held, draws = 0, 100
    for _ in range(draws):
        chance = np.broadcast_to(rng.random((1 if alike else seeds, images)), (seeds, images))
        gains, losses = chance < gained, chance > 1 - lost
        found = paired_difference(~losses, ~gains)
        held += found.low <= 100 * (gained - lost) <= found.high
    assert held >= stats.binom.ppf(0.001, draws, 0.95)


def test_seeds_that_agree_by_chance_make_no_interval_narrower_than_images_do(rng):
    """As many images differ with each seed, but which ones is chance."""
    first = np.zeros((3, 400), bool)
    for row in first:
        row[rng.permutation(400)[:60]] = True
    found = paired_difference(first, np.zeros_like(first))
    of_images = 1.96 * stats.sem(100 * first.mean(0))
    assert found.difference == pytest.approx(15.0)
    assert (found.high - found.low) / 2 >= 0.995 * of_images > 1.5


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_what_its_definition_says(p_values):
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda one: p_values[one])
    for place, index in enumerate(order):
        steps = [(len(order) - k) * p_values[order[k]] for k in range(place + 1)]
        assert adjusted[index] == pytest.approx(min(1.0, max(steps)))
