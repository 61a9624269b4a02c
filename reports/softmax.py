"""What softmax makes of the scores, over depth and head by head."""

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from burst.errors import EmptyResult
from burst.gauge import WHOLE
from reports.depth import draw_band, whole_blocks
from reports.style import (
    INK,
    PAGE_WIDTH,
    blank_page,
    from_zero,
    house_style,
    legend_above,
    marker_size,
    percent,
    whole_ticks,
)

MEASURES = {
    "relative_entropy": "entropy, of an even softmax's",
    "max_weight": "largest weight",
    "class_weight": "weight on the class token",
    "register_weight": "weight on registers",
    "first_weight": "weight on the first token",
}


def softmax_figure(table: pd.DataFrame, *, title: str, figure: Figure | None = None) -> Figure:
    """Means over queries of what softmax gives, block by block, with 95 % bands; a dot is a head.

    Of weights on tokens that a model does not have there is no panel; the first token's stands for
    models without a class token.

    Args:
        table: `softmax` of a survey.
        title: over the whole figure.
        figure: an empty figure with a constrained layout; one of page width by default.

    Raises:
        EmptyResult: the table has no row.
    """
    shown = shown_measures(table)
    if not shown:
        raise EmptyResult("no softmax to draw: measure the quantity `logits`")
    with house_style():
        figure = figure or blank_page(PAGE_WIDTH, 2.1)
        handles: dict[str, Artist] = {}
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for ax, (column, label) in zip(panels, shown.items(), strict=True):
            handles = _draw(ax, table, column)
            ax.set_title(label, loc="left")
        legend_above(figure, handles, title=title)
        figure.supxlabel("block")
        figure.draw_without_rendering()
    return figure


def shown_measures(table: pd.DataFrame) -> dict[str, str]:
    """Columns that say something of this model, with their titles."""
    shown = {column: label for column, label in MEASURES.items() if table[column].notna().any()}
    if "class_weight" in shown:
        shown.pop("first_weight", None)  # the same token
    return shown


def softmax_words(table: pd.DataFrame) -> str:
    """Where attention is most peaked, and which token it falls on, as one sentence."""
    whole = whole_blocks(table)
    peaked = whole.iloc[int(whole["relative_entropy"].argmin())]
    text = (
        f"Softmax is most peaked in block {peaked['block']}, with "
        f"{percent(peaked['relative_entropy'], 0)} of the entropy of an even one"
    )
    sinks = [name for name in shown_measures(table) if name.endswith("_weight")][1:]
    if not sinks:
        return f"{text}."
    sink = sinks[int(whole[sinks].to_numpy().max(axis=0).argmax())]
    most = whole.iloc[int(whole[sink].argmax())]
    token = MEASURES[sink].removeprefix("weight on ")
    share = f"{percent(most[sink], 0)} of all weight"
    return f"{text}; {token} gets most in block {most['block']}, {share}."


def _draw(ax: Axes, table: pd.DataFrame, column: str) -> dict[str, Artist]:
    whole = whole_blocks(table).sort_values("block")
    heads = table[table["head"].astype(str) != WHOLE]
    (line,) = ax.plot(
        whole["block"], whole[column], color=INK, marker="o", ms=marker_size(len(whole)), lw=1.2
    )
    handles: dict[str, Artist] = {"heads together": line}
    draw_band(ax, whole, column, INK)
    if len(heads):
        (handles["one head"],) = ax.plot(
            heads["block"], heads[column], ls="", marker=".", ms=3, color="0.6", zorder=1
        )
    from_zero(ax)
    ax.xaxis.set_major_locator(whole_ticks(5))
    return handles
