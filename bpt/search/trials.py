"""Trials and final trainings as run folders: what they are called, and what they say."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpt import run_folder as folder
from bpt.dataset import Benchmark
from bpt.errors import NonFiniteLoss
from bpt.recipe import Recipe
from bpt.search.grid import Point
from bpt.search.halving import DIVERGED, Rung, Score
from bpt.search.recipes import trial_recipe
from bpt.train import ClassificationSession
from burst.files import save_json
from burst.progress import Progress

RUNS = "runs"  # the folder within the search's that all of them lie in
FAILED = "diverged.json"  # in a run's folder: why it has no more epochs
VALIDATION = ("val_accuracy", "val_loss")  # of an epoch's line, what trials are compared by
OUTCOME = ("val_accuracy", "test_accuracy", "best_epoch")  # of result.json, what a record takes


@dataclass(frozen=True)
class Job:
    """One training, up to the end of an epoch; None: to its result."""

    name: str
    recipe: Recipe
    until: int | None


@dataclass
class Trials:
    """The run folders of a search.

    Attributes:
        out: the folder above.
        recipes: by method; see `method_recipes`.
        rungs: by method, where its trials are compared.
        folds: of the cross-validation; None where there is a validation split.
        images: that the validation has, or each fold.
        seeds: of the final trainings.
        trial_seed: one of them, of the trials.
    """

    out: Path
    recipes: Mapping[str, Recipe]
    rungs: Mapping[str, list[Rung]]
    folds: int | None
    images: tuple[int, ...]
    seeds: tuple[int, ...]
    trial_seed: int
    _scores: dict[tuple[str, Point, int], Score] = field(default_factory=dict)

    def name(self, method: str, point: Point, fold: int | None) -> str:
        """Of a trial's folder."""
        part = "" if fold is None else f"-fold{fold + 1}of{self.folds}"
        return f"{_stem(method, point)}-seed{self.trial_seed}{part}"

    def runs(self, method: str) -> Iterator[folder.Run]:
        """All of a method's run folders that were begun, each opened when it is asked for."""
        for place in sorted((self.out / RUNS / method).glob(f"*/{folder.CONFIG}")):
            run = folder.open_run(place.parent)
            if isinstance(run, folder.Run):
                yield run

    def job(self, method: str, point: Point, rung: int) -> Job:
        """What leads to a rung from the one before."""
        fold, epoch = self.rungs[method][rung]
        part = None if fold is None else f"{fold + 1}/{self.folds}"
        recipe = trial_recipe(self.recipes[method], point, self.trial_seed, fold=part)
        return Job(self.name(method, point, fold), recipe, epoch)

    def final_job(self, method: str, point: Point, seed: int) -> Job:
        """The training whose test accuracy counts."""
        protocol = "last" if self.folds else "standard"
        recipe = trial_recipe(self.recipes[method], point, seed, protocol=protocol)
        return Job(f"{_stem(method, point)}-seed{seed}", recipe, None)

    def score(self, method: str, point: Point, rung: int) -> Score | None:
        """How good a trial was at a rung; None as long as it is not there.

        Raises:
            CheckpointError: its metrics.jsonl is damaged.
        """
        key = (method, point, rung)
        if key not in self._scores:
            found = self._read(method, point, rung)
            if found is None:
                return None
            self._scores[key] = found
        return self._scores[key]

    def _read(self, method: str, point: Point, rung: int) -> Score | None:
        fold, epoch = self.rungs[method][rung]
        found = []
        for number in [None] if fold is None else range(fold + 1):
            name = self.name(method, point, number)
            upto = epoch if number == fold else self.rungs[method][-1].epoch
            lines = folder.read_metrics(self.out / name, needs=VALIDATION)[:upto]
            if len(lines) < upto:
                return DIVERGED if self._diverged(name) else None
            found.append(lines)
        if fold is None:
            return _best(found[0], self.images[0])
        return _together([lines[-1] for lines in found], self.images)

    def _diverged(self, name: str) -> bool:
        return (self.out / name / FAILED).exists()

    def epochs_of(self, name: str) -> int:
        """How many a training came to."""
        return len(folder.read_metrics(self.out / name))

    def result(self, job: Job) -> dict[str, Any] | None:
        """What a final training came to; None as long as it is not at its end.

        Raises:
            CheckpointError: its result.json is damaged.
        """
        for name, needs in ((folder.RESULT, ("parameters", *OUTCOME)), (FAILED, ())):
            place = self.out / job.name / name
            if place.exists():
                return folder.read_json(place, needs=needs)
        return None

    def done(self, job: Job) -> bool:
        """Whether a job is behind us."""
        if job.until is None:
            return self.result(job) is not None
        return self.epochs_of(job.name) >= job.until or self._diverged(job.name)

    def run(
        self, job: Job, benchmark: Benchmark, *, device: str, progress: Progress | None = None
    ) -> None:
        """Train on the search's dataset; a training that diverges leaves a note.

        Raises:
            Interrupted: by a signal; its state was saved.
            BurstError: see `bpt.train`.
        """
        place = self.out / job.name
        try:
            ClassificationSession.train(
                job.recipe,
                place,
                device=device,
                resume=True,
                until=job.until,
                progress=progress,
                opened=benchmark,
            )
        except NonFiniteLoss as error:
            save_json(place / FAILED, {"diverged": str(error)})


def trial_seed_of(out: Path) -> int | None:
    """The seed of the trials in a search's folder, by their names; None where there are none.

    Folds are of trials alone. Where there are none, a final training is of a point that was tried
    with the trials' seed, so that no seed has more runs than that.
    """
    names = [place.parent.name for place in (out / RUNS).glob(f"*/*/{folder.CONFIG}")]
    found = [one for name in names if (one := re.search(r"-seed(\d+)(-fold\d+of\d+)?$", name))]
    seeds = [int(one[1]) for one in [one for one in found if one[2]] or found]
    return max(sorted(seeds), key=seeds.count) if seeds else None


def _stem(method: str, point: Point) -> str:
    return f"{RUNS}/{method}/lr{point.lr:g}-wd{point.weight_decay:g}"


def _best(lines: list[dict[str, Any]], images: int) -> Score:
    """The best epoch's, as the protocol chooses it."""
    best = max(lines, key=lambda line: float(line["val_accuracy"]))
    return Score(best["val_accuracy"], best["val_loss"], images)


def _together(lines: list[dict[str, Any]], images: tuple[int, ...]) -> Score:
    """Over the images of several folds, of each the last epoch."""
    counts = images[: len(lines)]
    total = sum(counts)

    def mean(name: str) -> float:
        pairs = zip(lines, counts, strict=True)
        return sum(float(line[name]) * count for line, count in pairs) / total

    return Score(mean("val_accuracy"), mean("val_loss"), total)
