"""The interval of a paired difference, worked out from run folders alone by its formula."""

import numpy as np
from safetensors.numpy import load_file
from scipy import stats


def answers(folders):
    """(S, N), whether each run was right about each test image."""
    found = [load_file(folder / "predictions.safetensors") for folder in folders]
    return np.stack([one["predicted"] == one["labels"] for one in found])


def interval(first, second):
    """Of two (S, N) answers, S > 1: mean difference, low and high in points.

    Half the interval is sqrt(max(t^2 A + z^2 max(B - R, 0), z^2 max(B, R)) / (S N)), where A, B and
    R are the mean squares between seeds, between images and of the rest.
    """
    d = 100.0 * (first.astype(float) - second)
    seeds, images = d.shape
    rest = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
    r = (rest**2).sum() / ((seeds - 1) * (images - 1))
    a, b = images * d.mean(1).var(ddof=1), seeds * d.mean(0).var(ddof=1)
    z, t = stats.norm.ppf(0.975), stats.t.ppf(0.975, seeds - 1)
    half = np.sqrt(max(t**2 * a + z**2 * max(b - r, 0), z**2 * max(b, r)) / (seeds * images))
    return d.mean(), d.mean() - half, d.mean() + half


def of_methods(entry, row, out):
    """Of one of `differences`, where the runs of `methods` lie below a folder."""
    runs = {one["method"]: one["runs"] for one in entry["methods"]}
    names = (row["method"], row["against"])
    return interval(*(answers([out / run["folder"] for run in runs[name]]) for name in names))
