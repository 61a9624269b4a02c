"""Histograms of samples that exist, to draw."""

import numpy as np
import pytest

from burst.axis import FloatAxis
from burst.histogram import Histogram
from burst.moments import Moments


@pytest.fixture
def histogram_of():
    """A float-axis histogram of any sample, binned by its edges."""

    def build(values):
        values = np.asarray(values, np.float32)
        axis = FloatAxis()
        index = np.searchsorted(axis.edges, values, side="right")
        counts = np.bincount(index, minlength=axis.bins + 2)
        return Histogram(axis, counts, moments=Moments.of(values))

    return build
