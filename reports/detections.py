"""Who finds what: detections of one or two models, matched to the objects of a data set.

All is plain data in COCO's formats: the ground truth is a mapping with "images", "annotations" and
"categories"; a detection is {"image_id", "category_id", "bbox": [x, y, w, h], "score"} and, with a
mask, "segmentation": {"size": [h, w], "counts": ASCII}. Boxes and areas are in pixels of the image.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bpt.dataset import coco_masks
from burst.errors import BurstError, ImageError, ShapeError

Record = Mapping[str, Any]
Answers = Mapping[str, Sequence[Record]]
By = Literal["boxes", "masks"]

SCORE = 0.5
IOU = 0.5
SIZES = {"small": 32.0**2, "medium": 96.0**2, "large": float("inf")}
"""Where each size of COCO ends, in square pixels: below 32², below 96², and the rest."""


@dataclass(frozen=True)
class Answer:
    """What one model found in one image.

    Attributes:
        detections: from the best score down; without those on a crowd, which count neither way.
        matched: for each of them the number of its object in the scene; None is a false positive.
    """

    detections: tuple[Record, ...]
    matched: tuple[int | None, ...]

    @property
    def found(self) -> frozenset[int]:
        """The numbers of the objects that were found."""
        return frozenset(one for one in self.matched if one is not None)

    @property
    def false(self) -> tuple[Record, ...]:
        """The detections that are no object's, or an object's that a better one took."""
        pairs = zip(self.detections, self.matched, strict=True)
        return tuple(detection for detection, object_ in pairs if object_ is None)


@dataclass(frozen=True)
class Scene:
    """An image, its objects, and what each model found.

    Attributes:
        image: COCO's record: id, width, height.
        objects: annotations without the crowds.
        answers: by label of the model.
    """

    image: Record
    objects: tuple[Record, ...]
    answers: Mapping[str, Answer]

    @property
    def lead(self) -> int:
        """Objects found by the second model minus those by the first; of one: found - missed."""
        found = [len(one.found) for one in self.answers.values()]
        return 2 * found[0] - len(self.objects) if len(found) == 1 else found[1] - found[0]


@dataclass(frozen=True)
class Matching:
    """Every image with its matches, and how they were made.

    Attributes:
        scenes: in order of the images' ids.
        labels: of the one or two models.
        names: of the categories, by id.
        by: what the intersection over union is of.
        score: the least that a detection was counted with, in 0..1.
        iou: the least that a match has, in (0, 1].
    """

    scenes: tuple[Scene, ...]
    labels: tuple[str, ...]
    names: Mapping[int, str]
    by: By
    score: float
    iou: float

    @property
    def words(self) -> str:
        """How a match was made, for a caption."""
        return f"IoU of {self.by} of at least {self.iou:g}, score of at least {self.score:g}"


@dataclass(frozen=True)
class Choice:
    """Images that a rule chose, and the `rule` in words."""

    scenes: tuple[Scene, ...]
    rule: str


def match_detections(
    truth: Record,
    answers: Answers,
    *,
    score: float = SCORE,
    iou: float = IOU,
    by: By | None = None,
) -> Matching:
    """Match the detections of one or two models to the objects, image by image.

    As COCO's evaluation does at one threshold: from the best score down, a detection takes the free
    object of its class with which its intersection over union is largest, if that is enough. One
    that takes none is left out if so much of it lies on a crowd of its class, else it is a false
    positive. An object is taken once.

    Args:
        truth: COCO's ground truth.
        answers: detections by label of the model; bbox is x, y, width, height in pixels.
        score: the least that counts, in 0..1.
        iou: the least for a match, in (0, 1].
        by: "masks" or "boxes"; by default masks where every object and detection has one.

    Raises:
        ShapeError: not one or two models.
        ImageError: a detection of an image that the ground truth has not, or with a mask of
            another size.
        BurstError: a mask is asked for where there is none, or pycocotools is not installed.

    Source: Lin et al. 2014, arXiv 1405.0312; pycocotools, `COCOeval.evaluateImg`.
    """
    if len(answers) not in (1, 2):
        raise ShapeError(f"{len(answers)} models; one or two can be matched")
    images = {image["id"]: image for image in sorted(truth["images"], key=lambda one: one["id"])}
    objects = _by_image(truth["annotations"], images, "annotation")
    kept = {
        label: _by_image([one for one in entries if one["score"] >= score], images, "detection")
        for label, entries in answers.items()
    }
    masked = all(_has_mask(one) for one in (*truth["annotations"], *_flat(kept.values())))
    if by == "masks" and not masked:
        raise BurstError("not every object and detection has a mask; match by boxes")
    chosen: By = by or ("masks" if masked else "boxes")
    scenes = []
    for key, image in images.items():
        real = tuple(one for one in objects[key] if not one.get("iscrowd"))
        crowds = tuple(one for one in objects[key] if one.get("iscrowd"))
        found = {
            label: _answer(image, real, crowds, entries[key], chosen, iou)
            for label, entries in kept.items()
        }
        scenes.append(Scene(image, real, found))
    names = {one["id"]: str(one["name"]) for one in truth["categories"]}
    return Matching(tuple(scenes), tuple(answers), names, chosen, score, iou)


def who_finds_what(matching: Matching) -> pd.DataFrame:
    """How many objects both models find, only the one, only the other, or none; and what is false.

    Returns:
        Counts, a row a size (small, below 32² pixels; medium, below 96²; large; all): an object's
        is that of its annotated area, a false positive's that of its own mask or box. Columns for
        models A and B: both, only A, only B, none, false positives of A, false positives of B; for
        one: found, missed, false positives.
    """
    labels = matching.labels
    kinds = [_kind(labels, pattern) for pattern in _patterns(len(labels))]
    false = {one: f"false positives of {one}" for one in labels}
    if len(labels) == 1:
        false = {labels[0]: "false positives"}
    counts: Counter[tuple[str, str]] = Counter()
    for scene in matching.scenes:
        for number, one in enumerate(scene.objects):
            pattern = tuple(number in answer.found for answer in scene.answers.values())
            counts[_size(_area(one, scene.image, matching.by)), _kind(labels, pattern)] += 1
        for label, answer in scene.answers.items():
            for one in answer.false:
                counts[_size(_area(one, scene.image, matching.by)), false[label]] += 1
    columns = [*kinds, *false.values()]
    table = pd.DataFrame(
        [[counts[size, column] for column in columns] for size in SIZES], list(SIZES), columns
    )
    table.loc["all"] = table.sum()
    return table.rename_axis("size")


def choose_scenes(matching: Matching, *, each: int = 3) -> Choice:
    """The images in which the models differ most, as many for the one as for the other.

    The rule is symmetrical in the models, takes no look at a picture, and says of itself how often
    either model finds more. Of one model: where it finds most, and where it misses most.

    Args:
        matching: of one or two models.
        each: images a side at most. A side with fewer shows what it has; nothing takes their place.

    Returns:
        The second model's images first; the largest difference first in each side, ties by id.
    """
    order = sorted(matching.scenes, key=lambda one: (-abs(one.lead), one.image["id"]))
    ahead = [one for one in order if one.lead > 0]
    behind = [one for one in order if one.lead < 0]
    even = len(order) - len(ahead) - len(behind)
    if len(matching.labels) == 1:
        verbs = ("more objects are found than missed", "more are missed than found")
        what = "largest difference between objects found and missed"
    else:
        verbs = (f"{matching.labels[1]} finds more", f"{matching.labels[0]} finds more")
        what = "largest difference in the number of objects found"
    sentences = [
        f"Images chosen by rule: {what} ({matching.words}); up to {each} where {verbs[0]} and as "
        f"many where {verbs[1]}; ties by the smaller image id.",
        f"Of {len(order):,} images, {verbs[0]} in {len(ahead):,} and {verbs[1]} in "
        f"{len(behind):,}; in {even:,} it is even.",
    ]
    for verb, side in zip(verbs, (ahead, behind), strict=True):
        if len(side) < each:
            have = f"Only {len(side)}" if side else "None"
            sentences.append(f"{have} where {verb}: the other side does not fill the gap.")
    return Choice((*ahead[:each], *behind[:each]), " ".join(sentences))


def rle_of(segmentation: Any, height: int, width: int) -> dict[str, Any]:  # noqa: ANN401  JSON
    """Polygons, counts or compressed counts as pycocotools' run-length code, counts in bytes.

    Polygons of fewer than three corners are nothing; pycocotools would take four numbers for a box.

    Raises:
        ImageError: a mask of another size.
    """
    coco = coco_masks()
    if isinstance(segmentation, Mapping):
        if list(segmentation["size"]) != [height, width]:
            raise ImageError(
                f"a mask is of {segmentation['size']} (height, width), and its image of "
                f"{[height, width]}; are the detections of other images?"
            )
        counts = segmentation["counts"]
        if isinstance(counts, list):
            code: dict[str, Any] = coco.frPyObjects(segmentation, height, width)
            return code
        counts = counts.encode("ascii") if isinstance(counts, str) else counts
        return {"size": list(segmentation["size"]), "counts": counts}
    polygons = [one for one in segmentation if len(one) >= 6]
    if not polygons:
        nothing: dict[str, Any] = coco.encode(np.zeros((height, width), np.uint8, order="F"))
        return nothing
    merged: dict[str, Any] = coco.merge(coco.frPyObjects(polygons, height, width))
    return merged


def mask_of(record: Record, height: int, width: int) -> NDArray[np.bool_] | None:
    """(height, width) of an annotation or a detection; None where it has no mask."""
    if not _has_mask(record):
        return None
    with warnings.catch_warnings():  # pycocotools 2.0.11 knows no NumPy 2
        warnings.simplefilter("ignore", DeprecationWarning)
        decoded = coco_masks().decode(rle_of(record["segmentation"], height, width))
    mask: NDArray[np.bool_] = decoded.astype(bool)
    return mask


def _answer(
    image: Record,
    objects: Sequence[Record],
    crowds: Sequence[Record],
    entries: Sequence[Record],
    by: By,
    iou: float,
) -> Answer:
    order = sorted(entries, key=lambda one: -one["score"])  # stable: equal scores as they came
    iou = min(iou, 1 - 1e-10)  # as COCO: equal shapes match at 1, whatever was rounded
    overlaps = _overlaps(order, objects, image, by, crowd=False)
    covered = _overlaps(order, crowds, image, by, crowd=True).max(axis=1, initial=0.0)
    detections: list[Record] = []
    matched: list[int | None] = []
    for row, share, detection in zip(overlaps, covered, order, strict=True):
        best = int(row.argmax()) if len(row) else 0
        if len(row) and row[best] >= iou:
            overlaps[:, best] = -1.0  # taken
            matched.append(best)
        elif share >= iou:
            continue
        else:
            matched.append(None)
        detections.append(detection)
    return Answer(tuple(detections), tuple(matched))


def _overlaps(
    entries: Sequence[Record], objects: Sequence[Record], image: Record, by: By, *, crowd: bool
) -> NDArray[np.float64]:
    """(k, n) intersections over union, of crowds over the detection's area; -1 across classes."""
    if not entries or not objects:
        return np.empty((len(entries), len(objects)))

    def shapes(records: Sequence[Record]) -> Any:  # noqa: ANN401  pycocotools takes both
        if by == "boxes":
            return np.array([one["bbox"] for one in records], float).reshape(-1, 4)
        return [rle_of(one["segmentation"], image["height"], image["width"]) for one in records]

    found = coco_masks().iou(shapes(entries), shapes(objects), [int(crowd)] * len(objects))
    classes = [np.array([one["category_id"] for one in some]) for some in (entries, objects)]
    return np.where(classes[0][:, None] == classes[1], found, -1.0)


