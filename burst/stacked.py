"""The statistics of many samples at once: what `describe` gives, for a stack of float histograms.

A jackknife wants all statistics of some twenty samples that differ little. Here the bins are
walked through once for all of them. Each function is the one of the same name in
`burst.statistics` or `burst.distribution`, where its definition, source and error stand, with an
axis for the samples in front.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np
from numpy.polynomial.polynomial import polyder, polyval, polyvander
from numpy.typing import NDArray
from scipy.special import digamma, ndtr, polygamma

from burst.distribution import TINIEST, Floats
from burst.moments import Moments
from burst.statistics import mean_log

Indices = NDArray[np.intp]

QUANTILES = {"abs_q50": 0.5, "abs_q90": 0.9, "abs_q99": 0.99, "abs_q999": 0.999}
NODES = np.linspace(-1.0, 1.0, 5)  # where mean powers are taken, in log shape
UNSMOOTH = 1e-4  # relative error up to which mean powers are linear in the centre
ROUNDING = 1e-12  # what is no larger counts as zero


@dataclass(frozen=True, eq=False)
class StackedSegments:
    """`counts` values spread evenly between neighbouring edges, sample by sample.

    Attributes:
        edges: (k + 1,) ascending; two are equal around an atom.
        counts: (s, k) float64, of whole numbers.
    """

    edges: Floats
    counts: Floats

    @cached_property
    def upto(self) -> Floats:
        """(s, k) how many values lie in a segment or below it."""
        return np.cumsum(self.counts, axis=1)

    @cached_property
    def middle(self) -> Floats:
        """(k,) the segments' middles."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    def holding(self, ranks: Floats) -> Indices:
        """(s,) the segments where the (s,) ranks are reached."""
        found = [row.searchsorted(rank) for row, rank in zip(self.upto, ranks, strict=True)]
        return np.minimum(found, self.edges.size - 2)

    def ordered(self, rank: Floats) -> tuple[Floats, Floats]:
        """The values of (s,) ranks, and the lower ends of their segments."""
        row, at = np.arange(rank.size), self.holding(rank)
        lo, hi, counts = self.edges[at], self.edges[at + 1], self.counts[row, at]
        place = np.clip((rank - 0.5 - self.upto[row, at] + counts) / counts, 0.0, 1.0)
        return np.where(rank >= self.upto[:, -1], hi, lo + place * (hi - lo)), lo


@dataclass(frozen=True, eq=False)
class Stack:
    """Samples on one grid of bins, symmetric about 0.

    Attributes:
        radii: (r + 1,) the bins' ends above 0, and 0 itself first.
        counts: (s, 2 r) float64: values in the bins below 0 and above, in ascending order.
        moments: of all s samples; none is empty.
    """

    radii: Floats
    counts: Floats
    moments: Sequence[Moments]

    def moment(self, name: str) -> Floats:
        """(s,) one attribute of the moments."""
        return np.array([getattr(moments, name) for moments in self.moments], dtype=np.float64)

    @cached_property
    def size(self) -> Floats:
        """(s,) how many values each sample has."""
        return self.moment("count")

    @cached_property
    def least(self) -> Floats:
        """(s,) each sample's least value."""
        return self.moment("minimum")

    @cached_property
    def greatest(self) -> Floats:
        """(s,) each sample's greatest value."""
        return self.moment("maximum")

    @cached_property
    def signed(self) -> StackedSegments:
        """The values, the outermost bins cut at the least and the greatest of all samples."""
        edges = np.concatenate([-self.radii[:0:-1], self.radii])
        least, greatest = self.least.min(), self.greatest.max()
        return StackedSegments(_cut(edges, least, greatest), self.counts)

    @cached_property
    def absolute(self) -> StackedSegments:
        """The |values|."""
        least, greatest = self.least.min(), self.greatest.max()
        edges = _cut(self.radii, max(least, -greatest, 0.0), max(-least, greatest))
        half = self.radii.size - 1
        return StackedSegments(edges, self.counts[:, half:] + self.counts[:, half - 1 :: -1])

    @cached_property
    def median(self) -> Floats:
        """(s,) where half of the values lie below, to within one bin."""
        signed, half = self.signed, self.size / 2
        row, at = np.arange(half.size), signed.holding(half)
        lo, hi, counts = signed.edges[at], signed.edges[at + 1], signed.counts[row, at]
        share = (half - signed.upto[row, at] + counts) / counts
        after = signed.edges[signed.holding(half + 0.25)]  # another segment's, if `at` ends there
        return np.where(share == 1, (hi + after) / 2, lo + share * (hi - lo))

    @cached_property
    def deviation(self) -> Floats:
        """(s,) mean distance from the median: the scale of the best Laplacian."""
        signed, centre = self.signed, self.median[:, None]
        lo, hi = signed.edges[:-1], signed.edges[1:]
        side = np.where(lo >= centre.max(), 1.0, np.where(hi <= centre.min(), -1.0, 0.0))
        sums = signed.counts @ np.stack([side * signed.middle, side], axis=1)
        some = side == 0
        distance = _mean_distance(lo[some], hi[some], centre)
        near = np.einsum("sk,sk->s", signed.counts[:, some], distance)
        return np.asarray((sums[:, 0] - self.median * sums[:, 1] + near) / self.size)

    @cached_property
    def distribution(self) -> Floats:
        """(s, 2 r) shares of the values up to the upper ends of the bins."""
        return self.signed.upto / self.size[:, None]

    @cached_property
    def apart(self) -> float:
        """The largest difference between the first sample's distribution and another's."""
        difference = self.distribution - self.distribution[0]
        return float(max(difference.max(), -difference.min()))


