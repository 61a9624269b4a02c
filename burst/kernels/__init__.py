"""Histograms of tensors and of products that are never stored.

One name, several implementations: `reference` is the definition, `torch` works tile by tile in
the processor's cache (on any device that PyTorch has). The histogram says which one counted.
"""

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from burst.axis import Axis, FloatAxis
from burst.errors import BackendError, ShapeError, UnknownName
from burst.histogram import Histogram

__all__ = ["BACKENDS", "choose", "histogram", "matmul_histogram"]

BACKENDS = ("reference", "torch")
_DEFAULT_AXIS = FloatAxis()


def choose(requested: str, device: torch.device) -> str:
    """The backend that counts on `device`: `requested`, or for "auto" the fastest there is.

    Raises:
        UnknownName: no backend is called `requested`.
        BackendError: the tensors are on a device without data.
    """
    if device.type == "meta":
        raise BackendError("a tensor on the meta device has no values to count; load it first")
    if requested == "auto":
        return "torch"
    if requested not in BACKENDS:
        raise UnknownName("backend", requested, ("auto", *BACKENDS))
    return requested


def histogram(x: Tensor, axis: Axis = _DEFAULT_AXIS, *, backend: str = "auto") -> Histogram:
    """Histogram of the entries of a tensor.

    Args:
        x: any shape, any floating dtype; taken as float32.
        axis: where the bins lie.
        backend: "auto" or a name from `BACKENDS`.

    Returns:
        Exact int64 counts; float64 moments of the float32 values, to 1e-9 of float64 NumPy;
        NaN and infinities apart.

    Raises:
        ShapeError: x is not of floating dtype.
        UnknownName, BackendError: see `choose`.
    """
    _check_floating(x=x)
    chosen = choose(backend, x.device)
    counted: Histogram = _implementation(chosen).histogram(x.detach(), _whole(axis))
    return counted


def matmul_histogram(
    a: Tensor, b: Tensor, axis: Axis = _DEFAULT_AXIS, *, backend: str = "auto"
) -> Histogram:
    """Histogram of the entries of a @ b, which is never stored as a whole (but by "reference").

    Args:
        a: (m, k), any floating dtype and strides.
        b: (k, n), on the same device; X^T as a view costs no copy.
        axis: where the bins lie.
        backend: "auto" or a name from `BACKENDS`.

    Returns:
        Exact counts of the float32 product (operands taken as float32), and its moments in
        float64. Two backends may differ in the last bit of an entry, as two matrix products do.

    Raises:
        ShapeError: a and b are not matrices that multiply, or on different devices.
        UnknownName, BackendError: see `choose`.
    """
    _check_floating(a=a, b=b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ShapeError(f"cannot multiply {tuple(a.shape)} by {tuple(b.shape)}")
    if a.device != b.device:
        raise ShapeError(f"a is on {a.device} and b on {b.device}; put both on one device")
    chosen = choose(backend, a.device)
    counted: Histogram = _implementation(chosen).matmul_histogram(
        a.detach(), b.detach(), _whole(axis)
    )
    return counted


def _whole(axis: Axis) -> Axis:
    """A float axis counts everything, whatever window a finished histogram left it with."""
    return FloatAxis(axis.mantissa_bits) if isinstance(axis, FloatAxis) else axis


def _implementation(chosen: str) -> ModuleType:
    module = "reference" if chosen == "reference" else f"_{chosen}"
    return import_module(f"burst.kernels.{module}")


def _check_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ShapeError(f"{name} is {tensor.dtype}; a floating dtype is needed")
