"""Photos as people have them: small noise around a colour, each with bytes of its own."""

import numpy as np
from colours import COLOURS
from PIL import Image


def photo(path, number, colour="red", size=(20, 16)):
    """An image file whose content `number` decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(-40, 40, (*size[::-1], 3))
    pixels = np.clip(np.array(COLOURS.get(colour, (90, 90, 90))) + noise, 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def class_folders(root, count=12, classes=tuple(COLOURS)):
    """root/CLASS/NAME.png."""
    for place, name in enumerate(classes):
        for number in range(count):
            photo(root / name / f"img_{number}.png", 1000 * place + number, name)
    return root


def flat(root, count=12, classes=tuple(COLOURS)):
    """root/images/NAME.png; what lies there with its class, as rows of a table."""
    rows = []
    for place, name in enumerate(classes):
        for number in range(count):
            key = f"{place}_{number:02d}"
            photo(root / "images" / f"{key}.png", 1000 * place + number, name)
            rows.append((f"{key}.png", name))
    return rows


def vtab_task(root, task, *, classes, train=8, val=4, test=6, suffix="jpg", size=(24, 12)):
    """root/TASK/ as NOAH's get_vtab1k.py writes it: lists, and a picture for each of their lines.

    The first classes alone occur in the lists to train on, as in those of SUN397.
    """
    base, number = root / task, 0
    counts = {"train800": train, "val200": val, "train800val200": train + val, "test": test}
    for split, count in counts.items():
        lines = []
        for index in range(count):
            number += 1
            name = f"images/{split}/{index:06d}.{suffix}"
            photo(base / name, number, size=size)
            lines.append(f"{name} {index % (classes if split == 'test' else 2)}")
        (base / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return base
