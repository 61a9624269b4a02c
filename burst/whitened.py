"""The response before and after whitening, entry by entry: histograms of Y, V^(-1/2) Y, W Y."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from burst.adapters import select_blocks
from burst.axis import Axis, FloatAxis
from burst.backbone import Backbone
from burst.collect import split_images
from burst.decorrelation import diagonal_gains
from burst.distributed import rank_and_size, together
from burst.errors import BurstError, EmptyResult, ShapeError
from burst.fingerprint import subject_of
from burst.float64 import to_float64
from burst.forward import read_tokens
from burst.histogram import Histogram
from burst.interaction import response_histogram, response_matrices
from burst.kernels import HistogramAccumulator
from burst.stream import NamedStream, Stream, as_stream
from burst.whitening import Whitening
from burst.whitening_options import WhiteningOptions


class WhitenedEntries(NamedTuple):
    """Histograms of a block's response, before and after.

    Attributes:
        before: of Y.
        after: of W Y.
        diagonal: of V^(-1/2) Y, each row divided by its own deviation, which the whitening was
            fitted with: what `after` is to be compared with. It is `after` itself for the method
            "diagonal", and None where the whitening's file did not hold the deviations.
    """

    before: Histogram
    after: Histogram
    diagonal: Histogram | None = None


def whitened_histogram(w: Tensor, a: Tensor, x: Tensor, axis: Axis | None = None) -> Histogram:
    """Histogram of the entries of W A X^T, for W (d, d), A (d, d) and tokens X (..., d).

    W A is multiplied in float64, on the CPU where the device has none (Apple's MPS), and rounded to
    float32. All three may be of any floating dtype. Without an axis it is `FloatAxis()`.

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
) -> dict[int, WhitenedEntries]:
    """Histograms of Y, V^(-1/2) Y and W Y, by block index, on the images that `whiten` held out.

    Reads those images again. Where none were held out, or where they are not known by name, it
    reads all batches.

    Args:
        model: the one that was whitened.
        batches: as given to `whiten`; what can be iterated over but once is used up by then.
        whitening: what `whiten` made of them.
        options: as given to `whiten`; `blocks` says which are wanted.

    Raises:
        BurstError: a block that was not whitened.
        EmptyResult: nothing was read.
        ImageError: see `ImageStream`.
        UnsupportedModel, ShapeError: see `response_matrix` and `capture`.
    """
    known = [one.block for one in whitening.blocks]
    chosen = known if options.blocks is None else list(options.blocks)
    if not set(chosen) <= set(known):
        raise BurstError(f"blocks {chosen} are not all among those whitened, {known}")
    inner = subject_of(model).model
    matrices = {}
    blocks = select_blocks(inner, chosen)
    for block, a in response_matrices(blocks, **options.response):  # float64 on the CPU, like W A
        found = _matrices(whitening, known.index(block.index), a)
        matrices[block.index] = {name: one.float() for name, one in found.items()}
    stream = as_stream(batches)
    if isinstance(stream, NamedStream) and whitening.record["images"]["held_out"]:
        stream = split_images(stream, options.held_out)[1]
    counted = _count(inner, stream, matrices, options.tokens)
    if whitening.record["method"] == "diagonal":
        return {block: one._replace(diagonal=one.after) for block, one in counted.items()}
    return counted


def _matrices(whitening: Whitening, place: int, a: Tensor) -> dict[str, Tensor]:
    """What takes tokens to each kind of entries, by its name in `WhitenedEntries`; float64."""
    found = {"before": a, "after": whitening.W[place].cpu().double() @ a}
    if whitening.variances is not None and whitening.record["method"] != "diagonal":
        variances = whitening.variances[place].cpu().numpy()
        gains = diagonal_gains(variances, float(whitening.record["floor"]))
        found["diagonal"] = torch.from_numpy(gains)[:, None] * a
    return found


def _count(
    model: nn.Module,
    stream: Stream,
    matrices: dict[int, dict[str, Tensor]],
    tokens: str,
) -> dict[int, WhitenedEntries]:
    counters: dict[tuple[int, str], HistogramAccumulator] = defaultdict(HistogramAccumulator)

    def count(block: int, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        for name, matrix in matrices[block].items():
            here = matrices[block][name] = matrix.to(rows.device)  # a block's own, of several GPUs
            counters[block, name].add_product(here, rows.mT)

    def read() -> tuple[dict[tuple[int, str], Histogram], list[tuple[str, str]]]:
        mine = stream.shard(*rank_and_size())
        read_tokens(model, mine, matrices, count, tokens=tokens)
        return {key: counter.result() for key, counter in counters.items()}, mine.skipped

    parts = together(read)
    whole: dict[tuple[int, str], Histogram] = {}
    for part, _ in parts:
        for key, hist in part.items():
            whole[key] = whole[key] + hist if key in whole else hist
    if not whole:
        stream.check_some_read([bad for _, skipped in parts for bad in skipped])
        raise EmptyResult(f"nothing was read from {stream.source}")
    return {
        block: WhitenedEntries(**{name: whole[block, name] for name in matrices[block]})
        for block in sorted(matrices)
    }
