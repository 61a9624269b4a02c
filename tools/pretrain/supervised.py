"""Classification with cross-entropy."""

import torch
from timm.data import Mixup
from torch import Tensor, nn

from tools.pretrain.views import as_images, supervised_view
from tools.pretrain.vit import vit_tiny

SMOOTHING = 0.1


class Supervised(nn.Module):
    """Backbone, linear head on the class token and loss; `backbone` is what is kept."""

    def __init__(
        self, size: int = 64, *, num_classes: int, mixup: bool = False, **options: int
    ) -> None:
        super().__init__()
        self.backbone = vit_tiny(fixed_positions=False, img_size=size, **options)
        self.head = nn.Linear(self.backbone.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.mixup = (
            Mixup(0.8, 1.0, prob=0.8, label_smoothing=SMOOTHING, num_classes=num_classes)
            if mixup
            else None
        )
        self.set_size(size)

    def set_size(self, size: int) -> None:
        """Views of `size` pixels from now on."""
        self.view = supervised_view(size)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of (b, h, w, 3) uint8 images with smoothed, perhaps mixed, labels."""
        images = self.view(as_images(pixels))
        if self.mixup is not None and len(images) % 2 == 0:
            images, targets = self.mixup(images, labels)
            logits = self.head(self.backbone(images)).float()
            return torch.sum(-targets * logits.log_softmax(dim=1), dim=1).mean()
        logits = self.head(self.backbone(images)).float()
        return nn.functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
