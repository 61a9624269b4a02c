"""Whitening matrices against the formulas, and the laws that whitening obeys."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import oas

from burst.decorrelation import (
    FULL_METHODS,
    METHODS,
    authors_decorrelation,
    covariance_factor,
    decorrelate,
    diagonal_gains,
    left_singular,
    oas_shrinkage,
    shrink,
)
from burst.errors import BurstError, EmptyResult, ShapeError, UnknownName

SINGLE = 2e-5  # W is float32: 6e-8 times a condition number up to some hundreds

factors = st.builds(
    lambda seed, d, extra: well_conditioned(np.random.default_rng(seed), d, extra),
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(0, 5),
)


def orthogonal(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def well_conditioned(rng, d, extra=0):
    """(d, d + extra), singular values from 0.2 to 2."""
    right = orthogonal(rng, d + extra)[:d]
    return orthogonal(rng, d) * np.linspace(2, 0.2, d) @ right


def power(matrix, exponent):
    """Of a symmetric matrix, straight from its eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * values**exponent @ vectors.T


@pytest.mark.parametrize("method", FULL_METHODS)
@settings(max_examples=20)
@given(factor=factors)
def test_every_method_whitens(method, factor):
    found = decorrelate(factor, method=method)
    w, sigma = found.matrix.astype(float), factor @ factor.T
    np.testing.assert_allclose(w @ sigma @ w.T, np.eye(len(sigma)), atol=SINGLE)
    assert found.matrix.dtype == np.float32
    assert found.kept == found.rank == len(sigma)
    assert found.kept_variance == 1
    assert found.whiteness_error(factor) < SINGLE


@settings(max_examples=20)
@given(factor=factors)
def test_the_five_matrices_are_those_of_kessy_lewin_and_strimmer(factor):
    sigma = factor @ factor.T
    deviation = np.sqrt(sigma.diagonal())
    correlation = sigma / np.outer(deviation, deviation)
    expected = {
        "zca": power(sigma, -0.5),
        "zca-cor": power(correlation, -0.5) / deviation,
        "cholesky": np.linalg.cholesky(np.linalg.inv(sigma)).T,
    }
    for name, matrix in (("pca", sigma), ("pca-cor", correlation)):
        values, vectors = np.linalg.eigh(matrix)
        values, vectors = values[::-1], vectors[:, ::-1]
        vectors = vectors * np.where(vectors.diagonal() < 0, -1, 1)
        expected[name] = (vectors / np.sqrt(values)).T / (deviation if "cor" in name else 1)
    for method, w in expected.items():
        if method == "pca-cor" and len(sigma) > 1:
            gaps = -np.diff(np.linalg.eigvalsh(correlation)[::-1])
            if gaps.min() < 1e-3:
                continue  # directions of equal variance are not determined
        found = decorrelate(factor, method=method).matrix
        np.testing.assert_allclose(found, w, atol=1e-5 * abs(w).max())


@settings(max_examples=20)
@given(factor=factors, seed=st.integers(0, 10**6))
def test_zca_is_symmetric_and_the_whitening_closest_to_the_data(factor, seed):
    sigma = factor @ factor.T
    w = decorrelate(factor, method="zca").matrix.astype(float)
    np.testing.assert_allclose(w, w.T, atol=1e-6)
    # E |W Y - Y|^2 = d + tr(Sigma) - 2 tr(W Sigma), and any other whitening is Q W.
    for other in (
        orthogonal(np.random.default_rng(seed), len(w)) @ w,
        *(decorrelate(factor, method=method).matrix for method in FULL_METHODS),
    ):
        assert np.trace(w @ sigma) >= np.trace(other @ sigma) - 1e-5


@settings(max_examples=20)
@given(factor=factors, seed=st.integers(0, 10**6))
def test_zca_cor_is_the_whitening_closest_to_the_standardised_data(factor, seed):
    deviation = np.linalg.norm(factor, axis=1)
    w = decorrelate(factor, method="zca-cor").matrix.astype(float)
    turned = orthogonal(np.random.default_rng(seed), len(w)) @ w
    crossed = factor @ (factor / deviation[:, None]).T
    assert np.trace(w @ crossed) >= np.trace(turned @ crossed) - 1e-5


