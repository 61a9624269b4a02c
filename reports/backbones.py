"""Several backbones in one figure: their entries block by block, their laws, their heads."""

import math
from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from burst.errors import EmptyResult
from burst.gauge import WHOLE
from burst.histogram import Histogram
from reports.depth import whole_blocks
from reports.entries import bin_edges, merge_counts
from reports.names import readable
from reports.style import (
    PAGE_WIDTH,
    QUANTITIES,
    Line,
    blank_page,
    house_style,
    law_style,
    legend_above,
    marker_size,
    model_lines,
    quantity_style,
    whole_ticks,
)

REACH = 12.0  # standard deviations that an overlay shows
LEAST_DENSITY = 1e-7
LETTERS = 75  # of the models' names side by side over a page's columns
ROW_HEIGHT = 1.2  # inches
LEVELS = (0.3, 1, 3, 10, 30)  # of excess kurtosis; powers of ten where it goes beyond
DISTANCES = {"ks_gaussian": "gaussian", "ks_laplace": "laplacian"}


def draw_density(ax: Axes, hist: Histogram, line: Line, *, bins: int = 256) -> Line2D:
    """The standardised entries' density on a log scale: over a Gaussian it would be a parabola.

    Args:
        ax: where to draw.
        hist: of the entries; if they do not vary, nothing is drawn.
        line: how.
        bins: how many at most span the values.
    """
    edges = bin_edges([hist], bins=bins)
    deviation = hist.moments.std
    counts = merge_counts(hist, edges) if hist.count and deviation > 0 else np.zeros(len(edges) - 1)
    widths = np.diff(edges) / (deviation or 1.0)
    density = np.where(counts > 0, counts / np.maximum(hist.count, 1) / widths, np.nan)
    centres = ((edges[:-1] + edges[1:]) / 2 - (hist.moments.mean if hist.count else 0.0)) / (
        deviation or 1.0
    )
    (drawn,) = ax.plot(centres, density, color=line.colour, ls=line.dashes, label=line.label)
    return drawn


def overlay_grid(
    histograms: Mapping[str, Mapping[int, Histogram]],
    *,
    quantity: str,
    title: str | None = None,
    lines: Mapping[str, Line] | None = None,
) -> Figure:
    """One panel a block, one line a backbone: densities of standardised entries, on a log scale.

    Grey are the standard Gaussian and Laplacian; a line above them at the sides is burstier.

    Args:
        histograms: model -> block, counted from 0 -> histogram.
        quantity: "qk", "x" or "qkx".
        title: over the figure.
        lines: how each model is drawn, where other figures draw it too.

    Raises:
        EmptyResult: no block was given.
        UnknownName: another quantity.
    """
    symbol = quantity_style(quantity).symbol
    blocks = sorted({block for one in histograms.values() for block in one})
    if not blocks:
        raise EmptyResult("no block to draw: give at least one histogram")
    columns = min(4, len(blocks))
    rows = math.ceil(len(blocks) / columns)
    lines = lines or model_lines(histograms)
    handles: dict[str, Artist] = {}
    with house_style():
        figure = blank_page(PAGE_WIDTH, 0.8 + ROW_HEIGHT * rows)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax in grid.flat[len(blocks) :]:
            ax.remove()
        for ax, block in zip(grid.flat, blocks, strict=False):
            handles |= _draw_references(ax)
            for model, found in histograms.items():
                if block in found:
                    line = lines[model]
                    handles[line.label] = draw_density(ax, found[block], line)
            ax.set_title(f"block {block}", loc="left")
        first = grid.flat[0]
        first.set(yscale="log", xlim=(-REACH, REACH), ylim=(LEAST_DENSITY, 2.0))
        first.xaxis.set_major_locator(MaxNLocator(5))
        first.yaxis.set_major_locator(LogLocator(numticks=4))
        first.yaxis.set_minor_locator(NullLocator())
        figure.supxlabel(f"entry of {symbol} in standard deviations from its mean")
        figure.supylabel("density")
        legend_above(figure, handles, title=title)
        figure.draw_without_rendering()
    return figure


def law_lines(table: pd.DataFrame) -> Figure:
    """Kolmogorov-Smirnov distance of the entries to the best Gaussian and the best Laplacian.

    A row of panels a quantity, a column a backbone; the lower line is the law that fits better.

    Args:
        table: rows of a survey; those of whole blocks are drawn.

    Raises:
        EmptyResult: no row of a whole block.
    """
    whole = whole_blocks(table)
    if whole.empty:
        raise EmptyResult("no block to draw: the table has no row with head 'all'")
    models = list(whole["model"].unique())
    quantities = [name for name in QUANTITIES if name in set(whole["quantity"])]
    with house_style():
        figure = blank_page(PAGE_WIDTH, 0.75 + 1.35 * len(quantities))
        grid = figure.subplots(
            len(quantities), len(models), sharex=True, sharey="row", squeeze=False
        )
        for row, quantity in zip(grid, quantities, strict=True):
            for ax, model in zip(row, models, strict=True):
                part = whole[(whole["model"] == model) & (whole["quantity"] == quantity)]
                handles = draw_distances(ax, part)
            row[0].set_ylabel(quantity_style(quantity).symbol)
            distances = whole.loc[whole["quantity"] == quantity, list(DISTANCES)].to_numpy(float)
            row[0].set_ylim(0, 1.08 * float(np.nanmax(distances, initial=1e-3)))
        _name_columns(grid[0], models)
        legend_above(figure, handles, title="distance to the best law of each kind")
        figure.supxlabel("block")
        figure.supylabel("Kolmogorov-Smirnov distance")
        figure.draw_without_rendering()
    return figure


