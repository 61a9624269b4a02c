"""Moments of a product's rows and columns, from sums of powers that its tiles leave.

MarginTally      on the CPU, where a number is read as soon as it is known
DeferredMargins  on a device, which is asked for numbers at the end alone
"""

import numpy as np
import torch
from torch import Tensor

from burst.decomposition import Floats, GroupMoments, GroupSums, Margins, central, group_sums
from burst.errors import ShapeError

FAR = 32.0  # deviations from the origin: beyond, the fourth power loses half of its digits
NEAR = 1 << 16  # columns that give rows an origin, which need not be more than near their means
COLUMN_SUMS = len(GroupSums.names())


class MarginTally:
    """What the tiles of products with the same rows leave, on the CPU.

    Sums of powers are taken about one origin, the mean of the first tile, along rows and columns at
    once. A row that lies far from it is looked at again, about its own mean.
    """

    def __init__(self) -> None:
        self._origin: float | None = None
        self._rows = np.zeros((5, 0))  # count, four sums
        self._exact = GroupMoments(*self._rows)  # of rows far from the origin
        self._strip: Floats | None = None  # (5, n): of the columns being worked on
        self._columns = np.zeros(COLUMN_SUMS)  # about the origin

    def begin(self, a: Tensor, b: Tensor) -> None:
        """Before the product a @ b.

        Raises:
            ShapeError: others had more or fewer rows.
        """
        _check_rows(self._rows, len(a))
        if not self._rows.size:
            self._rows = np.zeros((5, len(a)))
            self._exact = GroupMoments(*self._rows.copy())

    def add(
        self, tile: Tensor, first: int, deviation: Tensor, squared: Tensor, *, finite: bool
    ) -> GroupMoments:
        """Take in a float32 tile, and give the moments of all its finite entries.

        Args:
            tile: (rows, columns), whose first row is the product's `first`; the product's next rows
                follow, until `end_strip`.
            deviation, squared: float64 buffers of at least its size.
            finite: whether all entries are.
        """
        z, square = (buffer[: tile.numel()].view(tile.shape) for buffer in (deviation, squared))
        z.copy_(tile)
        holes = None if finite else ~tile.isfinite()
        if holes is not None:
            z.masked_fill_(holes, 0.0)
        count = _counts(tile, holes)
        if self._origin is None:
            self._origin = float(z.sum()) / max(float(count[0].sum()), 1.0)
        z.sub_(self._origin)
        if holes is not None:
            z.masked_fill_(holes, 0.0)
        torch.mul(z, z, out=square)
        sums = [_both(z), _both(square), _both(z.mul_(square)), _both(square.mul_(square))]
        rows, columns = (np.stack(along) for along in zip(count, *sums, strict=True))
        self._strip = columns if self._strip is None else self._strip + columns
        whole = rows.sum(axis=1)
        self._set_aside(tile, first, rows)
        self._rows[:, first : first + len(tile)] += rows
        return GroupMoments.from_powers(whole[0], self._origin, *whole[1:])

    def end_strip(self) -> None:
        """All rows of some columns have been taken in."""
        if self._strip is None or self._origin is None:
            return
        count, *powers = self._strip
        found = GroupMoments.from_powers(count, self._origin, *powers)
        self._columns += np.array(group_sums(np.float64(self._origin), *found.arrays()))
        self._strip = None

    def result(self) -> Margins:
        """What was taken in so far."""
        origin, (count, *powers) = self._origin or 0.0, self._rows
        rows = GroupMoments.from_powers(count, origin, *powers)
        if self._exact.count.any():
            rows += self._exact
        return Margins(rows, GroupSums.about_origin(origin, *self._columns))

    def _set_aside(self, tile: Tensor, first: int, rows: Floats) -> None:
        """Move rows far from the origin, as `rows` has them, over to the exact ones."""
        count, s1, s2 = rows[:3]
        far = np.flatnonzero(s1 * s1 * (1 + FAR**-2) >= count * s2)
        far = far[s1[far] != 0]
        if not far.size:
            return
        found = GroupMoments.of(tile[torch.from_numpy(far)].numpy())
        rows[:, far] = 0.0
        apart = GroupMoments(*np.zeros((5, self._rows.shape[1])))
        for whole, part in zip(apart.arrays(), found.arrays(), strict=True):
            whole[first + far] = part
        self._exact = self._exact + apart


