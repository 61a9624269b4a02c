"""Both histograms tile by tile: a tile is multiplied, reduced and binned while it is in cache.

Everything is a PyTorch operation on one tile at a time, so all cores (or the GPU) share each tile,
and only one tile of the product exists. The tiles' shape does not depend on the machine.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from burst.axis import Axis, FloatAxis, RegularAxis
from burst.histogram import Histogram, NonFinite
from burst.moments import Moments

NAME = "torch"
CPU_TILE = 1 << 19  # entries: 15 MiB with their scratch; a call then costs little beside the work
GPU_TILE = 1 << 24  # entries: enough to fill the device, 0.5 GB with their scratch
PANEL = 1024  # most rows of a tile: wide enough for the product to run at full speed


class _Scratch:
    """Buffers that every tile uses again: fresh pages would cost as much as the work."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.product = torch.empty(size, device=device)
        self.sign, self.keys = torch.empty((2, size), dtype=torch.int32, device=device)
        self.deviation, self.squared = torch.empty((2, size), dtype=torch.float64, device=device)


Produce = Callable[[Tensor], Tensor]  # a buffer to write to -> the float32 tile


def histogram(x: Tensor, axis: Axis) -> Histogram:
    """Count the entries of `x` in slices of one tile."""
    flat = x.reshape(-1)
    size = min(_tile_size(flat.device), flat.numel())
    tiles = [partial(_convert, piece) for piece in torch.split(flat, max(size, 1))]
    return _run(tiles, size, axis, flat.device)


def matmul_histogram(a: Tensor, b: Tensor, axis: Axis) -> Histogram:
    """Count the entries of a @ b, one tile of the product at a time."""
    rows = max(1, min(a.shape[0], PANEL))
    columns = max(1, min(b.shape[1], _tile_size(a.device) // rows))
    panels = [panel.float() for panel in torch.split(a, rows)]
    tiles = [
        partial(_multiply, panel, strip)
        for strip in torch.split(b, columns, dim=1)
        for panel in panels
    ]
    return _run(tiles, rows * columns, axis, a.device)


def _tile_size(device: torch.device) -> int:
    return CPU_TILE if device.type == "cpu" else GPU_TILE


def _convert(piece: Tensor, _: Tensor) -> Tensor:
    return piece.float()


def _multiply(panel: Tensor, strip: Tensor, product: Tensor) -> Tensor:
    shape = panel.shape[0], strip.shape[1]
    return torch.mm(panel, strip.float(), out=product[: math.prod(shape)].view(shape))


@dataclass
class _Tally:
    """What has been seen so far."""

    axis: Axis
    scratch: _Scratch
    counts: Tensor = field(init=False)
    moments: Moments = field(default_factory=Moments)
    nonfinite: NonFinite = field(default_factory=NonFinite)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(
            self.axis.bins + 2, dtype=torch.int64, device=self.scratch.keys.device
        )

    def add(self, tile: Tensor) -> None:
        """Reduce and bin one float32 tile."""
        values = tile.reshape(-1)
        if not values.numel():
            return
        low, high = (float(bound) for bound in values.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            values = self._set_aside(values)
            if not values.numel():
                return
            low, high = (float(bound) for bound in values.aminmax())
        slots = _slots(values, self.axis, self.scratch)
        self.counts += torch.bincount(slots, minlength=self.counts.numel())
        self.moments += _moments(values, low, high, self.scratch)

    def _set_aside(self, values: Tensor) -> Tensor:
        self.nonfinite += NonFinite(
            int(values.isnan().sum()), int(values.isneginf().sum()), int(values.isposinf().sum())
        )
        return values[values.isfinite()]


def _run(tiles: Sequence[Produce], size: int, axis: Axis, device: torch.device) -> Histogram:
    scratch = _Scratch(size, device)
    tally = _Tally(axis, scratch)
    for produce in tiles:
        tally.add(produce(scratch.product))
    counts = tally.counts.cpu().numpy()
    return Histogram(axis, counts, moments=tally.moments, nonfinite=tally.nonfinite, backend=NAME)


def _moments(values: Tensor, low: float, high: float, scratch: _Scratch) -> Moments:
    """Central moments of one tile about its own mean, in float64."""
    count = values.numel()
    if low == high:  # the mean of equal numbers may round away from them
        return Moments(count, low, 0.0, 0.0, 0.0, low, high)
    deviation = scratch.deviation[:count].copy_(values)
    mean = deviation.mean()
    deviation -= mean
    squared = torch.mul(deviation, deviation, out=scratch.squared[:count])
    third, fourth = torch.dot(squared, deviation), torch.dot(squared, squared)
    m1, m2, m3, m4 = (float(number) for number in (mean, squared.sum(), third, fourth))
    return Moments(count, m1, m2, m3, m4, low, high)


def _slots(values: Tensor, axis: Axis, scratch: _Scratch) -> Tensor:
    """Where each value is counted: 0 underflow, 1.. bins, bins + 1 overflow."""
    if isinstance(axis, RegularAxis):
        return _regular_slots(values, axis)
    return _float_slots(values, axis, scratch)


def _float_slots(values: Tensor, axis: FloatAxis, scratch: _Scratch) -> Tensor:
    """The float's own bits as a signed whole number, low bits dropped: the bin's key.

    Sign and magnitude become two's complement (-0.0 and 0.0 both 0), so that the arithmetic shift
    rounds down on both sides of zero, as bins that hold their lower edge need.
    """
    bits = values.view(torch.int32)
    sign = torch.bitwise_right_shift(bits, 31, out=scratch.sign[: bits.numel()])
    keys = torch.bitwise_and(sign, 0x7FFFFFFF, out=scratch.keys[: bits.numel()])
    keys ^= bits
    keys -= sign
    keys >>= axis.shift
    keys += 1 - axis.first
    return keys


def _regular_slots(values: Tensor, axis: RegularAxis) -> Tensor:
    """Estimate by arithmetic, then set right by the edges: exact, without a search."""
    x = values.double()
    edges = torch.from_numpy(axis.edges).to(x.device)
    slots = ((x - axis.lo) * (axis.bins / (axis.hi - axis.lo))).clamp_(0, axis.bins - 1).long()
    slots += (x >= edges[slots + 1]).long() - (x < edges[slots]).long()
    slots += 1
    slots[x == axis.hi] = axis.bins  # the last bin holds its upper edge
    return slots
