"""Random crops of the two photographs that scikit-learn ships: needs no file, no network."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SCALE = (0.08, 1.0)  # share of the photograph's area
LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))  # width over height


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A box of a photograph, in pixels, mirrored or not."""

    photo: str
    top: int
    left: int
    height: int
    width: int
    flip: bool

    def __str__(self) -> str:
        box = f"{self.width}x{self.height}+{self.left}+{self.top}"
        return f"{self.photo}:{box}{':flipped' if self.flip else ''}"


def load_photos() -> dict[str, Image.Image]:
    """The photographs by file name, 640 x 427 RGB each."""
    from sklearn.datasets import load_sample_images

    shipped = load_sample_images()
    return {
        Path(name).name: Image.fromarray(pixels)
        for name, pixels in zip(shipped.filenames, shipped.images, strict=True)
    }


def draw_crop(photos: Mapping[str, Image.Image], *, seed: int, i: int) -> Crop:
    """Crop i: uniform area, log-uniform aspect, drawn anew until the box fits.

    It depends on `seed` and `i` alone, so 10 crops are the first of 100.
    """
    rng = np.random.default_rng([seed, i])
    photo = sorted(photos)[rng.integers(len(photos))]
    full_width, full_height = photos[photo].size
    while True:
        area = full_width * full_height * rng.uniform(*SCALE)
        aspect = math.exp(rng.uniform(*LOG_ASPECT))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if width <= full_width and height <= full_height:
            break
    return Crop(
        photo=photo,
        top=int(rng.integers(full_height - height + 1)),
        left=int(rng.integers(full_width - width + 1)),
        height=height,
        width=width,
        flip=bool(rng.integers(2)),
    )
