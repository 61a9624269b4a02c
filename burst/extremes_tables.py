"""Peaks of each block's response -> tidy tables, the model's beside those of its nulls."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from burst._peaks import Floats, Integers, Peaks
from burst.patches import PATCH, TOKEN, PatchGrid

MODEL, WEIGHTS_NULL, TOKENS_NULL = SOURCES = ("model", "permuted weights", "permuted tokens")
"""Whose response it is: the model's; that of its W_q and W_k with their entries in random order to
its tokens; that of the model to its tokens with each dimension's values in random order."""

Key = tuple[str, int]  # source, block


class TableWriter:
    """Writes tables of blocks.

    Args:
        items: names of the images, by number; None where they have none.
        prefixes: of each block, what the tokens in front of the patches are called.
        grids: of each block, how its patches lie in the picture.
    """

    def __init__(
        self,
        items: Sequence[str] | None,
        prefixes: Mapping[int, Sequence[str]],
        grids: Mapping[int, PatchGrid | None],
    ) -> None:
        self._items, self._prefixes, self._grids = items, prefixes, grids

    def tables(self, peaks: Mapping[Key, Peaks]) -> dict[str, pd.DataFrame]:
        """Those of `burst.Extremes`, by name."""
        makers = self._entries, self._by_dimension, self._by_token
        parts: list[list[pd.DataFrame]] = [[], [], []]
        for (source, block), one in peaks.items():
            for made, make in zip(parts, makers, strict=True):
                made.append(make(source, block, one))
        entries, dimensions, tokens = (pd.concat(made, ignore_index=True) for made in parts)
        summary = pd.DataFrame([self._summary(*key, one) for key, one in peaks.items()])
        own = entries[entries.pop("source") == MODEL].reset_index(drop=True)
        dimensions["massive"] = _above(dimensions, WEIGHTS_NULL)
        tokens["massive"] = _above(tokens, TOKENS_NULL)
        return {"table": own, "dimensions": dimensions, "tokens": tokens, "summary": summary}

    def _entries(self, source: str, block: int, peaks: Peaks) -> pd.DataFrame:
        images = peaks.item if self._items is None else [self._items[i] for i in peaks.item]
        return pd.DataFrame(
            {
                "source": source,
                "block": block,
                "rank": np.arange(1, len(peaks.value) + 1),
                "value": peaks.value,
                "image": images,
                "token": peaks.token,
                **self._place(block, peaks.token),
                "dimension": peaks.dimension,
            }
        )

    def _by_dimension(self, source: str, block: int, peaks: Peaks) -> pd.DataFrame:
        energy = peaks.by_dimension
        return pd.DataFrame(
            {
                "source": source,
                "block": block,
                "dimension": np.arange(len(energy)),
                "energy": energy,
                "share": _shares(energy),
                "extremes": np.bincount(peaks.dimension, minlength=len(energy)),
            }
        )

    def _by_token(self, source: str, block: int, peaks: Peaks) -> pd.DataFrame:
        there = np.flatnonzero(peaks.tokens)
        energy = peaks.by_token
        extremes = np.bincount(peaks.token, minlength=len(energy))
        return pd.DataFrame(
            {
                "source": source,
                "block": block,
                "token": there,
                **self._place(block, there),
                "count": peaks.tokens[there],
                "energy": energy[there],
                "share": _shares(energy)[there],
                "extremes": extremes[there],
            }
        )

    def _place(self, block: int, token: Integers) -> dict[str, Any]:
        """Kind, row and column of tokens."""
        names, grid = self._prefixes[block], self._grids.get(block)
        prefix = len(names)
        other = PATCH if grid or prefix else TOKEN
        patch = token - prefix
        known = (patch >= 0) & (grid is not None)
        columns = grid.columns if grid else 1
        return {
            "kind": [names[i] if i < prefix else other for i in token],
            "row": pd.arrays.IntegerArray(patch // columns, ~known),
            "column": pd.arrays.IntegerArray(patch % columns, ~known),
        }

    def _summary(self, source: str, block: int, peaks: Peaks) -> dict[str, Any]:
        largest = float(np.abs(peaks.value).max(initial=0.0))
        entries = int(peaks.tokens.sum()) * len(peaks.by_dimension)
        rms = float(np.sqrt(peaks.energy / entries)) if entries else np.nan
        shares, by_token = _shares(peaks.by_dimension), _shares(peaks.by_token)
        return {
            "source": source,
            "block": block,
            "largest": largest,
            "rms": rms,
            "times_rms": largest / rms if rms else np.nan,
            "dimensions": len(np.unique(peaks.dimension)),
            "tokens": len(np.unique(peaks.token)),
            "images": len(np.unique(peaks.item)),
            "most_in_a_dimension": int(np.bincount(peaks.dimension).max(initial=0)),
            "most_in_a_token": int(np.bincount(peaks.token).max(initial=0)),
            "top_dimension_share": shares.max(initial=0.0),
            "dimensions_third": carriers(shares, 1 / 3),
            "dimensions_half": carriers(shares, 1 / 2),
            "top_token_share": by_token.max(initial=0.0),
            "prefix_share": by_token[: len(self._prefixes[block])].sum(),
        }


def carriers(shares: Iterable[float], part: float) -> int:
    """How few of the largest shares add up to `part` of the sum of all; 0 if that is 0.

    >>> carriers([0.1, 0.5, 0.2, 0.2], 0.6)
    2
    """
    falling = np.sort(np.asarray(list(shares), np.float64))[::-1]
    reached = np.cumsum(falling) >= part * falling.sum() * (1 - 1e-12)
    return int(np.argmax(reached)) + 1 if falling.sum() > 0 else 0


def _above(table: pd.DataFrame, null: str) -> pd.Series:
    """Whether the model's share is above all of a null's in its block; missing for other rows."""
    highest = table[table["source"] == null].groupby("block")["share"].max()
    limit = table["block"].map(highest).where(table["source"] == MODEL)
    return (table["share"] > limit).astype("boolean").where(limit.notna())


def _shares(energy: Floats) -> Floats:
    whole = energy.sum()
    return energy / whole if whole else np.zeros(len(energy))
