"""A histogram that grows on the device its tensors are on, and comes back when it is asked for."""

from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from burst.axis import Axis, FloatAxis
from burst.decomposition import Margins
from burst.errors import BackendError, BurstError, ShapeError, check_known
from burst.float64 import where_float64
from burst.histogram import Histogram
from burst.kernels import _trial
from burst.kernels._choice import BACKENDS, PRECISIONS, choose, trusted
from burst.moments import Moments
from burst.precision import plain_float32

_DEFAULT_AXIS = FloatAxis()
_MODULES = {"reference": "reference", "torch": "_torch", "triton": "_triton"}


class _Part(Protocol):
    """What a backend has counted."""

    def add(self, x: Tensor) -> None: ...

    def add_product(self, a: Tensor, b: Tensor, *, precision: str) -> None: ...

    def result(self) -> Histogram: ...

    def margins(self) -> Margins: ...


class HistogramAccumulator:
    """The histogram of many tensors and products, added one after the other.

    Its result is the sum of what `histogram` and `matmul_histogram` give: the same counts, and
    moments within the same bounds. On a GPU an addition starts a kernel and returns: once the first
    of a kind is made, it allocates nothing that stays, copies nothing from the device or to it, and
    waits for nothing; each accumulator keeps its own counters there, 8 bytes a bin. Buffers in
    which tiles are worked on are shared by all accumulators of a thread. Threads may take turns
    with an accumulator, but not use it at once.

    Args:
        axis: where the bins lie.
        backend: "auto" or a name from `BACKENDS`, which runs or raises; see `choose`.
        margins: whether to keep moments of the products' rows and columns, for `margins`. All
            products must have the same rows then, and further columns.

    Raises:
        UnknownName: no backend is called so.

    >>> batches = torch.arange(6.0).reshape(3, 2)
    >>> accumulator = HistogramAccumulator()
    >>> for batch in batches:
    ...     accumulator.add(batch)
    >>> accumulator.result()
    Histogram(6 values from 0 to 5, 16545 bins)
    """

    def __init__(
        self, axis: Axis = _DEFAULT_AXIS, *, backend: str = "auto", margins: bool = False
    ) -> None:
        check_known("backend", backend, ("auto", *BACKENDS))
        # A float axis counts everything, whatever window a finished histogram left it with.
        self.axis = FloatAxis(axis.mantissa_bits) if isinstance(axis, FloatAxis) else axis
        self.backend = backend
        self._keeps_margins = margins
        self._device: torch.device | None = None
        self._chosen = ""
        self._parts: dict[str, _Part] = {}  # backend -> its accumulator
        self._used: dict[str, None] = {}  # backends that have counted, in order

    def add(self, x: Tensor) -> None:
        """Count the entries of a tensor.

        Args:
            x: any shape, any floating dtype; taken as float32. On the device of the first tensor
                that was added.

        Raises:
            ShapeError: x is not of floating dtype, or on another device; or margins are kept, which
                products alone have.
            BackendError: see `choose`; or "triton" cannot run where x is, or not right.

        Warns:
            BackendWarning: "auto" cannot use `triton` on a GPU; once for each reason.
        """
        _check_floating(x=x)
        if self._keeps_margins:
            raise ShapeError("margins are of products; add tensors to an accumulator without them")
        self._add("add", x)

    def add_product(self, a: Tensor, b: Tensor, *, precision: str = "tf32x3") -> None:
        """Count the entries of a @ b, which is never stored as a whole (but by "reference").

        Args:
            a: (m, k), any floating dtype and strides.
            b: (k, n), on the same device, that of the first tensor that was added.
            precision: the least accurate product that will do, see `matmul_histogram`.

        Raises:
            ShapeError: a and b are not matrices that multiply, not of floating dtype, or not on one
                device, that of before; or margins are kept, and products before had more or fewer
                rows.
            UnknownName: no such precision.
            BackendError: as `add`.

        Warns:
            BackendWarning: as `add`.
        """
        _check_floating(a=a, b=b)
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise ShapeError(f"cannot multiply {tuple(a.shape)} by {tuple(b.shape)}")
        if a.device != b.device:
            raise ShapeError(f"a is on {a.device} and b on {b.device}; put both on one device")
        check_known("precision", precision, PRECISIONS)
        self._add("add_product", a, b, precision=precision)

    def result(self) -> Histogram:
        """The histogram of what was added so far; more may be added afterwards.

        It says which backend, precision and kernels counted, all of them if several did.
        """
        if not self._used:
            return Histogram(self.axis, [0] * (self.axis.bins + 2), moments=Moments())
        with torch.inference_mode():
            first, *others = (self._parts[name].result() for name in self._used)
        return sum(others, first)

    def margins(self) -> Margins:
        """Moments of the rows and columns of the products that were added so far.

        Raises:
            BurstError: they are not kept, or nothing was added.
        """
        if not (self._keeps_margins and self._used):
            raise BurstError("there are no margins: ask for them, and add a product")
        with torch.inference_mode():
            first, *others = (self._parts[name].margins() for name in self._used)
        return sum(others, first)

    def _add(self, how: str, *tensors: Tensor, **options: str) -> None:
        """For "auto" with torch where Triton turns out not to serve."""
        where = tensors[0].device
        chosen = counting = self._choose(where)
        # All buffers are of one kind, whether the caller is in inference mode or not.
        with torch.inference_mode(), plain_float32(where):
            given = [where_float64(tensor.detach()) for tensor in tensors]
            device = given[0].device
            try:
                getattr(self._part(chosen, device), how)(*given, **options)
            except _trial.NoCut as problem:
                if self.backend != "auto":
                    raise
                _trial.warn(device, str(problem))
                counting = "torch"
                getattr(self._part(counting, device), how)(*given, **options)
        self._device, self._chosen = where, chosen
        self._used[counting] = None

    def _choose(self, device: torch.device) -> str:
        """The first tensor says where to count, and how."""
        if self._device is None:
            return choose(
                self.backend,
                device,
                installed=_trial.installed(),
                trusted=trusted(self.backend, device, self.axis),
            )
        if device != self._device:
            raise ShapeError(
                f"tensors on {self._device} were added before, and this one is on {device}; give "
                f"each device an accumulator and add their results"
            )
        return self._chosen

    def _part(self, name: str, device: torch.device) -> _Part:
        if name not in self._parts:
            module: Any = import_module(f"burst.kernels.{_MODULES[name]}")
            if name == "triton" and device.type != "cuda" and not module.INTERPRETED:
                raise BackendError(
                    f"the triton backend runs on a GPU, not on {device.type}; use backend='auto'"
                )
            self._parts[name] = module.Accumulator(self.axis, device, margins=self._keeps_margins)
        return self._parts[name]


def _check_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ShapeError(f"{name} is {tensor.dtype}; a floating dtype is needed")
