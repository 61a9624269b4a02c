"""Gaussian, Laplace and generalised-Gaussian laws, fitted to a histogram by maximum likelihood.

Nothing but counts and moments is left of a stream, so a fit sees each bin as a uniform density.
On a `FloatAxis` a bin is at most 2^-mantissa_bits of the value wide (0.8 % by default), and
that is the accuracy unless a docstring below says better. It also says when it is worse: where the
spread of the values is small beside their distance from zero, so that they fill few bins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf, lgamma, log, nan

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import gammaincc, gammaln, ndtr

from burst.histogram import Histogram
from burst.moments import Moments

Floats = NDArray[np.float64]

SHAPES = (0.05, 50.0)  # generalised-Gaussian shapes that are searched; the ends are no fits
TINIEST = 2.0**-126  # the least normal float32 number; what is smaller counts as zero
COARSEST = 0.125  # mean bin width, in standard deviations, up to which a shape is fitted


@dataclass(frozen=True)
class Gaussian:
    """The normal law with mean `loc` and standard deviation `scale`; both NaN without a fit."""

    loc: float
    scale: float

    def pdf(self, x: ArrayLike) -> Floats:
        """Density at `x`, per unit of `x`; float64 of the shape of `x`."""
        return np.asarray(np.exp(-(_units(x, self) ** 2) / 2) / np.sqrt(2 * np.pi) / self.scale)

    def cdf(self, x: ArrayLike) -> Floats:
        """Probability of a value up to `x`; float64 of the shape of `x`."""
        return np.asarray(ndtr(_units(x, self)))


@dataclass(frozen=True)
class Laplace:
    """The Laplace law, exp(-|x - loc| / scale) / (2 scale); both numbers NaN without a fit."""

    loc: float
    scale: float

    def pdf(self, x: ArrayLike) -> Floats:
        """Density at `x`, per unit of `x`; float64 of the shape of `x`."""
        return np.asarray(np.exp(-abs(_units(x, self))) / 2 / self.scale)

    def cdf(self, x: ArrayLike) -> Floats:
        """Probability of a value up to `x`; float64 of the shape of `x`."""
        z = _units(x, self)
        tail = np.exp(-abs(z)) / 2
        return np.where(z > 0, 1 - tail, tail)


@dataclass(frozen=True)
class GeneralisedGaussian:
    """Density shape / (2 scale Gamma(1/shape)) exp(-(|x - loc| / scale)^shape).

    Shape 2 is the Gaussian (of standard deviation scale / sqrt 2), 1 the Laplacian, below 1 a
    hyper-Laplacian; a growing shape tends to the uniform law on loc +- scale.

    Attributes:
        loc, scale, shape: NaN where a fit does not exist.
        reason: why it does not; empty where it does.

    Source: Varanasi and Aazhang 1989, doi 10.1121/1.398700.
    """

    loc: float
    scale: float
    shape: float
    reason: str = ""

    def pdf(self, x: ArrayLike) -> Floats:
        """Density at `x`, per unit of `x`; float64 of the shape of `x`."""
        power = abs(_units(x, self)) ** self.shape
        return np.asarray(
            np.exp(np.log(self.shape / 2) - gammaln(1 / self.shape) - power) / self.scale
        )

    def cdf(self, x: ArrayLike) -> Floats:
        """Probability of a value up to `x`; float64 of the shape of `x`."""
        z = _units(x, self)
        half = np.sign(z) / 2
        return np.asarray(0.5 + half - half * gammaincc(1 / self.shape, abs(z) ** self.shape))


Law = Gaussian | Laplace | GeneralisedGaussian


def _units(x: ArrayLike, law: Law) -> Floats:
    """Distance from the law's place in its scales. scipy.stats has these laws too, slowly."""
    return (np.asarray(x, dtype=np.float64) - law.loc) / law.scale