def _patterns(models: int) -> list[tuple[bool, ...]]:
    return (
        [(True,), (False,)]
        if models == 1
        else [(True, True), (True, False), (False, True), (False, False)]
    )


def _kind(labels: Sequence[str], pattern: tuple[bool, ...]) -> str:
    if len(labels) == 1:
        return "found" if pattern[0] else "missed"
    if pattern[0] == pattern[1]:
        return "both" if pattern[0] else "none"
    return f"only {labels[pattern.index(True)]}"


def _size(area: float) -> str:
    return next(name for name, end in SIZES.items() if area < end)


def _area(record: Record, image: Record, by: By) -> float:
    if "area" in record:
        return float(record["area"])
    if by == "masks":
        code = rle_of(record["segmentation"], image["height"], image["width"])
        return float(coco_masks().area(code))
    return float(record["bbox"][2] * record["bbox"][3])


def _has_mask(record: Record) -> bool:
    return bool(record.get("segmentation"))


def _flat(kept: Iterable[Mapping[int, Sequence[Record]]]) -> Iterable[Record]:
    return (one for by_image in kept for entries in by_image.values() for one in entries)


def _by_image(
    records: Iterable[Record], images: Mapping[int, Record], what: str
) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = defaultdict(list)
    for one in records:
        if one["image_id"] not in images:
            raise ImageError(
                f"{what} of image {one['image_id']}, which is not among the {len(images):,} images "
                "of the ground truth; give the annotations that the run was evaluated on"
            )
        found[one["image_id"]].append(one)
    return found
