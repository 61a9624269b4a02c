"""Where an image lies in the detector's input: large-scale jitter, or whole for evaluation.

An image is mirrored or not, resized, and cut at the input's border; it lies at the upper left.

Source: detectron2@02b5c4e, data/transforms/augmentation_impl.py (RandomFlip, ResizeScale,
FixedSizeCrop, ResizeShortestEdge) and projects/ViTDet/configs/common/coco_loader_lsj.py.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

F64 = NDArray[np.float64]
Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Geometry:
    """From the pixels of an image to those of the detector's input, and back.

    Attributes:
        original: height and width of the image.
        resized: of the whole image, resized.
        corner: y and x in the resized image where the part begins that is kept.
        kept: height and width of that part; it lies at the upper left of the input.
        flip: whether the image is mirrored, before all else.
    """

    original: Size
    resized: Size
    corner: Size
    kept: Size
    flip: bool = False

    def points(self, points: F64) -> F64:
        """(..., 2) x, y in the image -> in the input; also of what lies outside the kept part."""
        x, y = points[..., 0], points[..., 1]
        x = self.original[1] - x if self.flip else x
        scale_y, scale_x = self._scale
        return np.stack([x * scale_x - self.corner[1], y * scale_y - self.corner[0]], axis=-1)

    def boxes(self, boxes: F64) -> F64:
        """(..., 4) x0, y0, x1, y1 in the image -> in the input; not cut at the border."""
        return _sorted(self.points(boxes.reshape(*boxes.shape[:-1], 2, 2)))

    def points_back(self, points: F64) -> F64:
        """(..., 2) x, y in the input -> in the image."""
        scale_y, scale_x = self._scale
        x = (points[..., 0] + self.corner[1]) / scale_x
        y = (points[..., 1] + self.corner[0]) / scale_y
        return np.stack([self.original[1] - x if self.flip else x, y], axis=-1)

    def boxes_back(self, boxes: F64) -> F64:
        """(..., 4) x0, y0, x1, y1 in the input -> in the image; not cut at the border."""
        return _sorted(self.points_back(boxes.reshape(*boxes.shape[:-1], 2, 2)))

    def apply(self, image: Image.Image) -> Tensor:
        """(3, *kept) uint8 of an RGB image: only the part that is kept is resized."""
        height, width = self.kept
        whole = np.array([[0.0, 0.0, width, height]])
        x0, y0, x1, y1 = self.boxes_back(whole)[0]
        # Rounding may put a side of the whole image just outside.
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, image.width), min(y1, image.height))
        part = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
        # Band by band: faster than the three at once, which lie pixel by pixel.
        bands = (ImageOps.mirror(part) if self.flip else part).split()
        return torch.from_numpy(np.stack([np.asarray(band) for band in bands]))

    @property
    def _scale(self) -> tuple[float, float]:
        return self.resized[0] / self.original[0], self.resized[1] / self.original[1]


class Draw(NamedTuple):
    """What chance decides: mirrored or not, the scale, and in 0..1 where the crop lies."""

    flip: bool
    scale: float
    place: float


@dataclass(frozen=True)
class Jitter:
    """Large-scale jitter.

    Attributes:
        size: pixels across the input, a square.
        smallest: least scale; at 1 the longest side of an image gets `size` pixels.
        largest: largest scale.
        flip: share of the images that are mirrored.
    """

    size: int = 1024
    smallest: float = 0.1
    largest: float = 2.0
    flip: float = 0.5

    def draw(self, rng: np.random.Generator) -> Draw:
        """The next draw: the same three numbers for images of any size."""
        flip, scale, place = rng.uniform(size=3).tolist()
        spread = self.largest - self.smallest
        return Draw(flip < self.flip, self.smallest + scale * spread, place)

    def geometry(self, height: int, width: int, draw: Draw) -> Geometry:
        """Where an image of this size lies by a draw."""
        ratio = min(self.size * draw.scale / height, self.size * draw.scale / width)
        resized = np.maximum(np.round(np.multiply((height, width), ratio)).astype(int), 1)
        room = np.maximum(resized - self.size, 0)
        # One number for both axes: the crop lies on a diagonal.
        corner = np.round(room * draw.place).astype(int)
        kept = np.minimum(resized - corner, self.size)
        return Geometry((height, width), _size(resized), _size(corner), _size(kept), draw.flip)


def whole(height: int, width: int, size: int) -> Geometry:
    """An image for evaluation: all of it, its longest side `size` pixels."""
    # Two steps, as the source does: the roundings of their products are part of the result.
    ratio = size / min(height, width)
    sides = [size, ratio * width] if height < width else [ratio * height, size]
    if max(sides) > size:
        sides = [side * (size / max(sides)) for side in sides]
    resized = (max(int(sides[0] + 0.5), 1), max(int(sides[1] + 0.5), 1))
    return Geometry((height, width), resized, (0, 0), resized)


def _sorted(corners: F64) -> F64:
    """(..., 2, 2) two opposite corners -> (..., 4)."""
    return np.concatenate([corners.min(-2), corners.max(-2)], axis=-1)


def _size(pair: NDArray[np.int_]) -> Size:
    return int(pair[0]), int(pair[1])
