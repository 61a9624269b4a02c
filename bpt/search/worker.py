"""One process at work on a search: what is to be done next, and the record of what is known."""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from bpt.batches import check_share
from bpt.configuration import configuration, open_benchmark
from bpt.construction import open_backbone, prompted_blocks
from bpt.dataset import Benchmark, fold_of
from bpt.errors import Interrupted, RunExists
from bpt.prompt_starts import given_whitening
from bpt.recipe import Recipe
from bpt.records import read_record
from bpt.run_folder import CONFIG, Run, other_files
from bpt.search.news import News
from bpt.search.options import LEAST_VALIDATION, SearchOptions
from bpt.search.plan import Course, all_work, courses, first_size
from bpt.search.recipes import longer_probe, method_recipes, small_defaults
from bpt.search.record import (
    KIND,
    RECORD,
    differences,
    is_halved,
    method_record,
    sentences,
    trial_rows,
)
from bpt.search.same import other_recipes, other_runs
from bpt.search.trials import Job, Trials, trial_seed_of
from bpt.side_by_side import POLL
from bpt.signals import this_command
from burst.files import save_json, save_table
from burst.loading.common import required
from burst.lock import if_alone, one_at_a_time
from burst.progress import Progress, Say
from burst.provenance import provenance

TABLE = "search.csv"


