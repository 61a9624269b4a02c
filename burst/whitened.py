"""The response before and after whitening, entry by entry: histograms of Y and of W Y."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from burst.adapters import select_blocks
from burst.axis import Axis, FloatAxis
from burst.backbone import Backbone
from burst.collect import split_images
from burst.distributed import add_histograms, rank_and_size, together
from burst.errors import BurstError, EmptyResult, ShapeError
from burst.fingerprint import subject_of
from burst.float64 import to_float64
from burst.forward import read_tokens
from burst.histogram import Histogram
from burst.interaction import response_histogram, response_matrices
from burst.kernels import HistogramAccumulator
from burst.stream import NamedStream, Stream, as_stream
from burst.whitening import Whitening, WhiteningOptions

Pair = tuple[Histogram, Histogram]


def whitened_histogram(w: Tensor, a: Tensor, x: Tensor, axis: Axis | None = None) -> Histogram:
    """Histogram of the entries of W A X^T, for W (d, d), A (d, d) and tokens X (..., d).

    W A is multiplied in float64, on the CPU where the device has none (Apple's MPS).

    Raises:
        ShapeError: they do not multiply.
    """
    if w.ndim != 2 or a.ndim != 2 or w.shape[1] != a.shape[0]:
        raise ShapeError(f"W {tuple(w.shape)} and A {tuple(a.shape)} do not multiply")
    # In float64, because the gains of W undo what cancels in A.
    product = (to_float64(w) @ to_float64(a)).float()
    return response_histogram(product.to(x.device), x, axis or FloatAxis())


def whitened_histograms(
    model: nn.Module | Backbone,
    batches: Iterable[Any],
    whitening: Whitening,
    options: WhiteningOptions,
) -> dict[int, Pair]:
    """Histograms of Y and of W Y, by block index, on the images that `whiten` held out.

    Reads those images again. Where none were held out, or where they are not known by name, it
    reads all batches.

    Args:
        model: the one that was whitened.
        batches: as given to `whiten`; what can be iterated over but once is used up by then.
        whitening: what `whiten` made of them.
        options: as given to `whiten`; `blocks` says which are wanted.

    Raises:
        BurstError: a block that was not whitened.
        ImageError: see `ImageStream`.
    """
    known = [one.block for one in whitening.blocks]
    chosen = known if options.blocks is None else list(options.blocks)
    if not set(chosen) <= set(known):
        raise BurstError(f"blocks {chosen} are not all among those whitened, {known}")
    inner = subject_of(model).model
    device = next(inner.parameters()).device
    pairs = {}
    blocks = select_blocks(inner, chosen)
    for block, a in response_matrices(blocks, **options.response):  # float64 on the CPU, like W A
        w = whitening.W[known.index(block.index)]
        pairs[block.index] = a.float().to(device), (w.cpu().double() @ a).float().to(device)
    return _count(inner, _held_out(as_stream(batches), options.held_out), pairs, options.tokens)


def _held_out(stream: Stream, share: float) -> Stream:
    if not isinstance(stream, NamedStream):
        return stream
    held = split_images(stream, share)[1]
    return held if held.count else stream


def _count(
    model: nn.Module,
    stream: Stream,
    pairs: dict[int, tuple[Tensor, Tensor]],
    tokens: str,
) -> dict[int, Pair]:
    counters: dict[tuple[int, int], HistogramAccumulator] = defaultdict(HistogramAccumulator)

    def count(block: int, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        for which, matrix in enumerate(pairs[block]):
            counters[block, which].add_product(matrix, rows.mT)

    def read() -> tuple[dict[tuple[int, int], Histogram], list[tuple[str, str]]]:
        mine = stream.shard(*rank_and_size())
        read_tokens(model, mine, pairs, count, tokens=tokens)
        return {key: counter.result() for key, counter in counters.items()}, mine.skipped

    parts = together(read)
    whole = add_histograms(part for part, _ in parts)
    if not whole:
        stream.check_some_read([bad for _, skipped in parts for bad in skipped])
        raise EmptyResult(f"nothing was read from {stream.source}")
    return {block: (whole[block, 0], whole[block, 1]) for block in sorted(pairs)}