def _cut(edges: Floats, least: float, greatest: float) -> Floats:
    """The edges of bins cut at the least and the greatest value; tiny ones count as zero."""
    edges = np.clip(edges, least, greatest)
    return np.asarray(np.where(np.abs(edges) < TINIEST, 0.0, edges))


def _mean_distance(lo: Floats, hi: Floats, centre: Floats) -> Floats:
    """(s, k) mean |x - centre|, x being uniform from (k,) `lo` to `hi`, for (s, 1) centres."""
    inside = np.clip(centre, lo, hi)
    width = np.where(hi > lo, hi - lo, 1.0)
    split = ((inside - lo) ** 2 + (hi - inside) ** 2) / (2 * width)
    return np.asarray(np.abs(inside - centre) + split)


def describe_stack(stack: Stack, shape: float) -> dict[str, Floats]:
    """(s,) values of all `STATISTICS` but `count`, `min` and `max`; NaN where one is not defined.

    `shape` is the first sample's of the best generalised Gaussian, NaN if there is none.

    The outermost bins are cut at the least and greatest value of all samples instead of at each
    one's own: otherwise the values are those of `describe`, to rounding, but the shape. It is
    within 10^-3, relative, where the samples differ as little as in a jackknife.
    """
    values: dict[str, Floats] = {
        name: stack.moment(name) for name in ("mean", "std", "skewness", "excess_kurtosis")
    }
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        values |= {name: abs_quantile(stack, q) for name, q in QUANTILES.items()}
        values["gini"] = gini(stack)
        values["top1_energy"], values["hill"] = top_energy(stack), hill(stack)
        values["ggd_shape"] = ggd_shape(stack, shape)
        values["ks_gaussian"], values["ks_laplace"] = ks_gaussian(stack), ks_laplace(stack)
    return values


def abs_quantile(stack: Stack, q: float) -> Floats:
    """(s,) quantiles of |value|."""
    rank = np.maximum(np.ceil(q * stack.size), 1)
    values, _ = stack.absolute.ordered(rank)
    return np.where(rank < stack.size, values, np.maximum(-stack.least, stack.greatest))


def gini(stack: Stack) -> Floats:
    """(s,) Gini coefficients of |value|."""
    values, n = stack.absolute, stack.size
    total = values.counts @ values.middle
    pairs = 2 * values.upto
    pairs -= values.counts
    pairs *= values.counts
    between = pairs @ values.middle / n - total
    inside = np.square(values.counts) @ np.diff(values.edges) / (6 * n)
    return np.clip((between + inside) / total, 0.0, 1.0)


