"""A whitening on every benchmark at hand, as one page: a sentence each, figure, tables."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from bpt import PlannedMethod, SearchCost, ValidationPlan
from bpt.validate_record import read_validation
from burst.files import make_folder
from reports.page import Page, Section
from reports.paper_tables import frame_table, save_paper_table
from reports.plan import cost_table, planned
from reports.search import difference_section, shown
from reports.search_tables import differences_frame, is_search
from reports.style import model_lines

LEAD = (
    "Prompts of a Vision Transformer, plain (vpt) and whitened by the matrices W of one file, and "
    "a linear probe, on every benchmark that was found.",
)
METRICS = {"test_accuracy": "test accuracy", "box_AP": "box AP"}


def open_validation(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of the validate.json in a folder.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another version.
    """
    return read_validation(Path(folder))


def save_validation(
    folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Write index.html, its figures as PNG and PDF, tables as CSV, Markdown and LaTeX.

    Args:
        folder: that `bpt.validate_whitening` wrote.
        out: where to; the same folder if not given.

    Returns:
        The files, the page first.

    Raises:
        CheckpointError: there is no validation in the folder.
        OutputError: the folder cannot be written.
    """
    record, place = open_validation(folder), make_folder(out or folder)
    page = Page(f"{Path(record['whitening']['path']).name} on {record['model']}, validated", LEAD)
    _found(page.section("What was found"), record)
    files = _all(page.section("All benchmarks"), record, place)
    for entry in record["benchmarks"]:
        _benchmark(page.section(entry["dataset"]), entry, Path(folder))
    if record["missing"]:
        _missing(page.section("What was not there"), record)
    _how(page.section("How it was made"), record)
    return [page.save(place / "index.html"), *files]


def validation_frame(record: Mapping[str, Any]) -> pd.DataFrame:
    """A row a benchmark and method.

    Columns: dataset, method, placement, rates (published or searched), lr, weight_decay, trained
    (parameters), metric, test (percent, mean over seeds), sd, seeds, note (why there is none).
    """
    rows = []
    for entry in record["benchmarks"]:
        for one in entry["methods"]:
            test = one["test"] or {}
            row = {"dataset": entry["dataset"], "method": one["method"]}
            row |= {"placement": one["placement"] or "", "rates": one["rates"]}
            row |= {"lr": one["lr"], "weight_decay": one["weight_decay"]}
            row |= {"trained": one["trained_parameters"], "metric": METRICS[entry["metric"]]}
            row |= {"test": test.get("mean"), "sd": test.get("std"), "seeds": len(one["runs"])}
            rows.append(row | {"note": one["failed"] or ""})
    if not rows:
        return pd.DataFrame()
    kinds = dict.fromkeys(("lr", "weight_decay", "test", "sd"), "float64")
    return pd.DataFrame(rows).astype({**kinds, "trained": "Int64"})


def validation_table(record: Mapping[str, Any]) -> Table:
    """The rows of `validation_frame`, for a terminal."""
    frame = validation_frame(record).drop(columns=["trained", "metric"])
    return frame_table(frame if (frame["note"] != "").any() else frame.drop(columns="note"))


def validation_plan_table(plan: ValidationPlan) -> Table:
    """What a validation would train, with its estimated cost, for a terminal.

    Of a search the cost is the most that it can be, see `bpt.search_costs`.

    Raises:
        BurstError: see `plan_table`.
    """
    table = cost_table(("benchmark", "method", "placement", "rates"))
    for one in plan.benchmarks:
        searches = one.search_costs(plan.seeds)
        for name, method in one.methods.items():
            cells = _planned(method, searches.get(name), len(plan.seeds))
            table.add_row(one.dataset, name, *cells)
    return table


def _planned(method: PlannedMethod, search: SearchCost | None, seeds: int) -> list[str]:
    recipe = method.recipe
    place = recipe.placement if recipe.prompted else ""
    rates = "searched" if method.published is None else f"published: {method.published}"
    found = planned(recipe, search, seeds)
    return [place, rates, found.trainings, *found.figures]


def _found(section: Section, record: Mapping[str, Any]) -> None:
    if not record["complete"]:
        begun = ", ".join(record["pending"])
        section.text(
            f"Begun, and not at their end yet: {begun}. The commands at the end of this page go on "
            "with them.",
            strong=True,
        )
    for sentence in record["sentences"]:
        section.text(sentence, strong=True)
    section.text(
        "Better and worse are said where that holds among all comparisons on a benchmark (Holm's "
        "correction); the intervals are each for itself, and nothing was corrected for there "
        "being several benchmarks."
    )
    for note in record["notes"]:
        section.text(note)


def _all(section: Section, record: Mapping[str, Any], place: Path) -> list[Path]:
    frame = validation_frame(record)
    if frame.empty:
        section.text("Nothing has ended yet.")
        return []
    section.table(*shown(frame), "Test accuracy, or box AP, in percent: mean ± sd over seeds")
    return save_paper_table(frame, place / "benchmarks") + _differences(section, record, place)


def _differences(section: Section, record: Mapping[str, Any], place: Path) -> list[Path]:
    """All of one metric in a figure; accuracies and average precisions do not share an axis."""
    files: list[Path] = []
    named = (one["method"] for entry in record["benchmarks"] for one in entry["methods"])
    lines = model_lines(named)
    for metric, words in METRICS.items():
        parts = [
            differences_frame(entry).assign(dataset=entry["dataset"])
            for entry in record["benchmarks"]
            if entry["metric"] == metric and entry["differences"]
        ]
        if parts:
            frame = pd.concat(parts, ignore_index=True)
            frame = frame[["dataset", *frame.columns.drop("dataset")]]
            path = place / f"differences_{metric}"
            files += difference_section(section, frame, path, what=words, lines=lines)
    return files


def _benchmark(section: Section, entry: Mapping[str, Any], folder: Path) -> None:
    section.text(entry["sentence"], strong=True)
    seeds = ", ".join(str(seed) for seed in entry["seeds"])
    section.text(
        f"Found in {entry['place']}. Prompts stand {entry['placement']}. Seeds {seeds}, the same "
        "for every method."
    )
    lines = []
    for one in entry["methods"]:
        line = f"{one['method']}: {one['rates']} rates"
        if one["source"]:
            line += f" ({one['source']})"
        if one["lr"] is not None:
            line += f", lr {one['lr']:g}"
        if one["failed"]:
            line += f"; {'' if one['test'] else 'no number: '}{one['failed']}"
        lines.append(f"{line}.")
    section.items(lines)
    if {one["rates"] for one in entry["methods"]} == {"published", "searched"}:
        section.text(
            "Some rates were searched here and others published elsewhere: a difference may be one "
            "of the rates, and speaks for what was searched."
        )
    if entry["search"] and is_search(folder / entry["search"]):
        section.text(f"Every trial: `bpt report {folder / entry['search']} --out FOLDER`.")


def _missing(section: Section, record: Mapping[str, Any]) -> None:
    section.text("These benchmarks were not found. The same command takes them in once they are.")
    section.items(f"{name}: {how}." for name, how in record["missing"].items())


def _how(section: Section, record: Mapping[str, Any]) -> None:
    made = record["whitening"]
    images = made["images"] or {}
    sources = [source.get("source") for source in images.get("sources", [])]
    section.items(
        [
            f"Whitening {made['path']}, SHA-256 {made['sha256']}: {made['method']}, floor "
            f"{made['floor']}, from {images.get('count')} images ({', '.join(map(str, sources))}).",
            f"Backbone {record['model']}, weights SHA-256 {made['weights_sha256']}.",
            "bpt-fwhiten multiplies prompts by W, bpt-dwhiten by the variances in the same file.",
            "Classifiers are compared image by image on the test split; detectors by seed alone.",
        ]
    )
    section.text("To repeat it, or to go on with it:")
    typed = [entry["command"] for entry in record["benchmarks"]] + [*record["pending"].values()]
    section.code("\n".join(dict.fromkeys(map(shlex.join, typed))))
    section.versions(record["versions"])
