"""Attention module -> W_q and W_k, by one explicit adapter for each attention class of timm.

    projection       the query and key weights of one attention, head by head
    describe_blocks  which blocks of a model can be measured, and why the others cannot
    omissions        what the query-key product of a model leaves out
    adapter          teaches this module an attention class of your own

An attention is measured if its score is `x W_q (y W_k)^T`, bilinear in two tokens, up to biases and
scale (left out by definition, as in arXiv 2506.22908) and terms that are added or applied later:
those are named in `omitted`. Where queries or keys are normalised, pooled or taken from anything
but tokens, W_q W_k^T does not score tokens, and the class is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from burst.errors import BurstError, ShapeError, UnsupportedModel
from burst.tokens import AttentionBlock, find_blocks, timm_classes, unwrap

ROTARY = "rotary position embedding"
RELATIVE = "relative position bias"
SHIFT_MASK = "shifted-window mask"
TALKING_HEADS = "talking-heads mixing"
POSITION_GATE = "positional attention gate"
DIFFERENCE = "subtraction of every second head's attention map"


class OmittedTermWarning(UserWarning):
    """The scores of this model have a term that its query-key product leaves out."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Query and key weights of one attention, in the paper's orientation: `q = x @ w_q[i]`.

    Attributes:
        w_q: (h, d, d_h) float32, one matrix for each of h heads.
        w_k: (h, d, d_h) float32. With grouped queries, the heads of a group have equal keys.
        omitted: what the scores hold beyond the bilinear term, such as "relative position bias".

    Raises:
        ShapeError: w_q and w_k are not both (h, d, d_h), or differ in shape.
    """

    w_q: Tensor
    w_k: Tensor
    omitted: tuple[str, ...] = ()

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


class Layout(NamedTuple):
    """Where an adapter found an attention's weights, in torch's orientation (out, in).

    `query` is (heads * d_h, d), one head after the other; `key` (heads / group * d_h, d): query
    head i uses key head i // group. `omitted` is as in `Projection`.
    """

    query: Tensor
    key: Tensor
    heads: int
    omitted: tuple[str, ...] = ()
    group: int = 1


@dataclass(frozen=True)
class BlockDescription:
    """What would be measured in one block, before anything is computed.

    `index` and `name` are those of `find_blocks`, `attention` is the class of its attention,
    `omitted` as in `Projection`. If the block cannot be measured, `reason` says why, and
    `num_heads` (h), `dim` (d) and `head_dim` (d_h) are None; else `reason` is None.
    """

    index: int
    name: str
    attention: str
    reason: str | None = None
    omitted: tuple[str, ...] = ()
    num_heads: int | None = None
    dim: int | None = None
    head_dim: int | None = None

    @property
    def supported(self) -> bool:
        """Whether the block can be measured."""
        return self.reason is None


Attention: TypeAlias = Any  # nn.Module would make every attribute a Tensor or a Module
Adapter: TypeAlias = Callable[[Attention], Layout]
_ADAPTERS: dict[type[nn.Module], Adapter] = {}


def adapter(*classes: type[nn.Module]) -> Callable[[Adapter], Adapter]:
    """Register how query and key weights are read from attention classes.

    >>> @adapter(MyAttention)                                    # doctest: +SKIP
    ... def _mine(attention: MyAttention) -> Layout:
    ...     return Layout(attention.q.weight, attention.k.weight, attention.num_heads)

    It serves these classes and those of their subclasses that keep their `forward`.
    """

    def register(read: Adapter) -> Adapter:
        _ADAPTERS.update(dict.fromkeys(classes, read))
        return read

    return register


def projection(attention: nn.Module, *, name: str | None = None) -> Projection:
    """Read W_q and W_k, head by head, from an attention module.

    timm's fused `qkv` holds queries, keys and values as rows 0 : h d_h, h d_h : 2 h d_h and the
    rest, each of them head after head. Swin's window attention is read as well: W_q W_k^T scores
    the tokens of a window, d differs from stage to stage, and what it adds to the scores is named
    in `omitted`. Rotary embeddings turn queries and keys by their positions: W_q W_k^T then
    scores tokens at equal positions. Differential attention counts as 2 h heads.

    Args:
        attention: the `attention` of a block from `find_blocks`.
        name: how error messages call it, such as `blocks.3.attn`.

    Returns:
        A copy of the weights in float32, on their device. `omitted` is what this class can add;
        `describe_blocks` knows whether the model makes use of it. Nothing is warned about here:
        give `omissions(model)` once to `warnings.warn(..., OmittedTermWarning)`.

    Raises:
        UnsupportedModel: an attention class that is unknown, or whose scores are not bilinear in
            tokens: query-key norm, cosine or cross-covariance attention, pooled queries or keys.
        ShapeError: weights that do not divide into heads.
        BurstError: weights that are not finite, or have no values (meta device).
    """
    label = f"{name} ({type(attention).__name__})" if name else type(attention).__name__
    try:
        layout = _layout(attention)
        w_q = _per_head(layout.query, layout.heads)
        w_k = _per_head(layout.key, layout.heads // layout.group)
    except BurstError as error:
        raise type(error)(f"{label}: {error}") from None
    return Projection(w_q, w_k.repeat_interleave(layout.group, dim=0), layout.omitted)


def describe_blocks(model: nn.Module) -> tuple[BlockDescription, ...]:
    """Say for each attention block what would be measured, or why it cannot be.

    Reads no weights, so a model on the meta device will do.

    Raises:
        UnsupportedModel: the model has no attention blocks at all.
    """
    return tuple(_describe(model, block) for block in find_blocks(model))


def omissions(model: nn.Module) -> tuple[str, ...]:
    """What the query-key products of a model's measurable blocks leave out, each term once.

    Raises:
        UnsupportedModel: the model has no attention blocks at all.
    """
    terms = (term for block in describe_blocks(model) for term in block.omitted)
    return tuple(dict.fromkeys(terms))


def _describe(model: nn.Module, block: AttentionBlock) -> BlockDescription:
    kind = type(block.attention).__name__
    try:
        layout = _layout(block.attention)
    except BurstError as error:
        return BlockDescription(block.index, block.name, kind, str(error))
    rows, dim = layout.query.shape
    shape = (layout.heads, dim, rows // layout.heads)
    omitted = _omitted_in(model, layout.omitted)
    return BlockDescription(block.index, block.name, kind, None, omitted, *shape)


def _omitted_in(model: nn.Module, omitted: tuple[str, ...]) -> tuple[str, ...]:
    """The same terms, corrected by what the model itself passes, or not, to its attentions."""
    root = unwrap(model)
    if getattr(root, "rope", root) is None:
        omitted = tuple(term for term in omitted if term != ROTARY)
    if getattr(root, "rel_pos_bias", None) is not None and RELATIVE not in omitted:
        omitted += (RELATIVE,)
    return omitted


def _layout(attention: nn.Module) -> Layout:
    kind = next((c for c in type(attention).__mro__ if c in _ADAPTERS or c in _REFUSED), None)
    if kind is None:
        origin = type(attention).__module__
        raise UnsupportedModel(f"attention of {origin} is not known; {_REGISTER}")
    if kind not in _ADAPTERS:
        raise UnsupportedModel(_REFUSED[kind])
    if type(attention).forward is not kind.forward:
        raise UnsupportedModel(
            f"it replaces the forward of {kind.__name__}, so its scores are not known; {_REGISTER}"
        )
    for norm in ("q_norm", "k_norm"):
        if not isinstance(getattr(attention, norm, None), nn.Identity | None):
            raise UnsupportedModel(_QUERY_KEY_NORM)
    return _checked(_ADAPTERS[kind](attention))


def _checked(layout: Layout) -> Layout:
    query, key, heads = layout.query, layout.key, layout.heads
    whole = query.ndim == 2 and query.shape == (len(key) * layout.group, *key.shape[1:])
    if not whole or len(query) < heads or len(query) % heads or heads % layout.group:
        raise ShapeError(
            f"query weight {tuple(query.shape)} and key weight {tuple(key.shape)} do not fit "
            f"{heads} heads with {layout.group} to a key; pass the whole model, not a shard"
        )
    return layout


def _per_head(weight: Tensor, heads: int) -> Tensor:
    if weight.is_meta:
        raise BurstError("weights are on the meta device, without values; load them first")
    if not weight.isfinite().all():
        raise BurstError("query or key weights are not finite; load an undamaged checkpoint")
    return weight.detach().float().view(heads, -1, weight.shape[1]).mT.contiguous()


def _weight(attention: Attention, name: str) -> Tensor:
    linear: nn.Module = getattr(attention, name)
    if not isinstance(linear, nn.Linear) or type(linear).forward is not nn.Linear.forward:
        raise UnsupportedModel(
            f"{name} is a {type(linear).__name__}, expected nn.Linear; merge adapters such as LoRA "
            "into the weights and dequantise them"
        )
    return linear.weight


def _fused(
    attention: Attention,
    linear: str = "qkv",
    *,
    parts: int = 3,
    heads: int | None = None,
    omitted: tuple[str, ...] = (),
) -> Layout:
    """Rows of one Linear: all queries, all keys and, with three parts, all values."""
    weight = _weight(attention, linear)
    rows, rest = divmod(weight.shape[0], parts)
    if rest:
        raise ShapeError(f"{linear} weight {tuple(weight.shape)} does not divide into {parts}")
    return Layout(weight[:rows], weight[rows : 2 * rows], heads or attention.num_heads, omitted)


_FUSED: dict[tuple[str, ...], list[str]] = {
    (): [
        "models.vision_transformer:Attention",
        "models.convit:MHSA",
        "models.davit:WindowAttention",
        "models.nest:Attention",
        "models.twins:LocallyGroupedAttn",
        "models.volo:Attention",
    ],
    (RELATIVE,): ["models.vision_transformer_relpos:RelPosAttention"],
    (RELATIVE, SHIFT_MASK): ["models.swin_transformer:WindowAttention"],
    (TALKING_HEADS,): ["models.cait:TalkingHeadAttn"],
}
for _terms, _paths in _FUSED.items():
    adapter(*timm_classes(*_paths))(partial(_fused, omitted=_terms))


@adapter(*timm_classes("layers:AttentionRope", "models.eva:EvaAttention"))
def _rotary(attention: Attention) -> Layout:
    if attention.qkv is not None:
        return _fused(attention, omitted=(ROTARY,))
    query, key = _weight(attention, "q_proj"), _weight(attention, "k_proj")
    group = getattr(attention, "num_kv_groups", 1)
    return Layout(query, key, attention.num_heads, (ROTARY,), group)


@adapter(*timm_classes("models.beit:Attention"))
def _beit(attention: Attention) -> Layout:
    shared = attention.relative_position_bias_table is None
    return _fused(attention, omitted=() if shared else (RELATIVE,))


@adapter(*timm_classes("models.vision_transformer_sam:Attention"))
def _sam(attention: Attention) -> Layout:
    terms = {RELATIVE: attention.use_rel_pos, ROTARY: attention.rope is not None}
    return _fused(attention, omitted=tuple(term for term, present in terms.items() if present))


@adapter(*timm_classes("layers:DiffAttention"))
def _differential(attention: Attention) -> Layout:
    return _fused(attention, heads=2 * attention.num_heads, omitted=(DIFFERENCE,))


@adapter(*timm_classes("models.convit:GPSA"))
def _positional_gate(attention: Attention) -> Layout:
    return _fused(attention, "qk", parts=2, omitted=(POSITION_GATE,))


@adapter(
    *timm_classes("models.hiera:MaskUnitAttention", "models.hieradet_sam2:MultiScaleAttention")
)
def _hiera(attention: Attention) -> Layout:
    if getattr(attention, "q_stride", 1) > 1 or getattr(attention, "q_pool", None) is not None:
        raise UnsupportedModel(_POOLED)
    return _fused(attention, heads=getattr(attention, "heads", None))


@adapter(*timm_classes("models.vision_transformer:ParallelScalingBlock"))
def _parallel(block: Attention) -> Layout:
    mlp, queries, keys, _ = block.in_split
    weight = _weight(block, "in_proj")[mlp : mlp + queries + keys]
    return Layout(weight[:queries], weight[queries:], block.num_heads)


@adapter(*timm_classes("models.vision_transformer:DiffParallelScalingBlock"))
def _differential_parallel(block: Attention) -> Layout:
    return _parallel(block)._replace(heads=2 * block.num_heads, omitted=(DIFFERENCE,))


_REGISTER = "register an `adapter` (burst.projection)"
_UNSCORED = "so W_q W_k^T does not score tokens"
_QUERY_KEY_NORM = f"it normalises queries and keys (query-key norm), {_UNSCORED}"
_COSINE = f"cosine attention normalises queries and keys, {_UNSCORED}"
_POOLED = f"it pools queries or keys after projecting them, {_UNSCORED}"
_BATCH_NORM = f"batch norm follows its query-key projection, {_UNSCORED}"
_REDUCED = "its queries or keys come from a reduced map, not from the tokens"
_CLASS_ONLY = "class attention: only the class token asks, tokens do not score each other"
_CHANNELS = "it compares channels, so there is no token-by-token query-key product"
_LINEAR = "linear attention has no token-by-token query-key product"
_CHANNELS_FIRST = "it reads channels-first feature maps, not tokens"
_REASONS = {
    "cait:ClassAttn": _CLASS_ONLY,
    "crossvit:CrossAttention": _CLASS_ONLY,
    "davit:ChannelAttention": _CHANNELS,
    "davit:ChannelAttentionV2": _CHANNELS,
    "efficientvit_msra:CascadedGroupAttention": _BATCH_NORM,
    "gcvit:WindowAttentionGlobal": _REDUCED,
    "gemma4_vit:Gemma4Attention": _QUERY_KEY_NORM,
    "levit:Attention": _BATCH_NORM,
    "maxxvit:Attention2d": _CHANNELS_FIRST,
    "mobilevit:LinearSelfAttention": _LINEAR,
    "mvitv2:MultiScaleAttention": _POOLED,
    "mvitv2:MultiScaleAttentionPoolFirst": _POOLED,
    "pvt_v2:Attention": _REDUCED,
    "swiftformer:EfficientAdditiveAttention": _LINEAR,
    "swin_transformer_v2:WindowAttention": _COSINE,
    "swin_transformer_v2_cr:WindowMultiHeadAttention": _COSINE,
    "tiny_vit:Attention": "it normalises its own input, so its tokens cannot be read",
    "twins:GlobalSubSampleAttn": _REDUCED,
    "visformer:Attention": _CHANNELS_FIRST,
    "volo:ClassAttention": _CLASS_ONLY,
    "volo:OutlookAttention": "outlook attention has no keys",
    "xcit:XCA": _CHANNELS,
}
_REFUSED: dict[type[nn.Module], str] = {
    kind: reason for path, reason in _REASONS.items() for kind in timm_classes(f"models.{path}")
}
