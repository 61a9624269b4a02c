"""Statistics of histograms against plain formulas on the samples themselves."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from support import float_histogram, regular_histogram

from burst.axis import RegularAxis
from burst.distribution import Bins, fit_gaussian, fit_laplace
from burst.errors import BurstError
from burst.histogram import Histogram, NonFinite
from burst.statistics import (
    STATISTICS,
    abs_quantile,
    describe,
    ggd_shape,
    gini,
    hill,
    ks_gaussian,
    ks_laplace,
    top_energy,
)

N = 100_000
QS = [0.0, 0.001, 0.5, 0.9, 0.99, 0.999, 1.0]
SHARES = [0.001, 0.01, 0.2]
EPS = 1e-9  # rounding in float64


def sample(law, size=N, seed=0):
    """Draws rounded to float32, in float64."""
    return law.rvs(size=size, random_state=seed).astype(np.float32).astype(np.float64)


# The definitions, on the raw sample.


def raw_quantile(x, q):
    return np.sort(np.abs(x))[max(math.ceil(q * x.size), 1) - 1]


def raw_gini(x):
    a, n = np.sort(np.abs(x)), x.size
    return float((2 * np.arange(1, n + 1) - n - 1) @ a / (n * a.sum()))


def raw_top_energy(x, share):
    squares = np.sort(x * x)
    return float(squares[-math.ceil(share * x.size) :].sum() / squares.sum())


def raw_tail_excess(x, share):
    """1 / alpha of Hill's estimator."""
    a, k = np.sort(np.abs(x)), math.ceil(share * x.size)
    return float(np.log(a[-k:] / a[-k - 1]).mean())


LAWS = {
    "gaussian": stats.norm(),
    "laplace": stats.laplace(),
    "gennorm 0.5": stats.gennorm(0.5),
    "gennorm 0.8": stats.gennorm(0.8),
    "gennorm 1.5": stats.gennorm(1.5),
    "gennorm 4": stats.gennorm(4),
    "student 3": stats.t(3),
    "student 5": stats.t(5),
    "pareto": stats.pareto(1.5),
    "uniform": stats.uniform(-1, 3),
    "far from zero": stats.norm(-300, 1),
    "tiny": stats.laplace(scale=1e-12),
    "huge": stats.laplace(scale=1e12),
    "integers": stats.poisson(40, loc=-30),
}


@pytest.fixture(params=LAWS)
def x(request):
    return sample(LAWS[request.param])


def check_bounds(x, bits):
    """Every bound that the docstrings state."""
    hist, w = float_histogram(x, bits), 2.0**-bits
    for q in QS:
        truth = raw_quantile(x, q)
        assert abs(abs_quantile(hist, q) - truth) <= w * truth * (1 + EPS)
    assert abs(gini(hist) - raw_gini(x)) <= 2 / 3 * w + EPS
    for share in SHARES:
        truth = raw_top_energy(x, share)
        smaller = min(truth, 1 - truth) * (1 + w) ** 4  # bins may mistake which part is smaller
        assert abs(top_energy(hist, share=share) - truth) <= (2 * w + w * w) * smaller + EPS
        if np.sort(np.abs(x))[-math.ceil(share * x.size) - 1] > 0:
            excess = 1 / hill(hist, share=share) if hill(hist, share=share) > 0 else 0.0
            assert abs(excess - raw_tail_excess(x, share)) <= 2 * w + EPS


@pytest.mark.parametrize("bits", [2, 7, 10])
def test_error_bounds_hold_on_known_laws(x, bits):
    check_bounds(x, bits)


repeatable = settings(max_examples=50)
REALS = st.floats(2.0**-20, 2.0**20, width=32) | st.just(0.0)
SIGNED = st.builds(lambda v, sign: v * sign, REALS, st.sampled_from([-1.0, 1.0]))
SAMPLES = arrays(np.float64, st.integers(2, 60), elements=SIGNED).filter(np.any)


@repeatable
@given(SAMPLES, st.sampled_from([1, 3, 7]))
def test_error_bounds_hold_on_any_sample(x, bits):
    check_bounds(x, bits)


