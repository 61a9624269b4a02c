"""Moments of a product's rows and columns, tile by tile, against those of the stored product."""

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis

from burst.decomposition import Decomposition, GroupMoments
from burst.errors import BurstError, ShapeError
from burst.kernels import HistogramAccumulator
from burst.kernels import _torch as tiled
from burst.kernels._margins import DeferredMargins

CPU = torch.device("cpu")
SHAPES = [(5, 3, 7), (192, 40, 3001), (1100, 8, 600), (3, 2, 1), (1, 4, 9)]


@pytest.fixture(params=["reference", "torch", "deferred"])
def kind(request):
    return request.param


def accumulate(kind):
    """`deferred` is torch as on a GPU, where reading a number means waiting."""
    if kind != "deferred":
        return HistogramAccumulator(backend=kind, margins=True)
    found = HistogramAccumulator(backend="torch", margins=True)
    found._parts["torch"] = tiled.Accumulator(found.axis, CPU, margins=True, deferred=True)
    return found


def operands(m, k, n, seed=0):
    """Rows of very different scales, one of them zero; columns far from the origin."""
    random = torch.Generator().manual_seed(seed)
    a = torch.randn(m, k, generator=random) * torch.logspace(-3, 3, m)[:, None]
    a[m // 2] = 0
    return a, torch.randn(k, n, generator=random) + 0.5


def assert_margins(found, y, rtol=1e-9):
    rows, columns = GroupMoments.of(y), GroupMoments.of(y.T).sums()
    for name in rows.names():
        power = {"m2": 2, "m3": 3, "m4": 4}.get(name, 1)
        size = np.nanmax(np.where(np.isfinite(y), np.abs(y), 0), axis=1) ** power * y.shape[1]
        error = np.abs(getattr(found.rows, name) - getattr(rows, name))
        assert (error <= rtol * size).all(), name
    expected, got = Decomposition.of(columns), Decomposition.of(found.columns)
    assert found.columns.count == columns.count
    for name, value in vars(expected).items():
        np.testing.assert_allclose(getattr(got, name), value, rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_have_the_margins_of_the_stored_product(kind, shape):
    a, b = operands(*shape)
    found = accumulate(kind)
    for part in b.split(max(1, b.shape[1] // 3), dim=1):
        found.add_product(a, part)
    y = torch.cat([a @ part for part in b.split(max(1, b.shape[1] // 3), dim=1)], dim=1)
    assert_margins(found.margins(), y.double().numpy())


def test_both_ways_and_the_histogram_agree_on_the_kurtosis(kind):
    a, b = operands(96, 32, 900)
    found = accumulate(kind)
    found.add_product(a, b)
    pooled = kurtosis((a @ b).double().numpy(), axis=None)
    assert found.result().moments.excess_kurtosis == pytest.approx(pooled, rel=1e-9)
    for groups in (found.margins().rows, found.margins().columns):
        assert Decomposition.of(groups).kurtosis == pytest.approx(pooled, rel=1e-9)


def test_counts_and_moments_are_the_same_with_margins_as_without():
    a, b = operands(300, 20, 2500)
    with_margins, without = accumulate("torch"), HistogramAccumulator(backend="torch")
    for found in (with_margins, without):
        found.add_product(a, b)
    assert with_margins.result().allclose(without.result(), rtol=1e-12)


def test_a_row_far_from_all_others_keeps_its_own_kurtosis(kind):
    random = torch.Generator().manual_seed(1)
    a = torch.tensor([[1.0, 0.0], [0.01, 3000.0]])
    b = torch.stack([torch.randn(4000, generator=random), torch.ones(4000)])
    found = accumulate(kind)
    found.add_product(a, b)
    y = (a @ b).double().numpy()
    np.testing.assert_allclose(found.margins().rows.kurtosis, kurtosis(y, axis=1), atol=1e-6)


def test_rows_that_do_not_vary_have_no_null(kind):
    random = torch.Generator().manual_seed(0)
    b = torch.randn(16, 1, generator=random).expand(16, 50)
    found = accumulate(kind)
    found.add_product(torch.randn(40, 16, generator=random), b)
    rows = Decomposition.of(found.margins().rows)
    assert np.isnan(rows.null)
    assert np.isnan(rows.standardised)
    assert rows.scale == pytest.approx(0, abs=1e-12)


def test_entries_that_are_not_finite_are_holes(kind):
    a, b = operands(6, 4, 50)
    b[0, 7], b[1, 9] = torch.nan, torch.inf
    found = accumulate(kind)
    found.add_product(a, b[:, :8])
    found.add_product(a, b[:, 8:])
    y = torch.cat([a @ b[:, :8], a @ b[:, 8:]], dim=1).double().numpy()
    assert_margins(found.margins(), y)


def test_a_product_without_a_finite_entry_has_empty_margins(kind):
    found = accumulate(kind)
    found.add_product(torch.full((2, 2), torch.nan), torch.ones(2, 3))
    margins = found.margins()
    assert margins.rows.count.tolist() == [0, 0]
    assert margins.columns.count == 0


def test_margins_of_two_accumulators_add():
    a, b = operands(50, 10, 400)
    one, two, whole = (accumulate("torch") for _ in range(3))
    one.add_product(a, b[:, :170])
    two.add_product(a, b[:, 170:])
    whole.add_product(a, b)
    assert_margins(sum([one.margins(), two.margins()]), (a @ b).double().numpy())


def test_products_of_other_rows_and_tensors_are_refused(kind):
    found = accumulate(kind)
    found.add_product(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ShapeError):
        found.add_product(torch.ones(4, 3), torch.ones(3, 2))
    with pytest.raises(ShapeError, match="products"):
        found.add(torch.ones(3))


def test_without_being_asked_for_there_are_none():
    found = HistogramAccumulator()
    found.add_product(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(BurstError, match="no margins"):
        found.margins()
    with pytest.raises(BurstError, match="no margins"):
        HistogramAccumulator(margins=True).margins()


def test_rows_get_an_origin_without_a_copy_of_all_columns():
    """On a GPU: in float64 that of a million tokens takes more than the product's operands."""
    wide = torch.ones(3, 1).expand(3, 1 << 34)
    margins = DeferredMargins(torch.device("cpu"))
    margins.begin(torch.ones(2, 3), wide)
    assert margins.row_origins.tolist() == [3.0, 3.0]
