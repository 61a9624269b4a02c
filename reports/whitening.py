"""A whitening: its figure (before, after, spectrum) and its table for a terminal."""

import os
from collections.abc import Mapping
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from rich.table import Table

from burst.distribution import fit_gaussian
from burst.errors import EmptyResult
from burst.histogram import Histogram
from burst.provenance import provenance
from burst.statistics import describe
from burst.whitening import Whitening
from burst.whitening_file import save_whitening
from reports.entries import draw_histogram
from reports.style import (
    INK,
    PAGE_WIDTH,
    blank_page,
    house_style,
    law_style,
    legend_above,
    save_figure,
)

Pairs = Mapping[int, tuple[Histogram, Histogram]]

ROW_HEIGHT = 1.55  # inches
MOST_ROWS = 5
LEAST_EIGENVALUE = 1e-16  # relative; what lies below is rounding


def whitening_figure(
    whitening: Whitening, pairs: Pairs, *, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """One row a block: entries of Y, entries of W Y, and the spectrum of Sigma with its floor.

    Counts are on a log scale, with what the best Gaussian would expect. The eigenvalues are
    relative to the largest, in falling order; those below the floor were raised to it.

    Args:
        whitening: what was made.
        pairs: histograms of Y and of W Y for the blocks to draw, as `whitened_histograms` gives.
        title: over the whole figure.
        figure: an empty figure with a constrained layout; one of page width by default.

    Raises:
        EmptyResult: no block to draw, or one that the whitening does not have.
    """
    places = {one.block: i for i, one in enumerate(whitening.blocks)}
    if not pairs or not set(pairs) <= set(places):
        raise EmptyResult(f"blocks {sorted(pairs)} to draw are none of those whitened")
    floor = float(whitening.record["floor"])
    handles: dict[str, Artist] = {}
    with house_style():
        figure = figure or blank_page(PAGE_WIDTH, 0.7 + ROW_HEIGHT * len(pairs))
        grid = figure.subplots(len(pairs), 3, squeeze=False)
        for row, (block, both) in zip(grid, sorted(pairs.items()), strict=True):
            for ax, hist, name in zip(row, both, ("$Y$", "$W Y$"), strict=False):
                handles |= _draw_entries(ax, hist, f"block {block}, {name}")
            spectrum = whitening.eigenvalues[places[block]].numpy()
            handles |= draw_spectrum(row[2], spectrum, floor=floor)
            kept = whitening.blocks[places[block]].kept
            row[2].set_title(f"{kept} of {len(spectrum)} directions kept", loc="left")
        grid[-1, 0].set_xlabel(r"entry of $Y = W_q W_k^\top X^\top$")
        grid[-1, 1].set_xlabel(r"entry of $W Y$ (unit variance if white)")
        grid[-1, 2].set_xlabel("direction")
        figure.supylabel("entries per bin  ·  relative eigenvalue")
        legend_above(figure, handles, title=title)
        figure.draw_without_rendering()
    return figure


def draw_spectrum(ax: Axes, eigenvalues: NDArray[np.float64], *, floor: float) -> dict[str, Artist]:
    """Eigenvalues relative to the largest, on a log scale, and the floor; the artists by label."""
    relative = eigenvalues / eigenvalues[0]
    relative = np.where(relative > 0, relative, np.nan)
    (line,) = ax.plot(np.arange(len(relative)), relative, color=INK, lw=1.2)
    handles: dict[str, Artist] = {r"eigenvalues of $\Sigma$": line}
    ax.set_yscale("log")
    if floor > 0:
        handles["floor"] = ax.axhline(floor, color=law_style("laplacian").colour, ls="--")
    least = min(float(np.nanmin(relative)), floor or 1.0)
    ax.set_ylim(max(least, LEAST_EIGENVALUE) / 3, 3.0)
    ax.yaxis.set_major_locator(LogLocator(numticks=5))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return handles


def chosen_blocks(whitening: Whitening) -> tuple[int, ...]:
    """The blocks that a figure shows: at most five, from the first to the last, evenly spread."""
    blocks = [one.block for one in whitening.blocks]
    at = np.linspace(0, len(blocks) - 1, min(MOST_ROWS, len(blocks)))
    return tuple(blocks[int(i)] for i in at.round())


def whitening_table(whitening: Whitening, pairs: Pairs) -> Table:
    """One line a block: spectrum, kept directions, whiteness, and Y before and after.

    κ is the excess kurtosis and β the fitted generalised-Gaussian shape of the entries.
    """
    record = whitening.record
    dim = whitening.W.shape[-1]
    how = record["recipe"] if record["recipe"] == "authors" else record["method"]
    table = Table(
        title=f"{record['model']} ({record['pretraining']}), {how}, floor {record['floor']:g}",
        caption="error: ‖cov(WY) − I‖ / √kept, held out; κ, β: of Y → of WY",
        box=None,
        pad_edge=False,
    )
    for heading in ("block", "condition", "eff. rank", f"kept/{dim}", "var.", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("κ", justify="right", no_wrap=True)
    table.add_column("β", justify="right", no_wrap=True)
    for one in whitening.blocks:
        before, after = (describe(hist) for hist in pairs[one.block])
        table.add_row(
            str(one.block),
            f"{one.condition_number:.1e}",
            f"{one.effective_rank:.1f}",
            str(one.kept),
            f"{one.kept_variance:.3%}",
            f"{one.whiteness_error:.3f}",
            f"{before['excess_kurtosis']:.2f}→{after['excess_kurtosis']:.2f}",
            f"{before['ggd_shape']:.2f}→{after['ggd_shape']:.2f}",
        )
    return table


def whitening_record(whitening: Whitening, pairs: Pairs) -> list[dict[str, Any]]:
    """The numbers of `whitening_table`, one plain dictionary a block."""
    rows = []
    for one in whitening.blocks:
        row: dict[str, Any] = dict(vars(one))
        for name, hist in zip(("before", "after"), pairs[one.block], strict=True):
            found = describe(hist)
            row |= {f"{key}_{name}": found[key] for key in ("excess_kurtosis", "ggd_shape")}
        rows.append(row)
    return rows


def _draw_entries(ax: Axes, hist: Histogram, title: str) -> dict[str, Artist]:
    law = fit_gaussian(hist)
    artists = draw_histogram(ax, hist, laws={"gaussian": law})
    found = describe(hist)
    kappa, beta = found["excess_kurtosis"], found["ggd_shape"]
    shape = "no $\\beta$" if isnan(beta) else f"$\\beta$ = {beta:.2f}"
    ax.set_title(f"{title}: $\\kappa$ = {kappa:.2f}, {shape}", loc="left")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(LogLocator(numticks=4))
    ax.yaxis.set_minor_locator(NullLocator())
    handles: dict[str, Artist] = {
        r"entries ($\kappa$: excess kurtosis, $\beta$: shape)": artists.entries
    }
    curves: list[Line2D] = list(artists.curves.values())
    return handles | ({"best Gaussian": curves[0]} if curves else {})


def save_whitening_run(
    whitening: Whitening, pairs: Pairs, out: str | os.PathLike[str], *, seed: int
) -> list[Path]:
    """Write a whitening, and its figure beside it under the same name, each file whole.

    The record in the file also says versions, command and seed.

    Raises:
        OutputError: the suffix is neither .pt nor .safetensors, or the place cannot be written.
    """
    path = Path(out)
    record = {**whitening.record, "seed": seed, "made": provenance()}
    save_whitening(replace(whitening, record=record), path)
    drawn = {block: pairs[block] for block in chosen_blocks(whitening) if block in pairs}
    figure = whitening_figure(whitening, drawn, title=f"{record['model']}, {record['method']}")
    return [path, *save_figure(figure, path.with_suffix(""))]
