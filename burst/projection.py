"""Attention module -> W_q and W_k, head by head, by the adapter of its class (`burst.adapters`)."""

from dataclasses import dataclass

from torch import Tensor, nn

from burst.adapters.registry import read_layout
from burst.errors import BurstError, ShapeError


@dataclass(frozen=True, eq=False)
class Projection:
    """Query and key weights of one attention, in the paper's orientation: q = x @ w_q[i] + b_q[i].

    Attributes:
        w_q: (h, d, d_h) float32, one matrix for each of h heads.
        w_k: (h, d, d_h) float32. With grouped queries, the heads of a group have equal keys.
        omitted: what the scores hold beyond the bilinear term, such as "relative position bias".
        b_q: (h, d_h) float32, or None. W_q W_k^T leaves biases out, as arXiv 2506.22908 does.
        b_k: (h, d_h) float32, or None.
        scale: what the attention multiplies q k^T by; None for d_h^(-1/2).

    Raises:
        ShapeError: w_q and w_k are not both (h, d, d_h), or differ in shape.
    """

    w_q: Tensor
    w_k: Tensor
    omitted: tuple[str, ...] = ()
    b_q: Tensor | None = None
    b_k: Tensor | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.w_q.ndim != 3 or self.w_q.shape != self.w_k.shape:
            raise ShapeError(
                f"w_q {tuple(self.w_q.shape)} and w_k {tuple(self.w_k.shape)} must both be "
                "(heads, d, d_h)"
            )

    @property
    def num_heads(self) -> int:
        """h: how many heads there are."""
        return self.w_q.shape[0]

    @property
    def dim(self) -> int:
        """d: the width of a token."""
        return self.w_q.shape[1]

    @property
    def head_dim(self) -> int:
        """d_h: the width of a head's queries; h * d_h need not be d."""
        return self.w_q.shape[2]

    def head(self, i: int) -> tuple[Tensor, Tensor]:
        """W_q and W_k of head i, (d, d_h) each.

        Raises:
            ShapeError: there is no head i.
        """
        if not 0 <= i < self.num_heads:
            raise ShapeError(f"head {i} is out of range: there are heads 0 to {self.num_heads - 1}")
        return self.w_q[i], self.w_k[i]

    def whole(self) -> tuple[Tensor, Tensor]:
        """W_q and W_k of all heads side by side, (d, h * d_h) each.

        Their product W_q W_k^T is the sum of the heads' products.
        """
        w_q, w_k = (w.permute(1, 0, 2).reshape(self.dim, -1) for w in (self.w_q, self.w_k))
        return w_q, w_k

    def scores(self, x: Tensor) -> Tensor:
        """What the attention's softmax is given for tokens x (..., N, d), but for `omitted` terms.

        (X W_q + b_q) (X W_k + b_k)^T times the scale, with biases; (..., h, N, N) float32.
        """
        pairs = (self.w_q, self.b_q), (self.w_k, self.b_k)
        q, k = (x.float().unsqueeze(-3) @ w + (0.0 if b is None else b[:, None]) for w, b in pairs)
        return q @ k.mT * (self.head_dim**-0.5 if self.scale is None else self.scale)


def projection(attention: nn.Module, *, name: str | None = None) -> Projection:
    """Read W_q and W_k, head by head, from an attention module.

    Rotary embeddings turn queries and keys by their positions: W_q W_k^T then scores tokens at
    equal positions. Differential attention counts as 2 h heads.

    Args:
        attention: the `attention` of a block from `find_blocks`.
        name: how error messages call it, such as `blocks.3.attn`.

    Returns:
        A copy of the weights in float32, on their device. `omitted` is what this class can add;
        `describe_blocks` knows whether the model makes use of it. Nothing is warned about here.

    Raises:
        UnsupportedModel: an attention class that is unknown, or whose scores are not bilinear in
            tokens: query-key norm, cosine or cross-covariance attention, pooled queries or keys.
        ShapeError: weights that do not divide into heads.
        BurstError: weights that are not finite, or have no values (meta device).
    """
    label = f"{name} ({type(attention).__name__})" if name else type(attention).__name__
    try:
        layout = read_layout(attention)
        w_q, b_q = _per_head(layout.query, layout.query_bias, layout.heads)
        w_k, b_k = _per_head(layout.key, layout.key_bias, layout.heads // layout.group)
    except BurstError as error:
        raise type(error)(f"{label}: {error}") from None
    if layout.group > 1:
        w_k = w_k.repeat_interleave(layout.group, dim=0)
        b_k = None if b_k is None else b_k.repeat_interleave(layout.group, dim=0)
    return Projection(w_q, w_k, layout.omitted, b_q, b_k, layout.scale)


def _per_head(weight: Tensor, bias: Tensor | None, heads: int) -> tuple[Tensor, Tensor | None]:
    if weight.is_meta:
        raise BurstError("weights are on the meta device, without values; load them first")
    if not all(part.isfinite().all() for part in (weight, bias) if part is not None):
        raise BurstError("query or key weights are not finite; load an undamaged checkpoint")
    by_head = weight.detach().float().view(heads, -1, weight.shape[1]).mT.contiguous()
    return by_head, None if bias is None else bias.detach().float().view(heads, -1).clone()
