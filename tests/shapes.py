"""Pictures of three kinds of shapes, annotated in COCO's format: a set that can be learned."""

import json

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("square", "triangle", "disc")


def outline(kind, x, y, side):
    """Corners of a shape in a box, as [x0, y0, x1, y1, ...]."""
    if kind == "square":
        points = [(0, 0), (1, 0), (1, 1), (0, 1)]
    elif kind == "triangle":
        points = [(0.5, 0), (1, 1), (0, 1)]
    else:
        turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        points = [(0.5 + 0.5 * np.cos(t), 0.5 + 0.5 * np.sin(t)) for t in turns]
    return [float(v) for px, py in points for v in (x + side * px, y + side * py)]


def places(rng, size, count):
    """Corners and sides of squares that do not touch."""
    while True:  # a draw that leaves no room for the last is drawn again
        boxes = []
        for _ in range(100):
            side = int(rng.integers(size // 6, size // 3))
            x, y = rng.integers(0, size - side, 2).tolist()
            if all(x > a + s or a > x + side or y > b + s or b > y + side for a, b, s in boxes):
                boxes.append((x, y, side))
            if len(boxes) == count:
                return boxes


def picture(rng, size, count):
    """An image, and the (label, outline) of its shapes, none of which touch."""
    image = Image.new("RGB", (size, size), tuple(rng.integers(90, 130, 3).tolist()))
    draw, shapes = ImageDraw.Draw(image), []
    for x, y, side in places(rng, size, count):
        label = int(rng.integers(len(SHAPES)))
        corners = outline(SHAPES[label], x, y, side)
        colour = [30, 30, 30]
        colour[label] = 220
        draw.polygon(corners, fill=tuple(colour))
        shapes.append((label, corners))
    return image, shapes


def write_shapes(folder, images=8, *, size=128, count=5, seed=0, splits=("train", "val")):
    """The same pictures as each of the splits; the folder."""
    rng = np.random.default_rng(seed)
    content = {"images": [], "annotations": []}
    content["categories"] = [{"id": 7 * i + 1, "name": name} for i, name in enumerate(SHAPES)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for number in range(1, images + 1):
        image, shapes = picture(rng, size, count)
        name = f"{number:04d}.png"
        image.save(folder / "images" / name)
        content["images"].append({"id": number, "file_name": name, "height": size, "width": size})
        for label, corners in shapes:
            xs, ys = corners[::2], corners[1::2]
            box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": content["categories"][label]["id"],
                    "bbox": box,
                    "area": 0.5 * abs(np.dot(xs, np.roll(ys, 1)) - np.dot(ys, np.roll(xs, 1))),
                    "iscrowd": 0,
                    "segmentation": [corners],
                }
            )
    for split in splits:
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder
