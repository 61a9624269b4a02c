"""The spectrum of W_q W_k^T: its figure, its tables, in words, and the files of a run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table

from burst.errors import EmptyResult
from burst.files import make_folder, save_json, save_table, write_atomically
from burst.gauge import WHOLE
from burst.provenance import provenance
from burst.spectrum import Spectrum
from reports.depth import whole_blocks
from reports.style import (
    INK,
    PAGE_WIDTH,
    blank_page,
    from_zero,
    house_style,
    legend_above,
    marker_size,
    percent,
    save_figure,
    whole_ticks,
)
from reports.tables import captioned, named_backbone
from reports.terminal import where_written

Floats = NDArray[np.float64]

LEAST_VALUE = 1e-7  # relative to the largest; what lies below is not drawn
NULL_DASHES = (0, (4, 1.5))
HEAD_COLOUR = "0.6"
MEASURES = {
    "stable_rank": "stable rank",
    "effective_rank": "effective rank\nby singular values",
    "symmetric_share": "symmetric share",
    "tail_exponent": "tail exponent",
}


def spectrum_figure(
    spectrum: Spectrum, *, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Singular values of A = W_q W_k^T over their index, and ranks, symmetry and tail over depth.

    Above, each in units of its Frobenius norm on a log scale, one line a block, coloured by depth:
    on the left the heads together, on the right each head; dashed what random factors have. Below,
    a dot is a head.

    Args:
        spectrum: from `burst.spectrum`.
        title: over the whole figure; the model's name by default.
        figure: an empty figure with a constrained layout; one of page width by default.

    Raises:
        EmptyResult: no block has a weight that is not 0.
    """
    kinds = {
        True: {key: one for key, one in spectrum.values.items() if key[1] == WHOLE and one[0] > 0},
        False: {key: one for key, one in spectrum.values.items() if key[1] != WHOLE and one[0] > 0},
    }
    shown = {whole: values for whole, values in kinds.items() if values}
    if not shown:
        raise EmptyResult("no singular value to draw: all are 0")
    blocks = sorted({block for block, _ in spectrum.values})
    colours = depth_colours(len(blocks))
    with house_style():
        figure = figure or blank_page(PAGE_WIDTH, 4.7)
        grid = figure.add_gridspec(2, 4, height_ratios=(1.5, 1))
        tops = [figure.add_subplot(grid[0, at]) for at in _halves(len(shown))]
        for ax, (whole, values) in zip(tops, shown.items(), strict=True):
            _draw_lines(ax, values, spectrum.nulls, dict(zip(blocks, colours, strict=True)))
            ax.set_title("heads together" if whole else "each head", loc="left")
        tops[0].set_ylabel(r"singular value / $\|A\|_F$")
        if len(blocks) > 1:
            _colour_bar(figure, tops, blocks, colours)
        handles: dict[str, Artist] = {}
        for place, (column, label) in enumerate(MEASURES.items()):
            ax = figure.add_subplot(grid[1, place])
            handles |= draw_over_depth(ax, spectrum.table, column)
            ax.set_title(label, loc="left")
            ax.set_xlabel("block")
        legend_above(figure, handles, title=title or f"{spectrum.record['model']}: $W_q W_k^\\top$")
        figure.draw_without_rendering()
    return figure


def depth_colours(count: int) -> list[tuple[float, float, float, float]]:
    """One colour a block, dark in front."""
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.92, count))
    return [(float(r), float(g), float(b), float(a)) for r, g, b, a in colours]


def draw_over_depth(ax: Axes, table: pd.DataFrame, column: str) -> dict[str, Artist]:
    """One statistic over the blocks: a line for the whole, dots for heads, dashes for the null."""
    whole = whole_blocks(table).sort_values("block")
    heads = table[table["head"].astype(str) != WHOLE]
    with house_style():
        size = marker_size(len(whole))
        (line,) = ax.plot(whole["block"], whole[column], color=INK, marker="o", ms=size, lw=1.2)
        handles: dict[str, Artist] = {"heads together": line}
        if len(heads):
            (handles["one head"],) = ax.plot(
                heads["block"], heads[column], ls="", marker=".", ms=3, color=HEAD_COLOUR, zorder=1
            )
        handles["random factors"] = _draw_null(ax, whole, column, colour=INK)
        if len(heads) and column != "symmetric_share":  # which does not depend on the width
            one = heads.drop_duplicates("block").sort_values("block")
            handles["random factors, one head"] = _draw_null(ax, one, column, colour=HEAD_COLOUR)
        if column == "symmetric_share":
            ax.set_ylim(0, 1)
        else:
            from_zero(ax)
        ax.xaxis.set_major_locator(whole_ticks(5))
    return handles


