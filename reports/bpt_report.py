"""Several trainings as one page: curves, prompts, what is confused, and the paper's numbers."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bpt import PromptDiagnosis, PromptedViT, Recipe, Run, confusion_matrix, prompt_diagnosis
from bpt.methods import USED_BY
from burst.errors import BurstError
from burst.files import make_folder, save_table
from reports.alike import OF_A_RUN, told_apart
from reports.beside import beside_published
from reports.bpt_summary import trainings_frame, write_summary
from reports.page import Page, Section, cell
from reports.paper_tables import save_paper_table
from reports.prompts import (
    confusion_figure,
    cosine_figure,
    diagnosis_frame,
    diagnosis_sentences,
    most_confused,
    trace_figure,
    values_figure,
)
from reports.run_page import check_begun, how_made, show_differences
from reports.style import Line, model_lines
from reports.training import compare, comparison_figure

Floats = NDArray[np.float64]
LEAD = (
    "A prompt is a few tokens that are put in front of an image's patches and trained, together "
    "with a linear head, while the backbone stays as it was. Plain prompts (vpt) are the baseline; "
    "spt starts them from real tokens; bpt whitens them, or learns them as a product of two "
    "matrices, because what they meet in attention is bursty (arXiv 2506.22908).",
)
# By what labels tell runs of one method apart: all that decides a training, the seed at last.
FIRST = ("model", "image_size", "train_fraction", "protocol", "fold", "epochs", "batch_size", "lr")
OTHERS = {*FIRST, *OF_A_RUN, "method", "placement"}  # named apart, or of no training
TOLD = (*FIRST, *(one.name for one in fields(Recipe) if one.name not in OTHERS), "seed")


def save_bpt_report(
    runs: Sequence[Run],
    out: str | os.PathLike[str],
    *,
    data: str | None = None,
    device: str = "cpu",
    confusion: bool = True,
) -> list[Path]:
    """Write index.html, its figures as PNG and PDF, and tables.

    Of every run runs.csv, beside the paper's numbers published.csv; of trainings, with their mean
    over seeds, trainings.csv, .md and .tex.

    Args:
        runs: from `open_run`.
        out: the folder; made if missing.
        data: where the runs' dataset lies, if it was moved.
        device: to evaluate runs of earlier versions on: "auto", "cpu", "cuda", ...
        confusion: draw confusion matrices. Runs of earlier versions read images again: those of
            the test for these, and those of the validation for what their prompts do.

    Returns:
        The files, the page first.

    Raises:
        EmptyResult: no run, or one that has no epoch behind it.
        CheckpointError: what a run says of its epochs is damaged. What needs its model, which
            cannot be loaded, is left out; the page says why.
        OutputError: the folder cannot be written.
    """
    check_begun(runs)
    folder, named = make_folder(out), labels(runs)
    table = compare(runs)
    table.insert(0, "label", list(named))
    beside = beside_published(named)
    page = Page("Prompt tuning, compared", LEAD)
    write_summary(page.section("What was found"), named, table)
    section = page.section("Curves")
    caption = (
        "Accuracy and training loss. On the validation split, where the protocol has one; on the "
        "test split with protocol authors, on the training images with protocol last."
    )
    lines = model_lines(named)
    figure = comparison_figure(runs, list(named), lines=lines)
    files = section.figure(figure, folder / "curves", caption)
    if any(run.recipe.prompted for run in runs):
        section = page.section("Prompts")
        files += _prompts(section, named, folder, lines)
        _diagnosis(section, named, diagnoses(named, data=data, device=device, measure=confusion))
    if confusion:
        files += _confusion(page.section("What is confused"), named, folder, data, device)
    _published(page.section("Beside the published numbers"), beside)
    files += _for_a_paper(page.section("For a paper"), named, folder)
    page.section("Every number").frame(table, "Click a heading to sort. Accuracies in percent.")
    how_made(page.section("How it was made"), named)
    files.append(save_table(folder / "runs.csv", table))
    files.append(save_table(folder / "published.csv", beside))
    return [page.save(folder / "index.html"), *files]


def _for_a_paper(section: Section, runs: Mapping[str, Run], folder: Path) -> list[Path]:
    """Means over seeds, as a table of a document too."""
    table = trainings_frame(runs)
    if table.empty:
        section.text("No run has ended yet.")
        return []
    section.frame(
        table,
        "Mean accuracy over seeds in percent, and sample standard deviation of the test accuracy. "
        "The same for a document: trainings.tex (LaTeX, with booktabs) and trainings.md.",
    )
    return save_paper_table(table, folder / "trainings", "Made by bpt report")


def labels(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by what tells them apart: method, placement, images, and what else differs."""
    return told_apart(runs, TOLD)


