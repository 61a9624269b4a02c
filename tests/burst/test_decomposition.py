"""The parts of a kurtosis against float64 NumPy and SciPy on arrays that exist, and its laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kurtosis

from burst.decomposition import Decomposition, GroupMoments, GroupSums
from burst.errors import ShapeError

values = st.floats(-50, 50, width=32)
tables = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 7)), elements=values)


def uneven(shape=(40, 500), seed=0):
    """Rows of different scales, means and tails."""
    rng = np.random.default_rng(seed)
    y = rng.standard_t(6, size=shape) * rng.lognormal(size=(shape[0], 1))
    return y + rng.normal(size=(shape[0], 1)) * 2


def plain_parts(y):
    """The law of total cumulance over the rows, written out."""
    m, s = y.mean(axis=1), y.var(axis=1)
    t = ((y - m[:, None]) ** 3).mean(axis=1)
    c = ((y - m[:, None]) ** 4).mean(axis=1) - 3 * s**2
    d = m - m.mean()
    scale = 3 * s.var()
    means = 4 * (d * t).mean() + 6 * (d**2 * (s - s.mean())).mean()
    means += (d**4).mean() - 3 * (d**2).mean() ** 2
    return np.array([scale, c.mean(), means]) / y.var() ** 2


def parts(found):
    return np.array([found.scale, found.within, found.means])


@pytest.mark.parametrize(
    "y", [uneven(), uneven().T, uneven() + 300], ids=["rows", "columns", "far"]
)
def test_the_parts_are_those_of_the_law_of_total_cumulance_and_add_up(y):
    found = Decomposition.of(GroupMoments.of(y))
    np.testing.assert_allclose(parts(found), plain_parts(y), rtol=1e-9)
    assert parts(found).sum() == pytest.approx(kurtosis(y, axis=None), rel=1e-10)
    assert found.kurtosis == pytest.approx(kurtosis(y, axis=None), rel=1e-10)


@given(tables)
def test_they_add_up_whatever_the_values(y):
    found = Decomposition.of(GroupMoments.of(y))
    if y.var() > 1e-6 * np.abs(y).max() ** 2:  # nearer, float64 loses the deviations themselves
        expected = ((y - y.mean()) ** 4).mean() / y.var() ** 2
        assert parts(found).sum() + 3 == pytest.approx(expected, rel=1e-10)
    elif y.var() == 0:
        assert np.isnan(found.kurtosis)


def test_what_remains_within_rows_is_the_kurtosis_of_rows_that_were_standardised():
    y = uneven()
    standardised = (y - y.mean(axis=1, keepdims=True)) / y.std(axis=1, keepdims=True)
    found = Decomposition.of(GroupMoments.of(y))
    assert found.standardised == pytest.approx(kurtosis(standardised, axis=None), rel=1e-10)


@given(st.integers(0, 99), st.floats(-6, 6), st.integers(0, 39))
@settings(max_examples=20)
def test_scaling_a_row_moves_kurtosis_between_parts_and_never_what_is_within(seed, power, row):
    y = uneven(seed=seed)
    before = Decomposition.of(GroupMoments.of(y))
    y[row] *= 2.0**power
    after = Decomposition.of(GroupMoments.of(y))
    assert after.standardised == pytest.approx(before.standardised, rel=1e-9)
    assert parts(after).sum() == pytest.approx(kurtosis(y, axis=None), rel=1e-9)


def test_gaussian_rows_of_equal_variance_have_neither_part():
    y = np.random.default_rng(1).normal(size=(200, 5000))
    found = Decomposition.of(GroupMoments.of(y))
    assert [float(found.null), float(found.standardised)] == pytest.approx([0, 0], abs=0.02)
    np.testing.assert_allclose(parts(found), 0, atol=0.02)


def test_a_mixture_of_two_scales_has_its_closed_form():
    rng = np.random.default_rng(2)
    s = np.repeat([1.0, 9.0], 60)
    y = rng.normal(size=(120, 20_000)) * np.sqrt(s)[:, None]
    found = Decomposition.of(GroupMoments.of(y))
    expected = 3 * ((s**2).mean() / s.mean() ** 2 - 1)  # 1.92
    assert float(found.null) == pytest.approx(expected, abs=0.02)
    assert float(found.kurtosis) == pytest.approx(expected, abs=0.05)
    assert float(found.scale_share) == pytest.approx(1, abs=0.02)
    assert float(found.standardised) == pytest.approx(0, abs=0.01)


def test_the_null_is_the_kurtosis_of_a_gaussian_with_that_covariance():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(8, 8)) * rng.lognormal(size=(8, 1))
    y = a @ rng.normal(size=(8, 400_000))
    found = Decomposition.of(GroupMoments.of(y))
    assert kurtosis(y, axis=None) == pytest.approx(float(found.null), rel=0.03)


@given(tables, st.integers(1, 5))
def test_rows_merge_as_if_all_their_entries_had_come_at_once(y, cut):
    one, two = GroupMoments.of(y[:, :cut]), GroupMoments.of(y[:, cut:])
    whole = GroupMoments.of(y)
    for name in whole.names():
        size = np.abs(y).max() ** {"m2": 2, "m3": 3, "m4": 4}.get(name, 1) * y.shape[1]
        found = getattr(one + two, name)
        np.testing.assert_allclose(found, getattr(whole, name), atol=1e-12 * size + 1e-300)


@given(tables, st.integers(0, 5))
def test_sums_over_columns_merge_as_if_all_had_come_at_once(y, cut):
    whole = GroupMoments.of(y).sums()
    one, two = (GroupMoments.of(part).sums() for part in (y[:cut], y[cut:]))
    together = Decomposition.of(one + two)
    for name, expected in vars(Decomposition.of(whole)).items():
        if y.var() > 1e-9 * np.abs(y).max() ** 2:
            np.testing.assert_allclose(getattr(together, name), expected, rtol=1e-7, atol=1e-7)


def test_leaving_a_part_out_is_the_sum_of_the_others():
    y = uneven((12, 300))
    pieces = np.array_split(y, 4, axis=1)
    stacked = GroupMoments.stack([GroupMoments.of(piece) for piece in pieces])
    slabs = np.array_split(y, 4, axis=0)
    sums = GroupSums.stack([GroupMoments.of(slab).sums() for slab in slabs])
    for i in range(4):
        rest = GroupMoments.of(np.concatenate(pieces[:i] + pieces[i + 1 :], axis=1))
        np.testing.assert_allclose(stacked.left_out().m4[i], rest.m4, rtol=1e-10)
        others = GroupMoments.of(np.concatenate(slabs[:i] + slabs[i + 1 :])).sums()
        for name in others.names():
            expected, size = getattr(others, name), np.abs(y).max() ** 4
            np.testing.assert_allclose(
                getattr(sums.left_out(), name)[i], expected, rtol=1e-9, atol=1e-10 * size
            )


@pytest.mark.parametrize("parts", [1, 2, 5, 6, 20])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_a_part_that_outweighs_all_others_leaves_them_as_they_are(parts, scale):
    pieces = np.split(uneven((6, 30 * parts)), parts, axis=1)
    pieces[0] = pieces[0] * scale
    rows = GroupMoments.stack([GroupMoments.of(piece) for piece in pieces]).left_out()
    columns = [GroupMoments.of(piece.T).sums() for piece in pieces]
    sums = GroupSums.stack(columns).left_out()
    for i in range(parts):
        rest = np.concatenate([np.zeros((6, 0)), *pieces[:i], *pieces[i + 1 :]], axis=1)
        for found, groups in ((rows, rest), (sums, rest.T)):
            expected = vars(Decomposition.of(GroupMoments.of(groups)))
            one = type(found)(*(values[i] for values in found.arrays()))
            for name, value in vars(Decomposition.of(one)).items():
                np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-9)


def test_entries_that_are_not_finite_are_left_out():
    y = uneven((3, 50))
    y[0, 3], y[1, 7], y[2, :] = np.nan, np.inf, np.nan
    found = GroupMoments.of(y)
    assert found.count.tolist() == [49, 49, 0]
    finite = y[np.isfinite(y)]
    assert Decomposition.of(found).kurtosis == pytest.approx(kurtosis(finite), rel=1e-10)


def test_a_group_that_does_not_vary_has_no_kurtosis_of_its_own():
    y = np.vstack([np.full(40, 0.1), uneven((2, 40))])
    found = GroupMoments.of(y)
    assert np.isnan(found.kurtosis[0])
    rest = Decomposition.of(GroupMoments.of(y[1:]))
    assert Decomposition.of(found).standardised == pytest.approx(float(rest.standardised))


def test_nothing_and_constants_have_no_parts():
    for groups in (GroupSums.none(), GroupMoments.of(np.full((3, 4), 2.5))):
        found = Decomposition.of(groups)
        assert all(np.isnan(one) for one in (found.kurtosis, found.scale, found.null))


def test_a_share_of_what_is_not_there_is_not_a_number():
    flat = np.random.default_rng(0).uniform(size=(5, 400))
    assert np.isnan(Decomposition.of(GroupMoments.of(flat)).scale_share)


def test_moments_of_different_rows_do_not_add():
    with pytest.raises(ShapeError, match="do not add"):
        GroupMoments.of(np.ones((2, 3))) + GroupMoments.of(np.ones((3, 3)))


@given(tables)
def test_the_energy_of_a_group_is_its_sum_of_squares(y):
    np.testing.assert_allclose(GroupMoments.of(y).energy, (y**2).sum(axis=1), rtol=1e-9, atol=1e-9)
