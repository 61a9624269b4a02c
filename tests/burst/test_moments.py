import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from burst.moments import Moments

samples = st.lists(st.floats(-1e3, 1e3), max_size=40)


def assert_close(one: Moments, two: Moments) -> None:
    assert one.count == two.count
    assert (one.minimum, one.maximum) == (two.minimum, two.maximum)
    for k, name in enumerate(("mean", "m2", "m3", "m4"), start=1):
        scale = max(one.count, 1) * max(abs(one.minimum), abs(one.maximum), 1e-300) ** k
        # Below the normal numbers, where squares of 1e-158 lie, rounding is no longer relative.
        tolerance = 0.0 if not one.count else max(1e-11 * scale, 1e-300)
        assert getattr(one, name) == pytest.approx(getattr(two, name), abs=tolerance)


@given(st.lists(samples, min_size=1, max_size=5))
def test_merging_parts_gives_the_moments_of_the_whole(parts):
    merged = sum(Moments.of(part) for part in parts)
    assert_close(merged, Moments.of(np.concatenate(parts)))


@given(samples, samples)
def test_merging_does_not_depend_on_the_order(one, two):
    assert_close(Moments.of(one) + Moments.of(two), Moments.of(two) + Moments.of(one))


@given(samples)
def test_an_empty_sample_changes_nothing(sample):
    moments = Moments.of(sample)
    assert moments + Moments() == moments == Moments() + moments


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_ratios_equal_scipy(rng, shift):
    sample = rng.gamma(2.0, size=50_000) + shift
    moments = Moments.of(sample[:7]) + Moments.of(sample[7:20_000]) + Moments.of(sample[20_000:])
    tolerance = 1e-10 if not shift else 1e-7  # float64 holds 1e6 + x to 1e-10
    assert moments.std == pytest.approx(sample.std(), rel=tolerance)
    assert moments.skewness == pytest.approx(stats.skew(sample), rel=tolerance)
    assert moments.excess_kurtosis == pytest.approx(stats.kurtosis(sample), rel=tolerance)
    assert moments.energy == pytest.approx((sample**2).sum(), rel=1e-12)


def test_values_that_are_not_finite_are_left_out():
    assert Moments.of([1.0, np.nan, 3.0, np.inf]) == Moments.of([1.0, 3.0])


def test_a_ratio_that_is_not_defined_is_nan():
    assert math.isnan(Moments().variance)
    assert math.isnan(Moments().std)
    constant = Moments.of([0.1] * 10)  # whose mean in float64 is not 0.1
    assert constant.std == 0.0
    assert math.isnan(constant.skewness)
    assert math.isnan(constant.excess_kurtosis)


@given(samples)
def test_the_plain_form_reads_back(sample):
    moments = Moments.of(sample)
    assert Moments.from_list(moments.to_list()) == moments


def test_only_moments_add():
    with pytest.raises(TypeError):
        1 + Moments()
