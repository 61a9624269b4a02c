"""A survey -> the files of a run: table, histograms, record and figures."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from burst.errors import BurstError
from burst.files import make_folder, save_json, save_table, write_atomically
from burst.provenance import provenance
from burst.survey import Survey
from reports.depth import depth_grid, depth_lines
from reports.style import save_figure


def save_survey(
    survey: Survey, out: str | os.PathLike[str], *, seed: int | None = None
) -> list[Path]:
    """Write what a survey found into a folder, each file whole or not at all.

    `statistics.csv` is the table. `histograms.npz` holds for each row
    `MODEL/BLOCK/HEAD/QUANTITY/edges` (float64) and `/counts` (int64; their sum is the row's
    `count`). `survey.npz` is all of it, for `Survey.load`. `run.json` says how it was made.
    `softmax.csv` is what softmax makes of logits, where they were measured. `depth_qk`, `depth_x`,
    `depth_qkx` and `depth_logits` show the histograms block by block, `depth_lines` the statistics
    over depth, as `.png` and `.pdf`.

    Args:
        survey: from `burst.survey`.
        out: the folder; made if missing, files of the same names are replaced.
        seed: of the images' choice, where the survey's record does not say it.

    Returns:
        The files written.

    Raises:
        OutputError: the folder cannot be written.
        BurstError: the record says another seed.
    """
    record = run_record(survey, seed=seed)
    folder = make_folder(out)
    save_table(folder / "statistics.csv", survey.table)
    with write_atomically(folder / "histograms.npz") as path:
        np.savez_compressed(path, **_arrays(survey))
    survey.save(folder / "survey.npz")
    save_json(folder / "run.json", record)
    names = ["statistics.csv", "histograms.npz", "survey.npz", "run.json"]
    if len(survey.softmax):
        save_table(folder / "softmax.csv", survey.softmax)
        names.append("softmax.csv")
    files = [folder / name for name in names]
    return files + _save_figures(survey, folder)


def seed_of(record: Mapping[str, Any], given: int | None) -> int | None:
    """The seed that the images of a record were chosen by; `given` where it does not say.

    Raises:
        BurstError: it says another than is given.
    """
    images = record.get("images") or {}
    said = {one.get("seed") for one in (images, *images.get("sources", ()))} - {None}
    if given is not None and said and said != {given}:
        raise BurstError(
            f"seed is {given}, and the images of {record['model']} were chosen by seed "
            f"{', '.join(map(str, sorted(said)))}; leave seed out"
        )
    return said.pop() if len(said) == 1 else given


def run_record(survey: Survey, *, seed: int | None = None) -> dict[str, Any]:
    """How a survey was made and what it could not measure, as plain JSON-able data.

    Raises:
        BurstError: see `seed_of`.
    """
    return {
        **provenance(),
        "seed": seed_of(survey.record, seed),
        **survey.record,
        "omitted": list(survey.omitted),
        "skipped_blocks": [vars(block) for block in survey.skipped],
    }


def _arrays(survey: Survey) -> dict[str, Any]:
    bins = survey.record["options"]["bins"]
    arrays: dict[str, Any] = {}
    for (block, head, quantity), hist in survey.histograms.items():
        name = f"{survey.record['model']}/{block}/{head}/{quantity}"
        arrays[f"{name}/counts"], arrays[f"{name}/edges"] = hist.rebin(bins).to_numpy()
    return arrays


def _save_figures(survey: Survey, folder: Path) -> list[Path]:
    model, bins = survey.record["model"], survey.record["options"]["bins"]
    files: list[Path] = []
    for quantity in survey.record["options"]["quantities"]:
        figure = depth_grid(survey.whole(quantity), quantity=quantity, title=model, bins=bins)
        files += save_figure(figure, folder / f"depth_{quantity}")
    return files + list(save_figure(depth_lines(survey.table), folder / "depth_lines"))
