"""The extremes of A X^T themselves: in which image, which token, which dimension they are.

A survey says how heavy the tails are; this says what is in them, whether it is the same few
dimensions or tokens every time, and what it would be by chance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from burst._peaks import Peaks
from burst.adapters import AttentionBlock, SkippedBlock, measurable_blocks, warn_of_omissions
from burst.backbone import Backbone
from burst.distributed import rank_and_size, together
from burst.errors import BurstError, EmptyResult, check_known
from burst.extremes_tables import (
    MODEL,
    SOURCES,
    TOKENS_NULL,
    WEIGHTS_NULL,
    Key,
    TableWriter,
)
from burst.fingerprint import check_tokens, identity, subject_of
from burst.forward import TOKENS, read_tokens
from burst.interaction import interaction
from burst.nulls import content_generator, permuted_columns, permuted_weights
from burst.patches import Origins, PatchGrid, prefix_names
from burst.progress import Progress
from burst.projection import projection
from burst.stream import NamedStream, Stream, as_stream


@dataclass(frozen=True, eq=False)
class Extremes:
    """The largest entries of each block's response, and which dimensions and tokens carry energy.

    Energy is the sum of squares of all entries, not only of the largest. `source` is "model";
    "permuted weights": the response of W_q and W_k with their entries in random order, to the
    model's own tokens; or "permuted tokens": that of the model's own weights, to tokens of which
    each dimension's values are in random order (`burst.permuted_columns`). Blocks count from 0.

    Attributes:
        table: the k largest |entries| of each block of the model, largest first: `block`, `rank`
            (from 1), `value`, `image` (its name where the stream knows names, else its number),
            `token` (its place in the sequence), `kind` ("patch", "class", "register 0", ... or
            "token" where there is no picture), `row` and `column` in the picture's grid of patches
            (missing where there is none), `dimension` (the row of A X^T).
        dimensions: `source`, `block`, `dimension`, `energy`, `share` of the block's energy,
            `extremes` (how many of the k are in it), and `massive`: whether the share is above that
            of every dimension under permuted weights; missing for nulls, and without them.
        tokens: `source`, `block`, `token`, `kind`, `row`, `column`, `count` (how many tokens stood
            there), `energy`, `share`, `extremes`, and `massive`: whether the share is above that of
            every place under permuted tokens; missing likewise.
        summary: a row a source and block: `largest` |entry|; `rms` of all entries; `times_rms`,
            their quotient; `dimensions`, `tokens` and `images`, how many different ones there are
            among the k; `most_in_a_dimension`, `most_in_a_token`, how many of the k share one;
            `top_dimension_share` of the energy; `dimensions_third`, `dimensions_half`, how few
            dimensions hold a third and half of it; `top_token_share` and `prefix_share`, of the
            tokens in front of the patches.
        skipped: blocks that could not be measured.
        bad_images: (name, reason) of each image that was left out.
        record: model, images and options, as plain data.
    """

    table: pd.DataFrame
    dimensions: pd.DataFrame
    tokens: pd.DataFrame
    summary: pd.DataFrame
    skipped: tuple[SkippedBlock, ...]
    bad_images: tuple[tuple[str, str], ...]
    record: dict[str, Any] = field(repr=False)


def extremes(
    model: nn.Module | Backbone,
    batches: Iterable[Any],
    *,
    blocks: Iterable[int] | None = None,
    k: int = 20,
    tokens: str = "all",
    nulls: bool = True,
    seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
) -> Extremes:
    """The k largest |entries| of each block's response Y = A X^T, in one pass over batches.

    They are exact: Y is computed tile by tile, and a tile is searched only if its largest entry is
    among the k largest so far. Equal entries are taken in the order of images, tokens, dimensions,
    so the result depends on neither tiles nor processes. In a process group all processes get the
    whole; who shares the batches out, `burst.survey` says. Images without names are then numbered
    one process after the other.

    Args:
        model: any with attention that has an adapter, or a backbone from `load_backbone`.
        batches: as for `burst.survey`.
        blocks: indices as in `find_blocks`; None for all that can be measured.
        k: how many entries of each block; at least 1.
        tokens: "all", or "patch" to leave class, distillation and register tokens out.
        nulls: measure the two nulls beside, at three times the products: see `Extremes`.
        seed: of the order of the permuted weights.
        name: what the model is called; a backbone's own name, or its class.
        progress: called as progress(batches done, batches in all, or 0 if that is not known).

    Raises:
        BurstError: k below 1; a block index out of range; tokens that are not finite.
        UnknownName: another kind of tokens.
        UnsupportedModel, HookNeverFired: see `burst.survey`.
        EmptyResult: no token was read.
        ImageError: see `ImageStream`.

    Warns:
        OmittedTermWarning: once, if the scores have terms that W_q W_k^T leaves out.
    """
    check_known("kind of tokens", tokens, TOKENS)
    check_tokens(model, tokens)
    if k < 1:
        raise BurstError(f"k is {k}; ask for at least 1 entry")
    subject = subject_of(model, name)
    found, skipped, omitted = measurable_blocks(subject.model, blocks)
    warn_of_omissions(subject.name, omitted)
    stream = as_stream(batches)
    mine = Origins(stream.shard(*rank_and_size()), subject.model, found, tokens)
    gauge = _Gauge(found, mine, _items(stream), subject.name)
    gauge.prepare(k, seed if nulls else None)

    def measure() -> _Part:
        read_tokens(subject.model, mine, gauge.blocks, gauge.take, tokens=tokens, progress=progress)
        return _Part(gauge.peaks, gauge.grids, mine.skipped, mine.count - len(mine.skipped))

    parts = together(measure)
    bad = tuple(one for part in parts for one in part.skipped)
    stream.check_some_read(bad)
    peaks = _added(parts, named=isinstance(stream, NamedStream))
    if not any(len(one.tokens) for one in peaks.values()):
        raise EmptyResult(f"no token was read from {stream.source}, so there are no extremes")
    grids = {block: grid for part in parts for block, grid in part.grids.items()}
    names = {block: prefix_names(subject.model, n) for block, n in mine.prefixes.items()}
    write = TableWriter(_items(stream), names, grids)
    record: dict[str, Any] = {
        **identity(subject),
        "images": stream.record | {"count": sum(part.read for part in parts)},
        "options": {"k": k, "tokens": tokens, "nulls": nulls, "seed": seed},
    }
    return Extremes(**write.tables(peaks), skipped=skipped, bad_images=bad, record=record)


class _Part(NamedTuple):
    """What one process found."""

    peaks: dict[Key, Peaks]
    grids: dict[int, PatchGrid | None]
    skipped: list[tuple[str, str]]
    read: int


class _Gauge:
    """Takes tokens block by block, and multiplies them with what the block's weights and nulls."""

    def __init__(
        self,
        blocks: Sequence[AttentionBlock],
        origins: Origins,
        items: Sequence[str] | None,
        model: str,
    ) -> None:
        self.blocks = {block.index: block for block in blocks}
        self.peaks: dict[Key, Peaks] = {}
        self.grids: dict[int, PatchGrid | None] = {}
        self._origins, self._model = origins, model
        self._numbers_of = {name: place for place, name in enumerate(items or ())}
        self._matrices: dict[Key, Tensor] = {}

    def prepare(self, k: int, seed: int | None) -> None:
        """Read the weights; with a seed, those of the nulls too."""
        for index, block in self.blocks.items():
            w_q, w_k = projection(block.attention, name=block.attention_name).whole()
            self._matrices[MODEL, index] = interaction(w_q, w_k)
            if seed is not None:
                order = torch.Generator().manual_seed(seed)
                shuffled = [permuted_weights(w, order) for w in (w_q, w_k)]
                self._matrices[WEIGHTS_NULL, index] = interaction(*shuffled)
                self._matrices[TOKENS_NULL, index] = self._matrices[MODEL, index]
        self.peaks = {key: Peaks(k) for key in self._matrices}

    def take(self, block: int, x: Tensor) -> None:
        """Measure what one block reads of the batch that is being worked on."""
        places = self._origins.places(block, x)
        rows = x.reshape(-1, x.shape[-1]).float()
        if not rows.isfinite().all():
            name = self.blocks[block].name
            raise BurstError(f"{name}: the tokens of {self._model} are not finite")
        known = self.grids.setdefault(block, places.grid)
        if known != places.grid:  # images of several sizes: then a token has no one place
            self.grids[block] = None
        item = self._numbers(places.item)
        for source in SOURCES:
            if (a := self._matrices.get((source, block))) is not None:
                shuffle = source == TOKENS_NULL
                read = permuted_columns(rows, content_generator(rows)) if shuffle else rows
                self.peaks[source, block].add(a, read, item, places.token)

    def _numbers(self, item: Tensor) -> Tensor:
        """Of images in the whole stream, where it has names; else in what this process reads."""
        names = self._origins.names
        if names is None:
            return item + self._origins.first
        return torch.tensor([self._numbers_of[name] for name in names], device="cpu")[item]


def _items(stream: Stream) -> list[str] | None:
    """The names of all that a stream reads, in order; None where it knows none."""
    if not isinstance(stream, NamedStream):
        return None
    return [name for batch in stream.batch_names for name in batch]


def _added(parts: Sequence[_Part], *, named: bool) -> dict[Key, Peaks]:
    """The peaks of all processes; without names one process's images come behind another's."""
    before = [0, *accumulate(part.read for part in parts)]
    whole: dict[Key, Peaks] = {}
    for items, part in zip(before, parts, strict=False):
        for key, one in part.peaks.items():
            moved = one if named else one.moved(items)
            whole[key] = whole[key] + moved if key in whole else moved
    return dict(sorted(whole.items(), key=lambda pair: (SOURCES.index(pair[0][0]), pair[0][1])))
