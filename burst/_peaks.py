"""The largest entries of a product A X^T with where they stand, and its energy by row and column.

Tile by tile, so that the product is never held; parts of it add up to the whole.
"""

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burst.float64 import to_float64
from burst.precision import plain_float32

CPU_TILE = 1 << 19  # entries
GPU_TILE = 1 << 24

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
N = TypeVar("N", np.float64, np.int64)


@dataclass
class Peaks:
    """The k largest |entries|, largest first, and sums of squares.

    Of equal ones the first comes first: by item, then by token, then by dimension. So which they
    are depends on neither tiles nor processes.

    Attributes:
        k: how many are kept.
        value: (at most k,) float32 entries with their sign.
        item, token, dimension: (as many,) int64, the column's two numbers and the row.
        by_dimension: (d,) float64 sums of squares of the rows.
        by_token: (most tokens of an item,) float64 sums of squares of the columns with this token.
        tokens: how many columns these are.
    """

    k: int
    value: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    item: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    token: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    dimension: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    by_dimension: Floats = field(default_factory=lambda: np.zeros(0))
    by_token: Floats = field(default_factory=lambda: np.zeros(0))
    tokens: Integers = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, a: Tensor, x: Tensor, item: Tensor, token: Tensor) -> None:
        """Take in the product of a (d, m) with the tokens x (n, m) of these numbers, (n,) each.

        Numbers of items do not fall from one call to the next.
        """
        columns = max(1, (CPU_TILE if x.device.type == "cpu" else GPU_TILE) // len(a))
        by_dimension = torch.zeros(len(a), dtype=torch.float64, device="cpu")
        tokens = int(token.max()) + 1 if len(token) else 0
        by_token = torch.zeros(tokens, dtype=torch.float64, device="cpu")
        with plain_float32(x.device):
            for start in range(0, len(x), columns):
                part = slice(start, start + columns)
                y = a @ x[part].mT
                squares = to_float64(y).square()  # of float32 they would overflow, or vanish
                by_dimension += squares.sum(dim=1).cpu()
                by_token.index_add_(0, token[part], squares.sum(dim=0).cpu())
                self._keep(y, item[part], token[part])
        self.by_dimension = _sum(self.by_dimension, by_dimension.numpy())
        self.by_token = _sum(self.by_token, by_token.numpy())
        self.tokens = _sum(self.tokens, torch.bincount(token, minlength=len(by_token)).numpy())

    @property
    def energy(self) -> float:
        """Sum of the squares of all entries."""
        return float(self.by_dimension.sum())

    def moved(self, items: int) -> "Peaks":
        """The same where so many items come before."""
        return Peaks(**vars(self) | {"item": self.item + items})

    def __add__(self, other: "Peaks") -> "Peaks":
        whole = Peaks(self.k)
        for name in ("by_dimension", "by_token", "tokens"):
            setattr(whole, name, _sum(getattr(self, name), getattr(other, name)))
        whole._take(*([getattr(one, name) for one in (self, other)] for name in _ENTRY))
        return whole

    def _keep(self, y: Tensor, item: Tensor, token: Tensor) -> None:
        """Those of a tile's entries that are among the k largest so far."""
        low, high = (float(one) for one in torch.aminmax(y))
        # A later one that only equals the k-th comes behind it.
        least = abs(float(self.value[-1])) if len(self.value) == self.k else -1.0
        if max(-low, high) <= least:
            return
        size = y.abs().flatten()
        kth = size.topk(min(self.k, len(size))).values[-1]
        at = (size >= kth.clamp(min=least)).nonzero().squeeze(1)
        row, column = (at // y.shape[1]).cpu(), (at % y.shape[1]).cpu()
        found = y.flatten()[at].cpu(), item[column], token[column], row
        pairs = zip(_ENTRY, found, strict=True)
        self._take(*([getattr(self, name), new.numpy()] for name, new in pairs))

    def _take(self, *parts: list[NDArray[np.generic]]) -> None:
        value, item, token, dimension = (np.concatenate(one) for one in parts)
        order = np.lexsort((dimension, token, item, -np.abs(value)))[: self.k]
        for name, one in zip(_ENTRY, (value, item, token, dimension), strict=True):
            setattr(self, name, one[order])


_ENTRY = ("value", "item", "token", "dimension")


def _sum(one: NDArray[N], other: NDArray[N]) -> NDArray[N]:
    """The sum of two vectors of which the shorter one ends in zeros."""
    if len(one) < len(other):
        one, other = other, one
    whole = one.copy()
    whole[: len(other)] += other
    return whole
