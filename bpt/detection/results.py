"""What a detector found, as COCO's list of results: in pixels of the images, masks compressed.

Source of the pasting: detectron2@02b5c4e, layers/mask_ops.py:17-69 and modeling/postprocessing.py.
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bpt.dataset.coco_annotations import coco_masks
from bpt.detection.jitter import Geometry
from bpt.detection.objects import Detections
from burst.files import write_atomically

Results = list[dict[str, Any]]


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Masks in the frame of their box -> in an image, one at a time.

    A pixel is of the object where the mask, between its cells' centres bilinear and outside the
    box 0, is at least a half at the pixel's centre.

    Args:
        masks: (k, m, m) float32.
        boxes: (k, 4) float32, x0, y0, x1, y1 in pixels of the image, not empty.
        height: of the image.
        width: of the image.

    Yields:
        (height, width) uint8, 0 or 1, columns contiguous.
    """
    for mask, box in zip(masks.detach().cpu().float(), boxes.tolist(), strict=True):
        columns = _pixels(box[0], box[2], width)
        rows = _pixels(box[1], box[3], height)
        x = _grid(columns, box[0], box[2]).expand(len(rows), -1)
        y = _grid(rows, box[1], box[3])[:, None].expand(-1, len(columns))
        grid = torch.stack([x, y], dim=-1)[None]
        values = functional.grid_sample(mask[None, None], grid, align_corners=False)[0, 0]
        pasted = np.zeros((height, width), np.uint8, order="F")
        pasted[rows.start : rows.stop, columns.start : columns.stop] = values >= 0.5
        yield pasted


def coco_results(
    found: Detections, geometry: Geometry, image_id: int, category_ids: Sequence[int]
) -> Results:
    """The objects that were found in one image, in COCO's form.

    Boxes are cut at the borders of the image; what is empty then is left out.

    Args:
        found: in pixels of the detector's input.
        geometry: where the image lies there.
        image_id: as annotated.
        category_ids: as annotated; that of label 1 is the first.

    Returns:
        For each object image_id, category_id, bbox (x, y, width, height in pixels of the image),
        score and segmentation {"size": [height, width], "counts": str}; json can write it.

    Raises:
        BurstError: pycocotools is not installed.
    """
    height, width = geometry.original
    boxes = geometry.boxes_back(found.boxes.detach().cpu().double().numpy())
    cut = boxes.clip(0, [width, height, width, height])
    kept = np.flatnonzero((cut[:, 2:] > cut[:, :2]).all(axis=1))
    scores, labels = found.scores.tolist(), found.labels.tolist()
    pasted = paste(found.masks[kept], torch.from_numpy(boxes[kept]), height, width)
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[labels[place] - 1]),
            "bbox": [*cut[place, :2].tolist(), *(cut[place, 2:] - cut[place, :2]).tolist()],
            "score": scores[place],
            "segmentation": _compressed(mask),
        }
        for place, mask in zip(kept.tolist(), pasted, strict=True)
    ]


def save_results(path: str | os.PathLike[str], results: Results) -> None:
    """Write a list of results as JSON; the file appears whole or not at all.

    Raises:
        OutputError: it cannot be written, or there is no room.
    """
    with write_atomically(path) as part, part.open("w", encoding="utf-8") as stream:
        json.dump(results, stream)


def _pixels(first: float, last: float, size: int) -> range:
    """The pixels of a side whose centres may lie in [first, last]."""
    start = min(max(int(np.floor(first)) - 1, 0), size)
    return range(start, max(min(int(np.ceil(last)) + 1, size), start))


def _grid(pixels: range, first: float, last: float) -> Tensor:
    """The centres of pixels as grid_sample counts them: -1 and 1 are the sides of the box."""
    centres = torch.arange(pixels.start, pixels.stop, dtype=torch.float32) + 0.5
    return (centres - first) / (last - first) * 2 - 1


def _compressed(mask: NDArray[np.uint8]) -> dict[str, Any]:
    encoded = coco_masks().encode(mask)
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}
