"""The Triton kernels against the reference; interpreted on the CPU, compiled on a GPU."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from burst.axis import FloatAxis, RegularAxis
from burst.errors import BackendError, UnknownName
from burst.histogram import Histogram
from burst.kernels import PRECISIONS, choose, histogram, matmul_histogram
from burst.kernels._scaling import takes
from burst.kernels._tiles import MOST_BINS, Tile, counters_for

AXES = [
    FloatAxis(),
    FloatAxis(1),
    FloatAxis(10),
    RegularAxis(16, -8.0, 8.0),
    RegularAxis(41, -20.5, 20.5),
    RegularAxis(4096, -1000.3, 200.1),
    RegularAxis(20_000, -7.0, 13.0),  # more than the window holds
]
SHAPES = [(1, 1, 1), (7, 5, 3), (128, 64, 64), (130, 70, 200)]  # least, primes, one tile, ragged
LAWS = {
    "gaussian": torch.randn,
    "laplacian": lambda n: torch.distributions.Laplace(0, 1).sample((n,)),
    "heavy-tailed": lambda n: torch.distributions.StudentT(1.0).sample((n,)),
    "constant": lambda n: torch.full((n,), 0.3),
    "zero": torch.zeros,
    "shifted": lambda n: torch.randn(n) * 0.01 + 5,
    "subnormal": lambda n: torch.randn(n) * 1e-40,
    "huge": lambda n: torch.randn(n).clamp(-3, 3) * 1e38,
    "mixed": lambda n: torch.randn(n) * torch.logspace(-30, 30, n),
}
EDGES = [RegularAxis(10, -5.0, 5.0), RegularAxis(37, 0.1, 0.7), RegularAxis(4096, 4.97, 5.03)]


def sizes(device, *on_a_gpu):
    """As many tiles of the interpreter's, a quarter as wide."""
    return on_a_gpu if device.type == "cuda" else [-(-size // 4) for size in on_a_gpu]


def small_integers(*shape, device="cpu"):
    return torch.randint(-3, 4, shape).float().to(device)


# Cuts for the interpreter, which knows no PTX; a GPU has its own trial.
INTERPRETED = {
    "scratch": Tile(4, 1024, 1, 8, 1, 2, (2, 0), "scratch"),
    "registers": Tile(4, 1024, 1, 8, 1, 1, (2, 0), "registers"),
}


def in_one_cut(axis, cut, x=None, *, product=None, precision="tf32x3"):
    """A tensor, or a product, counted as this cut does it."""
    from burst.kernels import _triton

    operands = [x] if product is None else product
    found = _triton.Accumulator(axis, operands[0].device)
    if product is None:
        found.add(x, cut=cut)
    else:
        found.add_product(*product, precision=precision, cut=cut)
    return found.result()


def assert_same(fast: Histogram, reference: Histogram) -> None:
    """Equal counts; moments within 1e-5 of their scale, as the kernels promise."""
    assert fast.backend == "triton"
    assert reference.backend == "reference"
    assert fast == reference
    assert fast.allclose(reference, rtol=1e-5)
    assert fast.moments.minimum == reference.moments.minimum
    assert fast.moments.maximum == reference.moments.maximum


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_a_product_of_integers_is_counted_exactly(axis, device):
    m, k, n = sizes(device, 130, 20, 200)
    a, b = small_integers(m, k, device=device), small_integers(k, n, device=device)
    fast = matmul_histogram(a, b, axis, backend="triton")
    assert fast.precision == "tf32x3"
    assert_same(fast, matmul_histogram(a, b, axis, backend="reference"))


@pytest.mark.parametrize("m, k, n", SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_shape_and_precision_counts_integers_exactly(m, k, n, precision, device):
    if m > 100:
        m, k, n = sizes(device, m, k, n)
    a, b = small_integers(m, k, device=device), small_integers(n, k, device=device).mT
    fast = matmul_histogram(a, b, AXES[4], backend="triton", precision=precision)
    assert fast.precision == precision
    assert_same(fast, matmul_histogram(a, b, AXES[4], backend="reference"))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(0, 40)] * 3),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.float16, torch.bfloat16])] * 2),
    transposed=st.booleans(),
    step=st.integers(1, 3),
    precision=st.sampled_from(PRECISIONS),
)
def test_any_size_dtype_and_stride(shape, dtypes, transposed, step, precision, device):
    m, k, n = shape
    tile = Tile(16, 16, 16, 4, 2, 1, (0, 1), "scratch")  # so that small sizes have many tiles
    a = small_integers(m * step, k, device=device).to(dtypes[0])[::step]
    b = small_integers(n if transposed else k, k if transposed else n, device=device).to(dtypes[1])
    b = b.mT if transposed else b
    axis = RegularAxis(2 * 9 * 40 + 1, -360.5, 360.5)
    fast = in_one_cut(axis, tile, product=(a, b), precision=precision)
    assert_same(fast, matmul_histogram(a, b, axis, backend="reference"))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("axis", [FloatAxis(), EDGES[1]], ids=str)
