"""A block -> the float64 matrix that takes its tokens to the response: A, or diag(g) A."""

from torch import Tensor

from burst.errors import ShapeError, UnsupportedModel
from burst.projection import projection
from burst.tokens import AttentionBlock


def response_matrix(
    block: AttentionBlock,
    *,
    convention: str = "paper",
    head: int | None = None,
    through_norm: bool = False,
) -> Tensor:
    """A in float64, or diag(g) A: Y = A X^T is what a block's tokens answer to each unit prompt.

    `interaction` rounds A to float32, which is 1e-7 of its largest singular value and so drowns the
    smallest ones; here the product of the float32 weights is exact to 1e-16.

    Args:
        block: from `find_blocks`.
        convention: as in `interaction`.
        head: A_h of this head alone; the A_h add up to A.
        through_norm: with the gain g of the block's `norm1`.

    Returns:
        (d, d) float64 on the CPU.

    Raises:
        UnsupportedModel: see `projection`; no norm, or none with a gain, before the attention.
        ShapeError: no such head; or the authors' product does not have the tokens' width.
    """
    weights = projection(block.attention, name=block.attention_name)
    pair = weights.whole() if head is None else weights.head(head)
    w_q, w_k = (w.detach().cpu().double() for w in pair)
    a = w_q.mT @ w_k if convention == "authors" else w_q @ w_k.mT
    if len(a) != weights.dim:
        raise ShapeError(
            f"{block.attention_name}: the authors' product is {tuple(a.shape)} and tokens have "
            f"{weights.dim} dimensions; use the paper's convention"
        )
    return norm_gain(block, weights.dim)[:, None] * a if through_norm else a


def norm_gain(block: AttentionBlock, dim: int) -> Tensor:
    """g (d,) float64: the gain of the norm whose output the block's attention reads.

    Raises:
        UnsupportedModel: there is no `norm1`, it comes after the attention, or it has no gain.
    """
    children = dict(block.module.named_children())
    order = list(children)
    # timm defines a block's parts in the order in which they run; in a post-norm block attn leads.
    if "norm1" not in order or order.index("norm1") > order.index("attn"):
        raise UnsupportedModel(
            f"{block.name} ({type(block.module).__name__}) has no `norm1` before its attention; "
            "whiten it without the norm"
        )
    gain = getattr(children["norm1"], "weight", None)
    if not isinstance(gain, Tensor) or gain.shape != (dim,):
        raise UnsupportedModel(
            f"{block.name}.norm1 ({type(children['norm1']).__name__}) has no gain for each of "
            f"{dim} dimensions; whiten {block.name} without the norm"
        )
    return gain.detach().cpu().double()  # in this order: not every device has float64
