"""COCO's average precision of what was found, in percent: over all sizes, by size, by class."""

import contextlib
import importlib.metadata
import importlib.util
import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bpt.dataset.split import distinct_names
from bpt.detection.jitter import F64
from bpt.detection.results import Results
from burst.errors import BurstError, check_known

Evaluator = Literal["auto", "pycocotools", "faster-coco-eval"]
EVALUATORS = ("faster-coco-eval", "pycocotools")  # the first that is installed; both count alike


@dataclass(frozen=True)
class DetectionScores:
    """Average precision, in percent; NaN where there is nothing annotated to find.

    Attributes:
        values: box_AP, box_AP50, box_AP75, box_APs, box_APm, box_APl, and the same of mask_. AP is
            the mean over IoU 0.50, 0.55, ... 0.95 and over classes. Small is an annotated area
            below 32² pixels of the image, large one above 96².
        per_class: name -> {"box_AP", "mask_AP"}, in percent too; names that several categories have
            end with their ids, "cat (id 2)".
        evaluator: "pycocotools" or "faster-coco-eval".
        version: of it.
        images: how many were evaluated.
        objects: how many are annotated in them, without crowds.
    """

    values: dict[str, float]
    per_class: dict[str, dict[str, float]]
    evaluator: str
    version: str
    images: int
    objects: int


def average_precision(
    ground_truth: dict[str, Any], results: Results, *, evaluator: Evaluator = "auto"
) -> DetectionScores:
    """What the results are worth against the annotations.

    Nothing that is given is changed, and nothing printed. The sizes of masks are judged by their
    own area, as detectron2 does, not by that of their boxes.

    Args:
        ground_truth: images, annotations and categories as COCO's files have them.
        results: of these images, in any order, each with image_id, category_id, bbox (x, y, width,
            height in pixels of the image), score and a compressed segmentation.
        evaluator: "auto" takes faster-coco-eval where it is installed, else pycocotools.

    Raises:
        UnknownName: no such evaluator.
        BurstError: it is not installed; or a result names an image or a category that the
            annotations do not have.

    Source: Lin et al. 2014, arXiv 1405.0312, as pycocotools computes it.
    """
    chosen = _chosen(evaluator)
    _check(ground_truth, results)
    box = _precision(ground_truth, results, "bbox", chosen)
    mask = _precision(ground_truth, results, "segm", chosen)
    categories = sorted(ground_truth["categories"], key=lambda one: int(one["id"]))
    names = distinct_names([one["name"] for one in categories], [one["id"] for one in categories])
    return DetectionScores(
        values=_summary("box", box) | _summary("mask", mask),
        per_class={
            name: {"box_AP": _mean(box[:, :, k, 0]), "mask_AP": _mean(mask[:, :, k, 0])}
            for k, name in enumerate(names)
        },
        evaluator=chosen,
        version=importlib.metadata.version(chosen),
        images=len(ground_truth["images"]),
        objects=sum(not one["iscrowd"] for one in ground_truth["annotations"]),
    )


def _chosen(evaluator: str) -> str:
    """The name of an evaluator that is installed."""
    check_known("evaluator", evaluator, ["auto", *EVALUATORS])
    wanted = EVALUATORS if evaluator == "auto" else (evaluator,)
    for name in wanted:
        if importlib.util.find_spec(name.replace("-", "_")):
            return name
    needed, package = "pycocotools or faster-coco-eval", "'attention-burstiness[detection]'"
    if evaluator == "faster-coco-eval":
        needed, package = evaluator, evaluator
    raise BurstError(f"average precision needs {needed}; pip install {package}")


def _check(ground_truth: dict[str, Any], results: Results) -> None:
    """Refuse results of other images or categories: they would count as nothing, silently."""
    for kind, listed in (("image", "images"), ("category", "categories")):
        known = {one["id"] for one in ground_truth[listed]}
        for one in results:
            if (given := one[f"{kind}_id"]) not in known:
                raise BurstError(
                    f"a result names {kind} {given}, which is not among the {len(known)} {listed} "
                    "annotated; results and annotations must be of one split"
                )


def _precision(ground_truth: dict[str, Any], results: Results, kind: str, evaluator: str) -> F64:
    """Precision by IoU (0.50 to 0.95), recall (0 to 1), class and area; -1 without objects."""
    if evaluator == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    # A mask that comes with a box would be put among the small, medium or large by that box's area.
    left_out = "bbox" if kind == "segm" else "segmentation"
    shown = [{key: one[key] for key in one if key != left_out} for one in results]
    annotated, found = _renumbered(ground_truth, shown)
    with contextlib.redirect_stdout(io.StringIO()):
        truth, nothing = COCO(), COCO()
        truth.dataset = annotated
        truth.createIndex()
        nothing.dataset = annotated | {"annotations": []}
        nothing.createIndex()
        # Some versions cannot load an empty list.
        evaluation = COCOeval(truth, truth.loadRes(found) if found else nothing, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    # The last number of detections an image: 100.
    return np.asarray(evaluation.eval["precision"], np.float64)[..., -1]


def _renumbered(ground_truth: dict[str, Any], results: Results) -> tuple[dict[str, Any], Results]:
    """Copies, as evaluators write into what they are given, with ids from 1.

    A match with annotation 0 would count as none, and faster-coco-eval takes no negative ids and
    keeps large ones rounded. What is of no image or category listed gets 0, which counts as none.
    """
    images, categories = (_numbers(ground_truth[one]) for one in ("images", "categories"))

    def by_number(one: dict[str, Any]) -> dict[str, Any]:
        image, category = images.get(one["image_id"], 0), categories.get(one["category_id"], 0)
        return one | {"image_id": image, "category_id": category}

    annotated = {
        "info": {},
        "images": [one | {"id": images[one["id"]]} for one in ground_truth["images"]],
        "categories": [one | {"id": categories[one["id"]]} for one in ground_truth["categories"]],
        "annotations": [
            by_number(one) | {"id": number}
            for number, one in enumerate(ground_truth["annotations"], 1)
        ],
    }
    return annotated, [by_number(one) for one in results]


def _numbers(records: list[dict[str, Any]]) -> dict[Any, int]:
    """Ids -> 1, 2, ..., in their order, on which ties depend."""
    return {one: number for number, one in enumerate(sorted({one["id"] for one in records}), 1)}


def _summary(kind: str, precision: F64) -> dict[str, float]:
    """AP over all, of single IoUs and of areas."""
    parts = {
        "AP": precision[:, :, :, 0],
        "AP50": precision[0, :, :, 0],
        "AP75": precision[5, :, :, 0],
        "APs": precision[:, :, :, 1],
        "APm": precision[:, :, :, 2],
        "APl": precision[:, :, :, 3],
    }
    return {f"{kind}_{name}": _mean(part) for name, part in parts.items()}


def _mean(precision: F64) -> float:
    counted = precision[precision > -1]
    return 100 * float(counted.mean()) if counted.size else math.nan
