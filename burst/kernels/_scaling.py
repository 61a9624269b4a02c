"""Numbers that go to the Triton kernels, a regular axis, and that come back: sums, made moments."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burst.axis import Axis, FloatAxis
from burst.decomposition import central
from burst.errors import BackendError
from burst.histogram import NonFinite
from burst.kernels._tiles import MOST_BINS
from burst.moments import Moments

Numbers = NDArray[np.float64]

FARTHEST = 2.0**127  # regular axes must end before


def takes(axis: Axis) -> bool:
    """Whether the kernels can bin on this axis: all but extreme regular ones."""
    return isinstance(axis, FloatAxis) or (
        max(abs(axis.lo), abs(axis.hi)) < FARTHEST and axis.bins <= MOST_BINS
    )


def check_axis(axis: Axis) -> None:
    """Refuse what `takes` refuses.

    Raises:
        BackendError: it says what is too large.
    """
    if takes(axis):
        return
    assert not isinstance(axis, FloatAxis)
    reach = max(abs(axis.lo), abs(axis.hi))
    raise BackendError(
        f"the triton backend takes up to {MOST_BINS} regular bins and edges below 2^127, got "
        f"{axis.bins} bins and {reach:.3g}; use backend='torch'"
    )


def grid(axis: Axis, device: torch.device) -> Tensor:
    """What `_regular_slot` needs: seven numbers, then the edges rounded up to float32.

    With y scaled by a power of two so that |lo| and |hi| are at most 1, and lo taken off in two
    parts, t = (y - lo) bins / (hi - lo) has a relative error below 4 * 2^-24: at most
    bins * 2^-22. The margin is twice that, and 2^-50 for the rounding of the edges themselves.
    """
    if isinstance(axis, FloatAxis):
        return torch.zeros(1, dtype=torch.float32, device=device)
    check_axis(axis)
    reach = max(abs(axis.lo), abs(axis.hi))
    scale = math.ldexp(1.0, -max(math.frexp(reach)[1], -126))
    lo_high = float(np.float32(axis.lo * scale))
    per_width = axis.bins / ((axis.hi - axis.lo) * scale)
    margin = min(1.0, axis.bins * 2.0**-21 + per_width * 2.0**-50)
    edges = _rounded_up(axis.edges)
    highest = -_rounded_up(np.array([-axis.hi]))
    head = [scale, lo_high, axis.lo * scale - lo_high, per_width, margin, edges[0], highest[0]]
    edges[-1] = np.inf  # the last bin holds its upper edge
    return torch.tensor([*head, *edges], dtype=torch.float32, device=device)


def _rounded_up(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The least float32 numbers not below `values`."""
    nearest = values.astype(np.float32)
    up: NDArray[np.float32] = np.nextafter(nearest, np.float32(np.inf), dtype=np.float32)
    return np.where(nearest.astype(np.float64) < values, up, nearest)


def merge(
    counts: Numbers,
    means: Numbers,
    powers: tuple[Numbers, Numbers, Numbers],
    extremes: tuple[Numbers, Numbers],
) -> Moments:
    """Moments of many samples together, from those of each.

    With d = mean_i - mean: m2 = sum of m2_i + n_i d^2, m3 = sum of m3_i + 3 d m2_i + n_i d^3,
    m4 = sum of m4_i + 4 d m3_i + 6 d^2 m2_i + n_i d^4, as `Moments.__add__` has it for two.

    Args:
        counts, means: of the samples; without a count the rest of a sample is not looked at.
        powers: sums of squares, cubes and fourth powers about each mean.
        extremes: minima and maxima.
    """
    some = counts > 0
    if not some.any():
        return Moments()
    n, mean, *higher, low, high = (numbers[some] for numbers in (counts, means, *powers, *extremes))
    varies = low < high  # the mean of equal numbers may round away from them
    mean = np.where(varies, mean, low)
    m2, m3, m4 = np.where(varies, higher, 0.0)
    count, minimum, maximum = int(n.sum()), float(low.min()), float(high.max())
    if minimum == maximum:
        return Moments(count, minimum, 0.0, 0.0, 0.0, minimum, maximum)
    whole = mean[0] + (n * (mean - mean[0])).sum() / count
    d = mean - whole
    return Moments(
        count,
        float(whole),
        float((m2 + n * d**2).sum()),
        float((m3 + 3 * d * m2 + n * d**3).sum()),
        float((m4 + 4 * d * m3 + 6 * d**2 * m2 + n * d**4).sum()),
        minimum,
        maximum,
    )


def from_rows(rows: Numbers) -> tuple[Moments, NonFinite]:
    """What the programs of a kernel kept, see `_triton_moments`, put together."""
    origin, s1, s2, s3, s4, low, high, *seen = rows.T
    nan, negative, positive, entries = seen
    count = entries - nan - negative - positive
    u, m2, m3, m4 = central(count, s1, s2, s3, s4)
    moments = merge(count, origin + u, (m2, m3, m4), (low, high))
    return moments, NonFinite(*(int(one.sum()) for one in (nan, negative, positive)))
