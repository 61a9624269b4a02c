"""Intervals of where a kurtosis sits hold the truth of simulated surveys."""

import numpy as np
import pytest

from burst.decomposition import GroupMoments, Margins
from burst.survey_table import COLUMNS, FIXED, PARTS, intervals_of_parts

GROUPS, TOKENS, SPREAD = 20, 30, 0.1
VARIANCES = np.array([4.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25])  # of the rows


def simulated(images, rng):
    """Margins of groups of images, each with a scale of its own, of Gaussian rows."""
    scales = np.exp(SPREAD * rng.normal(size=images)).repeat(TOKENS)
    y = rng.normal(size=(len(VARIANCES), images * TOKENS)) * np.sqrt(VARIANCES)[:, None] * scales
    return [
        Margins(GroupMoments.of(part), GroupMoments.of(part.T).sums())
        for part in np.split(y, GROUPS, axis=1)
    ]


def truth():
    """Closed forms, from E g^2 and E g^4 of the log-normal scale g."""
    g2, g4 = np.exp(2 * SPREAD**2), np.exp(8 * SPREAD**2)
    v, v2 = VARIANCES.mean(), (VARIANCES**2).mean()
    pooled = 3 * v2 * g4 / (v * g2) ** 2 - 3
    # a token's variance over the rows, about its mean: E and E^2 of a Gaussian quadratic form
    n = len(VARIANCES)
    centring = np.eye(n) - 1 / n
    form = np.sqrt(VARIANCES)[:, None] * centring * np.sqrt(VARIANCES) / n
    mean, square = np.trace(form), 2 * np.trace(form @ form) + np.trace(form) ** 2
    return {
        "kurtosis_null": 3 * (v2 / v**2 - 1),
        "kurtosis_within_rows": 3 * (g4 / g2**2 - 1),
        "row_scale_share": 3 * (v2 - v**2) / v**2 / pooled,
        "token_scale_share": 3 * (square * g4 - (mean * g2) ** 2) / (v * g2) ** 2 / pooled,
    }


@pytest.mark.slow
def test_intervals_hold_the_truth_of_simulated_surveys():
    images, known = 2 * GROUPS, truth()
    rng = np.random.default_rng(images)
    held = dict.fromkeys(PARTS, 0)
    for _ in range(200):
        groups = simulated(images, rng)
        for name, (low, high) in intervals_of_parts(Margins.total(groups), groups).items():
            held[name] += low <= known[name] <= high
    for name, count in held.items():
        assert 0.90 <= count / 200 <= 0.99, (name, count)


def test_an_interval_of_equal_groups_is_a_point():
    one = simulated(GROUPS, np.random.default_rng(0))[0]
    found = intervals_of_parts(Margins.total([one] * GROUPS), [one] * GROUPS)
    for low, high in found.values():
        assert high - low < 1e-6 * abs(high)


def test_the_columns_end_with_an_interval_of_each_statistic_that_has_one():
    names = [name for name in COLUMNS[5:26] if name not in FIXED]
    assert list(COLUMNS[26:]) == [f"{name}_{end}" for name in names for end in ("low", "high")]
