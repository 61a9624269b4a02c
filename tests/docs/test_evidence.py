"""What is drawn of the methods is what the page says of them."""

from pathlib import Path

import pandas as pd

DOCS = Path(__file__).parents[2] / "docs"


def spoken(value):
    return f"{value:+.1f}".replace("-", "−")


def test_every_difference_that_is_drawn_stands_in_the_text():
    page = (DOCS / "evidence.md").read_text(encoding="utf-8")
    table = pd.read_csv(DOCS / "evidence.csv")
    for row in table.itertuples():
        assert f"{spoken(row.low)} to {spoken(row.high)}" in page, row
        assert row.low <= row.difference <= row.high
