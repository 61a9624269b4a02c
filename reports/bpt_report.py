"""Several trainings as one page: curves, prompts, what is confused, and the paper's numbers."""

import dataclasses
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bpt import PromptDiagnosis, PromptedViT, Run, confusion_matrix, prompt_diagnosis
from burst.backbone_spec import known_backbones
from burst.errors import BurstError, EmptyResult
from burst.files import make_folder, write_atomically
from burst.provenance import provenance
from reports.page import Cell, Page, Section, cell
from reports.prompts import (
    confusion_figure,
    cosine_figure,
    diagnosis_frame,
    diagnosis_sentences,
    most_confused,
    trace_figure,
    values_figure,
)
from reports.published import BACKBONES, METHODS, published, settings
from reports.training import compare, comparison_figure

Floats = NDArray[np.float64]
LEAD = (
    "A prompt is a few tokens that are put in front of an image's patches and trained, together "
    "with a linear head, while the backbone stays as it was. Plain prompts (vpt) are the baseline; "
    "spt starts them from real tokens; bpt whitens them, or learns them as a product of two "
    "matrices, because what they meet in attention is bursty (arXiv 2506.22908).",
)
SHADES = ("#f4b6a6", "#f9dccf", "#ffffff", "#d3e6f3", "#a9cfe8")
WEIGHTS = {"method": 64, "pretraining": 16, "dataset": 8, "backbone": 2}  # else 1
SETTING = ("dataset", "model", "image_size")  # which two runs share that are compared
STEPS = (-5.0, -1.0, 1.0, 5.0)  # points, between the shades


def save_bpt_report(
    runs: Sequence[Run],
    out: str | os.PathLike[str],
    *,
    data: str | None = None,
    device: str = "cpu",
    confusion: bool = True,
) -> list[Path]:
    """Write index.html, its figures as PNG and PDF, runs.csv and published.csv.

    Args:
        runs: from `open_run`.
        out: the folder; made if missing.
        data: where the runs' dataset lies, if it was moved.
        device: to evaluate on: "auto", "cpu", "cuda", ...
        confusion: read images again: those of the test for confusion matrices, and for runs of
            earlier versions those of the validation, for what their prompts do.

    Returns:
        The files, the page first.

    Raises:
        EmptyResult: no run, or one that has no epoch behind it.
        CheckpointError: see `Run.load_model`.
        OutputError: the folder cannot be written.
    """
    if not runs:
        raise EmptyResult("no run to report")
    for run in runs:
        if not run.metrics:
            raise EmptyResult(f"{run.folder} has no epoch behind it yet; go on with --resume")
    folder, named = make_folder(out), labels(runs)
    table = compare(runs)
    table.insert(0, "label", list(named))
    beside = beside_published(named)
    page = Page("Prompt tuning, compared", LEAD)
    _summary(page.section("What was found"), table)
    section = page.section("Curves")
    caption = (
        "Accuracy and training loss. On the validation split, where the protocol has one; on the "
        "test split with protocol authors, on the training images with protocol last."
    )
    files = section.figure(comparison_figure(runs, list(named)), folder / "curves", caption)
    if any(run.recipe.prompted for run in runs):
        section = page.section("Prompts")
        files += _prompts(section, named, folder)
        _diagnosis(section, diagnoses(named, data=data, device=device, measure=confusion))
    if confusion:
        files += _confusion(page.section("What is confused"), named, folder, data, device)
    _published(page.section("Beside the published numbers"), beside)
    page.section("Every number").frame(table, "Click a heading to sort. Accuracies in percent.")
    _how(page.section("How it was made"), named)
    for name, frame in (("runs.csv", table), ("published.csv", beside)):
        with write_atomically(folder / name) as path:
            frame.to_csv(path, index=False)
        files.append(folder / name)
    return [page.save(folder / "index.html"), *files]


