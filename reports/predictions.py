"""What a detector found in photographs: pictures, plain data, a table."""

import os
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from rich.table import Table

from bpt import FoundObjects
from burst.files import make_folder
from reports.detection_figures import save_prediction
from reports.names import new_stem, readable

SHOWN = 20  # objects of an image in the table, the best


def save_predictions(
    found: Iterable[FoundObjects], out: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    """Draw each photograph with its objects, into OUT/NAME.png; and what they are, as plain data.

    Photographs of one name get a number. They come and go one at a time.

    Args:
        found: see `bpt.predict_objects`.
        out: the folder; made if missing.

    Returns:
        For each photograph its `image` (where it lies), `picture` (where it was drawn), and
        `objects`: `name` and what COCO's results hold, but for the image's id: bbox is x, y, width,
        height in pixels of the image, score lies in 0..1.

    Raises:
        OutputError: the folder cannot be written.
        BurstError: see `bpt.predict_objects`, which reads on as this goes.
    """
    folder, answers, taken = make_folder(out), [], set[str]()
    for one in found:
        stem = new_stem(PurePath(one.place.rpartition(":")[2]).stem, taken)
        names = {entry["category_id"]: entry["name"] for entry in one.objects}
        picture = save_prediction(one.image, one.objects, folder / f"{stem}.png", names=names)
        objects = [
            {name: value for name, value in entry.items() if name != "image_id"}
            for entry in one.objects
        ]
        answers.append({"image": one.place, "picture": str(picture), "objects": objects})
    return answers


def objects_table(answers: Sequence[dict[str, Any]]) -> Table:
    """The best objects of each photograph, one line each, boxes in pixels, for a terminal."""
    table = Table(box=None, pad_edge=False)
    for heading in ("image", "object", "score", "x", "y", "width", "height"):
        text = heading in ("image", "object")
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    for answer in answers:
        objects = answer["objects"]
        for place, one in enumerate(objects[:SHOWN]):
            box = [f"{side:.0f}" for side in one["bbox"]]
            image = readable(answer["image"]) if place == 0 else ""
            table.add_row(image, one["name"], f"{one['score']:.2f}", *box)
        if not objects:
            table.add_row(readable(answer["image"]), "nothing", *[""] * 5)
        elif len(objects) > SHOWN:
            table.add_row("", f"and {len(objects) - SHOWN} more", *[""] * 5)
    return table