def _draw_null(ax: Axes, rows: pd.DataFrame, column: str, *, colour: str) -> Line2D:
    at, level = rows["block"].to_numpy(), rows[f"{column}_null"].to_numpy()
    if len(at) == 1:  # one point would not be seen
        at, level = at + np.array([-0.4, 0.4]), level.repeat(2)
    (line,) = ax.plot(at, level, color=colour, ls=NULL_DASHES, lw=0.8, zorder=3)
    if colour == HEAD_COLOUR:
        line.set_path_effects(_halo(1.8))  # over dots of its colour
    return line


def _halo(width: float) -> list[AbstractPathEffect]:
    return [withStroke(linewidth=width, foreground="white")]


def _halves(panels: int) -> list[slice]:
    return [slice(0, 4)] if panels == 1 else [slice(0, 2), slice(2, 4)]


def _draw_lines(
    ax: Axes,
    values: Mapping[tuple[int, str], Floats],
    nulls: Mapping[tuple[int, str], Floats],
    colours: Mapping[int, Any],
) -> None:
    many = len(values) > len(colours)
    alpha = min(0.6, max(0.2, 60 / len(values))) if many else 1.0
    random: dict[tuple[int, float], Floats] = {}  # equal up to rounding where shapes are equal
    least = 1.0
    places = np.random.default_rng(0).permutation(len(values))  # or the last hide the first
    for ((block, head), one), place in zip(values.items(), places, strict=True):
        relative = one / np.linalg.norm(one)
        drawn = np.where(relative > LEAST_VALUE * relative[0], relative, np.nan)
        ax.plot(
            np.arange(1, len(one) + 1),
            drawn,
            color=colours[block],
            lw=0.5 if many else 1.0,
            alpha=alpha,
            zorder=2 + place / len(values),
        )
        null = nulls[block, head] / np.linalg.norm(nulls[block, head])
        random[len(null), round(float(null[0]), 9)] = null
        least = min(least, float(np.nanmin(drawn)))
    colour = HEAD_COLOUR if any(head != WHOLE for _, head in values) else INK
    for null in random.values():
        index = np.arange(1, len(null) + 1)
        ax.plot(
            index, null, color=colour, ls=NULL_DASHES, lw=1.4, zorder=3, path_effects=_halo(2.6)
        )
    ax.set_yscale("log")
    ax.set_ylim(least / 1.5, 1.3)
    ax.yaxis.set_major_locator(LogLocator(numticks=7))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(whole_ticks(5))
    ax.set_xlabel("index")


