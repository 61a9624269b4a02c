"""The attention classes of torch and torchvision.

`nn.MultiheadAttention` keeps queries, keys and values as rows of one weight, or in weights of their
own where keys or values have another width. It serves torchvision's ViT, OpenCLIP and most models
that are written by hand.

In evaluation `nn.TransformerEncoderLayer` computes all of itself in one kernel, which calls no
attention module, unless hooks are attached to it or inside it: then it computes step by step, and
its output may differ in the last digit. So its blocks are listened to from outside.
"""

from torch import Tensor, nn

from burst.adapters.linear import Linear, fused, linear
from burst.adapters.registry import (
    COSINE_WINDOWS,
    CROSS,
    RELATIVE,
    SHIFT_MASK,
    Attention,
    AttentionLayout,
    adapter,
    prefix_tokens,
    refuse,
)
from burst.errors import UnsupportedModel

EXTRA_KEY = "extra key that belongs to no token"


@adapter("torch.nn.modules.activation:MultiheadAttention", same="key", norm="ln_1")
def _multi_head(attention: Attention) -> AttentionLayout:
    if attention.kdim != attention.embed_dim:
        raise UnsupportedModel(CROSS)
    extra = attention.bias_k is not None or attention.add_zero_attn
    omitted = (EXTRA_KEY,) if extra else ()
    bias = attention.in_proj_bias
    if attention.in_proj_weight is not None:
        packed = Linear(attention.in_proj_weight, bias)
        return fused(packed, "in_proj", heads=attention.num_heads, omitted=omitted)
    d = attention.embed_dim
    return AttentionLayout(
        query=attention.q_proj_weight,
        key=attention.k_proj_weight,
        query_bias=None if bias is None else bias[:d],
        key_bias=None if bias is None else bias[d : 2 * d],
        heads=attention.num_heads,
        omitted=omitted,
    )


def _encoder_layer(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    if type(layer)._sa_block is not nn.TransformerEncoderLayer._sa_block:
        raise UnsupportedModel(
            f"{type(layer).__name__} replaces _sa_block, so what its attention reads is not known; "
            "give it a forward of its own, or leave it out"
        )
    return layer.norm1(x) if layer.norm_first else x


_LAYER = "torch.nn.modules.transformer:TransformerEncoderLayer.self_attn"
adapter(_LAYER, before=_encoder_layer)(_multi_head)
refuse("torch.nn.modules.transformer:TransformerDecoderLayer.multihead_attn", reason=CROSS)


@prefix_tokens("torchvision.models.vision_transformer:VisionTransformer")
def _class_token(_: Attention) -> int:
    return 1


@adapter("torchvision.models.swin_transformer:ShiftedWindowAttention", grid=True)
def _shifted_window(attention: Attention) -> AttentionLayout:
    """It divides the grid into windows itself: W_q W_k^T scores the tokens of a window."""
    shifted = (SHIFT_MASK,) if any(attention.shift_size) else ()
    packed = linear(attention, "qkv")
    return fused(packed, "qkv", heads=attention.num_heads, omitted=(RELATIVE, *shifted))


refuse("torchvision.models.swin_transformer:ShiftedWindowAttentionV2", reason=COSINE_WINDOWS)


@adapter("torchvision.models.maxvit:RelativePositionalMultiHeadAttention", up=2, grid=True)
def _partitioned(attention: Attention) -> AttentionLayout:
    """It reads (B, windows, tokens, d), and divides by the square root of d, not of d_h."""
    return fused(
        linear(attention, "to_qkv"),
        "to_qkv",
        heads=attention.n_heads,
        scale=attention.scale_factor,
        omitted=(RELATIVE,),
    )
