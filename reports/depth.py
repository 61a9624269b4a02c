"""How a backbone's blocks differ: a panel of entries a block, and statistics over depth."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)

from burst.errors import EmptyResult
from burst.gauge import WHOLE
from burst.histogram import Histogram
from reports.entries import HistogramArtists, Law, bin_edges, ceiling, draw_histogram, fit_laws
from reports.style import (
    COLUMN_WIDTH,
    MINUS,
    PAGE_WIDTH,
    QUANTITIES,
    Line,
    blank_page,
    from_zero,
    house_style,
    law_style,
    legend_above,
    literal,
    marker_size,
    model_lines,
    quantity_style,
    whole_ticks,
)

__all__ = ["MEASURES", "Measure", "depth_grid", "depth_lines", "draw_histogram", "draw_measure"]

PAGE_HEIGHT = 9.2  # inches; leaves room for a caption
LEAST_ROW = 0.95  # inches; a page of more than 40 panels grows
AROUND = 0.9  # inches for the legend and the labels


class Measure(NamedTuple):
    """A statistic over depth, with what a Gaussian and a Laplacian sample would have."""

    column: str
    label: str
    gaussian: float
    laplacian: float


def _top_energy() -> tuple[float, float]:
    """Share of E[x^2] in the 1 % largest |x|, Gaussian and Laplacian, by partial integration."""
    z, t = NormalDist().inv_cdf(0.995), math.log(100)
    return 2 * z * NormalDist().pdf(z) + 0.01, 0.01 * (t * t / 2 + t + 1)


MEASURES = (
    Measure("excess_kurtosis", r"excess kurtosis $\kappa$", 0.0, 3.0),
    Measure("top1_energy", "energy in top 1 %", *_top_energy()),
    Measure("ggd_shape", r"fitted shape $\beta$", 2.0, 1.0),
)


def depth_grid(
    histograms: Mapping[int, Histogram],
    *,
    quantity: str,
    title: str | None = None,
    bins: int = 256,
    shared_axes: bool = False,
    figure: Figure | None = None,
) -> Figure:
    """One panel a block: its entries on a log scale, with the laws fitted to them.

    Like Figures 7 and 8 of arXiv 2506.22908. Above each panel: kappa, the excess kurtosis
    (0 Gaussian, 3 Laplacian), and beta, the shape of the fitted generalised Gaussian
    (2 Gaussian, 1 Laplacian, below 1 hyper-Laplacian; none where no shape fits).

    Args:
        histograms: block, counted from 0, to its histogram.
        quantity: "qk" or "qkx" (logits before 1/sqrt(d_h)) or "x" (normalised token values).
        title: over the whole figure.
        bins: how many bins at most span a panel's values.
        shared_axes: one range and bin width for all blocks, to compare them; otherwise each
            panel shows its own range.
        figure: an empty figure with a constrained layout, drawn in at its size; one that fits
            a page by default.

    Raises:
        EmptyResult: no block was given.
        UnknownName: another quantity.
    """
    label = quantity_style(quantity).axis_label
    if not histograms:
        raise EmptyResult("no block to draw: give at least one histogram")
    rows, columns = _grid_shape(len(histograms))
    edges = bin_edges(list(histograms.values()), bins=bins) if shared_axes else bins
    with house_style():
        figure = figure or blank_page(*_page(rows, columns))
        panels = _panels(figure, len(histograms), rows, columns, shared=shared_axes)
        drawn = []
        for ax, (block, hist) in zip(panels, sorted(histograms.items()), strict=True):
            laws = fit_laws(hist)
            drawn.append(draw_histogram(ax, hist, bins=edges, laws=laws))
            _annotate(ax, block, hist, laws)
        if shared_axes:
            panels[0].set_ylim(top=max(ceiling(artists) for artists in drawn))
        _tick(panels, narrow=columns > 4)
        _write_around(figure, drawn, label=label, title=title)
        figure.draw_without_rendering()  # ticks are made, and styled, when first drawn
    return figure


def depth_lines(table: pd.DataFrame, *, figure: Figure | None = None) -> Figure:
    """Excess kurtosis, energy in the top 1 % and fitted shape, block by block, side by side.

    One line a quantity for one model, with a band where there are intervals. Several models have
    one row of panels a quantity, and in it one line a model. Grey lines are what a Gaussian and a
    Laplacian sample would have. Kurtosis is drawn on a symmetric log scale, and its label says so,
    where it exceeds 30, shape on a log scale where it spans more than a factor of 10. Missing
    values are gaps.

    Args:
        table: rows of a survey (`statistics.csv`); of these, only those of whole blocks
            (head "all") are drawn.
        figure: an empty figure with a constrained layout, drawn in at its size; one that is a
            page wide by default.

    Raises:
        EmptyResult: no row of a whole block.
        UnknownName: a quantity that is none of "qk", "x" and "qkx".
    """
    whole = whole_blocks(table)
    if whole.empty:
        raise EmptyResult("no block to draw: the table has no row with head 'all'")
    by, lines, parts, title = _arrange(whole)
    with house_style():
        figure = figure or blank_page(PAGE_WIDTH, 0.75 + 1.55 * len(parts))
        grid = figure.subplots(len(parts), len(MEASURES), sharex=True, sharey="col", squeeze=False)
        for row, (symbol, part) in zip(grid, parts.items(), strict=True):
            for ax, measure in zip(row, MEASURES, strict=True):
                ax.set_title(symbol, loc="left")
                handles = draw_measure(ax, part, measure, by=by, lines=lines)
        for ax, measure in zip(grid[0], MEASURES, strict=True):
            scale_measure(ax, measure, whole[measure.column])
        legend_above(figure, {str(line.get_label()): line for line in handles}, title=title)
        figure.supxlabel("block")
        figure.draw_without_rendering()
    return figure


def draw_measure(
    ax: Axes, table: pd.DataFrame, measure: Measure, *, by: str, lines: Mapping[str, Line]
) -> list[Line2D]:
    """One statistic over the blocks, a line for each value of column `by`, and two references.

    Args:
        ax: where to draw.
        table: rows of whole blocks.
        measure: the statistic, and what a Gaussian and a Laplacian sample would have.
        by: "model" or "quantity".
        lines: how each value of `by` is drawn.

    Returns:
        The lines, the references last.
    """
    drawn = []
    with house_style():
        for name, style in lines.items():
            rows = table[table[by] == name].sort_values("block")
            drawn += ax.plot(
                rows["block"],
                rows[measure.column],
                color=style.colour,
                ls=style.dashes,
                marker=style.marker,
                ms=marker_size(len(rows)),
                label=style.label,
            )
            draw_band(ax, rows, measure.column, style.colour)
        for law, dashes in {"gaussian": ":", "laplacian": (0, (6, 2))}.items():
            level = getattr(measure, law)
            label = law_style(law).label
            drawn.append(ax.axhline(level, color="0.6", lw=0.7, ls=dashes, label=label, zorder=0))
    ax.set_ylabel(measure.label)
    ax.xaxis.set_major_locator(whole_ticks(6))
    return drawn


def draw_band(ax: Axes, rows: pd.DataFrame, column: str, colour: str) -> None:
    """The 95 % interval over images behind a line, where the table has one."""
    low, high = f"{column}_low", f"{column}_high"
    if low in rows and rows[low].notna().any():
        least, most = (rows[end].where(np.isfinite(rows[end])) for end in (low, high))
        ax.fill_between(rows["block"], least, most, color=colour, alpha=0.2, lw=0)


def whole_blocks(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a survey, also one read from `statistics.csv`, that take the heads together."""
    return table[table["head"].astype(str) == WHOLE]


