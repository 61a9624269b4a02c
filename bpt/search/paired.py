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
from safetensors.numpy import load_file
from scipy.optimize import brentq
from scipy.stats import norm, t

from bpt.run_folder import PREDICTIONS
from burst.errors import BurstError, ShapeError

LEVEL = 0.95
BASELINES = ("vpt", "linear")  # what others are compared with
TINY = 1e-12  # the smallest probability that is told


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
        BurstError: two of them were tested on other images, as their labels show.
    """
    places = list(runs)
    found = [load_file(run / PREDICTIONS) for run in places]
    for run, one in zip(places, found, strict=True):
        if not np.array_equal(one["labels"], found[0]["labels"]):
            raise BurstError(
                f"{places[0]} and {run} were tested on other images; compare them apart"
            )
    return np.stack([one["predicted"] == one["labels"] for one in found])


def paired_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], *, level: float = LEVEL
) -> Difference:
    """By how many points the first is more accurate, and how sure that is.

    The two-way random model d = mean + seed + image + rest splits the variance of the mean: A, the
    mean square between seeds, and what images have beyond the rest, max(B - R, 0), each over S N.
    Half the interval is sqrt(t^2 A + z^2 max(B - R, 0)) / sqrt(S N), with Student's t of S - 1
    degrees of freedom and the normal z: so few seeds make it wide as far as seeds matter. Seeds
    that agree by chance do not make it narrower than sqrt(z^2 max(B, R)) / sqrt(S N), which is
    what images and chance alone leave open. In simulations it covers at least 95 % from two seeds
    on, where a bootstrap over three seeds, or Satterthwaite's degrees of freedom, do not. Where all
    images differ alike there is no variance to go by, and they are counted: see `_unanimous`.

    Args:
        first: (S, N) bool, whether a method was right with each seed about each image.
        second: the same of another.
        level: of the interval, in 0..1.

    Raises:
        ShapeError: the two differ in shape, or there is no seed or no image.

    Source: Graybill and Wang 1980, doi 10.1080/01621459.1980.10477565 (limits of a sum of
    variances); the model as in Owen 2007, doi 10.1214/07-AOAS122.
    """
    if first.shape != second.shape or first.ndim != 2 or 0 in first.shape:
        raise ShapeError(
            f"first {first.shape} and second {second.shape} must both be (seeds, images), of at "
            "least one"
        )
    d = 100.0 * (first.astype(np.float64) - second.astype(np.float64))
    mean, size = float(d.mean()), d.size
    if mean and np.ptp(d) == 0:
        return _unanimous(mean, d.shape, level)
    of_seeds, of_images, alone = _variances(d)

    def reach(p: float) -> float:
        """Half an interval that misses with this probability."""
        of_one = norm.isf(p / 2) if d.shape[0] > 1 else t.isf(p / 2, max(d.shape[1] - 1, 1))
        total = of_one**2 * of_images
        if d.shape[0] > 1:
            total += t.isf(p / 2, d.shape[0] - 1) ** 2 * of_seeds
            total = max(total, of_one**2 * alone)
        return float(np.sqrt(total / size))

    if not mean:
        p_value = 1.0
    elif reach(TINY) <= abs(mean):
        p_value = TINY
    else:
        p_value = float(brentq(lambda p: reach(p) - abs(mean), TINY, 1.0))
    half = reach(1 - level)
    return Difference(mean, mean - half, mean + half, p_value, *d.shape)


def _unanimous(mean: float, shape: tuple[int, ...], level: float) -> Difference:
    """Where one is right about every image and the other about none: 100 points or -100.

    The sign test over images; and where that tells them apart, the limit of the share of images of
    which it holds (Clopper and Pearson 1934, doi 10.1093/biomet/26.4.404), else nothing is known.
    """
    seeds, images = shape
    p_value = 2.0 ** (1 - images)
    if p_value >= 1 - level:
        return Difference(mean, -100.0, 100.0, p_value, seeds, images)
    low, high = sorted((mean, mean * ((1 - level) / 2) ** (1 / images)))
    return Difference(mean, low, high, max(p_value, TINY), seeds, images)


def _variances(d: NDArray[np.float64]) -> tuple[float, float, float]:
    """Of (S, N) differences: A, max(B - R, 0) and max(B, R), see `paired_difference`."""
    seeds, images = d.shape
    by_image = d.mean(axis=0)
    between_images = float(seeds * by_image.var(ddof=1)) if images > 1 else 0.0
    if seeds == 1:
        return 0.0, between_images, between_images
    by_seed = d.mean(axis=1)
    rest = d - by_seed[:, None] - by_image + d.mean()
    within = float((rest**2).sum()) / ((seeds - 1) * max(images - 1, 1))
    between_seeds = float(images * by_seed.var(ddof=1))
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
