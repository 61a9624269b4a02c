"""The entries of a matrix as a histogram on a log scale, with the laws fitted to them."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from numpy.typing import NDArray

from burst.axis import RegularAxis
from burst.distribution import fit_generalised_gaussian, fit_laplace
from burst.errors import ShapeError
from burst.histogram import Histogram
from reports.style import ENTRIES_COLOUR, house_style, law_style

Floats = NDArray[np.float64]

LEAST_COUNT = 0.5  # below half an entry, a law expects none
CURVE_POINTS = 512


class Law(Protocol):
    """A fitted distribution, as `burst.distribution` has them."""

    def cdf(self, x: Floats) -> Floats:
        """Probability of a value up to x."""


class HistogramArtists(NamedTuple):
    """What `draw_histogram` drew: the filled steps, and a curve for each law that has one."""

    entries: StepPatch
    curves: dict[str, Line2D]


def fit_laws(hist: Histogram) -> dict[str, Law]:
    """The best Laplacian and the best generalised Gaussian, by name."""
    return {
        "generalised gaussian": fit_generalised_gaussian(hist),
        "laplacian": fit_laplace(hist),  # last, so that its dashes show where both agree
    }


def bin_edges(histograms: Sequence[Histogram], *, bins: int = 256) -> Floats:
    """Edges of even bins that the values of all histograms reach across, none beyond them.

    The width is the least power of two, with 0 an edge, of which `bins` span the values; so the
    bins of a float axis merge into them exactly. Where those are wider, towards the ends, there
    are fewer bins. A regular axis keeps its bins. Values that do not vary get room around
    them, and no values at all get the interval from -1/2 to 1/2.

    Raises:
        ShapeError: `bins` < 1, or different axes of which one is regular.
    """
    if bins < 1:
        raise ShapeError(f"a histogram needs at least 1 bin, got {bins}")
    if any(isinstance(hist.axis, RegularAxis) for hist in histograms):
        if len({hist.axis for hist in histograms}) > 1:
            raise ShapeError("histograms on different regular axes have no bins in common")
        return histograms[0].edges
    filled = [hist for hist in histograms if hist.count]
    lo, hi = _extent(filled)
    finest = max((float(np.diff(hist.edges).max()) for hist in filled), default=0.0)
    width = max(finest, 2.0 ** math.ceil(math.log2((hi - lo) / bins)))
    return width * np.arange(math.floor(lo / width), math.floor(hi / width) + 2, dtype=np.float64)


def draw_histogram(
    ax: Axes,
    hist: Histogram,
    *,
    bins: int | Floats = 256,
    laws: Mapping[str, Law] | None = None,
) -> HistogramArtists:
    """Entries per bin as filled steps on a log scale, and what fitted laws would expect.

    A law's curve is the count it expects in a bin around each value: at a bin's centre,
    count * (cdf(upper edge) - cdf(lower edge)). It ends where that falls below half an entry.
    A law with NaN parameters (of data that does not vary) has no curve.

    Args:
        ax: where to draw; its scale and limits are set, its labels are left alone.
        hist: what to draw.
        bins: how many bins at most span the values, or the edges of the bins, which the
            histogram's own bins must nest in.
        laws: by name, as in `fit_laws`, which is the default; an empty mapping draws none.

    Raises:
        ShapeError: the histogram's bins do not nest in the edges.
        UnknownName: a law that has no style.
    """
    edges = bins if isinstance(bins, np.ndarray) else bin_edges([hist], bins=bins)
    counts = merge_counts(hist, edges)
    with house_style():
        ax.set_yscale("log")
        steps = ax.stairs(counts, edges, baseline=LEAST_COUNT, fill=True, label="entries")
        steps.set(facecolor=ENTRIES_COLOUR, linewidth=0)
        curves = {}
        for name, law in (fit_laws(hist) if laws is None else laws).items():
            at, expected = _expected(law, hist.count, edges)
            if np.isfinite(expected).any():
                line = law_style(name)
                (curves[name],) = ax.plot(
                    at, expected, color=line.colour, ls=line.dashes, label=line.label
                )
    artists = HistogramArtists(steps, curves)
    margin = 0.02 * (edges[-1] - edges[0])  # keeps the outermost bins off the frame
    ax.set_xlim(edges[0] - margin, edges[-1] + margin)
    ax.set_ylim(LEAST_COUNT, ceiling(artists))
    return artists


def ceiling(artists: HistogramArtists) -> float:
    """Where the counts' axis ends: above the highest bin and curve, at 10 at least."""
    curves = [np.nanmax(np.asarray(curve.get_ydata())) for curve in artists.curves.values()]
    return 1.6 * float(max(10.0, artists.entries.get_data()[0].max(), *curves))


def _extent(filled: Sequence[Histogram]) -> tuple[float, float]:
    if not filled:
        return -0.5, 0.5
    lo = min(hist.moments.minimum for hist in filled)
    hi = max(hist.moments.maximum for hist in filled)
    room = 0.0 if lo < hi else abs(lo) / 2 or 0.5
    return lo - room, hi + room


def merge_counts(hist: Histogram, edges: Floats) -> NDArray[np.int64]:
    """Counts of the histogram's own bins in wider ones; what lies beyond is left out."""
    occupied = np.flatnonzero(hist.values())
    lower, upper = hist.edges[occupied], hist.edges[occupied + 1]
    index = np.searchsorted(edges, lower, side="right")
    if np.any(index != np.searchsorted(edges, upper, side="left")):
        raise ShapeError(f"{len(edges) - 1} bins cut through the histogram's own: use fewer")
    counts = np.zeros(len(edges) + 1, np.int64)
    np.add.at(counts, index, hist.values()[occupied])
    return counts[1:-1]


def _expected(law: Law, count: int, edges: Floats) -> tuple[Floats, Floats]:
    """Where, and how many entries the law expects in a bin around there; NaN below half a one.

    Between the centres of two bins the curve is that of a bin moved along, which shows a law
    that is as narrow as a bin.
    """
    bins = len(edges) - 1
    steps = max(4, math.ceil(CURVE_POINTS / bins))
    fine = np.linspace(0, bins - 1, (bins - 1) * steps + 1)
    lower = np.interp(fine, np.arange(bins), edges[:-1])
    upper = np.interp(fine, np.arange(bins), edges[1:])
    expected = count * (law.cdf(upper) - law.cdf(lower))
    near = np.convolve(expected >= LEAST_COUNT, [1, 1, 1])[1:-1] > 0  # with its neighbours
    return (lower + upper) / 2, np.where(near, np.maximum(expected, LEAST_COUNT), np.nan)
