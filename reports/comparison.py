"""Surveys beside each other: two models, or checkpoints of one training, and their differences."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from burst.errors import BurstError, CheckpointError, EmptyResult
from burst.survey import Survey
from reports.explorer import INDEX, without_intervals
from reports.names import readable

KEYS = ["block", "head", "quantity"]
COLUMNS = (
    *("run_a", "run_b", *KEYS, "statistic"),
    *("value_a", "value_b", "difference", "low", "high"),
)
FILE = "survey.npz"
_STEP = re.compile(r"(?:epoch|step|iter|iteration|checkpoint|ckpt)[-_=.]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class SurveyRun:
    """A survey that is compared.

    Attributes:
        label: what it is called; no two are the same.
        survey: what was measured.
        step: how far its training was; None where that is not known.
    """

    label: str
    survey: Survey
    step: float | None = None


def open_survey_runs(
    paths: Sequence[str | os.PathLike[str]], *, steps: Sequence[float] | None = None
) -> list[SurveyRun]:
    """Read the surveys of several runs.

    Without `steps` a run's is the number behind "epoch", "step", "iter", "checkpoint" or "ckpt" in
    its folder's name, else in its weight file's; unless all have one, and no two the same, none
    has.

    Args:
        paths: each a folder that `burst histogram --out` wrote, or a file of `Survey.save`.
        steps: of the runs, in their order.

    Raises:
        EmptyResult: fewer than two runs.
        CheckpointError: no survey there, or a damaged one.
        BurstError: as many steps as runs were expected, finite, no two the same.
    """
    if len(paths) < 2:
        raise EmptyResult(f"{len(paths)} run given; a comparison needs at least two")
    surveys = [Survey.load(_file(Path(path))) for path in paths]
    found: Sequence[float | None] = steps if steps is not None else _steps(paths, surveys)
    numbers = set(filter(isfinite, steps or ()))
    if steps is not None and not len(numbers) == len(steps) == len(paths):
        given = ", ".join(f"{step:g}" for step in steps)
        raise BurstError(f"steps {given} for {len(paths)} runs; give each a number of its own")
    labels = _labels([Path(path) for path in paths])
    return [SurveyRun(*one) for one in zip(labels, surveys, found, strict=True)]


def compare_surveys(runs: Sequence[SurveyRun]) -> pd.DataFrame:
    """Every statistic of every run but the first, less the first one's.

    Only what has the same meaning in both is compared: blocks, heads and quantities that both
    have, the weights' products only under one convention, what is of tokens only for one kind of
    tokens; see `mismatches`.

    An interval of a difference a - b takes the two as independent: to each side the distances of
    a's and b's ends add in quadrature. For runs that read the same images it is wider than need
    be. NaN where one of the two has none.

    Returns:
        One row a pair, block, head, quantity and statistic, with the columns `COLUMNS`.

    Raises:
        EmptyResult: fewer than two runs, or a run has nothing in common with the first.

    Source: Zou and Donner 2008, doi 10.1002/sim.3095 (independent intervals, not symmetric ones
    too).
    """
    if len(runs) < 2:
        raise EmptyResult(f"{len(runs)} run given; a comparison needs at least two")
    return pd.concat([_pair(runs[0], run) for run in runs[1:]], ignore_index=True)


def mismatches(runs: Sequence[SurveyRun]) -> list[str]:
    """What of the runs could not be compared with the first, in sentences."""
    return [line for run in runs[1:] for line in _mismatch(runs[0], run)]


def same_images(runs: Sequence[SurveyRun]) -> bool:
    """Whether the records say that all read the same images in the same order."""
    first = runs[0].survey.record["images"]
    return bool(first) and all(run.survey.record["images"] == first for run in runs)


def read_otherwise(runs: Sequence[SurveyRun]) -> list[str]:
    """In what the inputs of the runs differ that read any: files, count, seed, preprocessing."""
    first, *others = [one for run in runs if (one := run.survey.record["images"])] or [{}]
    names = [name for name in first if name not in ("source", "bad")]  # files may lie elsewhere
    differ = [name for name in names if any(one.get(name) != first[name] for one in others)]
    return ["files" if name == "fingerprint" else name for name in differ]


def comparable(one: SurveyRun, two: SurveyRun, quantity: str) -> bool:
    """Whether a quantity was measured in both runs, and is defined alike."""
    tables = (run.survey.table for run in (one, two))
    return quantity not in _changed(one, two) and all(
        (table["quantity"] == quantity).any() for table in tables
    )


def beyond(table: pd.DataFrame) -> "pd.Series[bool]":
    """Which differences have an interval that leaves 0 out."""
    return (table["low"] > 0) | (table["high"] < 0)


def _file(path: Path) -> Path:
    if path.is_dir():
        if not (path / FILE).is_file():
            raise CheckpointError(
                f"no {FILE} in {path}; expected a folder that `burst histogram --out` wrote"
            )
        return path / FILE
    return path


def _labels(paths: Sequence[Path]) -> list[str]:
    """Names, with as many folders before them as tell the runs apart; a number behind equal ones.

    A whole path would leave a figure no room.
    """
    names = [path.parent if path.name == FILE else path for path in paths]
    parts = [
        (path.resolve() if path.is_dir() else path.with_suffix("").absolute()).parts
        for path in names
    ]
    tails = ([one[-length:] for one in parts] for length in range(1, max(map(len, parts)) + 1))
    shortest = next(tail for tail in tails if len(set(tail)) == len(set(parts)))
    labels = [readable("/".join(tail)) for tail in shortest]
    seen: Counter[str] = Counter()
    for i, label in enumerate(labels):
        seen[label] += 1
        if seen[label] > 1:
            labels[i] = f"{label} ({seen[label]})"
    return labels


def _steps(
    paths: Sequence[str | os.PathLike[str]], surveys: Sequence[Survey]
) -> list[float | None]:
    folders = [path.parent if (path := Path(one)).name == FILE else path for one in paths]
    files = [Path(str(survey.record.get("weights") or "")) for survey in surveys]
    for names in (folders, files):
        matches = [_STEP.search(name.name) for name in names]
        steps = [float(match[1]) for match in matches if match]
        if len(set(steps)) == len(paths):
            return list(steps)
    return [None] * len(paths)


def _pair(one: SurveyRun, two: SurveyRun) -> pd.DataFrame:
    tables = [_comparable(run.survey.table, one, two) for run in (one, two)]
    shared = tables[0].index.intersection(tables[1].index)
    if shared.empty:
        reasons = "; ".join(_mismatch(one, two)) or "neither blocks nor quantities"
        raise EmptyResult(f"{two.label} and {one.label} have nothing in common: {reasons}")
    a, b = (table.loc[shared] for table in tables)
    parts = [_differences(a, b, name) for name in _statistics(a, b)]
    table = pd.concat(parts, ignore_index=True)
    order = np.argsort(np.tile(np.arange(len(shared)), len(parts)), kind="stable")
    return table.iloc[order].assign(run_a=one.label, run_b=two.label)[list(COLUMNS)]


def _differences(a: pd.DataFrame, b: pd.DataFrame, statistic: str) -> pd.DataFrame:
    (value_a, low_a, high_a), (value_b, low_b, high_b) = (
        [_column(table, f"{statistic}{end}") for end in ("", "_low", "_high")] for table in (a, b)
    )
    difference = value_b - value_a
    return pd.DataFrame(
        {
            **{name: a.index.get_level_values(name) for name in KEYS},
            "statistic": statistic,
            "value_a": value_a,
            "value_b": value_b,
            "difference": difference,
            "low": difference - np.hypot(value_b - low_b, high_a - value_a),
            "high": difference + np.hypot(high_b - value_b, value_a - low_a),
        }
    )


def _column(table: pd.DataFrame, name: str) -> Any:  # noqa: ANN401  an array of float64
    if name not in table:
        return np.full(len(table), np.nan)
    return table[name].to_numpy(np.float64)


def _statistics(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """Numbers that both have; how many entries there are tells of the images, not of the model."""
    leave_out = {*INDEX, "count"}
    numbers = without_intervals(a).select_dtypes("number").columns
    return [str(name) for name in numbers if name in b and name not in leave_out]


def _comparable(table: pd.DataFrame, one: SurveyRun, two: SurveyRun) -> pd.DataFrame:
    """The rows, by block, head and quantity, that mean the same in both runs."""
    kept = table[~table["quantity"].isin(_changed(one, two))]
    kept = kept.astype({"head": str})
    return kept.set_index(KEYS)


def _changed(one: SurveyRun, two: SurveyRun) -> set[str]:
    """Quantities that are defined differently in both runs."""
    first, second = (run.survey.record["options"] for run in (one, two))
    changed: set[str] = set()
    if first["convention"] != second["convention"]:
        changed |= {"qk", "qkx"}
    if first["tokens"] != second["tokens"]:
        changed |= {"x", "qkx", "logits"}  # prefix tokens that are left out do not ask
    return changed


def _mismatch(one: SurveyRun, two: SurveyRun) -> list[str]:
    first, second = (run.survey.record["options"] for run in (one, two))
    lines = []
    for option, what in {"convention": "qk and qkx", "tokens": "x, qkx and logits"}.items():
        if first[option] != second[option]:
            lines.append(
                f"{option} is {second[option]!r} in {two.label} and {first[option]!r} in "
                f"{one.label}, so {what} are not compared"
            )
    for column in KEYS:
        lines += _alone(column, one, two) + _alone(column, two, one)
    return lines


def _alone(column: str, one: SurveyRun, two: SurveyRun) -> list[str]:
    mine, theirs = (list(dict.fromkeys(run.survey.table[column].astype(str))) for run in (one, two))
    alone = [name for name in mine if name not in theirs]
    if not alone:
        return []
    many = "" if len(alone) == 1 else "s" if column != "quantity" else ""
    noun = "quantities" if column == "quantity" and len(alone) > 1 else f"{column}{many}"
    return [f"only {one.label} has {noun} {', '.join(alone)}"]
