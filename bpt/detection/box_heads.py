"""Which object a region shows, and where exactly: one head, or a cascade of three.

Source: Girshick 2015, arXiv 1504.08083; Cai and Vasconcelos 2018, arXiv 1712.00726 (cascade);
numbers and order as in detectron2's ViTDet, modeling/roi_heads/cascade_rcnn.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn, split
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead

from bpt.detection.boxes import (
    Found,
    Matches,
    Weights,
    clip,
    decode,
    encode,
    match,
    nonempty,
    select,
)
from bpt.detection.layers import leaves, run, without_autocast
from bpt.detection.objects import Targets
from bpt.detection.pooling import Pooler, regions_of

# Of each stage: the overlap from which a region shows an object, and the weights of its numbers.
STAGES: dict[str, tuple[tuple[float, Weights], ...]] = {
    "mask-rcnn": ((0.5, (10.0, 10.0, 5.0, 5.0)),),
    "cascade": (
        (0.5, (10.0, 10.0, 5.0, 5.0)),
        (0.6, (20.0, 20.0, 10.0, 10.0)),
        (0.7, (30.0, 30.0, 15.0, 15.0)),
    ),
}
POOLED_SIDE, CONVOLUTIONS = 7, 4
AT_ONCE = 512  # regions: what the backward pass needs besides what was kept grows with them
SAMPLED, POSITIVE = 512, 0.25  # regions of an image that count in the losses


@dataclass(frozen=True)
class Regions:
    """Regions of the images of a batch, and the target that each is of.

    Attributes:
        boxes: of each image (k_i, 4) float32.
        matches: of each image.
    """

    boxes: list[Tensor]
    matches: list[Matches]

    def foreground(self) -> "Regions":
        """Those that show an object."""
        kept = [torch.where(one.labels > 0)[0] for one in self.matches]
        return self[kept]

    def __getitem__(self, kept: Sequence[Tensor]) -> "Regions":
        matches = [
            Matches(one.labels[part], one.indices[part])
            for one, part in zip(self.matches, kept, strict=True)
        ]
        return Regions([b[part] for b, part in zip(self.boxes, kept, strict=True)], matches)

    def labels(self) -> Tensor:
        """(k,) of all images."""
        return torch.cat([one.labels for one in self.matches])


class BoxHead(nn.Module):
    """One stage: four 3x3 convolutions and a hidden layer, then classes and boxes.

    Args:
        iou: the overlap from which a region shows an object.
        weights: of the four numbers of a box.
        num_classes: C.
        channels: of the pooled maps and the convolutions.
        hidden: outputs of the hidden layer.
        class_agnostic: four numbers for all classes together, not for each.
    """

    def __init__(
        self,
        iou: float,
        weights: Weights,
        *,
        num_classes: int,
        channels: int,
        hidden: int,
        class_agnostic: bool,
    ) -> None:
        super().__init__()
        self.weights, self.matcher = weights, Matcher(iou, iou)
        pooled = (channels, POOLED_SIDE, POOLED_SIDE)
        self.layers = FastRCNNConvFCHead(pooled, [channels] * CONVOLUTIONS, [hidden], LayerNorm2d)
        self.classes = nn.Linear(hidden, 1 + num_classes)
        self.box = nn.Linear(hidden, 4 if class_agnostic else 4 * num_classes)
        # What Caffe2, and detectron2 with it, calls Xavier.
        linear = next(layer for layer in self.layers if isinstance(layer, nn.Linear))
        nn.init.kaiming_uniform_(linear.weight, a=1)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.box.weight, std=0.001)
        for layer in (linear, self.classes, self.box):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(k, c, 7, 7) -> (k, 1 + C) logits, background first, and (k, C or 1, 4), in float32."""
        layers = leaves(self.layers)
        x = torch.cat([run(layers, part) for part in split(pooled, AT_ONCE)])
        return self.classes(x).float(), self.box(x).float().unflatten(1, (-1, 4))

    def losses(
        self, logits: Tensor, deltas: Tensor, regions: Regions, targets: Sequence[Targets]
    ) -> tuple[Tensor, Tensor]:
        """Of classes the cross-entropy, of boxes the L1 distance, both over all regions.

        Without any region they are 0, and every weight has a gradient.
        """
        labels = regions.labels()
        shown = regions.foreground()
        own = shown.labels() - 1 if deltas.shape[1] > 1 else torch.zeros_like(shown.labels())
        boxes = [one.boxes[m.indices] for one, m in zip(targets, shown.matches, strict=True)]
        wanted = encode(torch.cat(boxes), torch.cat(shown.boxes), self.weights)
        off = functional.l1_loss(deltas[torch.where(labels > 0)[0], own], wanted, reduction="sum")
        wrong = functional.cross_entropy(logits, labels, reduction="sum")
        return wrong / max(len(labels), 1), off / max(len(labels), 1)


