"""Mask R-CNN and Cascade Mask R-CNN on the map of a plain ViT."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from bpt.detection.box_heads import STAGES, BoxHeads
from bpt.detection.layers import seeded
from bpt.detection.masks import MaskHead
from bpt.detection.objects import Batch, Detections
from bpt.detection.pooling import Pooler
from bpt.detection.proposals import BEFORE_TEST, BEFORE_TRAINING, ProposalNetwork
from bpt.detection.pyramid import POOLED, STRIDES, Pyramid
from bpt.fine_tuning import layers_of
from bpt.model import TrainedModule
from burst.errors import BurstError, ShapeError, check_known

DETECTORS = tuple(STAGES)


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """What stands behind the backbone.

    Attributes:
        detector: "mask-rcnn" or "cascade".
        num_classes: C, without background.
        channels: of the pyramid and of the convolutions behind it.
        hidden: outputs of the box heads' hidden layer.
        class_agnostic: whether a box head gives four numbers for all classes, not for each. None:
            as published, in the cascade only.
        sampling_ratio: samples of a pooled bin along each axis; 0: as many as the bin has pixels.

    Raises:
        UnknownName: no such detector.
        BurstError: a number that is out of range, or a cascade that is not class-agnostic.
    """

    detector: str = "mask-rcnn"
    num_classes: int
    channels: int = 256
    hidden: int = 1024
    class_agnostic: bool | None = None
    sampling_ratio: int = 0

    def __post_init__(self) -> None:
        check_known("detector", self.detector, DETECTORS)
        for name in ("num_classes", "channels", "hidden", "sampling_ratio"):
            value, least = getattr(self, name), 0 if name == "sampling_ratio" else 1
            if value < least:
                raise BurstError(f"{name} is {value}, expected {least} or more")
        if self.detector == "cascade" and self.class_agnostic is False:
            raise BurstError("a cascade's boxes are class-agnostic; leave class_agnostic out")

    @property
    def agnostic(self) -> bool:
        """What `class_agnostic` stands for."""
        return self.detector == "cascade" if self.class_agnostic is None else self.class_agnostic


class Detector(TrainedModule):
    """A backbone, a pyramid, a network that proposes regions, and heads for boxes and masks.

    `losses` and `detect` do the same in training and in eval mode. Convolutions run in the
    precision of the caller's autocast, boxes and losses in float32 whatever that is. Which anchors
    and regions a step learns from is drawn from torch's global generator.

    Args:
        trunk: images, normalised (B, 3, S, S) -> (B, d, S/p, S/p); d is its `width`, p, 8 or 16,
            its `stride`. It keeps frozen parts in eval mode itself.
        options: of the rest.
        mean, std: of the backbone's input, RGB in 0..1.
        generator: of the start of all that is not the trunk, on the CPU; the global random state is
            left alone. None: from the global one.

    Raises:
        UnsupportedModel: a patch of another size.

    Source: Li et al. 2022, arXiv 2203.16527; He et al. 2017, arXiv 1703.06870; Cai and Vasconcelos
    2018, arXiv 1712.00726.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        options: DetectorOptions,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        self.trunk = trunk
        channels, classes = options.channels, options.num_classes
        with seeded(generator):
            self.pyramid = Pyramid(cast(int, trunk.width), cast(int, trunk.stride), channels)
            self.proposals = ProposalNetwork(channels)
            self.boxes = BoxHeads(
                options.detector,
                num_classes=classes,
                channels=channels,
                hidden=options.hidden,
                class_agnostic=options.agnostic,
            )
            self.masks = MaskHead(classes, channels)
        for name, values in (("mean", mean), ("std", std)):
            levels = 255 * torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, levels, persistent=False)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Which parameters make a layer, as timm asks; all behind the backbone are the last."""
        return layers_of("trunk.vit", coarse=coarse)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`losses`, under the name that wrappers such as DistributedDataParallel call."""
        return self.losses(batch)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """What a step minimises the sum of: float32 scalars by name.

        `objectness`, `proposal_box`, `class`, `box`, `mask`; in a cascade `class_1` to `class_3`
        and `box_1` to `box_3`. Each is finite and has a gradient for all its weights, also where
        no image shows an object.

        Raises:
            ShapeError: not one `Targets` for each image, or a side that is no multiple of 32.
        """
        if len(batch.targets) != len(batch):
            raise ShapeError(f"{len(batch)} images and {len(batch.targets)} targets: one each")
        maps = self._maps(batch)
        candidates = self.proposals(maps)
        losses = self.proposals.losses(candidates, batch.targets)
        proposals = self.proposals.propose(candidates, batch.sizes, before=BEFORE_TRAINING)
        pooler = Pooler(maps, sampling_ratio=self.options.sampling_ratio)
        regions = self.boxes.sample(proposals, batch.targets)
        # Boxes come last, so that their backward pass is the first, and its memory free again
        # before the maps have a gradient.
        of_masks = self.masks.losses(pooler, regions, batch.targets)
        of_boxes = self.boxes.losses(pooler, regions, batch.sizes, batch.targets)
        return losses | of_boxes | of_masks

    @torch.no_grad()
    def detect(self, batch: Batch) -> list[Detections]:
        """What each image shows, at most 100 objects, with boxes in pixels of the batch.

        Raises:
            ShapeError: a side that is no multiple of 32.
        """
        maps = self._maps(batch)
        proposals = self.proposals.propose(self.proposals(maps), batch.sizes, before=BEFORE_TEST)
        pooler = Pooler(maps, sampling_ratio=self.options.sampling_ratio)
        found = self.boxes.detect(pooler, proposals, batch.sizes)
        masks = self.masks.detect(pooler, [f.boxes for f in found], [f.labels for f in found])
        return [Detections(*one, mask) for one, mask in zip(found, masks, strict=True)]

    def _maps(self, batch: Batch) -> list[Tensor]:
        """The pyramid of a batch."""
        height, width = batch.images.shape[-2:]
        if height % STRIDES[POOLED - 1] or width % STRIDES[POOLED - 1]:
            raise ShapeError(f"a batch of {height} x {width} pixels; pad to multiples of 32")
        images = (batch.images.float() - self.mean) / self.std
        # After the normalisation: the padding is the mean, not black.
        for image, (rows, columns) in zip(images, batch.sizes, strict=True):
            image[:, rows:] = 0
            image[:, :, columns:] = 0
        maps: list[Tensor] = self.pyramid(self.trunk(images))
        return maps
