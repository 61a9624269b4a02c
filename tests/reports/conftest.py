"""Histograms of samples that exist, to draw, and a browser to look at pages with."""

import shutil

import numpy as np
import pytest

from burst.axis import FloatAxis
from burst.histogram import Histogram
from burst.moments import Moments

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


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


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()
