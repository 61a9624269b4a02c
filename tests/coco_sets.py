"""Small sets in COCO's format, and the average precision of what is found in them."""

import contextlib
import copy
import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pycocotools.mask
from PIL import Image

CATEGORIES = [{"id": 90, "name": "dot"}, {"id": 3, "name": "square", "supercategory": "shape"}]


def square(x, y, side):
    """A polygon."""
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def runs(mask):
    """A mask as a list of runs, column by column, zeros first."""
    flat = np.asarray(mask, bool).ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def decoded(mask):
    """(height, width) uint8 of a mask as runs, packed or not."""
    if isinstance(mask["counts"], list):
        mask = pycocotools.mask.frPyObjects(mask, *mask["size"])
    with warnings.catch_warnings():  # pycocotools knows no NumPy 2
        warnings.simplefilter("ignore", DeprecationWarning)
        return pycocotools.mask.decode(mask)


def annotation(number, image, segmentation, *, category=3, **more):
    """One with the box 2, 3, 6, 5 and its area, unless told otherwise."""
    found = {"id": number, "image_id": image, "category_id": category, "bbox": [2.0, 3.0, 6.0, 5.0]}
    return found | {"area": 30.0, "iscrowd": 0, "segmentation": segmentation} | more


def content(first=1, count=4):
    """Images of 20 x 30 pixels with two objects each; the last with none, but a crowd."""
    images = [
        {"id": one, "file_name": f"{one:06d}.png", "height": 20, "width": 30}
        for one in range(first, first + count)
    ]
    annotations = []
    for one in images[:-1]:
        number, shape = 10 * one["id"], [square(2.5, 3.25, 6)]
        annotations.append(annotation(number, one["id"], shape))
        annotations.append(annotation(number + 1, one["id"], [square(9, 9, 4)], category=90))
    crowd = runs(np.arange(600).reshape(20, 30) % 7 < 3)
    annotations.append(annotation(7, images[-1]["id"], crowd, iscrowd=1))
    return {"images": images, "annotations": annotations, "categories": copy.deepcopy(CATEGORIES)}


def write_json(path, made):
    """The file, and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made))
    return made


def write_images(folder, made):
    """Pictures of the sizes that are said, each with a colour of its own."""
    for one in made["images"]:
        path = Path(folder) / one["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = (one["id"] % 256, 60, 200)
        Image.new("RGB", (one["width"], one["height"]), colour).save(path)
    return made


def zipped(folder, archive, *, above=""):
    """All of a folder as a zip, which lies outside of it: else it would grow without end."""
    assert not archive.is_relative_to(folder)
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, above + path.relative_to(folder).as_posix())
    return archive


def average_precision(truth, results, kind, module):
    """AP over IoU 0.5 to 0.95, by pycocotools or faster_coco_eval."""
    with contextlib.redirect_stdout(io.StringIO()):
        if module == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        else:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as COCOeval
        mine = COCO()
        mine.dataset = copy.deepcopy(truth)
        mine.createIndex()
        scores = COCOeval(mine, mine.loadRes(copy.deepcopy(results)), kind)
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    return scores.stats[0]


def as_results(truth, kind):
    """The ground truth as if it had been found."""
    sizes = {one["id"]: (one["height"], one["width"]) for one in truth["images"]}
    results = []
    for one in truth["annotations"]:
        found = {name: one[name] for name in ("image_id", "category_id")} | {"score": 0.5}
        if kind == "bbox":
            found["bbox"] = one["bbox"]
        elif isinstance(one["segmentation"], dict):
            found["segmentation"] = one["segmentation"]
        else:
            masks = pycocotools.mask.frPyObjects(one["segmentation"], *sizes[one["image_id"]])
            found["segmentation"] = pycocotools.mask.merge(masks)
        results.append(found)
    return results
