"""Where a response's kurtosis sits: between its dimensions or within them, drawn and in words."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from burst.decomposition import Decomposition, GroupMoments
from burst.errors import EmptyResult
from burst.extremes_tables import carriers
from burst.gauge import WHOLE
from burst.survey import Survey
from reports.depth import MEASURES, draw_band, scale_kurtosis, whole_blocks
from reports.style import (
    INK,
    OBJECT_COLOURS,
    PAGE_WIDTH,
    blank_page,
    decimals,
    house_style,
    legend_above,
    literal,
    marker_size,
    percent,
    quantity_style,
    whole_ticks,
)

PEAKED_KURTOSIS = 1.0  # excess kurtosis below which there is little to explain
_BLUE, _, _, _YELLOW, _PURPLE, _SKY, *_ = OBJECT_COLOURS
PARTS = {  # of a Decomposition
    "scale": ("part: variances of the dimensions", _YELLOW),
    "means": ("part: means of the dimensions", _PURPLE),
    "within": ("part: within the dimensions", _SKY),
}
LINES = {
    "excess_kurtosis": ("all entries", quantity_style("qkx").line.colour, "-", "o"),
    "kurtosis_within_rows": ("each dimension standardised", _BLUE, "--", "s"),
    "kurtosis_null": ("Gaussian tokens, same covariance", "0.45", ":", ""),
}


def kurtosis_parts(survey: Survey, *, figure: Figure | None = None) -> Figure:
    """Excess kurtosis of A X^T over the blocks, and the parts that it is the sum of.

    Left, on a symmetric log axis: of all entries, of the same with each row standardised, and of
    Gaussian tokens with the same covariance, with 95 % intervals over images. Right: the parts by
    the law of total cumulance, see `burst.decomposition`; stacked, they add up to the line.

    Args:
        survey: with `qkx` measured.
        figure: an empty figure with a constrained layout; one that is a page wide by default.

    Raises:
        EmptyResult: `qkx` was not measured, or the survey was made before it kept margins.
    """
    parts = decompositions(survey)
    if not parts:
        raise EmptyResult("there is nothing to decompose: the survey has no margins of qkx")
    table = whole_blocks(survey.table).query("quantity == 'qkx'").sort_values("block")
    with house_style():
        figure = figure or blank_page(PAGE_WIDTH, 2.6)
        left, right = figure.subplots(1, 2, sharex=True)
        _draw_lines(left, table)
        _draw_parts(right, parts)
        for ax, title in ((left, "of all entries, and compared"), (right, "its parts")):
            ax.set_title(title, loc="left")
            ax.set_ylabel(MEASURES[0].label)
            ax.xaxis.set_major_locator(whole_ticks(6))
        scale_kurtosis(left, pd.concat([table[name] for name in LINES]))
        handles = {
            str(label): handle
            for ax in (left, right)
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        legend_above(figure, handles, title=literal(str(survey.record["model"])))
        figure.supxlabel("block")
        figure.draw_without_rendering()
    return figure


def decompositions(survey: Survey) -> dict[int, Decomposition]:
    """The parts by dimensions of each block's response, heads together."""
    return {
        block: Decomposition.of(margins.rows)
        for (block, head, _), margins in survey.margins.items()
        if head == WHOLE
    }


def where_it_sits(survey: Survey) -> list[str]:
    """Why the burstiest block is so, and more of it and all; none if nothing is heavy-tailed."""
    table = whole_blocks(survey.table)
    rows = table[(table["quantity"] == "qkx") & (table["excess_kurtosis"] > PEAKED_KURTOSIS)]
    if rows.empty or not survey.margins:
        return []
    worst = rows.iloc[int(rows["excess_kurtosis"].argmax())]
    sentences = [*_of_block(worst, survey.margins[int(worst["block"]), WHOLE, "qkx"].rows)]
    below = int((rows["kurtosis_within_rows"] < PEAKED_KURTOSIS).sum())
    if len(rows) > 1:
        sentences.append(
            f"Of the {len(rows)} blocks with an excess kurtosis above {PEAKED_KURTOSIS:g}, "
            f"{_count(below, len(rows))} below it once each dimension is centred and divided by "
            "its own deviation."
        )
    return sentences