class DeferredMargins:
    """The same where reading a number means waiting for the device: all sums stay there, float64.

    Sums over the rows are about each row's mean in the first product, sums over the columns about
    the mean of these: entries that are not finite are holes.

    Attributes:
        rows: (5, m): for each row its count and four sums of powers, to be added to.
        row_origins: (m,): about what.
        origin: (): about what the sums over columns are.
        sums: (14,): over the columns, as `group_sums` has them, to be added to.
    """

    def __init__(self, device: torch.device) -> None:
        self.rows = torch.zeros(5, 0, dtype=torch.float64, device=device)
        self.row_origins, self.origin = self.rows[0], torch.zeros_like(self.rows.sum())
        self.sums = self.rows.new_zeros(COLUMN_SUMS)
        self._strip: Tensor | None = None

    def begin(self, a: Tensor, b: Tensor) -> None:
        """Before the product a @ b.

        Raises:
            ShapeError: others had more or fewer rows.
        """
        _check_rows(self.rows, len(a))
        if not self.rows.numel() and len(a):
            self.rows = self.rows.new_zeros(5, len(a))
            near = b[:, :NEAR].double().mean(1)
            self.row_origins = (a.double() @ near).nan_to_num(0.0, 0.0, 0.0)
            self.origin = self.row_origins.mean()

    def add(self, tile: Tensor, first: int) -> None:
        """Take in a float32 tile by PyTorch operations; see `MarginTally.add`."""
        finite = tile.isfinite()
        y, rows = tile.double(), slice(first, first + len(tile))
        self.rows[:, rows] += _powers(y - self.row_origins[rows, None], finite, 1)
        found = _powers(y - self.origin, finite, 0)
        self._strip = found if self._strip is None else self._strip + found

    def end_strip(self) -> None:
        """All rows of some columns have been taken in."""
        if self._strip is None:
            return
        count, *powers = self._strip
        d, *moments = central(count, *powers)
        self.sums += torch.stack(group_sums(self.origin, count, self.origin + d, *moments))
        self._strip = None

    def result(self) -> Margins:
        """Read what the device holds."""
        count, *powers = self.rows.cpu().numpy()
        rows = GroupMoments.from_powers(count, self.row_origins.cpu().numpy(), *powers)
        columns = GroupSums.about_origin(self.origin.item(), *self.sums.cpu().numpy())
        return Margins(rows, columns)


def _check_rows(known: Floats | Tensor, rows: int) -> None:
    """Refuse another number of rows than the sums `known` (5, m) are of, if they are of any.

    Raises:
        ShapeError: it is another.
    """
    if known.shape[1] not in (0, rows):
        raise ShapeError(
            f"products of {known.shape[1]} rows were added before, and this one has {rows}; "
            "give each number of rows an accumulator"
        )


def _counts(tile: Tensor, holes: Tensor | None) -> tuple[Floats, Floats]:
    """How many finite entries each row and each column has."""
    m, n = tile.shape
    if holes is None:
        return np.full(m, float(n)), np.full(n, float(m))
    return n - holes.sum(1).double().numpy(), m - holes.sum(0).double().numpy()


def _both(power: Tensor) -> tuple[Floats, Floats]:
    """Sums along the rows, and along the columns."""
    return power.sum(1).numpy(), power.sum(0).numpy()


def _powers(d: Tensor, finite: Tensor, along: int) -> Tensor:
    """Count and sums of powers 1 to 4, over one dimension."""
    d = d.masked_fill(~finite, 0.0)
    square = d * d
    powers = finite.double(), d, square, square * d, square * square
    return torch.stack([power.sum(along) for power in powers])
