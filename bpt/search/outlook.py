"""How much of a search is behind us, and about how long the rest will take."""

from collections.abc import Mapping, Sequence

from bpt.search.grid import Point
from bpt.search.halving import Rung, Score, kept
from bpt.search.plan import Course
from bpt.search.trials import Trials
from burst.progress import spoken_time

SURE = 0.02  # of a search, before which its speed says little: a probe begins with its features
PROBE = 0.01  # what an epoch of a linear probe costs against one of prompts, about


def lengths(rungs: Sequence[Rung]) -> list[int]:
    """Epochs from each rung's predecessor to it."""
    before, found = Rung(None, 0), []
    for rung in rungs:
        found.append(rung.epoch - (before.epoch if rung.fold == before.fold else 0))
        before = rung
    return found


def expected(rungs: Sequence[Rung], first: Sequence[Point], more: int = 0) -> int:
    """Epochs that trials take at most: of the first grid, halved, and of so many extensions."""
    total, going = more * sum(lengths(rungs)), list(first)
    for rung, length in zip(rungs, lengths(rungs), strict=True):
        total += len(going) * length
        equal = dict.fromkeys(going, Score(0.0, 0.0))
        going = kept(going, equal, by_rate=rung.epoch < rungs[-1].epoch)
    return total


def shares(trials: Trials, found: Mapping[str, Course]) -> tuple[float, float]:
    """Epochs that are done, and about how many are to come; those of a probe count for less."""
    done = ahead = 0.0
    for method, course in found.items():
        weight = PROBE if method == "linear" else 1.0
        rungs, mine = trials.rungs[method], 0
        for point in course.tried:
            for number, length in enumerate(lengths(rungs)):
                if trials.score(method, point, number) is None:
                    break
                mine += length
        first = course.rounds[0]
        most = expected(rungs, first, len(course.tried) - len(first))
        whole = mine if course.finalists else max(most, mine)
        ended = finals = 0
        for seed in trials.seeds:
            reused = trials.folds is None and seed == trials.trial_seed
            length = 0 if reused else rungs[-1].epoch
            finals += length
            best = course.best
            if best and trials.result(trials.final_job(method, best, seed)):
                ended += length
        done += weight * (mine + ended)
        ahead += weight * (whole - mine + finals - ended)
    return done, ahead


def time_left(seconds: float, done: float, ahead: float) -> str:
    """In words, after so many seconds; empty at the end, and while too little is done to tell.

    >>> time_left(10, 4, 100), time_left(10, 1, 2), time_left(10, 4, 2920)
    ('about 4 min left', 'about 20 s left', '')
    """
    if not ahead or done <= SURE * (done + ahead):
        return ""
    return f"about {spoken_time(seconds / done * ahead)} left"