def test_a_tensor_of_any_law_is_counted_exactly(law, axis, device):
    (size,) = sizes(device, 32_003)
    x = LAWS[law](size).to(device)
    assert_same(histogram(x, axis, backend="triton"), histogram(x, axis, backend="reference"))


@pytest.mark.parametrize("counter", INTERPRETED)
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_every_way_of_counting_finds_the_same(axis, counter, device):
    """The first tile is all zeros, and its neighbours are not; some lie outside any window."""
    if counter not in counters_for(axis):
        pytest.skip(f"{axis} is not counted in {counter}")
    x = torch.randn(14_000).to(device) * 5
    x[:4096], x[5000:5100] = 0.0, x[5000:5100] * 1e-9
    x[4096:4100] = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0])
    fast = in_one_cut(axis, INTERPRETED[counter], x)
    assert fast.kernel.startswith(f"{counter} counters, tile 4 x 1024")
    assert_same(fast, histogram(x, axis, backend="reference"))


def test_the_window_lies_where_the_first_tile_that_is_not_zero_lies(device):
    """Placed by zeros, it would send all else to the counts in memory: right, but slow."""
    from burst.kernels import _triton

    x = torch.randn(4 * 4096).to(device)
    x[:4096] = 0.0
    run = _triton.Accumulator(FloatAxis(), x.device, programs=1)
    run.add(x, cut=INTERPRETED["scratch"])
    (scratch,) = run._scratch.values()
    assert scratch.counters.sum() > 0.999 * x.numel()


@pytest.mark.parametrize("axis", EDGES, ids=str)
def test_values_at_the_edges_fall_where_float64_edges_put_them(axis, device):
    edges = torch.from_numpy(axis.edges.astype(np.float32))
    inf = torch.tensor(torch.inf)
    x = torch.cat([edges, torch.nextafter(edges, inf), torch.nextafter(edges, -inf)]).to(device)
    assert_same(histogram(x, axis, backend="triton"), histogram(x, axis, backend="reference"))


@pytest.mark.parametrize("axis", [FloatAxis(), EDGES[0]], ids=str)
def test_nan_and_infinities_are_counted_apart(axis, device):
    x = torch.randn(9000)
    x[[0, 5, 8999]], x[[1, 8192]], x[77] = torch.nan, torch.inf, -torch.inf
    x[100], x[101] = (
        torch.finfo().max,
        torch.finfo().min,
    )  # the lowest bin of a float axis is -inf's
    fast = histogram(x.to(device), axis, backend="triton")
    assert (fast.nonfinite.nan, fast.nonfinite.pos_inf, fast.nonfinite.neg_inf) == (3, 2, 1)
    assert_same(fast, histogram(x.to(device), axis, backend="reference"))


# The interpreter of Triton 3.5 looks for the least of a tile without numbers by NumPy.
nothing_but_nan = pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")


@nothing_but_nan
@pytest.mark.parametrize("axis", [FloatAxis(), AXES[4]], ids=str)
def test_nan_in_an_operand_reaches_its_row_of_the_product_only(axis, device):
    a, b = small_integers(20, 30, device=device), small_integers(30, 150, device=device)
    a[3, 4] = torch.nan
    fast = matmul_histogram(a, b, axis, backend="triton", precision="ieee")
    assert fast.nonfinite.nan == 150
    assert_same(fast, matmul_histogram(a, b, axis, backend="reference"))