def labels(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by what tells them apart: method and placement, and what else differs."""
    parts = []
    for run in runs:
        recipe = run.recipe
        part = {"method": recipe.method, "placement": recipe.placement if recipe.prompted else ""}
        part |= {"model": recipe.model, "dataset": run.config["dataset"]["name"]}
        part["image_size"] = f"{recipe.image_size} pixels" if recipe.image_size else ""
        part |= {name: f"{name} {getattr(recipe, name)}" for name in ("lr", "seed")}
        for name in ("prompt_scale", "null_gain", "floor"):
            part[name] = f"{name} {getattr(recipe, name)}" if recipe.needs_whitening else ""
        part["folder"] = run.folder.name
        parts.append(part)
    return dict(zip(told_apart(parts), runs, strict=True))


def told_apart(parts: Sequence[Mapping[str, str]]) -> list[str]:
    """A text a run: method and placement, and in order what more is needed until all differ.

    Those that nothing tells apart are numbered.
    """
    used = ["method", "placement"]
    for name in parts[0]:
        told = {tuple(part[one] for one in used) for part in parts}
        if len(told) == len(parts):
            break
        if name not in used and len({part[name] for part in parts}) > 1:
            used.append(name)
    texts: list[str] = []
    for part in parts:
        text = ", ".join(filter(None, (part[one] for one in used)))
        texts.append(text if text not in texts else f"{text} ({len(texts) + 1})")
    return texts


def beside_published(runs: dict[str, Run]) -> pd.DataFrame:
    """Each run beside the paper's number that is nearest to it.

    Columns: label, ours, published, difference (points), table, row (what the number is of), and
    differs (dataset, backbone, placement, epochs, image_size, protocol). Both accuracies are in
    percent.

    Source: arXiv 2506.22908, see `published`.
    """
    table = published()
    accuracies = table[table["metric"] == "top1"].drop_duplicates()
    known = [
        row
        for row in accuracies.to_dict("records")
        if row["method"] in METHODS and (row["pretraining"], row["backbone"]) in BACKBONES
    ]
    return pd.DataFrame([_nearest(label, run, known) for label, run in runs.items()])


def _nearest(label: str, run: Run, rows: list[dict[Any, Any]]) -> dict[str, Any]:
    recipe = run.recipe
    kinds = {one.name: one.pretraining for one in known_backbones()}
    placement = "shallow" if not recipe.prompted else recipe.placement

    def differences(row: dict[Any, Any]) -> list[str]:
        method, theirs = METHODS[row["method"]]
        asked = settings(row["setting"])
        model = BACKBONES[row["pretraining"], row["backbone"]]
        expected = {
            "method": (method, recipe.method),
            "pretraining": (kinds[model], kinds.get(recipe.model)),
            "dataset": (row["dataset"], run.config["dataset"]["name"]),
            "placement": (asked.get("placement", theirs), placement),
            "backbone": (model, recipe.model),
            "epochs": (asked.get("epochs", 100), recipe.epochs),
            "train_fraction": (asked.get("train_fraction", 1.0), recipe.train_fraction or 1.0),
            "num_prompts": (asked.get("num_prompts", recipe.num_prompts), recipe.num_prompts),
            "rank": (asked.get("rank", recipe.rank), recipe.rank),
            "image_size": (224, recipe.image_size or 224),
            "protocol": ("authors", recipe.protocol),
        }
        return [name for name, (one, other) in expected.items() if one != other]

    def distance(row: dict[Any, Any]) -> int:
        theirs = settings(row["setting"]).get("placement", METHODS[row["method"]][1])
        other_kind = (theirs == "shallow") != (placement == "shallow")
        return 4 * other_kind + sum(WEIGHTS.get(name, 1) for name in differences(row))

    best = min(rows, key=distance)
    differs = differences(best)
    ours = (run.result or {}).get("test_accuracy", np.nan)
    words = (best["method"], best["pretraining"], best["backbone"], best["dataset"])
    setting = f" ({best['setting']})" if best["setting"] else ""
    comparable = "method" not in differs
    return {
        "label": label,
        "ours": ours,
        "published": best["value"] if comparable else np.nan,
        "difference": ours - best["value"] if comparable else np.nan,
        "table": best["table"] if comparable else "",
        "row": " ".join(words) + setting if comparable else "none of this method",
        "differs": ", ".join(differs),
    }


def _summary(section: Section, table: pd.DataFrame) -> None:
    done = table.dropna(subset=["test_accuracy"]).sort_values("test_accuracy", ascending=False)
    if done.empty:
        section.text("No run has ended yet: there are curves, but no test accuracy.", strong=True)
        return
    best = done.iloc[0]
    section.text(
        f"Best on the test split is {best['label']}: {best['test_accuracy']:.1f} %.", strong=True
    )
    sentences = [
        f"{row['label']}: {row['test_accuracy']:.1f} % with {row['prompts']:,} trained numbers in "
        f"its prompts, at {row['images_per_second']:.0f} images a second."
        for row in done.to_dict("records")
    ]
    section.items(sentences)
    if (done["dataset"].nunique(), done["model"].nunique()) != (1, 1):
        section.text("The runs are of several datasets or backbones: mind what is compared.")
    setting = [str(best[name]) for name in SETTING]  # of no image_size, too
    plain = [
        row["test_accuracy"]
        for row in done.to_dict("records")
        if row["method"] == "vpt" and [str(row[name]) for name in SETTING] == setting
    ]
    if plain and best["method"] != "vpt":
        gain = best["test_accuracy"] - max(plain)
        section.text(
            f"That is {gain:.1f} points more than the best plain prompts (vpt) here. The paper's "
            "authors saw 0.7 points between three seeds: smaller gains need several."
        )


def _prompts(section: Section, runs: dict[str, Run], folder: Path) -> list[Path]:
    prompted = {label: run for label, run in runs.items() if run.recipe.prompted}
    files = section.figure(
        trace_figure(prompted),
        folder / "prompt_traces",
        "Norm of the prompts' gradient (mean of each epoch), their largest value, and the least of "
        "the blocks' effective ranks, over the optimiser's steps.",
    )
    learned = {label: prompt_values(run) for label, run in prompted.items()}
    files += section.figure(
        values_figure({label: np.concatenate([*one.values()]) for label, one in learned.items()}),
        folder / "prompt_values",
        "Distribution of the learned values, as the model sees them (products multiplied out).",
    )
    files += section.figure(
        cosine_figure({label: one[min(one)] for label, one in learned.items()}),
        folder / "prompt_cosines",
        "Cosines between the prompts of the first prompted block: prompts that are alike do the "
        "same work twice.",
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


def _diagnosis(section: Section, found: Mapping[str, PromptDiagnosis]) -> None:
    if not found:
        return
    if sentences := diagnosis_sentences(found):
        section.items(sentences)
    section.frame(
        diagnosis_frame(found),
        "The prompts among the patches that they stand among, in front of each prompted block. The "
        "effective rank is 1 if all prompts are multiples of one. The last columns say how much of "
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
    rows = []
    for line in beside.to_dict("records"):
        row = [cell(value) for value in line.values()]
        row[3] = Cell(row[3].text, row[3].number, shade(line["difference"]))
        rows.append(row)
    section.table([str(name) for name in beside.columns], rows, "Percent, and points")


def shade(difference: float) -> str:
    """A colour for a difference in points: warm below, cool above, white around 0."""
    if not np.isfinite(difference):
        return ""
    return SHADES[int(np.searchsorted(STEPS, difference))]


def _how(section: Section, runs: dict[str, Run]) -> None:
    made = provenance()
    section.code(shlex.join(made["command"]))
    for label, run in runs.items():
        section.heading(label)
        recipe, backbone = run.recipe, run.config["backbone"]
        defaults = {one.name: one.default for one in dataclasses.fields(recipe)}
        chosen = {
            name: value
            for name, value in recipe.to_dict().items()
            if name != "origins" and value != defaults[name]
        }
        lines = [
            f"Command: {shlex.join(run.config['command'])}",
            f"Hyper-parameters: {json.dumps(chosen)}",
            f"Weights: {backbone['weights_source']}, SHA-256 {backbone['weights_sha256']}",
            f"Dataset: {run.config['dataset']['source']}, digest {run.config['dataset']['digest']}",
            f"Parameters: {run.config['parameters']}",
        ]
        section.items([*lines, *backbone.get("notes", []), *recipe.provenance()])
    section.versions(made["versions"])
