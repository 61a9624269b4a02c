"""A JSON in COCO's format -> flat arrays, parsed once and kept; what the format leaves open.

Crowds (iscrowd 1) are kept and flagged: evaluation needs them, training leaves them out. A missing
iscrowd is 0. Images without objects are kept. Polygons of fewer than three corners, or of an odd
number of numbers, are dropped and counted; annotations that have no segmentation, or none left, are
left out and counted, as these detectors learn masks. Boxes of one pixel, and of none, are kept as
annotated. A missing bbox or area is that of the mask. So is an area below 0 or above 1e10, for
which evaluators would drop the object; these are counted. Runs as lists are compressed.

What contradicts itself is an error: ids that occur twice or lead nowhere, a category without a
name, an image without a name or a size, runs that do not add up to the image.

    $BPT_CACHE/coco/KEY.npz     see `Annotations`; KEY tells of the JSON's bytes and of the format

Files there may be deleted at any time.
"""

import gc
import hashlib
import json
import math
from array import array
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from bpt.dataset.coco_annotations import (
    Annotations,
    Segmentation,
    coco_masks,
    encode_mask,
    exact_or_double,
    load_annotations,
    mask_runs,
)
from bpt.dataset.split import distinct_names
from burst.archive import DAMAGED, reason
from burst.errors import ImageError, OutputError
from burst.files import cache_folder
from burst.lock import one_at_a_time
from burst.progress import Say

FORMAT = 4  # of the kept arrays
BLOCK = 1 << 20  # bytes
LONG = 20 << 20  # bytes of a JSON that takes seconds to parse
IDS = (-(2**63), 2**63 - 1)  # what int64 holds
PIXELS = 2**32  # of an image; pycocotools counts in 32 bits
AREA = 1e10  # pixels; evaluators count no object of an area below 0 or beyond
FARTHEST = 1e6  # pixels; a corner beyond it would let pycocotools ask for any amount of memory

Open = Callable[[], AbstractContextManager[IO[bytes]]]
Record: TypeAlias = dict[str, Any]


def read_annotations(where: str, opened: Open, *, say: Say | None = None) -> Annotations:
    """What a JSON says; parsed once, then read from the cache. Processes wait for each other.

    Args:
        where: what to call the JSON.
        opened: opens it, each time from its start.
        say: called with a line before long work, and if the cache cannot be written.

    Raises:
        ImageError: it cannot be read, is no JSON, or not of object instances in COCO's format.
        BurstError: pycocotools is not installed.
    """
    coco_masks()
    tell = say or (lambda _: None)
    try:
        with opened() as stream:
            digest, size = hashlib.sha256(), 0
            for block in iter(lambda: stream.read(BLOCK), b""):
                digest.update(block)
                size += len(block)
    except DAMAGED as error:
        raise ImageError(f"{where} cannot be read: {reason(error)}") from error
    made = None
    try:
        kept = cache_folder("BPT_CACHE", "bpt") / "coco" / f"{digest.hexdigest()}-{FORMAT}.npz"
        if found := _kept(kept):
            return found
        with one_at_a_time(kept, "reads annotations into", say=say):
            if found := _kept(kept):
                return found
            if size > LONG:
                tell(f"reading {where}")
            made = parse_annotations(where, _content(where, opened))
            gc.collect()  # empties Python's free lists, which hold on to memory of the parsed JSON
            made.save(kept)
    except (OSError, OutputError) as error:
        why = str(error) if isinstance(error, OutputError) else f"{kept.parent}: {reason(error)}"
        tell(f"{where} is read anew each time: {why}")
    return made or parse_annotations(where, _content(where, opened))


def _kept(path: Path) -> Annotations | None:
    """What was kept, if it is there and whole."""
    try:
        return load_annotations(path)
    except (*DAMAGED, KeyError):
        return None


def _content(where: str, opened: Open) -> object:
    try:
        with opened() as stream:
            return json.load(stream)
    except (*DAMAGED, RecursionError) as error:
        raise ImageError(f"{where} is no JSON, or damaged: {reason(error)}") from error


def parse_annotations(where: str, content: object) -> Annotations:
    """The flat arrays of a parsed JSON; its list of annotations is emptied on the way.

    Raises:
        ImageError: it is not of object instances in COCO's format; one line with the first flaw.
        BurstError: pycocotools is not installed.
    """
    images, annotations, categories = _tables(where, content)
    try:
        return _Parser(images, categories).arrays(annotations)
    except _Flaw as flaw:
        raise ImageError(f"{where}: {flaw}") from flaw


class _Flaw(Exception):
    """What is wrong in a JSON, in words."""


