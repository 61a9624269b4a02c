"""The norm in front of an attention: does it centre a token, and with which gain?"""

from typing import NamedTuple

from torch import Tensor, nn

from burst.adapters.blocks import AttentionBlock
from burst.adapters.registry import full_name
from burst.adapters.transformers import classes as transformers_classes
from burst.errors import UnsupportedModel

# Norms that subtract a token's mean before they scale it, and norms that only scale it. Decided by
# class: from its weights nobody could tell a LayerNorm without a bias from an RMSNorm.
CENTRING = (
    full_name(nn.LayerNorm),
    *(f"timm.layers.norm:{name}" for name in ("LayerNorm", "LayerNormFp32")),
    *(f"timm.layers.norm:{name}" for name in ("LayerNorm2d", "LayerNorm2dFp32")),
    *(f"open_clip.transformer:{name}" for name in ("LayerNorm", "LayerNormFp32")),
    *transformers_classes("cohere:Cohere", "LayerNorm"),
)
_RMS = (
    "llama:Llama mistral:Mistral mixtral:Mixtral qwen2:Qwen2 qwen2_moe:Qwen2Moe phi3:Phi3 "
    "granite:Granite granitemoe:GraniteMoe smollm3:SmolLM3 gpt_oss:GptOss glm:Glm glm4:Glm4 "
    "helium:Helium arcee:Arcee seed_oss:SeedOss ernie4_5:Ernie4_5 aimv2:Aimv2"
)
SCALING = (
    full_name(nn.RMSNorm),
    *(f"timm.layers.norm:{name}" for name in ("RmsNorm", "RmsNormFp32", "RmsNorm2d")),
    *(f"timm.layers.norm:{name}" for name in ("RmsNorm2dFp32", "SimpleNorm2d", "SimpleNorm2dFp32")),
    # These divide by the deviation about the mean, which they leave in place.
    *(f"timm.layers.norm:{name}" for name in ("SimpleNorm", "SimpleNormFp32")),
    *transformers_classes(_RMS, "RMSNorm"),
    *transformers_classes("t5:T5 mt5:MT5 umt5:UMT5", "LayerNorm"),
)
# The same with gain 1 + w.
SCALING_ABOUT_ONE = tuple(transformers_classes("gemma:Gemma gemma2:Gemma2", "RMSNorm"))
_CENTRES = dict.fromkeys(CENTRING, True) | dict.fromkeys(SCALING + SCALING_ABOUT_ONE, False)


class Norm(NamedTuple):
    """What a norm does to a token x, up to its scale s and bias: x -> (x H / s) diag(g).

    Attributes:
        gain: g (d,), float64.
        centres: whether H is I - 1 1^T / d, as in a LayerNorm; else the identity, as in an RMSNorm.
    """

    gain: Tensor
    centres: bool


def first_norm(block: AttentionBlock, dim: int) -> Norm:
    """What the norm does whose output the block's attention reads.

    Raises:
        UnsupportedModel: there is none before the attention, it has no gain, or it is of a class of
            which it is not known whether it centres.
    """
    name, norm = _named_norm(block)
    label = f"{block.name}.{name} ({type(norm).__name__})"
    kind = next((one for one in type(norm).__mro__ if full_name(one) in _CENTRES), None)
    if kind is None or type(norm).forward is not getattr(kind, "forward", None):
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
    known = gain.detach().cpu().double()
    return Norm(known + (full_name(kind) in SCALING_ABOUT_ONE), _CENTRES[full_name(kind)])


def _named_norm(block: AttentionBlock) -> tuple[str, nn.Module]:
    children = dict(block.module.named_children())
    order = list(children)
    name = block.adapter.norm if block.adapter else None
    if name in children:
        return name, children[name]
    attention = block.attention_name.removeprefix(block.name).lstrip(".").partition(".")[0]
    # timm defines a block's parts in the order in which they run; in a post-norm block attn leads.
    led = "norm1" in order and attention in order and order.index("norm1") < order.index(attention)
    if led:
        return "norm1", children["norm1"]
    raise UnsupportedModel(
        f"{block.name} ({type(block.module).__name__}) has no norm of its own before its "
        "attention; whiten it without the norm"
    )