def top_energy(stack: Stack, *, share: float = 0.01) -> Floats:
    """(s,) shares of the energy that the largest |values| hold."""
    values, n = stack.absolute, stack.size
    above = _sum_of_largest(values, n - np.ceil(share * n), _mean_square)
    binned = values.counts @ _mean_square(values.edges[:-1], values.edges[1:])
    below, whole = np.maximum(binned - above, 0.0), stack.moment("energy")
    shares = np.where(above <= below, above / whole, 1 - below / whole)
    return np.where(binned > 0, shares, np.nan)


def hill(stack: Stack, *, share: float = 0.01) -> Floats:
    """(s,) Hill's tail indices of |value|."""
    values, n = stack.absolute, stack.size
    largest = np.ceil(share * n)
    threshold, floor = values.ordered(np.maximum(n - largest, 1))
    excess = _sum_of_largest(values, n - largest, _mean_log) / largest - np.log(threshold)
    known = (largest < n) & (floor > 0) & (excess > ROUNDING)
    return np.where(known, 1 / excess, np.nan)


def _sum_of_largest(
    values: StackedSegments, smaller: Floats, mean: Callable[[Floats, Floats], Floats]
) -> Floats:
    """(s,) sums over all but the (s,) `smaller` least values of what `mean` takes from lo, hi.

    The segment that holds the cut is divided there.
    """
    row, at = np.arange(smaller.size), values.holding(smaller + 0.25)
    first, hi = at.min(), values.edges[at + 1]
    upto, counts = values.upto[:, first:], values.counts[:, first:]
    taken = np.clip(upto - smaller[:, None], 0.0, counts)
    each = mean(values.edges[first:-1], values.edges[first + 1 :])
    cut = taken[row, at - first]
    lo = hi - (hi - values.edges[at]) * cut / values.counts[row, at]
    return np.asarray(taken @ each + cut * (mean(lo, hi) - each[at - first]))


def _mean_square(lo: Floats, hi: Floats) -> Floats:
    """Mean of x^2, x being uniform from `lo` to `hi`."""
    return (lo * lo + lo * hi + hi * hi) / 3


def _mean_log(lo: Floats, hi: Floats) -> Floats:
    """Mean of log x, x being uniform from `lo` to `hi`; 0 where both are."""
    return np.where(hi > 0, mean_log(lo, np.where(hi > 0, hi, 1.0)), 0.0)


def ks_gaussian(stack: Stack) -> Floats:
    """(s,) Kolmogorov-Smirnov distances to each sample's best Gaussian."""
    return _distances(stack, stack.moment("mean"), stack.moment("std"), ndtr)


def ks_laplace(stack: Stack) -> Floats:
    """(s,) Kolmogorov-Smirnov distances to each sample's best Laplacian."""
    return _distances(stack, stack.median, stack.deviation, _laplace_cdf)


def _laplace_cdf(z: Floats) -> Floats:
    """Distribution function of the Laplacian of location 0 and scale 1."""
    beyond = -np.expm1(-np.abs(z)) / 2  # between 0 and z
    return np.asarray(np.copysign(beyond, z) + 0.5)


def _distances(stack: Stack, loc: Floats, scale: Floats, cdf: Callable[[Floats], Floats]) -> Floats:
    """(s,) largest differences between each sample's distribution function and its law's.

    The first sample is compared at all ends of the bins. Another's distribution function and law
    lie within some e of its, so only where the first one's difference is within 2 e of the largest
    can theirs be largest: there alone they are compared.
    """
    edges = stack.signed.edges[1:]
    # Of either law the density is at most 1/2, and its product with |z| at most 1/4.
    moved = np.abs(loc - loc[0]) / 2 / np.minimum(scale, scale[0])
    stretched = np.abs(np.log(scale / scale[0])) / 4
    apart = stack.apart + (moved + stretched).max()
    first = np.abs(stack.distribution[0] - cdf((edges - loc[0]) / scale[0]))
    near = np.flatnonzero(first >= first.max() - 2 * apart)
    law = cdf((edges[near] - loc[:, None]) / scale[:, None])
    inside = np.abs(stack.distribution[:, near] - law).max(axis=1, initial=0.0)
    ends = cdf((stack.least - loc) / scale), 1 - cdf((stack.greatest - loc) / scale)
    several = stack.counts.max(axis=1) < stack.size
    several &= stack.signed.edges[0] < stack.signed.edges[-1]  # else all of it counts as zero
    return np.where(several & (scale > 0), np.maximum(inside, np.maximum(*ends)), np.nan)


