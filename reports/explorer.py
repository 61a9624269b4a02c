"""The report page's explorer: any histogram of its surveys, with fitted laws and statistics.

Its data is plain JSON in the page, which the browser's script `explorer.js` reads:

models, quantities     what there is to choose from, with names to show
statistics             [column, label] of what stands beside a histogram
rows                   one a histogram; its bins are `first`, `first` + `width` ... of which `bins`;
                       `finer` grids of as many bins follow it, each of half the width of that
                       before, to be zoomed into
                       `intervals` hold [low, high] of each statistic, null where there is no bound
counts                 all counts in the order of the rows, see `packed`
"""

import base64
from collections.abc import Hashable, Iterable, Sequence
from math import isfinite, isnan, sqrt
from typing import Any

import pandas as pd

from burst.axis import Axis, RegularAxis
from burst.distribution import Bins, fit_gaussian, fit_generalised_gaussian, fit_laplace
from burst.gauge import WHOLE
from burst.histogram import Counts, Histogram
from burst.survey import Survey
from reports.entries import merge_counts
from reports.style import LAWS, QUANTITIES, quantity_style

DIGITS = 6  # significant ones of a statistic: more than anybody reads
INTERVAL_DIGITS = 4
LAW_DIGITS = 10  # of its parameters: a curve that is right to less than a pixel
FINEST = 16  # bins a standard deviation: no finer grid is made of those that have as many
MOST_FINER = 6
NARROWEST = 2.0**-120  # float32 numbers end near there
INDEX = ("model", "pretraining", "block", "head", "quantity")
INTERVAL = ("_low", "_high")  # what the names of an interval's two columns end with
LABELS = {
    "count": "entries",
    "std": "standard deviation",
    "min": "least",
    "max": "greatest",
    "abs_q50": "median of |entry|",
    "abs_q90": "90 % of |entry| below",
    "abs_q99": "99 % of |entry| below",
    "abs_q999": "99.9 % of |entry| below",
    "gini": "Gini coefficient of |entry|",
    "top1_energy": "energy in the largest 1 %",
    "hill": "Hill tail index",
    "ggd_shape": "fitted shape",
    "ks_gaussian": "distance to best Gaussian",
    "ks_laplace": "distance to best Laplacian",
    "kurtosis_null": "kurtosis, Gaussian tokens",
    "kurtosis_within_rows": "kurtosis within dimensions",
    "row_scale_share": "share of dimensions' scales",
    "token_scale_share": "share of tokens' scales",
}


def explorer_data(surveys: Sequence[Survey]) -> dict[str, Any]:
    """What the explorer shows of one survey or several, as plain JSON-able data.

    Counts are those of `Histogram.rebin` to the survey's own number of bins. Whole blocks have
    finer grids too, about zero, as a few far entries make the bins wide. Laws are all written
    as generalised Gaussians [location, scale, shape], since the Gaussian is that of shape 2 and
    the Laplacian that of shape 1; None where none fits.
    """
    counts: list[Counts] = []
    rows: list[dict[str, Any]] = []
    columns = _statistics(pd.concat([survey.table for survey in surveys], ignore_index=True))
    for number, survey in enumerate(surveys):
        table = survey.table.assign(head=survey.table["head"].astype(str))
        keys = zip(table["block"], table["head"], table["quantity"], strict=True)
        values = dict(zip(keys, table.to_dict("records"), strict=True))
        for key, hist in survey.histograms.items():
            if key[2] in QUANTITIES and key in values:
                rebinned = hist.rebin(survey.record["options"]["bins"])
                finer = _finer(hist, rebinned) if key[1] == WHOLE else []
                counts += [rebinned.values(), *finer]
                row = _row(hist, rebinned.axis, values[key], columns)
                place = dict(zip(INDEX[2:], key, strict=True))
                rows.append({"model": number, **place, "finer": len(finer), **row})
    return {
        "models": [str(survey.record["model"]) for survey in surveys],
        "quantities": _quantities(rows),
        "laws": {name: line.label for name, line in LAWS.items()},
        "statistics": [[name, LABELS.get(name, name.replace("_", " "))] for name in columns],
        "whole": WHOLE,
        "rows": rows,
        "counts": packed(counts),
    }


