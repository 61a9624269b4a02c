"""Counts and moments of tiles that exist, by PyTorch operations: at once, or read back later."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burst.axis import Axis, FloatAxis, RegularAxis
from burst.decomposition import GroupMoments
from burst.histogram import Histogram, NonFinite
from burst.kernels._margins import DeferredMargins, MarginTally
from burst.kernels._scaling import merge
from burst.moments import Moments

ROWS = 512  # tiles whose moments a device keeps before they are read


class Scratch:
    """Buffers that every tile uses again: fresh pages would cost as much as the work."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.product = torch.empty(size, dtype=torch.float32, device=device)
        self.sign, self.keys = torch.empty((2, size), dtype=torch.int32, device=device)
        self.deviation, self.squared = torch.empty((2, size), dtype=torch.float64, device=device)


class Tally:
    """What has been seen so far, on the CPU, where a number is read as soon as it is known."""

    def __init__(self, axis: Axis, margins: MarginTally | None = None) -> None:
        self.axis, self.margins = axis, margins
        self._edges = _edges(axis, torch.device("cpu"))
        self._start = 0
        self._counts = torch.zeros(0, dtype=torch.int64, device="cpu")  # of slots from start on
        self._moments, self._nonfinite = Moments(), NonFinite()

    def add(self, tile: Tensor, scratch: Scratch, row: int = 0) -> None:
        """Reduce and bin one float32 tile; with margins it begins at that row of a product."""
        values = tile.reshape(-1)
        if not values.numel():
            return
        low, high = (float(bound) for bound in values.aminmax())
        finite = math.isfinite(low) and math.isfinite(high)
        if not finite:
            values = self._set_aside(values)
        if values.numel():
            low, high = (float(bound) for bound in values.aminmax()) if not finite else (low, high)
            first = _first_slot(low, self.axis)
            slots = _slots(values, self.axis, self._edges, scratch, first)
            self._count(first, torch.bincount(slots))
        whole = None
        if self.margins:
            buffers = scratch.deviation, scratch.squared
            whole = self.margins.add(tile, row, *buffers, finite=finite)
        if values.numel():
            self._moments += _moments(values, low, high, scratch, whole)

    def result(self, **how: str) -> Histogram:
        """The histogram."""
        axis, counts = self._window()
        return Histogram(axis, counts, moments=self._moments, nonfinite=self._nonfinite, **how)

    def _window(self) -> tuple[Axis, NDArray[np.int64]]:
        """The axis, one of floats without the many bins that none of the values is near."""
        first, last = self._start, self._start + len(self._counts)
        if isinstance(self.axis, FloatAxis) and last > first:
            axis = self.axis.window(self.axis.first + first - 1, self.axis.first + last - 1)
            flow = np.zeros(last - first + 2, np.int64)
            flow[1:-1] = self._counts.numpy()
            return axis, flow
        flow = np.zeros(self.axis.bins + 2, np.int64)
        flow[first:last] = self._counts.numpy()
        return self.axis, flow

    def _count(self, first: int, found: Tensor) -> None:
        """Add counts of the slots from `first` on; none is kept beyond those that are occupied."""
        before = len(self._counts)
        start = min(self._start, first) if before else first
        stop = max(self._start + before, first + len(found))
        if stop - start > before:
            wider = torch.zeros(stop - start, dtype=torch.int64, device="cpu")
            wider[self._start - start :][:before] = self._counts
            self._start, self._counts = start, wider
        self._counts[first - start :][: len(found)] += found

    def _set_aside(self, values: Tensor) -> Tensor:
        self._nonfinite += NonFinite(
            int(values.isnan().sum()), int(values.isneginf().sum()), int(values.isposinf().sum())
        )
        return values[values.isfinite()]