@settings(max_examples=20)
@given(factor=factors, seed=st.integers(0, 10**6))
def test_turning_the_response_turns_zca_along(factor, seed):
    turn = orthogonal(np.random.default_rng(seed), len(factor))
    w = decorrelate(factor, floor=1e-3).matrix
    np.testing.assert_allclose(
        decorrelate(turn @ factor, floor=1e-3).matrix, turn @ w @ turn.T, atol=SINGLE
    )


@settings(max_examples=20)
@given(factor=factors, scale=st.floats(1e-6, 1e6))
def test_the_scale_of_the_response_only_divides(factor, scale):
    w = decorrelate(factor).matrix
    np.testing.assert_allclose(decorrelate(scale * factor).matrix * scale, w, rtol=1e-4, atol=1e-5)


def test_cholesky_is_upper_triangular_with_a_positive_diagonal(rng):
    w = decorrelate(well_conditioned(rng, 9), method="cholesky").matrix
    assert abs(np.tril(w, -1)).max() < 1e-6
    assert w.diagonal().min() > 0


@pytest.mark.parametrize("method", FULL_METHODS)
def test_directions_below_the_floor_are_raised_not_dropped(method, rng):
    singular = np.array([1, 0.5, 0.1, 1e-4, 1e-6])
    factor = orthogonal(rng, 5) * singular @ orthogonal(rng, 5)
    found = decorrelate(factor, method=method, floor=1e-4)
    assert found.kept == 3
    assert found.rank == 5
    assert np.linalg.matrix_rank(found.matrix) == 5
    assert found.whiteness_error(factor) < SINGLE
    white = found.matrix.astype(float) @ factor
    spread = found.basis.T @ white @ white.T @ found.basis
    np.testing.assert_allclose(spread.diagonal()[:3], 1, atol=SINGLE)
    lower = found.eigenvalues[3:] / (1e-4 * found.eigenvalues[0])
    np.testing.assert_allclose(spread.diagonal()[3:], lower, rtol=1e-3)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(5), atol=1e-12)


@settings(max_examples=20)
@given(factor=factors)
def test_the_diagonal_gives_every_row_unit_variance_and_leaves_its_correlations(factor):
    found = decorrelate(factor, method="diagonal")
    w, sigma = found.matrix.astype(float), factor @ factor.T
    deviation = np.sqrt(sigma.diagonal())
    np.testing.assert_allclose(w, np.diag(1 / deviation), rtol=1e-6)
    correlation = sigma / np.outer(deviation, deviation)
    np.testing.assert_allclose(w @ sigma @ w.T, correlation, atol=SINGLE)
    np.testing.assert_allclose(found.eigenvalues, np.sort(sigma.diagonal())[::-1], rtol=1e-12)
    assert found.kept == found.rank == len(sigma)
    rest = np.linalg.norm(correlation - np.eye(len(sigma))) / len(sigma) ** 0.5
    assert found.whiteness_error(factor) == pytest.approx(rest, abs=SINGLE)
    assert found.variance_error(factor) < SINGLE


@settings(max_examples=20)
@given(st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=9), st.floats(0, 0.5))
def test_without_correlations_the_diagonal_is_zca_floor_and_all(deviations, floor):
    factor = np.diag(deviations)
    diagonal, zca = (decorrelate(factor, method=name, floor=floor) for name in ("diagonal", "zca"))
    np.testing.assert_allclose(diagonal.matrix, zca.matrix, rtol=1e-5, atol=1e-7 / min(deviations))
    np.testing.assert_allclose(diagonal.eigenvalues, zca.eigenvalues, rtol=1e-6)
    assert diagonal.rank == zca.rank
    assert diagonal.effective_rank == pytest.approx(zca.effective_rank)
    largest = diagonal.matrix.diagonal().max()
    assert largest <= 1.001 / max(deviations) / max(floor, 1e-16) ** 0.5


def test_rows_below_the_floor_are_raised_to_it(rng):
    deviation = np.array([3e-4, 1.0, 0.0, 0.5])
    factor = deviation[:, None] * orthogonal(rng, 4)
    found = decorrelate(factor, method="diagonal", floor=1e-6)
    np.testing.assert_allclose(found.matrix.diagonal(), [1e3, 1, 1e3, 2], rtol=1e-6)
    np.testing.assert_allclose(found.eigenvalues, [1, 0.25, 9e-8, 0], rtol=1e-12)
    assert (found.kept, found.rank) == (2, 3)
    np.testing.assert_allclose(found.basis.T @ deviation, [1, 0.5, 3e-4, 0])
    assert found.kept_condition_number == pytest.approx(4)
    assert found.condition_number == pytest.approx(1 / 9e-8)
    with pytest.raises(BurstError, match="entry 2 of its response .* floor above 0"):
        decorrelate(factor, method="diagonal", floor=0)