def ggd_shape(stack: Stack, near: float) -> Floats:
    """(s,) shapes of the best generalised Gaussians, `near` being the first one's.

    Mean powers of the distance from the median are taken for five shapes, and their logarithms
    interpolated. Where the medians differ little, which is checked, mean powers are taken about one
    centre, and their derivatives by it, which are exact, do the rest.
    """
    found, missing = np.full(stack.size.size, log(near)), np.full(stack.size.size, np.nan)
    for _ in range(3):
        least, most = found.min(), found.max()
        middle, reach = (least + most) / 2, max(0.1, 0.75 * (most - least))
        if not reach < 1:  # NaN, or samples that are no neighbours
            break
        shapes = np.exp(middle + reach * NODES)
        found = middle + reach * _likeliest(middle, reach, np.log(_mean_powers(stack, shapes)))
        if np.abs(found - middle).max() <= reach:
            return np.asarray(near * np.exp(found - found[0]))  # what interpolation adds to all
    return missing


def _mean_powers(stack: Stack, shapes: Floats) -> Floats:
    """(s, b) means of (|x - median| / unit)^shape; the unit is the same for all."""
    edges, counts, median = stack.signed.edges, stack.counts, stack.median
    centre = median.mean()
    unit = max(centre - edges[0], edges[-1] - centre)
    powers, slopes = _powers_about(centre, unit, edges, counts, shapes)
    powers = powers + (median - centre)[:, None] / unit * slopes
    far, middle = np.abs(median - centre).argmax(), shapes.size // 2
    checked, _ = _powers_about(median[far], unit, edges, counts[[far]], shapes[[middle]])
    if abs(powers[far, middle] - checked[0, 0]) > UNSMOOTH * checked[0, 0]:
        own = zip(median, counts, strict=True)
        powers = np.array([_powers_about(m, unit, edges, c, shapes)[0] for m, c in own])
    return np.asarray(powers / stack.size[:, None])


def _powers_about(
    centre: float, unit: float, edges: Floats, counts: Floats, shapes: Floats
) -> tuple[Floats, Floats]:
    """Sums of (|x - centre| / unit)^shape, and their derivatives by centre / unit."""
    distance = (edges - centre) / unit
    width, log_distance = np.diff(distance), np.log(np.abs(distance))
    atom = width == 0
    width[atom] = 1.0
    columns = []
    for b in shapes:
        power = np.exp(b * log_distance)
        mean, slope = np.diff(distance * power) / ((b + 1) * width), -np.diff(power) / width
        mean[atom] = power[:-1][atom]
        columns += [mean, slope]
    sums = counts @ np.stack(columns, axis=1)
    return sums[..., ::2], sums[..., 1::2]


def _likeliest(middle: float, reach: float, log_powers: Floats) -> Floats:
    """(s,) where between the `NODES` the likeliest shapes lie; `log_powers` (s, 5) is known there.

    With t = log b, a = 1 / b and y = log mean|x|^b the mean log-likelihood at the best scale is
    t - log 2 - lgamma(a) - a (t + y + 1). Newton's method finds the zero of its derivative.
    """
    power = np.linalg.solve(polyvander(NODES, NODES.size - 1), log_powers.T)
    slope, curve = polyder(power) / reach, polyder(power, 2) / reach**2
    u = np.zeros(len(log_powers))
    for _ in range(4):
        t = middle + reach * u
        a = np.exp(-t)
        y, dy, ddy = (polyval(u, part, tensor=False) for part in (power, slope, curve))
        inner = digamma(a) + t + y - dy
        derivative = a * (1 + dy - ddy - a * polygamma(1, a) - inner)
        u = u - np.clip((1 + a * inner) / derivative / reach, -1.0, 1.0)
    return u
