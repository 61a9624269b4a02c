"""Which part of its box an object covers.

Source: He et al. 2017, arXiv 1703.06870; layers as in detectron2's ViTDet.
"""

from collections.abc import Sequence

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn, split
from torch.nn import functional
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from bpt.detection.box_heads import Regions
from bpt.detection.frames import mask_targets
from bpt.detection.layers import leaves, recomputed, run, without_autocast
from bpt.detection.objects import Targets
from bpt.detection.pooling import Pooler

POOLED_SIDE, SIDE, CONVOLUTIONS = 14, 28, 4
AT_ONCE = 64  # regions


class MaskHead(nn.Module):
    """Four 3x3 convolutions, a transposed one, and for each class whether a cell is of the object.

    Args:
        num_classes: C.
        channels: of the pooled maps and the convolutions.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.layers = MaskRCNNHeads(channels, [channels] * CONVOLUTIONS, 1, LayerNorm2d)
        self.predictor = MaskRCNNPredictor(channels, channels, num_classes)
        nn.init.normal_(self.predictor.mask_fcn_logits.weight, std=0.001)
        nn.init.zeros_(self.predictor.mask_fcn_logits.bias)
        nn.init.zeros_(self.predictor.conv5_mask.bias)

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """(k, c, 14, 14), (k,) labels from 1 -> (k, 28, 28) float32 logits, each of its class.

        The other classes' logits of a region are in no loss and no result: they are not computed.
        """
        *convolutions, norm, relu = leaves(self.layers)
        up, relu_up, predict = self.predictor.children()
        last = nn.Sequential(norm, relu, up, relu_up)

        def own(x: Tensor, labels: Tensor) -> Tensor:
            weight, bias = predict.parameters()
            x = last(x).flatten(2)  # by far the largest, and not kept for the backward pass
            weight, bias = weight[labels - 1].flatten(1)[:, None], bias[labels - 1, None]
            logits: Tensor = torch.bmm(weight, x)[:, 0].float() + bias
            return logits

        parts = zip(split(pooled, AT_ONCE), split(labels, AT_ONCE), strict=True)
        logits = torch.cat([recomputed(own, run(convolutions, x), which) for x, which in parts])
        return logits.view(len(labels), SIDE, SIDE)

    def losses(
        self, pooler: Pooler, regions: Regions, targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """`mask`: the mean binary cross-entropy over the cells of regions that show an object."""
        shown = regions.foreground()
        logits = self(pooler(shown.boxes, POOLED_SIDE), shown.labels())
        with without_autocast(logits.device):
            parts = zip(targets, shown.matches, shown.boxes, strict=True)
            wanted = torch.cat([mask_targets(t, m.indices, b, size=SIDE) for t, m, b in parts])
            wrong = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return {"mask": wrong / max(logits.numel(), 1)}

    def detect(
        self, pooler: Pooler, boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> list[Tensor]:
        """Of each image (k_i, 28, 28) float32 in 0..1, for (k_i, 4) boxes and (k_i,) labels."""
        logits = self(pooler(boxes, POOLED_SIDE), torch.cat([*labels]))
        return [*logits.sigmoid().split([len(one) for one in labels])]