def diagonal_is_enough(table: pd.DataFrame) -> bool:
    """Whether scales alone make most heavy-tailed blocks so: a diagonal whitening mends them."""
    if "kurtosis_within_rows" not in table:  # made before surveys knew it
        return False
    rows = table[(table["quantity"] == "qkx") & (table["excess_kurtosis"] > PEAKED_KURTOSIS)]
    return bool(len(rows)) and bool((rows["kurtosis_within_rows"] < PEAKED_KURTOSIS).mean() > 0.5)


def _of_block(row: pd.Series, rows: GroupMoments) -> Iterable[str]:
    block, pooled, within = (
        int(row["block"]), row["excess_kurtosis"], row["kurtosis_within_rows"],
    )  # fmt: skip
    third, dimensions = carriers(rows.energy, 1 / 3), len(rows.count)
    parts = Decomposition.of(rows)
    # One heavy-tailed dimension may hold all the energy, and count little among standardised ones.
    left = float(parts.within)
    more = left > within and _number(left) != _number(max(within, 0.0))
    held = f", of which {_number(left)} lies within dimensions" if more else ""
    yield (
        f"Why: {third} of {dimensions} dimensions carry a third of block {block}'s energy. With "
        f"each centred and divided by its own deviation, excess kurtosis is {_number(within)}, not "
        f"{_number(pooled)}{held}: {_verdict(pooled, max(within, left))}."
    )
    null = row["kurtosis_null"]
    if math.isfinite(null):
        yield (
            f"Gaussian tokens of the same covariance, centred, would give block {block} an excess "
            f"kurtosis of {_number(null)}, {_beside_null(pooled, null, parts)}."
        )


def _verdict(pooled: float, within: float) -> str:
    gone = (pooled - max(within, 0.0)) / pooled
    if gone > 0.9:
        return "nearly all of it is that dimensions differ in scale and mean"
    if gone > 0.5:
        return f"{percent(gone, 0)} of it is that dimensions differ in scale and mean"
    return "most of it is within dimensions, where a few tokens stand out"


def _beside_null(pooled: float, null: float, parts: Decomposition) -> str:
    if null > 0.9 * pooled:
        return "so tails of the tokens themselves are not needed for it"
    share = f"{percent(null / pooled, 0)} of it, " if null > pooled / 2 else ""
    if parts.means > max(float(parts.within), 0.0):
        return f"{share}so it is the dimensions' means that make the {'rest' if share else 'tails'}"
    return f"{share}so tails of the tokens themselves add to it"


def _count(blocks: int, of: int) -> str:
    return {0: "none is", 1: "one is", of: "all are"}.get(blocks, f"{blocks} are")


def _number(value: float) -> str:
    return decimals(value, 1) if math.isfinite(value) else "not defined"


def _draw_lines(ax: Axes, table: pd.DataFrame) -> None:
    for name, (label, colour, dashes, marker) in LINES.items():
        style = {"color": colour, "ls": dashes, "marker": marker, "ms": marker_size(len(table))}
        ax.plot(table["block"], table[name], label=label, **style)
        draw_band(ax, table, name, colour)
    ax.axhline(0, color="0.6", lw=0.7, zorder=0)


def _draw_parts(ax: Axes, parts: dict[int, Decomposition]) -> None:
    blocks = np.array(list(parts))
    above, below = np.zeros(len(blocks)), np.zeros(len(blocks))
    for name, (label, colour) in PARTS.items():
        height = np.nan_to_num([float(getattr(part, name)) for part in parts.values()])
        ax.bar(blocks, height, bottom=np.where(height > 0, above, below), color=colour, label=label)
        above, below = above + height.clip(min=0), below + height.clip(max=0)
    kurtosis = [float(part.kurtosis) for part in parts.values()]
    size = marker_size(len(blocks))
    ax.plot(blocks, kurtosis, color=INK, marker="o", ms=size, lw=0.7, label="their sum")
    ax.axhline(0, color="0.6", lw=0.7, zorder=0)