class BoxHeads(nn.Module):
    """The stages, each of which begins with the boxes that the one before it gave.

    Args:
        detector: "mask-rcnn" (one stage) or "cascade" (three).
        num_classes, channels, hidden, class_agnostic: of each `BoxHead`.
    """

    def __init__(
        self,
        detector: str,
        *,
        num_classes: int,
        channels: int,
        hidden: int,
        class_agnostic: bool,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            BoxHead(
                iou,
                weights,
                num_classes=num_classes,
                channels=channels,
                hidden=hidden,
                class_agnostic=class_agnostic,
            )
            for iou, weights in STAGES[detector]
        )
        self.sampler = BalancedPositiveNegativeSampler(SAMPLED, POSITIVE)

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], targets: Sequence[Targets]) -> Regions:
        """At most 512 of each image, of proposals and the objects' own boxes."""
        boxes = [torch.cat([p, t.boxes]) for p, t in zip(proposals, targets, strict=True)]
        regions = _labelled(boxes, targets, self._heads[0].matcher)
        positive, negative = self.sampler([one.labels for one in regions.matches])
        chosen = zip(positive, negative, strict=True)
        return regions[[torch.where(one | other)[0] for one, other in chosen]]

    def losses(
        self,
        pooler: Pooler,
        regions: Regions,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Targets],
    ) -> dict[str, Tensor]:
        """All losses by name, of the regions that `sample` gave.

        The later stages label what the stage before them gave, and sample nothing. With s stages
        each gives the maps an s-th of its gradient: the losses are summed, and the maps see their
        mean.
        """
        losses = {}
        for number, stage in enumerate(self._heads, start=1):
            pooled = pooler(regions.boxes, POOLED_SIDE)
            logits, deltas = stage(_scaled_gradient(pooled, 1 / len(self.stages)))
            with without_autocast(pooled.device):
                suffix = f"_{number}" if len(self.stages) > 1 else ""
                losses[f"class{suffix}"], losses[f"box{suffix}"] = stage.losses(
                    logits, deltas, regions, targets
                )
                if number < len(self.stages):
                    moved = _moved(stage, deltas, regions.boxes, sizes)
                    following = [one[nonempty(one)] for one in (m[:, 0] for m in moved)]
                    regions = _labelled(following, targets, self._heads[number].matcher)
        return losses

    def detect(
        self,
        pooler: Pooler,
        proposals: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Found]:
        """What each image shows: boxes of the last stage, scores averaged over the stages."""
        boxes, moved, scores = list(proposals), [], []
        for stage in self._heads:
            parts = split(regions_of(boxes), AT_ONCE)  # so that few pooled maps are held at once
            read = [stage(pooler.read(part, POOLED_SIDE)) for part in parts]
            logits, deltas = (torch.cat(one) for one in zip(*read, strict=True))
            with without_autocast(logits.device):
                scores.append(logits.softmax(dim=1))
                moved = _moved(stage, deltas, boxes, sizes)
            boxes = [one[:, 0] for one in moved]
        mean = split(torch.stack(scores).mean(dim=0), [len(one) for one in boxes])
        return [select(one, score) for one, score in zip(moved, mean, strict=True)]

    @property
    def _heads(self) -> list[BoxHead]:
        return cast(list[BoxHead], list(self.stages))


def _labelled(boxes: Sequence[Tensor], targets: Sequence[Targets], matcher: Matcher) -> Regions:
    matches = [match(b, t, matcher) for b, t in zip(boxes, targets, strict=True)]
    return Regions([*boxes], matches)


@torch.no_grad()
def _moved(
    stage: BoxHead, deltas: Tensor, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Of each image (k_i, C or 1, 4): the boxes that a stage made, cut at the image's border."""
    moved = split(decode(deltas, torch.cat([*boxes]), stage.weights), [len(one) for one in boxes])
    return [clip(one, size) for one, size in zip(moved, sizes, strict=True)]


def _scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, whose gradient goes on times the factor."""
    if factor != 1 and x.requires_grad:
        x.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
    return x
