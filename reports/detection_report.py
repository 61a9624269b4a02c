"""Trained detectors as one page: APs, classes, who finds what, pictures, the paper's numbers."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from burst.files import make_folder, save_table
from reports.alike import differing, told_apart
from reports.detection_figures import Opener, side_by_side_figure
from reports.detection_scores import (
    KINDS,
    OF_TRAINING,
    DetectorRun,
    beside_published_detectors,
    compare_classes,
    compare_detectors,
    losses_figure,
    published_detectors,
    scores_figure,
)
from reports.detections import (
    SCORE,
    Choice,
    Matching,
    Record,
    choose_scenes,
    match_detections,
    who_finds_what,
)
from reports.page import Page, Section
from reports.published import METRICS
from reports.run_page import check_begun, how_made, show_differences
from reports.style import model_lines

Runs = Mapping[str, DetectorRun]
LEAD = (
    "A detector on a frozen Vision Transformer: prompts, a feature pyramid and the heads of Mask "
    "R-CNN are trained, the backbone (but for the method full) stays as it was. The heads are far "
    "larger than the prompts, so what prompts add is seen only beside a run without them (linear).",
)
ENOUGH_IMAGES = 1000
TOLD = ("detector", "model", "schedule", "image_size", "lr", "seed")
ALIKE = ("detector", "dataset", "model", "schedule", "lr", *OF_TRAINING)


def save_detection_report(
    runs: Sequence[DetectorRun],
    out: str | os.PathLike[str],
    *,
    truth: Record,
    opener: Opener,
    score: float = SCORE,
    each: int = 3,
) -> list[Path]:
    """Write index.html, its figures as PNG and PDF, runs, classes, found and published as CSV.

    Who finds what, and the pictures, are of the first and the last run that has ended; of one run
    beside the ground truth.

    Args:
        runs: to compare.
        out: the folder; made if missing.
        truth: COCO's ground truth of the images that the runs were evaluated on.
        opener: gives an image by its id.
        score: the least that a detection is counted with, in 0..1, where finds are counted.
        each: pictures a side, see `choose_scenes`.

    Returns:
        The files, the page first.

    Raises:
        EmptyResult: no run, or one that has no epoch behind it.
        ImageError: a detection of an image that the ground truth has not.
        BurstError: pycocotools is not installed.
        OutputError: the folder cannot be written.
    """
    check_begun(runs)
    folder, named = make_folder(out), detector_labels(runs)
    ended = {label: run for label, run in named.items() if run.result is not None}
    table, beside = compare_detectors(named), beside_published_detectors(named)
    frames = {"runs": table, "published": beside}
    page = Page("Detectors, compared", LEAD)
    _summary(page.section("What was found"), table)
    caption = "Training loss, its parts, and AP on the validation images, over the epochs."
    files = page.section("Curves").figure(losses_figure(named), folder / "losses", caption)
    if ended:
        files += _scores(page.section("Average precision"), named, ended, folder)
        frames["classes"] = compare_classes(ended, truth)
        _classes(page.section("Class by class"), frames["classes"])
        matching = match_detections(truth, _first_and_last(ended), score=score)
        frames["found"] = who_finds_what(matching).reset_index()
        choice = choose_scenes(matching, each=each)
        _found(page.section("Who finds what"), matching, frames["found"])
        files += _pictures(page.section("In pictures"), matching, choice, opener, folder)
    _published(page.section("Beside the published numbers"), beside)
    page.section("Every number").frame(table, "Click a heading to sort. APs in percent.")
    how_made(page.section("How it was made"), named)
    files += [save_table(folder / f"{name}.csv", frame) for name, frame in frames.items()]
    return [page.save(folder / "index.html"), *files]


def detector_labels(runs: Sequence[DetectorRun]) -> dict[str, DetectorRun]:
    """The runs by what tells them apart: method, placement, images, and what else differs."""
    return told_apart(runs, TOLD)


def findings_of_detectors(table: pd.DataFrame) -> list[str]:
    """What the rows of `compare_detectors` say: who is ahead and by how much, and what to mind.

    The first sentence is the headline.
    """
    done = table.dropna(subset=["box_AP"]).sort_values("box_AP", ascending=False, kind="stable")
    if done.empty:
        return ["No run has ended yet: there are curves, but no average precision."]
    sentences = [_ahead(done, kind) for kind in KINDS if done[f"{kind}_AP"].notna().any()]
    for row in done.to_dict("records"):
        share = 100 * row["prompts"] / row["trained"]
        sentences.append(
            f"{row['label']}: box AP {row['box_AP']:.1f}, mask AP {_score(row['mask_AP'])}; "
            f"{row['prompts']:,} trained numbers in prompts ({share:.2g} %), {row['heads']:,} in "
            "heads."
        )
    return [*sentences, *_of_no_prompts(done), *_cautions(done)]


def _ahead(done: pd.DataFrame, kind: str) -> str:
    column = f"{kind}_AP"
    order = done.dropna(subset=[column]).sort_values(column, ascending=False, kind="stable")
    labels, values = list(order["label"]), list(order[column])
    if len(order) == 1:
        return f"{labels[0]} has {kind} AP {values[0]:.1f}."
    if (points := values[0] - values[1]) < 0.05:
        return f"{labels[0]} and {labels[1]} are even in {kind} AP: {values[0]:.1f}."
    return (
        f"{labels[0]} is ahead in {kind} AP with {values[0]:.1f}, "
        f"{points:.1f} points before {labels[1]}."
    )


def _score(value: float) -> str:
    return f"{value:.1f}" if np.isfinite(value) else "not measured"


def _of_no_prompts(done: pd.DataFrame) -> list[str]:
    without = done[done["method"] == "linear"]
    prompted = done[done["prompts"] > 0]
    if without.empty:
        return [
            "No run is without prompts: how much the heads reach alone is not known here. "
            "Train one with --method linear."
        ]
    sentences = []
    for base in without.to_dict("records"):
        gains = [
            f"{row['label']} {row['box_AP'] - base['box_AP']:+.1f}"
            for row in prompted.to_dict("records")
            if not differing([base, row], ALIKE)
        ]
        added = f"prompts add to its box AP, in points: {', '.join(gains)}" if gains else ""
        sentences.append(
            f"{base['label']} is the run without prompts; "
            + (added or "no run with prompts has all else as it has, to say what they add")
            + "."
        )
    return sentences


def _cautions(done: pd.DataFrame) -> list[str]:
    sentences = []
    if (few := int(done["images"].min())) < ENOUGH_IMAGES:
        sentences.append(
            f"Only {few:,} images were evaluated: another sample of as many would move every AP "
            "by points, those by size and by class most."
        )
    settings = [*ALIKE, "method", "placement"]
    if done.groupby(settings)["seed"].nunique().max() < 2:
        sentences.append(
            "One seed a setting: how much of a difference is chance is not known; small ones need "
            "several seeds."
        )
    if names := differing(done.to_dict("records"), ALIKE):
        sentences.append(f"The runs differ in {', '.join(names)}: mind what is compared.")
    return sentences


def _summary(section: Section, table: pd.DataFrame) -> None:
    first, *rest = findings_of_detectors(table)
    section.text(first, strong=True)
    section.items(rest)
    for label in table.loc[table["box_AP"].isna(), "label"]:
        section.text(f"{label} has no result yet.")


def _scores(section: Section, named: Runs, ended: Runs, folder: Path) -> list[Path]:
    first = next(iter(ended.values())).result or {}
    caption = (
        "AP: mean over IoU 0.50 to 0.95; AP50, AP75: at one IoU; APs, APm, APl: of objects below "
        "32², below 96², and above, in square pixels, of a mask by its own area. "
        f"{first['images']:,} images, by {first['evaluator']}."
    )
    figure = scores_figure(ended, lines=model_lines(named))  # as the curves have it
    return section.figure(figure, folder / "scores", caption)


def _classes(section: Section, table: pd.DataFrame) -> None:
    order = "Where the runs differ most comes first" if "box difference" in table else "Best first"
    show_differences(section, table, f"{order}. Percent, and points")


def _first_and_last(ended: Runs) -> dict[str, Sequence[Record]]:
    labels = list(ended)
    return {label: ended[label].detections() for label in dict.fromkeys((labels[0], labels[-1]))}


def _found(section: Section, matching: Matching, table: pd.DataFrame) -> None:
    objects = sum(len(scene.objects) for scene in matching.scenes)
    for label in matching.labels:
        found = sum(len(scene.answers[label].found) for scene in matching.scenes)
        false = sum(len(scene.answers[label].false) for scene in matching.scenes)
        section.text(
            f"{label} finds {found:,} of {objects:,} objects, with {false:,} false positives."
        )
    if len(matching.labels) > 1:
        section.text(_sign_test(matching))
    caption = f"Objects by size ({matching.words}); detections on crowds count neither way"
    section.frame(table, caption)


def _sign_test(matching: Matching) -> str:
    leads = [scene.lead for scene in matching.scenes]
    ahead, behind = sum(lead > 0 for lead in leads), sum(lead < 0 for lead in leads)
    first, second = matching.labels
    text = f"{second} finds more objects in {ahead:,} images, {first} in {behind:,}."
    if not ahead + behind:
        return text
    from scipy.stats import binomtest

    chance = binomtest(ahead, ahead + behind).pvalue
    return (
        f"{text} Were it a toss-up in each of them, a split as uneven would come with probability "
        f"{chance:.2g} (sign test)."
    )


def _pictures(
    section: Section, matching: Matching, choice: Choice, opener: Opener, folder: Path
) -> list[Path]:
    if not choice.scenes:
        section.text(f"There is no picture to show. {choice.rule}")
        return []
    ringed = ""
    if len(matching.labels) > 1:
        ringed = "what only it finds has a white line around it, "
    caption = (
        f"Ground truth beside {' and '.join(matching.labels)}. In a model's column {ringed}what it "
        "misses is dashed, false positives are hatched; after a name stands the score in percent. "
        "Names are left out where there is no room, crowds and detections on them always. "
        f"{choice.rule}"
    )
    figure = side_by_side_figure(matching, choice.scenes, opener)
    return section.figure(figure, folder / "side_by_side", caption, photographs=True)


def _published(section: Section, beside: pd.DataFrame) -> None:
    section.text(
        "Each run beside the paper's row of its detector, method and kind of placement. The last "
        "column says what was trained differently: with much in it a difference says little."
    )
    show_differences(section, beside, "Percent, and points")
    theirs = published_detectors()
    wide = theirs.assign(metric=theirs["metric"].map(METRICS)).pivot_table(
        "value", ["setting", "method"], "metric", sort=False
    )
    section.frame(wide.reset_index(), "What the paper has, with MAE's ViT-B/16, in percent")
