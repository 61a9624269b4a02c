"""What was counted, group of images by group -> rows of statistics with intervals over images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from burst.decomposition import Decomposition, Floats, GroupMoments, GroupSums, Margins
from burst.gauge import Key
from burst.groups import Counted
from burst.histogram import Histogram
from burst.jackknife import interval, jackknife
from burst.statistics import STATISTICS, describe

PARTS = ("kurtosis_null", "kurtosis_within_rows", "row_scale_share", "token_scale_share")
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
        found = [_added(parts) for parts in groups]
        return cls(*_added(part for group in groups for part in group), found)


def _added(parts: Iterable[Counted]) -> tuple[Histogram, Margins | None]:
    parts = list(parts)
    margins = [part.margins for part in parts if part.margins]
    whole = Margins.total(margins) if margins else None
    first, *others = (part.histogram for part in parts)
    return sum(others, first), whole


def survey_table(model: str, pretraining: str, counts: Mapping[Key, Counts]) -> pd.DataFrame:
    """One row a key, with the columns `COLUMNS`; NaN where a statistic is not defined."""
    rows = [
        {"model": model, "pretraining": pretraining}
        | {"block": block, "head": head, "quantity": quantity}
        | statistics(one)
        for (block, head, quantity), one in counts.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


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


def _intervals(counts: Counts) -> dict[str, tuple[float, float]]:
    hists, margins = zip(*counts.groups, strict=True) if counts.groups else ((), ())
    found = jackknife(hists)
    if counts.margins:
        found |= _intervals_of_parts(counts.margins, margins)
    return found


def _intervals_of_parts(
    whole: Margins, groups: Sequence[Margins]
) -> dict[str, tuple[float, float]]:
    rows = GroupMoments.stack([one.rows for one in groups]).left_out()
    columns = GroupSums.stack([one.columns for one in groups])
    estimates, left_out = _parts(whole.rows, whole.columns), _parts(rows, columns.left_out())
    return {name: interval(float(estimates[name]), left_out[name], columns.count) for name in PARTS}


def _parts(rows: GroupMoments, columns: GroupSums) -> dict[str, Floats]:
    by_row, by_token = Decomposition.of(rows), Decomposition.of(columns)
    parts = by_row.null, by_row.standardised, by_row.scale_share, by_token.scale_share
    return dict(zip(PARTS, parts, strict=True))