@pytest.mark.parametrize("law", ["gaussian", "laplace", "gennorm 0.5", "student 3", "pareto"])
def test_smooth_laws_come_out_far_better_than_the_bounds(law):
    x = sample(LAWS[law])
    hist = float_histogram(x)
    assert gini(hist) == pytest.approx(raw_gini(x), rel=1e-4)
    assert top_energy(hist) == pytest.approx(raw_top_energy(x, 0.01), rel=1e-3)
    assert 1 / hill(hist) == pytest.approx(raw_tail_excess(x, 0.01), rel=3e-3)
    assert abs_quantile(hist, 0.9) == pytest.approx(raw_quantile(x, 0.9), rel=1e-3)


def test_the_columns_are_a_contract():
    contract = (
        "count, mean, std, skewness, excess_kurtosis, min, max, abs_q50, abs_q90, abs_q99, "
        "abs_q999, gini, top1_energy, hill, ggd_shape, ks_gaussian, ks_laplace"
    )
    assert ", ".join(STATISTICS) == contract
    row = describe(float_histogram(sample(LAWS["laplace"])))
    assert tuple(row) == STATISTICS
    assert {type(value) for value in row.values()} == {int, float}
    assert isinstance(row["count"], int)


def test_moments_are_those_of_the_sample(x):
    row = describe(float_histogram(x))
    assert (row["count"], row["min"], row["max"]) == (x.size, x.min(), x.max())
    assert row["mean"] == pytest.approx(x.mean(), rel=1e-9)
    assert row["std"] == pytest.approx(x.std(), rel=1e-9)
    assert row["skewness"] == pytest.approx(stats.skew(x), rel=1e-6, abs=1e-9)
    assert row["excess_kurtosis"] == pytest.approx(stats.kurtosis(x), rel=1e-6, abs=1e-9)


def test_each_column_is_the_function_of_its_name():
    hist = float_histogram(sample(LAWS["student 3"]))
    row = describe(hist)
    quantiles = {f"abs_q{name}": abs_quantile(hist, float(f"0.{name}")) for name in (50, 90, 99)}
    assert row.items() >= quantiles.items()
    assert row["abs_q999"] == abs_quantile(hist, 0.999)
    names = STATISTICS[STATISTICS.index("gini") :]
    functions = [gini, top_energy, hill, ggd_shape, ks_gaussian, ks_laplace]
    for name, function in zip(names, functions, strict=True):
        assert row[name] == function(hist) == function(Bins.of(hist))


TAIL = 0.01 * (np.log(100) ** 2 + 2 * np.log(100) + 2) / 2  # of exp(-x): energy in its top 1 %
CUT = stats.norm.isf(0.005)
KNOWN = {  # gini, top1_energy, abs_q50
    "gaussian": (np.sqrt(2) - 1, 2 * (CUT * stats.norm.pdf(CUT) + 0.005), stats.norm.isf(0.25)),
    "laplace": (0.5, TAIL, np.log(2)),
    "unit": (1 / 3, 1 - 0.99**3, 0.5),
}


@pytest.mark.parametrize("law", KNOWN)
def test_known_laws_have_their_theoretical_values(law):
    x = sample(stats.uniform() if law == "unit" else LAWS[law])
    row = describe(float_histogram(x))
    found = [row["gini"], row["top1_energy"], row["abs_q50"]]
    assert found == pytest.approx(KNOWN[law], rel=0.02)  # sampling error


@pytest.mark.parametrize("alpha", [0.7, 1.5, 3.0, 8.0])
def test_hill_recovers_the_index_of_a_pareto_tail(alpha):
    x = sample(stats.pareto(alpha)) * np.random.default_rng(1).choice([-1, 1], N)
    assert hill(float_histogram(x)) == pytest.approx(alpha, rel=4 / np.sqrt(0.01 * N))
    assert hill(float_histogram(x), share=0.5) == pytest.approx(alpha, rel=4 / np.sqrt(0.5 * N))


@pytest.mark.parametrize("shape", [0.5, 0.8, 1.5, 4.0])
def test_shape_separates_hyper_laplacian_from_compact(shape):
    row = describe(float_histogram(sample(stats.gennorm(shape))))
    assert row["ggd_shape"] == pytest.approx(shape, rel=0.05)


