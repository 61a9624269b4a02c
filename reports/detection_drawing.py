"""Objects drawn on a photograph: painted masks, boxes, dashes, hatches, rings, and their names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.contour import QuadContourSet
from matplotlib.patches import Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion, distance_transform_edt

from burst.errors import ShapeError
from reports.style import INK, OBJECT_COLOURS

Box = tuple[float, float, float, float]

PAINT = 0.45  # of the colour in a mask, the rest is the photograph
NAME_SIZE = 4.8  # points: readable in print, and twenty of them leave a picture to be seen
RING = [withStroke(linewidth=2.2, foreground=INK)]


@dataclass(frozen=True)
class Drawn:
    """An object as it is drawn.

    Attributes:
        box: x, y, w, h in pixels of the image.
        colour: of the object, wherever it is drawn.
        kind: "found" (or true), "missed" is dashed, "false" is hatched.
        text: what stands at the box, where there is room.
        mask: (height, width) bool, painted.
        ringed: only one of two models finds it.
    """

    box: Box
    colour: str
    kind: Literal["found", "missed", "false"] = "found"
    text: str = ""
    mask: NDArray[np.bool_] | None = None
    ringed: bool = False


def object_colours(boxes: Sequence[Sequence[float]]) -> list[str]:
    """A colour a box; those that must share one, for there are nine, lie far apart.

    Args:
        boxes: x, y, w, h. The largest choose first.
    """
    centres = np.array([(x + w / 2, y + h / 2) for x, y, w, h in boxes]).reshape(-1, 2)
    order = sorted(range(len(boxes)), key=lambda one: -boxes[one][2] * boxes[one][3])
    taken: dict[str, list[int]] = {colour: [] for colour in OBJECT_COLOURS}
    chosen: dict[int, str] = {}
    for one in order:

        def room(colour: str, at: NDArray[np.float64] = centres[one]) -> float:
            away = np.linalg.norm(centres[taken[colour]] - at, axis=1)
            return float(away.min(initial=np.inf))

        chosen[one] = max(OBJECT_COLOURS, key=room)  # the first of equal ones
        taken[chosen[one]].append(one)
    return [chosen[one] for one in range(len(boxes))]


def painted(image: Image.Image, shown: Sequence[Drawn], *, fade: float = 0.0) -> NDArray[np.uint8]:
    """(height, width, 3): the photograph with masks in their colours, and their edges.

    A pixel belongs to one object, the smallest that covers it: no colours mix where masks overlap.

    Args:
        image: the photograph.
        shown: its objects; those without a mask are not painted.
        fade: share of the photograph's colour that is taken out of it, from 0 to 1.

    Raises:
        ShapeError: a mask is of another size than the photograph.
    """
    photo = np.asarray(image.convert("RGB"), np.float32)
    photo = fade * photo.mean(axis=2, keepdims=True) + (1 - fade) * photo
    edge = max(1, round(max(photo.shape) / 500))
    result = photo.copy()
    masked = [(one.mask, one.colour) for one in shown if one.mask is not None and one.mask.any()]
    for mask, colour in sorted(masked, key=lambda one: -int(one[0].sum())):
        if mask.shape != photo.shape[:2]:
            raise ShapeError(
                f"a mask of {mask.shape} on a photograph of {photo.shape[:2]} pixels; "
                "give the photograph that it was found in"
            )
        ink = 255 * np.array(to_rgb(colour), np.float32)
        result[mask] = (1 - PAINT) * photo[mask] + PAINT * ink
        result[mask & ~binary_erosion(mask, iterations=edge, border_value=1)] = ink
    pixels: NDArray[np.uint8] = result.round().astype(np.uint8)
    return pixels


def draw_objects(ax: Axes, shown: Sequence[Drawn]) -> list[Artist]:
    """Boxes, rings, hatches and names over a photograph that is laid out; masks are `painted`.

    Returns:
        What was drawn; its gid says as what: box, missed, false, hatch, ring or name.
    """
    # Small over large, and what is missed over all: it lies where another was found falsely.
    order = sorted(shown, key=lambda one: (one.kind == "missed", -one.box[2] * one.box[3]))
    artists = [artist for one in order for artist in _marks(ax, one)]
    for artist in artists:
        artist.set_in_layout(False)
        artist.set_zorder(2)  # of lines: then what is added later lies over the rest
    return artists + _names(ax, shown)


def _marks(ax: Axes, one: Drawn) -> list[Artist]:
    x, y, w, h = one.box
    halo = [withStroke(linewidth=1.7, foreground="white", alpha=0.9)]
    line = Rectangle((x, y), w, h, fill=False, ec=one.colour, lw=0.8, path_effects=halo)
    line.set_gid("box" if one.kind == "found" else one.kind)
    artists: list[Artist] = [ax.add_patch(line)]
    if one.kind == "missed":
        line.set(linestyle=(0, (3, 2)), linewidth=1.0)
    if one.kind == "false":
        artists.append(_hatch(ax, one.box))
    if one.ringed:
        artists.append(_ring(ax, one))
    return artists


def _hatch(ax: Axes, box: Box) -> LineCollection:
    """Diagonals over a box, dark in white; a patch's own hatch has no second colour."""
    x, y, w, h = box
    step = 5 * _pixels(ax)
    starts = np.arange(x - h, x + w, step)
    lines = LineCollection(
        [((at, y + h), (at + h, y)) for at in starts],
        colors=INK,
        linewidths=0.5,
        path_effects=[withStroke(linewidth=1.3, foreground="white", alpha=0.8)],
    )
    lines.set_clip_path(Path([(x, y), (x + w, y), (x + w, y + h), (x, y + h)]), ax.transData)
    lines.set_gid("hatch")
    ax.add_collection(lines, autolim=False)
    return lines


