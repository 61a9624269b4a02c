"""What differs between surveys as one page: words first, then figures and every number."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from burst.files import make_folder, save_json, save_table
from burst.provenance import provenance
from burst.survey import Survey
from reports.comparison import (
    SurveyRun,
    beyond,
    comparable,
    compare_surveys,
    mismatches,
    read_otherwise,
    same_images,
)
from reports.comparison_figures import HEADLINES, difference_figure, step_figure
from reports.depth import whole_blocks
from reports.explorer import LABELS
from reports.page import Page, Section
from reports.style import QUANTITIES, quantity_style
from reports.words import SPOKEN, caveats

FEW = 3  # runs beside the first that are all spoken of
LEAD = (
    "Statistics of attention burstiness, block by block, of several surveys: two models, or "
    "checkpoints of one training. Every run is compared with the first.",
    "Intervals are 95 % intervals over what was read. That of a difference takes the two runs as "
    "independent: half-widths add in quadrature.",
)
EXACT = "Differences of the weights' product, which reads no input, are exact."
SAME_IMAGES = (
    "All runs read the same inputs in the same order, so the intervals of the differences are "
    "as a rule conservative: what an input does to all runs cancels, and more may differ than is "
    "said here."
)


def save_comparison(runs: Sequence[SurveyRun], out: str | os.PathLike[str]) -> list[Path]:
    """Write index.html with its figures, comparison.csv (`compare_surveys`) and run.json.

    Args:
        runs: what to compare; the first is what the others are compared with.
        out: the folder; made if missing.

    Returns:
        The files, the page first.

    Raises:
        EmptyResult: see `compare_surveys`.
        OutputError: the folder cannot be written.
    """
    table, folder = compare_surveys(runs), make_folder(out)
    spoken = table[table["run_b"].isin(_spoken_of(runs))]
    page = Page(f"Attention burstiness compared: {', '.join(run.label for run in runs)}", LEAD)
    _what_differs(page.section("What differs"), runs, table)
    files: list[Path] = []
    for quantity in (name for name in QUANTITIES if name in set(spoken["quantity"])):
        section = page.section(_capital(SPOKEN[quantity].removeprefix("the ")))
        files += _quantity(section, quantity, runs, spoken, folder)
    page.section("Explorer").explorer([_labelled(run) for run in runs])
    shown = whole_blocks(spoken)
    page.section("Every difference").frame(
        shown.drop(columns=["run_a", "head"]).assign(beyond=beyond(shown).map({True: "yes"})),
        "Click a heading to sort. The rest, heads too, is in comparison.csv.",
    )
    record = _record(runs)
    _how(page.section("How it was made"), runs, record)
    files.append(save_table(folder / "comparison.csv", table))
    files.append(save_json(folder / "run.json", record))
    return [page.save(folder / "index.html"), *files]


def comparison_words(runs: Sequence[SurveyRun], table: pd.DataFrame) -> dict[str, list[str]]:
    """For each run that is spoken of, what differs from the first one beyond its interval.

    The first sentence of each counts; those that follow name statistics and blocks. Of more than
    four runs only the last is spoken of.

    Args:
        runs: what is compared.
        table: from `compare_surveys`.
    """
    whole, spoken = whole_blocks(table), _spoken_of(runs)
    return {
        run.label: _sentences(runs[0], run, whole[whole["run_b"] == run.label])
        for run in runs
        if run.label in spoken
    }


def _spoken_of(runs: Sequence[SurveyRun]) -> list[str]:
    others = [run.label for run in runs[1:]]
    return others if len(others) <= FEW else others[-1:]


def _what_differs(section: Section, runs: Sequence[SurveyRun], table: pd.DataFrame) -> None:
    for label, sentences in comparison_words(runs, table).items():
        section.heading(f"{label} against {runs[0].label}")
        section.text(sentences[0], strong=True)
        section.items(sentences[1:])
    if len(runs) > FEW + 1:
        section.text("The runs between are in the figures and in comparison.csv.")
    if same_images(runs) and table["low"].notna().any():
        section.text(SAME_IMAGES)
    if names := read_otherwise(runs):
        section.text(
            f"Not all runs read the same ({', '.join(names)}): differences may be of that."
        )
    for caveat in caveats(*(run.survey for run in runs)):
        section.text(caveat)
    if lines := mismatches(runs):
        section.heading("What could not be compared")
        section.items(lines)


def _sentences(one: SurveyRun, two: SurveyRun, rows: pd.DataFrame) -> list[str]:
    known = rows[rows["low"].notna()]
    count, found = len(known), int(beyond(known).sum())
    if count:
        head = (
            f"{found} of {count} differences lie beyond their intervals; about "
            f"{max(1, round(0.05 * count))} would if nothing differed."
        )
    elif rows["value_a"].equals(rows["value_b"]):  # gaps too
        return [f"{two.label} and {one.label} have the same numbers.", *_details(rows)]
    elif (rows["quantity"] == "qk").all():
        return [EXACT, *_details(rows)]
    else:
        without = [run.label for run in (two, one) if not _has_intervals(run)]
        who = " and ".join(without) or "What both measured"
        verb = "have" if len(without) > 1 else "has"
        head = f"{who} {verb} no intervals, so only sizes can be told."
    if (rows["quantity"] == "qk").any():
        head += f" {EXACT}"
    return [head, *_details(rows)]


def _has_intervals(run: SurveyRun) -> bool:
    return bool(run.survey.table.filter(regex="_low$").notna().any(axis=None))


def _details(rows: pd.DataFrame) -> list[str]:
    differing: list[str] = []
    equal: dict[str, list[str]] = {"differs": [], "is told apart": []}
    for quantity in reversed(QUANTITIES):  # the response first: prompts meet it
        for statistic in HEADLINES:
            chosen = (rows["quantity"] == quantity) & (rows["statistic"] == statistic)
            part = rows[chosen].dropna(subset=["difference"])
            if part.empty:
                continue
            name = f"{LABELS.get(statistic, statistic.replace('_', ' '))} of {SPOKEN[quantity]}"
            exact = part["low"].isna().all()
            found = part[part["difference"] != 0] if exact else part[beyond(part)]
            if found.empty:
                equal["differs" if exact else "is told apart"].append(name)
            else:
                differing.append(_detail(name, part, found))
    return differing + [
        f"No block {how} in: {'; '.join(names)}." for how, names in equal.items() if names
    ]


def _detail(name: str, part: pd.DataFrame, found: pd.DataFrame) -> str:
    """Where a statistic is higher and lower, and where it differs most."""
    sides = {"higher": found[found["difference"] > 0], "lower": found[found["difference"] < 0]}
    where = [f"{side} in {_blocks(rows['block'])}" for side, rows in sides.items() if len(rows)]
    same = len(part) - len(found)
    if same:
        exact = part["low"].isna().all()
        where.append(f"{'equal' if exact else 'not told apart'} in {same}")
    most = found.iloc[int(found["difference"].abs().argmax())]
    text = (
        f"{_capital(name)}: {', '.join(where)}. Most in block {int(most['block'])}, "
        f"from {most['value_a']:.3g} to {most['value_b']:.3g}"
    )
    if math.isnan(most["low"]):
        return f"{text}."
    ends = " to ".join(f"{most[end]:.2g}".replace("inf", "∞") for end in ("low", "high"))
    return f"{text}, a difference of {ends}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _blocks(blocks: "pd.Series[int]") -> str:
    """Numbers in order, those that follow each other as a range."""
    parts: list[list[int]] = []
    for block in sorted(int(one) for one in blocks):
        if parts and block == parts[-1][-1] + 1:
            parts[-1].append(block)
        else:
            parts.append([block])
    texts = [f"{one[0]}-{one[-1]}" if len(one) > 2 else ", ".join(map(str, one)) for one in parts]
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(texts)}"


def _quantity(
    section: Section,
    quantity: str,
    runs: Sequence[SurveyRun],
    spoken: pd.DataFrame,
    folder: Path,
) -> list[Path]:
    drawn = [run for run in runs if run is runs[0] or comparable(runs[0], run, quantity)]
    along = "Against the step" if all(run.step is not None for run in drawn) else "Run by run"
    files = section.figure(
        step_figure(drawn, quantity=quantity),
        folder / f"steps_{quantity}",
        f"{along}, a line a block, coloured by depth. Bands are 95 % intervals, where known.",
    )
    return files + section.figure(
        difference_figure(spoken, quantity=quantity),
        folder / f"differences_{quantity}",
        f"Difference of {quantity_style(quantity).plain} from {runs[0].label}, block by block. "
        "Where a band leaves out the grey line the two differ beyond their interval.",
    )


def _labelled(run: SurveyRun) -> Survey:
    """The survey of whole blocks under the run's name: heads of many runs would take megabytes."""
    survey = run.survey
    whole = {key: hist for key, hist in survey.histograms.items() if key[1] == "all"}
    record = survey.record | {"model": run.label}
    return dataclasses.replace(survey, histograms=whole, record=record)


def _record(runs: Sequence[SurveyRun]) -> dict[str, Any]:
    return {
        **provenance(),
        "runs": [
            {"label": run.label, "step": run.step, "record": run.survey.record} for run in runs
        ],
        "same_images": same_images(runs),
        "not_compared": mismatches(runs),
    }


def _how(section: Section, runs: Sequence[SurveyRun], record: dict[str, Any]) -> None:
    for run in runs:
        survey = run.survey.record
        images = survey["images"] or {"count": 0, "source": "none"}
        seed = f", seed {images['seed']}" if "seed" in images else ""
        section.heading(run.label)
        lines = [
            f"Model: {survey['model']}, weights {survey['weights']}",
            f"Read: {images['count']} of {images['source']}{seed}",
            f"Convention: {survey['options']['convention']}, tokens: {survey['options']['tokens']}",
        ]
        section.items([*lines, f"Step: {run.step:g}"] if run.step is not None else lines)
    section.versions(record["versions"])
