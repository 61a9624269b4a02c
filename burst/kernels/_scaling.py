"""Numbers that go to the Triton kernels and come back: shift, scale, a regular axis; power sums.

The kernels work in float32. What they need is given so that nothing overflows or is lost, and what
they sum is turned into moments in float64.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burst.axis import Axis, FloatAxis
from burst.errors import BackendError
from burst.kernels._tiles import MOST_BINS
from burst.moments import Moments

FARTHEST = 2.0**127  # regular axes must end before
LARGEST_EXPONENT = 126  # of a scale: float32 has the inverse too


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


def probe(sample: Tensor) -> Tensor:
    """(2,) float32: the sample's mean, and the power of two that makes its deviation about 1.

    Stays on the device. Non-finite values are left out; no deviation gives a scale of 1.
    """
    values = sample.double()
    finite = values.isfinite()
    count = finite.sum().clamp(min=1)
    shift = (values.where(finite, 0.0).sum() / count).float()
    deviation = values.where(finite, shift.double()) - shift
    std = ((deviation * deviation).sum() / count).sqrt()
    exponent = torch.frexp(std).exponent.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
    scale = torch.ldexp(torch.ones_like(std), -exponent).where(std > 0, 1.0)
    return torch.stack([shift, scale.float()])


def grid(axis: Axis, device: torch.device) -> Tensor:
    """What `_regular_slot` needs: seven numbers, then the edges rounded up to float32.

    With y scaled by a power of two so that |lo| and |hi| are at most 1, and lo taken off in two
    parts, t = (y - lo) bins / (hi - lo) has a relative error below 4 * 2^-24: at most
    bins * 2^-22. The margin is twice that, and 2^-50 for the rounding of the edges themselves.
    """
    if isinstance(axis, FloatAxis):
        return torch.zeros(1, device=device)
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


def central_moments(count: int, sums: NDArray[np.float64], shift: float, scale: float) -> Moments:
    """Central moments from s_p = sum of ((y - shift) scale)^p.

    With u = s1 / n: m2 = s2 - n u^2, m3 = s3 - 3 u s2 + 2 n u^3,
    m4 = s4 - 4 u s3 + 6 u^2 s2 - 3 n u^4, each divided by scale^p.
    """
    if not count:
        return Moments()
    low, high = float(sums[:, 4].min()), float(sums[:, 5].max())
    if low == high:
        return Moments(count, low, 0.0, 0.0, 0.0, low, high)
    s1, s2, s3, s4 = (math.fsum(column) if np.isfinite(column).all() else math.inf
                      for column in sums[:, :4].T)  # fmt: skip
    u = s1 / count
    m2 = max(s2 - count * u**2, 0.0)
    m3 = s3 - 3 * u * s2 + 2 * count * u**3
    m4 = max(s4 - 4 * u * s3 + 6 * u**2 * s2 - 3 * count * u**4, 0.0)
    return Moments(count, shift + u / scale, m2 / scale**2, m3 / scale**3, m4 / scale**4, low, high)


def better_probe(found: Moments, shift: float, scale: float) -> tuple[float, float] | None:
    """Another shift and scale, if the fourth powers left float32's range or the mean is far off.

    The largest |(y - shift) scale| must lie from 2^-10 to 2^28: no sum of fourth powers overflows
    then, and what underflows is below 2^-100 of the sum. Where no scale is large enough, the
    numbers are subnormal, at least 2^-149, and their fourth powers still 2^-92 at the largest one.
    """
    if found.minimum >= found.maximum:
        return None
    reach = max(found.maximum - shift, shift - found.minimum)
    if not 2.0**-10 <= reach * scale <= 2.0**28:
        best = -min(max(math.frexp(reach)[1], -LARGEST_EXPONENT), LARGEST_EXPONENT)
        if math.ldexp(1.0, best) != scale:
            return shift, math.ldexp(1.0, best)
    if abs(found.mean - shift) > 4.0 * math.sqrt(max(found.variance, 0.0)):
        nearest = float(np.float32(found.mean))
        return (nearest, scale) if nearest != shift else None
    return None
