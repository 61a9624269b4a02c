"""Tokens of real images that self-prompts start from (spt)."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from bpt.prompt import SPT_TOKENS
from burst.adapters import num_prefix_tokens
from burst.backbone import Backbone
from burst.errors import BurstError, EmptyResult, ShapeError, UnsupportedModel, check_known

CLUSTERED = 20_000  # tokens a block that k-means sees, drawn from all


def prompt_tokens(
    backbone: Backbone,
    batches: Iterable[Tensor],
    blocks: Sequence[int],
    *,
    num_prompts: int,
    kind: str,
    seed: int,
) -> dict[int, Tensor]:
    """Tokens for each prompted block, in one pass over images, without keeping them all.

    Block 0 takes the patch embedding's output, without position embedding and class token; block
    i > 0 the output of block i - 1 without the class token. Of these, `kind` takes

    random   `num_prompts` tokens, each of any image and place equally likely, none twice;
    mean     tokens of which each is the mean of a window of consecutive patches: an image is cut
             into `num_prompts` windows whose lengths differ by one at most, and the rows are drawn
             from all images' windows as above;
    max      the same with the largest value of each channel;
    kmeans   `num_prompts` centroids of up to 20,000 tokens drawn as above.

    The published code cuts windows of floor(n / (m - 1)) patches and pools the rest for the last;
    where nothing is left, it pools all patches instead. Here every patch is in one window. Where
    there are fewer patches than prompts, a window is one patch.

    Args:
        backbone: its model must be a timm VisionTransformer.
        batches: (B, 3, H, W) normalised images on any device.
        blocks: the prompted blocks.
        num_prompts: m.
        kind: one of "random", "mean", "max", "kmeans".
        seed: of the draw, which does not depend on how the images are batched.

    Returns:
        Block -> (m, d) float32 tokens.

    Raises:
        UnknownName: no such kind.
        UnsupportedModel: another class of model.
        EmptyResult: no image.
        ShapeError: fewer tokens in all images than prompts.
        BurstError: a block that the model does not have.

    Source: Wang et al. 2024, "Revisiting the Power of Prompt for Visual Tuning", arXiv 2402.02382.
    """
    check_known("kind of spt tokens", kind, SPT_TOKENS)
    model = backbone.model
    if not isinstance(model, VisionTransformer):
        raise UnsupportedModel(f"{backbone.name} is not a timm VisionTransformer")
    if outside := [block for block in blocks if not 0 <= block < len(model.blocks)]:
        raise BurstError(f"no block {outside[0]}; there are blocks 0 to {len(model.blocks) - 1}")
    size = max(CLUSTERED, num_prompts) if kind == "kmeans" else num_prompts
    drawn = {block: _Reservoir(size, np.random.default_rng([seed, block])) for block in blocks}
    for batch in batches:
        for block, tokens in _sources(model, batch, blocks):
            drawn[block].add(_pooled(tokens, num_prompts, kind))
    return {block: _chosen(drawn[block], num_prompts, kind, seed) for block in blocks}


@torch.no_grad()
def _sources(
    model: VisionTransformer, batch: Tensor, blocks: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """(block, its (B, n, d) source tokens), for the blocks that are asked for."""
    prefix = num_prefix_tokens(model)
    embedded = model.patch_embed(batch)
    if 0 in blocks:
        yield 0, embedded.reshape(len(batch), -1, embedded.shape[-1])
    x = model.norm_pre(model._pos_embed(embedded))
    for index in range(max(blocks, default=0)):
        x = model.blocks[index](x)
        if index + 1 in blocks:
            yield index + 1, x[:, prefix:]


def _pooled(tokens: Tensor, windows: int, kind: str) -> NDArray[np.float32]:
    """(rows, d): the candidates of a (B, n, d) batch, image by image."""
    if kind in ("mean", "max"):
        parts = torch.tensor_split(tokens, min(windows, tokens.shape[1]), dim=1)
        pooled = [part.mean(dim=1) if kind == "mean" else part.amax(dim=1) for part in parts]
        tokens = torch.stack(pooled, dim=1)
    rows: NDArray[np.float32] = tokens.flatten(0, 1).float().cpu().numpy()
    return rows


class _Reservoir:
    """A uniform sample without replacement of a stream of rows (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self._rng, self.seen = size, rng, 0
        self.rows: list[NDArray[np.float32]] = []

    def add(self, rows: NDArray[np.float32]) -> None:
        for row in rows:
            self.seen += 1
            if len(self.rows) < self.size:
                self.rows.append(row.copy())
            elif (place := int(self._rng.integers(self.seen))) < self.size:
                self.rows[place] = row.copy()


def _chosen(drawn: _Reservoir, count: int, kind: str, seed: int) -> Tensor:
    if not drawn.seen:
        raise EmptyResult("no image to take prompt tokens from")
    if drawn.seen < count:
        raise ShapeError(f"the images have {drawn.seen} tokens, too few for {count} prompts")
    rows = np.stack(drawn.rows)
    if kind == "kmeans":
        from sklearn.cluster import KMeans

        rows = KMeans(count, n_init=1, random_state=seed).fit(rows).cluster_centers_
    return torch.from_numpy(np.ascontiguousarray(rows, np.float32))
