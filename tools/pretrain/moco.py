"""Contrastive learning with a momentum encoder: MoCo v3, Chen et al. 2021, arXiv 2104.02057."""

import copy
import itertools
import math

import torch
from torch import Tensor, nn

from tools.pretrain.views import as_images, moco_view
from tools.pretrain.vit import vit_tiny

HIDDEN, OUT = 1024, 256  # the paper's 4,096 and 256, for a backbone a quarter as wide
TEMPERATURE = 0.2
MOMENTUM = 0.99


class MocoV3(nn.Module):
    """Encoder, projector, predictor, their momentum copies and the loss; `backbone` is kept."""

    def __init__(self, size: int = 64, **options: int) -> None:
        super().__init__()
        self.backbone = vit_tiny(fixed_positions=True, img_size=size, **options)
        # A frozen random patch projection is what keeps the training stable (section 4.2).
        self.backbone.patch_embed.requires_grad_(False)
        self.projector = mlp([self.backbone.embed_dim, HIDDEN, HIDDEN, OUT])
        self.predictor = mlp([OUT, HIDDEN, OUT])
        self.slow_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.slow_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.set_size(size)

    def set_size(self, size: int) -> None:
        """Views of `size` pixels from now on."""
        self.views = [moco_view(size, second=False), moco_view(size, second=True)]

    def forward(self, pixels: Tensor) -> Tensor:
        """Symmetric InfoNCE of two views of (b, h, w, 3) uint8 images."""
        images = as_images(pixels)
        one, two = (view(images) for view in self.views)
        with torch.no_grad():
            keys = [self.slow_projector(self.slow_backbone(view)) for view in (one, two)]
        queries = [self.predictor(self.projector(self.backbone(view))) for view in (one, two)]
        return info_nce(queries[0], keys[1]) + info_nce(queries[1], keys[0])

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the momentum encoder; its momentum rises from 0.99 to 1 along a cosine."""
        momentum = 1 - (1 - MOMENTUM) * (1 + math.cos(math.pi * progress)) / 2
        pairs = ((self.slow_backbone, self.backbone), (self.slow_projector, self.projector))
        for slow, fast in pairs:
            torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - momentum)


def info_nce(queries: Tensor, keys: Tensor) -> Tensor:
    """2 t times the cross-entropy of finding each query's own key in the batch."""
    queries, keys = (nn.functional.normalize(rows.float(), dim=1) for rows in (queries, keys))
    logits = queries @ keys.mT / TEMPERATURE
    own = torch.arange(len(queries), device=queries.device)
    return 2 * TEMPERATURE * nn.functional.cross_entropy(logits, own)


def mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers with batch norm, and ReLU between them; the last norm is without affine."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
