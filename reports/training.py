"""Trained runs as tables for a terminal, and compared in a figure."""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.table import Table
from rich.text import Text

from bpt import Evaluation, Run
from burst.errors import check_known
from reports.alike import named_datasets
from reports.names import folder_names
from reports.style import (
    PAGE_WIDTH,
    Line,
    blank_page,
    house_style,
    legend_above,
    make_room,
    model_lines,
    percent,
    whole_ticks,
)

# What a line of metrics.jsonl may hold, best first: which there is hangs on the protocol.
ACCURACIES = {"val_accuracy": "validation", "test_accuracy": "test", "train_accuracy": "training"}
LOSS = "train_loss"
OF_RESULT = (
    *("best_epoch", "val_accuracy", "test_accuracy", "test_images"),
    *("images_per_second", "seconds"),
)


def plain(values: Any) -> Any:  # noqa: ANN401  whatever JSON may hold
    """Numbers that are not finite become None, within others too, so that the JSON is valid."""
    if isinstance(values, dict):
        return {name: plain(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    return None if isinstance(values, float) and not isfinite(values) else values


def result_table(result: Mapping[str, Any]) -> Table:
    """The end of a training of one seed, or of several."""
    table = Table(box=None, pad_edge=False, show_header=False)
    if "seeds" in result:
        for name, title in (
            ("val_accuracy", "validation accuracy"),
            ("test_accuracy", "test accuracy"),
            ("box_AP", "box AP"),
            ("mask_AP", "mask AP"),
        ):
            if name in result:
                found = result[name]
                spread = "" if found["std"] is None else f" ± {found['std']:.2f}"
                table.add_row(
                    title, f"{found['mean']:.2f}{spread} %  ({len(result['seeds'])} seeds)"
                )
        table.add_row("protocol", result["label"])
        return table
    counts, images = result["parameters"], result["test_images"]
    if result["val_accuracy"] is not None:
        table.add_row("validation accuracy", f"{result['val_accuracy']:.2f} %")
    table.add_row("test accuracy", f"{result['test_accuracy']:.2f} %  ({images:,} images)")
    if "last_epoch" in result:
        table.add_row("of the last epoch", f"{result['last_epoch']['test_accuracy']:.2f} %")
    table.add_row("best epoch", f"{result['best_epoch']} of {result['epochs']}")
    named = ("prompts", "backbone", "head")
    parts = [f"{name} {counts[name]:,}" for name in named if counts.get(name)]
    table.add_row(
        "trained parameters",
        f"{counts['trained']:,}  ({', '.join(parts)})",
    )
    table.add_row(
        "speed", f"{result['images_per_second']:.0f} images/s, {result['seconds']:.0f} s in all"
    )
    table.add_row("protocol", result["label"])
    return table


def search_table(record: Mapping[str, Any]) -> Table:
    """A search's methods: how often each was tried, the best of each and what it is worth."""
    table = Table(box=None, pad_edge=False)
    for name in ("method", "trials", "lr", "weight decay", "val %", "test %", "trained"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for one in record["methods"]:
        chosen, test = one["chosen"] or {}, one["test"]
        spread = "" if test["std"] is None else f" ± {test['std']:.1f}"
        cells = [
            f"{chosen[axis]:g}{' (edge)' if axis in one.get('edges', ()) else ''}"
            if chosen
            else "-"
            for axis in ("lr", "weight_decay")
        ]
        table.add_row(
            one["method"],
            str(len(one["trials"])),
            *cells,
            _number(chosen.get("score")),
            _number(test["mean"]) + spread,
            f"{one['trained_parameters']:,}",
        )
    return table


def evaluation_line(found: Evaluation) -> str:
    """Accuracy in percent and loss in nats, in all."""
    return (
        f"{found.split}: {found.images:,} images, accuracy {found.accuracy:.2f} %, "
        f"loss {found.loss:.3f}"
    )


def evaluation_table(found: Evaluation) -> Table:
    """Accuracy class by class, in percent; rich would wrap a title to the width of the columns."""
    table = Table(box=None, pad_edge=False)
    table.add_column("class", overflow="fold")
    table.add_column("accuracy (%)", justify="right")
    for name, value in found.per_class.items():
        table.add_row(name, f"{value:.1f}" if isfinite(value) else "no image")
    return table


def predictions_table(answers: Sequence[Mapping[str, Any]]) -> Table:
    """The likely classes of each image, with their probabilities in percent."""
    table = Table(box=None, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("classes", overflow="fold")
    for answer in answers:
        named = [f"{one['name']} {percent(one['probability'])}" for one in answer["classes"]]
        table.add_row(answer["image"], ", ".join(named))
    return table


def compare(runs: Sequence[Run]) -> pd.DataFrame:
    """A row a run: how it was trained and how good it is; NaN where it has not ended.

    Columns: run (its folder, from where these part), dataset (of one's own images with their
    folder), model, image_size (pixels, where not the pretraining's), method, placement, prompts and
    trained (parameters), seed, epochs, best_epoch, val_accuracy, test_accuracy (percent),
    test_images, images_per_second (none of linear, which trains on features that were kept),
    seconds, protocol (of a search's trials the fold, whose val_accuracy is the last epoch's).
    """
    rows = []
    names = folder_names([run.folder for run in runs])
    for run, name, dataset in zip(runs, names, named_datasets(runs), strict=True):
        recipe, result = run.recipe, run.result or {}
        row: dict[str, Any] = {"run": name, "dataset": dataset}
        chosen = ("model", "image_size", "method", "placement")
        row |= {name: getattr(recipe, name) for name in chosen}
        row["placement"] = recipe.placement if recipe.prompted else ""
        row["prompts"] = run.config["parameters"]["prompts"]
        row["trained"] = run.config["parameters"].get("trained")
        row |= {"seed": recipe.seed, "epochs": recipe.epochs}
        row |= {name: result.get(name) for name in OF_RESULT}
        if recipe.fold and len(run.metrics) == recipe.epochs:  # it is never tested
            row |= {"val_accuracy": run.metrics[-1].get("val_accuracy")}
        if recipe.method == "linear":  # its steps are many times as fast as the backbone
            row["images_per_second"] = None
        protocol = f"fold {recipe.fold.replace('/', ' of ')}" if recipe.fold else recipe.protocol
        rows.append(row | {"protocol": protocol})
    return pd.DataFrame(rows)


def comparison_table(table: pd.DataFrame) -> Table:
    """The rows of `compare`, for a terminal; of several the folders follow by their numbers."""
    several = len(table) > 1
    folders = "\n".join(f"{number}  {run}" for number, run in enumerate(table["run"], 1))
    shown = Table(
        box=None,
        pad_edge=False,
        caption=Text(folders) if several else None,  # no markup
        caption_justify="left",
    )
    if several:
        shown.add_column("", justify="right")
    for name in (
        "method",
        "placement",
        "prompts",
        "epochs",
        "best",
        "val %",
        "test %",
        "images/s",
    ):
        shown.add_column(name, justify="left" if name in ("method", "placement") else "right")
    for number, row in enumerate(table.to_dict("records"), 1):
        numbers = [_number(row[name]) for name in ("val_accuracy", "test_accuracy")]
        best, rate = _number(row["best_epoch"], 0), _number(row["images_per_second"], 0)
        start = [row["method"], row["placement"], f"{row['prompts']:,}", str(row["epochs"])]
        shown.add_row(*[str(number)] * several, *start, best, *numbers, rate)
    return shown


def draw_curves(ax: Axes, runs: Sequence[Run], quantity: str) -> list[Line2D]:
    """A line a run: a quantity of metrics.jsonl over the epochs.

    Args:
        ax: to draw on.
        runs: to compare.
        quantity: "val_accuracy" (percent; on the test split or the training images where the
            protocol has nothing else, which the axis then says) or "train_loss" (nats).

    Raises:
        UnknownName: another quantity.
    """
    check_known("curve", quantity, ("val_accuracy", LOSS))
    lines, drawn = [], []
    for run in runs:
        name = quantity if quantity == LOSS else judged_by(run.metrics) or quantity
        epochs = [line["epoch"] for line in run.metrics]
        values = [line.get(name, nan) for line in run.metrics]
        lines += ax.plot(epochs, values, marker="o", markersize=3)
        drawn.append(name)
    kinds = [kind for name, kind in ACCURACIES.items() if name in drawn]
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"{' or '.join(kinds)} accuracy (%)" if kinds else "training loss (nats)")
    ax.xaxis.set_major_locator(whole_ticks())
    return lines


def judged_by(*runs: Sequence[Mapping[str, Any]]) -> str | None:
    """The first of `ACCURACIES` that all epochs of all runs have, given their metrics."""
    lines = [line for run in runs for line in run]
    known = (one for one in ACCURACIES if all(line.get(one) is not None for line in lines))
    return next(known, None)


def comparison_figure(
    runs: Sequence[Run], labels: Sequence[str], *, lines: Mapping[str, Line] | None = None
) -> Figure:
    """Accuracy and loss over the epochs, the runs overlaid.

    Args:
        runs: to compare.
        labels: what the legend calls them.
        lines: how each label is drawn, where other figures draw it too.
    """
    lines = lines or model_lines(labels)
    styles = [lines[label] for label in labels]
    with house_style():
        figure = blank_page(PAGE_WIDTH, 2.8)
        for ax, quantity in zip(figure.subplots(1, 2), ("val_accuracy", LOSS), strict=True):
            drawn = draw_curves(ax, runs, quantity)
            for line, style in zip(drawn, styles, strict=True):
                line.set(color=style.colour, ls=style.dashes, marker=style.marker)
        shown = dict(zip((one.label for one in styles), drawn, strict=True))
        make_room(figure, legend_above(figure, shown))
        figure.draw_without_rendering()
    return figure


def _number(value: float | None, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if value is not None and isfinite(value) else "-"
