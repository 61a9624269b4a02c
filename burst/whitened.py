"""The response before and after whitening, entry by entry: histograms of Y and of W Y."""

from torch import Tensor

from burst.axis import Axis, FloatAxis
from burst.backbone import Backbone
from burst.distributed import add_histograms, rank_and_size, together
from burst.errors import BurstError, EmptyResult, ShapeError
from burst.float64 import to_float64
from burst.forward import read_tokens
from burst.histogram import Histogram
from burst.images import ImageStream
from burst.interaction import response_histogram, response_matrices
from burst.second_moments import split_images
from burst.tokens import select_blocks
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
    backbone: Backbone, images: ImageStream, whitening: Whitening, options: WhiteningOptions
) -> dict[int, Pair]:
    """Histograms of Y and of W Y, by block index, on the images that `whiten` held out.

    Reads those images again, or all where none were held out.

    Args:
        backbone: the one that was whitened.
        images: as given to `whiten`.
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
    held = split_images(images, options.held_out)[1]
    device = next(backbone.model.parameters()).device
    pairs = {}
    blocks = select_blocks(backbone.model, chosen)
    for block, a in response_matrices(blocks, **options.response):  # float64 on the CPU, like W A
        w = whitening.W[known.index(block.index)]
        pairs[block.index] = a.float().to(device), (w.cpu().double() @ a).float().to(device)
    return _count(backbone, held if held.count else images, pairs, options.tokens)


def _count(
    backbone: Backbone,
    images: ImageStream,
    pairs: dict[int, tuple[Tensor, Tensor]],
    tokens: str,
) -> dict[int, Pair]:
    found: dict[tuple[int, int], Histogram] = {}

    def count(block: int, x: Tensor) -> None:
        for which, matrix in enumerate(pairs[block]):
            new = response_histogram(matrix, x.float())
            key = block, which
            found[key] = found[key] + new if key in found else new

    def read() -> tuple[dict[tuple[int, int], Histogram], list[tuple[str, str]]]:
        mine = images.shard(*rank_and_size())
        read_tokens(backbone.model, mine, pairs, count, tokens=tokens)
        return found, mine.skipped

    parts = together(read)
    whole = add_histograms(part for part, _ in parts)
    if not whole:
        images.check_some_read([bad for _, skipped in parts for bad in skipped])
        raise EmptyResult(f"no image of {images.source} was read")
    return {block: (whole[block, 0], whole[block, 1]) for block in sorted(pairs)}
