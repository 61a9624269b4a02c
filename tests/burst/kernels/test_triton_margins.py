"""Moments of rows and columns from the Triton kernels, against those of the stored product.

Products by the identity are exact whatever the other operand is, so all that differs is how it is
summed. Interpreted on the CPU, compiled on a GPU.
"""

import numpy as np
import pytest
import torch

from burst.axis import FloatAxis, RegularAxis
from burst.decomposition import Decomposition, GroupMoments
from burst.errors import ShapeError
from burst.kernels import HistogramAccumulator, matmul_histogram
from burst.kernels._tiles import COMMON, HOPPER, REGISTERS, SMALLER, Tile

TILE = Tile(32, 32, 16, 4, 2, 1, (0, 2), "scratch")  # so that few entries have several tiles
LARGEST = 10.1 * (32 + 7) * 2.0**-24  # the bound for fourth powers of 32 entries
LAWS = {
    "gaussian": torch.randn,
    "far": lambda n: torch.randn(n) * 0.01 + 5,
    "outlier": lambda n: torch.cat([torch.randn(n - 1), torch.tensor([3e4])]),
    "huge": lambda n: torch.randn(n).clamp(-3, 3) * 1e38,
    "small": lambda n: torch.randn(n) * 1e-25,
    "subnormal": lambda n: torch.randn(n) * 1e-41,
    "mixed": lambda n: torch.randn(n) * torch.logspace(-30, 30, n),
    "constant": lambda n: torch.full((n,), 0.3),
    "zero": torch.zeros,
}


@pytest.fixture
def columns(monkeypatch):
    """The moments of each column, from what the tiles left of it, launch by launch."""
    from burst.kernels import _triton

    seen, honest = [], _triton.Accumulator._fold

    def spy(self, kept, parts, m, cut):
        seen.append(sum(map(moments_of, parts.double().cpu().numpy()), start=NONE))
        honest(self, kept, parts, m, cut)

    monkeypatch.setattr(_triton.Accumulator, "_fold", spy)
    return seen


class Nothing:
    """Added to moments of any number of groups it gives these."""

    def __add__(self, other):
        return other


NONE = Nothing()


def moments_of(part):
    """Of the columns (7, n) of a tile: all in units."""
    count, center, unit, *sums = part
    powers = (total * unit**p for p, total in enumerate(sums, 1))
    return GroupMoments.from_powers(count, center * unit, *powers)


def accumulator(device, axis=None, **how):
    from burst.kernels import _triton

    return _triton.Accumulator(axis or FloatAxis(), device, margins=True, **how)


def margins_of(*products, cut=TILE, precision="ieee"):
    found = accumulator(products[0][0].device)
    for a, b in products:
        found.add_product(a, b, precision=precision, cut=cut)
    return found.margins()


def small_integers(*shape, device="cpu"):
    return torch.randint(-3, 4, shape).float().to(device)


def assert_moments(found, y, bound=LARGEST):
    """Each sum of powers of each row within the bound, about the row's own mean."""
    exact = GroupMoments.of(y)
    deviation = np.abs(np.where(np.isfinite(y), y - exact.mean[:, None], 0.0))
    rounding = 2.0**-51 * np.abs(exact.mean)  # of a float64 mean
    assert (found.count == exact.count).all()
    assert (np.abs(found.mean - exact.mean) <= bound * deviation.max(1) + rounding).all()
    for p, name in ((2, "m2"), (3, "m3"), (4, "m4")):
        error = np.abs(getattr(found, name) - getattr(exact, name))
        most = bound * (deviation**p).sum(1) + exact.count * rounding**p
        assert (error <= most).all(), name


def assert_close(found, y, bound=LARGEST):
    """Rows as above, and the parts of the kurtosis by columns."""
    y = y.double().cpu().numpy()
    assert_moments(found.rows, y, bound)
    columns = GroupMoments.of(y.T).sums()
    assert found.columns.count == columns.count
    got, expected = vars(Decomposition.of(found.columns)), vars(Decomposition.of(columns))
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=bound, atol=10 * bound, err_msg=name)


def test_rows_of_any_law_keep_their_moments_beside_one_another(device):
    y = torch.stack([law(70) for law in LAWS.values()]).to(device)
    found = margins_of((torch.eye(len(y), device=device), y))
    assert_moments(found.rows, y.double().cpu().numpy())


def test_columns_of_any_law_keep_their_moments_beside_one_another(device, columns):
    y = torch.stack([law(70) for law in LAWS.values()]).to(device)
    margins_of((y.mT, torch.eye(len(y), device=device)))
    assert_moments(columns[0], y.double().cpu().numpy())


