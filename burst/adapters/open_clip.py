"""The attention classes of OpenCLIP; most of its towers have torch's (`burst.adapters.torch`)."""

from torch import nn

from burst.adapters.blocks import num_prefix_tokens
from burst.adapters.linear import Linear, fused
from burst.adapters.registry import (
    COSINE,
    CROSS,
    LEARNED,
    QUERY_KEY_NORM,
    Attention,
    AttentionLayout,
    adapter,
    prefix_tokens,
    refuse,
)
from burst.errors import UnsupportedModel

POOLED = "it pools a feature map: only the mean of its places asks"


@adapter("open_clip.transformer:Attention", norm="ln_1")
def _custom(attention: Attention) -> AttentionLayout:
    """What blocks with options have, some of which change the scores; `scale_heads` does not."""
    if attention.logit_scale is not None:
        raise UnsupportedModel(COSINE)
    if not isinstance(getattr(attention, "ln_q", None), nn.Identity | None):
        raise UnsupportedModel(QUERY_KEY_NORM)
    packed = Linear(attention.in_proj_weight, attention.in_proj_bias)
    return fused(packed, "in_proj", heads=attention.num_heads)


refuse("open_clip.transformer:AttentionalPooler.attn", reason=LEARNED)
refuse("open_clip.transformer:MultimodalTransformer.cross_attn", reason=CROSS, up=0)
refuse(
    "open_clip.modified_resnet:AttentionPool2d",
    reason=POOLED,
)


@prefix_tokens("open_clip.transformer:VisionTransformer")
def _class_token(_: Attention) -> int:
    return 1


@prefix_tokens("open_clip.timm_model:TimmModel")
def _of_the_trunk(tower: Attention) -> int:
    return num_prefix_tokens(tower.trunk)
