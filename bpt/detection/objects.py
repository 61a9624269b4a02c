"""The objects of one image: those to learn, and those that were found; and batches of images.

Boxes are x0, y0, x1, y1 in pixels of the detector's input, whose upper left corner is (0, 0):
float32, whatever the precision of the rest. Labels run from 1; 0 is the background. A mask lives
in the frame of its box, so that no mask of the size of an image is ever held.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

FRAME = 112  # pixels of a target's mask, across its box


@dataclass(frozen=True)
class Targets:
    """The n objects of an image that are to be learned.

    Attributes:
        boxes: (n, 4) float32, x0, y0, x1, y1 in pixels of the detector's input.
        labels: (n,) int64, from 1.
        masks: (n, FRAME, FRAME) uint8: how much of each cell of the box is covered, 0 to 255.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Targets":
        """The same on a device."""
        moved = (x.to(device, non_blocking=True) for x in (self.boxes, self.labels, self.masks))
        return Targets(*moved)


@dataclass(frozen=True)
class Detections:
    """The k objects that were found in an image, the best first.

    Attributes:
        boxes: (k, 4) float32, x0, y0, x1, y1 in pixels of the detector's input.
        scores: (k,) float32, in 0..1.
        labels: (k,) int64, from 1.
        masks: (k, 28, 28) float32: for each cell of the box how likely it is of the object.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Batch:
    """Images as the detector takes them.

    Attributes:
        images: (B, 3, S, S) uint8 RGB; each image lies at the upper left.
        sizes: (height, width) in pixels of each image in there; the rest is padding.
        targets: of each image, for training.
    """

    images: Tensor
    sizes: tuple[tuple[int, int], ...]
    targets: tuple[Targets, ...] = ()

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, part: slice) -> "Batch":
        return Batch(self.images[part], self.sizes[part], self.targets[part])

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        targets = tuple(one.to(device) for one in self.targets)
        return replace(self, images=self.images.to(device, non_blocking=True), targets=targets)
