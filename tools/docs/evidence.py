"""`python -m tools.docs.evidence`: draws docs/evidence.csv, what was measured of methods."""

from pathlib import Path

import pandas as pd

from reports.search_figures import forest_figure

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    figure = forest_figure(pd.read_csv(DOCS / "evidence.csv"))
    figure.savefig(DOCS / "images" / "evidence.png", dpi=150)


if __name__ == "__main__":
    main()
