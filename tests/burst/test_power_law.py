"""Exponents of power laws against samples of known law and a plain loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burst.power_law import fit_power_law


def pareto(exponent, n, seed=0):
    """n quantiles' worth of p(x) ~ x^-exponent from 1 on."""
    return np.random.default_rng(seed).uniform(size=n) ** (-1 / (exponent - 1))


def by_loop(values, least):
    """(ks, -count, exponent, xmin) of the best tail, with SciPy-free plain arithmetic."""
    found = []
    for xmin in sorted({x for x in values if x > 0}):
        tail = sorted(x for x in values if x >= xmin)
        n, total = len(tail), sum(np.log(x / xmin) for x in tail)
        if n < least or total <= 0:
            continue
        exponent = 1 + n / total
        law = [1 - (x / xmin) ** (1 - exponent) for x in tail]
        steps = [(p - i / n, (i + 1) / n - p) for i, p in enumerate(law)]
        found.append((max(max(pair) for pair in steps), exponent, xmin, n))
    return min(found)


@pytest.mark.parametrize("exponent", [1.5, 2.5, 4.0])
def test_the_exponent_of_a_sample_comes_back(exponent):
    found = fit_power_law(pareto(exponent, 5000))
    assert found.exponent == pytest.approx(exponent, abs=4 * (exponent - 1) / found.count**0.5)
    assert found.ks < 0.03


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(10, 60), st.integers(2, 10))
def test_the_tail_is_the_nearest_to_its_law(seed, n, least):
    values = np.random.default_rng(seed).lognormal(sigma=2, size=n)
    ks, exponent, xmin, count = by_loop(values, least)
    found = fit_power_law(values, least=least)
    assert found.ks == pytest.approx(ks, rel=1e-9)
    assert found.exponent == pytest.approx(exponent)
    assert (found.xmin, found.count) == (pytest.approx(xmin), count)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(1e-150, 1e150), st.floats(0.2, 3))
def test_scale_does_not_matter_and_a_power_divides_the_exponent(seed, scale, power):
    values = pareto(2.2, 200, seed)
    found, scaled = fit_power_law(values), fit_power_law(scale * values)
    assert scaled.exponent == pytest.approx(found.exponent)
    raised = fit_power_law(values**power)
    assert (raised.exponent - 1) * power == pytest.approx(found.exponent - 1)


def test_a_tail_begins_where_the_law_does():
    body = np.random.default_rng(1).uniform(0.1, 1, 2000)
    found = fit_power_law(np.concatenate([pareto(3.0, 500), body]))
    assert 0.7 < found.xmin < 2
    assert found.exponent == pytest.approx(3, abs=0.4)


@pytest.mark.parametrize("values", [[], [0.0] * 50, [1.0] * 50, [1.0, 2, 3], [0.0] * 50 + [1.0, 2]])
def test_what_has_no_tail_has_no_exponent(values):
    found = fit_power_law(np.array(values))
    assert np.isnan(found.exponent) and np.isnan(found.xmin) and np.isnan(found.ks)
    assert found.count == 0


def test_equal_values_go_into_a_tail_together():
    values = np.array([1.0] * 20 + [2.0] * 9 + [4.0] * 4)
    assert fit_power_law(values, least=2).count in (13, 33)