def packed(counts: Iterable[Counts]) -> str:
    """Counts, one histogram after the other, as base64 of variable-length numbers.

    A number is written seven bits a byte, the lowest first, the eighth bit saying that more
    follow (LEB128). A zero is followed by how many more zeros there are, so the empty ends of a
    histogram take two or three bytes.
    """
    data = bytearray()
    for values in counts:
        at, numbers = 0, values.tolist()
        while at < len(numbers):
            _append(data, numbers[at])
            at += 1
            if not numbers[at - 1]:
                end = next((i for i in range(at, len(numbers)) if numbers[i]), len(numbers))
                _append(data, end - at)
                at = end
    return base64.b64encode(data).decode("ascii")


def without_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that are no end of another's interval."""
    return table[[name for name in table.columns if not _is_end(str(name), table)]]


def _append(data: bytearray, number: int) -> None:
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)


def _row(
    hist: Histogram, axis: Axis, values: dict[Hashable, Any], columns: Sequence[str]
) -> dict[str, Any]:
    assert isinstance(axis, RegularAxis)  # as `Histogram.rebin` makes it
    row: dict[str, Any] = {
        "bins": axis.bins,
        "first": axis.lo,
        "width": (axis.hi - axis.lo) / axis.bins,
        "laws": _laws(hist),
        "values": [_plain(values.get(name)) for name in columns],
    }
    ends = [[values.get(name + end) for end in INTERVAL] for name in columns]
    if any(isfinite(end) for pair in ends for end in pair if end is not None):
        row["intervals"] = [_interval(*pair) for pair in ends]
    return row


def _finer(hist: Histogram, rebinned: Histogram) -> list[Counts]:
    """Counts in ever narrower bins about 0, until `FINEST` are a standard deviation wide."""
    found: list[Counts] = []
    edges, least = rebinned.edges, max(hist.moments.std / FINEST, NARROWEST)
    while hist.moments.std > 0 and edges[1] - edges[0] > least and len(found) < MOST_FINER:
        edges = edges / 2
        counts = merge_counts(hist, edges)
        if not counts.any():  # all lie far from 0
            break
        found.append(counts)
    return found


def _laws(hist: Histogram) -> dict[str, list[float] | None]:
    bins = Bins.of(hist)
    normal, laplace, general = (
        fit_gaussian(bins), fit_laplace(bins), fit_generalised_gaussian(bins)
    )  # fmt: skip
    found = {
        "gaussian": (normal.loc, sqrt(2) * normal.scale, 2.0),
        "laplacian": (laplace.loc, laplace.scale, 1.0),
        "generalised gaussian": (general.loc, general.scale, general.shape),
    }
    return {
        name: [float(f"{one:.{LAW_DIGITS}g}") for one in law] if _drawable(law) else None
        for name, law in found.items()
    }


def _drawable(law: tuple[float, float, float]) -> bool:
    return all(isfinite(one) for one in law) and law[1] > 0


def _quantities(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    present = {row["quantity"] for row in rows}
    styles = {name: quantity_style(name) for name in QUANTITIES if name in present}
    return {
        name: {"symbol": style.plain, "unit": style.unit.replace(r"$1/\sqrt{d_h}$", "1/√d_h")}
        for name, style in styles.items()
    }


def _statistics(table: pd.DataFrame) -> list[str]:
    """Columns of numbers that say something, ends of intervals apart."""
    numbers = without_intervals(table).drop(columns=list(INDEX), errors="ignore")
    return [str(name) for name in numbers.select_dtypes("number").columns]


def _is_end(name: str, table: pd.DataFrame) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in table for end in INTERVAL)


def _interval(low: float | None, high: float | None) -> list[float | None] | None:
    """Both ends, None for one without a bound; None where there is no interval."""
    if any(end is None or isnan(end) for end in (low, high)):
        return None
    return [_plain(low, INTERVAL_DIGITS), _plain(high, INTERVAL_DIGITS)]


def _plain(value: float | None, digits: int = DIGITS) -> float | None:
    """A number as JSON has it: rounded, whole ones as they are, None for NaN and infinity."""
    if value is None or not isfinite(value):
        return None
    number = float(value)
    return int(number) if number.is_integer() else float(f"{number:.{digits}g}")