def _grid_shape(blocks: int) -> tuple[int, int]:
    most = 4 if blocks <= 24 else 5
    columns = blocks if blocks <= 3 else min(most, math.ceil(math.sqrt(blocks)))
    return math.ceil(blocks / columns), columns


def _page(rows: int, columns: int) -> tuple[float, float]:
    """Inches: a column for one panel, a page's width for more, a page's height where it does."""
    if columns == 1:
        return COLUMN_WIDTH, 0.9 * COLUMN_WIDTH
    wanted = 0.6 * PAGE_WIDTH / columns + 0.35
    return PAGE_WIDTH, AROUND + rows * max(LEAST_ROW, min(wanted, (PAGE_HEIGHT - AROUND) / rows))


def _panels(figure: Figure, blocks: int, rows: int, columns: int, *, shared: bool) -> list[Axes]:
    grid = figure.subplots(rows, columns, sharex=shared, sharey=shared, squeeze=False)
    for ax in grid.flat[blocks:]:
        ax.remove()
    for ax in grid.flat[max(0, blocks - columns) : blocks]:
        ax.tick_params(labelbottom=True)  # also above a place that stays free
    return list(grid.flat[:blocks])


def _annotate(ax: Axes, block: int, hist: Histogram, laws: Mapping[str, Law]) -> None:
    """Above the panel, where no data is."""
    title = f"block {block}\n{_measures(hist, laws)}"
    ax.set_title(title, loc="left", y=1.0)  # nothing else is up there to look for, which is slow


