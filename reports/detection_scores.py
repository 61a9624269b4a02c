"""Average precisions of trained detectors: bars, curves of their losses, tables, the paper's."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from math import ceil, isfinite
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich.console import RenderableType
from rich.table import Table

from bpt import make_recipe
from bpt.detection.cost import OFFICIAL_SIZES
from bpt.detection.published import OFFICIAL
from bpt.machine import FREE_ON_RESUME
from reports.alike import Trained, named_datasets
from reports.detections import Record
from reports.names import folder_names
from reports.published import DETECTORS, METHODS, METRICS, asked_of, published
from reports.style import (
    PAGE_WIDTH,
    Line,
    blank_page,
    house_style,
    legend_above,
    literal,
    make_room,
    model_lines,
    whole_ticks,
)
from reports.tables import captioned

KINDS = ("box", "mask")
SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
OF_TRAINING = (
    *("image_size", "train_fraction", "batch_size", "weight_decay", "channels", "class_agnostic"),
    *("smallest_scale", "largest_scale", "sampling_ratio", "normalisation", "weights"),
)
"""What runs are compared by, besides detector, dataset, model, schedule and lr."""
FREE = {"seed", "eval_every", "precision", "method", "detector", "dataset"} | FREE_ON_RESUME
"""What a run beside the paper's row may have as it likes, or is told by elsewhere."""


class DetectorRun(Trained, Protocol):
    """What a report reads of a trained detector; `bpt.detection.run_folder.DetectionRun` is one.

    Attributes:
        folder: of the run.
        recipe: detector ("mask-rcnn", "cascade"), method, placement, prompted, model, dataset,
            image_size, schedule, train_fraction, lr, seed, to_dict(), provenance(); a dataclass.
        config: command; parameters: prompts, heads, backbone, trained, total; dataset: name,
            source, digest, categories; backbone: weights_source, weights_sha256, notes.
        metrics: an epoch each: epoch, loss, losses by name, lr, images_per_second, and box_AP and
            mask_AP, None where it was not evaluated.
        result: None before the end; scores in percent, None where there is no object of the size;
            per_class: name -> {box_AP, mask_AP}; evaluator, images, parameters, seconds.
    """

    def detections(self) -> Sequence[Record]:
        """What it found in the validation images, in COCO's result format."""
        ...


