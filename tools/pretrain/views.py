"""Random views of a batch of images, drawn image by image and computed for the batch at once.

The operations are kornia's, so they run where the batch is. Values go in as uint8 and come out
normalised with the mean and std of `STATISTICS`.
"""

import torch
from kornia import augmentation as kornia
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def as_images(pixels: Tensor) -> Tensor:
    """(b, h, w, 3) uint8 -> (b, 3, h, w) float32 in 0..1."""
    return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)


def crop(size: int, smallest: float) -> kornia.RandomResizedCrop:
    """A crop of `smallest` to all of the image's area, resized to `size` pixels."""
    return kornia.RandomResizedCrop((size, size), scale=(smallest, 1.0), cropping_mode="resample")


def normalised() -> kornia.Normalize:
    """ImageNet's statistics, as in all three pretrainings."""
    return kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD))


def mae_view(size: int) -> nn.Sequential:
    """Crop and flip, as MAE (He et al. 2022, arXiv 2111.06377, section A.1)."""
    return nn.Sequential(crop(size, 0.2), kornia.RandomHorizontalFlip(), normalised())


def moco_view(size: int, *, second: bool) -> nn.Sequential:
    """One of MoCo v3's two views (Chen et al. 2021, arXiv 2104.02057, after BYOL's).

    The blur always falls on the first view and seldom on the second, which alone is solarised.
    The crops keep at least 20 % of the area, where the paper keeps 8 %: of 64 pixels, 8 % are 18.
    """
    return nn.Sequential(
        crop(size, 0.2),
        kornia.ColorJiggle(0.4, 0.4, 0.2, 0.1, p=0.8),
        kornia.RandomGrayscale(p=0.2),
        kornia.RandomGaussianBlur((5, 5), (0.1, 1.0), p=0.1 if second else 1.0),
        kornia.RandomSolarize(p=0.2 if second else 0.0),
        kornia.RandomHorizontalFlip(),
        normalised(),
    )


def supervised_view(size: int) -> nn.Sequential:
    """Crop, flip, mild colour jitter and random erasing."""
    return nn.Sequential(
        crop(size, 0.25),
        kornia.RandomHorizontalFlip(),
        kornia.ColorJiggle(0.3, 0.3, 0.3, 0.05, p=0.8),
        normalised(),
        kornia.RandomErasing(p=0.1),
    )
