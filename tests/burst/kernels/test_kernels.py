"""Both backends against numpy.histogram and float64 NumPy on the product itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burst import kernels
from burst.axis import FloatAxis, RegularAxis
from burst.errors import BackendError, ShapeError, UnknownName
from burst.float64 import where_float64
from burst.kernels import _tally, choose, histogram, matmul_histogram
from burst.kernels import _torch as tiled
from burst.moments import Moments

# least, primes, one tile's panel, ViT-B's token count, more rows than a panel
SHAPES = [(1, 1, 1), (7, 5, 3), (64, 64, 64), (96, 64, 197), (1100, 8, 300)]
LAWS = {
    "gaussian": torch.randn,
    "laplacian": lambda n: torch.distributions.Laplace(0, 1).sample((n,)),
    "heavy-tailed": lambda n: torch.distributions.StudentT(1.5).sample((n,)),
    "constant": lambda n: torch.full((n,), 0.3),
    "shifted": lambda n: torch.randn(n) * 0.01 + 5,
    "integers": lambda n: torch.randint(-9, 10, (n,)).float(),
    "tiny": lambda n: torch.randn(n) * 1e-30,
    "subnormal": lambda n: torch.randn(n) * 1e-40,
    "huge": lambda n: torch.randn(n) * 1e30,
    "zeros of both signs": lambda n: torch.randint(0, 2, (n,)).float().mul(-0.0),
}


@pytest.fixture(params=["reference", "torch"])
def backend(request):
    return request.param


def exact_moments(values: torch.Tensor) -> tuple[float, ...]:
    v = values.double().numpy().ravel()
    return (v.mean(), v.std(), *(((v - v.mean()) ** k).mean() for k in (3, 4)))


def assert_moments_agree(moments: Moments, values: torch.Tensor) -> None:
    mean, std, third, fourth = exact_moments(values)
    n = moments.count
    scale = max(abs(mean), std)
    assert n == values.numel()
    assert moments.mean == pytest.approx(mean, rel=1e-9, abs=1e-12 * scale)
    assert moments.std == pytest.approx(std, rel=1e-9, abs=1e-12 * scale)
    assert moments.m3 / n == pytest.approx(third, rel=1e-9, abs=1e-9 * std**3)
    assert moments.m4 / n == pytest.approx(fourth, rel=1e-9, abs=1e-12 * scale**4)
    assert moments.minimum == values.min().item()
    assert moments.maximum == values.max().item()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("bins", [16, 100, 512])
def test_counts_equal_numpy_on_power_of_two_bins(law, bins, backend):
    values = LAWS[law](200_003)
    hist = histogram(values, FloatAxis(), backend=backend).rebin(bins)
    expected, _ = np.histogram(values.double().numpy(), hist.edges)
    assert hist.backend == backend
    assert np.array_equal(hist.values(), expected)
    assert hist.sum() == values.numel()


@pytest.mark.parametrize("law", LAWS)
def test_counts_on_the_float_grid_equal_numpy(law, backend):
    values = LAWS[law](50_000)
    hist = histogram(values, FloatAxis(5), backend=backend)
    expected, _ = np.histogram(values.double().numpy(), hist.edges)
    assert np.array_equal(hist.values(), expected)


@pytest.mark.parametrize("law", ["gaussian", "laplacian", "heavy-tailed", "integers", "shifted"])
@pytest.mark.parametrize("axis", [RegularAxis(10, -5.0, 5.0), RegularAxis(37, 0.1, 0.7)])
def test_counts_equal_numpy_on_a_given_axis(law, axis, backend):
    values = LAWS[law](50_000)
    hist = histogram(values, axis, backend=backend)
    array = values.double().numpy()
    expected, edges = np.histogram(array, axis.bins, (axis.lo, axis.hi))
    assert np.array_equal(hist.edges, edges)
    assert np.array_equal(hist.values(), expected)
    assert hist.values(flow=True)[0] == (array < axis.lo).sum()
    assert hist.values(flow=True)[-1] == (array > axis.hi).sum()


@pytest.mark.parametrize("law", ["gaussian", "laplacian", "heavy-tailed", "constant", "shifted"])
def test_moments_equal_float64_numpy(law, backend):
    values = LAWS[law](300_000)
    assert_moments_agree(histogram(values, backend=backend).moments, values)


@pytest.mark.parametrize("m, k, n", SHAPES)
def test_the_product_is_counted_as_numpy_counts_it(m, k, n, backend):
    a, b = torch.randn(m, k), torch.randn(k, n)
    hist = matmul_histogram(a, b, backend=backend)
    product = a @ b
    assert hist.sum(flow=True) == m * n
    assert_moments_agree_to_rounding(hist.moments, product)
    regular = hist.rebin(64)
    expected, _ = np.histogram(product.double().numpy(), regular.edges)
    moved = np.abs(regular.values() - expected).sum()  # an entry at an edge may round across it
    assert moved <= 2 * m * n * 1e-4


def assert_moments_agree_to_rounding(moments: Moments, product: torch.Tensor) -> None:
    """Two float32 products differ in their last bits, so their moments do."""
    mean, std, _, _ = exact_moments(product)
    assert moments.mean == pytest.approx(mean, abs=1e-6 * (abs(mean) + std))
    assert moments.std == pytest.approx(std, abs=1e-6 * (abs(mean) + std))


@pytest.mark.parametrize("m, k, n", SHAPES)
def test_backends_agree_exactly_on_integers(m, k, n):
    a = torch.randint(-3, 4, (m, k)).float()  # every product and sum is exact in float32
    b = torch.randint(-3, 4, (k, n)).float()
    for axis in (FloatAxis(), RegularAxis(41, -20.5, 20.5), RegularAxis(20, -10.0, 10.0)):
        fast = matmul_histogram(a, b, axis, backend="torch")
        assert fast.backend == "torch"
        reference = matmul_histogram(a, b, axis, backend="reference")
        assert reference.backend == "reference"
        assert fast == reference
        assert fast.allclose(reference)


@settings(max_examples=60)
@given(
    shape=st.tuples(*[st.integers(0, 40)] * 3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    transposed=st.booleans(),
    step=st.integers(1, 3),
)
def test_any_size_dtype_and_stride_is_counted_once(shape, dtype, transposed, step):
    m, k, n = shape
    a = torch.randint(-2, 3, (m * step, k)).to(dtype)[::step]
    b = torch.randint(-2, 3, (n, k) if transposed else (k, n)).to(dtype)
    b = b.mT if transposed else b
    hist = matmul_histogram(a, b, RegularAxis(2 * 4 * 40 + 1, -160.5, 160.5))
    expected, _ = np.histogram((a.double() @ b.double()).numpy(), hist.edges)
    assert np.array_equal(hist.values(), expected)
    assert hist.count == m * n


@settings(max_examples=60)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=60),
    st.sampled_from([FloatAxis(3), FloatAxis(7), RegularAxis(8, -1.0, 3.0)]),
)
def test_backends_agree_on_any_floats_nan_and_infinity_included(numbers, axis):
    x = torch.tensor(numbers, dtype=torch.float32)
    fast, slow = (histogram(x, axis, backend=name) for name in ("torch", "reference"))
    assert fast == slow
    assert fast.nonfinite.nan == int(x.isnan().sum())
    assert fast.nonfinite.pos_inf == int((x == torch.inf).sum())
    assert fast.nonfinite.neg_inf == int((x == -torch.inf).sum())
    assert fast.count + fast.nonfinite.total == len(numbers)


def test_nan_and_infinity_spoil_nothing_else(backend):
    clean = torch.randn(300_000)
    dirty = clean.clone()
    dirty[[0, 7, 299_999]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    rest = clean[torch.isfinite(dirty)]
    hist = histogram(dirty, backend=backend)
    assert hist == hist + histogram(torch.empty(0), backend=backend)
    assert hist.nonfinite.total == 3
    assert np.array_equal(hist.values(), histogram(rest, backend=backend).values())
    assert_moments_agree(hist.moments, rest)


def test_a_constant_has_no_spread(backend):
    moments = histogram(torch.full((1000,), 0.1), backend=backend).moments
    assert moments.std == 0.0


@pytest.mark.parametrize(
    "entries", [0, 1, 1000, tiled.CPU_TILE, tiled.CPU_TILE + 1, 2 * tiled.CPU_TILE + 9]
)
def test_slices_meet_without_gap_or_overlap(entries):
    x = torch.arange(entries).float()
    hist = histogram(x, RegularAxis(max(entries, 1), -0.5, max(entries, 1) - 0.5))
    assert (hist.values() == 1).sum() == entries


def test_the_result_does_not_depend_on_the_number_of_threads():
    a, b = torch.randn(200, 192), torch.randn(192, 3000)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(matmul_histogram(a, b))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1] == results[2]
    assert all(results[0].allclose(other, rtol=1e-12) for other in results)


def test_an_error_in_one_tile_reaches_the_caller(monkeypatch):
    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(_tally, "_moments", fail)
    with pytest.raises(MemoryError, match="no room"):
        histogram(torch.randn(10))


def test_auto_takes_the_tiles_and_a_name_is_obeyed():
    cpu = torch.device("cpu")
    assert choose("auto", cpu, installed=True) == "torch"
    for name in ("reference", "torch", "triton"):
        assert choose(name, cpu, installed=True) == name


def test_what_lies_on_an_apple_gpu_is_counted_on_the_processor():
    """They have no float64. None is here: a stand-in says where it is and can be copied."""
    x = torch.ones(3)
    there = SimpleNamespace(device=torch.device("mps"), cpu=lambda: x)
    assert where_float64(there) is x
    assert where_float64(x) is x
    assert kernels.histogram(x).count == 3


def test_wrong_requests_are_told_apart():
    with pytest.raises(UnknownName, match="unknown backend 'tritn'"):
        choose("tritn", torch.device("cpu"), installed=True)
    with pytest.raises(BackendError, match="meta"):
        histogram(torch.empty(3, device="meta"))
    with pytest.raises(ShapeError, match=r"cannot multiply \(2, 3\) by \(2, 3\)"):
        matmul_histogram(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ShapeError, match="int64"):
        histogram(torch.ones(3, dtype=torch.int64))
