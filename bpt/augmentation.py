"""Augmentations of fine-tuning, by timm: of a crop, and mixup and CutMix of a batch."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms.v2 import functional

from burst.errors import BurstError
from burst.preprocess import Preprocess


class RandAugment:
    """(3, S, S) uint8 -> the same, by operations that are drawn from torch's global generator.

    What timm makes of a crop in `create_transform`: fills with the mean of the images, and shifts
    by up to 45 % of the size.

    Args:
        text: in timm's words: "rand-m9-mstd0.5-inc1" has magnitude 9, with a deviation of 0.5, and
            operations that grow stronger with it.
        preprocess: size and mean of the images.

    Raises:
        BurstError: timm does not know the text.

    Source: Cubuk et al. 2020, arXiv 1909.13719.
    """

    def __init__(self, text: str, preprocess: Preprocess) -> None:
        mean = tuple(min(255, round(255 * value)) for value in preprocess.mean)
        shift = int(0.45 * preprocess.image_size)
        self._apply = _made(text, {"translate_const": shift, "img_mean": mean})

    def __call__(self, pixels: Tensor) -> Tensor:
        """The crop, changed."""
        with _seeded(int(torch.randint(2**32, ()))):
            image = self._apply(functional.to_pil_image(pixels))
        changed: Tensor = functional.pil_to_tensor(image)
        return changed


class Erasing:
    """(3, S, S) float32, normalised -> the same; in a share of crops a rectangle becomes noise.

    One of 2 % of the area to a third, its sides in a ratio of 0.3 to 1 / 0.3, each value normal
    with deviation 1, as in MAE's fine-tuning. Drawn from torch's global generator; in place.

    Args:
        share: of the crops, 0..1.

    Source: Zhong et al. 2020, arXiv 1708.04896.
    """

    def __init__(self, share: float) -> None:
        self._erase = RandomErasing(share, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]

    def __call__(self, pixels: Tensor) -> Tensor:
        """The crop, with or without a rectangle."""
        with _seeded(int(torch.randint(2**32, ()))):
            erased: Tensor = self._erase(pixels)
        return erased


def check_randaugment(text: str) -> None:
    """Refuse what `RandAugment` cannot read.

    Raises:
        BurstError: the text is given, with one that is right.
    """
    _made(text, {"img_mean": (0, 0, 0)})  # timm 1.0.21 writes into its own, were there none


def _made(text: str, settings: dict[str, Any]) -> Any:  # noqa: ANN401  timm's
    try:
        return rand_augment_transform(text, settings)
    except (AssertionError, ValueError, KeyError) as error:
        raise BurstError(
            f"randaugment is {text!r}; expected timm's words, such as rand-m9-mstd0.5-inc1"
        ) from error


class Mixing:
    """Mixup and CutMix of batches, one of both for each; label smoothing is left to the loss.

    Image i is mixed with image b - 1 - i of the b that it is called with, all in one proportion,
    which seed, epoch and step decide: every process draws the same.

    Args:
        mixup, cutmix: alpha of the Beta distribution of the proportion; 0 leaves the one out.
        classes: C.
        seed: of the training.

    Source: Zhang et al. 2018, arXiv 1710.09412; Yun et al. 2019, arXiv 1905.04899.
    """

    def __init__(self, *, mixup: float, cutmix: float, classes: int, seed: int) -> None:
        self.seed = seed
        options = {"mixup_alpha": mixup, "cutmix_alpha": cutmix, "label_smoothing": 0.0}
        self._mix = Mixup(num_classes=classes, **options)  # type: ignore[no-untyped-call]

    def batches(
        self, batches: Iterable[tuple[Tensor, Tensor]], *, epoch: int, start: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Each batch mixed, its images in place; labels become (b, C) float32 shares.

        Args:
            batches: (b, 3, H, W) and (b,) int64, b even.
            epoch: counted from 0.
            start: number of the first batch within it.
        """
        for step, (images, labels) in enumerate(batches, start):
            drawn = np.random.SeedSequence([self.seed, epoch, step]).generate_state(1)[0]
            with _seeded(int(drawn)):
                mixed: tuple[Tensor, Tensor] = self._mix(images, labels)
            yield mixed


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and NumPy's global generators, which timm draws from; they stay as they were."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
