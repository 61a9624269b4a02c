"""Histograms of tensors and of products that are never stored.

One name, several implementations: `reference` is the definition, `torch` works tile by tile in
the processor's cache (on any device that PyTorch has; Apple's GPUs lack float64, and their tensors
are counted on the CPU), `triton` keeps the tiles of a product and the counters on a GPU's chip. The
histogram says which one counted. "auto" is `torch` on the CPU. On a GPU it is `triton`, if a kernel
has counted a small example right there (see `_trial`), and else `torch`, with a warning.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from burst.axis import Axis, FloatAxis
from burst.errors import BackendError, ShapeError, UnknownName
from burst.float64 import where_float64
from burst.histogram import Histogram
from burst.kernels import _trial
from burst.kernels._scaling import takes
from burst.kernels._trial import kernel_trials
from burst.precision import plain_float32

__all__ = ["BACKENDS", "PRECISIONS", "choose", "histogram", "kernel_trials", "matmul_histogram"]

BACKENDS = ("reference", "torch", "triton")
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")
_DEFAULT_AXIS = FloatAxis()


def choose(requested: str, device: torch.device, *, installed: bool, trusted: bool = False) -> str:
    """The backend that counts on `device`: `requested`; for "auto" `triton` or `torch`.

    A pure function; whether "triton" can run on the CPU (under its interpreter) is found out when
    it starts.

    Args:
        requested: "auto" or a name from `BACKENDS`.
        device: where the tensors are.
        installed: whether Triton is.
        trusted: whether "auto" may be `triton` on this device, if that is a GPU.

    Raises:
        UnknownName: no backend is called `requested`.
        BackendError: the tensors are on a device without data; or "triton" was asked for and is
            not installed.
    """
    if device.type == "meta":
        raise BackendError("a tensor on the meta device has no values to count; load it first")
    if requested == "auto":
        return "triton" if device.type == "cuda" and installed and trusted else "torch"
    if requested not in BACKENDS:
        raise UnknownName("backend", requested, ("auto", *BACKENDS))
    if requested == "triton" and not installed:
        raise BackendError("the triton backend needs Triton: pip install triton, or backend='auto'")
    return requested


def histogram(x: Tensor, axis: Axis = _DEFAULT_AXIS, *, backend: str = "auto") -> Histogram:
    """Histogram of the entries of a tensor.

    Args:
        x: any shape, any floating dtype; taken as float32.
        axis: where the bins lie.
        backend: "auto" or a name from `BACKENDS`, which runs or raises.

    Returns:
        Exact int64 counts, NaN and infinities apart, and float64 moments of the float32 values.
        "reference" and "torch" agree with float64 NumPy to 1e-9. "triton" adds up to 32 powers of
        (x - c), c near the mean, in float32 and everything else in float64: with u = 2^-24, the sum
        of p-th powers about c is within (31 + 2p) u sum |x - c|^p, under 2.4e-6 of it, and in
        practice near 1e-8, as the errors of the many short sums cancel. Minimum and maximum are
        exact.

    Raises:
        ShapeError: x is not of floating dtype.
        UnknownName, BackendError: see `choose`; or "triton" cannot run where x is, or not right.

    Warns:
        BackendWarning: "auto" cannot use `triton` on a GPU; once for each reason.
    """
    _check_floating(x=x)
    x, axis = where_float64(x.detach()), _whole(axis)
    return _count("histogram", (x, axis), {}, backend)


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
        (127 + 2p) u, under 8.1e-6). Two backends may differ in the last bit of an entry, as two
        matrix products do.

    Raises:
        ShapeError: a and b are not matrices that multiply, or on different devices.
        UnknownName, BackendError: see `choose`; or no such precision; or "triton" cannot run where
            a and b are, or not right.

    Warns:
        BackendWarning: as `histogram`.
    """
    _check_floating(a=a, b=b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ShapeError(f"cannot multiply {tuple(a.shape)} by {tuple(b.shape)}")
    if a.device != b.device:
        raise ShapeError(f"a is on {a.device} and b on {b.device}; put both on one device")
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    a, b, axis = where_float64(a.detach()), where_float64(b.detach()), _whole(axis)
    return _count("matmul_histogram", (a, b, axis), {"precision": precision}, backend)


def _count(what: str, given: tuple[Any, ...], options: dict[str, str], backend: str) -> Histogram:
    """Run the kernel called `what`; for "auto" with torch where Triton turns out not to serve."""
    first, *_, axis = given
    chosen = choose(
        backend, first.device, installed=_trial.installed(), trusted=_trusted(backend, first, axis)
    )
    with plain_float32(first.device):
        if chosen == "triton":
            try:
                found: Histogram = getattr(_compiled(first.device), what)(*given, **options)
                return found
            except _trial.NoCut as problem:
                if backend != "auto":
                    raise
                _trial.warn(first.device, str(problem))
                chosen = "torch"
        count: Callable[..., Histogram] = getattr(_plain(chosen), what)
        counted = count(*given)
    counted.precision = "ieee" if options else ""
    return counted


def _trusted(requested: str, x: Tensor, axis: Axis) -> bool:
    """Whether "auto" may try Triton on a GPU."""
    if requested != "auto" or x.device.type != "cuda":
        return False
    if problem := _trial.obstacle(x.device):
        _trial.warn(x.device, problem)
    return problem is None and takes(axis)


def _plain(chosen: str) -> ModuleType:
    return import_module(f"burst.kernels.{'_torch' if chosen == 'torch' else chosen}")


def _compiled(device: torch.device) -> ModuleType:
    module: Any = import_module("burst.kernels._triton")
    if device.type != "cuda" and not module.INTERPRETED:
        raise BackendError(
            f"the triton backend runs on a GPU, not on {device.type}; use backend='auto'"
        )
    return module  # type: ignore[no-any-return]


def _whole(axis: Axis) -> Axis:
    """A float axis counts everything, whatever window a finished histogram left it with."""
    return FloatAxis(axis.mantissa_bits) if isinstance(axis, FloatAxis) else axis


def _check_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ShapeError(f"{name} is {tensor.dtype}; a floating dtype is needed")