@dataclass(frozen=True, eq=False)
class Segments:
    """`counts` values spread evenly from `lo` to `hi`, segment by segment, in ascending order.

    No segment is empty, none overlaps another, and one of width 0 is an atom.
    """

    lo: Floats
    hi: Floats
    counts: Floats

    @classmethod
    def between(cls, edges: Floats, counts: Floats, least: float, greatest: float) -> "Segments":
        """The occupied bins, the outermost cut at the least and the greatest value."""
        some = counts > 0
        edges = np.where(np.abs(edges) < TINIEST, 0.0, edges)
        lo, hi = edges[:-1][some], edges[1:][some]
        if lo.size:
            lo[0], hi[-1] = min(max(lo[0], least), hi[0]), max(min(hi[-1], greatest), lo[-1])
        return cls(lo, hi, counts[some])

    def distances(self, centre: float) -> tuple[Floats, Floats, Floats]:
        """Nearer end, farther end and count of the same segments measured from `centre`.

        One that contains it is split there; the result is neither sorted nor merged.
        """
        cut = np.flatnonzero((self.lo < centre) & (centre < self.hi))
        left = self.counts[cut] * (centre - self.lo[cut]) / (self.hi[cut] - self.lo[cut])
        lo = np.concatenate([self.lo, np.full(cut.size, centre)])
        hi = np.concatenate([self.hi, self.hi[cut]])
        counts = np.concatenate([self.counts, self.counts[cut] - left])
        hi[cut], counts[cut] = centre, left
        ends = np.abs(lo - centre), np.abs(hi - centre)
        return np.minimum(*ends), np.maximum(*ends), counts


@dataclass(frozen=True, eq=False)
class Bins:
    """What every statistic reads of a histogram: its occupied bins.

    Every function of a histogram here and in `burst.statistics` takes either; `Bins.of` once
    saves time where several follow.

    Attributes:
        edges: (k + 1,) ends of the occupied bins; a run of empty ones is one empty bin.
        counts: (k,) float64.
        moments: of all finite values.
        reach: no value that was counted as under- or overflow lies nearer to 0 than this; inf
            where there is none.
    """

    edges: Floats
    counts: Floats
    moments: Moments
    reach: float

    @classmethod
    def of(cls, hist: "Histogram | Bins") -> "Bins":
        """The bins of a histogram."""
        if isinstance(hist, Bins):
            return hist
        counts, edges, flow = hist.values(), hist.edges, hist.values(flow=True)
        known = np.append(counts > 0, False) | np.append(False, counts > 0)
        sides = [side for side, lost in ((-edges[0], flow[0]), (edges[-1], flow[-1])) if lost]
        cumulative = np.append(0, np.cumsum(counts))[known]
        kept = np.diff(cumulative).astype(np.float64)
        reach = max(0.0, float(min(sides, default=inf)))
        return cls(edges[known], kept, hist.moments, reach)

    @property
    def complete(self) -> bool:
        """Whether there are values, all of them in bins."""
        return bool(self.counts.size) and self.reach == inf

    @property
    def resolved(self) -> bool:
        """Whether all values are in bins, in more than one, and not all of them zero."""
        several = self.complete and self.counts.size > 1
        return several and bool(self.signed.lo[0] < self.signed.hi[-1])

    @cached_property
    def signed(self) -> Segments:
        """The values."""
        ends = self.moments.minimum, self.moments.maximum
        return Segments.between(self.edges, self.counts, *ends)

    @cached_property
    def absolute(self) -> Segments:
        """The |values|: negative bins folded on positive ones.

        Exact on a float axis, whose bins mirror each other up to the end that is closed.
        Elsewhere each bin is cut where another ends, its density being taken as uniform.
        """
        least, greatest = self.moments.minimum, self.moments.maximum
        radii = np.unique(np.abs(np.append(self.edges, 0.0)))
        below = np.append(0.0, np.cumsum(self.counts))
        inside = np.interp(radii, self.edges, below) - np.interp(-radii, self.edges, below)
        nearest = max(least, -greatest, 0.0)
        return Segments.between(radii, np.diff(inside), nearest, max(-least, greatest))

    @cached_property
    def median(self) -> float:
        """Where half of the values lie below, to within one bin; NaN unless `complete`."""
        if not self.complete:
            return nan
        signed, half = self.signed, self.counts.sum() / 2
        upto = np.cumsum(signed.counts)
        at = int(np.searchsorted(upto, half))
        if upto[at] == half:  # between two bins: as for a sample, the middle
            return float(signed.hi[at] + signed.lo[at + 1]) / 2
        share = (half - upto[at] + signed.counts[at]) / signed.counts[at]
        return float(signed.lo[at] + share * (signed.hi[at] - signed.lo[at]))