@pytest.mark.parametrize("law", ["gaussian", "laplace", "student 5", "far from zero", "integers"])
def test_distances_bracket_those_of_scipy(law):
    x = sample(LAWS[law])
    hist = float_histogram(x)
    bound = hist.values().max() / hist.count
    for ours, fit in ((ks_gaussian(hist), fit_gaussian), (ks_laplace(hist), fit_laplace)):
        theirs = stats.kstest(x, fit(hist).cdf).statistic
        assert ours - EPS <= theirs <= ours + bound + EPS


@repeatable
@given(SAMPLES, st.integers(-40, 40))
def test_scaling_by_a_power_of_two_changes_only_what_has_a_unit(x, exponent):
    row = describe(float_histogram(x))
    scaled = describe(float_histogram(np.ldexp(x, exponent)))
    for name in ("gini", "top1_energy", "hill", "ggd_shape"):
        assert scaled[name] == row[name] or math.isnan(scaled[name] + row[name])
    for name in ("mean", "std", "min", "max", "abs_q50", "abs_q90", "abs_q99", "abs_q999"):
        assert scaled[name] == math.ldexp(row[name], exponent)


@repeatable
@given(SAMPLES)
def test_a_sign_flip_changes_nothing_off_the_edges(x):
    inside = x * (1 + 2.0**-10)  # half a bin's width or less; no float of 7 bits remains
    inside = np.where(np.float32(inside).view(np.int32) & 0xFFFF, inside, 0.0)
    row, flipped = describe(float_histogram(inside)), describe(float_histogram(-inside))
    for name in ("abs_q50", "abs_q99", "gini", "top1_energy", "hill"):
        assert flipped[name] == pytest.approx(row[name], rel=1e-12, abs=1e-12, nan_ok=True)


def test_a_sign_flip_moves_values_on_an_edge_by_a_bin_at_most():
    x = sample(LAWS["integers"])
    row, flipped = describe(float_histogram(x)), describe(float_histogram(-x))
    for name in ("abs_q50", "abs_q90", "abs_q99", "abs_q999", "gini", "top1_energy"):
        assert flipped[name] == pytest.approx(row[name], rel=2.0**-7, abs=2.0**-7)


