"""What is known of a search -> what is to be done next. Nothing here runs or writes anything.

Every process works out the plan from the run folders alone, so all come to the same, whenever and
wherever they were started.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bpt.search.grid import Grid, Point, extension, outward
from bpt.search.halving import Lookup, Rung, Score, best_of, race


@dataclass(frozen=True)
class Course:
    """How far a method is.

    Attributes:
        rounds: points that began together, the grid first.
        work: (point, rung) to be run now.
        finalists: the scores of those that came to the last rung; empty while there is work.
        edges: the axes at an edge of which the best trial lies; None while a method has work, for
            the best may change.
    """

    rounds: list[list[Point]]
    work: list[tuple[Point, int]]
    finalists: dict[Point, Score]
    edges: tuple[str, ...] | None = None

    @property
    def tried(self) -> list[Point]:
        """All that ever began."""
        return [point for batch in self.rounds for point in batch]

    @property
    def best(self) -> Point | None:
        """The best of those that came to the end; None if all diverged."""
        return best_of(self.finalists)


def courses(
    grids: Mapping[str, Grid],
    lookups: Mapping[str, Lookup],
    *,
    rungs: Mapping[str, Sequence[Rung]],
    max_trials: int,
) -> dict[str, Course]:
    """By method how far it is; if none has work left, all are at the end of their search.

    A round begins for all methods at once, and with the same number of trials. After it, if the
    best trial of any method lies at an edge, each gets as many more as that one needs: towards its
    edge, or between the points around its best. That ends when all are inside, or when more would
    be above `max_trials`.

    Args:
        grids: where each begins; of the same size.
        lookups: what is known of each.
        rungs: of each.
        max_trials: of each method.
    """
    rounds = {method: [grid.points] for method, grid in grids.items()}
    while True:
        found = {}
        for method, lookup in lookups.items():
            work, finalists = race(rounds[method], rungs[method], lookup)
            found[method] = Course(rounds[method], work, finalists)
        if any(course.work for course in found.values()):
            return found
        tips = {method: _tip(course) for method, course in found.items()}
        needs = {
            method: outward(tips[method], course.tried, grids[method])
            for method, course in found.items()
        }
        size = max(len(points) for points in needs.values())
        full = max(len(course.tried) for course in found.values()) + size > max_trials
        if not size or full:
            edges = {
                method: tuple(
                    axis
                    for axis in Point._fields
                    if any(getattr(one, axis) != getattr(tips[method], axis) for one in points)
                )
                for method, points in needs.items()
            }
            return {name: replace(course, edges=edges[name]) for name, course in found.items()}
        for method, course in found.items():
            more = extension(tips[method], course.tried, grids[method], size)
            rounds[method] = [*rounds[method], more]


def _tip(course: Course) -> Point:
    """The best point; where all diverged, the most careful."""
    return course.best or min(course.tried)


def first_size(grids: Mapping[str, Grid]) -> int:
    """Points of each grid."""
    return max(len(grid.points) for grid in grids.values())


def all_work(found: Mapping[str, Course]) -> Sequence[tuple[str, Point, int]]:
    """(method, point, rung) to be run now."""
    return [(method, *item) for method, course in found.items() for item in course.work]
