"""What a head reads of the tokens behind the last block."""

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from burst.backbone import Backbone
from burst.errors import UnsupportedModel, check_known

POOLINGS = ("default", "prompts+patches", "patches", "prompts", "token")
OF_PROMPTS = ("prompts+patches", "prompts")  # which only a method with prompts can have


def choose_pooling(backbone: Backbone, pooling: str) -> str:
    """What "default" stands for, or the pooling itself if the backbone can have it.

    Raises:
        UnknownName: no such pooling.
        UnsupportedModel: "token", of a model without a class token.
    """
    check_known("pooling", pooling, POOLINGS)
    if pooling == "default":
        pooling = "prompts+patches" if backbone.pooling == "avg" else "token"
    if pooling == "token" and getattr(backbone.model, "cls_token", None) is None:
        raise UnsupportedModel(f"{backbone.name} has no class token; choose pooling patches")
    return pooling


def pool(
    vit: VisionTransformer, x: Tensor, pooling: str, *, prefix: int, prompts: int = 0
) -> Tensor:
    """(B, d), what a head reads of the (B, N, d) tokens behind the last block.

    The norm behind it is the pretrained one (timm's `global_pool="avg"` would put a fresh one in
    its place).

    Args:
        vit: whose final norm is used.
        x: class token and registers, then prompts, then patches.
        pooling: one of `POOLINGS`, but "default".
        prefix: tokens before the prompts.
        prompts: tokens of the prompts.
    """
    read: Tensor = final_norm(vit)(pooled(x, pooling, prefix=prefix, prompts=prompts))
    return read


def pooled(x: Tensor, pooling: str, *, prefix: int, prompts: int = 0) -> Tensor:
    """(B, d): what `pool` gives, before the norm."""
    return x[:, read_rows(pooling, prefix=prefix, prompts=prompts)].mean(dim=1)


def read_rows(pooling: str, *, prefix: int, prompts: int) -> slice:
    """Which tokens behind the last block a pooling reads; arguments as of `pool`."""
    return {
        "token": slice(1),
        "prompts+patches": slice(prefix, None),
        "patches": slice(prefix + prompts, None),
        "prompts": slice(prefix, prefix + prompts),
    }[pooling]


def final_norm(vit: VisionTransformer) -> nn.Module:
    """The pretrained one, wherever timm keeps it."""
    norm: nn.Module = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
    return norm