def test_what_has_no_variance_has_no_gain_without_a_floor():
    variances = np.array([4.0, 0, 1e-8])
    np.testing.assert_array_equal(diagonal_gains(variances, 0.0), [0.5, 0, 1e4])
    np.testing.assert_array_equal(diagonal_gains(variances, 0.25), [0.5, 1, 1])
    np.testing.assert_array_equal(diagonal_gains(np.zeros(2), 0.1), [0, 0])


@pytest.mark.parametrize("method", METHODS)
def test_the_error_is_one_of_variances_and_one_of_correlations(method, rng):
    found = decorrelate(well_conditioned(rng, 7), method=method)
    other = well_conditioned(rng, 7, 3) * 1.3
    white = found.basis.T @ found.matrix.astype(float) @ other
    entries = (white @ white.T - np.eye(7)) ** 2
    assert found.whiteness_error(other) ** 2 == pytest.approx(entries.sum() / 7)
    assert found.variance_error(other) ** 2 == pytest.approx(np.trace(entries) / 7)
    with pytest.raises(ShapeError, match="7 rows"):
        found.variance_error(np.eye(5))


def test_diagnostics_are_those_of_the_spectrum(rng):
    factor = orthogonal(rng, 4) * np.sqrt([8.0, 4, 2, 2e-7])
    found = decorrelate(factor, floor=1e-6)
    np.testing.assert_allclose(found.eigenvalues, [8, 4, 2, 2e-7], rtol=1e-9)
    assert (found.kept, found.rank) == (3, 4)
    assert found.condition_number == pytest.approx(4e7)
    assert found.kept_condition_number == pytest.approx(4)
    assert found.kept_variance == pytest.approx(14 / (14 + 2e-7))
    entropy = sum(p * np.log(1 / p) for p in (8 / 14, 4 / 14, 2 / 14))
    assert found.effective_rank == pytest.approx(np.exp(entropy), rel=1e-5)
    assert decorrelate(np.eye(7)).effective_rank == pytest.approx(7)


def test_the_whiteness_error_is_0_if_white_and_1_if_nothing_is_left(rng):
    factor = well_conditioned(rng, 6)
    found = decorrelate(factor)
    assert found.whiteness_error(factor) < SINGLE
    assert found.whiteness_error(0 * factor) == pytest.approx(1)
    assert found.whiteness_error(np.sqrt(2) * factor) == pytest.approx(1, rel=1e-4)
    with pytest.raises(ShapeError, match="6 rows"):
        found.whiteness_error(np.eye(5))


def test_the_expected_error_of_a_sample_is_the_one_stated(rng):
    d, n = 40, 4000
    x = rng.normal(size=(d, n)) / np.sqrt(n)
    assert decorrelate(np.eye(d)).whiteness_error(x) == pytest.approx(((d + 1) / n) ** 0.5, rel=0.1)


def graded(rng, d):
    """A whose singular values fall by seven orders, and integer tokens that each sum to zero."""
    a = orthogonal(rng, d) * np.logspace(0, -7, d) @ orthogonal(rng, d)
    x = rng.integers(-40, 40, (60, d)) * np.arange(1, d + 1)
    x[:, -1] = -x[:, :-1].sum(1)
    return a, x


def test_small_singular_values_agree_with_fifty_digits(rng):
    d = 8
    a, x = graded(rng, d)
    with mpmath.workdps(50):
        tokens = mpmath.matrix(x.tolist())
        mean = mpmath.ones(1, len(x)) * tokens / len(x)
        covariance = tokens.T * tokens / len(x) - mean.T * mean
        exact = mpmath.matrix(a.tolist())
        values = mpmath.eigsy(exact * covariance * exact.T, eigvals_only=True)
        expected = [float(mpmath.sqrt(value)) for value in sorted(values, reverse=True)[: d - 1]]
    assert expected[0] / expected[-1] > 1e6
    factor = covariance_factor(np.cov(x.T, bias=True))
    assert factor.shape == (d, d - 1)
    found = left_singular(a @ factor)[1]
    np.testing.assert_allclose(found[: d - 1], expected, rtol=1e-8)
    assert found[-1] == 0


