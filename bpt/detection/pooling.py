"""What the maps of a pyramid show in a region, as a square of fixed size."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

from bpt.detection.layers import without_autocast
from bpt.detection.pyramid import POOLED, STRIDES

CANONICAL = 224  # side in pixels of the region that is read from the map of stride 16


class Pooler:
    """Reads regions from the pyramid of one batch.

    A map's scale is its stride, a constant: to infer it from the heights of map and image is right
    only until an image is padded. Samples lie at the centres of pixels ("aligned").

    Args:
        maps: of strides 4, 8, 16 and 32, (B, c, S/s, S/s), then perhaps more. They are cast to
            float32 once: half of a pixel matters to a region of a few.
        sampling_ratio: samples of a bin along each axis; 0: as many as the bin has pixels.

    Source: He et al. 2017, arXiv 1703.06870 (RoIAlign); Lin et al. 2017, arXiv 1612.03144,
    equation 1 (which map); detectron2, modeling/poolers.py.
    """

    def __init__(self, maps: Sequence[Tensor], *, sampling_ratio: int = 0) -> None:
        # The operator reads plain layout and would copy another one at each call.
        self.maps = [one.float().contiguous() for one in maps[:POOLED]]
        self.sampling_ratio = sampling_ratio

    def __call__(self, boxes: Sequence[Tensor], size: int) -> Tensor:
        """(k, c, size, size) float32, of the (k_i, 4) boxes of each image, in their order.

        In the layout that convolutions and norms over channels read as it is: channels last.
        """
        return self.read(regions_of(boxes), size)

    def read(self, regions: Tensor, size: int) -> Tensor:
        """The same of (k, 5) regions: image and box."""
        levels = level_of(regions[:, 1:])
        order = levels.argsort()
        counts = torch.bincount(levels, minlength=POOLED).tolist()
        with without_autocast(regions.device):
            parts = [
                roi_align(one, part, size, 1 / stride, self.sampling_ratio, aligned=True)
                for one, stride, part in zip(
                    self.maps, STRIDES[:POOLED], torch.split(regions[order], counts), strict=True
                )
            ]
        found = torch.cat(parts)
        pooled = torch.empty_like(found, memory_format=torch.channels_last)
        pooled[order] = found  # keeps nothing for the backward pass, as other ways would
        return pooled


def regions_of(boxes: Sequence[Tensor]) -> Tensor:
    """(k, 5) float32 of the (k_i, 4) boxes of each image: the image's place, and the box."""
    images = torch.cat([one.new_full((len(one), 1), i) for i, one in enumerate(boxes)])
    return torch.cat([images, torch.cat([*boxes])], dim=1)


def level_of(boxes: Tensor) -> Tensor:
    """(k,) int64, 0 to 3: the map of a pyramid from which each of (k, 4) boxes is read."""
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    levels = torch.floor(2 + torch.log2(sides / CANONICAL + 1e-8))
    return levels.clamp(0, POOLED - 1).long()