def _prompts(
    section: Section, runs: dict[str, Run], folder: Path, lines: Mapping[str, Line]
) -> list[Path]:
    prompted = {label: run for label, run in runs.items() if run.recipe.prompted}
    files = section.figure(
        trace_figure(prompted, lines=lines),
        folder / "prompt_traces",
        "Norm of the prompts' gradient (mean of each epoch), their largest value, and the least of "
        "the blocks' effective ranks by energy, over the optimiser's steps.",
    )
    learned = {}
    for label, run in prompted.items():
        try:
            learned[label] = prompt_values(run)
        except BurstError as error:
            section.text(f"{label}: {error}")
    if learned:
        values = {label: np.concatenate([*one.values()]) for label, one in learned.items()}
        files += section.figure(
            values_figure(values, lines=lines),
            folder / "prompt_values",
            "Distribution of the learned values, as the model sees them (products multiplied out).",
        )
        files += section.figure(
            cosine_figure({label: one[min(one)] for label, one in learned.items()}),
            folder / "prompt_cosines",
            "Cosines between the prompts of the first prompted block: prompts that are alike do "
            "the same work twice.",
        )
    for label, run in prompted.items():
        if run.recipe.method == "gatevpt":
            _gates(section, label, run)
    return files


def _gates(section: Section, label: str, run: Run) -> None:
    state = run.trained_state()
    gates = [*state["gates.logits"].double().sigmoid().tolist(), None]
    temperatures = state["gates.temperatures"].tolist()
    section.table(
        ("block", "gate", "temperature"),
        [
            [cell(one) for one in row]
            for row in zip(range(len(gates)), gates, temperatures, strict=True)
        ],
        f"{label}: the share of each block's work on the prompt that is kept, at first "
        f"sigmoid({-run.recipe.gate_init:g}), and the temperature of its attention, at first 1",
    )


def diagnoses(
    runs: Mapping[str, Run], *, data: str | None = None, device: str = "cpu", measure: bool = True
) -> dict[str, PromptDiagnosis]:
    """By label: how large each run's prompts are, of which rank, and what they leave of the image.

    As their result says; else measured on validation images, where these can be read.
    """
    found = {}
    for label, run in runs.items():
        kept = (run.result or {}).get("prompt_diagnosis")
        if kept:
            found[label] = PromptDiagnosis.from_dict(kept)
        elif run.recipe.prompted and measure:
            with suppress(BurstError):
                found[label] = prompt_diagnosis(run, data=data, device=device)
    return found


def _diagnosis(
    section: Section, runs: Mapping[str, Run], found: Mapping[str, PromptDiagnosis]
) -> None:
    if not found:
        return
    ranks = {
        label: run.recipe.rank
        for label, run in runs.items()
        if run.recipe.method in USED_BY["rank"]
    }
    if sentences := diagnosis_sentences(found, ranks):
        section.items(sentences)
    section.frame(
        diagnosis_frame(found),
        "The prompts among the patches that they stand among, in front of each prompted block. The "
        "effective rank, by energy (squared singular values), is 1 if all prompts are multiples of "
        "one. The last columns say how much of "
        "the energy of what the head reads, and of the mean of the patches alone, differs between "
        "images.",
    )


def prompt_values(run: Run) -> dict[int, Floats]:
    """Block -> the (m, d) float64 tokens of its learned prompt.

    Args:
        run: of a method with prompts.

    Raises:
        CheckpointError: see `Run.load_model`.
    """
    model, _ = run.load_model()
    assert isinstance(model, PromptedViT)
    return {block: one.double().numpy() for block, one in model.prompt_values().items()}


def _confusion(
    section: Section, runs: dict[str, Run], folder: Path, data: str | None, device: str
) -> list[Path]:
    files: list[Path] = []
    for number, (label, run) in enumerate(runs.items()):
        try:
            counts = confusion_matrix(run, data=data, device=device)
        except BurstError as error:
            section.text(f"{label}: {error}")
            continue
        files += section.figure(
            confusion_figure(counts, run.classes, label),
            folder / f"confusion_{number}",
            f"{label}: the test images of each class, by the class that they were taken for.",
        )
        rows = [[cell(value) for value in row] for row in most_confused(counts, run.classes)]
        columns = ("true class", "taken for", "images", "of")
        section.table(columns, rows, f"{label}: most often confused")
    return files


def _published(section: Section, beside: pd.DataFrame) -> None:
    section.text(
        "Each run beside the number of the paper that is nearest to it. Colours show the size of "
        "the difference, the last column what else differs: a difference with much in that column "
        "says little."
    )
    show_differences(section, beside, "Percent, and points")
