"""Where in a photograph a backbone is bursty: maps over the picture, a gallery, a table."""

from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from burst.errors import EmptyResult
from burst.token_map import BlockMap, TokenMap
from reports.names import readable
from reports.style import INK, PAGE_WIDTH, QUANTITIES, blank_page, decimals, house_style

Pixels = NDArray[np.float64]
Floats = NDArray[np.float64]

SHARE_COLOURS = "inferno"
NORM_COLOURS = "cividis"
BAND = 3  # blocks side by side
BARS = 6  # dimensions
FAINT, STRONG = 0.35, 0.85  # how much of a patch's colour covers the photograph: least, most
DARKEST, LIGHTEST = 0.25, 0.75  # of the photograph in grey, so that colours stay as in the scale
PANEL = 1.32  # inches that a picture is wide
LEAST_SHARE, LEAST_REACH = 0.25, 4.0  # ends of the scale, as multiples of an equal share
SWATCH = 0.085  # side of the square of a token that is no patch, to the picture's height
TITLE_WIDTH = 95  # letters
SMALL = 7  # points, as tick labels: no text of a figure is smaller
BARS_HEIGHT = 0.95  # inches
SHOWN_SIDE = 448  # pixels that a smaller picture is enlarged to, or resampling would blur its grid

LEGEND = (
    "Top: the share of each\npatch in the fourth powers\nof the response\n"
    "$W_q W_k^\\top X^\\top$, as a multiple\nof an equal share; the\nbrighter, the burstier.\n\n"
    "Middle: the length of each\ntoken, as a multiple of\nthe median length.",
    "Bottom: the dimensions\n(rows of the response)\nwith the largest shares.",
)


class Scale(NamedTuple):
    """How values of a figure are coloured, and what they are."""

    label: str
    colours: str
    norm: Normalize
    values: Floats

    @property
    def beyond(self) -> Literal["neither", "min", "max", "both"]:
        """On which sides values have the colour of an end that they lie beyond."""
        below = bool(np.any(self.values < (self.norm.vmin or 0)))
        above = bool(np.any(self.values > (self.norm.vmax or 0)))
        if below:
            return "both" if above else "min"
        return "max" if above else "neither"


