"""The image processor of a transformers model -> the same in the words of `Preprocess`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from burst.errors import ImageError
from burst.loading.common import Foreign, crop_fraction, first_line
from burst.preprocess import Preprocess

RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
GREY_LEVELS = 3.0
"""What resizing of tensors may differ by from Pillow's; any other step changes noise far more."""


def processor_facts(name: str, processor: Foreign) -> dict[str, Any]:
    """How a processor prepares images, as `Backbone` says it.

    What a processor does is read off its attributes, and then tried: noise must come out of both
    alike. So no step is overlooked, and none that cannot be said in these words is let through.

    Raises:
        ImageError: it does something else than to resize, crop and normalise to one square.
    """
    facts = _geometry(name, processor) | _values(processor)
    _check_equal(name, processor, Preprocess(**facts))
    size = facts["image_size"]
    facts |= {"mean": tuple(facts["mean"]), "std": tuple(facts["std"]), "image_size": (size, size)}
    return facts


def _geometry(name: str, processor: Foreign) -> dict[str, Any]:
    kind = type(processor).__name__
    size = _lengths(getattr(processor, "size", None))
    crop = _lengths(getattr(processor, "crop_size", None))
    if not getattr(processor, "do_center_crop", False):
        crop = {}
    square = size.get("height") if size.get("height") == size.get("width") else None
    side = square or (size.get("shortest_edge") if len(size) == 1 else None)
    read = crop.get("height") if crop else square
    if not getattr(processor, "do_resize", False) or not (side and read):
        raise ImageError(
            f"{name}: its {kind} does not resize and crop all images to one square (size {size}, "
            f"crop {crop or 'none'}); give `burst.survey` batches of your own"
        )
    return {
        "image_size": read,
        "interpolation": RESAMPLING[int(getattr(processor, "resample", 2))],
        "crop_fraction": crop_fraction(read, side),
        "crop_mode": "squash" if square else "center_floor",
    }


def _values(processor: Foreign) -> dict[str, Any]:
    """Mean and deviation of values in 0..1, whatever the processor scales pixels to."""
    normalises = getattr(processor, "do_normalize", False)
    mean = list(processor.image_mean) if normalises else [0.0] * 3
    std = list(processor.image_std) if normalises else [1.0] * 3
    scale = 255.0
    if getattr(processor, "do_rescale", False):
        scale *= processor.rescale_factor
    return {"mean": [one / scale for one in mean], "std": [one / scale for one in std]}


def _lengths(size: Foreign) -> dict[str, int]:
    """The sides that a processor's size says, of those that it may say."""
    if size is None:
        return {}
    if isinstance(size, int):
        return {"height": size, "width": size}
    found: Mapping[str, int | None] = size if isinstance(size, Mapping) else vars(size)
    return {side: int(length) for side, length in found.items() if length}


def _check_equal(name: str, processor: Foreign, ours: Preprocess) -> None:
    side = 2 * ours.image_size
    noise = np.random.default_rng(0).integers(64, 192, (side, side + side // 2, 3), np.uint8)
    image = Image.fromarray(noise)
    kind = type(processor).__name__
    try:
        theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    except Exception as error:  # processors raise anything
        raise ImageError(f"{name}: its {kind} cannot be used ({first_line(error)})") from error
    pixels = ours.normalise(ours.centre(image))
    levels = torch.tensor(ours.std).view(3, 1, 1) * 255
    if theirs.shape == pixels.shape and ((theirs - pixels).abs() * levels).max() <= GREY_LEVELS:
        return
    raise ImageError(
        f"{name}: its {kind} does more than to resize, crop and normalise; give `burst.survey` "
        f"batches of your own"
    )