def _tables(where: str, content: object) -> tuple[list[Any], list[Any], list[Any]]:
    names = ("images", "annotations", "categories")
    if not isinstance(content, dict):
        kind = "a list, as of results" if isinstance(content, list) else "no object"
        raise ImageError(f"{where} holds {kind}; expected an object with {', '.join(names)}")
    tables = [content.get(name) for name in names]
    for name, table in zip(names, tables, strict=True):
        if not isinstance(table, list):
            raise ImageError(f"{where} has no list of {name}; is it of object instances?")
        if not table:
            raise ImageError(f"{where} has no {name}: its list of them is empty")
    return tables[0], tables[1], tables[2]  # type: ignore[return-value]


class _Parser:
    """Arrays in the making."""

    def __init__(self, images: list[Any], categories: list[Any]) -> None:
        images, self.image_ids = _by_id("image", images)
        categories, self.category_ids = _by_id("category", categories)
        self.image_place = {one: place for place, one in enumerate(self.image_ids)}
        self.label = {one: place for place, one in enumerate(self.category_ids, 1)}
        self.image_names = [_text(f"image {one['id']}", one, "file_name") for one in images]
        names = [_text(f"category {one['id']}", one, "name") for one in categories]
        self.category_names = list(distinct_names(names, self.category_ids))
        self.sizes = [_size(f"image {one['id']}", one) for one in images]
        self.ids, self.labels, self.counts = array("q"), array("q"), array("q", [0] * len(images))
        self.bounds, self.areas, self.numbers = array("d"), array("d"), array("d")
        self.crowds = array("b")
        self.polygon_starts, self.number_starts = array("q", [0]), array("q", [0])
        self.rle_starts, self.rles = array("q", [0]), bytearray()
        self.without_mask = self.broken_polygons = self.odd_areas = 0

    def arrays(self, annotations: list[Any]) -> Annotations:
        """All annotations, in the order of their images."""
        seen: set[int] = set()
        for one in annotations:
            if not isinstance(one, dict):
                raise _Flaw(f"annotation {_short(one)} is no object")
            number = _whole(f"annotation {_short(one)}", one, "id")
            if number in seen:
                raise _Flaw(f"annotation id {number} occurs twice; ids must differ")
            seen.add(number)
            self._image(one)
        del seen
        annotations.reverse()  # taken from the end, so that memory shrinks on the way
        annotations.sort(key=lambda one: self.image_place[one["image_id"]], reverse=True)
        while annotations:
            self._add(annotations.pop())
        if not self.ids:
            raise _Flaw("no annotation has a segmentation, and these detectors learn masks")
        return self._finished()

    def _image(self, one: Record) -> int:
        """The place of an annotation's image."""
        what = f"annotation {one['id']}"
        place = self.image_place.get(_whole(what, one, "image_id"))
        if place is None:
            raise _Flaw(f"{what} is of image {one['image_id']}, which is not among the images")
        return place

    def _add(self, one: Record) -> None:
        what, place = f"annotation {one['id']}", self._image(one)
        label = self.label.get(_whole(what, one, "category_id"))
        if label is None:
            raise _Flaw(f"{what} is of category {one['category_id']}, which is not listed")
        height, width = self.sizes[place]
        mask = self._mask(what, one.get("segmentation"), height, width)
        if mask is None:
            self.without_mask += 1
            return
        rle = None
        if one.get("bbox") is None or one.get("area") is None:
            rle = encode_mask(mask, height, width)
        bounds = one.get("bbox")
        if bounds is None:
            bounds = coco_masks().toBbox(rle).tolist()
        area = one.get("area")
        if area is None:
            area = coco_masks().area(rle)
        if not isinstance(bounds, list) or len(bounds) != 4:
            raise _Flaw(f"{what}: bbox is {_short(bounds)}; expected x, y, width, height")
        _extend(self.bounds, bounds, f"{what}: bbox")
        if min(self.bounds[-2:]) < 0:
            raise _Flaw(f"{what}: bbox {_short(bounds)} has a negative width or height")
        _extend(self.areas, [area], f"{what}: area", farthest=math.inf)
        if not 0 <= self.areas[-1] <= AREA:
            self.areas[-1] = coco_masks().area(encode_mask(mask, height, width))
            self.odd_areas += 1
        crowd = one.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise _Flaw(f"{what}: iscrowd is {_short(crowd)}; expected 0 or 1")
        self.ids.append(int(one["id"]))
        self.labels.append(label)
        self.crowds.append(bool(crowd))
        self.counts[place] += 1
        self._keep(mask)

    def _mask(self, what: str, given: object, height: int, width: int) -> Segmentation | None:
        """Polygons or a compressed mask, checked; None where there is none."""
        if not given:
            return None
        if isinstance(given, dict):
            return _checked_rle(what, given, height, width)
        if not isinstance(given, list) or not all(isinstance(one, list) for one in given):
            raise _Flaw(f"{what}: segmentation is {_short(given)}; expected polygons or an RLE")
        whole = [one for one in given if len(one) >= 6 and len(one) % 2 == 0]
        self.broken_polygons += len(given) - len(whole)
        polygons = []
        for one in whole:
            numbers = array("d")
            _extend(numbers, one, f"{what}: a polygon")
            polygons.append(np.frombuffer(numbers).reshape(-1, 2))
        return polygons or None

    def _keep(self, mask: Segmentation) -> None:
        if isinstance(mask, dict):
            self.rles += mask["counts"]
        else:
            for polygon in mask:
                self.numbers.frombytes(polygon.tobytes())
                self.number_starts.append(len(self.numbers))
        self.polygon_starts.append(len(self.number_starts) - 1)
        self.rle_starts.append(len(self.rles))

    def _finished(self) -> Annotations:
        return Annotations(
            category_ids=np.array(self.category_ids, np.int64),
            category_names=np.array(self.category_names),
            image_ids=np.array(self.image_ids, np.int64),
            image_names=np.frombuffer(json.dumps(self.image_names).encode(), np.uint8),
            image_sizes=np.array(self.sizes, np.int64),
            starts=np.concatenate([[0], np.cumsum(np.array(self.counts, np.int64))]),
            ids=np.array(self.ids, np.int64),
            bounds=np.array(self.bounds).reshape(-1, 4),
            labels=np.array(self.labels, np.int64),
            areas=np.array(self.areas),
            crowds=np.array(self.crowds, np.bool_),
            polygon_starts=np.array(self.polygon_starts, np.int64),
            number_starts=np.array(self.number_starts, np.int64),
            numbers=exact_or_double(np.frombuffer(self.numbers)),
            rle_starts=np.array(self.rle_starts, np.int64),
            rles=np.frombuffer(bytes(self.rles), np.uint8),
            without_mask=np.array(self.without_mask),
            broken_polygons=np.array(self.broken_polygons),
            odd_areas=np.array(self.odd_areas),
        )


