"""A small dataset that a random backbone can learn a little of."""

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 40, 200), "green": (20, 160, 60), "red": (200, 30, 40)}
COUNTS = {"train": 8, "val": 3, "test": 4}


def write_images(root, counts=None, classes=COLOURS):
    """root/SPLIT/CLASS/N.png: noise around a colour, 20 x 16 pixels."""
    rng = np.random.default_rng(0)
    for split, count in (counts or COUNTS).items():
        for name in classes:
            for number in range(count):
                noise = rng.integers(-40, 40, (16, 20, 3))
                pixels = np.clip(np.array(COLOURS.get(name, (90, 90, 90))) + noise, 0, 255)
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root
