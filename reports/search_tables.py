"""A search's file as tables: its methods, their differences, every trial, and who still learns."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from bpt import open_run
from bpt.records import read_record
from bpt.search.record import KIND, RECORD
from burst.errors import CheckpointError
from reports.training import ACCURACIES, judged_by

Floats = NDArray[np.float64]
LEAST_EPOCHS = 3  # that a slope and its error take
SLIGHT = 1.0  # points that as many epochs again may add to what is called flat
# What is drawn over the epochs: the first of them that the runs have.
CURVES = {name: f"{kind} accuracy (%)" for name, kind in ACCURACIES.items()}


@dataclass(frozen=True)
class Search:
    """What `bpt.search_methods` left in a folder.

    Attributes:
        folder: that it lies in; folders of its trials and runs are relative to it.
        record: the content of search.json.
    """

    folder: Path
    record: Mapping[str, Any]

    @property
    def methods(self) -> dict[str, Mapping[str, Any]]:
        """The entries by what tells them apart: the method, and its placement where need be."""
        entries = self.record["methods"]
        count = Counter(one["method"] for one in entries)
        return {
            one["method"]
            if count[one["method"]] == 1 or not one["placement"]
            else f"{one['method']}, {one['placement']}": one
            for one in entries
        }


class Curve(NamedTuple):
    """Accuracy over the epochs of a method's winner: (seeds, epochs), percent, and its kind."""

    quantity: str
    values: Floats


class Flatness(NamedTuple):
    """The straight line through the end of a curve.

    Attributes:
        epochs: that it goes through.
        slope: points an epoch.
        error: standard error of the slope.
        low, high: 95 % interval of the slope, by Student's t.
    """

    epochs: int
    slope: float
    error: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """By the interval: so small that as much again would change little, or of one sign."""
        if self.epochs * max(-self.low, self.high) <= SLIGHT:
            return "flat"
        if self.low > 0:
            return "still rising"
        return "falling" if self.high < 0 else "too noisy to tell"


def is_search(folder: str | Path) -> bool:
    """Whether a folder holds a search's file."""
    return (Path(folder) / RECORD).is_file()


def open_search(folder: str | Path) -> Search:
    """Read the search.json in a folder.

    Raises:
        CheckpointError: there is none, it is damaged or of another kind.
    """
    return Search(Path(folder), read_record(Path(folder) / RECORD, KIND))


def methods_frame(search: Search) -> pd.DataFrame:
    """A row a method.

    Columns: method, placement, prompt and trained (parameters), trials, lr and weight_decay (that
    were chosen), inside (whether the best is no edge of what was tried: yes or no; empty while
    trials run), val, test (percent; the mean over seeds), sd (over seeds; none for one), seeds.
    """
    table = pd.DataFrame(
        [
            {
                "method": one["method"],
                "placement": one["placement"] or "",
                "prompt": one["prompt_parameters"],
                "trained": one["trained_parameters"],
                "trials": len(one["trials"]),
                **{name: (one["chosen"] or {}).get(name) for name in ("lr", "weight_decay")},
                "inside": {None: "", True: "yes", False: "no"}[one["inside"]],
                "val": (one["chosen"] or {}).get("score"),
                "test": (one["test"] or {}).get("mean"),
                "sd": (one["test"] or {}).get("std"),
                "seeds": len(one["runs"]),
            }
            for one in search.record["methods"]
        ]
    )
    numbers = ("lr", "weight_decay", "val", "test", "sd")  # of one that has not ended there is none
    return table.astype(dict.fromkeys(numbers, "float64"))


def differences_frame(record: Mapping[str, Any]) -> pd.DataFrame:
    """A row a paired difference: method, against, difference, low, high (points), adjusted_p (Holm,
    of all in the record), seeds, images."""
    columns = ["method", "against", "difference", "low", "high", "adjusted_p", "seeds", "images"]
    rows = [{name: one[name] for name in columns} for one in record["differences"]]
    kinds = dict.fromkeys(("difference", "low", "high", "adjusted_p"), "float64")
    kinds |= dict.fromkeys(("seeds", "images"), "Int64")  # of detectors no images are counted
    return pd.DataFrame(rows, columns=columns).astype(kinds)


