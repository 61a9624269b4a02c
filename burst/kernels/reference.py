"""The definition of both histograms, in plain float64 steps: slow, and stores everything."""

import torch
from torch import Tensor

from burst.axis import Axis, RegularAxis
from burst.decomposition import GroupMoments, Margins
from burst.histogram import Histogram, NonFinite
from burst.moments import Moments

NAME = "reference"


def histogram(x: Tensor, axis: Axis) -> Histogram:
    """Count each value in the bin whose edges enclose it, by binary search."""
    values = x.float().double().flatten()
    finite = values[torch.isfinite(values)]
    edges = torch.from_numpy(axis.edges).to(finite.device)
    slot = torch.searchsorted(edges, finite, right=True)
    if isinstance(axis, RegularAxis):
        slot[finite == axis.hi] = axis.bins  # the last bin holds its upper edge
    counts = torch.bincount(slot, minlength=axis.bins + 2)
    nonfinite = NonFinite(
        int(values.isnan().sum()), int(values.isneginf().sum()), int(values.isposinf().sum())
    )
    moments = Moments.of(finite.cpu().numpy())
    return Histogram(axis, counts.cpu().numpy(), moments=moments, nonfinite=nonfinite, backend=NAME)


def matmul_histogram(a: Tensor, b: Tensor, axis: Axis) -> Histogram:
    """Form the float32 product, then count it."""
    return histogram(a.float() @ b.float(), axis)


class Accumulator:
    """The sum of such histograms."""

    def __init__(self, axis: Axis, device: torch.device, *, margins: bool = False) -> None:
        self.axis = axis
        self._found: Histogram | None = None
        self._margins: Margins | None = None
        self._keeps_margins = margins

    def add(self, x: Tensor) -> None:
        """Count the entries of `x`."""
        self._merge(histogram(x, self.axis))

    def add_product(self, a: Tensor, b: Tensor, *, precision: str) -> None:
        """Count the entries of a @ b; float32 serves any precision."""
        found = matmul_histogram(a, b, self.axis)
        found.precision = "ieee"
        self._merge(found)
        if self._keeps_margins:
            y = (a.float() @ b.float()).cpu().numpy()
            new = Margins(GroupMoments.of(y), GroupMoments.of(y.T).sums())
            self._margins = new if self._margins is None else self._margins + new

    def margins(self) -> Margins:
        """Moments of the rows and columns of the products so far."""
        assert self._margins is not None
        return self._margins

    def result(self) -> Histogram:
        """What was counted so far."""
        assert self._found is not None
        return self._found

    def _merge(self, found: Histogram) -> None:
        self._found = found if self._found is None else self._found + found