@nothing_but_nan
def test_nothing_and_nothing_but_nan(device):
    for x in (torch.empty(0), torch.empty(3, 0), torch.full((5,), torch.nan)):
        fast = histogram(x.to(device), backend="triton")
        assert fast.count == 0
        assert fast.nonfinite.nan == x.numel()


@pytest.mark.parametrize(
    "view",
    [lambda x: x, lambda x: x.mT, lambda x: x[::2], lambda x: x[:, 3:], lambda x: x[0, 0]],
    ids=["whole", "transposed", "every other row", "columns", "one entry"],
)
def test_a_view_is_counted_as_it_is(view, device, monkeypatch):
    from burst.kernels import _triton

    monkeypatch.setattr(_triton, "COPY", 1000)
    x = view(torch.randn(70, 40).to(device))
    assert_same(histogram(x, backend="triton"), histogram(x, backend="reference"))


def test_a_launch_takes_only_as_many_columns_as_its_counters_bear(device, monkeypatch):
    from burst.kernels import _triton

    monkeypatch.setattr(_triton, "_widest", lambda *_: 128)
    a, b = small_integers(30, 20, device=device), small_integers(20, 300, device=device)
    assert_same(
        matmul_histogram(a, b, AXES[4], backend="triton"),
        matmul_histogram(a, b, AXES[4], backend="reference"),
    )


@pytest.mark.parametrize(
    "precision, bound",
    [("ieee", 2.0**-18), ("tf32x3", 2.0**-18), ("tf32", 2.0**-9), ("bf16", 2.0**-6)],
)
def test_the_product_is_as_precise_as_promised(precision, bound, device):
    """A product of two entries is its own minimum and maximum: its error, against sum_k |a b|."""
    for _ in range(2):
        a, b = torch.randn(1, 100, device=device), torch.randn(100, 2, device=device)
        found = matmul_histogram(a, b, backend="triton", precision=precision).moments
        (exact,), (most,) = a.double() @ b.double(), a.abs().double() @ b.abs().double()
        for one, place in ((found.minimum, exact.argmin()), (found.maximum, exact.argmax())):
            assert abs(one - exact[place].item()) <= bound * most[place].item()


@pytest.mark.gpu
@pytest.mark.parametrize("k", [16, 768])
@pytest.mark.parametrize(
    "precision, bound, lost",
    [
        ("ieee", 0.0, 2**13 - 1),
        ("tf32x3", 2.0**-20, 2**12 - 2),
        ("tf32", 2.0**-9, 2**13 - 1),
        ("bf16", 2.0**-7 + 2.0**-16, 2**15 - 1),
    ],
)
def test_the_operands_that_lose_most_stay_within_the_documented_bound(
    precision, bound, lost, k, device
):
    """And lose what the precision says, so that it is the one that ran; see `test_precision`."""
    if device.type != "cuda":
        pytest.skip("the interpreter multiplies float32 as it is")
    number = np.array(np.float32(1).view(np.int32) + lost, np.int32).view(np.float32).item()
    a, b = torch.full((64, k), number, device=device), torch.full((k, 64), number, device=device)
    hist = matmul_histogram(a, b, backend="triton", precision=precision)
    exact = k * number**2
    accumulated = k * 2.0**-22  # tensor cores cut sums off where float32 would round
    for found in (hist.moments.minimum, hist.moments.maximum):
        assert abs(found / exact - 1) <= bound + accumulated
        if precision in ("tf32", "bf16"):
            assert abs(found / exact - 1) >= bound / 8 - accumulated


def test_an_operand_beyond_two_to_the_31_is_read_where_it_lies(device):
    rows = torch.empty(2**31 + 2**27, dtype=torch.bfloat16, device=device)  # few pages are touched
    b = rows.as_strided((16, 34), (1, 2**26))
    b.copy_(small_integers(16, 34, device=device))
    a = small_integers(20, 16, device=device)
    assert_same(
        matmul_histogram(a, b, AXES[4], backend="triton"),
        matmul_histogram(a, b.clone(), AXES[4], backend="reference"),
    )


@pytest.mark.gpu
def test_more_than_two_to_the_31_entries_are_counted(device):
    if device.type != "cuda":
        pytest.skip("the interpreter would take hours")
    x = torch.zeros(2**31 + 9, dtype=torch.bfloat16, device=device)
    x[-3:], x[0] = 2.0, -1.0
    hist = histogram(x, RegularAxis(4, -1.5, 2.5), backend="triton")
    assert hist.values().tolist() == [1, 2**31 + 5, 0, 3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn], ids=str)
