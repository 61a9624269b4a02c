"""What is added tensor by tensor against the sum of histograms, and float64 NumPy."""

import gc
import threading
import weakref

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from burst.axis import FloatAxis, RegularAxis
from burst.errors import BackendError, BackendWarning, ShapeError, UnknownName
from burst.histogram import Histogram, NonFinite
from burst.kernels import (
    HistogramAccumulator,
    _tally,
    _trial,
    accumulator,
    histogram,
    matmul_histogram,
)
from burst.kernels import _torch as tiled
from burst.moments import Moments

CPU = torch.device("cpu")
AXES = [FloatAxis(), FloatAxis(3), RegularAxis(37, -1.3, 2.1)]
RTOL = {"reference": 1e-9, "torch": 1e-9, "deferred": 1e-9, "triton": 1e-6}
# What would mislead whoever took shift and scale from the batches before.
SEQUENCES = {
    "usual": [torch.randn(700), torch.randn(3000), torch.randn(1)],
    "zeros, then far from 0": [torch.zeros(2500), torch.randn(3000) * 0.01 + 5],
    "far from 0, then zeros": [torch.randn(3000) * 0.01 + 5, torch.zeros(2500)],
    "constants": [torch.full((100,), 0.1), torch.full((2500,), 0.1)],
    "two constants": [torch.full((100,), 0.1), torch.full((2500,), torch.pi)],
    "neighbouring floats": [
        torch.full((999,), 1e6),
        torch.full((9,), 1e6).nextafter(torch.ones(9)),
    ],
    "a late outlier": [torch.randn(2000), torch.cat([torch.randn(2000), torch.tensor([-1e30])])],
    "an early outlier": [torch.tensor([1e30]), torch.randn(2000)],
    "1e-38": [torch.randn(500) * 1e-38, torch.randn(2500) * 1e-38],
    "subnormal": [torch.zeros(5), torch.randn(2500) * 1e-43],
    "1e38": [torch.randn(500).clamp(-3, 3) * 1e38, torch.randn(2500).clamp(-3, 3) * 1e38],
    "the largest": [torch.full((2500,), torch.finfo().max), torch.full((9,), torch.finfo().min)],
    "ever larger": [torch.randn(300) * 10.0**e for e in (-40, -20, 0, 20, 37)],
    "ever smaller": [torch.randn(300) * 10.0**e for e in (37, 20, 0, -20, -40)],
    "far and narrow": [torch.randn(2500) * 1e-3 + 1e3 for _ in range(3)],
}


@pytest.fixture(params=["reference", "torch", "deferred"])
def kind(request):
    return request.param


def accumulate(kind, axis=AXES[0]):
    """`deferred` is torch as on a GPU, where reading a number means waiting."""
    if kind != "deferred":
        return HistogramAccumulator(axis, backend=kind)
    found = HistogramAccumulator(axis, backend="torch")
    found._parts["torch"] = tiled.Accumulator(found.axis, CPU, deferred=True)
    return found


def assert_counted(found: Histogram, batches, axis, rtol):
    """Counts of all that is finite, as the definition has them; moments as float64 NumPy has."""
    values = torch.cat([batch.flatten() for batch in batches])
    expected = histogram(values, axis, backend="reference")
    assert found == expected
    of = expected.moments
    known_to = 2.0**-50 * abs(of.mean) / of.std if of.count and of.std else 0.0  # float64's mean
    assert found.allclose(expected, rtol=rtol + known_to)
    assert found.moments.minimum == expected.moments.minimum
    assert found.moments.maximum == expected.moments.maximum


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(st.floats(width=32), max_size=20), max_size=6),
    axis=st.sampled_from(AXES),
)
def test_the_result_is_the_sum_of_the_histograms(batches, axis, kind):
    tensors = [torch.tensor(numbers, dtype=torch.float32) for numbers in batches]
    found = accumulate(kind, axis)
    for x in tensors:
        found.add(x)
    whole = sum(
        (histogram(x, axis, backend="reference") for x in tensors), histogram(torch.ones(0), axis)
    )
    assert found.result() == whole
    assert_counted(found.result(), [torch.ones(0), *tensors], axis, 1e-9)


