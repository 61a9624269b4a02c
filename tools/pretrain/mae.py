"""Masked autoencoding: He et al. 2022, arXiv 2111.06377.

Three quarters of the patches are hidden, and a small decoder predicts their pixels, each patch
normalised by its own mean and standard deviation. The decoder has two blocks of width 128:
light-weight encoders learn better features under a shallow one (arXiv 2205.14443).
"""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tools.pretrain.views import as_images, mae_view
from tools.pretrain.vit import grid_of, sincos, vit_tiny

DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 128, 2, 4
MASKED = 0.75


class MaskedAutoencoder(nn.Module):
    """Encoder, decoder and loss; `backbone` is what is kept."""

    def __init__(self, size: int = 64, **options: int) -> None:
        super().__init__()
        self.view = mae_view(size)
        self.backbone = vit_tiny(fixed_positions=True, img_size=size, **options)
        self.patch = self.backbone.patch_embed.patch_size[0]
        grid = grid_of(self.backbone)
        self.embed = nn.Linear(self.backbone.embed_dim, DECODER_WIDTH)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DECODER_WIDTH).normal_(std=0.02))
        self.positions = nn.Parameter(sincos(DECODER_WIDTH, grid), requires_grad=False)
        self.decoder = nn.Sequential(
            *(Block(DECODER_WIDTH, DECODER_HEADS, qkv_bias=True) for _ in range(DECODER_DEPTH)),
            nn.LayerNorm(DECODER_WIDTH, eps=1e-6),
        )
        self.predict = nn.Linear(DECODER_WIDTH, self.patch**2 * 3)

    def forward(self, pixels: Tensor) -> Tensor:
        """Mean squared error over hidden patches of (b, h, w, 3) uint8 images."""
        images = self.view(as_images(pixels))
        shown, hidden, restore = random_masking(len(images), self.patches, images.device)
        predicted = self.decode(self.encode(images, shown), restore)
        error = (predicted.float() - self.targets(images)).square().mean(dim=-1)
        return error.gather(1, hidden).mean()

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.positions.shape[1] - 1

    def encode(self, images: Tensor, shown: Tensor) -> Tensor:
        """(b, 1 + s, d) tokens of the class token and the s patches in `shown` (b, s)."""
        vit = self.backbone
        patches = vit.patch_embed(images).flatten(1, 2) + vit.pos_embed[:, 1:]
        seen = patches.gather(1, shown[:, :, None].expand(-1, -1, patches.shape[-1]))
        first = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens: Tensor = vit.norm(vit.blocks(torch.cat([first, seen], dim=1)))
        return tokens

    def decode(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """(b, patches, 3 p^2) predicted pixels; `restore` (b, patches) undoes the shuffle."""
        tokens = self.embed(tokens)
        missing = self.patches - tokens.shape[1] + 1
        masks = self.mask_token.to(tokens.dtype).expand(len(tokens), missing, -1)
        patches = torch.cat([tokens[:, 1:], masks], dim=1)
        patches = patches.gather(1, restore[:, :, None].expand(-1, -1, patches.shape[-1]))
        decoded = self.decoder(torch.cat([tokens[:, :1], patches], dim=1) + self.positions)
        predicted: Tensor = self.predict(decoded[:, 1:])
        return predicted

    def targets(self, images: Tensor) -> Tensor:
        """(b, patches, 3 p^2) pixels, each patch normalised to mean 0 and variance 1."""
        patches = nn.functional.unfold(images, self.patch, stride=self.patch).mT
        mean = patches.mean(dim=-1, keepdim=True)
        variance = patches.var(dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()


def random_masking(batch: int, patches: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Which patches each image shows and hides, and the order that undoes the shuffle."""
    order = torch.rand(batch, patches, device=device).argsort(dim=1)
    shown = round(patches * (1 - MASKED))
    return order[:, :shown], order[:, shown:], order.argsort(dim=1)
