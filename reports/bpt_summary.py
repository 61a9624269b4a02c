"""What trainings came to, in sentences: who is best, by how much, and how sure that is."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

import pandas as pd

from bpt import Run
from bpt.run_folder import PREDICTIONS
from bpt.search.paired import paired_difference, right_answers
from reports.alike import conditions, differing
from reports.page import Section


def write_summary(section: Section, runs: Mapping[str, Run], table: pd.DataFrame) -> None:
    """The best run of each set of images beside plain prompts, every run, and what to mind.

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
        best = part.iloc[0]
        where = f" of {name}" if parts.ngroups > 1 else ""
        section.text(
            f"Best on the test split{where} is {best['label']}: {best['test_accuracy']:.1f} % of "
            f"{_count(best['test_images'])}.",
            strong=True,
        )
        if sentence := _beside_plain(best["label"], ended):
            section.text(sentence)
    section.items(_sentence(row) for row in done.to_dict("records"))
    if names := differing(conditions(run) for run in ended.values()):
        section.text(f"The runs differ in {', '.join(names)}: mind what is compared.")


def _count(images: float) -> str:
    return f"{images:,.0f} images" if pd.notna(images) else "its images"


def _sentence(row: Mapping[Any, Any]) -> str:
    text = f"{row['label']}: {row['test_accuracy']:.1f} % of {_count(row['test_images'])} with "
    text += f"{row['prompts']:,} trained numbers in its prompts"
    rate = row["images_per_second"]
    return f"{text}, at {rate:,.0f} images a second." if pd.notna(rate) else f"{text}."


def _beside_plain(best: str, runs: Mapping[str, Run]) -> str:
    """How far it is ahead of the best plain prompts that were trained alike; or why nobody knows.

    Nothing where there are no others. The runs come best first.
    """
    plain = {label: run for label, run in runs.items() if run.recipe.method == "vpt"}
    if best in plain or not plain:
        return ""
    mine = conditions(runs[best])
    apart = {label: differing([mine, conditions(run)]) for label, run in plain.items()}
    alike = [label for label, names in apart.items() if not names]
    if not alike:
        nearest = min(apart, key=lambda label: len(apart[label]))
        return (
            f"How far that is from plain prompts (vpt) is not known: {nearest}, the nearest here, "
            f"differs in {', '.join(apart[nearest])} too."
        )
    return _ahead(runs[best], alike[0], runs[alike[0]])


def _ahead(best: Run, label: str, plain: Run) -> str:
    first, second = best.result or {}, plain.result or {}
    points = first["test_accuracy"] - second["test_accuracy"]
    return (
        f"That is {points:.1f} points more than {label}, the best plain prompts (vpt) here, "
        f"{_how_sure(best, plain)}. They are of one seed each: the paper's authors saw 0.7 points "
        "between three seeds, so smaller gains need several."
    )


def _how_sure(best: Run, plain: Run) -> str:
    """The interval, paired by test image; without the answers at least a standard error."""
    if all((run.folder / PREDICTIONS).is_file() for run in (best, plain)):
        found = paired_difference(*(right_answers([run.folder]) for run in (best, plain)))
        verdict = "" if found.low > 0 else ", so that other images may not tell them apart"
        return (
            f"with a 95 % interval of {found.low:+.1f} to {found.high:+.1f}, by the "
            f"{found.images:,} test images{verdict}"
        )
    shares = [(run.result or {})["test_accuracy"] / 100 for run in (best, plain)]
    count = (best.result or {}).get("test_images")
    if not count:
        return "of which nobody knows how sure it is"
    error = 100 * sqrt(sum(share * (1 - share) for share in shares) / count)
    return f"with a standard error of {error:.1f}, by the {count:,} test images"
