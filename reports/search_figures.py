"""Figures of a search: differences with their intervals, rates that were tried, the epochs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from burst.errors import EmptyResult
from reports.names import shortened
from reports.search_tables import CURVES, Curve, Search, is_shorter
from reports.style import (
    PAGE_WIDTH,
    Line,
    blank_page,
    house_style,
    legend_above,
    model_lines,
    whole_ticks,
)

BAND = 0.2  # opacity
PALE = 0.35
APART = 1.07  # factor between rates of two weight decays, for both to be seen
TICKS = 6
SHOWN_BELOW = 10.0  # points
EDGE_COLOUR, ZERO_COLOUR = "0.75", "0.6"


def forest_figure(
    differences: pd.DataFrame,
    *,
    what: str = "test accuracy",
    lines: Mapping[str, Line] | None = None,
) -> Figure:
    """Paired differences as points on their intervals, a panel for each that is compared with.

    Args:
        differences: columns method, against, difference, low, high (points), and dataset where
            there are several; with seeds, a row of one seed says so.
        what: differs.
        lines: how each method is drawn, where other figures draw it too.

    Raises:
        EmptyResult: there is none.
    """
    if differences.empty:
        raise EmptyResult("no difference to draw")
    against = list(dict.fromkeys(differences["against"]))
    lines = lines or model_lines([*against, *differences["method"]])
    counts = [int((differences["against"] == one).sum()) for one in against]
    with house_style():
        figure = blank_page(PAGE_WIDTH, 0.75 + 0.32 * len(against) + 0.24 * sum(counts))
        panels = figure.subplots(
            len(against),
            1,
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": [count + 0.6 for count in counts]},
        )[:, 0]
        for ax, one in zip(panels, against, strict=True):
            draw_forest(ax, differences[differences["against"] == one], lines)
            ax.set_title(f"against {one}", loc="left")
        panels[-1].set_xlabel(f"difference of {what} (points)")
        figure.draw_without_rendering()
    return figure


def draw_forest(
    ax: Axes, rows: pd.DataFrame, styles: Mapping[str, Line]
) -> list[ErrorbarContainer]:
    """A point and its interval a row, the first on top; a line at 0."""
    drawn = []
    for place, row in enumerate(rows.to_dict("records")):
        style, value = styles[row["method"]], row["difference"]
        known = math.isfinite(row["low"])  # one seed of a detector has no interval
        reach = [[value - row["low"]], [row["high"] - value]] if known else None
        look: dict[str, Any] = {"fmt": style.marker, "color": style.colour, "capsize": 2.0}
        drawn.append(ax.errorbar([value], [place], xerr=reach, **look))
    ax.axvline(0, color=ZERO_COLOUR, lw=0.7, zorder=0)
    names = rows["method"]
    if "dataset" in rows:
        names = rows["dataset"].map(shortened) + ": " + names
    if "seeds" in rows:
        names += rows["seeds"].eq(1).map({True: " (1 seed)", False: ""})
    ax.set_yticks(range(len(rows)), names, parse_math=False)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    return drawn


def rates_figure(search: Search) -> Figure:
    """Validation accuracy over the learning rate: a panel a method, a line a weight decay.

    All panels have one range, down to `SHOWN_BELOW` points below the best of the worst method;
    trials that lie lower are triangles on the floor.

    Raises:
        EmptyResult: nothing was tried.
    """
    methods = {label: one for label, one in search.methods.items() if one["trials"]}
    if not methods:
        raise EmptyResult("no trial to draw")
    decays = sorted({trial["weight_decay"] for one in methods.values() for trial in one["trials"]})
    named = model_lines(f"weight decay {one:g}" for one in decays)
    styles = dict(zip(decays, named.values(), strict=True))
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    with house_style():
        figure = blank_page(PAGE_WIDTH, 0.9 + 1.9 * rows)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        handles: dict[str, Line2D] = {}
        for ax, (label, entry) in zip(grid.flat, methods.items(), strict=False):
            handles |= draw_rates(ax, entry, styles)
            ax.set_title(label)
        handles |= _cut_below(grid.flat, list(methods.values()))
        for ax in grid.flat[len(methods) :]:
            ax.remove()
        figure.supxlabel("learning rate")
        figure.supylabel("validation accuracy (%)")
        legend_above(figure, _in_order(handles, styles))
        figure.draw_without_rendering()
    return figure


def _cut_below(axes: Iterable[Axes], entries: Sequence[Mapping[str, Any]]) -> dict[str, Line2D]:
    """End all panels `SHOWN_BELOW` points under the worst method's best; what is lower: triangles.

    One trial near 0 % would else flatten every curve.
    """
    handles: dict[str, Line2D] = {}
    known = [[one for one in entry["trials"] if one["score"] is not None] for entry in entries]
    best = [max(one["score"] for one in trials) for trials in known if trials]
    floor = min(best, default=0.0) - SHOWN_BELOW
    for ax, trials in zip(axes, known, strict=False):
        if low := [one["lr"] for one in trials if one["score"] < floor]:
            ax.set_ylim(bottom=floor)
            handles["lower than shown"] = _on_floor(ax, low, "v")
    return handles


def _on_floor(ax: Axes, rates: Sequence[float], marker: str) -> Line2D:
    across = ax.get_xaxis_transform()
    (drawn,) = ax.plot(
        rates, [0.04] * len(rates), marker, color="0.3", transform=across, scaley=False
    )
    return drawn


def draw_rates(
    ax: Axes, entry: Mapping[str, Any], styles: Mapping[float, Line]
) -> dict[str, Line2D]:
    """The trials of one method, and by name what a legend explains.

    Trials of all their epochs and folds are filled and joined by a line, those of a part of them
    hollow; what diverged is a cross on the floor; a ring is around what was chosen, and dotted
    lines are where the rates that were tried end.
    """
    trials = pd.DataFrame(entry["trials"]).sort_values("lr")
    trials["score"] = trials["score"].astype(float)
    handles: dict[str, Line2D] = {}
    decays = list(trials["weight_decay"].drop_duplicates().sort_values())
    shifts = {one: APART ** (i - (len(decays) - 1) / 2) for i, one in enumerate(decays)}
    for decay in decays:
        part = trials[trials["weight_decay"] == decay]
        beside = part.assign(lr=part["lr"] * shifts[decay])
        handles[styles[decay].label] = _draw_trials(ax, beside, styles[decay])
    ax.set_xscale("log")
    _end(ax, trials["lr"])
    if chosen := entry["chosen"]:
        ring: dict[str, Any] = {
            "ls": "",
            "marker": "o",
            "ms": 9,
            "mfc": "none",
            "mec": "0.15",
            "mew": 0.9,
        }
        place = chosen["lr"] * shifts[chosen["weight_decay"]]
        (handles["chosen"],) = ax.plot([place], [chosen["score"]], zorder=4, **ring)
    if any(is_shorter(one) for one in entry["trials"]):
        hollow: dict[str, Any] = {"ls": "", "marker": "o", "mfc": "white", "mec": "0.4"}
        handles["part of its epochs or folds"] = Line2D([], [], **hollow)
    if lost := [one["lr"] for one in entry["trials"] if one["score"] is None]:
        handles["diverged"] = _on_floor(ax, lost, "x")
    handles["end of what was tried"] = Line2D([], [], color=EDGE_COLOUR, ls=":")
    return handles


def curves_figure(
    curves: Mapping[str, Curve], *, lines: Mapping[str, Line] | None = None
) -> Figure:
    """Accuracy of the winners over the epochs: mean over seeds, and a band of one deviation.

    Where methods train for different numbers of epochs, over the share of them.

    Args:
        curves: by method.
        lines: how each method is drawn, where other figures draw it too.

    Raises:
        EmptyResult: no run has an epoch.
    """
    if not curves:
        raise EmptyResult("no epoch to draw")
    lines = lines or model_lines(curves)
    kinds = list(dict.fromkeys(one.quantity for one in curves.values()))
    shared = len({one.values.shape[1] for one in curves.values()}) == 1
    with house_style():
        figure = blank_page(PAGE_WIDTH, 3.1)
        handles: dict[str, Line2D] = {}
        for ax, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            for label, curve in curves.items():
                if curve.quantity == kind:
                    handles[label] = draw_curve(ax, curve.values, lines[label], shared=shared)
            ax.set_ylabel(CURVES[kind])
            if shared:
                ax.set_xlabel("epoch")
                ax.xaxis.set_major_locator(whole_ticks())
            else:
                ax.set_xlabel("share of the method's epochs")
        legend_above(figure, handles)
        figure.draw_without_rendering()
    return figure


def draw_curve(
    ax: Axes, values: np.ndarray[Any, np.dtype[np.float64]], style: Line, *, shared: bool = True
) -> Line2D:
    """The mean of (seeds, epochs) over the epochs, and a band of one standard deviation.

    Not `shared` with other curves, an epoch is the share of all that lies behind at its end.
    """
    epochs, mean = np.arange(1, values.shape[1] + 1.0), values.mean(0)
    if not shared:
        epochs /= len(epochs)
    every = max(1, len(epochs) // 12)
    (drawn,) = ax.plot(epochs, mean, label=style.label, color=style.colour, ls=style.dashes)
    drawn.set(marker=style.marker, markevery=every)
    if len(values) > 1:
        reach = values.std(0, ddof=1)
        ax.fill_between(epochs, mean - reach, mean + reach, color=style.colour, alpha=BAND, lw=0)
    return drawn


def _draw_trials(ax: Axes, part: pd.DataFrame, style: Line) -> Line2D:
    stopped = part["epochs"] < part["of_epochs"]
    whole = part[~stopped]  # accuracies of one length alone can be compared
    ax.plot(whole["lr"], whole["score"], color=style.colour, ls=style.dashes, lw=0.8, alpha=PALE)
    (drawn,) = ax.plot([], [], color=style.colour, ls=style.dashes, marker=style.marker)
    for rows, filled in ((part[~stopped], True), (part[stopped], False)):
        ax.errorbar(
            rows["lr"],
            rows["score"],
            yerr=rows["standard_error"].astype(float),
            fmt=style.marker,
            color=style.colour,
            mfc=style.colour if filled else "white",
            elinewidth=0.5,
        )
    return drawn


def _end(ax: Axes, rates: "pd.Series[float]") -> None:
    """Dotted lines at the least and largest rate, and room around them."""
    low, high = float(rates.min()), float(rates.max())
    for rate in {low, high}:
        ax.axvline(rate, color=EDGE_COLOUR, ls=":", lw=0.8, zorder=0)
    room = max(2.0, (high / low) ** 0.12)
    ax.set_xlim(low / room, high * room)
    tried = sorted(set(rates))
    ticks = tried[:: -(-len(tried) // TICKS)]
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ticks, [f"{rate:.2g}" for rate in ticks], rotation=45)


def _in_order(handles: Mapping[str, Line2D], styles: Mapping[float, Line]) -> dict[str, Line2D]:
    """Weight decays first, by size."""
    first: Sequence[str] = [line.label for line in styles.values() if line.label in handles]
    return {name: handles[name] for name in (*first, *handles)}
