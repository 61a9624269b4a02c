"""Successive halving: all trials begin, and at each rung the better half goes on.

Rungs lie at the end of trainings, of which a cross-validation has several; within one only where
that is asked for. Every trial follows the schedule of the whole, and while the rate is high, high
rates and decays are behind, of which one may be ahead once it has fallen (Wu et al. 2018,
"Understanding short-horizon bias in stochastic meta-optimization", arXiv 1803.02021). So within a
training each is compared with those of its own rate alone, which leaves that bias to decays; and
what a grid is extended by is not stopped there. A rate of which the better half diverges later is
lost with it, unless all that came to the end diverged.

Source: Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter
optimization", arXiv 1502.07943.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bpt.search.grid import Point

LEAST = 3  # trials that go on where all are compared, if there are so many


class Rung(NamedTuple):
    """Up to where a trial goes before it is compared.

    Attributes:
        fold: which part of a cross-validation, from 0; None where there is a validation split.
        epoch: of that training, from 1.
    """

    fold: int | None
    epoch: int


@dataclass(frozen=True)
class Score:
    """How good a trial was at a rung: accuracy in percent and mean loss on so many images.

    Of a trial that diverged all is None, and it loses against any other.
    """

    accuracy: float | None = None
    loss: float | None = None
    images: int = 0

    @property
    def key(self) -> tuple[float, float]:
        """Higher is better; among equal accuracies the lower loss."""
        if self.accuracy is None or self.loss is None:
            return (-math.inf, -math.inf)
        return (self.accuracy, -self.loss)

    @property
    def diverged(self) -> bool:
        """Whether there is nothing to compare."""
        return self.accuracy is None


DIVERGED = Score()
Lookup = Callable[[Point, int], Score | None]  # of a point at a rung's number; None: not there yet


def rungs(epochs: int, folds: int | None, *, halving: bool) -> list[Rung]:
    """Where trials are compared: at the end of the training, or of the training on each fold.

    Args:
        epochs: of a training.
        folds: how many there are; None where there is a validation split.
        halving: also after a quarter and a half of the first training.

    >>> rungs(10, 2, halving=False)
    [Rung(fold=0, epoch=10), Rung(fold=1, epoch=10)]
    >>> rungs(10, None, halving=True)
    [Rung(fold=None, epoch=3), Rung(fold=None, epoch=5), Rung(fold=None, epoch=10)]
    """
    first = None if folds is None else 0
    within = {math.ceil(epochs / 4), math.ceil(epochs / 2)} if halving else set[int]()
    marks = sorted({*within, epochs})
    return [Rung(first, epoch) for epoch in marks] + [
        Rung(fold, epochs) for fold in range(1, folds or 1)
    ]


def kept(going: Sequence[Point], scores: Mapping[Point, Score], *, by_rate: bool) -> list[Point]:
    """Those of `going` that are among the better half of all that came to a rung.

    What diverged never goes on.

    Args:
        going: trials that came to the rung now.
        scores: of all that ever came to it, of these and of earlier rounds.
        by_rate: the better half of each learning rate, as within a training; else of all, and at
            least the best three.
    """
    least = 1 if by_rate else LEAST
    rivals = defaultdict[float | None, list[Point]](list)
    for point in scores:
        rivals[point.lr if by_rate else None].append(point)
    better = set[Point]()
    for points in rivals.values():
        ranked = sorted(points, key=lambda point: scores[point].key, reverse=True)
        better.update(ranked[: max(least, math.ceil(len(ranked) / 2))])
    return [point for point in going if point in better and not scores[point].diverged]


def race(
    rounds: Sequence[Sequence[Point]], marks: Sequence[Rung], lookup: Lookup
) -> tuple[list[tuple[Point, int]], dict[Point, Score]]:
    """What is to be done next, or else who came to the end.

    Args:
        rounds: points that begin together; those of a later round begin when the one before it
            is at its end, are not stopped within a training, and are compared with all that came
            before. Where all that came to the end diverged, those that were stopped go on.
        marks: the rungs.
        lookup: what is known.

    Returns:
        (point, number of the rung) to be run now, in any order; and if that is empty, by point
        the scores at the last rung.
    """
    reached: list[dict[Point, Score]] = [{} for _ in marks]
    for number, batch in enumerate(rounds):
        begun = list(batch)
        while begun:
            missing, stopped = _go(begun, marks, lookup, reached, halve=not number)
            if missing:
                return missing, {}
            if number or best_of(reached[-1]):
                break
            for scores in reached[:-1]:  # what was ahead and diverged later stops nobody
                for point in set(begun).difference(stopped):
                    scores.pop(point, None)
            begun = stopped
    return [], reached[-1]


def _go(
    begun: Sequence[Point],
    marks: Sequence[Rung],
    lookup: Lookup,
    reached: list[dict[Point, Score]],
    *,
    halve: bool,
) -> tuple[list[tuple[Point, int]], list[Point]]:
    """From rung to rung: what is to be run now, or else who was stopped and had not diverged."""
    going, stopped = list(begun), list[Point]()
    for rung, mark in enumerate(marks):
        scores = {point: lookup(point, rung) for point in going}
        missing = [(point, rung) for point, score in scores.items() if score is None]
        if missing:
            return missing, []
        reached[rung] |= {point: score for point, score in scores.items() if score}
        alive = [point for point in going if not reached[rung][point].diverged]
        within = mark.epoch < marks[-1].epoch  # of a training, not at the end of one
        if within and not halve:
            going = alive
        elif rung < len(marks) - 1:
            going = kept(going, reached[rung], by_rate=within)
            stopped += [point for point in alive if point not in going]
    return [], stopped


def best_of(scores: dict[Point, Score]) -> Point | None:
    """The best that did not diverge; the first of equals."""
    good = {point: score for point, score in scores.items() if not score.diverged}
    return max(good, key=lambda point: good[point].key) if good else None
