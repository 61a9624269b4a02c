"""Images in the order of their stream -> groups of neighbours, for intervals over images.

PlannedGroups  of a stream that knows its items: the same ones for any number of processes
GrowingGroups  of any other batches: they double in size as more and more come
GroupedCounter what is counted of each group, by one accumulator after the other
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np

from burst.axis import Axis
from burst.decomposition import Margins
from burst.histogram import Histogram, NonFinite
from burst.kernels import HistogramAccumulator
from burst.moments import Moments

GROUPS = 20  # enough for a jackknife's variance, few enough to keep
MOST = 30  # where their number grows, before pairs are joined


class Piece(NamedTuple):
    """Neighbours in a batch that belong to one group: items first..last, without last."""

    group: int
    first: int
    last: int


class Groups(Protocol):
    """Which group the items of the next batch belong to."""

    def pieces(self, items: int) -> tuple[list[Piece], int]:
        """The next batch's pieces; by how much groups were joined before: 1, or a power of 2."""


class PlannedGroups:
    """`GROUPS` groups of as many items each, as nearly as may be.

    Args:
        batches: names of the items of each batch of the whole stream.
        rank, size: of this process, which has the batches rank, rank + size, ...
        skipped: (name, reason) of items that this process could not read; it may grow. A batch of
            such items alone does not come.
    """

    def __init__(
        self,
        batches: Sequence[Sequence[str]],
        rank: int,
        size: int,
        skipped: Sequence[tuple[str, str]] = (),
    ) -> None:
        *starts, self._total = accumulate(map(len, batches), initial=0)
        waiting = list(zip(starts, batches, strict=True))
        self._waiting, self._skipped = iter(waiting[rank::size]), skipped

    def pieces(self, items: int) -> tuple[list[Piece], int]:
        """See `Groups`."""
        bad = {name for name, _ in self._skipped}
        places: list[int] = []
        while not places:
            start, names = next(self._waiting)
            places = [start + i for i, name in enumerate(names) if name not in bad]
        return list(_runs([place * GROUPS // self._total for place in places[:items]])), 1


class GrowingGroups:
    """From three quarters of `GROUPS` to half as many more; with fewer items, each is a group."""

    def __init__(self) -> None:
        self._seen, self._size = 0, 1

    def pieces(self, items: int) -> tuple[list[Piece], int]:
        """See `Groups`."""
        joined = 1
        while self._seen + items > MOST * self._size:
            self._size *= 2
            joined *= 2
        groups = (np.arange(self._seen, self._seen + items) // self._size).tolist()
        self._seen += items
        return list(_runs(groups)), joined


@dataclass(frozen=True)
class Counted:
    """A histogram with its occupied bins alone, and the margins that go with it."""

    axis: Axis
    bins: np.ndarray[tuple[int], np.dtype[np.uint32]]
    counts: np.ndarray[tuple[int], np.dtype[np.int64]]
    moments: Moments
    nonfinite: NonFinite
    how: Mapping[str, str]
    margins: Margins | None

    @classmethod
    def of(cls, counter: HistogramAccumulator, margins: bool) -> "Counted":
        """What an accumulator has."""
        hist = counter.result()
        flow = hist.values(flow=True)
        bins = np.flatnonzero(flow).astype(np.uint32)
        counts = flow[bins]
        return cls(
            hist.axis,
            bins,
            counts.astype(np.min_scalar_type(counts.max(initial=0))),
            hist.moments,
            hist.nonfinite,
            {"backend": hist.backend, "precision": hist.precision, "kernel": hist.kernel},
            counter.margins() if margins else None,
        )

    @property
    def histogram(self) -> Histogram:
        """As it was."""
        flow = np.zeros(self.axis.bins + 2, np.int64)
        flow[self.bins] = self.counts
        moments, nonfinite = self.moments, self.nonfinite
        return Histogram(self.axis, flow, moments=moments, nonfinite=nonfinite, **self.how)


class GroupedCounter:
    """Counts groups one after the other, and keeps what was counted of each.

    Args:
        make: gives a new accumulator.
        margins: whether it keeps margins.
    """

    def __init__(self, make: Callable[[], HistogramAccumulator], margins: bool) -> None:
        self._make, self._margins = make, margins
        self._open: tuple[int, HistogramAccumulator] | None = None
        self._closed: dict[int, list[Counted]] = {}

    def at(self, group: int) -> HistogramAccumulator:
        """The accumulator to add the group's entries to."""
        if self._open is None or self._open[0] != group:
            self._close()
            self._open = group, self._make()
        return self._open[1]

    def join(self, neighbours: int) -> None:
        """Make one group of so many neighbours."""
        self._close()
        closed, self._closed = self._closed, {}
        for group, parts in closed.items():
            self._closed.setdefault(group // neighbours, []).extend(parts)

    def groups(self) -> dict[int, list[Counted]]:
        """What was counted of each group, in parts."""
        self._close()
        return dict(sorted(self._closed.items()))

    def _close(self) -> None:
        if self._open is not None:
            group, counter = self._open
            self._closed.setdefault(group, []).append(Counted.of(counter, self._margins))
        self._open = None


def _runs(groups: list[int]) -> Iterator[Piece]:
    first = 0
    for i in range(1, len(groups) + 1):
        if i == len(groups) or groups[i] != groups[first]:
            yield Piece(groups[first], first, i)
            first = i
