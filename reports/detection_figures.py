"""Photographs with what was found in them: ground truth, one model and another side by side."""

import os
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from burst.errors import EmptyResult, OutputError
from burst.files import write_atomically
from reports.detection_drawing import PAINT, RING, Box, Drawn, draw_objects, object_colours, painted
from reports.detections import Matching, Record, Scene, mask_of
from reports.style import INK, OBJECT_COLOURS, PAGE_WIDTH, blank_page, house_style, legend_above

Opener = Callable[[int], Image.Image]

TRUTH = "ground truth"
FADE = 0.5  # of a photograph's colour, so that those of the objects stand out
TALLEST = 0.8  # of a row of the figure, to its width
PICTURE = 4.2  # inches that a picture's longer side would have, to the size of its names
LEAST_SIDE = 640  # pixels of a picture's longer side, for names that can be read


def draw_detections(
    ax: Axes, image: Image.Image, detections: Sequence[Record], names: Mapping[int, str]
) -> list[Artist]:
    """A photograph with boxes, masks, names and scores, a colour an object.

    Args:
        ax: where to draw; its figure is laid out, for names are put where there is room.
        image: the photograph.
        detections: of this image, in COCO's form: bbox is x, y, width, height in pixels of the
            image, score lies in 0..1; masks where they have them.
        names: of the categories, by id.

    Returns:
        What was drawn over the photograph; its gid says as what: box, name.

    Raises:
        BurstError: there are masks, and pycocotools is not installed.
    """
    colours = object_colours([one["bbox"] for one in detections])
    shown = [
        _detection(one, colour, names, image)
        for one, colour in zip(detections, colours, strict=True)
    ]
    _show(ax, painted(image, shown))
    figure = ax.figure if isinstance(ax.figure, Figure) else ax.figure.figure
    figure.draw_without_rendering()
    return draw_objects(ax, shown)


