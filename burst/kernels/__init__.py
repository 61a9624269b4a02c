"""Histograms of tensors and of products that are never stored.

One name, several implementations: `reference` is the definition, `torch` works tile by tile in
the processor's cache (on any device that PyTorch has; Apple's GPUs lack float64, and their tensors
are counted on the CPU), `triton` keeps the tiles of a product and the counters on a GPU's chip. The
histogram says which one counted. "auto" is `torch` on the CPU. On a GPU it is `triton`, if a kernel
has counted a small example right there (see `_trial`), and else `torch`, with a warning.

`HistogramAccumulator` goes on from tensor to tensor; the two functions are one addition and its
result.
"""

from torch import Tensor

from burst.axis import Axis, FloatAxis
from burst.histogram import Histogram
from burst.kernels._choice import BACKENDS, PRECISIONS, choose
from burst.kernels._trial import kernel_trials
from burst.kernels.accumulator import HistogramAccumulator

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "HistogramAccumulator",
    "choose",
    "histogram",
    "kernel_trials",
    "matmul_histogram",
]

_DEFAULT_AXIS = FloatAxis()


def histogram(x: Tensor, axis: Axis = _DEFAULT_AXIS, *, backend: str = "auto") -> Histogram:
    """Histogram of the entries of a tensor.

    Args:
        x: any shape, any floating dtype; taken as float32.
        axis: where the bins lie.
        backend: "auto" or a name from `BACKENDS`, which runs or raises.

    Returns:
        Exact int64 counts, NaN and infinities apart, and float64 moments of the float32 values.
        "reference" and "torch" agree with float64 NumPy to 1e-9. "triton" adds up to 32 powers of
        (x - c), c next to their own mean, in float32 and everything else in float64: with
        u = 2^-24, the sum of p-th powers about c is within (31 + 2p) u sum |x - c|^p, so the second
        central moment is within 5e-6 and the fourth within 3e-5 of itself, and in practice near
        1e-8, as the errors of the many short sums cancel (benchmarks/gpu_kernels.md). Minimum and
        maximum are exact.

    Raises:
        ShapeError: x is not of floating dtype.
        UnknownName, BackendError: see `choose`; or "triton" cannot run where x is, or not right.

    Warns:
        BackendWarning: "auto" cannot use `triton` on a GPU; once for each reason.
    """
    accumulator = HistogramAccumulator(axis, backend=backend)
    accumulator.add(x)
    return accumulator.result()


def matmul_histogram(
    a: Tensor,
    b: Tensor,
    axis: Axis = _DEFAULT_AXIS,
    *,
    backend: str = "auto",
    precision: str = "tf32x3",
) -> Histogram:
    """Histogram of the entries of a @ b, which is never stored as a whole (but by "reference").

    Args:
        a: (m, k), any floating dtype and strides.
        b: (k, n), on the same device; X^T as a view costs no copy.
        axis: where the bins lie.
        backend: as in `histogram`.
        precision: the least accurate product that will do; the histogram records what was used.
            "reference" and "torch" always multiply float32 as it is, "ieee", which serves any
            request. On "triton", with an entry's error against float64 relative to
            sum_k |a_ik b_kj|, accumulation in float32 included:
            "ieee" float32 throughout, off the tensor cores: at most k 2^-24;
            "tf32x3" (default) each operand as a sum of two tf32 numbers, three products: 2^-20
            beside accumulation, as good as float32 in practice;
            "tf32" operands cut off to 11 bits, as tensor cores do: 2^-9;
            "bf16" operands rounded to 8 bits: 2^-7 and 2^-16.
            Where both operands are bfloat16, or float16, their products are exact and all but
            "bf16" are the same.

    Returns:
        Exact counts of the float32 product (operands taken as float32), and its moments, as
        precise as those of `histogram` (on "triton" sums of up to 128 powers are in float32: within
        2e-5 and 9e-5, in practice near 1e-8). Two backends may differ in the last bit of an entry,
        as two matrix products do.

    Raises:
        ShapeError: a and b are not matrices that multiply, not of floating dtype, or on different
            devices.
        UnknownName, BackendError: see `choose`; or no such precision; or "triton" cannot run where
            a and b are, or not right.

    Warns:
        BackendWarning: as `histogram`.
    """
    accumulator = HistogramAccumulator(axis, backend=backend)
    accumulator.add_product(a, b, precision=precision)
    return accumulator.result()