@pytest.mark.parametrize("axis", AXES[1:], ids=str)
@pytest.mark.parametrize("name", SEQUENCES)
def test_moments_are_those_of_all_batches_whatever_came_first(name, axis, kind):
    found = accumulate(kind, axis)
    for x in SEQUENCES[name]:
        found.add(x)
    assert_counted(found.result(), SEQUENCES[name], axis, RTOL[kind])


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_kernels_are_misled_by_nothing_that_came_first(name, device):
    found = accumulate("triton", AXES[1])
    for x in SEQUENCES[name]:
        found.add(x.to(device))
    assert found.result().backend == "triton"
    assert_counted(found.result(), SEQUENCES[name], AXES[1], RTOL["triton"])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(st.floats(width=32), max_size=40), min_size=1, max_size=2))
def test_the_kernels_bear_any_floats(batches, device):
    """Infinities and NaN among them."""
    tensors = [torch.tensor(numbers, dtype=torch.float32) for numbers in batches]
    found = accumulate("triton")
    for x in tensors:
        found.add(x.to(device))
    assert_counted(found.result(), tensors, AXES[0], RTOL["triton"])


def small_integers(*shape):
    return torch.randint(-3, 4, shape).float()


def test_products_and_tensors_add_up(kind):
    check_products_and_tensors(kind, CPU)


def test_products_and_tensors_add_up_in_the_kernels(device):
    check_products_and_tensors("triton", device)


def check_products_and_tensors(kind, device):
    a, tokens = small_integers(30, 20), [small_integers(n, 20) for n in (40, 1, 150)]
    found = accumulate(kind, AXES[2])
    for x in tokens:
        found.add_product(a.to(device), x.to(device).mT)
    products = [a @ x.mT for x in tokens]
    assert_counted(found.result(), products, AXES[2], RTOL[kind])
    found.add(a.to(device))
    assert_counted(found.result(), [*products, a], AXES[2], RTOL[kind])


def test_a_product_is_counted_as_its_histogram_is(kind):
    """To the last digit, also where it is rounded."""
    if kind == "reference":
        pytest.skip("multiplies the whole at once")
    a, batches = torch.randn(1100, 24), [torch.randn(n, 24) for n in (30, 500, 471)]
    found = accumulate(kind)
    for x in batches:
        found.add_product(a, x.mT, precision="bf16")
    known = sum(matmul_histogram(a, x.mT, backend="torch") for x in batches)
    assert found.result() == known
    assert found.result().allclose(known)
    assert found.result().precision == "ieee"


def test_what_is_not_finite_is_counted_apart_in_the_batches_that_have_it(kind):
    dirty = torch.randn(50)
    dirty[[0, 7, 11, 49]] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.inf])
    batches = [torch.randn(100), dirty, torch.full((3,), torch.nan), torch.randn(9)]
    found = accumulate(kind)
    for x in batches:
        found.add(x)
    assert found.result().nonfinite == NonFinite(4, 1, 2)
    assert_counted(found.result(), batches, AXES[0], RTOL[kind])


def test_a_result_stays_as_it_is_while_more_is_added(kind):
    batches = [torch.randn(40) for _ in range(3)]
    found, results = accumulate(kind), []
    for x in batches:
        found.add(x)
        results.append((found.result(), found.result()))
    for count, pair in enumerate(results, 1):
        for one in pair:
            assert_counted(one, batches[:count], AXES[0], RTOL[kind])


def test_more_tiles_than_a_device_keeps_rows_for(monkeypatch):
    monkeypatch.setattr(_tally, "ROWS", 4)
    batches = [torch.randn(30) * scale for scale in range(11)]
    found = accumulate("deferred")
    for x in batches:
        found.add(x)
    assert_counted(found.result(), batches, AXES[0], 1e-9)


def test_hundreds_of_additions_lose_nothing(kind):
    batches = [torch.randn(20) + 30 for _ in range(300)]
    found = accumulate(kind)
    for x in batches:
        found.add(x)
    assert_counted(found.result(), batches, AXES[0], RTOL[kind])


def test_accumulators_that_take_turns_do_not_mix(kind):
    check_turns(kind, CPU)


def test_accumulators_of_kernels_that_take_turns_do_not_mix(device):
    check_turns("triton", device)