def map_blocks(maps: Sequence[TokenMap]) -> tuple[int, ...]:
    """The first block, the last one and the burstiest on average, or the middle one if it is
    either: what a figure shows unless asked otherwise.

    Raises:
        EmptyResult: no map.
    """
    if not maps:
        raise EmptyResult("no picture was mapped")
    blocks = sorted(maps[0].blocks)
    kurtosis = [np.mean([one.blocks[block].kurtosis for one in maps]) for block in blocks]
    burstiest = blocks[int(np.argmax(np.nan_to_num(kurtosis, nan=-np.inf)))]
    middle = burstiest if burstiest not in (blocks[0], blocks[-1]) else blocks[len(blocks) // 2]
    return tuple(sorted({blocks[0], middle, blocks[-1]}))


def overlay(
    token_map: TokenMap, values: Floats, norm: Normalize, colours: str | Colormap = SHARE_COLOURS
) -> Pixels:
    """The picture in grey with each patch in the colour of its value, the stronger the higher.

    Args:
        token_map: of the picture.
        values: (rows, columns), one a patch; none is painted over where it is NaN.
        norm: values -> 0..1.
        colours: 0..1 -> colours.

    Returns:
        (H, W, 3) in 0..1: pixel for pixel the picture that the model saw. What lies beyond the last
        whole patch is left grey.
    """
    grey = token_map.pixels @ np.array([0.299, 0.587, 0.114]) / 255
    painted = np.repeat((DARKEST + (LIGHTEST - DARKEST) * grey)[..., None], 3, axis=-1)
    grid = token_map.grid
    level = np.ma.filled(np.ma.masked_invalid(norm(values)).clip(0, 1).astype(float), np.nan)
    spread = np.repeat(np.repeat(level, grid.height, axis=0), grid.width, axis=1)
    inside = painted[: grid.rows * grid.height, : grid.columns * grid.width]
    known = np.isfinite(spread)[..., None]
    mixed = _mixed(inside, np.nan_to_num(spread), colormaps.get_cmap(colours))
    inside[:] = np.where(known, mixed, inside)
    return painted


def draw_map(
    ax: Axes, token_map: TokenMap, values: Floats, norm: Normalize, colours: str = SHARE_COLOURS
) -> AxesImage:
    """`overlay` on axes in pixels of the picture, with the tokens that are no patches below.

    Args:
        ax: where to draw.
        token_map: of the picture.
        values: (N,) of all tokens, prefix first.
        norm, colours: as for `overlay`.
    """
    image = _show(ax, overlay(token_map, token_map.patches(values), norm, colours))
    height, width, _ = token_map.pixels.shape
    side, colour = SWATCH * height, colormaps.get_cmap(colours)
    with house_style():
        for place, (name, value) in enumerate(zip(token_map.prefix, values, strict=False)):
            left, top = (place % 2) * width / 2, height + side * (0.5 + 1.4 * (place // 2))
            left, top = left - 0.5, top - 0.5  # where the pixels' edges are
            level = np.clip(np.asarray(norm([value]), float), 0, 1)
            face = _mixed(np.full((1, 3), 0.5), level, colour)[0]
            ax.add_patch(Rectangle((left, top), side, side, facecolor=face, lw=0, gid=name))
            text = f"{_short(name)} {_times(float(value))}"
            ax.text(left + 1.25 * side, top + side / 2, text, size=SMALL, va="center")
    _frame(ax, token_map)
    return image


def draw_dimensions(ax: Axes, block: BlockMap) -> None:
    """Bars of the dimensions with the largest shares of the fourth powers, in percent."""
    shares = np.nan_to_num(block.dimensions)
    largest = np.argsort(-shares, kind="stable")[:BARS]
    percent = 100 * shares[largest]
    with house_style():
        ax.barh(np.arange(len(largest)), percent, color=QUANTITIES["qkx"].line.colour, height=0.7)
        ax.set_yticks(np.arange(len(largest)), [str(one) for one in largest])
        ax.invert_yaxis()
        ax.set_xlabel(
            f"% of fourth powers;\nthese {len(largest)}: {percent.sum():.0f} %", size=SMALL
        )
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4))


def map_figure(token_map: TokenMap, blocks: Iterable[int], *, title: str | None = None) -> Figure:
    """One picture: the share and the norm of each token, and the dimensions, of some blocks.

    Args:
        token_map: from `burst.token_energy`.
        blocks: which, from left to right; three stand side by side.
        title: over the whole figure; the picture's name if not given.

    Raises:
        EmptyResult: no block, or one that was not mapped.
    """
    chosen = list(blocks)
    missing = [block for block in chosen if block not in token_map.blocks]
    if missing or not chosen:
        raise EmptyResult(
            f"blocks {missing or 'to draw: none'}: {token_map.image} has maps of "
            f"{sorted(token_map.blocks)}"
        )
    shown = {block: token_map.blocks[block] for block in chosen}
    shares = np.concatenate([one.times_even for one in shown.values()])
    norms = np.concatenate([_relative(one.norm) for one in shown.values()])
    scales = (
        Scale("share / equal share", SHARE_COLOURS, _share_range(shares), shares),
        Scale("norm / median norm", NORM_COLOURS, _length_range(norms), norms),
    )
    bands = [chosen[i : i + BAND] for i in range(0, len(chosen), BAND)]
    columns = 1 + len(bands[0])
    with house_style():
        tall = PANEL * _height(token_map) / token_map.pixels.shape[1]
        width = PAGE_WIDTH * (1 + len(bands[0])) / (1 + BAND)
        figure = blank_page(width, 0.25 + len(bands) * (2 * tall + BARS_HEIGHT + 1.0))
        named = fill(readable(title or str(token_map.image)), TITLE_WIDTH)
        figure.suptitle(named, size=8.5, parse_math=False)
        parts = figure.subplots(
            3 * len(bands),
            columns,
            squeeze=False,
            height_ratios=[tall, tall, BARS_HEIGHT] * len(bands),
        )
        for number, band in enumerate(bands):
            rows = parts[3 * number : 3 * number + 3]
            _draw_band(figure, rows, token_map, {one: shown[one] for one in band}, scales)
        _draw_photograph(parts[:, 0], token_map)
        figure.draw_without_rendering()
    return figure


def _draw_band(
    figure: Figure,
    rows: NDArray[Any],
    token_map: TokenMap,
    blocks: Mapping[int, BlockMap],
    scales: tuple[Scale, Scale],
) -> None:
    for row in rows:
        for ax in (row[0], *row[1 + len(blocks) :]):
            ax.set_axis_off()
    for column, (index, block) in enumerate(blocks.items(), start=1):
        top, middle, bottom = rows[:, column]
        draw_map(top, token_map, block.times_even, scales[0].norm, SHARE_COLOURS)
        top.set_title(f"block {index}\nexcess kurtosis {decimals(block.kurtosis, 1)}")
        draw_map(middle, token_map, _relative(block.norm), scales[1].norm, NORM_COLOURS)
        draw_dimensions(bottom, block)
    for row, scale in zip(rows, scales, strict=False):
        _draw_scale(figure, row[-1], scale)


def _draw_scale(figure: Figure, ax: Axes, scale: Scale) -> None:
    """A colour bar as the colours look on a grey picture, pointed where values lie beyond it."""
    levels = np.linspace(0, 1, 256)
    mixed = _mixed(np.full((256, 3), 0.5), levels, colormaps.get_cmap(scale.colours))
    mappable = ScalarMappable(scale.norm, ListedColormap(mixed))
    bar = figure.colorbar(
        mappable, ax=ax, fraction=0.06, pad=0.03, shrink=0.85, extend=scale.beyond
    )
    bar.set_label(scale.label, size=SMALL)
    bar.outline.set_visible(False)
    if isinstance(scale.norm, LogNorm):
        powers = 2.0 ** np.arange(np.log2(LEAST_SHARE), np.log2(scale.norm.vmax or 1) + 0.5, 1)
        bar.set_ticks(list(powers[:: -(-len(powers) // 6)]))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    else:
        bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}×"))


def _draw_photograph(column: NDArray[Any], token_map: TokenMap) -> None:
    """The picture as the model sees it, and below it how to read the rest."""
    _show(column[0], token_map.pixels / 255)
    _frame(column[0], token_map)
    column[0].set_axis_on()
    height, width, _ = token_map.pixels.shape
    column[0].set_title(f"as the model sees it\n{width} × {height} pixels")
    for ax, text in zip(column[1:], LEGEND, strict=False):
        ax.text(0, 1, text, transform=ax.transAxes, va="top", size=SMALL, color=INK)


def _height(token_map: TokenMap) -> float:
    """Pixels of the picture and of what stands below it."""
    height, rows = len(token_map.pixels), -(-len(token_map.prefix) // 2)
    return height * (1 + (SWATCH * (0.5 + 1.4 * rows) if rows else 0.0))


def _frame(ax: Axes, token_map: TokenMap) -> None:
    ax.set_xlim(-0.5, token_map.pixels.shape[1] - 0.5)
    ax.set_ylim(_height(token_map) - 0.5, -0.5)


def _show(ax: Axes, pixels: Pixels) -> AxesImage:
    """Pixels as they are: each stays a square of one colour, whatever the size of the figure."""
    height, width = pixels.shape[:2]
    times = max(1, -(-SHOWN_SIDE // max(height, width)))
    enlarged = np.repeat(np.repeat(pixels, times, axis=0), times, axis=1)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    return ax.imshow(enlarged.clip(0, 1), extent=extent, interpolation="antialiased")


def _mixed(under: Pixels, level: Floats, colours: Colormap) -> Pixels:
    cover = FAINT + (STRONG - FAINT) * level[..., None]
    mixed: Pixels = (1 - cover) * under + cover * colours(level)[..., :3]
    return mixed


def _share_range(shares: Floats) -> Normalize:
    highest = float(np.nan_to_num(shares).max(initial=1.0))
    reach = 2.0 ** np.ceil(np.log2(max(highest, LEAST_REACH)))
    return LogNorm(LEAST_SHARE, reach, clip=True)


def _length_range(values: Floats) -> Normalize:
    low, high = (float(np.nanquantile(values, q)) for q in (0.01, 0.99))
    return Normalize(min(low, 0.9), max(high, 1.1), clip=True)


def _relative(norm: Floats) -> Floats:
    return norm / (np.median(norm) or 1.0)


def _short(name: str) -> str:
    return name.replace("register ", "r").replace("distillation", "dist.").replace("class", "cls")


def _times(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return (
        f"{value:.0f}×" if value >= 9.95 else f"{value:.2f}×" if value < 0.095 else f"{value:.1f}×"
    )
