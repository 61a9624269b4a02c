"""Figures of several surveys: a statistic against the step, and differences block by block."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator
from matplotlib.typing import ColorType

from burst.errors import EmptyResult
from reports.comparison import SurveyRun
from reports.depth import MEASURES, whole_blocks
from reports.style import (
    PAGE_WIDTH,
    Line,
    blank_page,
    house_style,
    legend_above,
    model_lines,
    quantity_style,
    whole_ticks,
)

HEADLINES = {measure.column: measure.label for measure in MEASURES} | {
    "kurtosis_within_rows": r"$\kappa$ within dimensions",
}
"""The statistics that are drawn and spoken of, where they were measured, with labels of axes."""

DEPTH_COLOURS = "viridis"
BAND = 0.2  # opacity


def step_figure(
    runs: Sequence[SurveyRun], *, quantity: str, figure: Figure | None = None
) -> Figure:
    """Statistics of whole blocks against the runs' steps, or in their order; a line a block.

    Bands are intervals, of the runs that have them.

    Args:
        runs: what to draw; against their steps if all have one.
        quantity: "qk", "x" or "qkx".
        figure: an empty figure with a constrained layout, drawn in at its size.

    Raises:
        EmptyResult: no run measured the quantity.
        UnknownName: another quantity.
    """
    symbol = quantity_style(quantity).symbol
    table = pd.concat(
        [
            whole_blocks(run.survey.table).assign(_at=at)
            for run, at in zip(runs, _places(runs), strict=True)
        ],
        ignore_index=True,
    )
    rows = table[table["quantity"] == quantity]
    statistics = _present(rows, {name: name for name in HEADLINES})
    if not statistics:
        raise EmptyResult(f"no run has a statistic of {quantity} to draw")
    with house_style():
        figure = figure or blank_page(PAGE_WIDTH, 0.7 + 2.1 * _rows_of(statistics))
        panels = _panels(figure, statistics)
        for ax, name in zip(panels, statistics, strict=True):
            draw_steps(ax, rows, name)
            ax.set_ylabel(HEADLINES[name])
            _tick_steps(ax, runs)
        _depth_bar(figure, panels, rows["block"])
        figure.suptitle(symbol)
        figure.draw_without_rendering()
    return figure


def draw_steps(ax: Axes, rows: pd.DataFrame, statistic: str) -> list[Line2D]:
    """One statistic against column `_at`, a line a block in the colour of its depth."""
    colours = _colours(rows["block"])
    drawn = []
    for block, part in rows.groupby("block"):
        ordered = part.sort_values("_at")
        shade = tuple(colours.to_rgba(np.array([block], np.float64))[0])
        drawn += ax.plot(ordered["_at"], ordered[statistic], color=shade, marker="o", ms=2.5)
        if f"{statistic}_low" in rows:
            low, high = ordered[f"{statistic}_low"], ordered[f"{statistic}_high"]
            _band(ax, ordered["_at"], low, high, shade)
    return drawn


def difference_figure(
    table: pd.DataFrame, *, quantity: str, figure: Figure | None = None
) -> Figure:
    """Differences of whole blocks over depth, a line a run, with their intervals as bands.

    Args:
        table: from `compare_surveys`.
        quantity: "qk", "x" or "qkx".
        figure: an empty figure with a constrained layout, drawn in at its size.

    Raises:
        EmptyResult: the table has no such row.
        UnknownName: another quantity.
    """
    symbol = quantity_style(quantity).symbol
    whole = whole_blocks(table)
    rows = whole[whole["quantity"] == quantity].dropna(subset=["difference"])
    statistics = [name for name in HEADLINES if (rows["statistic"] == name).any()]
    if not statistics:
        raise EmptyResult(f"no difference of {quantity} to draw")
    with house_style():
        figure = figure or blank_page(PAGE_WIDTH, 0.9 + 2.1 * _rows_of(statistics))
        every = model_lines(table["run_b"].unique())  # the same in each quantity's figure
        lines = {name: every[name] for name in rows["run_b"].unique()}
        panels = _panels(figure, statistics)
        for ax, name in zip(panels, statistics, strict=True):
            handles = _draw_differences(ax, rows[rows["statistic"] == name], lines)
            ax.set_ylabel(f"difference of {HEADLINES[name]}")
        legend_above(figure, {str(line.get_label()): line for line in handles}, title=symbol)
        figure.supxlabel("block")
        figure.draw_without_rendering()
    return figure


def _draw_differences(ax: Axes, rows: pd.DataFrame, lines: dict[str, Line]) -> list[Line2D]:
    drawn = []
    for name, style in lines.items():
        part = rows[rows["run_b"] == name].sort_values("block")
        drawn += ax.plot(
            part["block"],
            part["difference"],
            color=style.colour,
            ls=style.dashes,
            marker=style.marker,
            label=style.label,
        )
        _band(ax, part["block"], part["low"], part["high"], style.colour)
    ax.axhline(0, color="0.6", lw=0.7, zorder=0)
    ax.xaxis.set_major_locator(whole_ticks(6))
    return drawn


def _places(runs: Sequence[SurveyRun]) -> list[float]:
    steps = [run.step for run in runs if run.step is not None]
    return steps if len(steps) == len(runs) else [float(i) for i in range(len(runs))]


def _tick_steps(ax: Axes, runs: Sequence[SurveyRun]) -> None:
    if all(run.step is not None for run in runs):
        ax.set_xlabel("step")
        return
    ax.xaxis.set_major_locator(FixedLocator(range(len(runs))))
    names = [run.label for run in runs]
    ax.set_xticklabels(names, rotation=20, ha="right", parse_math=False)
    ax.set_xlim(-0.2, len(runs) - 0.8)


def _present(rows: pd.DataFrame, columns: dict[str, str]) -> list[str]:
    return [name for name in columns if name in rows and rows[name].notna().any()]


def _rows_of(statistics: Sequence[str]) -> int:
    return -(-len(statistics) // 3)


def _panels(figure: Figure, statistics: Sequence[str]) -> list[Axes]:
    columns = min(3, len(statistics))
    grid = figure.subplots(_rows_of(statistics), columns, squeeze=False)
    for ax in grid.flat[len(statistics) :]:
        ax.remove()
    return list(grid.flat[: len(statistics)])


def _band(
    ax: Axes, at: "pd.Series[Any]", low: "pd.Series[Any]", high: "pd.Series[Any]", colour: ColorType
) -> None:
    x, y1, y2 = (one.to_numpy(np.float64) for one in (at, low, high))
    ax.fill_between(x, y1, y2, color=colour, alpha=BAND, lw=0)


def _colours(blocks: "pd.Series[int]") -> ScalarMappable:
    scale = Normalize(blocks.min(), max(blocks.max(), blocks.min() + 1))
    return ScalarMappable(scale, mpl.colormaps[DEPTH_COLOURS])


def _depth_bar(figure: Figure, panels: Sequence[Axes], blocks: "pd.Series[int]") -> None:
    bar = figure.colorbar(_colours(blocks), ax=list(panels), label="block", aspect=30, pad=0.01)
    bar.locator = whole_ticks(8)
    bar.update_ticks()
