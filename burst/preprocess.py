"""One image file's bytes -> the pixels a backbone expects.

The conventions are the field's (torchvision's ImageFolder and timm at evaluation): RGB, which drops
an alpha channel; EXIF orientation is not applied; the first frame of several; resized, antialiased,
by one of three modes, to `floor(image_size / crop_fraction)`, then a centre crop. The pixels are
those of timm's `create_transform` with the same numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from burst.archive import reason
from burst.errors import ImageError, UnknownName, check_known

# Named, because Pillow would otherwise try whatever the bytes look like, Ghostscript included.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
CROP_MODES = ("center", "center_floor", "squash", "border")
INTERPOLATIONS = {mode.value: mode for mode in InterpolationMode}


def decode(data: bytes) -> Image.Image:
    """An 8-bit RGB image from the bytes of an image file; 16-bit grey keeps its high byte.

    Raises:
        ImageError: its text is the reason: empty, truncated, of another format, of a mode without
            a fixed range, or larger than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        # Between one and two times its limit Pillow only warns. The warning is not silenced here:
        # in a worker thread that would change the filters of the whole process.
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.width, image.height)
            return rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"its content is no readable {', '.join(FORMATS)}") from None
    except Exception as error:  # on damaged data decoders raise anything, KeyError to SyntaxError
        raise ImageError(reason(error)) from error


def rgb(image: Image.Image) -> Image.Image:
    """An image of 8-bit RGB; 16-bit grey keeps its high byte.

    Raises:
        ImageError: its mode has no fixed range.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"}):
        # Pillow's own conversion clips at 255, which turns a 16-bit image white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        raise ImageError(f"mode {image.mode} has no fixed range of values; save it as 8 bits")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # same colours, without Pillow's warning
    return image.convert("RGB")


def _check_pixels(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageError(f"{width} x {height} pixels are more than the limit of {limit}")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What a backbone expects of its images, and the way there; checks itself.

    Args:
        image_size: side of the square that the model reads, in pixels.
        mean: per channel (R, G, B), of values in 0..1.
        std: same; positive.
        interpolation: how to resize: bicubic, bilinear, lanczos, box, hamming, nearest.
        crop_fraction: image_size over the side to resize to: what the centre crop keeps of that.
            Above 1, as in some of timm's models, the image stands in a black frame.
        crop_mode: "center": the short side is resized; "center_floor": the same, but a margin of
            half a pixel is rounded down, as the transformers library does it, and not to the even
            number; "squash": both sides are resized, whatever the aspect; "border": the long side
            is, and the short one filled up with `mean`.

    Raises:
        ImageError: a number out of range.
        UnknownName: an interpolation or a crop mode that is not known.
    """

    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str = "bicubic"
    crop_fraction: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ImageError(f"image_size {self.image_size} must be at least 1 pixel")
        if not 0 < self.crop_fraction <= self.image_size:
            raise ImageError(
                f"crop_fraction {self.crop_fraction} must lie in (0, image_size]: usually 0.8 to 1"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise ImageError(
                f"mean {tuple(self.mean)} and std {tuple(self.std)} must be three numbers each "
                "(R, G, B), std positive"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UnknownName("interpolation", self.interpolation, INTERPOLATIONS)
        check_known("crop mode", self.crop_mode, CROP_MODES)

    def centre(self, image: Image.Image) -> Tensor:
        """(3, image_size, image_size) uint8: resized by the crop mode, centre cropped.

        Raises:
            ImageError: the image is so narrow that, resized, it would pass Pillow's pixel limit or
                lose all of its short side.
        """
        resized = transforms.resize(image, self._resized(image), interpolation=self._mode)
        if self.crop_mode == "border":
            resized = self._framed(resized)
        if self.crop_mode == "center_floor":
            top, left = ((side - self.image_size) // 2 for side in (resized.height, resized.width))
            cropped = transforms.crop(resized, top, left, self.image_size, self.image_size)
        else:
            cropped = transforms.center_crop(resized, [self.image_size])
        pixels: Tensor = transforms.pil_to_tensor(cropped)
        return pixels

    @property
    def fill(self) -> list[int]:
        """The colour, 0..255, around an image in `border` mode: that of no signal."""
        return [round(255 * value) for value in self.mean]

    def _resized(self, image: Image.Image) -> list[int]:
        """What torchvision is to resize an image to: its short side, or height and width."""
        side = math.floor(self.image_size / self.crop_fraction)
        if self.crop_mode == "squash":
            return [side, side]
        if self.crop_mode == "border":
            ratio = max(image.size) / side
            height, width = round(image.height / ratio), round(image.width / ratio)
            if not min(height, width):
                raise ImageError(f"too narrow to resize its long side to {side}")
            return [height, width]
        try:
            _check_pixels(side, side * max(image.size) // min(image.size))
        except ImageError as error:
            raise ImageError(f"too narrow to resize its short side to {side}: {error}") from None
        return [side]

    def _framed(self, image: Image.Image) -> Image.Image:
        """With what is missing to `image_size` added on both sides, more of it right and below."""
        missing = [max(0, self.image_size - side) for side in image.size]
        before, after = [side // 2 for side in missing], [(side + 1) // 2 for side in missing]
        framed: Image.Image = transforms.pad(image, before + after, fill=self.fill)
        return framed

    def crop(
        self, image: Image.Image, *, top: int, left: int, height: int, width: int, flip: bool
    ) -> Tensor:
        """(3, image_size, image_size) uint8: a box of the image, resized, then mirrored or not."""
        size = [self.image_size, self.image_size]
        resized = transforms.resized_crop(
            image, top, left, height, width, size, interpolation=self._mode
        )
        pixels: Tensor = transforms.pil_to_tensor(resized)
        return pixels.flip(-1) if flip else pixels

    def normalise(self, pixels: Tensor) -> Tensor:
        """(..., 3, H, W) uint8 -> float32, `(pixels / 255 - mean) / std`."""
        scaled = transforms.to_dtype(pixels, torch.float32, scale=True)
        normal: Tensor = transforms.normalize(scaled, list(self.mean), list(self.std), inplace=True)
        return normal

    @property
    def _mode(self) -> InterpolationMode:
        return INTERPOLATIONS[self.interpolation]
