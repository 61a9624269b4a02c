"""How bursty a histogram is: the statistics of one row of a table.

Moments are exact. What is read from bins is bounded by their relative width w, which is
2^-mantissa_bits on a `FloatAxis` (0.8 % by default): each docstring says how. There |values| below
2^-126, the least normal float32 number, count as zero. On a `RegularAxis` w is the width of a bin
over the value, so that small |values| are not resolved; and what depends on values that were
counted as under- or overflow is NaN, since only their number is known. Non-finite values are left
out of everything.
"""

from math import ceil, nan

import numpy as np
from scipy.special import xlog1py

from burst.distribution import (
    Bins,
    Floats,
    Segments,
    fit_gaussian,
    fit_generalised_gaussian,
    fit_laplace,
    ks_distance,
)
from burst.errors import BurstError
from burst.histogram import Histogram

STATISTICS: tuple[str, ...] = (
    "count",
    "mean",
    "std",
    "skewness",
    "excess_kurtosis",
    "min",
    "max",
    "abs_q50",
    "abs_q90",
    "abs_q99",
    "abs_q999",
    "gini",
    "top1_energy",
    "hill",
    "ggd_shape",
    "ks_gaussian",
    "ks_laplace",
)
"""The numbers of `describe`, in its order."""


def describe(hist: Histogram | Bins) -> dict[str, float]:
    """All `STATISTICS` of a histogram, by name and in that order.

    `count` to `max` are exact: they come from the moments of all finite values, whether inside the
    axis or not (`std`, `skewness` and `excess_kurtosis` are the population's, see `Moments`; the
    last is 0 for a Gaussian). The others are the functions of this module at their defaults.
    `count` is an integer; whatever is not defined is NaN.

    >>> from burst.axis import RegularAxis
    >>> from burst.moments import Moments
    >>> hist = Histogram(RegularAxis(1, 0.0, 4.0), [0, 3, 0], moments=Moments.of([1, 2, 3]))
    >>> describe(hist)["mean"]
    2.0
    """
    bins = Bins.of(hist)
    moments, empty = bins.moments, not bins.moments.count
    values = (
        moments.count,
        nan if empty else moments.mean,
        moments.std,
        moments.skewness,
        moments.excess_kurtosis,
        nan if empty else moments.minimum,
        nan if empty else moments.maximum,
        *(abs_quantile(bins, q) for q in (0.5, 0.9, 0.99, 0.999)),
        gini(bins),
        top_energy(bins),
        hill(bins),
        ggd_shape(bins),
        ks_gaussian(bins),
        ks_laplace(bins),
    )
    return dict(zip(STATISTICS, values, strict=True))


def abs_quantile(hist: Histogram | Bins, q: float) -> float:
    """The ceil(q count)-th smallest |value| (the smallest for q = 0).

    It is read off the bin that holds it, whose values are taken as evenly spread, so it is
    off by at most the bin's width: relative to the value, w. q = 1 is exact. NaN where the sample
    is empty, or the quantile lies among values that were counted as under- or overflow.

    Raises:
        BurstError: `q` outside 0..1.

    Source: Hyndman and Fan 1996, definition 1, doi 10.1080/00031305.1996.10473566.
    """
    if not 0 <= q <= 1:
        raise BurstError(f"a quantile needs q from 0 to 1, got {q}")
    bins = Bins.of(hist)
    rank = max(ceil(q * bins.moments.count), 1)
    if rank > bins.counts.sum():
        return nan
    value = _ordered(bins.absolute, rank)[0]
    return value if value <= bins.reach else nan


def gini(hist: Histogram | Bins) -> float:
    """Gini coefficient of |value|: 0 if all are equal, towards 1 if few hold nearly everything.

    G = sum_ij ||x_i| - |x_j|| / (2 n^2 mean|x|), the differences inside a bin included. For a
    centred Gaussian it is sqrt 2 - 1, for a centred Laplacian 1/2.

    Error: G is the mean of 2 rank/n - 1 under weights |x|. Moving each |x| within its bin changes
    the weights by factors that differ by at most w, so G by at most w/2; what a bin holds inside
    adds at most w/6. Together at most 2w/3. NaN where the sample is empty, has under- or
    overflow, or is all zero.

    Source: Hurley and Rickard 2009, Table I, doi 10.1109/TIT.2009.2027527.
    """
    bins = Bins.of(hist)
    if not _has_energy(bins):
        return nan
    values = bins.absolute
    mass = values.counts / values.counts.sum()
    middle = (values.lo + values.hi) / 2
    below = np.cumsum(mass) - mass
    between = mass * middle @ (2 * below + mass - 1)
    inside = mass**2 @ (values.hi - values.lo) / 6
    return float(np.clip((between + inside) / (mass @ middle), 0.0, 1.0))


