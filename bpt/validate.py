"""A whitening on every benchmark that is at hand: do prompts gain by it?

What is tried is planned by `plan_validation`; this trains it, or goes on, and says for each
benchmark who is better.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bpt.errors import Interrupted, RunExists
from bpt.recipe import Recipe
from bpt.search import SearchOptions, search_methods
from bpt.search.record import is_crossed
from bpt.study import run_study
from bpt.validate_plan import PlannedBenchmark, ValidationPlan
from bpt.validate_record import save_record, whitening_part
from bpt.validate_results import benchmark_record
from burst.device import out_of_memory
from burst.errors import BurstError, one_line
from burst.files import make_folder
from burst.progress import Progress, Say


def validate_whitening(
    plan: ValidationPlan,
    out: str | Path,
    *,
    devices: Sequence[str] = ("auto",),
    progress: Progress | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Train what is planned; the same call again goes on, and reads what is finished.

    Methods with published rates are trained with each seed, into OUT/DATASET/runs; the rates of the
    others are searched first, in OUT/DATASET/search, see `search_methods`. A method that fails does
    not stop the rest. OUT/validate.json is written after each benchmark. Several calls at once
    share the folder and its trainings; of one benchmark it holds the numbers of the last to end.

    Returns:
        The content of validate.json: `sentences`, one a benchmark; `benchmarks`, each with its
        `methods`, their test accuracies in percent (detectors: box AP), the paired `differences`
        to vpt and to linear in points, and its `seeds`, `placement` and `command`; `pending`, the
        benchmarks that were begun and are not at their end, with the command that began them;
        `complete`, whether there are none; `missing`, `notes`, and what it was done with.

    Raises:
        RunExists: `out` holds the validation of another whitening, or one by other recipes.
        CheckpointError: its validate.json is damaged.
        Interrupted: see `run_study`; what runs was saved.
        OutputError: `out` cannot be written.
    """
    folder, tell = make_folder(out), say or (lambda _: None)
    used = whitening_part(plan)  # now: the file may be made anew before the end
    record = save_record(plan, folder, used)
    for one in plan.benchmarks:
        tell(f"{one.dataset}, found in {one.place}")
        results = _train(plan, one, folder / one.folder, devices, progress, say)
        entry = benchmark_record(plan, one, folder, *results)
        record = save_record(plan, folder, used, entry)
        tell(entry["sentence"])
    return record


def _train(
    plan: ValidationPlan,
    one: PlannedBenchmark,
    folder: Path,
    devices: Sequence[str],
    progress: Progress | None,
    say: Say | None,
) -> tuple[dict[str, Any], dict[str, Any] | str | None]:
    """What `run_study` gave for the published, and `search_methods` for the others."""
    options: dict[str, Any] = {"devices": devices, "progress": progress, "say": say}
    search: dict[str, Any] | str | None = None
    if one.searched and one.base is not None:
        asked = SearchOptions(seeds=plan.seeds)
        try:
            search = search_methods(
                one.base, one.searched, folder / "search", options=asked, **options
            )
        except (Interrupted, RunExists):
            raise
        except BurstError as error:
            search = one_line(error)
        except torch.OutOfMemoryError as error:
            search = out_of_memory(error)
    published = {name: found.recipe for name, found in one.methods.items() if found.published}
    cross = is_crossed(search) if isinstance(search, dict) else one.cross_validates
    if cross:
        # What was searched is then trained on all training images; so is what it is compared with.
        published = {
            name: dataclasses.replace(found, protocol="last")
            for name, found in published.items()
            if isinstance(found, Recipe)
        }
    ended = run_study(published, folder / "runs", seeds=plan.seeds, **options) if published else {}
    return ended, search