def _by_id(kind: str, records: Iterable[object]) -> tuple[list[Record], list[int]]:
    """Sorted by id, and the ids."""
    found: dict[int, Record] = {}
    for one in records:
        if not isinstance(one, dict):
            raise _Flaw(f"{kind} {_short(one)} is no object")
        number = _whole(f"{kind} {_short(one)}", one, "id")
        if number in found:
            raise _Flaw(f"{kind} id {number} occurs twice; ids must differ")
        found[number] = one
    ids = sorted(found)
    return [found[one] for one in ids], ids


def _whole(what: str, record: Record, key: str, within: tuple[int, int] = IDS) -> int:
    value = record.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and within[0] <= value <= within[1]:
        return value
    said = "no" if value is None else f"{_short(value)} as"
    span = " from {} to {}".format(*within) if type(value) is int else ""
    raise _Flaw(f"{what} has {said} {key}; expected a whole number{span}")


def _size(what: str, image: Record) -> tuple[int, int]:
    """Height and width."""
    height, width = (_whole(what, image, side, (1, PIXELS)) for side in ("height", "width"))
    if height * width >= PIXELS:
        raise _Flaw(f"{what} has {height} x {width} pixels; expected fewer than {PIXELS}")
    return height, width


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(what: str, record: Record, key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise _Flaw(f"{what} has no {key}")
    return value


def _extend(to: "array[float]", values: list[Any], what: str, farthest: float = FARTHEST) -> None:
    """Append numbers that are numbers, and finite."""
    start = len(to)
    try:
        to.extend(values)
    except (TypeError, OverflowError):
        raise _Flaw(f"{what} is {_short(values)}; expected numbers") from None
    if not all(-farthest < value < farthest for value in to[start:]):
        raise _Flaw(f"{what} is {_short(values)}; expected numbers of pixels")


def _checked_rle(what: str, given: Record, height: int, width: int) -> Segmentation:
    """A compressed mask; where runs do not add up, pycocotools writes beyond its memory."""
    if given.get("size") != [height, width]:
        raise _Flaw(
            f"{what}: its mask is of {_short(given.get('size'))} (height, width), "
            f"and its image of [{height}, {width}]"
        )
    counts = given.get("counts")
    if isinstance(counts, list):
        if (
            not all(type(one) is int and one >= 0 for one in counts)
            or sum(counts) != height * width
        ):
            raise _Flaw(f"{what}: the runs of its mask do not add up to its image")
        return coco_masks().frPyObjects(given, height, width)  # type: ignore[no-any-return]
    text = counts.encode(errors="replace") if isinstance(counts, str) else b""
    if sum(mask_runs(text)) != height * width:
        raise _Flaw(f"{what}: the runs of its mask are damaged, or do not add up to its image")
    return {"size": [height, width], "counts": text}
