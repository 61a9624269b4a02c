"""The architecture of the three: ViT-Tiny for 64 pixels, with fixed or learned positions."""

from typing import Any

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

IMAGE_SIZE, PATCH_SIZE, WIDTH, DEPTH, HEADS = 64, 8, 192, 12, 3


def vit_tiny(*, fixed_positions: bool, **options: Any) -> VisionTransformer:
    """A timm VisionTransformer (d 192, 12 blocks, 3 heads, patch 8, class token) without a head.

    It takes any size that 8 divides: positions are resampled (`dynamic_img_size`), which leaves
    the names and shapes of its weights as they are. `fixed_positions` are 2-D sin-cos with a zero
    for the class token, as in MAE and MoCo v3.
    """
    model = VisionTransformer(
        img_size=options.pop("img_size", IMAGE_SIZE),
        patch_size=PATCH_SIZE,
        embed_dim=options.pop("embed_dim", WIDTH),
        depth=options.pop("depth", DEPTH),
        num_heads=options.pop("num_heads", HEADS),
        num_classes=0,
        dynamic_img_size=True,
        **options,
    )
    if fixed_positions:
        model.pos_embed = nn.Parameter(sincos(model.embed_dim, grid_of(model)), requires_grad=False)
    return model


def grid_of(model: VisionTransformer) -> tuple[int, int]:
    """Patches in height and width, at the size the model was made for."""
    height, width = model.patch_embed.grid_size
    return height, width


def sincos(width: int, grid: tuple[int, int]) -> Tensor:
    """(1, 1 + patches, width) 2-D sin-cos positions; the class token's are zero."""
    positions = build_sincos2d_pos_embed(list(grid), dim=width, interleave_sin_cos=False)
    return torch.cat([torch.zeros(1, width), positions])[None]
