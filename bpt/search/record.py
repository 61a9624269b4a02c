"""What a search says in search.json, in its sentences and as rows of search.csv."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bpt.engine import standard_error
from bpt.run_folder import Run
from bpt.search.grid import Point
from bpt.search.halving import Score
from bpt.search.paired import (
    BASELINES,
    LEVEL,
    Difference,
    compared,
    holm,
    paired_difference,
    right_answers,
)
from bpt.search.plan import Course
from bpt.search.trials import OUTCOME, Trials

RECORD, KIND = "search.json", "bpt search 1"
AXES = {"lr": "learning rate", "weight_decay": "weight decay"}


def method_record(trials: Trials, method: str, course: Course) -> dict[str, Any]:
    """One of `methods` of search.json."""
    recipe = trials.recipes[method]
    reached = (_trial(trials, method, point) for point in course.tried)
    tried = [one for one in reached if one]
    best = course.best
    runs, counts = [], None
    for seed in trials.seeds if best else ():
        assert best is not None
        job = trials.final_job(method, best, seed)
        result = trials.result(job)
        if result is None or "diverged" in result:
            continue
        counts = result["parameters"]
        runs.append({"seed": seed, **{one: result[one] for one in OUTCOME}, "folder": job.name})
    counts = counts or _counts(trials.runs(method))
    values = [one["test_accuracy"] for one in runs]
    return {
        "method": method,
        "placement": recipe.placement if recipe.prompted else None,
        "prompt_parameters": counts.get("prompts"),
        "trained_parameters": counts.get("trained"),
        "recipe": recipe.to_dict(),
        "trials": tried,
        "chosen": _chosen(best, course.finalists) if best else None,
        "inside": None if course.edges is None else best is not None and not course.edges,
        "edges": list(course.edges or ()) if best else [],
        "runs": runs,
        "test": {
            "mean": statistics.mean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "values": values,
        },
    }


def _trial(trials: Trials, method: str, point: Point) -> dict[str, Any] | None:
    """How far a trial came, and how good it was there, None if it diverged; or None: not yet."""
    marks = trials.rungs[method]
    last, epochs, score, place = marks[-1], 0, None, trials.name(method, point, None)
    for number, (fold, epoch) in enumerate(marks):
        found = trials.score(method, point, number)
        if found is None:
            break
        score, place = found, trials.name(method, point, fold)
        before = (fold or 0) * last.epoch
        epochs = before + (trials.epochs_of(place) if found.diverged else epoch)
        if found.diverged:
            break
    if score is None:
        return None
    accuracy = score.accuracy
    return {
        "lr": point.lr,
        "weight_decay": point.weight_decay,
        "epochs": epochs,
        "of_epochs": last.epoch * (trials.folds or 1),
        "score": accuracy,
        "standard_error": None if accuracy is None else standard_error(accuracy, score.images),
        "folder": place,
    }


def is_halved(record: Mapping[str, Any]) -> bool:
    """Whether trials of a search.json were compared within a training.

    A record that does not say is of a version that always did.
    """
    return bool(record.get("options", {}).get("halving", True))


def is_crossed(record: Mapping[str, Any]) -> bool:
    """Whether trials of a search.json were judged by cross-validation."""
    return bool(record["validation"]["kind"] == "cross")


def _chosen(best: Point, finalists: Mapping[Point, Score]) -> dict[str, Any]:
    return {**best._asdict(), "score": finalists[best].accuracy}


def _counts(runs: Iterator[Run]) -> dict[str, int]:
    """Of parameters, as the first configuration says, if there is one."""
    first = next(runs, None)
    counts: dict[str, int] = first.config["parameters"] if first else {}
    return counts


def differences(trials: Trials, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each method against vpt, or the first where vpt is not searched, and against linear."""
    ended = {one["method"]: one for one in records if len(one["runs"]) == len(trials.seeds)}
    names = [one["method"] for one in records]
    against = list(dict.fromkeys([names[0], *BASELINES] if "vpt" not in names else BASELINES))
    right = {
        name: right_answers(trials.out / run["folder"] for run in one["runs"])
        for name, one in ended.items()
    }
    pairs = [pair for pair in compared(names, against) if ended.keys() >= set(pair)]
    found: list[Difference] = [paired_difference(right[a], right[b]) for a, b in pairs]
    adjusted = holm([one.p_value for one in found])
    return [
        {"method": a, "against": b, **asdict(one), "adjusted_p": p}
        for (a, b), one, p in zip(pairs, found, adjusted, strict=True)
    ]


def sentences(record: Mapping[str, Any]) -> list[str]:
    """What was found, in plain words."""
    means = {one["method"]: one["test"]["mean"] for one in record["methods"]}
    found = [_difference_in_words(one, means) for one in record["differences"]]
    count = len(record["differences"])
    if count > 1:
        found.append(
            f"Better and worse are said where that holds among all {count} comparisons "
            "(Holm's correction); the intervals are each for itself."
        )
    if len(record["seeds"]) == 1 and count:
        found.append("One seed: the intervals say how other images, not other seeds would differ.")
    elif 1 < len(record["seeds"]) < 5 and count:
        found.append(f"{len(record['seeds'])} seeds tell roughly how much seeds matter.")
    for one in record["methods"]:
        lost = len(record["seeds"]) - len(one["runs"])
        if one["chosen"] is None and record["complete"]:
            found.append(f"{one['method']}: every trial diverged.")
        elif lost and record["complete"]:
            mean = "its mean is that of the others, and " if one["runs"] else ""
            found.append(
                f"{one['method']}: {lost} of {len(record['seeds'])} seeds diverged at the chosen "
                f"rate and decay; {mean}it is compared with nothing."
            )
        if one["edges"]:
            where = " and ".join(f"{AXES[axis]} {one['chosen'][axis]:g}" for axis in one["edges"])
            found.append(
                f"{one['method']}: the best trial is still at an edge of what "
                f"{record['trials_each']} trials tried, {where}; beyond it there may be a better."
            )
    return found


def _difference_in_words(one: Mapping[str, Any], means: Mapping[str, float]) -> str:
    a, b, value = one["method"], one["against"], one["difference"]
    interval = f"95 % interval {one['low']:+.1f} to {one['high']:+.1f}"
    start = f"{a} {means[a]:.1f} %"
    other = f"{b} {means[b]:.1f} %"
    if one["adjusted_p"] < 1 - LEVEL:
        word = "better" if value > 0 else "worse"
        return f"{start} is {word} than {other} by {abs(value):.1f} points ({interval})."
    if abs(value) < 0.05:
        return f"{start} is level with {other} ({interval}): not told apart."
    where = "ahead of" if value > 0 else "behind"
    alone = one["low"] > 0 or one["high"] < 0
    ending = "not told apart among so many comparisons" if alone else "not told apart"
    return f"{start} is {where} {other} by {abs(value):.1f} points ({interval}): {ending}."


def trial_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a trial, for search.csv."""
    return [
        {"method": one["method"], "placement": one["placement"], **trial}
        for one in record["methods"]
        for trial in one["trials"]
    ]