def trials_frame(search: Search) -> pd.DataFrame:
    """A row a trial: method, placement, lr, weight_decay, epochs, of_epochs, score, its standard
    error, stopped, diverged and chosen (yes or no), folder."""
    rows = []
    for entry in search.record["methods"]:
        chosen = entry["chosen"] or {}
        for trial in entry["trials"]:
            row = {"method": entry["method"], "placement": entry["placement"] or ""}
            row |= {name: value for name, value in trial.items() if name != "folder"}
            here = all(trial[name] == chosen.get(name) for name in ("lr", "weight_decay"))
            row |= {"stopped": "yes" if is_stopped(entry, trial) else "no"}
            row |= {"diverged": "yes" if trial["score"] is None else "no"}
            row |= {"chosen": "yes" if here else "no", "folder": trial["folder"]}
            rows.append(row)
    return pd.DataFrame(rows)


def is_stopped(entry: Mapping[str, Any], trial: Mapping[str, Any]) -> bool:
    """Whether a method's trial was left as one of the worse, before all of its epochs or folds.

    Not by diverging; and while trials run, none is known to have been.
    """
    return entry["inside"] is not None and is_shorter(trial)


def is_shorter(trial: Mapping[str, Any]) -> bool:
    """Whether a trial's score is that of a part of its epochs or folds."""
    return bool(trial["epochs"] < trial["of_epochs"] and trial["score"] is not None)


def winner_curves(search: Search) -> dict[str, Curve]:
    """By method: the accuracy of its winner's runs, as far as their folders are still there."""
    found = {}
    for label, entry in search.methods.items():
        metrics = [_metrics(search.folder / run["folder"]) for run in entry["runs"]]
        if curve := _curve([one for one in metrics if one]):
            found[label] = curve
    return found


def flatness(accuracies: Sequence[float] | Floats) -> Flatness | None:
    """Least squares through the last quarter of the epochs, of three at least.

    Epochs that are neighbours are alike, which makes a slope less certain than as many independent
    ones would: its error is sqrt((1 + r) / (1 - r)) times theirs, with r the residuals' correlation
    from one epoch to the next, freed of its bias, (n r + 2) / (n - 4), within 0 and 0.9. Of curves
    on which nothing happens, of epochs correlated by 0.5, so 7 to 11 % are said to rise or fall.

    Args:
        accuracies: one an epoch, in percent.

    Returns:
        None if there are fewer than three.
    """
    last = max(LEAST_EPOCHS, math.ceil(len(accuracies) / 4))
    if len(accuracies) < LEAST_EPOCHS:
        return None
    ends = np.asarray(accuracies, np.float64)[-last:]
    x = np.arange(last) - (last - 1) / 2
    slope = float(x @ ends / (x @ x))  # scipy.stats.linregress has no error where nothing varies
    residuals = ends - ends.mean() - slope * x
    squares = float(residuals @ residuals)
    error = math.sqrt(squares / (last - 2) / (x @ x)) * _by_likeness(residuals, squares)
    reach = float(stdtrit(last - 2, 0.975)) * error
    return Flatness(last, slope, error, slope - reach, slope + reach)


def _by_likeness(residuals: Floats, squares: float) -> float:
    """How much less certain a slope is than from independent residuals; from five epochs on."""
    count = len(residuals)
    if count < 5 or squares == 0:
        return 1.0
    likeness = (count * float(residuals[1:] @ residuals[:-1]) / squares + 2) / (count - 4)
    likeness = min(max(likeness, 0.0), 0.9)
    return math.sqrt((1 + likeness) / (1 - likeness))


def flatness_words(label: str, found: Flatness | None) -> str:
    """Whether a method's curve is flat at its end, as a sentence."""
    if found is None:
        return f"{label}: too few epochs to say whether the curve is flat."
    numbers = (
        f"{found.slope:+.3f} ± {found.error:.3f} points an epoch over the last {found.epochs} "
        "epochs"
    )
    if found.verdict not in ("still rising", "falling"):
        return f"{label}: {found.verdict} at the end ({numbers})."
    gain = abs(found.slope) * found.epochs
    what = "gain" if found.slope > 0 else "lose"
    return (
        f"{label}: {found.verdict} at the end ({numbers}); as many epochs again at this pace would "
        f"{what} {gain:.1f} points."
    )


def _metrics(folder: Path) -> list[dict[str, Any]]:
    try:
        return open_run(folder).metrics
    except CheckpointError:
        return []


def _curve(runs: Sequence[Sequence[Mapping[str, Any]]]) -> Curve | None:
    """The first quantity that all epochs have; of runs of different lengths their common part."""
    length = min((len(run) for run in runs), default=0)
    runs = [run[:length] for run in runs]
    quantity = judged_by(*runs) if length else None
    if quantity is None:
        return None
    values = [[line[quantity] for line in run] for run in runs]
    return Curve(quantity, np.array(values, np.float64))
