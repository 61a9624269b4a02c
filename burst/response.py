"""A block -> the float64 matrix that takes its tokens to the response: A, or H diag(g) A."""

from typing import NamedTuple

from torch import Tensor, nn

from burst.adapters import AttentionBlock
from burst.adapters.timm import timm_classes
from burst.errors import ShapeError, UnsupportedModel
from burst.projection import projection

# Norms that subtract a token's mean before they scale it, and norms that only scale it. Decided by
# class: from its weights nobody could tell a LayerNorm without a bias from an RMSNorm.
_CENTRING: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    *timm_classes(
        "layers:LayerNorm",
        "layers:LayerNormFp32",
        "layers:LayerNorm2d",
        "layers:LayerNorm2dFp32",
    ),
)
_SCALING: tuple[type[nn.Module], ...] = (
    nn.RMSNorm,
    *timm_classes(
        "layers:RmsNorm",
        "layers:RmsNormFp32",
        "layers:RmsNorm2d",
        "layers:RmsNorm2dFp32",
        "layers:SimpleNorm",  # divides by the deviation about the mean, which it leaves in place
        "layers:SimpleNormFp32",
        "layers:SimpleNorm2d",
        "layers:SimpleNorm2dFp32",
    ),
)
_CENTRES = dict.fromkeys(_CENTRING, True) | dict.fromkeys(_SCALING, False)


class Norm(NamedTuple):
    """What a norm does to a token x, up to its scale s and bias: x -> (x H / s) diag(g).

    Attributes:
        gain: g (d,), float64.
        centres: whether H is I - 1 1^T / d, as in a LayerNorm; else the identity, as in an RMSNorm.
    """

    gain: Tensor
    centres: bool


def response_matrix(
    block: AttentionBlock,
    *,
    convention: str = "paper",
    head: int | None = None,
    through_norm: bool = False,
) -> Tensor:
    """A in float64: Y = A X^T is what a block's tokens answer to each unit prompt.

    In the model a prompt p goes through the block's first norm as the tokens do, and meets them as
    (p H / s) diag(g): a LayerNorm centres it (H = I - 1 1^T / d), divides it by its deviation s and
    multiplies it by the gain g. With `through_norm` the response is that of M = H diag(g) A, or of
    diag(g) A behind a norm that does not centre. s, which scales all that a prompt meets alike, and
    the norm's bias, which is the same for all prompts, stay out. The columns of H sum to zero, so
    a centred response does not vary in the direction (1, ..., 1): a constant prompt meets nothing.

    `interaction` rounds A to float32, which is 1e-7 of its largest singular value and so drowns the
    smallest ones; here the product of the float32 weights is exact to 1e-16.

    Args:
        block: from `find_blocks`.
        convention: as in `interaction`.
        head: A_h of this head alone; the A_h add up to A.
        through_norm: M in place of A.

    Returns:
        (d, d) float64 on the CPU.

    Raises:
        UnsupportedModel: see `projection` and, with `through_norm`, `first_norm`.
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
    if not through_norm:
        return a
    norm = first_norm(block, weights.dim)
    scaled = norm.gain[:, None] * a
    return scaled - scaled.mean(dim=0) if norm.centres else scaled


def first_norm(block: AttentionBlock, dim: int) -> Norm:
    """What the norm does whose output the block's attention reads.

    Raises:
        UnsupportedModel: there is no `norm1`, it comes after the attention, it has no gain, or it
            is of a class of which it is not known whether it centres.
    """
    children = dict(block.module.named_children())
    order = list(children)
    # timm defines a block's parts in the order in which they run; in a post-norm block attn leads.
    if "norm1" not in order or order.index("norm1") > order.index("attn"):
        raise UnsupportedModel(
            f"{block.name} ({type(block.module).__name__}) has no `norm1` before its attention; "
            "whiten it without the norm"
        )
    norm = children["norm1"]
    label = f"{block.name}.norm1 ({type(norm).__name__})"
    kind = next((one for one in type(norm).__mro__ if one in _CENTRES), None)
    if kind is None or type(norm).forward is not kind.forward:
        raise UnsupportedModel(
            f"{label} is neither a LayerNorm nor an RMSNorm that is known, so it is not known "
            f"whether it centres a prompt; whiten {block.name} without the norm"
        )
    gain = getattr(norm, "weight", None)
    if not isinstance(gain, Tensor) or gain.shape != (dim,):
        raise UnsupportedModel(
            f"{label} has no gain for each of {dim} dimensions; whiten {block.name} without the "
            "norm"
        )
    # In this order: not every device has float64.
    return Norm(gain.detach().cpu().double(), _CENTRES[kind])
