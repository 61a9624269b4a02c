"""What was counted, group of images by group -> rows of statistics with intervals over images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from burst.decomposition import Decomposition, Floats, GroupMoments, GroupSums, Margins
from burst.gauge import Key
from burst.groups import Counted
from burst.histogram import Histogram
from burst.jackknife import LINEAR, SCALES, Interval, Scale, interval, jackknife
from burst.statistics import STATISTICS, describe

PART_SCALES = {  # on which their intervals are even
    "kurtosis_null": Scale(0, least=0.0),
    "kurtosis_within_rows": SCALES["excess_kurtosis"],
    "row_scale_share": LINEAR,
    "token_scale_share": LINEAR,
}
PARTS = tuple(PART_SCALES)
FIXED = ("count", "min", "max")  # an extreme has no jackknife
WITH_INTERVAL = tuple(name for name in (*STATISTICS, *PARTS) if name not in FIXED)
BOUNDS = tuple(f"{name}_{end}" for name in WITH_INTERVAL for end in ("low", "high"))
COLUMNS = ("model", "pretraining", "block", "head", "quantity", *STATISTICS, *PARTS, *BOUNDS)


class Counts(NamedTuple):
    """What was counted of one row.

    Attributes:
        histogram: of all.
        margins: of a product.
        groups: of each group of images; none of weights.
    """

    histogram: Histogram
    margins: Margins | None
    groups: Sequence[tuple[Histogram, Margins | None]]

    @classmethod
    def of(cls, groups: Iterable[Sequence[Counted]]) -> "Counts":
        """Of the parts of each group of images."""
        found = [_added([(part.histogram, part.margins) for part in parts]) for parts in groups]
        return cls(*_added(found), found)


def _added(parts: Sequence[tuple[Histogram, Margins | None]]) -> tuple[Histogram, Margins | None]:
    if len(parts) == 1:
        return parts[0]
    margins = [one for _, one in parts if one]
    whole = Margins.total(margins) if margins else None
    return Histogram.total([hist for hist, _ in parts]), whole


def survey_table(
    model: str, pretraining: str, rows: Mapping[Key, dict[str, float]]
) -> pd.DataFrame:
    """One row a key, with the columns `COLUMNS`; NaN where a statistic is not defined."""
    named = [
        {"model": model, "pretraining": pretraining}
        | {"block": block, "head": head, "quantity": quantity}
        | found
        for (block, head, quantity), found in rows.items()
    ]
    return pd.DataFrame(named, columns=list(COLUMNS))


def statistics(counts: Counts) -> dict[str, float]:
    """Of one row: `STATISTICS`, `PARTS` of a product, and `NAME_low`, `NAME_high` of those."""
    found = describe(counts.histogram)
    if counts.margins:
        rows, columns = counts.margins.rows, counts.margins.columns
        found |= {name: float(part) for name, part in _parts(rows, columns).items()}
    return found | {
        f"{name}_{end}": value
        for name, ends in _intervals(counts).items()
        for end, value in zip(("low", "high"), ends, strict=True)
    }


def _intervals(counts: Counts) -> dict[str, Interval]:
    found = jackknife([hist for hist, _ in counts.groups])
    margins = [one for _, one in counts.groups if one and one.columns.count]
    if counts.margins and margins:
        found |= intervals_of_parts(counts.margins, margins)
    return found


def intervals_of_parts(whole: Margins, groups: Sequence[Margins]) -> dict[str, Interval]:
    """95 % intervals over images of `PARTS`, by leaving each group of images out.

    Args:
        whole: of all images.
        groups: of each group, none of them empty.
    """
    rows = GroupMoments.stack([one.rows for one in groups]).left_out()
    columns = GroupSums.stack([one.columns for one in groups])
    estimates, left_out = _parts(whole.rows, whole.columns), _parts(rows, columns.left_out())
    return {
        name: interval(float(estimates[name]), left_out[name], columns.count, scale=scale)
        for name, scale in PART_SCALES.items()
    }


def _parts(rows: GroupMoments, columns: GroupSums) -> dict[str, Floats]:
    by_row, by_token = Decomposition.of(rows), Decomposition.of(columns)
    parts = by_row.null, by_row.standardised, by_row.scale_share, by_token.scale_share
    return dict(zip(PARTS, parts, strict=True))
