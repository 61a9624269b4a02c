"""The attention classes of timm.

timm's fused `qkv` holds queries, keys and values as rows 0 : h d_h, h d_h : 2 h d_h and the rest,
each of them head after head. Swin's window attention is read as well: W_q W_k^T scores the tokens
of a window, d differs from stage to stage. Differential attention counts as 2 h heads.
"""

from dataclasses import replace
from functools import partial

import torch

from burst.adapters.linear import Linear, fused, linear, separate
from burst.adapters.registry import (
    COSINE_WINDOWS,
    QUERY_KEY_NORM,
    REDUCED,
    RELATIVE,
    ROTARY,
    SHIFT_MASK,
    UNSCORED,
    Attention,
    AttentionLayout,
    adapter,
    prefix_tokens,
    refuse,
)
from burst.errors import UnsupportedModel

TALKING_HEADS = "talking-heads mixing"
POSITION_GATE = "positional attention gate"
DIFFERENCE = "subtraction of every second head's attention map"


def _packed(attention: Attention) -> Linear:
    """A fused projection with its bias, which BEiT and EVA keep in parts."""
    weight, bias = linear(attention, "qkv")
    if bias is None and getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return Linear(weight, bias)


def _fused(attention: Attention, *, omitted: tuple[str, ...] = ()) -> AttentionLayout:
    return fused(
        _packed(attention), "qkv", heads=attention.num_heads, scale=attention.scale, omitted=omitted
    )


adapter(
    "timm.layers.attention:Attention",
    "timm.models.vision_transformer:Attention",
    "timm.models.convit:MHSA",
    "timm.models.davit:WindowAttention",
    "timm.models.twins:LocallyGroupedAttn",
)(_fused)
adapter("timm.models.nest:Attention", "timm.models.volo:Attention", grid=True)(_fused)
adapter("timm.models.vision_transformer_relpos:RelPosAttention")(
    partial(_fused, omitted=(RELATIVE,))
)
adapter("timm.models.swin_transformer:WindowAttention")(
    partial(_fused, omitted=(RELATIVE, SHIFT_MASK))
)
adapter("timm.models.cait:TalkingHeadAttn")(partial(_fused, omitted=(TALKING_HEADS,)))


@adapter("timm.layers.attention:AttentionRope", "timm.models.eva:EvaAttention")
def _rotary(attention: Attention) -> AttentionLayout:
    if attention.qkv is not None:
        return _fused(attention, omitted=(ROTARY,))
    return separate(
        attention,
        "q_proj",
        "k_proj",
        heads=attention.num_heads,
        group=getattr(attention, "num_kv_groups", 1),
        scale=attention.scale,
        omitted=(ROTARY,),
    )


@adapter("timm.models.beit:Attention")
def _beit(attention: Attention) -> AttentionLayout:
    shared = attention.relative_position_bias_table is None
    return _fused(attention, omitted=() if shared else (RELATIVE,))


@adapter("timm.models.vision_transformer_sam:Attention", grid=True)
def _sam(attention: Attention) -> AttentionLayout:
    terms = {RELATIVE: attention.use_rel_pos, ROTARY: attention.rope is not None}
    return _fused(attention, omitted=tuple(term for term, present in terms.items() if present))


@adapter("timm.layers.diff_attention:DiffAttention")
def _differential(attention: Attention) -> AttentionLayout:
    return replace(_fused(attention, omitted=(DIFFERENCE,)), heads=2 * attention.num_heads)


@adapter("timm.models.convit:GPSA")
def _positional_gate(attention: Attention) -> AttentionLayout:
    return fused(
        linear(attention, "qk"),
        "qk",
        parts=2,
        heads=attention.num_heads,
        scale=attention.scale,
        omitted=(POSITION_GATE,),
    )


