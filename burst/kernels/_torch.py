"""Both histograms tile by tile: a tile is multiplied, reduced and binned while it is in cache.

On the CPU each core takes its own tiles, with a single-threaded product: nothing is shared, the
product's output never leaves the core's cache, and the result does not depend on how many cores
there are. The tiles' shape is fixed, so that neither do the products' roundings.
"""

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from torch import Tensor

from burst.axis import Axis, FloatAxis, RegularAxis
from burst.histogram import Histogram, NonFinite
from burst.moments import Moments

NAME = "torch"
CPU_TILE = 1 << 17  # entries: with its float64 scratch about the size of a core's L2 cache
GPU_TILE = 1 << 25  # entries: enough to fill the device
SHARES = 8  # tiles that a small input is cut into at least, for the cores to share
PANEL = 1024  # most rows of a tile: wide enough for the product to run at full speed


class _Scratch:
    """One worker's buffers, used for each tile again: fresh pages cost as much as the work."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self.product = torch.empty(size, device=device)
        self.sign, self.keys = torch.empty((2, size), dtype=torch.int32, device=device)
        self.deviation, self.squared = torch.empty((2, size), dtype=torch.float64, device=device)


Produce = Callable[[Tensor], Tensor]  # a buffer to write to -> the float32 tile


def histogram(x: Tensor, axis: Axis) -> Histogram:
    """Count the entries of `x` in slices of one tile."""
    flat = x.reshape(-1)
    size = _tile_size(flat.numel(), flat.device)
    tiles = [partial(_convert, piece) for piece in torch.split(flat, size)]
    return _run(tiles, size, axis, flat.device)


def matmul_histogram(a: Tensor, b: Tensor, axis: Axis) -> Histogram:
    """Count the entries of a @ b, one tile of the product at a time."""
    rows = max(1, min(a.shape[0], PANEL))
    columns = max(16, _tile_size(a.shape[0] * b.shape[1], a.device) // rows)
    panels = [panel.float() for panel in torch.split(a, rows)]
    tiles = [
        partial(_multiply, panel, strip)
        for strip in torch.split(b, columns, dim=1)
        for panel in panels
    ]
    return _run(tiles, rows * columns, axis, a.device)


def _tile_size(entries: int, device: torch.device) -> int:
    """A function of the work alone, so that results do not depend on the number of cores."""
    if device.type != "cpu":
        return GPU_TILE
    return min(CPU_TILE, max(entries // SHARES, CPU_TILE // 8))


def _convert(piece: Tensor, _: Tensor) -> Tensor:
    return piece.float()


def _multiply(panel: Tensor, strip: Tensor, product: Tensor) -> Tensor:
    shape = panel.shape[0], strip.shape[1]
    return torch.mm(panel, strip.float(), out=product[: math.prod(shape)].view(shape))


@dataclass
class _Tally:
    """What one worker has seen: counts, and the moments of each tile under its number."""

    axis: Axis
    scratch: _Scratch
    counts: Tensor = field(init=False)
    moments: dict[int, Moments] = field(default_factory=dict)
    nonfinite: NonFinite = field(default_factory=NonFinite)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(
            self.axis.bins + 2, dtype=torch.int64, device=self.scratch.keys.device
        )

    def add(self, number: int, tile: Tensor) -> None:
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
        self.moments[number] = _moments(values, low, high, self.scratch)

    def _set_aside(self, values: Tensor) -> Tensor:
        self.nonfinite += NonFinite(
            int(values.isnan().sum()), int(values.isneginf().sum()), int(values.isposinf().sum())
        )
        return values[values.isfinite()]


def _run(tiles: Sequence[Produce], size: int, axis: Axis, device: torch.device) -> Histogram:
    """Share the tiles among the cores; each takes the next one when it is free."""
    queue = iter(enumerate(tiles))

    def work(_: int) -> _Tally:
        tally = _Tally(axis, _scratch(size, device))
        for number, produce in queue:
            tally.add(number, produce(tally.scratch.product))
        return tally

    if device.type != "cpu":
        return _merge([work(0)], axis)
    threads = torch.get_num_threads()
    try:
        return _merge(list(_pool(threads).map(work, range(threads))), axis)
    finally:
        torch.set_num_threads(threads)  # what a worker sets is also every later thread's default


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "burst", initializer=lambda: torch.set_num_threads(1))


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child does not inherit the threads
_worker = threading.local()


def _scratch(size: int, device: torch.device) -> _Scratch:
    kept: _Scratch | None = getattr(_worker, "scratch", None)
    if kept is None or kept.size < size or kept.device != device:
        kept = _worker.scratch = _Scratch(size, device)
    return kept


def _merge(tallies: Sequence[_Tally], axis: Axis) -> Histogram:
    counts = torch.stack([tally.counts for tally in tallies]).sum(dim=0)
    tiles = {number: part for tally in tallies for number, part in tally.moments.items()}
    moments = sum((tiles[number] for number in sorted(tiles)), Moments())
    nonfinite = sum((tally.nonfinite for tally in tallies), NonFinite())
    return Histogram(axis, counts.cpu().numpy(), moments=moments, nonfinite=nonfinite, backend=NAME)


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