def top_energy(hist: Histogram | Bins, *, share: float = 0.01) -> float:
    """Share of the energy (sum of squares) that the largest |values| hold.

    These are the ceil(share count) largest. With the default 1 % it is 0.085 for a Gaussian,
    0.16 for a Laplacian and 1 for a single spike.

    Error: the sum of all squares is known exactly, so only the smaller of the two parts, above or
    below the cut, is summed from bins, and the square of a value is known within 2w + w^2. Hence
    the result is off by at most 2w + w^2 times that part, which is about w where it is largest.
    NaN where the sample is empty, has under- or overflow, or is all zero.

    Raises:
        BurstError: `share` not above 0 or above 1.
    """
    bins, largest = Bins.of(hist), _largest(hist, share)
    if not _has_energy(bins):
        return nan
    energy, above = bins.moments.energy, _energy(_top(bins.absolute, largest))
    below = max(_energy(bins.absolute) - above, 0.0)
    return above / energy if above <= below else 1 - below / energy


def hill(hist: Histogram | Bins, *, share: float = 0.01) -> float:
    """Hill's tail index of |value|: alpha where P(|x| > t) falls as t^-alpha; small is bursty.

    1 / alpha is the mean of log(|x| / t) over the k = ceil(share count) largest, t being the
    (k + 1)-th largest. A Gaussian, whose tail is lighter than any power, gives about 9 at the
    default 1 %, a Laplacian about 5.5.

    Error: mean and threshold are each within log(1 + w) of the sample's, so 1 / alpha is
    within 2w. NaN where t does not exist, is zero, or shares a bin with zero, where
    the k largest equal it, and where the sample has under- or overflow.

    Raises:
        BurstError: `share` not above 0 or above 1.

    Source: Hill 1975, doi 10.1214/aos/1176343247.
    """
    bins, largest = Bins.of(hist), _largest(hist, share)
    if not bins.complete or largest >= bins.moments.count:
        return nan
    threshold, floor = _ordered(bins.absolute, bins.moments.count - largest)
    if floor == 0:
        return nan
    top = _top(bins.absolute, largest)
    excess = top.counts @ mean_log(top.lo / threshold, top.hi / threshold) / largest
    return float(1 / excess) if excess > 0 else nan


def ggd_shape(hist: Histogram | Bins) -> float:
    """Shape of the best generalised Gaussian: 2 Gaussian, 1 Laplacian, below 1 hyper-Laplacian.

    See `fit_generalised_gaussian` for its error, and for where it is NaN: among others where the
    values have no best shape. `fit_generalised_gaussian(hist).reason` says why.
    """
    return fit_generalised_gaussian(hist).shape


def ks_gaussian(hist: Histogram | Bins) -> float:
    """Kolmogorov-Smirnov distance to the best Gaussian; see `fit_gaussian` and `ks_distance`."""
    bins = Bins.of(hist)
    return ks_distance(bins, fit_gaussian(bins))


def ks_laplace(hist: Histogram | Bins) -> float:
    """Kolmogorov-Smirnov distance to the best Laplacian; see `fit_laplace` and `ks_distance`."""
    bins = Bins.of(hist)
    return ks_distance(bins, fit_laplace(bins))


def _has_energy(bins: Bins) -> bool:
    """Whether all values are in bins, and some are not zero."""
    return bins.complete and bool(bins.absolute.hi[-1] > 0)


def _largest(hist: Histogram | Bins, share: float) -> int:
    """How many values make up the largest `share`."""
    if not 0 < share <= 1:
        raise BurstError(f"a share of the largest values must be above 0 and up to 1, got {share}")
    return ceil(share * hist.moments.count)


def _ordered(values: Segments, rank: int) -> tuple[float, float]:
    """The `rank`-th smallest value, and the lower end of its segment."""
    upto = np.cumsum(values.counts)
    at = min(int(np.searchsorted(upto, rank)), upto.size - 1)
    lo, hi, count = values.lo[at], values.hi[at], values.counts[at]
    if rank >= upto[-1]:
        return float(hi), float(lo)
    place = np.clip((rank - 0.5 - upto[at] + count) / count, 0.0, 1.0)
    return float(lo + place * (hi - lo)), float(lo)


def _top(values: Segments, largest: int) -> Segments:
    """The `largest` greatest values; the segment that holds the cut is divided there."""
    counts = values.counts
    above = np.cumsum(counts[::-1])[::-1] - counts
    taken = np.clip(largest - above, 0.0, counts)
    lo = values.hi - (values.hi - values.lo) * (taken / counts)
    some = taken > 0
    return Segments(lo[some], values.hi[some], taken[some])


def _energy(values: Segments) -> float:
    """Sum of the squares."""
    lo, hi = values.lo, values.hi
    return float(values.counts @ (lo * lo + lo * hi + hi * hi) / 3)


def mean_log(lo: Floats, hi: Floats) -> Floats:
    """Mean of log x, x being uniform from `lo` to `hi`; written so that a narrow range is exact."""
    middle = (lo + hi) / 2
    u = (hi - lo) / (hi + lo)  # x = middle (1 + t), t uniform from -u to u
    integral = xlog1py(1 + u, u) - xlog1py(1 - u, -u)
    curve = np.divide(integral, 2 * u, out=np.ones_like(u), where=u > 0)
    return np.asarray(np.log(middle) + curve - 1)
