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
    R are the mean squares between seeds, between images and of the rest. Among the images are two
    more: one that both get right, half a one for the first alone and half a one for the second.
    """
    d = 100.0 * (first.astype(float) - second)
    weights = np.append(np.ones(d.shape[1]), [1, 0.5, 0.5])
    wide = np.hstack([d, np.full((len(d), 3), [0.0, 100.0, -100.0])])
    seeds, images = len(d), weights.sum()
    of_seed, of_image = np.average(wide, axis=1, weights=weights), wide.mean(0)
    middle = of_seed.mean()
    rest = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
    r = (rest**2).sum() / ((seeds - 1) * (images - 1))
    a = images * of_seed.var(ddof=1)
    b = seeds * (weights @ (of_image - middle) ** 2) / (images - 1)
    z, t = stats.t.ppf(0.975, images - 1), stats.t.ppf(0.975, seeds - 1)
    half = np.sqrt(max(t**2 * a + z**2 * max(b - r, 0), z**2 * max(b, r)) / (seeds * images))
    return d.mean(), max(middle - half, -100.0), min(middle + half, 100.0)


def of_methods(entry, row, out):
    """Of one of `differences`, where the runs of `methods` lie below a folder."""
    runs = {one["method"]: one["runs"] for one in entry["methods"]}
    names = (row["method"], row["against"])
    return interval(*(answers([out / run["folder"] for run in runs[name]]) for name in names))
