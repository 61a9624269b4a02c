"""Masks in the frame of their box: from what was annotated, and to what any region should show.

No mask of the size of an image is kept, nor of the size of the detector's input: an object is a
box and FRAME x FRAME bytes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

from bpt.dataset.coco_annotations import CocoObjects, Rle, coco_masks, encode_mask
from bpt.detection.jitter import F64, Geometry
from bpt.detection.objects import FRAME, Targets

U8 = NDArray[np.uint8]

SAMPLES = 4  # a cell and axis: 28 cells across a box read each of the frame's 112 pixels once
LARGEST = 16 * FRAME  # of a polygon drawn in a frame: the time of drawing grows with its length


def targets_of(objects: CocoObjects, geometry: Geometry) -> Targets:
    """The objects of an image as a detector is to learn them; crowds are left out.

    What lies outside the kept part of the image is cut off, and the box drawn anew around the rest.
    An object of which less than a pixel is left in width or height is left out.

    Args:
        objects: in pixels of the image.
        geometry: where the image lies in the detector's input.

    Raises:
        BurstError: pycocotools is not installed.
    """
    boxes, frames, labels = [], [], []
    for place in np.flatnonzero(~objects.crowds):
        one = objects.segmentations[place]
        found = _of_mask(one, geometry) if isinstance(one, dict) else _of_polygons(one, geometry)
        if found is not None:
            boxes.append(found[0])
            frames.append(found[1])
            labels.append(int(objects.labels[place]))
    return Targets(
        torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4)),
        torch.tensor(labels, dtype=torch.int64),
        torch.from_numpy(np.array(frames, np.uint8).reshape(-1, FRAME, FRAME)),
    )


@torch.no_grad()
def mask_targets(targets: Targets, matched: Tensor, regions: Tensor, size: int = 28) -> Tensor:
    """The part of an object that lies in a region, as a mask head is to give it.

    How much of each cell is covered, and outside the object's box nothing. detectron2 cuts this at
    a half (structures/masks.py:199-224), and thereby the precision that a perfect head could reach:
    on photographs of COCO masks of 28 x 28 cells are pasted back at an AP of 99.4 as they are here,
    and of 95.5 if they are cut.

    Args:
        targets: of one image.
        matched: (k,) int64, the object of each region.
        regions: (k, 4) float32, x0, y0, x1, y1 in pixels of the detector's input.
        size: cells across a region.

    Returns:
        (k, size, size) float32, in 0..1; on the device of the targets.
    """
    # One pixel of nothing around: roi_align goes on with the border's value beyond the border.
    frames = functional.pad(targets.masks[:, None].float() / 255, (1, 1, 1, 1))
    boxes = targets.boxes[matched].float()
    corner, side = boxes[:, :2].repeat(1, 2), (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    inside = (regions.float() - corner) / side * FRAME + 1
    rois = torch.cat([matched[:, None].to(inside.dtype), inside], dim=1)
    covered: Tensor = roi_align(frames, rois, size, sampling_ratio=SAMPLES, aligned=True)
    return covered[:, 0]


def _of_polygons(polygons: list[F64], geometry: Geometry) -> tuple[F64, U8] | None:
    """Box and frame of what is left of polygons, drawn as pycocotools does."""
    placed = [geometry.points(polygon) for polygon in polygons]
    box = _box_of(placed, *geometry.kept)
    corner, extent = box[:2], box[2:] - box[:2]
    if (extent < 1).any():
        return None
    framed = [(polygon - corner) * (FRAME / extent) for polygon in placed]
    if max(np.abs(polygon).max() for polygon in framed) <= LARGEST:
        return box, 255 * coco_masks().decode(encode_mask(framed, FRAME, FRAME))
    # A sliver at the border of something large: its pixels say enough.
    first, (w, h) = np.floor(corner), (np.ceil(box[2:]) - np.floor(corner)).astype(int)
    pixels = coco_masks().decode(encode_mask([polygon - first for polygon in placed], h, w))
    return box, _covered(pixels, first[0] + np.arange(w + 1), first[1] + np.arange(h + 1), box)


def _box_of(polygons: list[F64], height: int, width: int) -> F64:
    """x0, y0, x1, y1 around what a canvas shows of polygons; without extent if that is nothing.

    A side that the canvas does not cut is that of the corners, exact; rounded to pixels it would
    cost small objects 3 points of box AP. A side that it cuts is that of the pixels left.
    """
    corners = np.concatenate(polygons)
    least, most = corners.min(0), corners.max(0)
    inside = np.concatenate([least.clip(0, (width, height)), most.clip(0, (width, height))])
    if (inside == [*least, *most]).all() or (inside[:2] == inside[2:]).any():
        return inside
    # toBbox gives the sides of the pixels, not their centres.
    x, y, w, h = coco_masks().toBbox(encode_mask(polygons, height, width)).tolist()
    if not w:
        return np.zeros(4)
    pixels = np.array([x, y, x + w, y + h])
    return np.where(np.abs(inside - pixels) < 1, inside, pixels)


def _of_mask(mask: Rle, geometry: Geometry) -> tuple[F64, U8] | None:
    """Box and frame of what is left of a mask, whose pixels are squares."""
    x, y, w, h = coco_masks().toBbox(mask).astype(int).tolist()
    height, width = geometry.kept
    bounds = geometry.boxes(np.array([x, y, x + w, y + h], float))
    if (bounds[2:] <= 0).any() or (bounds[:2] >= (width, height)).any():
        return None
    pixels = coco_masks().decode(mask)[y : y + h, x : x + w]
    columns = geometry.points(np.stack([x + np.arange(w + 1.0), np.zeros(w + 1)], -1))[:, 0]
    rows = geometry.points(np.stack([np.zeros(h + 1), y + np.arange(h + 1.0)], -1))[:, 1]
    if geometry.flip:
        pixels, columns = pixels[:, ::-1], columns[::-1]
    columns, rows = columns.clip(0, width), rows.clip(0, height)
    shown = (pixels > 0) & (np.diff(rows) > 0)[:, None] & (np.diff(columns) > 0)
    if not shown.any():
        return None
    (across,), (down,) = shown.any(0).nonzero(), shown.any(1).nonzero()
    x0, x1 = columns[across[0]], columns[across[-1] + 1]
    y0, y1 = rows[down[0]], rows[down[-1] + 1]
    if x1 - x0 < 1 or y1 - y0 < 1:
        return None
    box = np.array([x0, y0, x1, y1])
    return box, _covered(pixels, columns, rows, box)


def _covered(pixels: U8, columns: F64, rows: F64, box: F64) -> U8:
    """(FRAME, FRAME), how much of each cell of a box is covered, 0 to 255.

    Args:
        pixels: (h, w), 0 or 1.
        columns, rows: (w + 1,) and (h + 1,), where the pixels begin and end, ascending.
        box: x0, y0, x1, y1.
    """
    down, across = _shares(rows, box[1], box[3]), _shares(columns, box[0], box[2])
    found: U8 = np.rint(255 * (down @ pixels.astype(np.float32) @ across.T)).astype(np.uint8)
    return found


def _shares(edges: F64, first: float, last: float) -> NDArray[np.float32]:
    """(FRAME, n): the share of each cell of [first, last] that lies in each of n pixels."""
    cells = np.linspace(first, last, FRAME + 1)
    begin = np.maximum(cells[:-1, None], edges[:-1])
    end = np.minimum(cells[1:, None], edges[1:])
    shares: NDArray[np.float64] = np.maximum(end - begin, 0) * (FRAME / (last - first))
    return shares.astype(np.float32)