def save_prediction(
    image: Image.Image,
    detections: Sequence[Record],
    path: str | os.PathLike[str],
    *,
    names: Mapping[int, str],
) -> Path:
    """Write the photograph with what was found in it, in its own size, whole or not at all.

    A photograph whose longer side is below 640 pixels is enlarged a whole number of times, or no
    name could be read.

    Args:
        image: the photograph, upright.
        detections: see `draw_detections`.
        path: where to; its suffix is the format.
        names: of the categories, by id.

    Returns:
        The path.

    Raises:
        OutputError: no picture can have that suffix, or it cannot be written.
        BurstError: see `draw_detections`.
    """
    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise OutputError(f"cannot write {path}: name a picture, such as {path.stem}.png")
    times = -(-LEAST_SIDE // max(image.size))
    width, height = (times * side for side in image.size)
    dots = max(width, height) / PICTURE
    with house_style():
        # A hundredth of a pixel more: the canvas cuts off what rounding took.
        size = ((width + 0.01) / dots, (height + 0.01) / dots)
        figure = Figure(figsize=size, dpi=dots)
        draw_detections(figure.add_axes((0, 0, 1, 1)), image, detections, names)
        figure.savefig(buffer := BytesIO(), format="rgba", dpi=dots)
    picture = Image.frombytes("RGBA", (width, height), buffer.getvalue()).convert("RGB")
    with write_atomically(path) as temporary:
        picture.save(temporary)
    return path


def side_by_side_figure(
    matching: Matching, scenes: Sequence[Scene], opener: Opener, *, width: float = PAGE_WIDTH
) -> Figure:
    """A row an image: ground truth, then each model, an object in one colour in all of them.

    What only one of two models finds is ringed there; what a model misses is dashed; what it finds
    where nothing is, is hatched. Crowds, and detections on them, are not drawn.

    Args:
        matching: of one or two models.
        scenes: chosen from it, see `choose_scenes`.
        opener: gives an image by its id.
        width: of the figure, in inches.

    Raises:
        EmptyResult: no scene.
    """
    if not scenes:
        raise EmptyResult("no image to draw")
    columns = (TRUTH, *matching.labels)
    share = [min(TALLEST, one.image["height"] / one.image["width"]) for one in scenes]
    with house_style():
        column = (width - 0.3) / len(columns)
        figure = blank_page(width, 0.55 + sum(0.05 + one * column for one in share))
        figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
        grid = figure.subplots(len(scenes), len(columns), squeeze=False, height_ratios=share)
        panels = []
        for axes, scene in zip(grid, scenes, strict=True):
            image = opener(scene.image["id"])
            axes[0].set_ylabel(_row_title(matching, scene), fontsize=6, parse_math=False)
            for ax, shown in zip(axes, scene_objects(matching, scene), strict=True):
                _show(ax, painted(image, shown, fade=FADE))
                ax.spines[:].set(visible=True, color="0.7", linewidth=0.4)  # of a white sky, too
                panels.append((ax, shown))
        for ax, title in zip(grid[0], columns, strict=True):
            ax.set_title(fill(title, 34), parse_math=False)
        legend_above(figure, _legend(len(matching.labels)))
        figure.draw_without_rendering()
        for ax, shown in panels:
            draw_objects(ax, shown)
    return figure


def scene_objects(matching: Matching, scene: Scene) -> list[list[Drawn]]:
    """What is drawn in each column: ground truth, then each model."""
    colours = object_colours([one["bbox"] for one in scene.objects])
    size = scene.image["height"], scene.image["width"]
    truth = [
        Drawn(_box(one), colour, text=matching.names[one["category_id"]], mask=mask_of(one, *size))
        for one, colour in zip(scene.objects, colours, strict=True)
    ]
    found = [answer.found for answer in scene.answers.values()]
    both = frozenset.intersection(*found)
    shown = [truth]
    for answer in scene.answers.values():
        column = [
            Drawn(_box(one), colours[number], "missed")
            for number, one in enumerate(scene.objects)
            if number not in answer.found
        ]
        for one, number in zip(answer.detections, answer.matched, strict=True):
            text = _text(one, matching.names)
            if number is None:
                column.append(Drawn(_box(one), INK, "false", text))
            else:
                mask = mask_of(one, *size)
                column.append(
                    Drawn(_box(one), colours[number], "found", text, mask, number not in both)
                )
        shown.append(column)
    return shown


def _show(ax: Axes, pixels: NDArray[np.uint8]) -> None:
    height, width = pixels.shape[:2]
    ax.imshow(pixels, extent=(0, width, height, 0))  # a pixel's corner is (0, 0), as in COCO
    ax.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    ax.spines[:].set_visible(False)


def _detection(one: Record, colour: str, names: Mapping[int, str], image: Image.Image) -> Drawn:
    mask = mask_of(one, image.height, image.width)
    return Drawn(_box(one), colour, text=_text(one, names), mask=mask)


def _box(record: Record) -> Box:
    x, y, w, h = record["bbox"]
    return (x, y, w, h)


def _text(detection: Record, names: Mapping[int, str]) -> str:
    return f"{names[detection['category_id']]} {100 * detection['score']:.0f}"


def _row_title(matching: Matching, scene: Scene) -> str:
    title = f"image {scene.image['id']}"
    if len(matching.labels) == 1:
        (answer,) = scene.answers.values()
        return f"{title}\n{len(answer.found)} of {len(scene.objects)} found"
    better = matching.labels[scene.lead > 0]
    return f"{title}\n{fill(f'+{abs(scene.lead)} {better}', 28)}"


def _legend(models: int) -> dict[str, Artist]:
    blue = OBJECT_COLOURS[0]
    handles: dict[str, Artist] = {
        "an object, one colour in its row": Patch(fc=(*to_rgb(blue), PAINT), ec=blue),
        "missed": Patch(fill=False, ec=blue, ls=(0, (3, 2))),
        "false positive": Patch(fc="white", ec=INK, hatch="/////"),
    }
    if models > 1:
        handles["found by this model only"] = Patch(
            fc=(*to_rgb(blue), PAINT),
            ec="white",
            lw=1.0,
            path_effects=RING,
        )
    return handles