def check_turns(kind, device):
    axes = [AXES[0], AXES[2], AXES[1]]
    several = [accumulate(kind, axis) for axis in axes]
    batches = [[torch.randn(n) * (1 + i) for n in (900, 5, 2100)] for i in range(len(axes))]
    for turn in range(3):
        for one, own in zip(several, batches, strict=True):
            one.add(own[turn].to(device))
    for one, own, axis in zip(several, batches, axes, strict=True):
        assert_counted(one.result(), own, axis, RTOL[kind])


def scratch_of(one):
    (scratch,) = one._parts["torch"]._scratch.values()
    return scratch


def test_accumulators_of_a_thread_share_their_scratch_and_leave_none_behind():
    one, other = accumulate("torch"), accumulate("torch", AXES[2])
    one.add(torch.ones(3))
    other.add_product(torch.ones(9, 2), torch.ones(2, 5))
    assert scratch_of(one) is scratch_of(other)
    left = weakref.ref(scratch_of(one))
    del one
    assert left() is not None
    del other
    gc.collect()
    assert left() is None


def test_each_thread_has_scratch_of_its_own():
    batches = [[torch.randn(64, 48) for _ in range(8)] for _ in range(2)]
    a, results, scratch = torch.randn(64, 64), {}, {}
    start = threading.Barrier(2)

    def work(index):
        found = accumulate("torch")
        start.wait()
        for x in batches[index]:
            found.add_product(a, x)
        results[index], scratch[index] = found.result(), scratch_of(found)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scratch[0] is not scratch[1]
    for index, own in enumerate(batches):
        assert results[index] == sum(matmul_histogram(a, x) for x in own)


def test_an_accumulator_may_go_from_thread_to_thread():
    found, batches = accumulate("torch"), [torch.randn(100), torch.randn(200)]
    found.add(batches[0])
    thread = threading.Thread(target=found.add, args=(batches[1],))
    thread.start()
    thread.join()
    assert_counted(found.result(), batches, AXES[0], 1e-9)


