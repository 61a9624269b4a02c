"""Histograms tile by tile: a tile is multiplied, reduced and binned while it is in cache.

Everything is a PyTorch operation on one tile at a time, so all cores (or the GPU) share each tile,
and only one tile of the product exists. The tiles' shape does not depend on the machine.
"""

import math

import torch
from torch import Tensor

from burst.axis import Axis
from burst.decomposition import Margins
from burst.histogram import Histogram
from burst.kernels._margins import DeferredMargins, MarginTally
from burst.kernels._scratch import shared
from burst.kernels._tally import DeferredTally, Scratch, Tally

NAME = "torch"
CPU_TILE = 1 << 19  # entries: 15 MiB with their scratch; a call then costs little beside the work
GPU_TILE = 1 << 24  # entries: enough to fill the device, 0.5 GB with their scratch
PANEL = 1024  # most rows of a tile: wide enough for the product to run at full speed


class Accumulator:
    """What has been counted on one device, tile by tile.

    Args:
        axis: where the bins lie.
        device: where the tensors are. Elsewhere than on the CPU nothing is read before a result.
        margins: whether to keep moments of products' rows and columns.
        deferred: whether to wait with reading so; otherwise it depends on the device.
    """

    def __init__(
        self,
        axis: Axis,
        device: torch.device,
        *,
        margins: bool = False,
        deferred: bool | None = None,
    ) -> None:
        self.device = device
        on_cpu = device.type == "cpu"
        self._size = CPU_TILE if on_cpu else GPU_TILE
        self._tally = _tally(axis, device, margins, not on_cpu if deferred is None else deferred)
        self._precision = ""
        self._scratch: dict[int, Scratch] = {}  # kept, so that others find it

    def add(self, x: Tensor) -> None:
        """Count the entries of `x` in slices of one tile."""
        flat = x.reshape(-1)
        scratch = self._room(min(self._size, flat.numel()))
        for piece in torch.split(flat, self._size):
            self._tally.add(piece.float(), scratch)

    def add_product(self, a: Tensor, b: Tensor, *, precision: str) -> None:
        """Count the entries of a @ b, one tile at a time; float32 serves any precision."""
        rows = max(1, min(a.shape[0], PANEL))
        columns = max(1, min(b.shape[1], self._size // rows))
        scratch = self._room(rows * columns)
        panels = [panel.float() for panel in torch.split(a, rows)]
        margins = self._tally.margins
        if margins:
            margins.begin(a, b)
        for strip in torch.split(b, columns, dim=1):
            right = strip.float()
            for i, panel in enumerate(panels):
                self._tally.add(_multiply(panel, right, scratch.product), scratch, i * rows)
            if margins:
                margins.end_strip()
        self._precision = "ieee"

    def result(self) -> Histogram:
        """What was counted so far."""
        return self._tally.result(backend=NAME, precision=self._precision)

    def margins(self) -> Margins:
        """Moments of the rows and columns of the products so far."""
        assert self._tally.margins
        return self._tally.margins.result()

    def _room(self, size: int) -> Scratch:
        """Of at least that size; on the CPU pages that nobody touches take no memory."""
        size = self._size if self.device.type == "cpu" else 1 << max(size - 1, 0).bit_length()
        self._scratch[size] = shared(Scratch, size, self.device)
        return self._scratch[size]


def _tally(
    axis: Axis, device: torch.device, margins: bool, deferred: bool
) -> Tally | DeferredTally:
    if deferred:
        return DeferredTally(axis, device, DeferredMargins(device) if margins else None)
    return Tally(axis, MarginTally() if margins else None)


def _multiply(panel: Tensor, strip: Tensor, product: Tensor) -> Tensor:
    shape = panel.shape[0], strip.shape[1]
    return torch.mm(panel, strip, out=product[: math.prod(shape)].view(shape))
