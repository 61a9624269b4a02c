"""A whitening: its figure (before, after, spectrum), its table for a terminal, and in words."""

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
from rich.console import RenderableType
from rich.table import Table

from burst.distribution import fit_gaussian
from burst.errors import EmptyResult
from burst.histogram import Histogram
from burst.provenance import provenance
from burst.statistics import ggd_shape
from burst.whitened import WhitenedEntries
from burst.whitening import BlockDiagnostics, Whitening
from burst.whitening_file import save_whitening
from reports.entries import draw_histogram
from reports.style import (
    INK,
    PAGE_WIDTH,
    blank_page,
    decimals,
    house_style,
    law_style,
    legend_above,
    percent,
    save_figure,
    whole_ticks,
)
from reports.survey_files import seed_of
from reports.tables import captioned, named_backbone

Pairs = Mapping[int, WhitenedEntries]

ROW_HEIGHT = 1.65  # inches
DIAGONAL = "$V^{-1/2} Y$"
SPECTRA = {True: r"eigenvalues of $\Sigma$", False: "variances of the rows of $Y$"}
MOST_ROWS = 5
VANISHED = 1.0  # whiteness error of a response that is zero everywhere
LEAST_EIGENVALUE = 1e-16  # relative; what lies below is rounding


def whitening_figure(
    whitening: Whitening, pairs: Pairs, *, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """One row a block: entries of Y, V^(-1/2) Y and W Y, and the spectrum of Sigma with its floor.

    Counts are on a log scale, with what the best Gaussian would expect. The eigenvalues are
    relative to the largest, in falling order; those below the floor were raised to it. Where W is
    V^(-1/2) itself they are the variances of the rows, and there is one column less. Above them:
    how far from white held-out images come out, see `whiteness_words`.

    Args:
        whitening: what was made.
        pairs: histograms of the entries for the blocks to draw, as `whitened_histograms` gives.
        title: over the whole figure.
        figure: an empty figure with a constrained layout; one of page width by default.

    Raises:
        EmptyResult: no block to draw, or one that the whitening does not have.
    """
    places = {one.block: i for i, one in enumerate(whitening.blocks)}
    if not pairs or not set(pairs) <= set(places):
        raise EmptyResult(f"blocks {sorted(pairs)} to draw are none of those whitened")
    floor, full = float(whitening.record["floor"]), _is_full(whitening)
    known = min(len(_stages(whitening, one)) for one in pairs.values())
    handles: dict[str, Artist] = {}
    with house_style():
        figure = figure or blank_page(PAGE_WIDTH, 0.8 + ROW_HEIGHT * len(pairs))
        grid = figure.subplots(len(pairs), known + 1, squeeze=False)
        for row, (block, entries) in zip(grid, sorted(pairs.items()), strict=True):
            stages = _stages(whitening, entries)
            for ax, (symbol, hist) in zip(row, stages.items(), strict=False):
                handles |= _draw_entries(ax, hist, f"block {block}, {symbol}")
                ax.set_xlabel(f"entry of {symbol}" if block == max(pairs) else "")
            spectrum = whitening.eigenvalues[places[block]].numpy()
            handles |= draw_spectrum(row[-1], spectrum, floor=floor, label=SPECTRA[full])
            one = whitening.blocks[places[block]]
            error = _held_out_error(whitening, one)
            kept = f"{one.kept} of {len(spectrum)} {'directions' if full else 'rows'}"
            what = "kept" if isnan(error) else f"kept, held-out error {error:.2f}"
            row[-1].set_title(f"{kept}\n{what}", loc="left")
        grid[-1, -1].set_xlabel("direction" if full else "row, by variance")
        figure.supylabel("entries per bin  ·  relative " + ("eigenvalue" if full else "variance"))
        legend_above(figure, handles, title=title)
        figure.draw_without_rendering()
    return figure


def _is_full(whitening: Whitening) -> bool:
    """Whether W is more than the diagonal."""
    return bool(whitening.record["method"] != "diagonal")


def _held_out_error(whitening: Whitening, one: BlockDiagnostics) -> float:
    """Of what W promises: that Y comes out white, or, of the diagonal alone, its variances."""
    return one.whiteness_error if _is_full(whitening) else one.variance_error


def _stages(whitening: Whitening, entries: WhitenedEntries) -> dict[str, Histogram]:
    """What is known of Y, V^(-1/2) Y and W Y, by symbol, each once."""
    after = "$W Y$" if _is_full(whitening) else DIAGONAL
    known = {"$Y$": entries.before, DIAGONAL: entries.diagonal, after: entries.after}
    return {symbol: hist for symbol, hist in known.items() if hist is not None}


def draw_spectrum(
    ax: Axes,
    eigenvalues: NDArray[np.float64],
    *,
    floor: float,
    label: str = r"eigenvalues of $\Sigma$",
) -> dict[str, Artist]:
    """Eigenvalues relative to the largest, on a log scale, and the floor; the artists by label.

    Args:
        ax: where to draw.
        eigenvalues: (d,), falling.
        floor: relative to the largest; 0 for none.
        label: of the eigenvalues.
    """
    relative = eigenvalues / eigenvalues[0]
    relative = np.where(relative > 0, relative, np.nan)
    (line,) = ax.plot(np.arange(len(relative)), relative, color=INK, lw=1.2)
    handles: dict[str, Artist] = {label: line}
    ax.set_yscale("log")
    if floor > 0:
        handles["floor"] = ax.axhline(floor, color=law_style("laplacian").colour, ls="--")
    least = min(float(np.nanmin(relative)), floor or 1.0)
    ax.set_ylim(max(least, LEAST_EIGENVALUE) / 3, 3.0)
    ax.yaxis.set_major_locator(LogLocator(numticks=5))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(whole_ticks(4))
    return handles


def chosen_blocks(whitening: Whitening) -> tuple[int, ...]:
    """The blocks that a figure shows: at most five, from the first to the last, evenly spread."""
    blocks = [one.block for one in whitening.blocks]
    at = np.linspace(0, len(blocks) - 1, min(MOST_ROWS, len(blocks)))
    return tuple(blocks[int(i)] for i in at.round())


def whitening_table(whitening: Whitening, pairs: Pairs) -> RenderableType:
    """One line a block: spectrum, kept directions, whiteness, and Y before and after.

    κ is the excess kurtosis of the entries, after the diagonal alone as well, and β their fitted
    generalised-Gaussian shape. The diagonal alone (`variances`) leaves correlations: its error
    stands beside the part that is of variances.
    """
    record, full = whitening.record, _is_full(whitening)
    dim = whitening.W.shape[-1]
    how = record["recipe"] if record["recipe"] == "authors" else record["method"]
    backbone = named_backbone(record["model"], record["pretraining"])
    title = f"{backbone}, {how}, floor {record['floor']:g}"
    table = Table(box=None, pad_edge=False)
    headings = ["block", "condition", "eff.\nrank", f"kept\n/{dim}", "var.", "error"]
    for heading in headings + ([] if full else ["of var."]) + ["κ", "β"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for one in whitening.blocks:
        entries = pairs[one.block]
        kurtosis = [hist.moments.excess_kurtosis for hist in _stages(whitening, entries).values()]
        shapes = [ggd_shape(hist) for hist in (entries.before, entries.after)]
        table.add_row(
            str(one.block),
            f"{one.condition_number:.1e}",
            f"{one.effective_rank:.1f}",
            str(one.kept),
            percent(one.kept_variance, 3),
            f"{one.whiteness_error:.3f}",
            *([] if full else [f"{one.variance_error:.3f}"]),
            "→".join(f"{value:.2f}" for value in kurtosis),
            "→".join(f"{value:.2f}" for value in shapes),
        )
    return captioned(table, title, _caption(whitening, pairs))


def _caption(whitening: Whitening, pairs: Pairs) -> str:
    error, kappa = "error: ‖cov(WY) − I‖ / √kept, held out", "κ, β: of Y → WY"
    rank = "eff. rank: of the variance"
    if not _is_full(whitening):
        return f"W = V^-½, of rows; {error}\nof var.: its part of variances; {rank}s\n{kappa}"
    if all(one.diagonal for one in pairs.values()):
        kappa = "κ: of Y → V^-½ Y → WY, β: of Y → WY"
    return f"{error}; {rank}\n{kappa}"


def whitening_record(whitening: Whitening, pairs: Pairs) -> list[dict[str, Any]]:
    """The numbers of `whitening_table`, one plain dictionary a block.

    `excess_kurtosis` and `ggd_shape` have `_before`, `_diagonal` and `_after` behind them, where
    the entries are known.
    """
    rows = []
    for one in whitening.blocks:
        row: dict[str, Any] = dict(vars(one))
        entries = pairs[one.block]._asdict() if one.block in pairs else {}
        for name in ("before", "diagonal", "after"):
            if hist := entries.get(name):
                row[f"excess_kurtosis_{name}"] = hist.moments.excess_kurtosis
                row[f"ggd_shape_{name}"] = ggd_shape(hist)
        rows.append(row)
    return rows


def whitening_words(pairs: Pairs) -> str:
    """What whitening did to the excess kurtosis of the entries, as one sentence; empty if none."""
    if not pairs:
        return ""
    named = {
        "before": [one.before for one in pairs.values()],
        "after the diagonal alone": [one.diagonal for one in pairs.values() if one.diagonal],
        "after W": [one.after for one in pairs.values()],
    }
    parts = []
    for when, histograms in named.items():
        values = [hist.moments.excess_kurtosis for hist in histograms]
        if values:
            median = decimals(float(np.median(values)), 2)
            parts.append(f"{median} {when} (at most {decimals(max(values), 2)})")
    blocks = "the median block's" if len(pairs) > 1 else "the"
    return f"{blocks} excess kurtosis is {', '.join(parts)}"


def whiteness_words(whitening: Whitening) -> str:
    """How white held-out images come out, as one sentence; empty if none were held out.

    The error is `whiteness_error` of the blocks; of the diagonal alone `variance_error`.
    """
    errors = _held_out_errors(whitening)
    if not errors:
        return ""
    return (
        f"on held-out images the error is {np.median(errors):.2f} (at most {max(errors):.2f}), "
        "0 if white"
    )


def whiteness_warning(whitening: Whitening) -> str:
    """That held-out images come out farther from white than zeros would be; empty if they do not.

    A response that vanishes has an error of 1, see `burst.Decorrelation.whiteness_error`.
    """
    errors = _held_out_errors(whitening)
    far = sum(one > VANISHED for one in errors)
    if not far:
        return ""
    authors = whitening.record["recipe"] == "authors"
    remedy = "more images help" if authors else "more images or a higher floor help"
    return (
        f"held-out images do not come out white in {far} of {len(errors)} blocks: the error is up "
        f"to {max(errors):.2f}, where 0 is white and a response of zeros has 1; {remedy}"
    )


def _held_out_errors(whitening: Whitening) -> list[float]:
    errors = (_held_out_error(whitening, one) for one in whitening.blocks)
    return [one for one in errors if not isnan(one)]


def _draw_entries(ax: Axes, hist: Histogram, title: str) -> dict[str, Artist]:
    law = fit_gaussian(hist)
    artists = draw_histogram(ax, hist, laws={"gaussian": law})
    kappa, beta = hist.moments.excess_kurtosis, ggd_shape(hist)
    shape = "no $\\beta$" if isnan(beta) else f"$\\beta$ = {beta:.2f}"
    ax.set_title(f"{title}\n$\\kappa$ = {decimals(kappa, 2)}, {shape}", loc="left")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(LogLocator(numticks=4))
    ax.yaxis.set_minor_locator(NullLocator())
    handles: dict[str, Artist] = {
        r"entries ($\kappa$: excess kurtosis, $\beta$: shape)": artists.entries
    }
    curves: list[Line2D] = list(artists.curves.values())
    return handles | ({"best Gaussian": curves[0]} if curves else {})


def save_whitening_run(
    whitening: Whitening, pairs: Pairs, out: str | os.PathLike[str], *, seed: int | None = None
) -> list[Path]:
    """Write a whitening, and its figure beside it under the same name, each file whole.

    The record in the file also says versions, command and seed.

    Args:
        whitening: from `burst.whiten`.
        pairs: histograms of its blocks, as `burst.whitened_histograms` gives.
        out: a .pt or .safetensors file.
        seed: of the choice of images, where the record does not say it.

    Returns:
        The files, the whitening first.

    Raises:
        OutputError: the suffix is neither .pt nor .safetensors, or the place cannot be written.
        EmptyResult: there are no histograms of the blocks to draw.
        BurstError: the record says another seed.
    """
    path = Path(out)
    record = {**whitening.record, "seed": seed_of(whitening.record, seed), "made": provenance()}
    save_whitening(replace(whitening, record=record), path)
    drawn = {block: pairs[block] for block in chosen_blocks(whitening) if block in pairs}
    figure = whitening_figure(whitening, drawn, title=f"{record['model']}, {record['method']}")
    return [path, *save_figure(figure, path.with_suffix(""))]
