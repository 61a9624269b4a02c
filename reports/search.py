"""A search as one page: which method is better and by how much, and how that was found out."""

import dataclasses
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bpt import Recipe
from bpt.methods import USED_BY
from bpt.search.paired import LEVEL
from bpt.search.record import is_crossed, is_halved
from burst.errors import EmptyResult
from burst.files import make_folder
from burst.provenance import provenance
from reports.page import Cell, Page, Section, cell
from reports.paper_tables import save_paper_table, written
from reports.search_figures import curves_figure, forest_figure, rates_figure
from reports.search_tables import (
    CURVES,
    Search,
    differences_frame,
    flatness,
    flatness_words,
    is_stopped,
    methods_frame,
    open_search,
    trials_frame,
    winner_curves,
)
from reports.style import Line, model_lines

LEAD = (
    "Every method was given the same number of trials of its learning rate and weight decay, "
    "judged on validation images; what was best was then trained with each seed, and the test "
    "images were read at the end of each of these trainings.",
)
NOT_SHARED = ("origins", "method", "lr", "weight_decay", "head_weight_decay", "seed")
BETTER, WORSE = "#d3e6f3", "#f9dccf"


def save_search_report(
    folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Write index.html, its figures as PNG and PDF, and tables as CSV, Markdown and LaTeX.

    The tables are methods, differences and trials. A search that has not ended yet gives a page of
    what there is, which says so.

    Args:
        folder: that `bpt.search_methods` wrote.
        out: where to; the same folder if not given.

    Returns:
        The files, the page first.

    Raises:
        CheckpointError: there is no search in the folder.
        EmptyResult: no method in it.
        OutputError: the folder cannot be written.
    """
    search = open_search(Path(folder))
    record = search.record
    if not record["methods"]:
        raise EmptyResult(f"{folder} holds a search without any method yet")
    place = make_folder(out or folder)
    page = Page(f"Methods compared on {record['dataset']}, {record['model']}", LEAD)
    _found(page.section("What was found"), record)
    methods, files = methods_frame(search), list[Path]()
    _methods(page.section("Methods"), methods)
    files += save_paper_table(methods, place / "methods", _about(record))
    lines = model_lines(search.methods)
    if record["differences"]:
        files += _differences(page.section("Differences"), search, place, lines)
    files += _rates(page.section("Rates that were tried"), search, place)
    files += _epochs(page.section("Over the epochs"), search, place, lines)
    _how_chosen(page.section("How it was chosen"), search)
    _how_made(page.section("How it was made"), record)
    return [page.save(place / "index.html"), *files]


def difference_section(
    section: Section,
    differences: pd.DataFrame,
    path: Path,
    *,
    what: str = "test accuracy",
    lines: Mapping[str, Line] | None = None,
    about: str = "",
) -> list[Path]:
    """Paired differences as a figure and as a table, the files PATH.png, .pdf, .csv, .md, .tex.

    The last begins with `about`, if given, as a comment.
    """
    caption = f"Paired differences of {what}, in points, with 95 % intervals; at 0 both are alike."
    files = section.figure(forest_figure(differences, what=what, lines=lines), path, caption)
    columns, rows = shown(differences)
    place = columns.index("difference")
    for row, line in zip(rows, differences.to_dict("records"), strict=True):
        sure = line["adjusted_p"] < 1 - LEVEL
        shade = (BETTER if line["difference"] > 0 else WORSE) if sure else ""
        row[place] = Cell(row[place].text, row[place].number, shade)
    section.table(columns, rows, "Coloured: better or worse by the p-value after Holm's correction")
    return files + save_paper_table(differences, path, about)


def _found(section: Section, record: Mapping[str, Any]) -> None:
    if not record["complete"]:
        section.text("The search is not at its end yet: what follows will change.", strong=True)
    for sentence in record["sentences"]:
        section.text(sentence, strong=True)


def _methods(section: Section, methods: pd.DataFrame) -> None:
    section.table(
        *shown(methods),
        "Parameters of prompts, and all that were trained; accuracies in percent; val of the trial "
        "that was chosen, test as mean ± standard deviation over seeds",
    )


def _differences(
    section: Section, search: Search, place: Path, lines: Mapping[str, Line]
) -> list[Path]:
    record = search.record
    others = "other seeds and other images" if len(record["seeds"]) > 1 else "other images alone"
    section.text(
        "Pairs are runs of one seed, scored on the same test images: what an image or a start does "
        f"to both cancels. Intervals hold for {others}, each for itself; the sentences above call "
        "better or worse what holds among all differences: whose p-value, raised for their number "
        f"(Holm's correction), is below {1 - LEVEL:.2g}."
    )
    by_method = {one["method"]: lines[label] for label, one in search.methods.items()}
    frame = differences_frame(record)
    path, about = place / "differences", _about(record)
    return difference_section(section, frame, path, lines=by_method, about=about)


def _about(record: Mapping[str, Any]) -> str:
    seeds = ", ".join(str(seed) for seed in record["seeds"])
    return f"{record['dataset']}, {record['model']}, seeds {seeds}; accuracies in percent"


def _rates(section: Section, search: Search, place: Path) -> list[Path]:
    if not any(one["trials"] for one in search.methods.values()):
        section.text("No trial has come to its first comparison yet.")
        return []
    files = section.figure(
        rates_figure(search),
        place / "rates",
        "Validation accuracy of every trial, with its standard error. Hollow: of a part of its "
        "epochs or folds, as one of the worse or because it is still to go on, so not to be "
        "compared with the filled. A ring: chosen.",
    )
    trials = trials_frame(search)
    folds = (
        f". Epochs are those of the {search.record['validation']['folds']} folds together"
        if is_crossed(search.record)
        else ""
    )
    columns, rows = shown(trials.drop(columns="folder"))
    section.table(columns, rows, f"Every trial; click a heading to sort{folds}")
    return files + save_paper_table(trials, place / "trials", _about(search.record))


def _epochs(section: Section, search: Search, place: Path, lines: Mapping[str, Line]) -> list[Path]:
    curves = winner_curves(search)
    if missing := [label for label in search.methods if label not in curves]:
        section.text(f"No epochs are known of {', '.join(missing)}: no run of it lies here (yet).")
    if not curves:
        return []
    kinds = dict.fromkeys(CURVES[one.quantity] for one in curves.values())
    alone = all(len(one.values) == 1 for one in curves.values())
    what = "One seed" if alone else "Mean over seeds, and one deviation,"
    caption = f"{what} of what was chosen: {' and '.join(kinds)}."
    files = section.figure(curves_figure(curves, lines=lines), place / "epochs", caption)
    section.text(
        "Whether a curve is flat at its end: the slope of a straight line through the last quarter "
        "of the epochs (three at least) of the mean over seeds, with its standard error, which "
        "minds that epochs are like their neighbours. It is "
        "called flat where as many epochs again would, at either end of a 95 % interval of the "
        "slope, change a point at most; rising or falling where the interval is of one sign. A "
        "learning rate that falls to nothing flattens any curve: flat says that a training came "
        "to its end, not that a longer one would end at the same."
    )
    ends = {label: flatness(one.values.mean(0)) for label, one in curves.items()}
    section.items(flatness_words(label, end) for label, end in ends.items())
    known = {label: end for label, end in ends.items() if end}
    rows = [{"method": one, "verdict": end.verdict, **end._asdict()} for one, end in known.items()]
    table = pd.DataFrame(rows).rename(columns={"low": "slope_low", "high": "slope_high"})
    return files + (save_paper_table(table, place / "flatness") if len(table) else [])


def _how_chosen(section: Section, search: Search) -> None:
    record = search.record
    validation = record["validation"]
    if is_crossed(record):
        judged = (
            f"There was no validation split, or one of few images, so trials were judged by "
            f"{validation['folds']}-fold cross-validation on the training images: each of "
            f"{validation['images']:,} images was scored once, by a training that had not seen it."
        )
    else:
        judged = (
            f"Trials were judged on the validation split, {validation['images']:,} images, "
            "which nothing was trained on."
        )
    seeds = ", ".join(str(seed) for seed in record["seeds"])
    one = len(record["seeds"]) == 1
    seeds, times = (
        (f"seed {seeds}", "") if one else (f"the seeds {seeds}", " for each of these runs")
    )
    section.items(
        [
            judged,
            _how_compared(record),
            f"Every method had {record['trials_each']} trials. The best of them was then "
            f"trained with {seeds}; the test split has {record['test_images']:,} images "
            f"and was read once{times}.",
            _counts(record["methods"]),
            "Nothing but learning rate and weight decay (of linear the head's; of prompts theirs, "
            "and the head's in proportion unless it was given) was adjusted: "
            "number of prompts, epochs, augmentation, pooling and the rest are those below.",
            *_unaugmented(record),
            "Scores of the trials that were chosen are the best of many and so too good by a "
            "little; the test accuracies are not.",
        ]
    )


def _how_compared(record: Mapping[str, Any]) -> str:
    """Where trials were compared, and which were stopped there: `bpt.search.halving`."""
    folds = "; between folds the better half went on" if is_crossed(record) else ""
    if is_halved(record):
        return (
            "Trials were compared after a quarter and a half of their training too, where the "
            f"worse were stopped{folds}. What pays late, such as a strong decay, may be among them."
        )
    return f"Every trial was trained to the end of its training and compared there{folds}."


def _unaugmented(record: Mapping[str, Any]) -> list[str]:
    """That a probe's images are always the same, where those of the others are not."""
    found = {
        one["method"]: one.get("recipe", record["base"]).get("augmentation", "crop")
        for one in record["methods"]
    }
    probe = found.pop("linear", None)
    augmentation = next(iter(found.values()), None)
    if probe is None or augmentation in (None, "none") or probe == augmentation == "flip":
        return []
    return [
        f"linear is trained on the features of centre crops, always the same; the others on images "
        f"with augmentation {augmentation}: a part of what is between them may be that."
    ]


def _counts(methods: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for one in methods:
        stopped = sum(is_stopped(one, trial) for trial in one["trials"])
        lost = sum(trial["score"] is None for trial in one["trials"])
        counts = ((stopped, "not to the end"), (lost, "diverged"))
        notes = ", ".join(f"{count} {what}" for count, what in counts if count)
        parts.append(f"{one['method']} {len(one['trials'])}" + (f" ({notes})" if notes else ""))
    return f"Trials: {', '.join(parts)}."


def _how_made(section: Section, record: Mapping[str, Any]) -> None:
    shared, own = _settings(record)
    lines = [
        f"Dataset {record['dataset']}, backbone {record['model']}.",
        f"What all trainings share: {json.dumps(shared)}.",
    ]
    lines += [f"Of {method} alone: {json.dumps(values)}." for method, values in own.items()]
    section.items(lines)
    kept = {name: record[name] for name in ("command", "versions") if name in record}
    made = provenance() | kept
    section.text("To repeat it, or to go on with it:")
    section.code(shlex.join(made["command"]))
    section.versions(made["versions"])


def _settings(record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What is no default: of all methods that make use of it, and by method where they differ."""
    defaults = {one.name: one.default for one in dataclasses.fields(Recipe)}
    recipes = {one["method"]: one.get("recipe", record["base"]) for one in record["methods"]}
    shared: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for name, default in defaults.items():
        users = [one for one in recipes if one in USED_BY.get(name, (one,))]
        values = {one: recipes[one].get(name, default) for one in users if name not in NOT_SHARED}
        if any(value != values[users[0]] for value in values.values()):
            for one, value in values.items():
                own.setdefault(one, {})[name] = value
        elif values and values[users[0]] != default:
            shared[name] = values[users[0]]
    return shared, own


def shown(frame: pd.DataFrame) -> tuple[list[str], list[list[Cell]]]:
    """Columns and rows of a table in a page; `test` and `sd` in one cell."""
    rows = []
    for line in frame.to_dict("records"):
        row = {str(name): _written(str(name), value) for name, value in line.items()}
        if "sd" in row:
            spread = row.pop("sd").text
            if spread != "–":
                row["test"] = Cell(f"{row['test'].text} ± {spread}", row["test"].number)
        rows.append(list(row.values()))
    return [str(name) for name in frame.columns if name != "sd"], rows


def _written(name: str, value: Any) -> Cell:  # noqa: ANN401  whatever a table holds
    """As in the tables beside the page, with the number to sort by."""
    return Cell(written(name, value), cell(value).number)