@repeatable
@given(SAMPLES, st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_ranges_and_order(x, qs):
    hist = float_histogram(x)
    quantiles = [abs_quantile(hist, q) for q in sorted(qs)]
    assert quantiles == sorted(quantiles)
    assert abs_quantile(hist, 1.0) == np.abs(x).max()
    assert 0 <= gini(hist) <= 1
    for share in (*SHARES, 1.0):
        assert 0 <= top_energy(hist, share=share) <= 1 + EPS
    assert top_energy(hist, share=1.0) == pytest.approx(1)


@repeatable
@given(st.sampled_from(sorted(LAWS)), st.integers(0, 2**31), st.integers(1, 999))
def test_merged_histograms_are_described_as_the_whole(law, seed, cut):
    x = sample(LAWS[law], size=1000, seed=seed)
    whole = describe(float_histogram(x))
    merged = describe(float_histogram(x[:cut]) + float_histogram(x[cut:]))
    assert merged == pytest.approx(whole, rel=1e-6, abs=1e-6, nan_ok=True)


def test_constants_are_known_exactly():
    row = describe(float_histogram(np.full(1000, -0.3, np.float32)))
    value = float(np.float32(0.3))
    assert row["min"] == row["max"] == -value
    assert [row[f"abs_q{q}"] for q in (50, 90, 99, 999)] == [value] * 4
    assert row["gini"] == 0
    assert row["top1_energy"] == pytest.approx(0.01, rel=1e-12)
    names = ("skewness", "excess_kurtosis", "hill", "ggd_shape", "ks_gaussian", "ks_laplace")
    assert np.isnan([row[name] for name in names]).all()


def test_zeros_have_no_energy_to_share():
    row = describe(float_histogram(np.zeros(10)))
    defined = {name: value for name, value in row.items() if not math.isnan(value)}
    zeros = ("mean", "std", "min", "max", "abs_q50", "abs_q90", "abs_q99", "abs_q999")
    assert defined == dict.fromkeys(zeros, 0.0) | {"count": 10}


def test_subnormal_values_count_as_zeros():
    row = describe(float_histogram(np.linspace(-1e-38, 1e-38, 1000)))
    assert row["abs_q999"] == 0
    names = ("gini", "top1_energy", "hill", "ggd_shape", "ks_laplace")
    assert np.isnan([row[name] for name in names]).all()


def test_a_single_value_holds_all_the_energy():
    row = describe(float_histogram([-2.5]))
    assert (row["mean"], row["abs_q50"], row["gini"], row["top1_energy"]) == (-2.5, 2.5, 0, 1)
    assert math.isnan(row["hill"])


def test_an_empty_histogram_has_a_count_and_nothing_else():
    row = describe(float_histogram([]))
    assert row.pop("count") == 0
    assert np.isnan(list(row.values())).all()


def test_a_spike_among_zeros_is_as_bursty_as_can_be():
    row = describe(float_histogram([0.0] * 999 + [7.0]))
    assert row["top1_energy"] == pytest.approx(1)
    assert row["gini"] == pytest.approx(0.999)
    assert math.isnan(row["hill"])  # its threshold is zero
    assert row["abs_q999"] == 0


def test_energy_of_the_greatest_value_is_exact():
    x = np.array([1.0] * 99 + [3.0])
    assert top_energy(float_histogram(x)) == pytest.approx(9 / (99 + 9), rel=1e-12)


def test_values_that_are_not_finite_are_left_out():
    hist = float_histogram(sample(LAWS["laplace"]))
    counts, lost = hist.values(flow=True), NonFinite(nan=3, neg_inf=1, pos_inf=2)
    broken = Histogram(hist.axis, counts, moments=hist.moments, nonfinite=lost)
    assert describe(broken) == describe(hist)


def test_a_fine_regular_axis_gives_the_same_statistics():
    x = sample(LAWS["laplace"])
    regular = describe(regular_histogram(x, RegularAxis(4001, -20.0, 21.0)))
    assert regular == pytest.approx(describe(float_histogram(x)), rel=0.01, abs=1e-3)


def test_overflow_leaves_moments_and_the_quantiles_below_it():
    x = sample(LAWS["laplace"])
    whole = describe(regular_histogram(x, RegularAxis(4000, -20.0, 20.0)))
    row = describe(regular_histogram(x, RegularAxis(500, -20.0, 2.5)))
    for name in ("count", "mean", "std", "skewness", "excess_kurtosis", "min", "max"):
        assert row[name] == whole[name]
    for name in ("abs_q50", "abs_q90"):
        assert row[name] == pytest.approx(whole[name], rel=0.01)
    assert np.isnan([row[name] for name in STATISTICS[STATISTICS.index("abs_q99") :]]).all()
    beyond = abs_quantile(regular_histogram(x, RegularAxis(500, -20.0, 2.5)), 0.95)
    assert math.isnan(beyond)  # -3 is in a bin, but how many lie between 2.5 and 3 is not known


def test_overflow_above_a_positive_axis_leaves_low_quantiles():
    x = sample(stats.expon())
    hist = regular_histogram(x, RegularAxis(1000, 0.0, 3.0))
    assert abs_quantile(hist, 0.5) == pytest.approx(np.log(2), rel=0.02)
    assert math.isnan(abs_quantile(hist, 0.99))


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_quantile_outside_the_unit_interval_is_refused(q):
    with pytest.raises(BurstError, match="from 0 to 1"):
        abs_quantile(float_histogram([1.0]), q)


@pytest.mark.parametrize("function", [top_energy, hill])
@pytest.mark.parametrize("share", [0.0, 1.5, math.nan])
def test_a_share_outside_the_unit_interval_is_refused(function, share):
    with pytest.raises(BurstError, match="above 0 and up to 1"):
        function(float_histogram([1.0, 2.0]), share=share)


def test_hill_needs_a_value_below_the_largest():
    hist = float_histogram([1.0, 2.0])
    assert hill(hist, share=0.5) == pytest.approx(1 / np.log(2), rel=0.03)
    assert math.isnan(hill(hist, share=1.0))