def _measures(hist: Histogram, laws: Mapping[str, Law]) -> str:
    if not hist.count:
        return "no entries"
    if hist.moments.minimum == hist.moments.maximum:
        return f"constant {hist.moments.minimum:.3g}".replace("-", MINUS)
    kurtosis = hist.moments.excess_kurtosis
    shape = getattr(laws["generalised gaussian"], "shape", math.nan)
    return ", ".join(
        f"${name}$ = {_short(value)}" if math.isfinite(value) else f"no ${name}$"
        for name, value in {r"\kappa": kurtosis, r"\beta": shape}.items()
    )


def _short(value: float) -> str:
    """Three digits, or all before the point up to five."""
    size = abs(value)
    if size >= 1e5:
        return f"{value:.2g}".replace("e+0", "e").replace("e+", "e")
    text = f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:,.0f}"
    return text.replace("-", MINUS)


def _tick(panels: Sequence[Axes], *, narrow: bool) -> None:
    for ax in panels:
        ax.xaxis.set_major_locator(
            MaxNLocator(nbins=3 if narrow else 4, steps=[1, 2, 2.5, 3, 4, 5, 10])
        )
        ax.yaxis.set_major_locator(LogLocator(numticks=3 if narrow else 5))
        ax.yaxis.set_minor_locator(LogLocator(numticks=20))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _write_around(
    figure: Figure, drawn: Sequence[HistogramArtists], *, label: str, title: str | None
) -> None:
    widths = {float(np.diff(artists.entries.get_data()[1])[0]) for artists in drawn}
    width = f" (width {widths.pop():.3g})" if len(widths) == 1 else ""
    measured = {"entries": r"$\kappa$: excess kurtosis", "generalised Gaussian": r"$\beta$: shape"}
    handles: dict[str, Artist] = {}
    for artists in drawn:
        for artist in (artists.entries, *artists.curves.values()):
            name = str(artist.get_label())
            handles[f"{name} ({measured[name]})" if name in measured else name] = artist
    legend_above(figure, handles, title=title)
    figure.supxlabel(label)
    figure.supylabel(f"entries per bin{width}")


def _arrange(
    whole: pd.DataFrame,
) -> tuple[str, dict[str, Line], dict[str, pd.DataFrame], str | None]:
    """What tells lines apart, their styles, the rows of panels by title, and the figure's title."""
    present = {name: quantity_style(name) for name in whole["quantity"].unique()}
    styles = {name: present[name] for name in QUANTITIES if name in present}
    models = list(whole["model"].unique())
    if len(models) == 1:
        return "quantity", {k: v.line for k, v in styles.items()}, {"": whole}, literal(models[0])
    parts = {v.symbol: whole[whole["quantity"] == k] for k, v in styles.items()}
    return "model", model_lines(models), parts, None


def scale_measure(ax: Axes, measure: Measure, values: pd.Series) -> None:
    """The axis of a statistic: kurtosis and shape on a log scale where they span much."""
    if measure.column == "excess_kurtosis" and values.max() > 30:
        scale_kurtosis(ax, values)
    elif measure.column == "ggd_shape" and values.max() > 10 * values.min():
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    elif measure.column == "top1_energy":
        from_zero(ax)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def scale_kurtosis(ax: Axes, values: pd.Series) -> None:
    """A symmetric log axis, which its label, and that of each panel that shares it, says."""
    ax.set_yscale("symlog", linthresh=1)
    if values.notna().any():
        ax.set_ylim(min(values.min(), 0.0) - 0.5, 2 * max(values.max(), 1.0))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    for one in ax.get_shared_y_axes().get_siblings(ax):
        one.set_ylabel(f"{one.get_ylabel()}\n(symmetric log axis)")
