"""Intervals over groups of images."""

from collections.abc import Sequence
from math import nan

from burst.decomposition import Floats
from burst.histogram import Histogram


def jackknife(groups: Sequence[Histogram]) -> dict[str, tuple[float, float]]:
    """None yet."""
    return {}


def interval(estimate: float, left_out: Floats, sizes: Floats) -> tuple[float, float]:
    """None yet."""
    return nan, nan
