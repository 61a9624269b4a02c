"""COCO 2017, and any set in its format: images with boxes and masks to detect.

coco = open_coco("coco", "/data")          # COCO's own files, packed or not
mine = open_coco("coco:/data/my_set")      # a folder, zip or tar, see `bpt.dataset.coco_layout`
image, objects = mine.train.image(0), mine.train.objects(0)

What of a file is taken, and what is an error, `bpt.dataset.coco_json` says.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bpt.dataset.benchmark import DatasetInfo, how_to_get
from bpt.dataset.coco_annotations import Annotations, CocoObjects, Integers, coco_masks
from bpt.dataset.coco_json import read_annotations
from bpt.dataset.coco_layout import (
    EXPECTED,
    OFFICIAL,
    PACKED,
    Found,
    JsonFile,
    image_place,
    named,
    official_jsons,
    own_jsons,
)
from bpt.dataset.place import Layout, place_of, prepare
from bpt.dataset.split import FileOpener
from burst.errors import BurstError, ImageError, check_known
from burst.files import at_home
from burst.progress import Say

HELD_OUT = 10  # one image of so many, where a set has no validation split


@dataclass(frozen=True)
class Categories:
    """What objects are of; label l, from 1, is that at place l - 1.

    Attributes:
        ids: of the file, ascending; COCO's run from 1 to 90 with gaps.
        names: in the same order.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class CocoSplit:
    """n images with their annotated objects.

    Attributes:
        ids: (n,) int64: of the images.
        names: n of them, as the opener takes them.
        sizes: (n, 2) int64: height and width in pixels, as annotated.
        annotations: of these images, and maybe of others.
        places: (n,) int64: where each image stands in `annotations`.
        opener: name -> image; pickles, for worker processes.
    """

    ids: Integers
    names: tuple[str, ...]
    sizes: Integers
    annotations: Annotations
    places: Integers
    opener: FileOpener

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        """The image as annotated, 8-bit RGB.

        It is turned as its EXIF says only if it is of the annotated size then, and is not before:
        some tools annotate what is stored, as COCO was, and others what a viewer shows.

        Raises:
            ImageError: it cannot be read, or is of another size; named, with the reason.
        """
        image = self.opener(self.names[index])
        height, width = self.sizes[index].tolist()
        if image.size == (width, height):
            return image
        turned = ImageOps.exif_transpose(image)
        if turned.size == (width, height):
            return turned
        raise ImageError(
            f"image {self.names[index]!r} of {self.opener.place} is {image.height} pixels high and "
            f"{image.width} wide, and annotated as {height} and {width}; is it another one?"
        )

    def objects(self, index: int) -> CocoObjects:
        """What is annotated in the image, crowds among it."""
        return self.annotations.objects(int(self.places[index]))

    def subset(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> "CocoSplit":
        """The images at these places, in this order; their objects are not copied."""
        chosen = np.asarray(indices, np.int64)
        return replace(
            self,
            ids=self.ids[chosen],
            names=tuple(self.names[index] for index in chosen),
            sizes=self.sizes[chosen],
            places=self.places[chosen],
        )

    def for_training(self) -> "CocoSplit":
        """The images with at least one object that is no crowd."""
        return self.subset(np.flatnonzero(self.annotations.learned[self.places]))

    def ground_truth(self) -> dict[str, Any]:
        """These images as the dictionary that pycocotools' and faster-coco-eval's COCO take.

        Boxes are x, y, width, height in pixels of the image, areas are in pixels.
        File names, category ids, boxes, areas and polygons are those of the file, masks are
        compressed. So are the ids of annotations, unless one is below 1: then all are raised to
        start at 1, since both evaluators take a match with annotation 0 for none.
        """
        found = self.annotations
        names = found.file_names
        raised = max(0, 1 - int(found.ids.min()))
        images, annotations = [], []
        for image_id, place, (height, width) in zip(
            self.ids.tolist(), self.places.tolist(), self.sizes.tolist(), strict=True
        ):
            images.append(
                {"id": image_id, "file_name": names[place], "height": height, "width": width}
            )
            for one in range(*found.starts[place : place + 2]):
                mask = found.segmentation(one, place)
                annotations.append(
                    {
                        "id": int(found.ids[one]) + raised,
                        "image_id": image_id,
                        "category_id": int(found.category_ids[found.labels[one] - 1]),
                        "bbox": found.bounds[one].tolist(),
                        "area": float(found.areas[one]),
                        "iscrowd": int(found.crowds[one]),
                        "segmentation": mask | {"counts": mask["counts"].decode()}
                        if isinstance(mask, dict)
                        else [polygon.ravel().tolist() for polygon in mask],
                    }
                )
        listed = zip(found.category_ids.tolist(), found.category_names.tolist(), strict=True)
        return {
            "info": {},  # some versions of pycocotools ask for it
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in listed],
        }


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """A set that was opened.

    Attributes:
        name: "coco", or "coco:" and its place.
        source: where it was found.
        categories: of both splits.
        train, val: splits; every image of the files is in one.
        notes: what was left out, taken from elsewhere and held out, with its number, in words.
    """

    name: str
    source: str
    categories: Categories
    train: CocoSplit
    val: CocoSplit
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 in hex of categories, file names, boxes and labels of both splits."""
        found = hashlib.sha256(repr(self.categories).encode())
        for split in (self.train, self.val):
            names = split.annotations.file_names
            starts = split.annotations.starts
            for place in split.places.tolist():
                part = slice(*starts[place : place + 2])
                found.update(f"\0{names[place]}\0".encode(errors="surrogatepass"))
                found.update(split.annotations.bounds[part].tobytes())
                found.update(split.annotations.labels[part].tobytes())
        return found.hexdigest()

    @property
    def objects_digest(self) -> str:
        """SHA-256 in hex of what `digest` does not tell: ids of images, areas, crowds and masks."""
        found = hashlib.sha256()
        for one in (self.train.annotations, self.val.annotations):
            numbers = (one.image_ids, one.areas, one.crowds, one.numbers, one.rles)
            starts = (one.polygon_starts, one.number_starts, one.rle_starts)
            for values in (*numbers, *starts):
                found.update(np.ascontiguousarray(values).data)
        return found.hexdigest()


def open_coco(
    name: str = "coco", data: str | Path | None = None, *, say: Say | None = None
) -> CocoDataset:
    """COCO 2017, or a set of one's own in its format. Nothing is unpacked.

    A set with one JSON gets a validation split: a tenth of its images, rounded up, which a
    generator seeded with 0 draws from the images sorted by id, so always the same.

    Args:
        name: "coco" for COCO's own files, or "coco:PLACE" for any set: a folder, zip or tar.
        data: for "coco": the folder that it lies in; `data_root()` if not given.
        say: called with a line before long work.

    Raises:
        UnknownName: it is neither.
        ImageError: files are missing or damaged, or contradict themselves or each other.
        BurstError: a place is given twice; pycocotools is not installed.
    """
    kind, colon, place = name.partition(":")
    check_known("detection dataset", kind, ["coco"])
    coco_masks()
    if colon and data is not None:
        raise BurstError(f"dataset {name!r}: give its place once, as data or behind coco:")
    if colon and not place:
        raise BurstError(f"dataset {name!r} needs a place behind coco:, a folder, zip or tar")
    if colon:
        found = own_jsons(at_home(place))
        source = place
    else:
        assert INFO.layout is not None
        base = prepare("coco", INFO.layout, place_of(data), hint=how_to_get(INFO))
        found = official_jsons(base)
        source = str(base)
    train, val, notes = _splits(found, say)
    return CocoDataset(name, source, _categories(train), train, val, tuple(notes))


def _splits(found: Found, say: Say | None) -> tuple[CocoSplit, CocoSplit, list[str]]:
    """Both splits, and the notes."""
    jsons = [found.train, found.val] if found.val else [found.train]
    homes = {json: image_place(found, json) for json in jsons}  # told before the long reading
    openers = {place: FileOpener(place) for place in set(homes.values())}

    def whole(json: JsonFile) -> CocoSplit:
        read = read_annotations(str(json), json.open, say=say)
        opener = openers[homes[json]]
        names = named(json, read.file_names, opener)
        places = np.arange(len(names), dtype=np.int64)
        return CocoSplit(read.image_ids, names, read.image_sizes, read, places, opener)

    train = whole(found.train)
    notes = _left_out("train: " if found.val else "", train.annotations)
    if found.val is not None:
        val = whole(found.val)
        notes += _left_out("val: ", val.annotations)
        _check_alike(found.train, _categories(train), found.val, _categories(val))
    else:
        count, held = len(train), math.ceil(len(train) / HELD_OUT)
        if count < 2:
            raise ImageError(f"{found.train} has 1 image; expected two, one to validate on")
        order = np.random.default_rng(0).permutation(count)
        train, val = train.subset(np.sort(order[held:])), train.subset(np.sort(order[:held]))
        notes.append(f"val: {held:,} of {count:,} images, held out as there is no JSON for it")
    empty = len(train) - len(train.for_training())
    if empty == len(train):
        raise ImageError(f"{found.train} has no object to learn: each one is a crowd")
    if empty:
        notes.append(f"train: images without an object to learn: {empty:,} of {len(train):,}")
    return train, val, notes


def _left_out(prefix: str, found: Annotations) -> list[str]:
    counts = {
        "annotations left out, also of box AP, for want of a mask": int(found.without_mask),
        "polygons dropped, of fewer than 3 corners or of odd length": int(found.broken_polygons),
        "areas below 0 or beyond 1e10, taken from the masks": int(found.odd_areas),
        "crowds, for evaluation only": int(found.crowds.sum()),
    }
    return [f"{prefix}{what}: {count:,}" for what, count in counts.items() if count]


def _categories(split: CocoSplit) -> Categories:
    found = split.annotations
    return Categories(tuple(found.category_ids.tolist()), tuple(found.category_names.tolist()))


def _check_alike(one: JsonFile, mine: Categories, other: JsonFile, theirs: Categories) -> None:
    """Refuse labels that would mean other things in the two splits."""
    if mine == theirs:
        return
    here, there = ({*zip(one.ids, one.names, strict=True)} for one in (mine, theirs))
    number, name = min(here ^ there)
    where, lacks = (one, other) if (number, name) in here else (other, one)
    raise ImageError(
        f"{where} has category {name!r} with id {number}, and {lacks} has not; both must list "
        "the same categories"
    )


INFO = DatasetInfo(
    name="coco",
    title="COCO 2017, objects with masks",
    task="detection",
    classes=80,
    sizes=(118_287, 5_000, 0),
    licence="images: Flickr's terms of use; annotations: CC BY 4.0",
    citation="Lin et al. 2014, arXiv 1405.0312",
    source="https://cocodataset.org/#download",
    files="annotations_trainval2017.zip, train2017.zip and val2017.zip, unpacked or not",
    layout=Layout(
        folders=("coco", "COCO", "coco2017", "COCO2017", "mscoco"),
        markers=(OFFICIAL.format("train"), PACKED, f"annotations/{PACKED}"),
    ),
)
OWN = DatasetInfo(
    name="coco",
    title="Your own images in COCO's format",
    task="detection",
    classes=None,
    sizes=None,
    licence="yours",
    citation="",
    source="a folder or an archive (zip, uncompressed tar): coco:PATH",
    files=EXPECTED,
)