@pytest.mark.parametrize("exponent", [-120, 100])
def test_a_power_of_two_scales_all_sums_exactly(exponent, device):
    """Neither overflow nor underflow, then, in rows and columns alike."""
    a, b = torch.eye(40, device=device), torch.randn(40, 35, device=device)
    one, other = (margins_of((a, b * scale)) for scale in (1.0, 2.0**exponent))
    for p, name in ((1, "mean"), (2, "m2"), (3, "m3"), (4, "m4")):
        scaled = getattr(one.rows, name) * 2.0 ** (p * exponent)
        np.testing.assert_allclose(getattr(other.rows, name), scaled, rtol=1e-12, atol=0)
    parts, known = (vars(Decomposition.of(found.columns)) for found in (one, other))
    for name, value in parts.items():
        np.testing.assert_allclose(known[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("m, k, n", [(1, 1, 1), (7, 5, 3), (33, 20, 65)])
def test_every_size_has_the_margins_of_the_stored_product(m, k, n, device):
    a, b = small_integers(m, k, device=device), small_integers(n, k, device=device).mT
    assert_close(margins_of((a, b)), a @ b)


def test_products_and_strips_go_on_from_one_another(device, monkeypatch):
    from burst.kernels import _triton

    monkeypatch.setattr(_triton, "PARTS", 1)  # as if a launch had room for one tile of columns
    a, b = small_integers(40, 9, device=device), small_integers(9, 90, device=device)
    a *= torch.logspace(-3, 3, 40, base=2, device=device).round()[:, None]
    assert_close(margins_of((a, b[:, :50]), (a, b[:, 50:])), a @ b)


def test_columns_far_from_the_origin_keep_their_own_kurtosis(device):
    """1e4 deviations away sums about a common origin would have no digit left, even in float64."""
    y = torch.randn(40, 2)
    y[:, 1] = y[:, 1] * 1e-2 + 200.0
    y = y.to(device)
    found = Decomposition.of(margins_of((y, torch.eye(2, device=device))).columns).standardised
    exact = GroupMoments.of(y.mT.cpu().numpy()).kurtosis.mean()
    np.testing.assert_allclose(found, exact, atol=1e-5)


# Triton 3.5's interpreter takes extremes by NumPy's nanmin, which warns of lines of holes alone.
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
def test_entries_that_are_not_finite_are_holes(device):
    a, b = torch.eye(34, device=device), small_integers(34, 40, device=device)
    a[3, 4] = torch.nan  # row 3
    b[6, 7], b[0, 9] = torch.inf, -torch.inf  # columns 7 and 9
    assert_close(margins_of((a, b)), (a @ b))


def test_a_product_without_a_finite_entry_has_empty_margins(device):
    a, b = torch.full((2, 2), torch.nan, device=device), torch.ones(2, 3, device=device)
    found = margins_of((a, b))
    assert found.rows.count.tolist() == [0, 0]
    assert found.columns.count == 0


def test_counts_and_moments_are_the_same_with_margins_as_without(device):
    """With a cut along both sides: with margins a line is a row."""
    from burst.kernels import _triton

    a, b = small_integers(70, 9, device=device), small_integers(9, 40, device=device)
    cut = Tile(64, 32, 16, 4, 1, 1, (1, 1), "scratch")
    axis = RegularAxis(41, -20.5, 20.5)
    found, plain = accumulator(device, axis), _triton.Accumulator(axis, device)
    for one in (found, plain):
        one.add_product(a, b, precision="tf32x3", cut=cut)
    assert found.result() == plain.result()
    assert found.result().allclose(plain.result(), rtol=1e-6)
    assert_close(found.margins(), a @ b)
    assert found.result().allclose(matmul_histogram(a, b, axis, backend="reference"), rtol=1e-5)


def test_an_accumulator_has_them_by_name(device):
    a, b = small_integers(20, 6, device=device), small_integers(6, 30, device=device)
    found = HistogramAccumulator(backend="triton", margins=True)
    found.add_product(a, b)
    assert found.result().backend == "triton"
    assert_close(found.margins(), a @ b)
    with pytest.raises(ShapeError, match="20 rows"):
        found.add_product(a[:5], b)


def test_a_launch_leaves_a_bounded_number_of_parts():
    from burst.kernels import _triton

    for cut in (*HOPPER.values(), *COMMON.values(), *SMALLER, *REGISTERS):
        widest = _triton._widest_of_parts(768, cut)
        assert widest % cut.n == 0
        assert widest >= 1 << 16  # long launches
        assert _triton.PART * -(-768 // cut.m) * widest <= _triton.PARTS
        assert _triton._widest_of_parts(10**9, cut) == cut.n
        assert cut.split_columns <= cut.split[1]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32x3", "bf16"])
def test_a_gpu_sums_rows_and_columns_of_a_large_product(precision, device):
    """By whatever cut its trial takes; small integers, which every precision multiplies exactly."""
    if device.type != "cuda":
        pytest.skip("the interpreter would take minutes")
    a, b = small_integers(770, 64, device=device), small_integers(50_001, 64, device=device).mT
    a *= torch.logspace(-6, 6, 770, base=2, device=device).log2().round().exp2()[:, None]
    found = HistogramAccumulator(backend="triton", margins=True)
    for part in b.split(20_000, dim=1):
        found.add_product(a, part, precision=precision)
    assert_close(found.margins(), a @ b, bound=1e-5)
