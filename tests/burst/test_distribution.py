"""Fits and distances against SciPy and plain formulas on the samples themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, special, stats
from support import float_histogram, regular_histogram

from burst.axis import RegularAxis
from burst.distribution import (
    SHAPES,
    Bins,
    Gaussian,
    GeneralisedGaussian,
    Laplace,
    fit_gaussian,
    fit_generalised_gaussian,
    fit_laplace,
    ks_distance,
)

W = 2.0**-7  # relative width of a bin of the default axis
N = 20_000
FITS = [fit_gaussian, fit_laplace, fit_generalised_gaussian]


def sample(law, size=N, seed=0):
    """Draws rounded to float32, in float64."""
    return law.rvs(size=size, random_state=seed).astype(np.float32).astype(np.float64)


def likeliest_shape(x, loc):
    """Maximum-likelihood shape of the raw sample: the best scale put into the likelihood."""
    r = np.abs(x - loc) / np.abs(x - loc).max()

    def loss(log_b):
        b = np.exp(log_b)
        return special.gammaln(1 / b) - np.log(b) + (np.log(b * np.mean(r**b)) + 1) / b

    found = optimize.minimize_scalar(loss, bounds=np.log(SHAPES), method="bounded")
    return float(np.exp(found.x))


def parameters(law):
    return [value for value in vars(law).values() if isinstance(value, float)]


LAWS = {
    "gaussian": stats.norm(),
    "laplace": stats.laplace(),
    "hyper-laplacian": stats.gennorm(0.5),
    "student 1": stats.t(1),
    "student 3": stats.t(3),
    "uniform": stats.uniform(-1, 3),
    "skewed": stats.expon(),
    "far from zero": stats.norm(100, 1),
    "integers": stats.poisson(4),
}


@pytest.fixture(params=LAWS)
def x(request):
    return sample(LAWS[request.param])


@pytest.mark.parametrize(
    "law", [Gaussian(1.0, 2.0), Laplace(1.0, 2.0), GeneralisedGaussian(1.0, 2.0, 0.7)]
)
def test_cdf_is_the_integral_of_pdf(law):
    points = np.array([-3.0, 0.5, 1.0, 4.0])
    areas = [integrate.quad(law.pdf, -np.inf, 1.0, limit=200)[0]]
    areas += [integrate.quad(law.pdf, 1.0, p, limit=200)[0] for p in points]
    assert areas[0] == pytest.approx(0.5, abs=1e-7)
    assert law.cdf(points) == pytest.approx(0.5 + np.array(areas[1:]), abs=1e-7)


def test_densities_are_those_of_the_definitions():
    x, shape, scale = np.linspace(-4, 6, 11), 0.7, 2.0
    density = shape / (2 * scale * special.gamma(1 / shape)) * np.exp(-((abs(x - 1) / 2) ** 0.7))
    assert GeneralisedGaussian(1.0, scale, shape).pdf(x) == pytest.approx(density, rel=1e-12)
    two, one = GeneralisedGaussian(1.0, 2.0, 2.0), GeneralisedGaussian(1.0, 2.0, 1.0)
    assert two.pdf(x) == pytest.approx(Gaussian(1.0, np.sqrt(2)).pdf(x), rel=1e-12)
    assert one.cdf(x) == pytest.approx(Laplace(1.0, 2.0).cdf(x), rel=1e-12)


def test_gaussian_fit_is_exact(x):
    law = fit_gaussian(float_histogram(x))
    assert law.loc == pytest.approx(x.mean(), rel=1e-12)
    assert law.scale == pytest.approx(x.std(), rel=1e-12)


def test_laplace_fit_stays_within_its_bound(x):
    law, median = fit_laplace(float_histogram(x)), np.median(x)
    width = W * abs(median) + 1e-30
    assert abs(law.loc - median) <= width
    assert abs(law.scale - np.abs(x - median).mean()) <= width + W / 2 * np.abs(x).mean()


@pytest.mark.parametrize("law", ["gaussian", "laplace", "hyper-laplacian", "student 3"])
def test_laplace_fit_is_far_better_than_its_bound_for_smooth_centred_laws(law):
    x = sample(LAWS[law])
    scale = stats.laplace.fit(x)[1]
    assert fit_laplace(float_histogram(x)).scale == pytest.approx(scale, rel=2e-4)


@pytest.mark.parametrize("shape", [0.5, 0.8, 1.0, 1.5, 2.0, 4.0])
def test_generalised_gaussian_fit_agrees_with_scipy(shape):
    x = sample(stats.gennorm(shape, scale=3.0))
    law, median = fit_generalised_gaussian(float_histogram(x)), np.median(x)
    theirs = stats.gennorm.fit(x, floc=median)  # a simplex search, to about 1e-4
    assert law.loc == pytest.approx(median, abs=0.02)
    assert law.shape == pytest.approx(theirs[0], rel=1e-3)
    assert law.scale == pytest.approx(theirs[2], rel=1e-3)


@pytest.mark.parametrize("shape", [0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 4.0, 8.0])
def test_generalised_gaussian_fit_recovers_the_law(shape):
    x = sample(stats.gennorm(shape), size=100_000)
    q = special.polygamma(1, 1 + 1 / shape)
    information = ((1 + 1 / shape) * q - 1) / shape**3
    fitted = fit_generalised_gaussian(float_histogram(x)).shape
    assert abs(fitted - shape) <= 4 / np.sqrt(information * x.size)
    assert fitted == pytest.approx(likeliest_shape(x, np.median(x)), rel=5e-4)


@pytest.mark.parametrize("df", [1, 2, 3, 5])
def test_heavy_tails_have_the_shape_of_the_raw_sample(df):
    x = sample(stats.t(df))
    shape = fit_generalised_gaussian(float_histogram(x)).shape
    assert shape == pytest.approx(likeliest_shape(x, np.median(x)), rel=1e-3)


@pytest.mark.parametrize("outwards", [True, False])
@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_shape_error_bound_holds_for_the_worst_sample_in_the_same_bins(shape, outwards):
    x = sample(stats.gennorm(shape))
    x = np.concatenate([x, -x])  # so that the location is 0
    hist = float_histogram(x)
    lo, hi = hist.edges[:-1], hist.edges[1:]
    at = np.searchsorted(hist.edges, x, side="right") - 1
    near, far = np.sort(np.abs([lo[at], hi[at]]), axis=0)
    weights = np.abs(x) ** shape
    pivot = np.exp((weights @ np.log(np.abs(x))) / weights.sum())
    moved = np.where((np.abs(x) > pivot) == outwards, far, near)
    q = special.polygamma(1, 1 + 1 / shape)
    bound = W * shape**2 * np.sqrt(q) / ((1 + 1 / shape) * q - 1)
    error = abs(fit_generalised_gaussian(hist).shape - likeliest_shape(moved, 0.0))
    assert 0.05 * bound < error < 1.05 * bound  # the bound is of first order in W


def test_scale_integrates_over_the_bin_that_holds_the_location():
    x = np.random.default_rng(0).laplace(size=N)
    hist = regular_histogram(x, RegularAxis(301, -12.0, 13.0))
    law = fit_generalised_gaussian(hist)
    lo, hi = Bins.of(hist).signed.lo, Bins.of(hist).signed.hi
    total = 0.0
    for a, b, count in zip(lo, hi, Bins.of(hist).signed.counts, strict=True):
        points = [law.loc] if a < law.loc < b else None
        area = integrate.quad(lambda v: abs(v - law.loc) ** law.shape, a, b, points=points)[0]
        total += count * area / (b - a)
    assert law.scale**law.shape == pytest.approx(law.shape * total / N, rel=1e-9)


@pytest.mark.parametrize("factor", [1e-12, 1e12, 2.0**-40, 2.0**40])
def test_fits_scale_with_the_sample(factor):
    x = sample(stats.gennorm(0.7))
    law = fit_generalised_gaussian(float_histogram(x))
    scaled = fit_generalised_gaussian(float_histogram(factor * x))
    exact = np.log2(factor).is_integer()
    tolerance = 1e-15 if exact else 1e-4  # a factor that is no power of 2 moves the bins
    assert scaled.shape == pytest.approx(law.shape, rel=tolerance)
    assert scaled.scale == pytest.approx(factor * law.scale, rel=10 * tolerance)


@pytest.mark.parametrize(
    "shape, loc, tolerance",
    [
        (0.5, 1, 0.005),
        (0.5, 5, 0.03),
        (0.5, 18, 0.12),
        (1, 5, 0.002),
        (1, 18, 0.015),
        (2, 18, 0.01),
    ],
)
def test_shape_error_grows_with_the_distance_from_zero(shape, loc, tolerance):
    law = stats.gennorm(shape)
    x = sample(stats.gennorm(shape, loc=loc, scale=1 / law.std()), size=100_000)
    fitted = fit_generalised_gaussian(float_histogram(x)).shape
    assert fitted == pytest.approx(likeliest_shape(x, np.median(x)), rel=tolerance)


def test_shape_is_not_given_where_bins_are_wide_beside_the_spread():
    hist = float_histogram(sample(stats.norm(100, 1)))
    assert np.isnan(parameters(fit_generalised_gaussian(hist))).all()
    fine = float_histogram(sample(stats.norm(100, 1)), bits=10)
    assert fit_generalised_gaussian(fine).shape == pytest.approx(2.0, abs=0.1)


def rectified():
    """More than half are exact zeros."""
    return np.maximum(sample(stats.norm()) - 0.5, 0)


@pytest.mark.parametrize(
    "values, reason",
    [
        ([], "there are no values"),
        ([1.5] * 10, "all values lie in one or two bins"),
        (np.linspace(-1e-38, 1e-38, 100), "all values count as zero"),
        (sample(stats.norm(100, 1)), "the bins are too wide beside the spread of the values"),
        (rectified(), "the likelihood grows as the shape falls"),
        ([0.0] * 500 + [-3.0, 1.0, 2.0], "the likelihood grows as the shape falls"),
        (np.linspace(-1, 1, N), "the likelihood grows with the shape"),
        (np.repeat([-1.05, -1.0, 1.0, 1.05], N), "the likelihood grows with the shape"),
    ],
)
def test_without_a_best_shape_all_is_nan_and_the_reason_is_said(values, reason):
    law = fit_generalised_gaussian(float_histogram(values))
    assert np.isnan(parameters(law)).all()
    assert law.reason.startswith(reason)


def test_values_outside_the_bins_leave_no_shape_and_a_fit_has_no_reason():
    x = sample(stats.norm())
    law = fit_generalised_gaussian(regular_histogram(x, RegularAxis(100, -1.0, 1.0)))
    assert np.isnan(law.shape) and law.reason == "some values lie outside the bins"
    assert fit_generalised_gaussian(float_histogram(x)).reason == ""


FINITE = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@settings(max_examples=100)
@given(FINITE, FINITE, st.integers(1, 10**5), st.integers(0, 10**5))
def test_a_constant_and_two_points_have_no_shape(one, other, ones, others):
    x = np.repeat([one, other], [ones, others])
    assert np.isnan(parameters(fit_generalised_gaussian(float_histogram(x)))).all()


@settings(max_examples=25)
@given(st.floats(0.3, 8), st.floats(1e-6, 1e6), st.integers(0, 2**31))
def test_the_shape_of_any_generalised_gaussian_is_found(shape, scale, seed):
    x = sample(stats.gennorm(shape, scale=scale), size=4000, seed=seed)
    q = special.polygamma(1, 1 + 1 / shape)
    deviation = (((1 + 1 / shape) * q - 1) / shape**3 * x.size) ** -0.5
    assert abs(fit_generalised_gaussian(float_histogram(x)).shape - shape) <= 6 * deviation


def test_the_higher_of_two_peaks_of_the_likelihood_is_found():
    x = sample(stats.norm())
    x[: int(0.02 * N)] = 0
    assert fit_generalised_gaussian(float_histogram(x)).shape == pytest.approx(1.85, rel=0.02)
    x[: int(0.08 * N)] = 0  # 1.5 is a local maximum, and the likelihood is above that at the end
    assert np.isnan(fit_generalised_gaussian(float_histogram(x)).shape)


@pytest.mark.parametrize("fit", FITS)
def test_distance_brackets_that_of_scipy(x, fit):
    hist = float_histogram(x)
    law = fit(hist)
    ours, bound = ks_distance(hist, law), hist.values().max() / hist.count
    if np.isnan(law.loc):
        assert fit is fit_generalised_gaussian and law.reason
        assert np.isnan(ours)
        return
    assert ours - 1e-12 <= stats.kstest(x, law.cdf).statistic <= ours + bound + 1e-12


def test_distance_to_the_law_of_the_sample_vanishes():
    x = sample(stats.laplace(), size=100_000)
    hist = float_histogram(x)
    distance = ks_distance(hist, fit_laplace(hist))
    assert distance < 1.63 / np.sqrt(x.size)  # the 1 % point of the Kolmogorov law
    assert ks_distance(hist, fit_gaussian(hist)) > 10 * distance


def test_distance_is_taken_at_the_least_and_greatest_value_too():
    hist = regular_histogram(np.array([0.5, 1.5]), RegularAxis(2, 0.0, 2.0))
    assert ks_distance(hist, Gaussian(0.0, 0.01)) == pytest.approx(1)
    assert ks_distance(hist, Gaussian(2.0, 0.01)) == pytest.approx(1)


DEGENERATE = {
    "empty": [],
    "single": [3.5],
    "constant": [0.1] * 1000,
    "zeros": [0.0] * 10,
    "one bin": [1.0, 1.001, 1.002],
}


@pytest.mark.parametrize("values", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_samples_have_no_fit_and_no_distance(values):
    hist = float_histogram(values)
    for fit in FITS[1:]:
        assert np.isnan(parameters(fit(hist))).all()
    for law in [Gaussian(0.0, 1.0), *(fit(hist) for fit in FITS)]:
        assert np.isnan(ks_distance(hist, law))


def test_gaussian_fit_needs_no_bins_but_a_spread():
    assert fit_gaussian(float_histogram([1.0, 1.001, 1.002])).scale > 0
    for values in ([], [3.5], [0.1] * 1000):
        assert np.isnan(parameters(fit_gaussian(float_histogram(values)))).all()


def test_a_law_without_parameters_has_no_distance():
    hist = float_histogram(sample(stats.norm()))
    assert np.isnan(ks_distance(hist, GeneralisedGaussian(np.nan, np.nan, np.nan)))


def test_overflow_leaves_only_the_gaussian_fit():
    x = sample(stats.norm())
    whole = regular_histogram(x, RegularAxis(1000, -6.0, 6.0))
    clipped = regular_histogram(x, RegularAxis(1000, -6.0, 2.0))
    assert fit_laplace(whole).scale == pytest.approx(np.abs(x).mean(), rel=1e-3)
    assert fit_generalised_gaussian(whole).shape == pytest.approx(2.0, abs=0.1)
    assert fit_gaussian(clipped) == fit_gaussian(whole)
    assert np.isnan(fit_laplace(clipped).scale)
    assert np.isnan(fit_generalised_gaussian(clipped).shape)
    assert np.isnan(ks_distance(clipped, Gaussian(0.0, 1.0)))


def test_bins_read_once_give_the_same_fits():
    hist = float_histogram(sample(stats.t(3)))
    for fit in FITS:
        assert fit(Bins.of(hist)) == fit(hist)


def test_folded_bins_hold_the_counts_of_the_absolute_values():
    x = sample(stats.norm(0.3))
    axis = RegularAxis(12, -6.0, 6.0)
    folded = Bins.of(regular_histogram(x, axis)).absolute
    counts, _ = np.histogram(np.abs(x), np.arange(7.0))
    assert folded.counts == pytest.approx(counts[counts > 0])
    assert folded.hi[-1] == np.abs(x).max()


def test_folding_cuts_bins_that_do_not_mirror_each_other():
    x = np.random.default_rng(0).uniform(-1, 2, N)
    folded = Bins.of(regular_histogram(x, RegularAxis(8, -1.0, 2.2))).absolute
    assert folded.counts.sum() == pytest.approx(N)
    assert (folded.lo[1:] >= folded.hi[:-1]).all()
    below_one = folded.counts[folded.hi <= 1.0 + 1e-12].sum()
    assert below_one == pytest.approx(2 * N / 3, rel=0.03)


def test_a_bin_across_zero_folds_to_what_its_signs_allow():
    hist = regular_histogram(np.array([0.2, 0.5, 0.7]), RegularAxis(1, -1.0, 1.0))
    folded = Bins.of(hist).absolute
    assert (folded.lo.tolist(), folded.hi.tolist(), folded.counts.tolist()) == ([0.2], [0.7], [3.0])