class Worker:
    """One process's view of a search."""

    def __init__(
        self,
        base: Recipe,
        methods: Sequence[str],
        out: Path,
        options: SearchOptions,
        *,
        say: Say | None = None,
    ) -> None:
        self.base = base
        self.out, self.options, self.say = out, options, say or (lambda _: None)
        recipes = method_recipes(base, methods)
        self.benchmark = benchmark = open_benchmark(next(iter(recipes.values())), say=self.say)
        self.test_images = len(benchmark.test)
        validated = len(benchmark.val) if benchmark.val else 0
        self.folds = options.folds_of(validated)
        self.validated = validated
        self.recipes = recipes
        self.grids = {name: options.grid_of(recipe) for name, recipe in recipes.items()}
        self.max_trials = options.most_trials(first_size(self.grids))
        there = (out / RECORD).exists()
        self.before = before = read_record(out / RECORD, KIND) if there else {}
        trial_seed = before.get("trial_seed", trial_seed_of(out))
        self.trials = Trials(
            out,
            recipes,
            {name: options.rungs_of(one, validated) for name, one in recipes.items()},
            self.folds,
            _sizes(benchmark, self.folds),
            options.seeds,
            options.seeds[0] if trial_seed is None else trial_seed,
        )
        self.news = News(self.trials, self.say)

    def courses(self) -> dict[str, Course]:
        """How far each method is."""
        lookups = {name: functools.partial(self.trials.score, name) for name in self.recipes}
        rungs = self.trials.rungs
        return courses(self.grids, lookups, rungs=rungs, max_trials=self.max_trials)

    def jobs(self, found: dict[str, Course]) -> list[Job]:
        """What can be run now; nothing if all is done."""
        if work := all_work(found):
            return [self.trials.job(*item) for item in work]
        finals = [
            self.trials.final_job(method, course.best, seed)
            for seed in self.options.seeds
            for method, course in found.items()
            if course.best
        ]
        return [job for job in finals if not self.trials.done(job)]

    def work(self, device: str, *, progress: Progress | None = None) -> None:
        """Run what is to be run until nothing is left, here or anywhere."""
        self.begin()
        while jobs := self.jobs(self.courses()):
            if not any(self._take(job, device, progress) for job in jobs):
                time.sleep(POLL)
            self.tell()

    def begin(self) -> None:
        """Say what will be done."""
        self.news.begin(self.courses(), self._opening())

    def tell(self) -> None:
        """Say what is new, whoever did it."""
        self.news.tell(self.courses())

    def _opening(self) -> str:
        folds = f"{self.folds}-fold cross-validation on {sum(self.trials.images):,} images"
        why = f"{self.validated} validation images are fewer than {LEAST_VALIDATION}"
        how = f"{why}: {folds}" if self.folds else f"{self.validated:,} validation images"
        if small := small_defaults(self.base):
            how += f"; small, so that it takes minutes: {small}"
        if longer := longer_probe(self.recipes):
            how += f"; {longer}"
        count = first_size(self.grids)
        return f"{len(self.recipes)} methods, {count} trials each at first, {how}"

    def _take(self, job: Job, device: str, progress: Progress | None) -> bool:
        """Run a job, if no other process has it; whether there is something new."""
        with if_alone(self.trials.out / job.name / CONFIG) as alone:
            if not alone:
                return False
            if self.trials.done(job):
                return True
            try:
                self.trials.run(job, self.benchmark, device=device, progress=progress)
            except Interrupted as error:
                raise Interrupted(error.signum, this_command()) from error
        self.save()
        return True

    def check_start(self) -> None:
        """Refuse the folder of another search, and of a new one what its trainings would.

        Raises:
            RunExists: it names what differs.
            BurstError: the backbone or the whitening does not fit; nothing was written.
        """
        runs = {method: list(self.trials.runs(method)) for method in self.recipes}
        differing = [
            one
            for method, recipe in self.recipes.items()
            for one in other_runs(runs[method], recipe)
        ]
        if before := self.before:
            methods = dict.fromkeys([*(one["method"] for one in before["methods"]), *self.recipes])
            differing += other_recipes(before, method_recipes(self.base, list(methods)))
            if self.options.halving and not is_halved(before):
                differing.append("halving False, not True")
        if self.trials.trial_seed not in self.options.seeds:
            differing.append(f"trials of seed {self.trials.trial_seed}, which is not asked for")
        self._refuse(differing)
        self._refuse(self._other_files({name: mine[0] for name, mine in runs.items() if mine}))
        if not before:
            backbone = open_backbone(next(iter(self.recipes.values())))
            for recipe in self.recipes.values():
                for library in recipe.libraries:
                    required(library, library)
                check_share(recipe, 1)
                prompted_blocks(recipe, backbone)
                if recipe.needs_whitening and recipe.whitening:
                    given_whitening(recipe, backbone)

    def _refuse(self, differing: Sequence[str]) -> None:
        if differing:
            words = "; ".join(dict.fromkeys(differing))
            raise RunExists(f"{self.out} holds a search with {words}; choose another folder")

    def _other_files(self, there: Mapping[str, Run]) -> list[str]:
        """What of images, weights and whitening is other than when a run of a method was begun."""
        if not there:
            return []
        seed = next(iter(there.values())).recipe.seed  # which decides random weights
        backbone = open_backbone(replace(next(iter(self.recipes.values())), seed=seed))
        found: list[str] = []
        for method, run in there.items():
            fold = getattr(run.recipe, "fold", None)  # a digest is that of its images
            images = fold_of(self.benchmark, fold)
            found += other_files(run, configuration(self.recipes[method], images, backbone))
        return list(dict.fromkeys(found))

    def save(self) -> dict[str, Any]:
        """Write search.json and search.csv as things stand; what the former holds."""
        with one_at_a_time(self.out / RECORD, "writes"):
            record = self.record()
            save_json(self.out / RECORD, record)
            save_table(self.out / TABLE, pd.DataFrame(trial_rows(record)))
        return record

    def record(self) -> dict[str, Any]:
        """The content of search.json, as things stand."""
        found = self.courses()
        methods = [method_record(self.trials, name, course) for name, course in found.items()]
        first = next((one for one in self.recipes.values() if one.prompted), None)
        base = first or next(iter(self.recipes.values()))
        record = {
            "kind": KIND,
            "dataset": base.dataset,
            "model": base.model,
            "base": base.to_dict(),
            "validation": {
                "kind": "cross" if self.folds else "split",
                "images": sum(self.trials.images),
                "folds": self.folds,
            },
            "test_images": self.test_images,
            "trials_each": max(len(course.tried) for course in found.values()),
            "seeds": list(self.options.seeds),
            "trial_seed": self.trials.trial_seed,
            "options": self.options.to_dict(),
            "complete": not self.jobs(found),
            "methods": methods,
            "differences": differences(self.trials, methods),
        }
        return {**record, "sentences": sentences(record), **provenance()}


def _sizes(benchmark: Benchmark, folds: int | None) -> tuple[int, ...]:
    """Validation images, of each fold."""
    if folds is None:
        return (len(benchmark.val or ()),)
    cut = [fold_of(benchmark, f"{number}/{folds}").val for number in range(1, folds + 1)]
    return tuple(len(one or ()) for one in cut)
