"""A self-contained HTML page: text, figures and sortable tables in one file, without a network."""

import base64
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from io import BytesIO
from math import isinf, isnan
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from burst.files import write_atomically
from burst.survey import Survey
from reports.explorer import explorer_data
from reports.names import new_stem, readable
from reports.style import save_figure

DPI = 160  # of figures in the page: sharp on a screen, and the page stays small
PHOTO_DPI = 240  # of figures of photographs, whose names are small: to be magnified
STEP = 5  # between levels of a figure's colours: nobody sees 2 of 255, and it takes 2/5 less
SCREEN_DPI = 130  # pixels an inch that they are shown at
LARGEST = sys.float_info.max  # what infinity sorts by: JavaScript's has no difference to itself
ENDLESS = "Where an interval ends at ∞ it has no bound on that side"


class Cell(NamedTuple):
    """A table's cell: its text, the number to sort by, and a colour behind it."""

    text: str
    number: float | None = None
    shade: str = ""


@dataclass
class Section:
    """A part of a page, with what it holds in order."""

    title: str
    anchor: str  # what links point at
    parts: list[dict[str, Any]] = field(default_factory=list)

    def text(self, text: str, *, strong: bool = False) -> None:
        """A paragraph."""
        self.parts.append({"kind": "text", "text": text, "strong": strong})

    def heading(self, text: str) -> None:
        """A heading below the section's."""
        self.parts.append({"kind": "heading", "text": text})

    def items(self, items: Iterable[str]) -> None:
        """A list of sentences."""
        self.parts.append({"kind": "list", "points": list(items)})

    def code(self, text: str) -> None:
        """Preformatted text."""
        self.parts.append({"kind": "code", "text": text})

    def versions(self, versions: Mapping[str, str]) -> None:
        """What the page was made with."""
        self.text("Versions: " + ", ".join(f"{name} {one}" for name, one in versions.items()))

    def figure(
        self, figure: Figure, path: Path, caption: str, *, photographs: bool = False
    ) -> list[Path]:
        """A figure, in the page and as PATH.png and PATH.pdf; the two files.

        One of photographs stands in the page with more pixels, and with the losses of a JPEG.
        """
        saved = save_figure(figure, path)
        width, height = (round(SCREEN_DPI * size) for size in figure.get_size_inches())
        self.parts.append(
            {
                "kind": "figure",
                "uri": image_uri(saved[0], photographs=photographs),
                "alt": caption,
                "caption": caption,
                "files": f"({path.name}.png, .pdf)",
                "width": width,
                "height": height,
            }
        )
        return list(saved)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str) -> None:
        """A table that sorts by the heading that is clicked; infinity in it is explained."""
        rows = list(rows)
        if any(one.number in (LARGEST, -LARGEST) for row in rows for one in row):
            caption = f"{caption.removesuffix('.')}. {ENDLESS}."
        self.parts.append(
            {"kind": "table", "columns": list(columns), "rows": rows, "caption": caption}
        )

    def explorer(self, surveys: Sequence[Survey]) -> None:
        """Any histogram of the surveys, to be chosen and looked at closely; one a page."""
        ends = pd.concat([one.table for one in surveys]).filter(regex="_(low|high)$")
        if np.isinf(ends.to_numpy(np.float64)).any():
            self.text(f"{ENDLESS}.")
        self.parts.append({"kind": "explorer", "data": explorer_data(surveys)})

    def frame(self, table: pd.DataFrame, caption: str) -> None:
        """A data frame as such a table."""
        rows = [[cell(value) for value in row] for row in table.itertuples(index=False)]
        self.table([str(name) for name in table.columns], rows, caption)


@dataclass
class Page:
    """A title, what it is about, and sections."""

    title: str
    lead: Sequence[str]
    sections: list[Section] = field(default_factory=list)

    def section(self, title: str) -> Section:
        """A new section at the end."""
        anchor = re.sub(r"\W+", "-", title.lower()).strip("-") or "section"
        taken = {one.anchor for one in self.sections}
        self.sections.append(Section(title, new_stem(anchor, taken)))
        return self.sections[-1]

    def html(self) -> str:
        """The page as one document: no file and no address beside it is ever asked for."""
        kinds = {part["kind"] for section in self.sections for part in section.parts}
        names = ["page", *(["explorer"] if "explorer" in kinds else [])]
        text = (
            _environment()
            .get_template("page.html.j2")
            .render(
                page=self,
                styles=[_part(f"{name}.css") for name in names],
                scripts=[_part(f"{name}.js") for name in names],
            )
        )
        return readable(text)  # names of files that are no UTF-8 are in it

    def save(self, path: Path) -> Path:
        """Write it, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        with write_atomically(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return path


def cell(value: Any) -> Cell:  # noqa: ANN401  whatever a data frame holds
    """A value as a cell: four digits, or all before the point; nothing where there is none."""
    if value is None or value is pd.NA:
        return Cell("")
    if isinstance(value, bool | str):
        return Cell(str(value))
    number = float(value)
    if isnan(number):
        return Cell("")
    if isinf(number):
        return Cell("∞", LARGEST) if number > 0 else Cell("-∞", -LARGEST)
    whole = number == int(number) or abs(number) >= 1e4
    text = f"{number:,.0f}" if whole and abs(number) < 1e15 else f"{number:.4g}"
    return Cell(text, number)


def image_uri(png: Path, *, photographs: bool = False) -> str:
    """A figure as a data address, at `DPI`: lossless WebP of colours rounded to `STEP`.

    Photographs come at `PHOTO_DPI` and with losses, or they would take megabytes.
    """
    dots, options = DPI, {"lossless": True, "method": 1}
    if photographs:
        dots, options = PHOTO_DPI, {"quality": 88}
    with Image.open(png) as image:
        share = dots / image.info["dpi"][0]
        size = (round(image.width * share), round(image.height * share))
        smaller = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    if not photographs:
        smaller = smaller.point([round(level / STEP) * STEP for level in range(256)] * 3)
    buffer = BytesIO()
    smaller.save(buffer, "WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FunctionLoader(_part)
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # no space, keys in order
    return made


def _part(name: str) -> str:
    return files("reports").joinpath(name).read_text(encoding="utf-8")
