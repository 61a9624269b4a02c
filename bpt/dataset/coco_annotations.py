"""Annotated objects as flat arrays: no Python list of them is held, however many there are.

Worker processes share the arrays with the one that they are forked from. A list of a million
dictionaries would be copied into each of them, as counting references writes to every page.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from burst.errors import BurstError
from burst.files import write_atomically

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Rle: TypeAlias = dict[str, Any]  # {"size": [height, width], "counts": bytes}, compressed
Segmentation: TypeAlias = list[Floats] | Rle  # polygons of (v, 2) corners x, y; or a mask

DECIMALS = 2  # of COCO's own polygons; float32 keeps them


def coco_masks() -> ModuleType:
    """The module pycocotools.mask.

    Raises:
        BurstError: it is not installed.
    """
    try:
        import pycocotools.mask
    except ImportError as error:
        raise BurstError(
            "detection needs pycocotools; pip install 'attention-burstiness[detection]'"
        ) from error
    return pycocotools.mask  # type: ignore[no-any-return]


def encode_mask(segmentation: Segmentation, height: int, width: int) -> Rle:
    """One compressed mask of an image of so many pixels; polygons are joined as COCO joins them.

    Raises:
        BurstError: pycocotools is not installed.
    """
    if isinstance(segmentation, dict):
        return segmentation
    masks = coco_masks()
    flat = [polygon.ravel() for polygon in segmentation]
    return masks.merge(masks.frPyObjects(flat, height, width))  # type: ignore[no-any-return]


def mask_runs(text: bytes) -> list[int]:
    """The runs that a compressed mask says; none if it is damaged.

    Each is a number in groups of five bits, the lowest first; from the fourth on, its difference
    to the one before the last. Source: pycocotools, common/maskApi.c, rleFrString.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return []
        runs.append(value)
        value = shift = 0
    return [] if shift else runs


@dataclass(frozen=True, eq=False)
class CocoObjects:
    """The k annotated objects of one image, crowds among them; the arrays are the caller's own.

    Attributes:
        boxes: (k, 4) float32: x0, y0, x1, y1 in pixels of the image, as annotated.
        labels: (k,) int64, from 1.
        crowds: (k,) bool; a crowd is never learned, and what is found in it counts as nothing.
        areas: (k,) float64: of the masks in pixels, as annotated.
        ids: (k,) int64: of the annotations.
        segmentations: k times either polygons, (v, 2) float64 corners x, y, or a compressed mask
            {"size": [height, width], "counts": bytes} of the image's size.
    """

    boxes: NDArray[np.float32]
    labels: Integers
    crowds: NDArray[np.bool_]
    areas: Floats
    ids: Integers
    segmentations: tuple[Segmentation, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Annotations:
    """What one JSON says of n images, m objects, p polygons and C classes.

    Images are sorted by id, and the objects by their images, in the file's order. A list is cut
    out of a flat array by its starts: that of image i is starts[i]:starts[i + 1].

    Attributes:
        category_ids, category_names: (C,) int64, ascending, and (C,) str, see `distinct_names`.
        image_ids: (n,) int64, ascending.
        image_names: uint8: a JSON list of the n file names.
        image_sizes: (n, 2) int64: height, width.
        starts: (n + 1,) of an image's objects.
        ids: (m,) int64.
        bounds: (m, 4) float64: x, y, width, height, as the file has them.
        labels: (m,) int64: place of the category, from 1.
        areas: (m,) float64, pixels.
        crowds: (m,) bool.
        polygon_starts: (m + 1,) of an object's polygons.
        number_starts: (p + 1,) of a polygon's numbers.
        numbers: x, y, x, y, ... of the polygons; float32 where two decimals say all that the file
            says, as in COCO, else float64. So `exact` gives back the file's numbers.
        rle_starts: (m + 1,) of an object's bytes in `rles`; none where it has polygons.
        rles: uint8: counts of compressed masks.
        without_mask, broken_polygons, odd_areas: () int64: how many annotations and polygons were
            left out, and areas taken from masks, see `bpt.dataset.coco_json`.
    """

    category_ids: Integers
    category_names: NDArray[np.str_]
    image_ids: Integers
    image_names: NDArray[np.uint8]
    image_sizes: Integers
    starts: Integers
    ids: Integers
    bounds: Floats
    labels: Integers
    areas: Floats
    crowds: NDArray[np.bool_]
    polygon_starts: Integers
    number_starts: Integers
    numbers: NDArray[np.float32] | Floats
    rle_starts: Integers
    rles: NDArray[np.uint8]
    without_mask: Integers
    broken_polygons: Integers
    odd_areas: Integers

    @property
    def file_names(self) -> list[str]:
        """Of the n images, as the file has them."""
        names: list[str] = json.loads(self.image_names.tobytes())
        return names

    @property
    def learned(self) -> Integers:
        """(n,) how many objects of each image are no crowds."""
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(~self.crowds)])
        found: Integers = before[self.starts[1:]] - before[self.starts[:-1]]
        return found

    def objects(self, image: int) -> CocoObjects:
        """Those of the image at this place."""
        part = slice(*self.starts[image : image + 2])
        corner, extent = self.bounds[part, :2], self.bounds[part, 2:]
        return CocoObjects(
            np.concatenate([corner, corner + extent], axis=1).astype(np.float32),
            self.labels[part].copy(),
            self.crowds[part].copy(),
            self.areas[part].copy(),
            self.ids[part].copy(),
            tuple(self.segmentation(one, image) for one in range(part.start, part.stop)),
        )

    def segmentation(self, place: int, image: int) -> Segmentation:
        """Of the object at this place, in the image at that place."""
        first, last = self.rle_starts[place : place + 2]
        if last > first:
            size = self.image_sizes[image].tolist()
            return {"size": size, "counts": self.rles[first:last].tobytes()}
        polygons = slice(self.polygon_starts[place], self.polygon_starts[place + 1] + 1)
        cuts = self.number_starts[polygons]
        numbers = self.exact(slice(cuts[0], cuts[-1])).reshape(-1, 2)
        return np.split(numbers, (cuts[1:-1] - cuts[0]) // 2)

    def exact(self, part: slice) -> Floats:
        """A part of `numbers`, as the file has them."""
        numbers = self.numbers[part].astype(np.float64)
        return numbers.round(DECIMALS) if self.numbers.dtype == np.float32 else numbers

    def save(self, path: Path) -> None:
        """Write an .npz that appears whole or not at all.

        Raises:
            OutputError: it cannot be written, or there is no room.
        """
        with write_atomically(path) as part:
            np.savez(part, **{one.name: getattr(self, one.name) for one in fields(self)})


def load_annotations(path: Path) -> Annotations:
    """What `Annotations.save` wrote.

    Raises:
        OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile: it is not there, or damaged.
    """
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
        return Annotations(**{one.name: found[one.name] for one in fields(Annotations)})


def exact_or_double(numbers: Floats) -> NDArray[np.float32] | Floats:
    """As float32 where `Annotations.exact` gives back the very same numbers, else as they are."""
    single = numbers.astype(np.float32)
    # In parts, as a whole copy of COCO's numbers would be 300 MB more.
    for start in range(0, len(numbers), 1 << 20):
        part = slice(start, start + (1 << 20))
        if (single[part].astype(np.float64).round(DECIMALS) != numbers[part]).any():
            return numbers
    return single
