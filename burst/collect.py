"""A model run over batches -> second moments of what its attention reads: all whitening needs.

collect_moments  one pass over batches -> TokenMoments
collect_split    the same, with some held out
split_images     a stream -> one to fit on and one held out
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import count
from typing import Any, TypeVar

from torch import Tensor, nn

from burst.adapters import select_blocks
from burst.backbone import Backbone
from burst.distributed import rank_and_size, together
from burst.errors import BurstError, EmptyResult, check_known
from burst.fingerprint import Subject, check_tokens, subject_of
from burst.forward import TOKENS, read_tokens
from burst.progress import Progress
from burst.second_moments import SecondMoments, TokenMoments
from burst.stream import GivenBatches, NamedStream, Stream, as_stream

S = TypeVar("S", bound=NamedStream)


def collect_moments(
    model: nn.Module | Backbone,
    batches: Iterable[Any],
    *,
    blocks: Iterable[int] | None = None,
    tokens: str = "all",
    progress: Progress | None = None,
) -> TokenMoments:
    """Second moments of what the blocks' attention reads, in one pass over batches.

    Each block's tokens are added up inside its forward hook, on the device of the model (see
    `SecondMoments.of`), so memory does not grow with the number of batches. In a process group all
    processes get the whole, the same up to float64 rounding however many there are; who shares
    the batches out, `burst.survey` says.

    Args:
        model: any with attention, or a backbone from `load_backbone`.
        batches: as for `burst.survey`.
        blocks: indices as in `find_blocks`; None for all.
        tokens: "all", or "patch" to leave class, distillation and register tokens out.
        progress: called as progress(batches done, batches in all, or 0 if that is not known).

    Raises:
        BurstError: a block index out of range; tokens that are not finite, with their block.
        UnknownName: another kind of tokens.
        UnsupportedModel, HookNeverFired: see `capture`; for "patch" see `num_prefix_tokens`.
        EmptyResult: nothing was read.
        ImageError: see `ImageStream`.
    """
    check_tokens(model, tokens)
    stream = as_stream(batches)
    collector = _Collector(subject_of(model), blocks, tokens)
    return collector.run(stream, progress)[0]


def collect_split(
    model: nn.Module | Backbone,
    batches: Iterable[Any],
    share: float,
    *,
    blocks: Iterable[int] | None = None,
    tokens: str = "all",
    progress: Progress | None = None,
) -> tuple[TokenMoments, TokenMoments | None]:
    """Moments to fit on, and moments of items held out: every k-th, k = round(1 / share).

    Of images from `images_for` it is every k-th image, see `split_images`. Any other batches are
    read once, as nobody knows whether they would come in the same order again, and it is every k-th
    batch. None is held out where there are fewer than k, or where none of them can be read.

    Args:
        model, batches, blocks, tokens, progress: as for `collect_moments`.
        share: of the items to hold out, up to one half; 0 for none.

    Raises:
        BurstError: share is outside 0..1/2; or see `collect_moments`.
    """
    every = held_out_period(share)
    check_tokens(model, tokens)
    stream = as_stream(batches)
    collector = _Collector(subject_of(model), blocks, tokens)
    if not isinstance(stream, NamedStream):
        fitted, held = collector.run(stream, progress, every=every)
        return fitted, held if held.images else None
    fitting, out = split_images(stream, share)
    if progress:
        progress = _joined(progress, (fitting, out))
    fitted = collector.run(fitting, progress)[0]
    held = collector.run(out, progress, may_be_empty=True)[0]
    if held.images:
        return fitted, held
    return replace(fitted, bad_images=fitted.bad_images + held.bad_images), None


def _joined(progress: Progress, parts: Sequence[Stream]) -> Progress:
    """One progress over several streams, one after the other."""
    total = sum(part.shard(*rank_and_size()).batches for part in parts)
    steps = count(start=1)
    return lambda *_: progress(next(steps), total)


class _Collector:
    """Adds up the tokens of a model's blocks."""

    def __init__(self, subject: Subject, blocks: Iterable[int] | None, tokens: str) -> None:
        check_known("kind of tokens", tokens, TOKENS)
        self._subject, self._tokens = subject, tokens
        self._names = {b.index: b.name for b in select_blocks(subject.model, blocks)}

    def run(
        self,
        stream: Stream,
        progress: Progress | None,
        *,
        every: int = 0,
        may_be_empty: bool = False,
    ) -> tuple[TokenMoments, TokenMoments]:
        """Moments of a stream, on every process; those of every `every`-th batch apart."""
        parts = together(lambda: self._read(stream.shard(*rank_and_size()), progress, every))
        bad = tuple(one for part in parts for one in part[0].bad_images)
        if not may_be_empty and not any(part[0].blocks for part in parts):
            stream.check_some_read(bad)
            raise EmptyResult(f"nothing was read from {stream.source}, so there are no moments")
        fitted, held = (_added([part[i] for part in parts]) for i in (0, 1))
        record = (stream.record,)
        return (
            replace(fitted, bad_images=bad, sources=record),
            replace(held, sources=record),
        )

    def _read(
        self, mine: Stream, progress: Progress | None, every: int
    ) -> tuple[TokenMoments, TokenMoments]:
        found: tuple[dict[int, SecondMoments], ...] = ({}, {})

        def is_held(batch: int) -> bool:
            return every > 0 and batch % every == every - 1

        def add(block: int, x: Tensor) -> None:
            new = SecondMoments.of(x)
            if not new.is_finite():
                raise BurstError(
                    f"{self._names[block]}: the tokens of {self._subject.name} are not finite"
                )
            part = found[isinstance(mine, GivenBatches) and is_held(len(mine.sizes) - 1)]
            part[block] = part[block] + new if block in part else new

        read_tokens(
            self._subject.model, mine, self._names, add, tokens=self._tokens, progress=progress
        )
        held = 0
        if isinstance(mine, GivenBatches):
            held = sum(size for i, size in enumerate(mine.sizes) if is_held(i))
        fitted = self._moments(found[0], mine.count - len(mine.skipped) - held)
        return replace(fitted, bad_images=tuple(mine.skipped)), self._moments(found[1], held)

    def _moments(self, found: dict[int, SecondMoments], items: int) -> TokenMoments:
        return TokenMoments(
            {block: found[block].to("cpu") for block in sorted(found)},
            self._subject.name,
            self._subject.weights_sha256,
            self._tokens,
            items,
            (),
            qk_sha256=self._subject.qk_sha256,
        )


