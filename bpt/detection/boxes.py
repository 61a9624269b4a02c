"""Boxes and the four numbers that move them, always in float32; matching and suppression.

Boxes are x0, y0, x1, y1 in pixels of the detector's input.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from bpt.detection.objects import Targets

Weights = tuple[float, float, float, float]

THRESHOLD = 0.05  # of scores
OVERLAP = 0.5  # intersection over union above which the worse of two boxes of a class goes
MOST = 100  # of the boxes of an image


class Matches(NamedTuple):
    """Which target each of n boxes is of.

    Attributes:
        labels: (n,) int64; 0 is background, -1 neither.
        indices: (n,) int64: of the target; 0, whatever it means, where the label is not positive.
    """

    labels: Tensor
    indices: Tensor


class Found(NamedTuple):
    """k boxes that stand for objects, the best first: (k, 4), (k,) float32 and (k,) int64."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def decode(deltas: Tensor, boxes: Tensor, weights: Weights) -> Tensor:
    """The boxes that a head's numbers make of boxes.

    Args:
        deltas: (n, m, 4), any dtype: shifts of the centre in sides of the box and logarithms of the
            sides' growth, times the weights.
        boxes: (n, 4) float32.
        weights: of the four numbers.

    Returns:
        (n, m, 4) float32. A side grows 62.5 times at most.

    Source: Girshick et al. 2014, arXiv 1311.2524, appendix C.
    """
    # In float32 before the coder sees them: it rounds boxes to the precision of the deltas.
    moved: Tensor = BoxCoder(weights).decode_single(deltas.float().flatten(1), boxes)
    return moved.view(deltas.shape)


def encode(wanted: Tensor, boxes: Tensor, weights: Weights) -> Tensor:
    """The (n, 4) numbers with which `decode` makes the wanted (n, 4) boxes of boxes."""
    deltas: Tensor = BoxCoder(weights).encode_single(wanted, boxes)
    return deltas


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 4) boxes, cut at the border of an image of (height, width)."""
    clipped: Tensor = clip_boxes_to_image(boxes, size)
    return clipped


def nonempty(boxes: Tensor) -> Tensor:
    """(n,) bool: which of (n, 4) boxes have an area."""
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def match(boxes: Tensor, targets: Targets, matcher: Matcher) -> Matches:
    """The target that each of (n, 4) boxes overlaps most, if it does so enough for the matcher."""
    if not len(boxes) or not len(targets):  # the matcher refuses both
        nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return Matches(nothing, nothing)
    found = matcher(box_iou(targets.boxes, boxes))
    indices = found.clamp(min=0)
    labels = torch.where(found >= 0, targets.labels[indices], 0)
    return Matches(labels.masked_fill(found == matcher.BETWEEN_THRESHOLDS, -1), indices)


def select(boxes: Tensor, scores: Tensor) -> Found:
    """What one image shows: scores over `THRESHOLD`, of each class without doubles, the best.

    Args:
        boxes: (n, C, 4), for each class its own, or (n, 1, 4) for all.
        scores: (n, 1 + C), background first.
    """
    scores = scores[:, 1:]
    region, column = torch.where(scores > THRESHOLD)
    boxes, scores = boxes.expand(-1, scores.shape[1], -1)[region, column], scores[region, column]
    kept = torch.where(nonempty(boxes))[0]
    kept = kept[batched_nms(boxes[kept], scores[kept], column[kept], OVERLAP)[:MOST]]
    return Found(boxes[kept], scores[kept], column[kept] + 1)
