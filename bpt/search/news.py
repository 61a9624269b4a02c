"""What a search says while it runs: each step once, whichever process took it."""

import time
from collections.abc import Iterator, Mapping

from bpt.search.outlook import shares, time_left
from bpt.search.plan import Course
from bpt.search.trials import Trials
from burst.progress import Say

Step = tuple[object, ...]  # which rung of which trial, or which seed of which method


class News:
    """What was told of a search, and what is new."""

    def __init__(self, trials: Trials, say: Say) -> None:
        self.trials, self.say = trials, say
        self._told = set[Step]()
        self._began: tuple[float, float] | None = None  # seconds on the clock, epochs done

    def begin(self, found: Mapping[str, Course], opening: str) -> None:
        """Say what will be done; what is done already is counted, and not told again."""
        self._told = {step for step, _ in self._steps(found)}
        done, _ = shares(self.trials, found)
        self._began = (time.monotonic(), done)
        already = f"; {len(self._told)} steps of it are done" if self._told else ""
        self.say(opening + already)

    def tell(self, found: Mapping[str, Course]) -> None:
        """Say what is new since it was last asked, and how long the rest takes."""
        new = {step: line for step, line in self._steps(found) if step not in self._told}
        self._told |= set(new)
        done, ahead = shares(self.trials, found)
        assert self._began is not None, "begin comes first"
        began, before = self._began
        rest = time_left(time.monotonic() - began, done - before, ahead)
        for line in new.values():
            self.say(f"{line}  ({rest})" if rest else line)

    def _steps(self, found: Mapping[str, Course]) -> Iterator[tuple[Step, str]]:
        """Everything that is done, with a line for each."""
        for method, course in found.items():
            yield from self._of_trials(method, course)
            yield from self._of_seeds(method, course)

    def _of_trials(self, method: str, course: Course) -> Iterator[tuple[Step, str]]:
        folds, marks = self.trials.folds, self.trials.rungs[method]
        for point in course.tried:
            name = f"{method} lr {point.lr:g} weight decay {point.weight_decay:g}"
            for number, (fold, epoch) in enumerate(marks):
                score = self.trials.score(method, point, number)
                if score is None:
                    break
                part = "" if fold is None else f" of fold {fold + 1} of {folds}"
                how = "diverged" if score.diverged else f"val {score.accuracy:.1f} %"
                if fold:  # a score is the mean of the folds that there are
                    how += f" over {fold + 1} folds"
                line = f"{name}: epoch {epoch} of {marks[-1].epoch}{part}, {how}"
                yield (method, point, number), line
                if score.diverged:
                    break

    def _of_seeds(self, method: str, course: Course) -> Iterator[tuple[Step, str]]:
        if course.best is None:
            return
        for seed in self.trials.seeds:
            result = self.trials.result(self.trials.final_job(method, course.best, seed))
            if result is not None:
                accuracy = result.get("test_accuracy")
                how = "diverged" if accuracy is None else f"test {accuracy:.1f} %"
                yield (method, course.best, "seed", seed), f"{method} seed {seed}: {how}"
