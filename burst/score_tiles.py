"""The scores of one attention, head by head and tile by tile: no n x n map is made or kept.

Scores   which queries count, and the tiles of each head
Product  scores that fused attention makes of queries, keys and a mask
Given    scores that a softmax is given whole, as the model has made them
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from burst.errors import UnsupportedModel
from burst.kernels._torch import CPU_TILE, GPU_TILE
from burst.precision import plain_float32

Shape: TypeAlias = tuple[int, int, int, int]
# Additive masks, and masked scores, are -inf, the least number of a dtype, or -10,000.
MASKED = -9e3


class Tile(NamedTuple):
    """Some queries of one head against all keys.

    Attributes:
        logits: (r, n_k) float32; -inf where a mask forbids a query its key.
        masked: whether there is such an entry.
        first: (r,) which key is each query's first token; None if that is key 0 for all.
        tokens: whether the keys are the tokens that ask, in their order; where they are fewer, they
            come from a reduced map. Extra keys stand behind them.
    """

    logits: Tensor
    masked: bool = False
    first: Tensor | None = None
    tokens: bool = True

    def seen(self) -> Tensor:
        """The logits that no mask forbids."""
        return self.logits[self.logits != -math.inf] if self.masked else self.logits


class Source(Protocol):
    """Where the scores come from."""

    @property
    def shape(self) -> Shape:
        """(B, h, n_q, n_k), where B counts windows too."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    def tile(self, head: int, batch: slice, queries: slice) -> Tensor:
        """(b, q, n_k) float32, -inf where masked, in memory of its own."""

    @property
    def masked(self) -> bool:
        """Whether a tile can hold -inf."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What the softmax of one attention is given: logits, masks applied.

    Attributes:
        source: makes the tiles; the model's own queries and keys, or scores.
        keep: (B, n_q) bool, False where a query is padding; None where none is.
        prefix: how many queries in front do not count.
    """

    source: Source
    keep: Tensor | None = None
    prefix: int = 0

    @property
    def shape(self) -> Shape:
        """(B, h, n_q, n_k): B counts windows where attention is windowed."""
        return self.source.shape

    @property
    def heads(self) -> int:
        """h, of queries."""
        return self.shape[1]

    def counting(self, keep: Tensor | None, prefix: int, name: str) -> "Scores":
        """The same without the queries that are padding, or among the first `prefix`.

        Args:
            keep: (B, n_q) bool, False where a query is padding; None where none is.
            prefix: how many queries in front do not count.
            name: what errors call the block.

        Raises:
            UnsupportedModel: `keep` speaks of other tokens than those that ask here.
        """
        asked = self.shape[0], self.shape[2]
        if keep is not None and keep.shape != asked:
            raise UnsupportedModel(
                f"the attention mask is {tuple(keep.shape)} and the queries of {name} are {asked}: "
                "which of them are padding is not known; give batches without padding"
            )
        return replace(self, keep=keep, prefix=prefix)

    def tiles(self, head: int, first: int = 0, last: int | None = None) -> Iterator[Tile]:
        """Those of one head, for all queries that count, of items first..last without last."""
        batch, _, queries, keys = self.shape
        stop = batch if last is None else last
        size = CPU_TILE if self.source.device.type == "cpu" else GPU_TILE
        rows = max(1, min(queries - self.prefix, size // max(keys, 1)))
        many = max(1, size // max(rows * keys, 1))
        starts = None if self.keep is None else self.keep.int().argmax(dim=1)
        for i in range(first, stop, many):
            for j in range(self.prefix, queries, rows):
                yield self._tile(head, slice(i, min(i + many, stop)), slice(j, j + rows), starts)

    def whole(self) -> Tensor:
        """(B, h, n_q, n_k) float32 of all queries; for small inputs, as all of it is made."""
        everything = slice(None)
        heads = (self.source.tile(head, everything, everything) for head in range(self.heads))
        return torch.stack(list(heads), dim=1)

    def _tile(self, head: int, batch: slice, queries: slice, first: Tensor | None) -> Tile:
        logits, masked = self.source.tile(head, batch, queries), self.source.masked
        tokens = self.shape[3] >= self.shape[2]
        if self.keep is None or first is None:
            return Tile(logits.flatten(0, 1), masked, None, tokens)
        keep = self.keep[batch, queries]
        place = first[batch, None].expand(keep.shape)
        return Tile(logits[keep], masked, place[keep], tokens)


@dataclass(frozen=True, eq=False)
class Product:
    """q k^T times a scale, with a mask.

    Attributes:
        q: (B, h, n_q, d_h); with windows (B, h, windows, n_q, d_h), or windows before heads.
        k: the same of n_k keys; a divisor of h heads, of which neighbouring queries share one.
        axis: where q and k have their heads.
        scale: what q k^T is multiplied by.
        masks: of the scores' shape: bool, False where a key is forbidden, or numbers to add.
        causal: whether a query may see no key of a higher index.
    """

    q: Tensor
    k: Tensor
    axis: int
    scale: float
    masks: tuple[Tensor, ...]
    causal: bool

    @property
    def shape(self) -> Shape:
        """(B, h, n_q, n_k)."""
        return _shape((*self.q.shape[:-1], self.k.shape[-2]), self.axis)

    @property
    def device(self) -> torch.device:
        """That of q."""
        return self.q.device

    @property
    def masked(self) -> bool:
        """Whether there are masks."""
        return self.causal or bool(self.masks)

    def tile(self, head: int, batch: slice, queries: slice) -> Tensor:
        """(b, q, n_k) float32."""
        group = self.shape[1] // self.k.shape[self.axis]
        q = _of_head(self.q, self.axis, head)[batch, queries]
        k = _of_head(self.k, self.axis, head // group)[batch]
        with plain_float32(self.device):
            logits = torch.bmm(q.float() * self.scale, k.float().mT)
        for mask in self.masks:
            _apply(logits, _of_head(mask, self.axis, head)[batch, queries])
        if self.causal:
            keys, asking = (torch.arange(n, device=self.device) for n in self.shape[:1:-1])
            logits.masked_fill_(keys > asking[queries, None], -math.inf)
        return logits


@dataclass(frozen=True, eq=False)
class Given:
    """Scores that the model has made.

    Attributes:
        x: (B, h, n_q, n_k); with windows (B, h, windows, n_q, n_k), or windows before heads.
        axis: where x has its heads.
    """

    x: Tensor
    axis: int

    @property
    def shape(self) -> Shape:
        """(B, h, n_q, n_k)."""
        return _shape(tuple(self.x.shape), self.axis)

    @property
    def device(self) -> torch.device:
        """That of x."""
        return self.x.device

    @property
    def masked(self) -> bool:
        """Always: what the model masked is seen by its value alone."""
        return True

    def tile(self, head: int, batch: slice, queries: slice) -> Tensor:
        """(b, q, n_k) float32, never the model's own memory."""
        logits = _of_head(self.x, self.axis, head)[batch, queries].float()
        return logits.masked_fill(logits <= MASKED, -math.inf)


def _shape(shape: tuple[int, ...], axis: int) -> Shape:
    around = math.prod(shape[:-2]) // max(shape[axis], 1)
    return around, shape[axis], shape[-2], shape[-1]


def _of_head(x: Tensor, axis: int, head: int) -> Tensor:
    """(B, n, ...), where B counts windows too."""
    return x.select(axis, head).flatten(0, -3)


def _apply(logits: Tensor, mask: Tensor) -> None:
    if mask.dtype == torch.bool:
        logits.masked_fill_(~mask, -math.inf)
    else:
        logits.add_(mask)
        logits.masked_fill_(mask <= MASKED, -math.inf)