def _colour_bar(
    figure: Figure, axes: Sequence[Axes], blocks: Sequence[int], colours: Sequence[Any]
) -> None:
    norm = BoundaryNorm(np.arange(len(blocks) + 1) - 0.5, len(blocks))
    mappable = ScalarMappable(norm, ListedColormap(list(colours)))
    bar = figure.colorbar(mappable, ax=list(axes), label="block", aspect=30, pad=0.01)
    ticks = range(0, len(blocks), -(-len(blocks) // 6))
    bar.set_ticks(list(ticks), labels=[str(blocks[i]) for i in ticks])
    bar.minorticks_off()


def spectrum_frame(spectrum: Spectrum) -> pd.DataFrame:
    """The rows of whole blocks, under names that fit on paper; the last are random factors."""
    columns = {
        "block": "block",
        "rank": "rank",
        "spectral_norm": "‖A‖₂",
        "stable_rank": "stable rank",
        "effective_rank": "effective rank",
        "symmetric_share": "symmetric share",
        "tail_exponent": "tail exponent",
        "tail_count": "values in tail",
        "tail_ks": "its KS",
    }
    whole = whole_blocks(spectrum.table)
    names = {f"{name}_null": name for name in (*MEASURES, "tail_ks")}
    null = whole[list(names)].drop_duplicates().rename(columns=names).assign(block="random")
    made = pd.concat([whole, null])[list(columns)].rename(columns=columns)
    return made.reset_index(drop=True)


def spectrum_table(spectrum: Spectrum) -> RenderableType:
    """One line a block, heads together, and what random factors of its shape have."""
    frame = spectrum_frame(spectrum)
    record = spectrum.record
    table = Table(box=None, pad_edge=False)
    headings = ["block", "rank", "‖A‖₂", "stable\nrank", "effective\nrank", "symmetric", "α", "n"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    formats = ["", ".0f", "#.3g", ".1f", ".1f", ".1%", ".2f", ".0f"]
    for row in frame.drop(columns="its KS").itertuples(index=False):
        cells = zip(row, formats, strict=True)
        table.add_row(*("" if pd.isna(value) else format(value, how) for value, how in cells))
    return captioned(
        table,
        f"{named_backbone(record['model'], record['pretraining'])}, A = W_q W_kᵀ",
        "stable rank: ‖A‖²_F / ‖A‖²₂; effective: exp of the entropy of singular values\n"
        "symmetric: its share of ‖A‖²_F; α: exponent of the n largest eigenvalues of AᵀA",
    )


def spectrum_words(spectrum: Spectrum) -> str:
    """How symmetric and how low in rank W_q W_k^T is, beside chance, as one sentence."""
    whole = whole_blocks(spectrum.table).dropna(subset=["symmetric_share"])
    if whole.empty:
        return "All query or key weights are 0."
    middle = whole[[*MEASURES, *(f"{name}_null" for name in MEASURES)]].median()
    least = whole.sort_values("stable_rank").iloc[0]
    return (
        f"In the median block {percent(middle['symmetric_share'], 0)} of W_q W_kᵀ is symmetric "
        f"(random factors: {percent(middle['symmetric_share_null'], 0)}) and its effective rank by "
        f"singular values is {middle['effective_rank']:.0f} "
        f"({middle['effective_rank_null']:.0f}); block "
        f"{least['block']} is nearest to a single direction, with a stable rank of "
        f"{least['stable_rank']:.1f} ({least['stable_rank_null']:.1f})."
    )


def spectrum_notes(spectrum: Spectrum, *, files: Sequence[Path]) -> list[str]:
    """What a reader of the table must also know, one line each."""
    notes = list(spectrum.record.get("notes", []))
    notes += [f"left out: {one.name}: {one.reason}" for one in spectrum.skipped]
    return notes + where_written(files, per_head=spectrum.record["per_head"])


def save_spectrum(spectrum: Spectrum, out: str | os.PathLike[str]) -> list[Path]:
    """Write what was found into a folder, each file whole or not at all.

    `spectrum.csv` is the table. `singular_values.npz` holds for each row `MODEL/BLOCK/HEAD/values`
    and `/null`, float64. `run.json` says how it was made. `spectrum.png` and `.pdf` are the figure.

    Args:
        spectrum: from `burst.spectrum`.
        out: the folder; made if missing, files of the same names are replaced.

    Returns:
        The files written.

    Raises:
        OutputError: the folder cannot be written.
        EmptyResult: no block has a weight that is not 0.
    """
    folder = make_folder(out)
    figure = spectrum_figure(spectrum)
    arrays: dict[str, Any] = {}
    for (block, head), values in spectrum.values.items():
        name = f"{spectrum.record['model']}/{block}/{head}"
        arrays[f"{name}/values"], arrays[f"{name}/null"] = values, spectrum.nulls[block, head]
    record = {
        **provenance(),
        **spectrum.record,
        "omitted": list(spectrum.omitted),
        "skipped_blocks": [vars(block) for block in spectrum.skipped],
    }
    save_table(folder / "spectrum.csv", spectrum.table)
    with write_atomically(folder / "singular_values.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, **arrays)
    save_json(folder / "run.json", record)
    names = ("spectrum.csv", "singular_values.npz", "run.json")
    return [folder / name for name in names] + list(save_figure(figure, folder / "spectrum"))