def test_nothing_added_is_an_empty_histogram(kind):
    found = accumulate(kind, AXES[2])
    for hist in (found.result(), found.result()):
        assert (hist.count, hist.backend, hist.axis) == (0, "", AXES[2])
    assert accumulate(kind).result() == histogram(torch.ones(0))
    found.add(torch.ones(0, 3))
    found.add_product(torch.ones(0, 3), torch.ones(3, 5))
    assert found.result().count == 0
    found.add_product(torch.ones(2, 0), torch.ones(0, 5))  # an empty sum is 0
    assert found.result().moments == Moments(10, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_the_result_says_what_counted(kind):
    name = "torch" if kind == "deferred" else kind
    found = accumulate(kind)
    found.add(torch.ones(3))
    assert (found.result().backend, found.result().precision) == (name, "")
    found.add_product(torch.ones(2, 2), torch.ones(2, 2))
    assert (found.result().backend, found.result().precision) == (name, "ieee")


def test_the_result_names_every_precision_and_kernel(device):
    found = accumulate("triton")
    a, b = torch.ones(2, 8, device=device), torch.ones(8, 2, device=device)
    for precision in ("tf32", "ieee", "tf32"):
        found.add_product(a, b, precision=precision)
    found.add(a)
    assert found.result().precision == "tf32+ieee"
    known = [matmul_histogram(a, b, backend="triton", precision="tf32").kernel]
    known += [histogram(a, backend="triton").kernel]
    assert all(kernel in found.result().kernel for kernel in known)


def test_a_float_axis_is_whole_whatever_window_it_came_with():
    found = HistogramAccumulator(histogram(torch.ones(3)).axis)
    found.add(torch.tensor([-5.0, 7e9]))
    assert found.axis == FloatAxis()
    assert found.result().sum() == 2


def test_it_does_not_matter_who_is_in_inference_mode_and_when(kind):
    check_inference_mode(kind, CPU)


def test_it_does_not_matter_to_the_kernels_who_is_in_inference_mode(device):
    check_inference_mode("triton", device)


def check_inference_mode(kind, device):
    weight = torch.nn.Parameter(torch.ones(4, 4, device=device))
    found = accumulate(kind)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            found.add_product(weight, torch.ones(4, 2, device=device))
            found.add(weight)
            assert found.result().count > 0
    found.add(weight)
    assert found.result().count == 3 * 24 + 16


def test_the_callers_default_dtype_is_nothing_to_it(kind):
    torch.set_default_dtype(torch.float64)
    try:
        found = accumulate(kind)
        found.add(torch.ones(4))
        found.add_product(torch.ones(4, 4), torch.ones(4, 2).half())
        assert found.result().count == 12
    finally:
        torch.set_default_dtype(torch.float32)


def test_wrong_requests_are_refused_and_change_nothing(kind):
    with pytest.raises(UnknownName, match="unknown backend 'tritn'"):
        HistogramAccumulator(backend="tritn")
    found = accumulate(kind)
    with pytest.raises(BackendError, match="meta"):
        found.add(torch.ones(3, device="meta"))
    found.add(torch.ones(3))
    with pytest.raises(ShapeError, match="int64"):
        found.add(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"cannot multiply \(2, 3\) by \(2, 3\)"):
        found.add_product(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(UnknownName, match="unknown precision 'fp8'"):
        found.add_product(torch.ones(2, 3), torch.ones(3, 3), precision="fp8")
    with pytest.raises(ShapeError, match="on cpu were added before, and this one is on meta"):
        found.add(torch.ones(3, device="meta"))
    assert found.result() == histogram(torch.ones(3))


def test_a_kind_that_no_kernel_counts_right_is_counted_by_torch_beside_the_others(
    device, monkeypatch
):
    from burst.kernels import _triton

    def refuse(x, axis):
        raise _trial.NoCut("no cut of its kernel is right")

    a, b = small_integers(5, 8).to(device), small_integers(8, 9).to(device)
    found = HistogramAccumulator(AXES[2])
    monkeypatch.setattr(_triton, "_stream_tile", refuse)
    monkeypatch.setattr(_trial, "_warned", set())
    with monkeypatch.context() as patch:
        patch.setattr(accumulator, "choose", lambda *_, **__: "triton")
        with pytest.warns(BackendWarning, match="no cut of its kernel is right; give") as all_:
            for _ in range(2):
                found.add(a)
                found.add_product(a, b)
    assert [one.category for one in all_].count(BackendWarning) == 1
    assert found.result().backend == "torch+triton"
    assert_counted(found.result(), 2 * [a.cpu(), (a @ b).cpu()], AXES[2], RTOL["triton"])
    with pytest.raises(_trial.NoCut):
        HistogramAccumulator(AXES[2], backend="triton").add(a)


class Impatient(TorchDispatchMode):
    """Refuses whatever would wait for a GPU to say how much there is of something."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2")

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        assert function.overloadpacket.__name__ not in self.WAITING, function
        return function(*arguments, **(options or {}))


def test_an_addition_would_wait_for_nothing():
    check_patience("deferred", CPU)


def test_an_addition_of_kernels_would_wait_for_nothing(device):
    check_patience("triton", device)


def check_patience(kind, device):
    a, x = torch.randn(20, 8, device=device), torch.randn(30, 8, device=device)
    x[3, 4] = torch.nan
    for axis in AXES[1:]:
        found = accumulate(kind, axis)
        with Impatient():
            found.add(x)
            found.add_product(a, x.mT)
        with pytest.raises(AssertionError), Impatient():
            x.isnan().any().item()
        assert found.result().count == 239 + 20 * 29


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_on_a_gpu_an_addition_waits_for_nothing_and_keeps_nothing(axis, backend, device):
    if device.type != "cuda":
        pytest.skip("no GPU is here")
    a = torch.randint(-3, 4, (768, 64), device=device).float()
    batches = [torch.randint(-3, 4, (500, 64), device=device).float() for _ in range(5)]
    found = HistogramAccumulator(axis, backend=backend)

    def add(x):
        found.add(x)
        found.add_product(a, x.mT)

    add(batches[0])
    before = torch.cuda.memory_allocated(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x in batches[1:]:
            add(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_allocated(device) == before
    known = sum(
        histogram(x, axis, backend="reference")
        + matmul_histogram(a, x.mT, axis, backend="reference")
        for x in batches
    )
    assert found.result() == known
    assert found.result().allclose(known, rtol=1e-5)
