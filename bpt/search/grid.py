"""Learning rates and weight decays: where a search begins, and where it looks further."""

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from burst.errors import BurstError

LR_FACTOR = 4.0  # from one learning rate of a default grid to the next
LR_STEPS = (-2, -1, 0, 1)  # of them, around the default rate
DECAY_FACTOR = 10.0  # from one positive weight decay to the next
DEFAULT_DECAY = 0.05  # of a method whose default is 0


class Point(NamedTuple):
    """What a trial tries."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Grid:
    """Where a search begins: every learning rate with every weight decay.

    An axis with one value is fixed: the search never leaves it, and so it has no edge.

    Raises:
        BurstError: an axis is empty, has a value twice or one out of range.
    """

    lrs: tuple[float, ...]
    weight_decays: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values, least in (
            ("lrs", self.lrs, "positive"),
            ("weight_decays", self.weight_decays, "0 or more"),
        ):
            good = all(math.isfinite(one) and one >= 0 for one in values)
            if not values or not good or (least == "positive" and 0 in values):
                raise BurstError(f"{name} {list(values)} must be at least one number, each {least}")
            if len(set(values)) < len(values):
                raise BurstError(f"{name} {list(values)} has a value twice; give each once")

    @property
    def points(self) -> list[Point]:
        """Each rate with each decay, from the lowest on."""
        product = itertools.product(sorted(self.lrs), sorted(self.weight_decays))
        return [Point(lr, decay) for lr, decay in product]

    @property
    def lr_factor(self) -> float:
        """The widest step between two rates."""
        return _widest(self.lrs, LR_FACTOR)

    @property
    def decay_factor(self) -> float:
        """The widest step between two positive decays."""
        return _widest([one for one in self.weight_decays if one], DECAY_FACTOR)


def default_grid(lr: float, weight_decay: float) -> Grid:
    """Four rates, each four times the one before, around a method's own; no decay, and its own.

    >>> default_grid(0.04, 0.005)
    Grid(lrs=(0.0025, 0.01, 0.04, 0.16), weight_decays=(0.0, 0.005))
    """
    lrs = tuple(rounded(lr * LR_FACTOR**step) for step in LR_STEPS)
    return Grid(lrs, (0.0, weight_decay or DEFAULT_DECAY))


def outward(best: Point, tried: Collection[Point], grid: Grid) -> list[Point]:
    """What to try next where the best trial lies at an edge: a step further, an edge each.

    A rate is inside if a lower and a higher one were tried; a decay likewise, and 0 has nothing
    below it. Below the lowest positive decay comes 0.

    Args:
        best: of what was tried.
        tried: all, dropped and diverged trials among them.
        grid: where the search began.
    """
    found = []
    if len(grid.lrs) > 1:
        lrs = {one.lr for one in tried}
        if best.lr == max(lrs):
            found.append(best._replace(lr=rounded(best.lr * grid.lr_factor)))
        elif best.lr == min(lrs):
            found.append(best._replace(lr=rounded(best.lr / grid.lr_factor)))
    if len(grid.weight_decays) > 1:
        decays = {one.weight_decay for one in tried}
        if best.weight_decay == max(decays):
            further = best.weight_decay * grid.decay_factor
            found.append(best._replace(weight_decay=rounded(further)))
        elif best.weight_decay == min(decays) > 0:
            found.append(best._replace(weight_decay=0.0))
    return found


def extension(best: Point, tried: Collection[Point], grid: Grid, count: int) -> list[Point]:
    """`count` more points: outward where the best lies at an edge, else finer and finer around it.

    Raises:
        BurstError: both axes are fixed.
    """
    known = set(tried)
    found: list[Point] = []
    for point in itertools.chain(outward(best, tried, grid), _around(best, grid)):
        if len(found) == count:
            break
        if point not in known:
            found.append(point)
            known.add(point)
    return found


def _around(best: Point, grid: Grid) -> Iterator[Point]:
    """Ever nearer to a point: by half of a step of each axis, by a quarter, and so on."""
    free = [len(grid.lrs) > 1, len(grid.weight_decays) > 1]
    if not any(free):
        raise BurstError("one learning rate and one weight decay leave nothing to refine")
    base = best.weight_decay or min((one for one in grid.weight_decays if one), default=0.0)
    for depth in itertools.count(1):
        lr_step, decay_step = (
            factor ** (0.5**depth) for factor in (grid.lr_factor, grid.decay_factor)
        )
        lrs = [best.lr, best.lr / lr_step, best.lr * lr_step][: 3 if free[0] else 1]
        decays = [best.weight_decay]
        if free[1]:
            lower = base / grid.decay_factor**depth if not best.weight_decay else base / decay_step
            decays += [lower] + ([base * decay_step] if best.weight_decay else [])
        pairs = [(lr, decays[0]) for lr in lrs[1:]] + [(lrs[0], one) for one in decays[1:]]
        pairs += itertools.product(lrs[1:], decays[1:])
        yield from (Point(rounded(lr), rounded(decay)) for lr, decay in pairs)


def rounded(value: float) -> float:
    """To six digits, so that a name says all of it."""
    return float(f"{value:.6g}")


def _widest(values: Sequence[float], otherwise: float) -> float:
    ordered = sorted(values)
    return max((b / a for a, b in itertools.pairwise(ordered)), default=otherwise)