def _ring(ax: Axes, one: Drawn) -> QuadContourSet:
    """A line around an object at a small distance; around its box where there is no mask."""
    away, (left, top) = 1.8 * _pixels(ax), np.floor(one.box[:2])
    w, h = np.ceil(one.box[2:]).astype(int) + 1
    inside = np.ones((h, w), bool)
    if one.mask is not None and one.mask.any():
        rows, columns = (np.flatnonzero(one.mask.any(axis)) for axis in (1, 0))
        left, top = columns[0], rows[0]
        inside = one.mask[top : rows[-1] + 1, left : columns[-1] + 1]
    room = int(away) + 2
    distance = distance_transform_edt(~np.pad(inside, room))
    at = np.arange(max(distance.shape)) - room + 0.5
    x, y = left + at[: distance.shape[1]], top + at[: distance.shape[0]]
    ring = ax.contour(x, y, distance, [away], colors="white", linewidths=1.0)
    ring.set(path_effects=RING, gid="ring")
    return ring


def _names(ax: Axes, shown: Sequence[Drawn]) -> list[Artist]:
    """Names where they hide no other; what differs between models has its place first."""
    order = sorted(
        (one for one in shown if one.text),
        key=lambda one: (one.kind == "found" and not one.ringed, -one.box[2] * one.box[3]),
    )
    placed: list[Bbox] = []
    artists: list[Artist] = []
    for one in order:
        colour = "white" if one.kind == "false" else one.colour
        text = ax.text(
            *(0, 0, one.text),
            fontsize=NAME_SIZE,
            color=_readable(colour),
            ha="left",
            va="bottom",
            gid="name",
            in_layout=False,
            parse_math=False,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.9},
        )
        place = _place(ax, text, one.box, placed)
        if place is None:
            text.remove()
            continue
        placed.append(place)
        pad = 0.6 * _pixels(ax)
        text.set_position((place.x0 + pad, place.y1 - pad))
        artists.append(text)
    return artists


def _place(ax: Axes, text: Text, box: Box, placed: Sequence[Bbox]) -> Bbox | None:
    """Where a name fits at its box, in the picture's pixels (y down): the first free place."""
    extent = text.get_window_extent().transformed(ax.transData.inverted())
    pad = 1.2 * _pixels(ax)
    w, h = abs(extent.width) + pad, abs(extent.height) + pad
    (left, right), (top, bottom) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    x, y, x1, y1 = box[0], box[1], box[0] + box[2], box[1] + box[3]
    for x_, y_ in ((x, y - h), (x, y), (x1 - w, y - h), (x, y1), (x, y1 - h), (x1 - w, y1)):
        x0, y0 = min(max(x_, left), right - w), min(max(y_, top), bottom - h)
        place = Bbox(((x0, y0), (x0 + w, y0 + h)))
        if place.count_overlaps(placed) == 0:
            return place
    return None


def _pixels(ax: Axes) -> float:
    """Pixels of the photograph in a point of the figure."""
    (x0, _), (x1, _) = ax.transData.transform([(0, 0), (1, 0)])
    return float(ax.figure.dpi / 72 / (x1 - x0))


def _readable(colour: str) -> str:
    """Black or white, whichever stands out more against a colour (relative luminance, WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return "black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.179 else "white"
