"""What a validation found on a benchmark: numbers of its run folders, paired, and in a sentence."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from bpt.run_folder import open_run
from bpt.search.paired import BASELINES, LEVEL, compared, holm, paired_difference, right_answers
from bpt.search.record import is_crossed
from bpt.validate_plan import PlannedBenchmark, ValidationPlan
from burst.provenance import command_line

SPOKEN = {
    "bpt-fwhiten": "prompts whitened with W",
    "bpt-dwhiten": "prompts with its diagonal alone",
}
SAME = 1e-9  # points; sums of floats differ by less
COLUMNS = ("difference", "low", "high", "p_value", "seeds", "images")
NUMBERS = ("none", "one seed", "two seeds", "three seeds")


def benchmark_record(
    plan: ValidationPlan,
    one: PlannedBenchmark,
    out: Path,
    ended: Mapping[str, Mapping[str, Any] | str],
    search: Mapping[str, Any] | str | None,
) -> dict[str, Any]:
    """An entry of `benchmarks` in validate.json.

    Args:
        plan: what was planned.
        one: the benchmark.
        out: folders of runs are relative to it.
        ended: what `run_study` gave of the methods with published rates.
        search: what `search_methods` gave of the others, or why there is nothing.
    """
    place = one.folder
    found = [
        _published(plan, one, name, out, f"{place}/runs/{name}", ended[name])
        if method.published
        else _searched(one, name, f"{place}/search", search)
        for name, method in one.methods.items()
    ]
    metric = "box_AP" if one.base is None else "test_accuracy"
    differences = _differences(found, out, metric)
    entry = {
        "dataset": one.dataset,
        "place": one.place,
        "placement": plan.placement,
        "seeds": list(plan.seeds),
        "command": command_line(),
        "metric": metric,
        "search": f"{place}/search" if isinstance(search, Mapping) else None,
        "methods": found,
        "differences": differences,
    }
    return entry | {"sentence": sentence(entry)}


def sentence(entry: Mapping[str, Any]) -> str:
    """Whether each method that uses a whitening is better than vpt, on one benchmark.

    Than linear where vpt has nothing to compare with. What failed is told, and seeds that did.
    """
    name = entry["dataset"]
    for against in BASELINES:
        rows = [row for row in entry["differences"] if row["against"] == against]
        chosen = [row for row in rows if row["method"] not in BASELINES]
        if chosen:
            break
    failed = {
        one["method"]: f"{one['method']}: {one['failed']}"
        for one in entry["methods"]
        if one["failed"]
    }
    if not chosen:
        return f"{name}: nothing to compare{f' ({next(iter(failed.values()))})' if failed else ''}."
    what = "points of box AP" if entry["metric"] == "box_AP" else "points"
    parts = [_compared(row, what) for row in chosen]
    parts += [text for method, text in failed.items() if method not in BASELINES]
    count = min(row["seeds"] for row in chosen)
    alone = ", whose interval is that of other images alone"
    images = count == 1 and chosen[0]["low"] is not None
    return f"{name}: {'; '.join(parts)}; {_seeds(count)}{alone if images else ''}."


def _compared(row: Mapping[str, Any], what: str) -> str:
    method = SPOKEN.get(row["method"], row["method"])
    verb = "are" if row["method"] in SPOKEN else "is"
    size, low, high = row["difference"], row["low"], row["high"]
    if low is None or high is None:
        side = "above" if size > 0 else "below"
        who = "one seed does" if row["seeds"] == 1 else "seeds that agree to the digit do"
        return (
            f"{method} {verb} {abs(size):.1f} {what} {side} {row['against']}, which {who} not tell "
            "from chance"
        )
    if row["adjusted_p"] >= 1 - LEVEL:
        between = f"{size:+.1f} {what}, {low:+.1f} to {high:+.1f}"
        many = "" if low <= 0 <= high else " among so many comparisons"
        return f"{method} {verb} not told apart from {row['against']}{many} ({between})"
    word, ends = ("better", (low, high)) if low > 0 else ("worse", (-high, -low))
    between = f"{ends[0]:.1f} to {ends[1]:.1f}"
    return f"{method} {verb} {word} than {row['against']} by {abs(size):.1f} {what} ({between})"


def _seeds(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else f"{count} seeds"


def _published(
    plan: ValidationPlan,
    one: PlannedBenchmark,
    name: str,
    out: Path,
    place: str,
    ended: Mapping[str, Any] | str,
) -> dict[str, Any]:
    recipe, source = one.methods[name].recipe, one.methods[name].published
    entry = _entry(name, recipe.placement if recipe.prompted else None)
    entry |= {"rates": "published", "source": source}
    entry |= {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if isinstance(ended, str):
        return entry | {"failed": ended}
    metric = "box_AP" if one.base is None else "test_accuracy"
    runs = [{"seed": seed, "folder": f"{place}/seed_{seed}"} for seed in plan.seeds]
    counted = open_run(out / f"{place}/seed_{plan.seeds[0]}").config["parameters"]
    test = ended.get(metric)
    entry |= {"trained_parameters": counted.get("trained"), "runs": runs, "test": test}
    return entry | ({} if test else {"failed": "nothing of it to score"})


def _searched(
    one: PlannedBenchmark, name: str, place: str, search: Mapping[str, Any] | str | None
) -> dict[str, Any]:
    recipe = one.methods[name].recipe
    entry = _entry(name, recipe.placement if recipe.prompted else None)
    entry |= {"rates": "searched"}
    if not isinstance(search, Mapping):
        return entry | {"failed": search or "not searched"}
    found = next((part for part in search["methods"] if part["method"] == name), None)
    if found is None or not found["chosen"]:
        return entry | {"failed": "every trial of it diverged"}
    inside = "" if found["inside"] else ", the best at an edge"
    how = "folds" if is_crossed(search) else "the validation split"
    lost, count = len(search["seeds"]) - len(found["runs"]), len(search["seeds"])
    if lost:  # the seeds that are left are not those that anything else has
        entry["failed"] = f"{lost} of {count} seeds diverged at the rate and decay that were chosen"
    return entry | {
        "source": f"the best of {len(found['trials'])} trials on {how}{inside}",
        "lr": found["chosen"]["lr"],
        "weight_decay": found["chosen"]["weight_decay"],
        "trained_parameters": found["trained_parameters"],
        "runs": [
            {"seed": run["seed"], "folder": f"{place}/{run['folder']}"} for run in found["runs"]
        ],
        "test": found["test"] if found["runs"] else None,
    }


def _entry(name: str, placement: str | None) -> dict[str, Any]:
    empty = dict.fromkeys(("source", "lr", "weight_decay", "trained_parameters", "test", "failed"))
    return {"method": name, "placement": placement, "runs": [], **empty}


def _differences(
    found: Sequence[Mapping[str, Any]], out: Path, metric: str
) -> list[dict[str, Any]]:
    """Of every method to vpt and to linear, as far as both ended with every seed.

    P-values are adjusted for all.
    """
    ended = {one["method"]: one for one in found if one["failed"] is None}
    paired = partial(_of_images, out=out) if metric == "test_accuracy" else _of_seeds
    rows = [
        {"method": name, "against": other, **paired(ended[name], ended[other])}
        for name, other in compared(list(ended), BASELINES)
    ]
    known = [row for row in rows if row["p_value"] is not None]
    adjusted = holm([row["p_value"] for row in known])
    sure = {id(row): p for row, p in zip(known, adjusted, strict=True)}
    return [row | {"adjusted_p": sure.get(id(row))} for row in rows]


def _of_images(one: Mapping[str, Any], other: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Of classifiers, over the test images and the seeds."""
    pair = (right_answers(out / run["folder"] for run in method["runs"]) for method in (one, other))
    found = paired_difference(*pair)
    return {name: getattr(found, name) for name in COLUMNS}


def _of_seeds(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Of detectors, over the seeds by Student's t: an average precision has no term an image."""
    values = np.subtract(one["test"]["values"], other["test"]["values"])
    count, mean = len(values), float(np.mean(values))
    found = dict.fromkeys(COLUMNS) | {"difference": mean, "seeds": count}
    if float(np.ptp(values)) < SAME:  # seeds that agree to the digit say nothing of others
        return found
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    reach = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error
    p_value = 2 * float(stdtr(count - 1, -abs(mean) / error))
    return found | {"low": mean - reach, "high": mean + reach, "p_value": p_value}