def test_dtypes_that_the_kernels_do_not_read_are_taken_as_float32(dtype, device):
    x = small_integers(70, 40, device=device).to(dtype)
    whole = x.float()
    for axis in AXES[:1]:
        fast = (
            histogram(x, axis, backend="triton"),
            matmul_histogram(x, x.mT, axis, backend="triton"),
        )
        slow = (
            histogram(whole, axis, backend="reference"),
            matmul_histogram(whole, whole.mT, axis, backend="reference"),
        )
        for one, other in zip(fast, slow, strict=True):
            assert_same(one, other)


def test_a_power_of_two_moves_the_counts_of_a_float_axis_and_keeps_them(device):
    x = torch.randn(5000).to(device)
    one, other = (histogram(x * 2.0**e, backend="triton").values() for e in (0, -60))
    assert np.array_equal(one[one > 0], other[other > 0])


@pytest.mark.parametrize(
    "axis", [RegularAxis(4, -1e300, 1e300), RegularAxis(MOST_BINS + 1, -1.0, 1.0)], ids=str
)
def test_an_axis_that_float32_does_not_resolve_is_refused_in_one_line(axis, device):
    assert not takes(axis)
    with pytest.raises(BackendError, match=r"bins and edges below 2\^127.*backend='torch'"):
        histogram(torch.ones(3, device=device), axis, backend="triton")


def test_the_most_bins_are_counted_exactly(device):
    axis = RegularAxis(MOST_BINS, 0.1, 0.7)
    edges = torch.from_numpy(axis.edges[:: MOST_BINS // 1000].astype(np.float32))
    inf = torch.tensor(torch.inf)
    x = torch.cat([edges, torch.nextafter(edges, inf), torch.nextafter(edges, -inf)]).to(device)
    assert_same(histogram(x, axis, backend="triton"), histogram(x, axis, backend="reference"))


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-137, 2.0**-145])
def test_the_smallest_ranges_settle(scale, device):
    """No float32 scale makes them as large as 1."""
    x = torch.linspace(0, 1, 5000, device=device) * scale
    assert_same(histogram(x, backend="triton"), histogram(x, backend="reference"))


def test_the_choice_is_pure():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert choose("auto", gpu, installed=True) == "torch"  # not trusted
    assert choose("auto", gpu, installed=True, trusted=True) == "triton"
    assert choose("triton", gpu, installed=True) == "triton"
    assert choose("auto", gpu, installed=False) == "torch"
    assert choose("auto", cpu, installed=True) == "torch"
    with pytest.raises(BackendError, match="pip install triton"):
        choose("triton", gpu, installed=False)
    with pytest.raises(UnknownName, match="unknown precision 'fp8'"):
        matmul_histogram(torch.ones(1, 1), torch.ones(1, 1), precision="fp8")


def test_other_backends_record_that_they_multiply_float32_as_it_is():
    for backend in ("auto", "torch", "reference"):
        hist = matmul_histogram(
            torch.ones(2, 2), torch.ones(2, 2), backend=backend, precision="bf16"
        )
        if not torch.cuda.is_available():
            assert hist.precision == "ieee"
        assert Histogram.from_dict(hist.to_dict()).precision == hist.precision
        assert (hist + hist).precision == hist.rebin(16).precision == hist.precision


def test_a_result_names_how_it_was_counted(device):
    hist = histogram(torch.ones(5000, device=device), backend="triton")
    assert "counters, tile" in hist.kernel
    other = Histogram.from_dict(hist.to_dict() | {"kernel": "another"})
    both = hist + other + hist + other
    assert both.kernel == f"{hist.kernel}+another"
    assert hist.rebin(16).kernel == hist.kernel


@pytest.mark.slow
def test_triton_asked_for_on_the_cpu_is_refused_without_the_interpreter(forked, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    code = "import torch, burst; burst.histogram(torch.ones(3), backend='triton')"
    done = forked(code, tmp_path).end()
    assert "BackendError: the triton backend runs on a GPU, not on cpu; use" in done.stderr