def _added(parts: Sequence[TokenMoments]) -> TokenMoments:
    """The moments of all processes, some of which may not have read an item."""
    full = [part for part in parts if part.blocks]
    return reduce(operator.add, full) if full else parts[0]


def held_out_period(share: float) -> int:
    """k, if every k-th item is to be held out; 0 if none is.

    Raises:
        BurstError: share is outside 0..1/2.
    """
    if not 0 <= share <= 0.5:
        raise BurstError(f"the share of images to hold out is {share}; it must lie in 0..0.5")
    return round(1 / share) if share else 0


def split_images(images: S, share: float) -> tuple[S, S]:
    """Two streams over a stream's images: one to fit on, one held out.

    The images are in random order, so every k-th is held out, k = round(1 / share). This goes by an
    image's place in the stream: it does not depend on batches or processes. The images of a batch
    that stay are read together as before.

    Args:
        images: a whole stream, not a shard.
        share: of the images to hold out, up to one half; 0 for none.

    Returns:
        The stream to fit on, which is never empty, and the one held out, which is where there are
        fewer than k images.

    Raises:
        BurstError: share is outside 0..1/2.
    """
    every = held_out_period(share) or images.count + 1
    fitting: list[list[str]] = []
    held: list[str] = []
    place = 0
    for batch in images.batch_names:
        last = [(place + i) % every == every - 1 for i in range(len(batch))]
        fitting.append([name for name, out in zip(batch, last, strict=True) if not out])
        held += [name for name, out in zip(batch, last, strict=True) if out]
        place += len(batch)
    size = max(len(batch) for batch in images.batch_names)
    batches = [held[i : i + size] for i in range(0, len(held), size)]
    return images.of_batches([batch for batch in fitting if batch]), images.of_batches(batches)