def test_left_singular_agrees_with_the_svd_over_fourteen_orders(rng):
    d = 60
    values = np.logspace(0, -7, d)
    factor = orthogonal(rng, d) * values @ orthogonal(rng, d)
    u, s = left_singular(factor)
    np.testing.assert_allclose(s, values, rtol=1e-8)
    np.testing.assert_allclose(u.T @ u, np.eye(d), atol=1e-13)
    np.testing.assert_allclose(u * s**2 @ u.T, factor @ factor.T, atol=1e-14)
    assert abs(np.linalg.norm(u.T @ factor, axis=1) / values - 1).max() < 1e-7


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_what_has_no_full_rank_ends_in_zeros(rank, rng):
    factor = rng.normal(size=(9, rank)) @ rng.normal(size=(rank, 9))
    u, s = left_singular(factor)
    assert np.count_nonzero(s) == rank
    np.testing.assert_allclose(u.T @ u, np.eye(9), atol=1e-13)


def test_the_factor_of_a_covariance_gives_it_back(rng):
    x = rng.normal(size=(50, 12)) * np.logspace(0, -3, 12)
    x -= x.mean(1, keepdims=True)  # one null direction, as behind a LayerNorm
    covariance = np.cov(x.T, bias=True)
    factor = covariance_factor(covariance)
    assert factor.shape == (12, 11)
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=1e-14)
    assert covariance_factor(np.zeros((3, 3))).shape == (3, 0)


@pytest.mark.parametrize("n, d", [(30, 5), (200, 12), (8, 20)])
def test_oas_agrees_with_scikit_learn(n, d, rng):
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    covariance = np.cov(x.T, bias=True)
    expected, share = oas(x)
    assert oas_shrinkage(covariance, n) == pytest.approx(share, rel=1e-12)
    np.testing.assert_allclose(shrink(covariance, share), expected, rtol=1e-10)


def test_shrinkage_keeps_the_trace_and_gives_full_rank(rng):
    covariance = np.cov(rng.normal(size=(4, 10)).T)
    shrunk = shrink(covariance, 0.1)
    assert np.trace(shrunk) == pytest.approx(np.trace(covariance))
    assert covariance_factor(shrunk).shape == (10, 10)
    assert oas_shrinkage(np.eye(3), 5) == 1
    with pytest.raises(BurstError, match="shrinkage 2"):
        shrink(covariance, 2)


def test_what_cannot_be_whitened_is_refused(rng):
    factor = rng.normal(size=(5, 3))
    with pytest.raises(BurstError, match="singular, of rank 3 of 5"):
        decorrelate(factor, floor=0)
    with pytest.raises(EmptyResult, match="does not vary"):
        decorrelate(np.zeros((5, 0)))
    for method in METHODS:
        with pytest.raises(EmptyResult, match="does not vary"):
            decorrelate(np.zeros((5, 5)), method=method)
    factor[2] = 0
    for method in ("zca-cor", "pca-cor"):
        with pytest.raises(BurstError, match="entry 2 of its response"):
            decorrelate(factor, method=method)
    for method in ("zca", "pca", "cholesky"):
        assert np.isfinite(decorrelate(factor, method=method).matrix).all()
    with pytest.raises(UnknownName, match="did you mean zca"):
        decorrelate(factor, method="zac")
    for floor in (-0.1, 1, np.nan):
        with pytest.raises(BurstError, match="floor"):
            decorrelate(factor, floor=floor)


def test_the_authors_matrix_is_theirs(rng):
    d, n = 6, 40
    y = (well_conditioned(rng, d) @ rng.normal(size=(d, n))).astype(np.float32)
    found = authors_decorrelation(y)
    np.testing.assert_allclose(found.matrix, power(y @ y.T / d, -0.5), atol=1e-3)
    assert found.kept == d


def test_the_authors_gains_are_largest_where_nothing_was_measured(rng):
    d, n = 50, 10
    y = rng.normal(size=(d, n))
    found = authors_decorrelation(y)
    assert found.kept == n
    gains = np.linalg.norm(found.matrix.T.astype(float) @ found.basis, axis=0)
    assert gains[n:].min() > 100 * gains[:n].max()
    assert np.linalg.eigvalsh(found.matrix + found.matrix.T)[0] < 0
    with pytest.raises(BurstError, match="not finite"):
        authors_decorrelation(np.zeros((3, 2)))


def test_a_factor_that_is_not_finite_is_refused():
    with pytest.raises(BurstError, match="must be finite"):
        decorrelate(np.full((3, 3), np.nan))
