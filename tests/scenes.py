"""A small data set in COCO's formats, two invented models' detections, and runs that tell them."""

import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from bpt import detection_recipe_for
from reports.detections import mask_of

SIDE = 60
CLASSES = {1: "cat", 7: "dog"}


def box_mask(box, height=SIDE, width=SIDE):
    """COCO's code of the pixels in a box of whole numbers, as a result file has it."""
    x, y, w, h = (int(one) for one in box)
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    code = coco.encode(mask)
    return {"size": [height, width], "counts": code["counts"].decode("ascii")}


def annotation(image, box, category=1, *, crowd=False, masks=True):
    x, y, w, h = box
    one = {"image_id": image, "bbox": list(box), "category_id": category, "area": w * h}
    one |= {"iscrowd": int(crowd)}
    if masks:
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        one["segmentation"] = box_mask(box) if crowd else [corners]
    return one


def detection(image, box, score=0.9, category=1, *, masks=True):
    one = {"image_id": image, "bbox": list(box), "category_id": category, "score": score}
    return one | ({"segmentation": box_mask(box)} if masks else {})


def truth_of(annotations, images=None):
    images = sorted({one["image_id"] for one in annotations}) if images is None else images
    return {
        "images": [{"id": one, "width": SIDE, "height": SIDE} for one in images],
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for key, name in CLASSES.items()],
    }


def photo(key):
    """A light photograph that differs from image to image."""
    noise = np.random.default_rng(key).integers(100, 256, (SIDE, SIDE, 3), np.uint8)
    return Image.fromarray(noise)


def some_scenes(images=6):
    """Ground truth of four objects an image, and what two models find: A the first, B the last.

    In image k, A finds k % 5 objects and B 4 - k % 5; B has a false positive in every image.
    """
    places = [(2, 2, 12, 10), (30, 4, 20, 20), (4, 30, 16, 24), (34, 34, 22, 20)]
    annotations, first, second = [], [], []
    for image in range(1, images + 1):
        annotations += [annotation(image, box, 1 + 6 * (i % 2)) for i, box in enumerate(places)]
        for i, box in enumerate(places):
            found = detection(image, box, 0.9 - 0.1 * i, 1 + 6 * (i % 2))
            if i < image % 5:
                first.append(found)
            if i >= image % 5:
                second.append(found)
        second.append(detection(image, (18, 18, 8, 8), 0.6))
    return truth_of(annotations), {"A": first, "B": second}


@dataclass
class Detector:
    """What `reports.DetectorRun` asks of a run."""

    folder: Path
    recipe: Any
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    result: dict[str, Any] | None
    found: list[dict[str, Any]] = field(default_factory=list)

    def detections(self):
        return self.found


def detector(name="run", found=(), box=30.0, mask=25.0, ended=True, images=6, **changes):
    given = {"method": "vpt", "placement": "deep", "seed": 0} | changes
    if given["method"] == "linear":
        del given["placement"]
    recipe = detection_recipe_for("coco", **given)
    prompts = 76_800 if recipe.prompted else 0
    counts = {"prompts": prompts, "heads": 25_000_000, "backbone": 86_000_000}
    counts |= {"trained": prompts + 25_000_000, "total": prompts + 111_000_000}
    metrics = [
        {"epoch": epoch, "loss": 5 / epoch, "losses": {"rpn_box": 1 / epoch, "mask": 2 / epoch}}
        | {"lr": 5e-4, "images_per_second": 9.0}
        | {"box_AP": box / 2 if epoch == 2 else None, "mask_AP": mask / 2 if epoch == 2 else None}
        for epoch in (1, 2, 3)
    ]
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    scores = {f"box_{one}": box + i for i, one in enumerate(names)}
    scores |= {f"mask_{one}": mask + i for i, one in enumerate(names)}
    scores["box_APl"] = None
    result = {
        "scores": scores,
        "per_class": {"cat": {"box_AP": box, "mask_AP": mask}, "dog": {"box_AP": 10.0}},
        "evaluator": "pycocotools 2.0.11",
        "images": images,
        "parameters": counts,
        "seconds": 60.0,
    }
    return Detector(
        Path(name),
        recipe,
        {
            "command": ["bpt", "train", "coco"],
            "parameters": counts,
            "dataset": {
                **{"name": "coco", "source": "/data", "digest": "d1", "categories": 2},
                **{"train": 117_266, "val": 5_000},
            },
            "backbone": {"weights_source": "a file", "weights_sha256": "ab"},
        },
        metrics,
        result if ended else None,
        list(found),
    )


def photographs(folder):
    """Ground truth of real photographs, and the callable that opens one."""
    place = folder / "coco-mini"
    truth = json.loads((place / "annotations" / "instances_val2017.json").read_text())
    files = {one["id"]: one["file_name"] for one in truth["images"]}

    def opener(key):
        with zipfile.ZipFile(place / "val2017.zip") as archive:
            return Image.open(io.BytesIO(archive.read(f"val2017/{files[key]}")))

    return truth, opener


def invented(truth, recall, rng):
    """Detections of a model that finds a share of the objects, a little beside where they are."""
    sizes = {one["id"]: (one["height"], one["width"]) for one in truth["images"]}
    found = []
    for one in truth["annotations"]:
        if rng.random() > recall:
            continue
        height, width = sizes[one["image_id"]]
        mask = mask_of(one, height, width).astype(np.uint8)
        shift = np.rint(rng.normal(0, 0.12, 2) * one["bbox"][2:]).astype(int)
        pad = int(np.abs(shift).max())
        moved = np.pad(mask, pad)[pad - shift[1] :, pad - shift[0] :][:height, :width]
        code = coco.encode(np.asfortranarray(moved))
        code["counts"] = code["counts"].decode("ascii")
        box = coco.toBbox(code).tolist()
        entry = {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": box}
        found.append(entry | {"score": float(rng.random()), "segmentation": code})
    return found
