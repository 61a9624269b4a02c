"""Annotated images that detection tests build: polygons, masks, and a folder in COCO's format."""

import json

import numpy as np
from PIL import Image

from bpt.dataset.coco_annotations import CocoObjects, coco_masks, encode_mask


def objects(segmentations, *, labels=None, crowds=None) -> CocoObjects:
    """The objects of one image; their boxes and areas are of no concern."""
    count = len(segmentations)
    return CocoObjects(
        boxes=np.zeros((count, 4), np.float32),
        labels=np.arange(1, count + 1) if labels is None else np.array(labels, np.int64),
        crowds=np.zeros(count, bool) if crowds is None else np.array(crowds, bool),
        areas=np.zeros(count),
        ids=np.arange(1, count + 1),
        segmentations=tuple(segmentations),
    )


def rectangle(x0, y0, x1, y1):
    """A polygon of 4 corners."""
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def star(rng, centre, radius, corners=48):
    """A polygon of three round rays, not convex, around a centre x, y."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radii = radius * (0.7 + 0.3 * np.sin(3 * angles + rng.uniform(0, 2 * np.pi)))
    return np.asarray(centre) + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)


def coco_folder(folder, *, images=7, objects_each=3, seed=0):
    """A folder of random pictures with stars; returns its path.

    Image i has i % (objects_each + 1) objects of 2 classes, so some have none; ids have gaps.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    listed, annotations = [], []
    for number in range(images):
        height, width = rng.integers(40, 120, 2).tolist()
        name = f"{number:03d}.png"
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        image_id = 10 + 3 * number
        listed.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for _ in range(number % (objects_each + 1)):
            polygon = star(rng, rng.uniform([20, 20], [width - 20, height - 20]), 18)
            (x0, y0), (x1, y1) = polygon.min(0), polygon.max(0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": [3, 7][len(annotations) % 2],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float((x1 - x0) * (y1 - y0) / 2),
                    "iscrowd": 0,
                    "segmentation": [polygon.ravel().tolist()],
                }
            )
    text = {
        "images": listed,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "moon"}, {"id": 3, "name": "star"}],
    }
    (folder / "annotations.json").write_text(json.dumps(text))
    return folder


def handed_back(ground_truth):
    """All that is annotated, as if it had been found with score 1."""
    sizes = {one["id"]: (one["height"], one["width"]) for one in ground_truth["images"]}
    results = []
    for one in ground_truth["annotations"]:
        mask = one["segmentation"]
        if isinstance(mask, list):
            polygons = [np.array(polygon) for polygon in mask]
            mask = encode_mask(polygons, *sizes[one["image_id"]])
            mask = {**mask, "counts": mask["counts"].decode()}
        found = {key: one[key] for key in ("image_id", "category_id", "bbox")}
        results.append(found | {"score": 1.0, "segmentation": mask})
    return results


def shaken(ground_truth, rng):
    """Results that are partly wrong: moved boxes and masks, other classes, some lost or double."""
    results = []
    for one in handed_back(ground_truth):
        for _ in range(rng.integers(0, 3)):
            dx, dy = rng.integers(-4, 5, 2).tolist()
            x, y, width, height = one["bbox"]
            pixels = np.roll(coco_masks().decode(one["segmentation"]), (dy, dx), (0, 1))
            mask = coco_masks().encode(np.asfortranarray(pixels))
            found = {"bbox": [x + dx, y + dy, 1.1 * width, height], "score": float(rng.uniform())}
            if rng.uniform() < 0.1:
                found["category_id"] = ground_truth["categories"][0]["id"]
            found["segmentation"] = {**mask, "counts": mask["counts"].decode()}
            results.append(one | found)
    return results
