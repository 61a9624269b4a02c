"""Differences between two methods, paired by seed and test image, with their uncertainty.

Both methods are trained with the same seeds and tested on the same images, so each seed and image
gives a difference of its own: 1, 0 or -1. Seeds and images are two crossed samples: another set of
seeds would have given other differences, and so would another set of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean difference of accuracies, in points.

    Attributes:
        difference: first minus second.
        low, high: of the 95 % interval.
        p_value: two-sided, that there is none.
        seeds, images: that it is taken over. With one seed it says nothing of other seeds.
    """

    difference: float
    low: float
    high: float
    p_value: float
    seeds: int
    images: int


def paired_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], *, level: float = LEVEL
) -> Difference:
    """By how many points the first is more accurate.

    The two-way random model d = mean + seed + image + rest gives the variance of the mean, from
    the mean squares between seeds (A), between images (B) and of the rest (R): (A + max(B - R, 0))
    / (S N). The interval is Student's, with Satterthwaite's degrees of freedom: wide with few
    seeds where these differ.

    Args:
        first: (S, N), whether a method was right with each seed about each image.
        second: the same of another.
        level: of the interval.

    Source: Satterthwaite 1946, doi 10.2307/3002019; the model as in Owen 2007,
    doi 10.1214/07-AOAS122.
    """
    d = 100.0 * (first.astype(np.float64) - second.astype(np.float64))
    mean = float(d.mean())
    error, freedom = _standard_error(d)
    if error == 0.0:
        return Difference(mean, mean, mean, float(mean == 0.0), *d.shape)
    reach = float(t.ppf((1 + level) / 2, freedom)) * error
    p_value = float(2 * t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - reach, mean + reach, p_value, *d.shape)


def _standard_error(d: NDArray[np.float64]) -> tuple[float, float]:
    """Of the mean of (S, N) differences, and its degrees of freedom."""
    seeds, images = d.shape
    by_image = d.mean(axis=0)
    between_images = seeds * by_image.var(ddof=1) if images > 1 else 0.0
    if seeds == 1:
        return float(np.sqrt(between_images / images)), max(images - 1, 1)
    by_seed = d.mean(axis=1)
    between_seeds = images * by_seed.var(ddof=1)
    rest = d - by_seed[:, None] - by_image + d.mean()
    within = float((rest**2).sum()) / ((seeds - 1) * max(images - 1, 1))
    extra = max(between_images - within, 0.0)
    total = between_seeds + extra
    parts = between_seeds**2 / (seeds - 1)
    if extra:
        parts += between_images**2 / (images - 1) + within**2 / ((seeds - 1) * (images - 1))
    freedom = total**2 / parts if parts else 1.0
    return float(np.sqrt(total / (seeds * images))), max(freedom, 1.0)


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