def fit_gaussian(hist: Histogram | Bins) -> Gaussian:
    """The best Gaussian, by maximum likelihood: mean and population standard deviation.

    Both come from the exact moments, under- and overflow included. NaN where the sample is empty
    or constant.
    """
    moments = hist.moments
    if not (moments.minimum < moments.maximum and moments.std > 0):
        return Gaussian(nan, nan)
    return Gaussian(moments.mean, moments.std)


def fit_laplace(hist: Histogram | Bins) -> Laplace:
    """The best Laplacian, by maximum likelihood: median and mean distance from it.

    The location is off by at most the width w of the bin that holds the median, the scale by at
    most w plus half the mean bin width: on a `FloatAxis` about 2^-(mantissa_bits + 1) times
    mean |x|, which is large beside the scale when the values lie far from zero.

    NaN where the sample is empty, lies in a single bin, or has under- or overflow.
    """
    bins = Bins.of(hist)
    if not bins.resolved:
        return Laplace(nan, nan)
    near, far, counts = bins.signed.distances(bins.median)
    return Laplace(bins.median, float(counts @ (near + far) / 2 / counts.sum()))


def fit_generalised_gaussian(hist: Histogram | Bins) -> GeneralisedGaussian:
    """The best generalised Gaussian: maximum likelihood over scale and shape, about the median.

    The location is held at the median because for shapes below 1 the density has a cusp: as a
    function of the location the likelihood then has one at every data point and no useful maximum
    (at a data point it is unbounded as the shape falls). For a given shape b the best scale is
    (b mean|x - loc|^b)^(1/b), which leaves a search over b alone: a grid over 0.05 to 50,
    then Brent's method. mean|x - loc|^b is integrated over each bin, the one at the location too.

    Where the likelihood is greatest at an end of the grid, it has no maximum, and there is no fit.
    An atom of some 5 % or more at the location draws the shape to the lower end, as it is ever more
    likely under ever sharper laws (exact zeros, such as those of a ReLU; an atom elsewhere, which a
    bin spreads out, goes part of the way: a shape well below 0.3 may be one). Values that are
    uniform, or alike in their distance from the median, draw it to the upper end, to the uniform
    law. Nor is there a fit to values in fewer than three bins.

    Error: the score's derivative in log|x| is the covariance of that perturbation with log|x|
    under weights |x|^b. So when every distance is known within a relative e, the shape is, to
    first order, within e b^2 sqrt(q) / ((1 + 1/b) q - 1) with q = trigamma(1 + 1/b): relative to
    b it is 1.7 e, 2.8 e, 4.8 e, 8.8 e at b = 0.5, 1, 2, 4, where e = 2^-mantissa_bits if loc = 0.
    That is the worst case; for a smooth density the bins' errors cancel to order e^2.
    A location far from 0 makes bins wide beside the spread, which blunts the cusp: where the mean
    width is 1/8 standard deviation, the shape comes out 10 % high at b = 0.5, 1 % at 1, and less
    than 1 % off above.

    All three are NaN, and `reason` says why, where there is no fit, and where the sample is empty,
    has under- or overflow, or has a mean bin width above 1/8 standard deviation.

    Source: Varanasi and Aazhang 1989, doi 10.1121/1.398700; Do and Vetterli 2002,
    doi 10.1109/83.982822.
    """
    bins = Bins.of(hist)
    if reason := _unfit(bins):
        return GeneralisedGaussian(nan, nan, nan, reason)
    near, far, counts = bins.signed.distances(bins.median)
    unit = far.max()
    mean_power = _mean_power(near / unit, far / unit, counts / counts.sum())
    shape = _argmax(lambda shape: _log_likelihood(shape, mean_power(shape)))
    if reason := _at_an_end(shape):
        return GeneralisedGaussian(nan, nan, nan, reason)
    scale = unit * (shape * mean_power(shape)) ** (1 / shape)
    return GeneralisedGaussian(bins.median, float(scale), shape)