@adapter("timm.models.hiera:MaskUnitAttention")
def _mask_unit(attention: Attention) -> AttentionLayout:
    if attention.q_stride > 1:
        raise UnsupportedModel(_POOLED)
    return fused(_packed(attention), "qkv", heads=attention.heads, scale=attention.scale)


@adapter("timm.models.hieradet_sam2:MultiScaleAttention", grid=True)
def _multi_scale(attention: Attention) -> AttentionLayout:
    if attention.q_pool is not None:
        raise UnsupportedModel(_POOLED)
    return _fused(attention)


@adapter("timm.models.vision_transformer:ParallelScalingBlock", up=0, reads="in_proj")
def _parallel(block: Attention) -> AttentionLayout:
    """One projection for attention and MLP: the block is its own attention."""
    mlp, queries, keys, _ = block.in_split
    weight, bias = linear(block, "in_proj")
    q, k = slice(mlp, mlp + queries), slice(mlp + queries, mlp + queries + keys)
    return AttentionLayout(
        query=weight[q],
        key=weight[k],
        query_bias=None if bias is None else bias[q],
        key_bias=None if bias is None else bias[k],
        heads=block.num_heads,
        scale=block.scale,
    )


@adapter("timm.models.vision_transformer:DiffParallelScalingBlock", up=0, reads="in_proj")
def _differential_parallel(block: Attention) -> AttentionLayout:
    return replace(_parallel(block), heads=2 * block.num_heads, omitted=(DIFFERENCE,))


_POOLED = f"it pools queries or keys after projecting them, {UNSCORED}"
_BATCH_NORM = f"batch norm follows its query-key projection, {UNSCORED}"
_CLASS_ONLY = "class attention: only the class token asks, tokens do not score each other"
CHANNELS = "it compares channels, so there is no token-by-token query-key product"
LINEAR = "linear attention has no token-by-token query-key product"
OUTLOOK = "outlook attention has no keys"
_CHANNELS_FIRST = "it reads channels-first feature maps, not tokens"
_REASONS = {
    "cait:ClassAttn": _CLASS_ONLY,
    "crossvit:CrossAttention": _CLASS_ONLY,
    "davit:ChannelAttention": CHANNELS,
    "davit:ChannelAttentionV2": CHANNELS,
    "efficientvit_msra:CascadedGroupAttention": _BATCH_NORM,
    "gcvit:WindowAttentionGlobal": REDUCED,
    "gemma4_vit:Gemma4Attention": QUERY_KEY_NORM,
    "levit:Attention": _BATCH_NORM,
    "maxxvit:Attention2d": _CHANNELS_FIRST,
    "mobilevit:LinearSelfAttention": LINEAR,
    "mvitv2:MultiScaleAttention": _POOLED,
    "mvitv2:MultiScaleAttentionPoolFirst": _POOLED,
    "pvt_v2:Attention": REDUCED,
    "swiftformer:EfficientAdditiveAttention": LINEAR,
    "swin_transformer_v2:WindowAttention": COSINE_WINDOWS,
    "swin_transformer_v2_cr:WindowMultiHeadAttention": COSINE_WINDOWS,
    "tiny_vit:Attention": "it normalises its own input, so its tokens cannot be read",
    "twins:GlobalSubSampleAttn": REDUCED,
    "visformer:Attention": _CHANNELS_FIRST,
    "volo:ClassAttention": _CLASS_ONLY,
    "volo:OutlookAttention": OUTLOOK,
    "xcit:XCA": CHANNELS,
}
for _path, _reason in _REASONS.items():
    refuse(f"timm.models.{_path}", reason=_reason)


@prefix_tokens("timm.models.cait:Cait", "timm.models.xcit:Xcit")
def _joins_behind_the_blocks(_: Attention) -> int:
    return 0


@prefix_tokens("timm.models.convit:ConVit")
def _joins_midway(model: Attention) -> int:
    raise UnsupportedModel(
        f"{type(model).__name__} does not have the same prefix tokens in every block; measure all "
        "of its tokens"
    )
