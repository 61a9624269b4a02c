"""Learned prompts: their values, how alike they are, how they came to be; and what is confused."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from bpt import PromptDiagnosis, Run
from burst.errors import EmptyResult
from reports.names import readable, shortened
from reports.style import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    Line,
    blank_page,
    house_style,
    legend_above,
    make_room,
    model_lines,
    whole_ticks,
)

Floats = NDArray[np.float64]
TRACES = {
    "prompt_grad_norm": "norm of the prompts' gradient",
    "largest_prompt": "largest |prompt value|",
    "prompt_effective_rank": "least effective rank\nof a prompt, by energy",
}
LINEAR = ("prompt_effective_rank",)
DROWNED = 0.25  # of the share that the patches' mean alone has: below, prompts hide the image
COLLAPSED = 2.0  # effective rank below which a prompt is little more than one direction
SPREAD = 200.0  # of the largest value to the width of the innermost bins, about
MOST_LABELS = 30  # classes that a confusion matrix still names
LETTER = 0.06  # inches of a letter in a title or at a tick, about
TITLE_LETTERS, TITLE_LINE = 22, 0.13  # a line over one of four panels, and its height in inches


def draw_trace(ax: Axes, run: Run, quantity: str, line: Line) -> Line2D:
    """A quantity of metrics.jsonl over the optimiser's steps; on a log scale, but for ranks.

    Args:
        ax: where to draw.
        run: with a prompt.
        quantity: of `TRACES`; mean over each epoch's steps, or as it is at its end. Runs of earlier
            versions may lack it.
        line: how.
    """
    at = [one["step"] for one in run.metrics]
    values = [one.get(quantity) or np.nan for one in run.metrics]
    (drawn,) = ax.plot(
        *(at, values), color=line.colour, ls=line.dashes, marker=line.marker, label=line.label
    )
    scale = "linear" if quantity in LINEAR else "log"
    ax.set(yscale=scale, xlabel="step", ylabel=TRACES[quantity])
    ax.xaxis.set_major_locator(whole_ticks(5))
    return drawn


def trace_figure(runs: Mapping[str, Run], *, lines: Mapping[str, Line] | None = None) -> Figure:
    """Gradient norm, largest value and rank of the prompts over the steps, the runs overlaid.

    Args:
        runs: by label; those without prompts are left out.
        lines: how each label is drawn, where other figures draw it too.

    Raises:
        EmptyResult: none has a prompt.
    """
    prompted = {label: run for label, run in runs.items() if run.recipe.prompted}
    if not prompted:
        raise EmptyResult("no run has prompts")
    lines = lines or model_lines(prompted)
    with house_style():
        figure = blank_page(PAGE_WIDTH, 2.7)
        for ax, quantity in zip(figure.subplots(1, len(TRACES)), TRACES, strict=True):
            drawn = {
                lines[label].label: draw_trace(ax, run, quantity, lines[label])
                for label, run in prompted.items()
            }
        make_room(figure, legend_above(figure, drawn))
        figure.draw_without_rendering()
    return figure


def draw_values(ax: Axes, values: Floats, line: Line, *, bins: int = 101) -> Line2D:
    """Density of prompt values on a symmetric log axis, which shows small and large ones alike.

    Args:
        ax: where to draw.
        values: (m, d) or any shape.
        line: how.
        bins: how many span the values, even on that axis.
    """
    flat = np.asarray(values, np.float64).ravel()
    reach = float(np.abs(flat).max(initial=0.0)) or 1.0
    near = reach / SPREAD
    edges = near * np.sinh(np.linspace(-1, 1, bins + 1) * np.arcsinh(reach / near))
    density, _ = np.histogram(flat, edges, density=True)
    centres = (edges[1:] + edges[:-1]) / 2
    shown = np.where(density > 0, density, np.nan)
    (drawn,) = ax.plot(centres, shown, color=line.colour, ls=line.dashes, label=line.label)
    return drawn


def values_figure(
    values: Mapping[str, Floats], *, lines: Mapping[str, Line] | None = None
) -> Figure:
    """Distributions of learned prompt values, the runs overlaid: VPT's are the plain ones.

    Args:
        values: label -> every value of its prompts.
        lines: how each label is drawn, where other figures draw it too.

    Raises:
        EmptyResult: no values.
    """
    if not values:
        raise EmptyResult("no run has prompts")
    lines = lines or model_lines(values)
    with house_style():
        figure = blank_page(PAGE_WIDTH, 3.0)
        ax = figure.subplots()
        drawn = {
            lines[label].label: draw_values(ax, one, lines[label]) for label, one in values.items()
        }
        typical = min(float(np.median(np.abs(one))) for one in values.values()) or 1e-3
        # A whole power of ten: the ticks of one within the linear part would cover each other.
        ax.set_xscale("symlog", linthresh=10.0 ** np.floor(np.log10(typical)))
        ax.set_yscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(xlabel="prompt value (symmetric log axis)", ylabel="density")
        make_room(figure, legend_above(figure, drawn))
        figure.draw_without_rendering()
    return figure


def cosine_matrix(prompts: Floats) -> Floats:
    """(m, m) float64 cosines between the rows of (m, d) prompts; 0 for a prompt that is zero."""
    norms = np.linalg.norm(prompts, axis=1, keepdims=True)
    unit = np.divide(prompts, norms, out=np.zeros_like(prompts, np.float64), where=norms > 0)
    cosines: Floats = unit @ unit.T
    return cosines


def draw_cosines(ax: Axes, prompts: Floats) -> AxesImage:
    """The cosine matrix of (m, d) prompts, from -1 to 1."""
    image = ax.imshow(cosine_matrix(prompts), cmap="PuOr_r", vmin=-1, vmax=1)
    ax.xaxis.set_major_locator(whole_ticks(4))
    ax.yaxis.set_major_locator(whole_ticks(4))
    return image


def cosine_figure(prompts: Mapping[str, Floats]) -> Figure:
    """A panel a run: how alike the prompts of its first prompted block are.

    Args:
        prompts: label -> (m, d).

    Raises:
        EmptyResult: no prompts.
    """
    if not prompts:
        raise EmptyResult("no run has prompts")
    columns = min(4, len(prompts))
    rows = -(-len(prompts) // columns)
    titles = [fill(readable(label), TITLE_LETTERS) for label in prompts]
    lines = max(title.count("\n") for title in titles)
    with house_style():
        figure = blank_page(PAGE_WIDTH, 0.4 + (1.9 + TITLE_LINE * lines) * rows)
        grid = figure.subplots(rows, columns, squeeze=False)
        for ax in grid.flat[len(prompts) :]:
            ax.remove()
        axes = list(grid.flat[: len(prompts)])
        for ax, title, one in zip(axes, titles, prompts.values(), strict=True):
            image = draw_cosines(ax, one)
            ax.set_title(title, loc="left", parse_math=False)
        figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02).set_label("cosine")
        figure.supxlabel("prompt")
        figure.draw_without_rendering()
    return figure


def diagnosis_frame(found: Mapping[str, PromptDiagnosis]) -> pd.DataFrame:
    """A row a prompted block of each run: scale, rank by energy, and the image's share in percent.

    Columns: label, block, prompt RMS, patch RMS, times larger, effective rank, of (prompts), image
    in the head's input (%), in the patches' mean (%).
    """
    return pd.DataFrame(
        [
            {
                "label": label,
                "block": block.block,
                "prompt RMS": block.prompt_rms,
                "patch RMS": block.patch_rms,
                "times larger": block.scale,
                "effective rank": block.effective_rank,
                "of": one.num_prompts,
                "image in the head's input (%)": _percent(one.image_share),
                "in the patches' mean (%)": _percent(one.patches_share),
            }
            for label, one in found.items()
            for block in one.blocks
        ]
    )


def diagnosis_sentences(
    found: Mapping[str, PromptDiagnosis], ranks: Mapping[str, int] | None = None
) -> list[str]:
    """What of it a reader must not overlook, a sentence a finding; none where nothing is amiss.

    Args:
        found: by label.
        ranks: of the bilinear prompts among them, which are never of more.
    """
    sentences = []
    for label, one in found.items():
        largest = max(one.blocks, key=lambda block: block.scale)
        flattest = min(one.blocks, key=lambda block: block.effective_rank)
        share = one.image_share
        if share is not None and share < DROWNED * one.patches_share:
            sentences.append(
                f"{label}: the head hardly sees the image. The prompts of block {largest.block} "
                f"are {_times(largest.scale)} times as large as the patches there; of what the "
                f"head reads {100 * share:.2g} % depends on the image, of the patches' mean "
                f"{100 * one.patches_share:.2g} %."
            )
        largest_rank = min(one.num_prompts, (ranks or {}).get(label, one.num_prompts))
        if flattest.effective_rank < COLLAPSED < largest_rank:
            sentences.append(
                f"{label}: the {one.num_prompts} prompts of block {flattest.block} are nearly one. "
                f"Their effective rank by energy is {flattest.effective_rank:.1f}."
            )
    return sentences


def _times(factor: float) -> str:
    """Two significant digits, without a power of ten."""
    return f"{float(f'{factor:.2g}'):,.10g}"


def _percent(share: float | None) -> float:
    return np.nan if share is None else 100 * share


def draw_confusion(ax: Axes, counts: NDArray[np.int64], classes: Sequence[str]) -> QuadMesh:
    """(k, k) counts of named (across) by true class (down), zero white, on a log scale."""
    shown = np.ma.masked_equal(counts, 0)
    norm = LogNorm(1, max(2, int(counts.max(initial=1))))
    mesh = ax.pcolormesh(shown, cmap="cividis_r", norm=norm)
    ax.invert_yaxis()
    ax.set(xlabel="named class", ylabel="true class")
    if len(classes) <= MOST_LABELS:
        at, names = np.arange(len(classes)) + 0.5, [shortened(one) for one in classes]
        ax.set_xticks(at, names, rotation=90, parse_math=False)
        ax.set_yticks(at, names, parse_math=False)
    return mesh


def _counts_up_to(most: int) -> list[int]:
    """1, 2, 5, 10 ... and the largest, those left out that would touch it."""
    steps = (step * 10**power for power in range(len(str(most))) for step in (1, 2, 5))
    return [*(step for step in steps if 1.4 * step < most), most]


def confusion_figure(counts: NDArray[np.int64], classes: Sequence[str], title: str) -> Figure:
    """The confusion matrix of one run.

    Args:
        counts: (k, k) int64 of images, true class by named class, see `bpt.confusion_matrix`.
        classes: k names; the middle of long ones is left out.
        title: over it.
    """
    side = 5.0
    if len(classes) <= MOST_LABELS:
        room = LETTER * max((len(shortened(one)) for one in classes), default=0)
        side = max(COLUMN_WIDTH, min(PAGE_WIDTH, 1.3 + room + 0.17 * len(classes)))
    with house_style():
        figure = blank_page(side + 0.5, side)
        ax = figure.subplots()
        mesh = draw_confusion(ax, counts, classes)
        over = fill(readable(title), int(side / LETTER))
        figure.suptitle(over, size=mpl.rcParams["axes.titlesize"], parse_math=False)
        bar = figure.colorbar(
            mesh,
            ax=ax,
            fraction=0.046,
            pad=0.02,
            ticks=_counts_up_to(int(counts.max(initial=1))),
            format=StrMethodFormatter("{x:,.0f}"),
        )
        bar.ax.minorticks_off()
        bar.set_label("images (log axis)")
        figure.draw_without_rendering()
    return figure


def most_confused(
    counts: NDArray[np.int64], classes: Sequence[str]
) -> list[tuple[str, str, int, int]]:
    """True class, named class, how often, of how many images: the ten most frequent, in order."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        (classes[i], classes[j], int(wrong[i, j]), int(counts[i].sum()))
        for i, j in pairs
        if wrong[i, j]
    ]