def ks_distance(hist: Histogram | Bins, law: Law) -> float:
    """Kolmogorov-Smirnov distance sup |F_sample - F_law|, taken over the ends of the bins.

    Both are known exactly there, the least and the greatest value included, so this is a lower
    bound of the distance to the sample. It falls short of that by at most the largest share that a
    bin has of the sample: inside a bin both functions only rise.

    NaN where the law's parameters are, and where the sample is empty, lies in a single bin or has
    under- or overflow.

    Source: Massey 1951, doi 10.1080/01621459.1951.10500769.
    """
    bins = Bins.of(hist)
    if not bins.resolved:
        return nan
    points = bins.edges.copy()
    points[0], points[-1] = bins.signed.lo[0], bins.signed.hi[-1]
    sample = np.append(0.0, np.cumsum(bins.counts)) / bins.counts.sum()
    return float(np.abs(sample - law.cdf(points)).max())


def _unfit(bins: Bins) -> str:
    """Why no shape can be fitted; empty if one can."""
    if not bins.moments.count:
        return "there are no values"
    if not bins.complete:
        return "some values lie outside the bins"
    if np.count_nonzero(bins.counts) < 3:
        return "all values lie in one or two bins"
    if not bins.resolved:
        return "all values count as zero"
    if _mean_width(bins) > COARSEST * bins.moments.std:
        return "the bins are too wide beside the spread of the values"
    return ""


def _at_an_end(shape: float) -> str:
    """Why the likeliest of the shapes searched is none; empty if it is one."""
    least, most = SHAPES
    if shape < 1.001 * least:
        return "the likelihood grows as the shape falls: too many values are equal to the median"
    if shape > 0.999 * most:
        return "the likelihood grows with the shape: the values are as flat as under a uniform law"
    return ""


def _mean_width(bins: Bins) -> float:
    """Width of the bin that a value lies in, averaged over the values."""
    return float(bins.counts @ np.diff(bins.edges) / bins.counts.sum())


def _mean_power(near: Floats, far: Floats, weights: Floats) -> Callable[[float], float]:
    """The function b -> mean r^b; r is uniform from `near` to `far` with probability `weights`.

    With t = 1 - near / far the mean of one segment is far^b (1 - (1 - t)^(b + 1)) / ((b + 1) t),
    in a form that loses no digits to a narrow segment and holds for one that starts at 0.
    """
    some = far > 0  # an atom at the location adds nothing to any mean of powers
    near, far, weights = near[some], far[some], weights[some]
    width = np.maximum(1 - near / far, 1e-15)
    with np.errstate(divide="ignore"):  # -inf is right where near is 0
        log_far, log_ratio = np.log(far), np.log1p(-width)
    weights = weights / width

    def mean_power(b: float) -> float:
        parts = np.exp(b * log_far) * -np.expm1((b + 1) * log_ratio)
        return float(parts @ weights) / (b + 1)

    return mean_power


def _log_likelihood(shape: float, power: float) -> float:
    """Mean log-likelihood at the best scale, where `power` is mean|x - loc|^shape."""
    return log(shape / 2) - lgamma(1 / shape) - (log(shape * power) + 1) / shape


def _argmax(likelihood: Callable[[float], float]) -> float:
    """The shape within `SHAPES` that is likeliest."""
    grid = np.geomspace(*SHAPES, 11)
    best = int(np.argmax([likelihood(shape) for shape in grid]))
    around = log(grid[max(best - 1, 0)]), log(grid[min(best + 1, grid.size - 1)])
    search = minimize_scalar(
        lambda b: -likelihood(np.exp(b)), bounds=around, method="bounded", options={"xatol": 1e-7}
    )
    return float(max(grid[best], np.exp(search.x), key=likelihood))
