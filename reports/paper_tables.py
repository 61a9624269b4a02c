"""Tables as a document has them: CSV, Markdown, LaTeX, and the same for a terminal."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from burst.files import write_atomically
from reports.style import MINUS

SIGNS = {"\\": "backslash", "^": "asciicircum", "~": "asciitilde"}
LEAST_P = 1e-10  # of one difference none is told below 1e-12; Holm's correction raises that
NUMBER = re.compile(rf"(?P<sign>[<+{MINUS}]?)(?P<digits>[\d.,]+|∞)(e(?P<power>[+-]\d+))?")
NO_TEX = str.maketrans(
    {one: f"\\{one}" for one in "&%$#_{}"}
    | {one: f"\\text{name}{{}}" for one, name in SIGNS.items()}
    | {"±": r"$\pm$", "∞": r"$\infty$"}
)


def frame_table(frame: pd.DataFrame) -> Table:
    """A frame for a terminal."""
    table = Table(box=None, pad_edge=False)
    for name, kind in frame.dtypes.items():
        right = pd.api.types.is_numeric_dtype(kind)
        table.add_column(_spoken(name), justify="right" if right else "left")
    for line in _texts(frame):
        table.add_row(*line)
    return table


def save_paper_table(
    frame: pd.DataFrame, path: Path, about: str = "", *, printed: pd.DataFrame | None = None
) -> list[Path]:
    """Write PATH.csv, PATH.md and PATH.tex, each whole or not at all.

    Args:
        frame: the table.
        path: without a suffix.
        about: what it is of, a line: the comment that PATH.tex begins with.
        printed: what the two for a document hold; the same, but for folders, if not given.

    Raises:
        OutputError: they cannot be written.
    """
    if printed is None:
        printed = frame.drop(columns="folder", errors="ignore")
    tex = f"% {about}\n{latex(printed)}" if about else latex(printed)
    texts = {".csv": frame.to_csv(index=False), ".md": markdown(printed), ".tex": tex}
    files = [path.with_name(path.name + suffix) for suffix in texts]
    for file, text in zip(files, texts.values(), strict=True):
        with write_atomically(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return files


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a table of Markdown; numbers stand to the right."""
    numbers = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    rule = ["---:" if number else "---" for number in numbers]
    lines = [[_spoken(name) for name in frame.columns], rule, *_texts(frame)]
    safe = [" | ".join(one.replace("|", r"\|") for one in line) for line in lines]
    return "".join(f"| {line} |\n" for line in safe)


def latex(frame: pd.DataFrame) -> str:
    """A frame as a `tabular` of the package booktabs; signs, powers and bounds stand in math."""
    numbers = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    columns = "".join("r" if number else "l" for number in numbers)
    head, *rows = [
        f"{' & '.join(_math(one) or one.translate(NO_TEX) for one in line)} \\\\"
        for line in ([_spoken(name) for name in frame.columns], *_texts(frame))
    ]
    parts = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", head, "\\midrule", *rows]
    return "\n".join([*parts, "\\bottomrule", "\\end{tabular}", ""])


def _math(text: str) -> str:
    """A number with a sign, a bound or a power of ten as math, such as $-2$ and $<10^{-10}$."""
    found = NUMBER.fullmatch(text)
    if not found or text == found["digits"]:
        return ""
    digits = found["digits"].replace("∞", r"\infty")
    if found["power"]:
        times = "" if digits == "1" else rf"{digits}\times "
        digits = f"{times}10^{{{int(found['power'])}}}"
    return f"${found['sign'].replace(MINUS, '-')}{digits}$"


def _spoken(name: object) -> str:
    return str(name).replace("_", " ")


def _texts(frame: pd.DataFrame) -> Iterable[list[str]]:
    for row in frame.itertuples(index=False):
        yield [written(name, value) for name, value in zip(frame.columns, row, strict=True)]


def written(column: str, value: Any) -> str:  # noqa: ANN401  whatever a table holds
    """A value as a document has it: rates with their digits, differences with their sign.

    p-values below `LEAST_P` are told to be so: they are not known so far.
    """
    if pd.isna(value):
        return "–"
    if isinstance(value, str):
        return value
    if column == "adjusted_p" and value < LEAST_P:
        return f"<{LEAST_P:g}"
    text = format(value, FORMATS.get(column, ".2f")).replace("inf", "∞")
    return f"{MINUS}{text[1:]}" if text.startswith("-") else text


FORMATS = {
    **dict.fromkeys(("lr", "weight_decay"), ".4g"),
    **dict.fromkeys(("difference", "low", "high"), "+.2f"),
    **dict.fromkeys(("slope", "error", "slope_low", "slope_high"), ".3f"),
    "adjusted_p": ".2g",
    **dict.fromkeys(
        ("prompt", "trained", "trials", "seeds", "images", "epochs", "of_epochs"), ",.0f"
    ),
}
