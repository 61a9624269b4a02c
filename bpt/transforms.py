"""What becomes of an image before a model reads it: random crops in training, centres else."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from bpt.augmentation import Erasing, RandAugment
from bpt.dataset import Benchmark
from burst.backbone import Backbone
from burst.preprocess import Preprocess

Transform = Callable[[Image.Image], Tensor]


class Box(NamedTuple):
    """A part of an image, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


class TrainTransform:
    """Image -> (3, size, size) float32: a random crop, resized, mirrored or not, normalised.

    What is drawn comes from torch's global generator, in torchvision's own way and order.

    Args:
        preprocess: size, interpolation and normalisation.
        smallest_crop: least share of the area that a crop takes.
        flip: whether half of the crops are mirrored.
        randaugment: what becomes of the crop then, before it is normalised.
        erasing: what becomes of it behind that.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        *,
        smallest_crop: float,
        flip: bool,
        randaugment: RandAugment | None = None,
        erasing: Erasing | None = None,
    ) -> None:
        self.preprocess, self.flip = preprocess, flip
        self.randaugment, self.erasing = randaugment, erasing
        self._crop = v2.RandomResizedCrop(preprocess.image_size, scale=(smallest_crop, 1.0))
        self._pixel = torch.empty(1)

    @property
    def one_by_one(self) -> bool:
        """Whether what becomes of a crop can only be done to a single one, in the main memory."""
        return self.randaugment is not None or self.erasing is not None

    def __call__(self, image: Image.Image) -> Tensor:
        """The crop that is drawn next."""
        box = self.draw(image.height, image.width)
        pixels = self.preprocess.crop(image, **box._asdict())
        if self.randaugment:
            pixels = self.randaugment(pixels)
        normalised = self.preprocess.normalise(pixels)
        return self.erasing(normalised) if self.erasing else normalised

    def draw(self, height: int, width: int) -> Box:
        """What to take of an image of this size."""
        box = self._crop.make_params([self._pixel.expand(3, height, width)])
        return Box(**box, flip=self.flip and torch.rand(1).item() < 0.5)


class EvalTransform:
    """Image -> (3, size, size) float32: resized, the centre, mirrored or not, normalised.

    Args:
        preprocess: size, interpolation and normalisation.
        flip: whether half of the images are mirrored, as torch's global generator draws.
    """

    def __init__(self, preprocess: Preprocess, *, flip: bool = False) -> None:
        self.preprocess, self.flip = preprocess, flip

    def __call__(self, image: Image.Image) -> Tensor:
        """The centre crop."""
        pixels = self.preprocess.normalise(self.preprocess.centre(image))
        return pixels.flip(-1) if self.flip and torch.rand(1).item() < 0.5 else pixels


def train_transform(
    benchmark: Benchmark,
    backbone: Backbone,
    augmentation: str = "crop",
    *,
    randaugment: str | None = None,
    random_erasing: float = 0.0,
) -> TrainTransform | EvalTransform:
    """What a training does to its images: one, RGB -> (3, S, S) float32, normalised.

    "crop": a random crop of 8 % of the area or more, mirrored or not; the dataset may ask for
    larger crops, or for no mirroring; `randaugment` says what becomes of it then, see
    `RandAugment`, and `random_erasing` in what share of the crops a rectangle is erased, see
    `Erasing`. Source: WangYZ1608/BPT, Dataset/FGVC.py:43-55. "flip": the centre crop, mirrored
    or not; "none": the centre crop.

    Raises:
        BurstError: `randaugment` is not in timm's words.
    """
    preprocess, flip = backbone.preprocess, benchmark.flip
    if augmentation == "crop":
        return TrainTransform(
            preprocess,
            smallest_crop=benchmark.smallest_crop,
            flip=flip,
            randaugment=RandAugment(randaugment, preprocess) if randaugment else None,
            erasing=Erasing(random_erasing) if random_erasing else None,
        )
    return EvalTransform(preprocess, flip=flip and augmentation == "flip")


def eval_transform(backbone: Backbone) -> EvalTransform:
    """The centre crop of an image: RGB -> (3, S, S) float32, normalised."""
    return EvalTransform(backbone.preprocess)
