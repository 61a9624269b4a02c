"""A power law fitted to the largest of some values, and where it begins."""

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

LEAST_COUNT = 10


@dataclass(frozen=True)
class PowerLaw:
    """p(x) ~ x^(-exponent) from xmin on.

    Attributes:
        exponent: of the density; NaN where none was fitted.
        xmin: the least value in the tail; NaN where none was fitted.
        count: how many values are in the tail; 0 where none was fitted.
        ks: Kolmogorov-Smirnov distance of these from the law; NaN where none was fitted.
    """

    exponent: float
    xmin: float
    count: int
    ks: float


def fit_power_law(values: NDArray[np.float64], *, least: int = LEAST_COUNT) -> PowerLaw:
    """The power law of the largest values, by maximum likelihood.

    exponent = 1 + n / sum(ln(x_i / xmin)) over the n values from xmin on; of all values for xmin
    that leave at least `least`, the one whose law is nearest to its tail (Kolmogorov-Smirnov). It
    measures how slowly a tail falls and does not say that it is a power law: look at `ks`. With
    few values the exponent is uncertain by about (exponent - 1) / sqrt(n).

    Args:
        values: any shape; those that are not above 0 are left out.
        least: the smallest tail that is tried, at least 2.

    Source: Clauset, Shalizi and Newman 2009, Eq. 3.1 and section 3.3, doi 10.1137/070710111.

    >>> fit_power_law(np.linspace(0.001, 0.999, 999) ** -0.5).exponent.__round__(2)
    3.0
    """
    logs = np.sort(np.log(values[values > 0], dtype=np.float64))[::-1]
    totals = np.cumsum(logs)
    best = PowerLaw(nan, nan, 0, nan)
    for n in range(max(least, 2), len(logs) + 1):
        excess = totals[n - 1] - n * logs[n - 1]
        tied = n < len(logs) and logs[n] == logs[n - 1]  # equal values go into a tail together
        if tied or excess <= n * np.finfo(np.float64).eps * abs(logs[0]):
            continue
        exponent = 1 + n / excess
        ks = _distance(logs[:n], exponent)
        if not ks >= best.ks:
            best = PowerLaw(float(exponent), float(np.exp(logs[n - 1])), n, ks)
    return best


def _distance(falling: NDArray[np.float64], exponent: float) -> float:
    """The largest difference of the distribution functions, above and below each step."""
    n = len(falling)
    law = -np.expm1((1 - exponent) * (falling[::-1] - falling[-1]))
    below = np.arange(n) / n
    return float(max((law - below).max(), (below + 1 / n - law).max()))
