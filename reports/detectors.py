"""Trained detectors on the images that they were scored on: their page, and terminal tables."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from rich.console import Group, RenderableType
from rich.table import Table

from bpt import DetectionRun, open_images
from burst.errors import BurstError
from reports.detection_report import detector_labels, save_detection_report
from reports.detection_scores import compare_detectors, detection_table


def report_detectors(
    runs: Sequence[DetectionRun],
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
) -> tuple[list[Path], pd.DataFrame]:
    """The page of `save_detection_report` on the runs' own images; and `compare_detectors`.

    Args:
        runs: from `bpt.open_run`, scored on the same images.
        out: the folder; made if missing.
        data: where the images lie now, if they were moved.

    Raises:
        BurstError: runs of different images; no run; pycocotools is not installed.
        CheckpointError: the images are others now.
        EmptyResult: a run has no epoch behind it.
        ImageError: images cannot be read.
        OutputError: the folder cannot be written.
    """
    if not runs:
        raise BurstError("no run to report")
    for what, key in (("images", "digest"), ("masks or crowds", "objects_digest")):
        noted = [(run, found) for run in runs if (found := run.config["dataset"].get(key))]
        if other := [run for run, one in noted if one != noted[0][1]]:
            first = noted[0][0].folder
            raise BurstError(
                f"{other[0].folder} is of other {what} than {first}; report them apart"
            )
    images = open_images(runs[0], data=None if data is None else Path(data))
    places = {number: place for place, number in enumerate(images.ids.tolist())}

    def opener(number: int) -> Image.Image:
        return images.image(places[number])

    files = save_detection_report(runs, out, truth=images.ground_truth(), opener=opener)
    return files, compare_detectors(detector_labels(runs))


def detectors_table(table: pd.DataFrame) -> Table:
    """What `compare_detectors` found, APs in percent, for a terminal."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("run", overflow="fold")
    for heading in ("prompts", "heads", "box AP", "AP75", "APs", "mask AP", "AP75", "APs"):
        shown.add_column(heading, justify="right")
    scores = [f"{kind}_{name}" for kind in ("box", "mask") for name in ("AP", "AP75", "APs")]
    for line in table.to_dict("records"):
        values = ["" if pd.isna(line[name]) else f"{line[name]:.1f}" for name in scores]
        shown.add_row(line["label"], f"{line['prompts']:,}", f"{line['heads']:,}", *values)
    return shown


def detection_result(result: Mapping[str, Any]) -> RenderableType:
    """The end of a detector's training of one seed, for a terminal."""
    counts, table = result["parameters"], Table(box=None, pad_edge=False, show_header=False)
    table.add_row("scored on", f"{result['images']:,} images by {result['evaluator']}")
    table.add_row("", result["label"])
    table.add_row(
        "trained parameters",
        f"{counts['trained']:,}  (prompts {counts['prompts']:,}, pyramid and heads "
        f"{counts['heads']:,}, backbone {counts['backbone']:,})",
    )
    table.add_row("training", f"{result['seconds']:.0f} s")
    return Group(detection_table(result["scores"]), table)
