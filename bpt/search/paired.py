"""Differences between two methods, paired by seed and test image, with their uncertainty.

Both methods are trained with the same seeds and tested on the same images, so each seed and image
gives a difference of its own: 1, 0 or -1. Seeds and images are two crossed samples: another set of
seeds would have given other differences, and so would another set of images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtrit

from bpt.run_folder import PREDICTIONS, RESULT, read_predictions
from burst.errors import BurstError, CheckpointError, ShapeError

LEVEL = 0.95
BASELINES = ("vpt", "linear")  # what others are compared with
TINY = 1e-12  # the smallest probability that is told
ADDED = 2  # images, see `paired_difference`


@dataclass(frozen=True)
class Difference:
    """A mean difference of accuracies, in points.

    Attributes:
        difference: first minus second.
        low, high: of the interval, of 95 % unless another level was asked for.
        p_value: two-sided, that there is none; never told below 1e-12.
        seeds, images: that it is taken over. With one seed it says nothing of other seeds.
    """

    difference: float
    low: float
    high: float
    p_value: float
    seeds: int
    images: int


def right_answers(runs: Iterable[Path]) -> NDArray[np.bool_]:
    """(S, N), whether each run, by its folder, was right about each test image.

    Raises:
        CheckpointError: the answers of one are not there, or damaged.
        BurstError: two of them were tested on other images, as their labels show.
    """
    places = list(runs)
    found = [_answers(run) for run in places]
    for run, (_, labels) in zip(places, found, strict=True):
        if not np.array_equal(labels, found[0][1]):
            raise BurstError(
                f"{places[0]} and {run} were tested on other images; compare them apart"
            )
    return np.stack([named == labels for named, labels in found])


def _answers(run: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) the class that was named of each test image, and its own."""
    if (answers := read_predictions(run)) is None:
        why = "it never came to its test"
        if (run / RESULT).exists():
            why = f"delete its {RESULT}, and the command that trained it tests it again"
        raise CheckpointError(f"{run} holds no {PREDICTIONS}: {why}")
    return answers["predicted"].numpy(), answers["labels"].numpy()


def paired_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], *, level: float = LEVEL
) -> Difference:
    """By how many points the first is more accurate, and how sure that is.

    The two-way random model d = mean + seed + image + rest splits the variance of the mean: A, the
    mean square between seeds, and what images have beyond the rest, max(B - R, 0), each over S N.
    Half the interval is sqrt(t^2 A + z^2 max(B - R, 0)) / sqrt(S N), with Student's t of S - 1
    degrees of freedom for seeds and its z, of N + 1, for images: so few seeds make it wide as far
    as seeds matter. Seeds that agree by chance do not make it narrower than
    sqrt(z^2 max(B, R)) / sqrt(S N), which is what images and chance alone leave open.

    Where few images differ, the variance is not known from them, so two are counted beside those
    that are there: one that both get right, half a one for the first alone, half a one for the
    second (Agresti and Min). And n images that differ allow no p-value below 2^(1 - n), that of all
    on one side (sign test). The interval holds the measured difference, and 0 where p says so.

    In simulations of 200 images and more it covers at least 95 % from two seeds on, where a
    bootstrap over three seeds, or Satterthwaite's degrees of freedom, do not; with one seed it says
    nothing of others. Where 2 to 6 of 50 to 1,000 images are expected to differ it is 95 to 100 %,
    but 86 % for two of 50, all on one side.

    Args:
        first: (S, N) bool, whether a method was right with each seed about each image.
        second: the same of another.
        level: of the interval, between 0 and 1.

    Raises:
        ShapeError: the two differ in shape, or there is no seed or no image.
        BurstError: `level` is not between 0 and 1.

    Source: Graybill and Wang 1980, doi 10.1080/01621459.1980.10477565 (limits of a sum of
    variances); the model as in Owen 2007, doi 10.1214/07-AOAS122; Agresti and Min 2005, doi
    10.1002/sim.1781.
    """
    if first.shape != second.shape or first.ndim != 2 or 0 in first.shape:
        raise ShapeError(
            f"first {first.shape} and second {second.shape} must both be (seeds, images), of at "
            "least one"
        )
    if not 0 < level < 1:
        raise BurstError(f"the level of an interval lies between 0 and 1, got {level}")
    d = 100.0 * (first.astype(np.float64) - second.astype(np.float64))
    seeds, images = d.shape[0], d.shape[1] + ADDED
    mean, middle = float(d.mean()), float(d.mean(0).sum()) / images
    of_seeds, of_images, alone = _variances(d, images)

    def reach(p: float) -> float:
        """Half an interval that misses with this probability."""
        of_one = stdtrit(images - 1, p / 2)  # of the lower end; only its square counts
        total = of_one**2 * of_images
        if seeds > 1:
            total = max(total + stdtrit(seeds - 1, p / 2) ** 2 * of_seeds, of_one**2 * alone)
        return float(np.sqrt(total / (seeds * images)))

    p_value = 1.0
    if mean:
        told = reach(TINY) > abs(middle)
        p_value = float(brentq(lambda p: reach(p) - abs(middle), TINY, 1.0)) if told else TINY
        p_value = max(p_value, 2.0 ** (1 - int(d.any(axis=0).sum())))
    half = reach(1 - level)
    held = [mean, 0.0] if p_value >= 1 - level else [mean]
    low, high = min(middle - half, *held), max(middle + half, *held)
    return Difference(mean, max(low, -100.0), min(high, 100.0), p_value, *d.shape)


def _variances(d: NDArray[np.float64], images: int) -> tuple[float, float, float]:
    """A, max(B - R, 0) and max(B, R) of `paired_difference`.

    Args:
        d: (S, N) differences in points.
        images: N, and those that are added.
    """
    seeds, by_image = len(d), d.mean(axis=0)
    squares = float(by_image @ by_image) + 100.0**2  # half an image of 100 points, half of -100
    between_images = seeds * (squares - by_image.sum() ** 2 / images) / (images - 1)
    if seeds == 1:
        return 0.0, between_images, between_images
    by_seed = d.mean(axis=1)
    rest = d - by_seed[:, None] - by_image + d.mean()
    within = float((rest**2).sum()) / ((seeds - 1) * (images - 1))
    between_seeds = images * float((d.sum(axis=1) / images).var(ddof=1))
    return between_seeds, max(between_images - within, 0.0), max(between_images, within)


def compared(names: Sequence[str], against: Sequence[str]) -> list[tuple[str, str]]:
    """Who is compared with whom: each of `names` with those of `against`, and these once.

    >>> compared(["linear", "vpt", "bpt-fwhiten"], ["vpt", "linear"])
    [('linear', 'vpt'), ('bpt-fwhiten', 'vpt'), ('bpt-fwhiten', 'linear')]
    """
    there = [one for one in against if one in names]
    return [
        (name, other)
        for place, other in enumerate(there)
        for name in names
        if name not in there[: place + 1]
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for being several, so that one wrong "better" among them stays as rare as for one.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    so_far = 0.0
    for place, index in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = so_far
    return [float(value) for value in adjusted]
