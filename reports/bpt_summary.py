"""What trainings came to, in sentences: who is best, by how much, and how sure that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, isclose
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from bpt import Run
from bpt.engine import standard_error
from bpt.run_folder import PREDICTIONS
from bpt.search.options import searched_decay
from bpt.search.paired import LEVEL, paired_difference, right_answers
from reports.alike import conditions, differing, named_datasets, training_key
from reports.page import Section


def write_summary(section: Section, runs: Mapping[str, Run], table: pd.DataFrame) -> None:
    """The best training of each set of images beside plain prompts, every run, and what to mind.

    Args:
        section: where to write.
        runs: by label.
        table: of `compare`, with the labels.

    Raises:
        BurstError: see `right_answers`.
    """
    done = table.dropna(subset=["test_accuracy"]).sort_values(
        "test_accuracy", ascending=False, kind="stable"
    )
    if done.empty:
        section.text("No run has ended yet: there are curves, but no test accuracy.", strong=True)
        return
    ended = {label: runs[label] for label in done["label"]}
    parts = done.groupby("dataset", sort=False)
    for name, part in parts:
        trained = _by_training({label: runs[label] for label in part["label"]})
        where = f" of {name}" if parts.ngroups > 1 else ""
        best = [one for one in trained if one.accuracy == trained[0].accuracy]
        *others, last = (f"{one.label}{_mean_of(len(one.runs))}" for one in best)
        are = f"are {'; '.join(others)}; and" if others else "is"
        section.text(
            f"Best on the test split{where} {are} {last}: {trained[0].accuracy:.1f} % of "
            f"{_count(part['test_images'].iloc[0])}.",
            strong=True,
        )
        if sentence := _beside_plain(trained):
            section.text(sentence)
    section.items(_sentence(row) for row in done.to_dict("records"))
    if names := differing(conditions(run) for run in ended.values()):
        section.text(f"The runs differ in {', '.join(names)}: mind what is compared.")


def trainings_frame(runs: Mapping[str, Run]) -> pd.DataFrame:
    """A row a training, as a paper has it: runs that differ in the seed alone are one.

    Columns: training (the label, without a seed where there are several), dataset, model, prompt
    and trained (parameters), lr, weight_decay (of linear the head's), val and test (percent; means
    over seeds), sd (of test, over seeds; none for one), seeds. Best first; what has not ended, and
    folds of a search, are left out.

    Args:
        runs: by label.
    """
    trained = _by_training({label: run for label, run in runs.items() if run.result})
    datasets = named_datasets(one.first for one in trained)
    rows = []
    for one, dataset in zip(trained, datasets, strict=True):
        run, results = one.first, [run.result or {} for run in one.runs.values()]
        val = [score for found in results if (score := found.get("val_accuracy")) is not None]
        test = [found["test_accuracy"] for found in results]
        rows.append(
            {
                "training": one.label,
                "dataset": dataset,
                "model": run.recipe.model,
                "prompt": run.config["parameters"]["prompts"],
                "trained": run.config["parameters"].get("trained"),
                "lr": run.recipe.peak_lr,
                "weight_decay": searched_decay(run.recipe),
                "val": fmean(val) if len(val) == len(test) else None,
                "test": one.accuracy,
                "sd": stdev(test) if len(test) > 1 else None,
                "seeds": len(test),
            }
        )
    return pd.DataFrame(rows).astype(dict.fromkeys(("val", "sd") if rows else (), "float64"))


def _count(images: float) -> str:
    return f"{images:,.0f} images" if pd.notna(images) else "its images"


def _sentence(row: Mapping[Any, Any]) -> str:
    text = f"{row['label']}: {row['test_accuracy']:.1f} % of {_count(row['test_images'])} with "
    text += f"{row['prompts']:,} trained numbers in its prompts"
    rate = row["images_per_second"]
    return f"{text}, at {rate:,.0f} images a second." if pd.notna(rate) else f"{text}."


@dataclass(frozen=True, eq=False)
class _Training:
    """Runs that differ in the seed alone, by seed, and what they are called without it."""

    label: str
    runs: Mapping[int, Run]

    @property
    def accuracy(self) -> float:
        """The mean over seeds, in percent; without what rounding tells equal ones apart by."""
        found = [float((run.result or {})["test_accuracy"]) for run in self.runs.values()]
        return round(fmean(found), 9)

    @property
    def first(self) -> Run:
        return next(iter(self.runs.values()))


def _by_training(runs: Mapping[str, Run]) -> list[_Training]:
    """By what was trained, best first, of equals plain prompts last.

    Of runs that are the same to the seed, the first counts.
    """
    found: dict[str, dict[int, tuple[str, Run]]] = {}
    for label, run in runs.items():
        found.setdefault(training_key(run), {}).setdefault(run.recipe.seed, (label, run))
    trained = []
    for seeds in found.values():
        label, run = next(iter(seeds.values()))
        if len(seeds) > 1:
            label = label.replace(f", seed {run.recipe.seed}", "")
        trained.append(_Training(label, {seed: one for seed, (_, one) in sorted(seeds.items())}))
    return sorted(trained, key=lambda one: (-one.accuracy, one.first.recipe.method == "vpt"))


def _mean_of(seeds: int) -> str:
    return f" (the mean of {seeds} seeds)" if seeds > 1 else ""


def _beside_plain(trained: Sequence[_Training]) -> str:
    """How far the best leads the best plain prompts trained alike, or why that is not known.

    Nothing where there are no others.
    """
    best, plain = trained[0], [one for one in trained if one.first.recipe.method == "vpt"]
    if best in plain or not plain:
        return ""
    mine = conditions(best.first)
    apart = {one.label: differing([mine, conditions(one.first)]) for one in trained}
    if other := next((one for one in plain if not apart[one.label]), None):
        alike = sum(not names for names in apart.values())
        return _ahead(best, other, compared=alike - 1)
    nearest = min((one.label for one in plain), key=lambda label: len(apart[label]))
    return (
        f"How far that is from plain prompts (vpt) is not known: {nearest}, the nearest here, "
        f"differs in {', '.join(apart[nearest])} too."
    )


def _ahead(best: _Training, plain: _Training, *, compared: int) -> str:
    """`compared`: with the plain ones, of how many the best is the best."""
    seeds = sorted(best.runs.keys() & plain.runs.keys())
    pairs = [(best.runs[seed], plain.runs[seed]) for seed in seeds]
    if best.runs.keys() == plain.runs.keys():
        that_is = "That is"
    elif seeds:
        that_is = f"With what seeds both have ({', '.join(map(str, seeds))}) that is"
    else:
        pairs = [(best.first, plain.first)]
        that_is = f"With seed {min(best.runs)} against seed {min(plain.runs)} that is"
    points, how_sure = _difference(pairs, compared)
    more = f"{abs(points):.1f} points {'more' if points > 0 else 'less'} than"
    text = (
        f"{that_is} {'level with' if isclose(points, 0, abs_tol=1e-9) else more} "
        f"{plain.label}, the best plain prompts (vpt) here, {how_sure}."
    )
    if len(pairs) > 1:
        return text
    return (
        f"{text} One seed says little: the paper's authors saw 0.7 points between three seeds, so "
        "smaller gains need several."
    )


def _difference(pairs: Sequence[tuple[Run, Run]], compared: int) -> tuple[float, str]:
    """Points; the interval, paired by seed and test image, without answers a standard error."""
    sides = [list(side) for side in zip(*pairs, strict=True)]
    if all((run.folder / PREDICTIONS).is_file() for side in sides for run in side):
        found = paired_difference(*(right_answers(run.folder for run in side) for side in sides))
        verdict = ""
        if found.low <= 0 <= found.high:
            verdict = ", so that other images may not tell them apart"
        elif found.low > 0 and found.p_value * compared >= 1 - LEVEL:  # Bonferroni's correction
            verdict = (
                f"; but it is the best of {compared}, chosen on these images, so that others may "
                "not tell them apart"
            )
        seeds = f" and {found.seeds} seeds" if found.seeds > 1 else ""
        return found.difference, (
            f"with a 95 % interval of {found.low:+.1f} to {found.high:+.1f}, by the "
            f"{found.images:,} test images{seeds}{verdict}"
        )
    best, plain = (fmean((run.result or {})["test_accuracy"] for run in side) for side in sides)
    count = (pairs[0][0].result or {}).get("test_images")
    if not count:
        return best - plain, "of which nobody knows how sure it is"
    error = hypot(standard_error(best, count), standard_error(plain, count))
    return best - plain, f"with a standard error of {error:.1f}, by the {count:,} test images"
