"""A whitening on every benchmark that is at hand: do prompts gain by it?

What is tried is planned by `plan_validation`; this trains it, or goes on, and says for each
benchmark who is better.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bpt.configuration import whitening_identity
from bpt.errors import Interrupted, RunExists
from bpt.recipe import Recipe
from bpt.records import read_record
from bpt.run_folder import WHITENING_KEYS, differs, save_json
from bpt.search import SearchOptions, search_methods
from bpt.search.record import is_crossed
from bpt.study import run_study
from bpt.validate_plan import PlannedBenchmark, ValidationPlan
from bpt.validate_results import benchmark_record
from burst.errors import BurstError, one_line
from burst.files import make_folder
from burst.lock import one_at_a_time
from burst.progress import Progress, Say
from burst.provenance import command_line, provenance

FILE, KIND = "validate.json", "bpt validate 1"


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
    not stop the rest. OUT/validate.json is written after each benchmark. Several calls at once, of
    the same benchmarks or of others, share the folder.

    Returns:
        The content of validate.json: `sentences`, one a benchmark; `benchmarks`, each with its
        `methods`, their test accuracies in percent (detectors: box AP), the paired `differences`
        to vpt and to linear in points, and its `seeds`, `placement` and `command`; `pending`, the
        benchmarks that were begun and are not at their end; `complete`, whether there are none;
        `missing`, `notes`, and what it was done with.

    Raises:
        RunExists: `out` holds the validation of another whitening, or one by other recipes.
        CheckpointError: its validate.json is damaged.
        Interrupted: see `run_study`; what runs was saved.
        OutputError: `out` cannot be written.
    """
    folder, tell = make_folder(out), say or (lambda _: None)
    record = _save(plan, folder)
    for one in plan.benchmarks:
        tell(f"{one.dataset}, found in {one.place}")
        results = _train(plan, one, folder / one.folder, devices, progress, say)
        entry = benchmark_record(plan, one, folder, *results)
        record = _save(plan, folder, entry)
        tell(entry["sentence"])
    return record


def read_validation(folder: Path) -> dict[str, Any]:
    """The content of the validate.json in a folder.

    Raises:
        CheckpointError: see `read_record`.
    """
    record = read_record(folder / FILE, KIND)
    # A version before said it once for all benchmarks.
    said = {name: record[name] for name in ("seeds", "placement", "command") if name in record}
    record["benchmarks"] = [{**said, **entry} for entry in record["benchmarks"]]
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


def _save(
    plan: ValidationPlan, folder: Path, entry: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write validate.json as it stands now, with a benchmark that has ended; what it holds."""
    with one_at_a_time(folder / FILE, "writes"):
        before = read_validation(folder) if (folder / FILE).exists() else {}
        record = _record(plan, folder, before, entry)
        save_json(folder / FILE, record)
    return record


def _record(
    plan: ValidationPlan,
    folder: Path,
    before: Mapping[str, Any],
    entry: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What was there before, by this call or others, with what is planned, or what has ended."""
    found = whitening_identity(Path(plan.whitening))
    if before and differs(before["whitening"], found, WHITENING_KEYS):
        raise RunExists(
            f"{folder} holds the validation of another whitening, {before['whitening']['path']}; "
            "choose another folder"
        )
    about = ("method", "floor", "shrinkage", "convention", "through_norm", "blocks", "images")
    recipes = _recipes(plan, before.get("recipes", {}), folder)
    entries = {one["dataset"]: one for one in before.get("benchmarks", [])}
    planned = [one.dataset for one in plan.benchmarks]
    pending = before.get("pending", planned)
    if entry is None:
        pending = list(dict.fromkeys([*pending, *planned]))
    else:
        entries[entry["dataset"]] = {**entry, "command": command_line()}
        pending = [name for name in pending if name != entry["dataset"]]
    missing = {**before.get("missing", {}), **plan.missing}
    return {
        "kind": KIND,
        "whitening": {
            "path": str(plan.whitening),
            **found,
            "weights_sha256": plan.about.get("weights_sha256"),
            **{name: plan.about.get(name) for name in about},
        },
        "model": plan.model,
        "weights": plan.weights,
        "complete": not pending,
        "pending": pending,
        "recipes": recipes,
        "benchmarks": list(entries.values()),
        "missing": {name: how for name, how in missing.items() if name not in recipes},
        "notes": list(dict.fromkeys([*before.get("notes", []), *plan.notes])),
        "sentences": [one["sentence"] for one in entries.values()],
        **provenance(),
    }


def _recipes(plan: ValidationPlan, before: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """By dataset and method what is trained, with what was trained before; or what differs."""
    found = {name: dict(recipes) for name, recipes in before.items()}
    for one in plan.benchmarks:
        old = found.setdefault(one.dataset, {})
        for name, method in one.methods.items():
            new = method.recipe
            was = type(new).from_dict(old[name]) if name in old else new
            if words := was.differences_in_words(new):
                raise RunExists(
                    f"{folder} holds a validation on {one.dataset} with {'; '.join(words)}; "
                    "choose another folder"
                )
            old[name] = new.to_dict()
    return found