def draw_distances(ax: Axes, table: pd.DataFrame) -> dict[str, Artist]:
    """Both Kolmogorov-Smirnov distances over the blocks of one backbone and quantity.

    Args:
        ax: where to draw.
        table: rows of whole blocks, of one backbone and quantity.

    Returns:
        The lines, by what a legend calls their law.
    """
    part = table.sort_values("block")
    handles: dict[str, Artist] = {}
    for column, law in DISTANCES.items():
        style = law_style(law)
        (line,) = ax.plot(
            *(part["block"], part[column]),
            color=style.colour,
            ls=style.dashes,
            marker="o" if law == "gaussian" else "s",
            ms=marker_size(len(part)),
        )
        handles[style.label] = line
    ax.xaxis.set_major_locator(whole_ticks(6))
    return handles


def head_maps(table: pd.DataFrame, *, quantity: str) -> Figure:
    """Excess kurtosis of each head of each block: a map a backbone, on one symmetric log scale.

    Args:
        table: rows of a survey that measured the heads.
        quantity: "qk" or "qkx".

    Raises:
        EmptyResult: no row of a head.
    """
    heads = table[(table["head"].astype(str) != WHOLE) & (table["quantity"] == quantity)]
    if heads.empty:
        raise EmptyResult("no head to draw: measure with per_head")
    models = list(heads["model"].unique())
    reach = 1.01 * max(3.0, float(heads["excess_kurtosis"].abs().max()))  # 3 has a tick
    with house_style():
        figure = blank_page(PAGE_WIDTH, 3.3)
        grid = figure.subplots(1, len(models), squeeze=False)[0]
        for ax, model in zip(grid, models, strict=True):
            mesh = draw_heads(ax, heads[heads["model"] == model], reach=reach)
        _name_columns(grid, models)
        grid[0].set_ylabel("block")
        symbol = quantity_style(quantity).symbol
        levels = LEVELS if reach < 100 else 10.0 ** np.arange(math.floor(math.log10(reach)) + 1)
        ticks = [sign * level for level in levels if level <= reach for sign in (-1, 1)]
        bar = figure.colorbar(
            mesh, ax=list(grid), fraction=0.05, pad=0.02, ticks=sorted([0, *ticks])
        )
        bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        bar.minorticks_off()
        bar.set_label(f"excess kurtosis of a head's {symbol}")
        figure.supxlabel("head")
        figure.draw_without_rendering()
    return figure


def draw_heads(ax: Axes, table: pd.DataFrame, *, reach: float) -> QuadMesh:
    """Excess kurtosis by block (down) and head (across) of one backbone, numbers where few.

    Args:
        ax: where to draw.
        table: rows of heads, of one backbone and quantity.
        reach: excess kurtosis at the ends of the colours, which are symmetric about 0.
    """
    part = table.assign(head=table["head"].astype(int))
    grid = part.pivot_table(index="block", columns="head", values="excess_kurtosis")
    norm = SymLogNorm(1.0, vmin=-reach, vmax=reach, base=10)
    mesh = ax.pcolormesh(
        grid.columns, grid.index, grid.to_numpy(), cmap="PuOr_r", norm=norm, shading="nearest"
    )
    ax.invert_yaxis()
    ax.xaxis.set_major_locator(whole_ticks(8))
    ax.yaxis.set_major_locator(whole_ticks(12))
    if grid.size <= 48:
        heads, blocks = grid.columns.to_numpy(int), grid.index.to_numpy(int)
        for (i, j), value in np.ndenumerate(grid.to_numpy(float)):
            colour = "white" if abs(norm(value) - 0.5) > 0.4 else "0.15"
            ax.text(
                float(heads[j]),
                float(blocks[i]),
                f"{value:.1f}",
                ha="center",
                va="center",
                color=colour,
            )
    return mesh


def _name_columns(axes: Sequence[Axes], models: Sequence[str]) -> None:
    """The models over their columns, in as many lines as a column's width takes."""
    for ax, model in zip(axes, models, strict=True):
        name = fill(readable(model), LETTERS // len(models))
        ax.set_title(name, loc="left", parse_math=False)


def _draw_references(ax: Axes) -> dict[str, Artist]:
    """The standard Gaussian's and Laplacian's densities."""
    at = np.linspace(-REACH, REACH, 601)
    gaussian = np.exp(-at * at / 2) / math.sqrt(2 * math.pi)
    laplacian = np.exp(-math.sqrt(2) * np.abs(at)) / math.sqrt(2)
    handles: dict[str, Artist] = {}
    for law, density in {"gaussian": gaussian, "laplacian": laplacian}.items():
        dashes = ":" if law == "gaussian" else "--"
        (line,) = ax.plot(at, density, color="0.6", lw=0.8, ls=dashes, zorder=0)
        handles[law_style(law).label] = line
    return handles