class DeferredTally:
    """The same where reading a number means waiting for the device: each tile leaves a row there.

    A row: how many are finite, mean, central moments, extremes; how many are NaN, -inf and inf.
    """

    def __init__(
        self, axis: Axis, device: torch.device, margins: DeferredMargins | None = None
    ) -> None:
        self.axis, self.margins = axis, margins
        self._counts = torch.zeros(axis.bins + 3, dtype=torch.int64, device=device)
        self._one = torch.ones((), dtype=torch.int64, device=device)
        self._edges = _edges(axis, device)
        self._rows = torch.empty(ROWS, 10, dtype=torch.float64, device=device)
        self._used = 0
        self._moments, self._nonfinite = Moments(), NonFinite()

    def add(self, tile: Tensor, scratch: Scratch, row: int = 0) -> None:
        """Reduce and bin one float32 tile, and wait for nothing unless all rows are full."""
        values = tile.reshape(-1)
        if not values.numel():
            return
        if self.margins:
            self.margins.add(tile, row)
        if self._used == len(self._rows):
            self._collect()
        holes = ~values.isfinite()
        self._rows[self._used] = _row(values, holes, scratch)
        self._used += 1
        slots = _slots(values.masked_fill(holes, 0.0), self.axis, self._edges, scratch)
        slots = slots.masked_fill_(holes, self.axis.bins + 2).long()
        self._counts.scatter_add_(0, slots, self._one.expand_as(slots))

    def result(self, **how: str) -> Histogram:
        """Read what the device holds."""
        self._collect()
        counts = self._counts[:-1].cpu().numpy()
        return Histogram(self.axis, counts, moments=self._moments, nonfinite=self._nonfinite, **how)

    def _collect(self) -> None:
        count, mean, m2, m3, m4, low, high, *rare = self._rows[: self._used].cpu().numpy().T
        self._used = 0
        self._moments += merge(count, mean, (m2, m3, m4), (low, high))
        self._nonfinite += NonFinite(*(int(numbers.sum()) for numbers in rare))


def _row(values: Tensor, holes: Tensor, scratch: Scratch) -> Tensor:
    """(10,) float64, see `DeferredTally`; `holes` says where `values` are not finite."""
    count = values.numel() - holes.sum()
    deviation = scratch.deviation[: values.numel()].copy_(values).masked_fill_(holes, 0.0)
    mean = deviation.sum() / count
    deviation.sub_(mean).masked_fill_(holes, 0.0)
    squared = torch.mul(deviation, deviation, out=scratch.squared[: values.numel()])
    numbers = (
        count,
        mean,
        squared.sum(),
        torch.dot(squared, deviation),
        torch.dot(squared, squared),
        values.masked_fill(holes, math.inf).amin(),
        values.masked_fill(holes, -math.inf).amax(),
        values.isnan().sum(),
        values.isneginf().sum(),
        values.isposinf().sum(),
    )
    return torch.stack([number.double() for number in numbers])


def _moments(
    values: Tensor, low: float, high: float, scratch: Scratch, known: GroupMoments | None
) -> Moments:
    """Central moments of one tile about its own mean, in float64, where they are not known."""
    count = values.numel()
    if low == high:  # the mean of equal numbers may round away from them
        return Moments(count, low, 0.0, 0.0, 0.0, low, high)
    if known is not None:
        mean, m2, m3, m4 = (float(one) for one in known.arrays()[1:])
        return Moments(count, mean, m2, m3, m4, low, high)
    deviation = scratch.deviation[:count].copy_(values)
    mean = deviation.mean()
    deviation -= mean
    squared = torch.mul(deviation, deviation, out=scratch.squared[:count])
    third, fourth = torch.dot(squared, deviation), torch.dot(squared, squared)
    m1, m2, m3, m4 = (float(number) for number in (mean, squared.sum(), third, fourth))
    return Moments(count, m1, m2, m3, m4, low, high)


def _edges(axis: Axis, device: torch.device) -> Tensor | None:
    """Of a regular axis; a float axis needs none."""
    return torch.from_numpy(axis.edges).to(device) if isinstance(axis, RegularAxis) else None


def _first_slot(low: float, axis: Axis) -> int:
    """Where the lowest value is counted; at least a slot below which nothing is."""
    if isinstance(axis, RegularAxis):
        return 0
    bits = int(np.float32(low).view(np.int32))
    sign = bits >> 31  # as in `_float_slots`
    return (((bits & 0x7FFFFFFF) ^ sign) - sign >> axis.shift) + 1 - axis.first


def _slots(
    values: Tensor, axis: Axis, edges: Tensor | None, scratch: Scratch, first: int = 0
) -> Tensor:
    """Where each value is counted, from `first` on: 0 underflow, 1.. bins, bins + 1 overflow."""
    if isinstance(axis, RegularAxis):
        assert edges is not None
        return _regular_slots(values, axis, edges)
    return _float_slots(values, axis, scratch, first)


def _float_slots(values: Tensor, axis: FloatAxis, scratch: Scratch, first: int) -> Tensor:
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
    keys += 1 - axis.first - first
    return keys


def _regular_slots(values: Tensor, axis: RegularAxis, edges: Tensor) -> Tensor:
    """Estimate by arithmetic, then set right by the edges: exact, without a search."""
    x = values.double()
    slots = ((x - axis.lo) * (axis.bins / (axis.hi - axis.lo))).clamp_(0, axis.bins - 1).long()
    slots += (x >= edges[slots + 1]).long() - (x < edges[slots]).long()
    slots += 1
    return slots.masked_fill_(x == axis.hi, axis.bins)  # the last bin holds its upper edge
