"""validate.json: what one or several calls of `bpt validate` on a folder have found so far."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpt.configuration import whitening_identity
from bpt.errors import RunExists
from bpt.records import read_record
from bpt.run_folder import WHITENING_KEYS, differs
from bpt.validate_plan import PlannedBenchmark, ValidationPlan
from burst.files import save_json
from burst.lock import one_at_a_time
from burst.provenance import command_line, provenance

FILE, KIND = "validate.json", "bpt validate 1"
ABOUT = ("method", "floor", "shrinkage", "convention", "through_norm", "blocks", "images")


def read_validation(folder: Path) -> dict[str, Any]:
    """The content of the validate.json in a folder.

    Raises:
        CheckpointError: see `read_record`.
    """
    record = read_record(folder / FILE, KIND)
    record["benchmarks"] = [{**_said_for_all(record, one), **one} for one in record["benchmarks"]]
    ended = {one["dataset"] for one in record["benchmarks"]}
    begun = {name: record["command"] for name in record["recipes"] if name not in ended}
    return {"pending": begun, **record}


def _said_for_all(record: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a version before said once for all benchmarks, as far as one's own runs do not tell."""
    seeds = {run["seed"]: None for one in entry["methods"] for run in one["runs"]}
    places = [one["placement"] for one in entry["methods"] if one["placement"]]
    return {
        "seeds": list(seeds) or record.get("seeds", []),
        "placement": next(iter(places), record.get("placement")),
        "command": record["command"],
    }


def whitening_part(plan: ValidationPlan) -> dict[str, Any]:
    """What validate.json says of the whitening; its file is read."""
    return {
        "path": str(plan.whitening),
        **whitening_identity(Path(plan.whitening)),
        "weights_sha256": plan.about.get("weights_sha256"),
        **{name: plan.about.get(name) for name in ABOUT},
    }


def save_record(
    plan: ValidationPlan,
    folder: Path,
    whitening: Mapping[str, Any],
    entry: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write validate.json anew: what is there, by whatever call, with what this one adds.

    Args:
        plan: of this call.
        folder: of the validation.
        whitening: from `whitening_part`.
        entry: a benchmark that has ended, see `benchmark_record`; None when the call begins.

    Returns:
        Its content.

    Raises:
        RunExists: it is of another whitening, or of other recipes.
        CheckpointError: see `read_record`.
    """
    with one_at_a_time(folder / FILE, "writes"):
        before = read_validation(folder) if (folder / FILE).exists() else {}
        record = _record(plan, folder, whitening, before, entry)
        save_json(folder / FILE, record)
    return record


def _record(
    plan: ValidationPlan,
    folder: Path,
    whitening: Mapping[str, Any],
    before: Mapping[str, Any],
    entry: Mapping[str, Any] | None,
) -> dict[str, Any]:
    if before and differs(before["whitening"], whitening, WHITENING_KEYS):
        raise RunExists(
            f"{folder} holds the validation of another whitening, {before['whitening']['path']}; "
            "choose another folder"
        )
    entries = {one["dataset"]: one for one in before.get("benchmarks", [])}
    pending = dict(before.get("pending", {}))
    if entry is None:
        new = [one for one in plan.benchmarks if not _has_ended(plan, one, entries)]
        pending |= {one.dataset: command_line() for one in new}
    else:
        entries[entry["dataset"]] = entry
        pending.pop(entry["dataset"], None)
    there = {*entries, *(one.dataset for one in plan.benchmarks)}
    missing = {**before.get("missing", {}), **plan.missing}
    missing = {name: how for name, how in missing.items() if name not in there}
    pending = {name: command for name, command in pending.items() if name not in missing}
    return {
        "kind": KIND,
        "whitening": whitening,
        "model": plan.model,
        "weights": plan.weights,
        "complete": not pending,
        "pending": pending,
        "recipes": _recipes(plan, before.get("recipes", {}), folder),
        "benchmarks": list(entries.values()),
        "missing": missing,
        "notes": list(dict.fromkeys([*before.get("notes", []), *plan.notes])),
        "sentences": [one["sentence"] for one in entries.values()],
        **provenance(),
    }


def _has_ended(
    plan: ValidationPlan, one: PlannedBenchmark, entries: Mapping[str, Mapping[str, Any]]
) -> bool:
    """Whether there are numbers of all that is planned on a benchmark."""
    if (entry := entries.get(one.dataset)) is None:
        return False
    methods = [found["method"] for found in entry["methods"]]
    found = methods, entry["seeds"], entry["placement"]
    return found == (list(one.methods), list(plan.seeds), plan.placement)


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