def detection_table(scores: Mapping[str, float | None]) -> RenderableType:
    """Average precisions of boxes and of masks, for a terminal.

    Args:
        scores: box_AP ... mask_APl, in percent; None or NaN where there is none.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("", *SCORES):
        table.add_column(name, justify="right" if name else "left")
    for kind in KINDS:
        if any(f"{kind}_{name}" in scores for name in SCORES):
            table.add_row(kind, *(_text(scores.get(f"{kind}_{name}")) for name in SCORES))
    return captioned(table, caption="percent; s, m, l: objects by area")


def detection_classes_table(per_class: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Average precisions class by class, the best boxes first, for a terminal.

    Args:
        per_class: name -> box_AP and mask_AP in percent; None or NaN where there is none.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("class", overflow="fold")
    for kind in KINDS:
        table.add_column(f"{kind} AP", justify="right")

    def first(item: tuple[str, Mapping[str, float | None]]) -> tuple[float, str]:
        return (-_number(item[1].get("box_AP"), -1.0), item[0])

    for name, scores in sorted(per_class.items(), key=first):
        table.add_row(name, *(_text(scores.get(f"{kind}_AP")) for kind in KINDS))
    return table


def compare_detectors(runs: Mapping[str, DetectorRun]) -> pd.DataFrame:
    """A row a run: how it was trained and how good it is; NaN where it has not ended.

    Columns: label, run (its folder, from where these part), detector, dataset (of one's own images
    with their folder), model, method, placement, schedule, lr, seed; those of `OF_TRAINING`, ""
    where nothing was given; prompts, heads and trained (parameters); images (evaluated); box_AP ...
    mask_APl (percent); seconds.
    """
    rows = []
    datasets = named_datasets(runs.values())
    names = folder_names([run.folder for run in runs.values()])
    for (label, run), name, dataset in zip(runs.items(), names, datasets, strict=True):
        recipe, result = run.recipe, run.result or {}
        row = {"label": label, "run": name, "detector": recipe.detector}
        row |= {"dataset": dataset, "model": recipe.model}
        row |= {"method": recipe.method, "placement": recipe.placement if recipe.prompted else ""}
        row |= {name: getattr(recipe, name) for name in ("schedule", "lr", "seed")}
        row |= {name: getattr(recipe, name) for name in OF_TRAINING}
        row |= {"train_fraction": recipe.train_fraction or 1.0, "weights": recipe.weights or ""}
        row |= {one: run.config["parameters"][one] for one in ("prompts", "heads", "trained")}
        scores = result.get("scores", {})
        row["images"] = _number(result.get("images"))
        row |= {f"{kind}_{one}": _number(scores.get(f"{kind}_{one}")) for kind, one in _names()}
        rows.append(row | {"seconds": _number(result.get("seconds"))})
    return pd.DataFrame(rows)


def compare_classes(runs: Mapping[str, DetectorRun], truth: Record) -> pd.DataFrame:
    """A row a class: its objects, the AP of boxes and masks of each run, most different first.

    Columns: class, objects (without crowds), "box AP, LABEL" and "mask AP, LABEL" (percent), and
    of several runs "box difference" and "mask difference" (points, last - first). Of one run the
    best classes come first.

    Args:
        runs: that have ended, by label.
        truth: COCO's ground truth.
    """
    objects = Counter(one["category_id"] for one in truth["annotations"] if not one.get("iscrowd"))
    rows = []
    for category in truth["categories"]:
        name = str(category["name"])
        row: dict[str, Any] = {"class": name, "objects": objects[category["id"]]}
        for kind in KINDS:
            values = [
                _number((run.result or {})["per_class"].get(name, {}).get(f"{kind}_AP"))
                for run in runs.values()
            ]
            row |= {f"{kind} AP, {label}": one for label, one in zip(runs, values, strict=True)}
            if len(runs) > 1:
                row[f"{kind} difference"] = values[-1] - values[0]
        rows.append(row)
    table = pd.DataFrame(rows)
    by = "box difference" if len(runs) > 1 else f"box AP, {next(iter(runs))}"
    order = table[by].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def beside_published_detectors(runs: Mapping[str, DetectorRun]) -> pd.DataFrame:
    """Each run's APs beside the paper's of the same detector, method and kind of placement.

    Columns: label, metric (as in our results), ours and published (percent), difference (points),
    row (of the paper), differs (the hyper-parameters that are not the published ones, and dataset,
    images of it, model, placement and weights that are not the paper's). A run that the paper has
    no row of has one line without a number.

    Source: arXiv 2506.22908, its poster.
    """
    theirs = published_detectors()
    rows = []
    for label, run in runs.items():
        recipe = run.recipe
        placement = recipe.placement if recipe.prompted else "shallow"
        asked = (recipe.detector, recipe.method, placement == "shallow")
        same = [
            row
            for row in theirs.to_dict("records")
            if (DETECTORS[row["setting"]], METHODS[row["method"]][0], _shallow(row)) == asked
        ]
        for row in same:
            value = _number((run.result or {}).get("scores", {}).get(METRICS[row["metric"]]))
            rows.append(
                {
                    "label": label,
                    "metric": METRICS[row["metric"]],
                    "ours": value,
                    "published": row["value"],
                    "difference": value - row["value"],
                    "row": f"{row['method']} {row['pretraining']} {row['setting']}",
                    "differs": ", ".join(_trained_differently(run, row)),
                }
            )
        if not same:
            gaps = dict.fromkeys(("ours", "published", "difference"), np.nan)
            rows.append({"label": label, "metric": "", **gaps, "row": "none", "differs": ""})
    return pd.DataFrame(rows)


def published_detectors() -> pd.DataFrame:
    """The rows of `published` on COCO, in percent: a row a method, detector and metric."""
    table = published()
    return table[table["dataset"] == "coco"].reset_index(drop=True)


def draw_scores(
    ax: Axes,
    values: Mapping[str, Sequence[float]],
    kind: str,
    *,
    lines: Mapping[str, Line] | None = None,
) -> list[BarContainer]:
    """Bars of the six APs, a colour a run.

    Args:
        ax: where to draw.
        values: label -> AP, AP50, AP75, and AP of small, medium and large objects, in percent; NaN
            has no bar.
        kind: "box" or "mask".
        lines: whose colours the labels have, where other figures draw them too.
    """
    lines = lines or model_lines(values)
    width = 0.8 / len(values)
    drawn = []
    for number, (label, one) in enumerate(values.items()):
        at = np.arange(len(SCORES)) + (number - (len(values) - 1) / 2) * width
        bars = ax.bar(at, one, width, color=lines[label].colour, label=label)
        if len(values) <= 3:
            texts = [f"{value:.1f}" if isfinite(value) else "" for value in one]
            ax.bar_label(bars, texts, padding=2, fontsize=7, rotation=90)
            ax.margins(y=0.18)  # room for them
        drawn.append(bars)
    ax.set_xticks(range(len(SCORES)), SCORES)
    ax.set_ylabel(f"{kind} AP (%)")
    return drawn


def scores_figure(
    runs: Mapping[str, DetectorRun], *, lines: Mapping[str, Line] | None = None
) -> Figure:
    """Box and mask AP, at IoU 0.5 and 0.75, and of small, medium and large objects, of each run.

    Args:
        runs: that have ended, by label.
        lines: whose colours the labels have, where other figures draw them too.
    """
    scores = {label: (run.result or {})["scores"] for label, run in runs.items()}
    with house_style():
        figure = blank_page(PAGE_WIDTH, 2.6)
        for ax, kind in zip(figure.subplots(1, 2, sharey=True), KINDS, strict=True):
            values = {
                label: [_number(one.get(f"{kind}_{name}")) for name in SCORES]
                for label, one in scores.items()
            }
            drawn = draw_scores(ax, values, kind, lines=lines)
        names = map(literal, runs)
        shown = dict(zip(names, (bars[0] for bars in drawn), strict=True))
        make_room(figure, legend_above(figure, shown))
        figure.draw_without_rendering()
    return figure


def draw_quantity(ax: Axes, run: DetectorRun, quantity: str, line: Line) -> Line2D:
    """A loss, or an AP, over the epochs; gaps are bridged where there was no evaluation.

    Args:
        ax: where to draw.
        run: with its metrics.
        quantity: "loss", the name of one of its parts, or "box_AP" or "mask_AP".
        line: how.
    """
    points = [(one["epoch"], _number(_quantity(one, quantity))) for one in run.metrics]
    at = [(epoch, value) for epoch, value in points if isfinite(value)]
    (drawn,) = ax.plot(
        [epoch for epoch, _ in at],
        [value for _, value in at],
        color=line.colour,
        ls=line.dashes,
        marker=line.marker if len(at) < 40 else "",
        label=line.label,
    )
    title = quantity.replace("_", " ")
    if quantity.endswith("AP"):
        title += " (%)"
    elif quantity != "loss":
        title += " loss"
    ax.set_title(title)
    ax.xaxis.set_major_locator(whole_ticks(4))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    return drawn


def losses_figure(runs: Mapping[str, DetectorRun]) -> Figure:
    """The loss, each of its parts, and the APs over the epochs, the runs overlaid.

    APs that are known of one epoch alone are no curve, and left out.

    Args:
        runs: with an epoch behind them, by label. A panel has the runs that have its quantity.
    """
    lines = model_lines(runs)
    epochs = [one for run in runs.values() for one in run.metrics]
    parts = dict.fromkeys(name for one in epochs for name in one["losses"])
    scores = [f"{kind}_AP" for kind in KINDS]
    evaluated = [
        name
        for name in scores
        if len({one["epoch"] for one in epochs if one.get(name) is not None}) > 1
    ]
    quantities = ["loss", *parts, *evaluated]
    columns = min(4, len(quantities))
    rows = ceil(len(quantities) / columns)
    with house_style():
        figure = blank_page(PAGE_WIDTH, 0.6 + 1.35 * rows)
        grid = figure.subplots(rows, columns, squeeze=False)
        for ax in grid.flat[len(quantities) :]:
            ax.remove()
        for ax, quantity in zip(grid.flat, quantities, strict=False):
            for label, run in runs.items():
                if any(_quantity(one, quantity) is not None for one in run.metrics):
                    draw_quantity(ax, run, quantity, lines[label])
        handles = [
            Line2D([], [], color=one.colour, ls=one.dashes, marker=one.marker)
            for one in lines.values()
        ]
        shown = dict(zip(map(literal, lines), handles, strict=True))
        make_room(figure, legend_above(figure, shown))
        figure.supxlabel("epoch")
        figure.draw_without_rendering()
    return figure


def _names() -> list[tuple[str, str]]:
    return [(kind, name) for kind in KINDS for name in SCORES]


def _quantity(epoch: Mapping[str, Any], name: str) -> float | None:
    value: float | None = epoch["losses"].get(name, epoch.get(name))
    return value


def _shallow(row: Mapping[Any, Any]) -> bool:
    return METHODS[row["method"]][1] == "shallow"


def _number(value: float | None, missing: float = float("nan")) -> float:
    return missing if value is None or not isfinite(value) else float(value)


def _text(value: float | None) -> str:
    return f"{value:.1f}" if value is not None and isfinite(value) else "-"


def _trained_differently(run: DetectorRun, row: Mapping[Hashable, Any]) -> list[str]:
    """Names of what of a run is not as the paper's row of it was trained, as far as is known."""
    recipe = run.recipe
    theirs = make_recipe(**asked_of(row)).to_dict()
    ours = recipe.to_dict()
    ours["train_fraction"] = None if ours["train_fraction"] == 1 else ours["train_fraction"]
    differing = [name for name in theirs if name not in FREE and ours[name] != theirs[name]]
    about = run.config["dataset"]
    if about["name"] != OFFICIAL:
        differing.append("dataset")
    elif about["val"] != OFFICIAL_SIZES[2] or (
        not ours["train_fraction"] and about["train"] != OFFICIAL_SIZES[1]
    ):
        differing.append("images")
    return differing + ["weights"] * bool(recipe.weights)
