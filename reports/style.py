"""One look for every figure: a two-column paper's sizes, colours, and what axes are called."""

import contextlib
import contextvars
import os
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator

from burst.errors import UnknownName, check_known
from burst.files import write_atomically
from reports.names import readable

COLUMN_WIDTH = 3.4
"""Width of one text column, in inches."""

PAGE_WIDTH = 7.0
"""Width of a two-column page's text, in inches."""

INK = "0.15"
MINUS = "\N{MINUS SIGN}"
ENTRIES_COLOUR = "0.80"
SAVED_DPI = 300  # of a PNG
LEGEND_HEIGHT = 0.6  # inches that a figure has for one: two rows, three without a title

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "mathtext.fontset": "dejavusans",
    "font.size": 8,
    "figure.titlesize": 9,
    "figure.labelsize": 8,
    "axes.titlesize": 7.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlepad": 3.0,
    "axes.labelpad": 3.0,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "patch.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "figure.dpi": 100,
    "savefig.dpi": SAVED_DPI,
    "savefig.bbox": None,  # a page-wide figure stays page-wide
    "pdf.fonttype": 42,  # TrueType: text stays text, as publishers ask
    "ps.fonttype": 42,
}


STYLES = {"paper": 1.0, "slide": 1.25}
_GROWTH: contextvars.ContextVar[float] = contextvars.ContextVar("growth", default=1.0)
_GROWING = ("size", "width", "pad")  # settings in points


class Line(NamedTuple):
    """How a line is drawn: colours differ, and so do dashes and markers, for print in grey."""

    label: str
    colour: str
    dashes: str = "-"
    marker: str = ""


class Quantity(NamedTuple):
    """How a quantity of the survey is written: `unit` is that of its entries, `plain` its symbol
    in text without math."""

    line: Line
    unit: str
    plain: str

    @property
    def symbol(self) -> str:
        """The quantity in math."""
        return self.line.label

    @property
    def axis_label(self) -> str:
        """Text for an axis that carries the quantity's entries."""
        return f"entry of {self.symbol} ({self.unit})"


_BLUE, _ORANGE, _GREEN, _VERMILLION, _PURPLE, _BROWN, _PINK, _GREY, _YELLOW, _SKY = (
    sns.color_palette("colorblind").as_hex()
)
_LOGITS = r"logits before $1/\sqrt{d_h}$"
_DASHES = "-", "--", "-.", ":"
_MARKERS = "o", "s", "^", "D", "v", "P", "X", "<", ">", "*"

QUANTITIES: dict[str, Quantity] = {
    "qk": Quantity(Line(r"$W_q W_k^\top$", _BLUE, "-", "o"), _LOGITS, "W_q W_kᵀ"),
    "x": Quantity(Line(r"$X$", _GREEN, "--", "s"), "normalised token value, unitless", "X"),
    "qkx": Quantity(Line(r"$W_q W_k^\top X^\top$", _VERMILLION, "-.", "^"), _LOGITS, "W_q W_kᵀ Xᵀ"),
    "logits": Quantity(Line(r"$QK^\top$", _PURPLE, ":", "D"), "logit of softmax", "softmax logits"),
}

LAWS: dict[str, Line] = {
    "laplacian": Line("Laplacian", _VERMILLION, "--"),
    "generalised gaussian": Line("generalised Gaussian", _BLUE, "-"),
    "gaussian": Line("Gaussian", _GREEN, ":"),
}

FAMILIES: dict[str, str] = {"mae": _BLUE, "moco": _ORANGE, "sup": _GREEN}
OBJECT_COLOURS = (
    *(_BLUE, _ORANGE, _GREEN, _YELLOW, _PURPLE, _SKY),
    *(_VERMILLION, _PINK, _BROWN),
)
"""For objects in a photograph, the most different first."""

_OTHERS = [_PURPLE, _SKY, _VERMILLION, _BROWN, _PINK, _YELLOW, _GREY]


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw, and save, inside: matplotlib reads some settings only when a figure is written.

    Seaborn's "ticks" theme at the sizes of a two-column paper: 7 to 9 pt in a figure that is
    `PAGE_WIDTH` wide, thin lines, embedded TrueType fonts. What was set before comes back after.
    Inside `figure_style("slide")` text and lines are larger.
    """
    theme: Any = {**sns.axes_style("ticks"), **RC}
    grow = _GROWTH.get()
    for name, value in theme.items():
        if grow != 1.0 and name.endswith(_GROWING) and isinstance(value, int | float):
            theme[name] = value * grow
    with mpl.rc_context(theme):
        yield


@contextlib.contextmanager
def figure_style(name: str) -> Iterator[None]:
    """Figures that are made, and saved, inside are for a "paper" (the default) or a "slide".

    On a slide text, lines and marks are 1.25 times as large for the figure, which is less wide:
    shown over a whole slide its text is as large as that around it.

    Raises:
        UnknownName: another style.
    """
    check_known("style", name, STYLES)
    before = _GROWTH.set(STYLES[name])
    try:
        yield
    finally:
        _GROWTH.reset(before)


def quantity_style(name: str) -> Quantity:
    """Symbol and unit of "qk", "x" or "qkx".

    Raises:
        UnknownName: another quantity.
    """
    if name not in QUANTITIES:
        raise UnknownName("quantity", name, QUANTITIES)
    return QUANTITIES[name]


def law_style(name: str) -> Line:
    """Line of "laplacian", "generalised gaussian" or "gaussian".

    Raises:
        UnknownName: another law.
    """
    if name not in LAWS:
        raise UnknownName("law", name, LAWS)
    return LAWS[name]


def model_lines(models: Iterable[str]) -> dict[str, Line]:
    """A line a model, in order; colours are all different up to ten models.

    The first model of a family (`mae*`, `moco*`, `sup*`) takes the family's colour in every
    figure; the others take what is left of seaborn's colour-blind safe palette.
    """
    lines: dict[str, Line] = {}
    for i, model in enumerate(dict.fromkeys(models)):
        family = [colour for name, colour in FAMILIES.items() if model.startswith(name)]
        wanted = [*family, *_OTHERS, *FAMILIES.values()]
        taken = {line.colour for line in lines.values()}
        colour = next((colour for colour in wanted if colour not in taken), INK)
        lines[model] = Line(literal(model), colour, _DASHES[i % 4], _MARKERS[i % 10])
    return lines


def literal(name: str) -> str:
    """A name that somebody gave, as a figure writes it: two dollar signs make no formula of it."""
    return readable(name).replace("$", r"\$")


def decimals(value: float, count: int) -> str:
    """With a minus sign, and none before zero."""
    return f"{value:z.{count}f}".replace("-", MINUS)


def percent(share: float, count: int = 1) -> str:
    """A share of 1 in percent, with a blank before the sign and `count` decimals."""
    return f"{100 * share:.{count}f} %"


def marker_size(count: int) -> float:
    """Of a line's `count` points, in points: where they are many, smaller than their distance."""
    return float(mpl.rcParams["lines.markersize"] * min(1.0, 20 / max(count, 1)))


def from_zero(ax: Axes) -> None:
    """The y axis, or a shared one, from 0 to above all that is drawn: no marker is cut off.

    The margin above values that differ little would be as little.
    """
    _, top = ax.get_ylim()
    ax.set_ylim(0, 1.04 * top)


def whole_ticks(most: int = 10) -> MaxNLocator:
    """Ticks at whole numbers alone, in at most so many steps; a range may hold one alone."""
    return MaxNLocator(most, integer=True, min_n_ticks=1)


def blank_page(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts make room for each other; pyplot does not know it."""
    grow = 1.1 if _GROWTH.get() > 1 else 1.0  # larger text needs a little more room
    return Figure(
        figsize=(width * grow, height * grow), layout=ConstrainedLayoutEngine(wspace=0.04)
    )


def legend_above(
    figure: Figure, handles: Mapping[str, Artist], *, title: str | None = None
) -> Legend:
    """One legend over all panels, in as many columns (5 at most) as the figure is wide enough for.

    Args:
        figure: with a constrained layout, or the legend lies on the panels.
        handles: what the legend explains, by label.
        title: over the legend, and so over the figure.
    """
    columns = min(5, len(handles))
    while True:
        legend = figure.legend(
            list(handles.values()),
            list(handles),
            title=title,
            loc="outside upper center",
            ncols=columns,
        )
        if columns <= 1 or _is_within(legend, figure):
            return legend
        legend.remove()
        columns -= 1


def make_room(figure: Figure, legend: Legend) -> None:
    """Make a figure higher by as much as a legend of many or long labels takes beyond some rows."""
    height = legend.get_window_extent().height / figure.dpi
    figure.set_figheight(figure.get_figheight() + max(0.0, height - LEGEND_HEIGHT))


def _is_within(legend: Legend, figure: Figure) -> bool:
    """Whether a legend is no wider than its figure is in its files.

    On a screen's few pixels hinting makes text up to a twentieth narrower.
    """
    before = figure.dpi
    figure.dpi = SAVED_DPI
    width = legend.get_window_extent().width / figure.bbox.width
    figure.dpi = before
    return bool(width < 0.98)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write `path`.png (300 dpi) and `path`.pdf, each whole or not at all.

    Equal figures give equal bytes: no creation date is stored.

    Args:
        figure: what to write, at its own size.
        path: without a suffix; missing folders are made.

    Returns:
        The two paths.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full.
    """
    png, pdf = Path(f"{os.fspath(path)}.png"), Path(f"{os.fspath(path)}.pdf")
    with house_style(), _laid_out(figure):
        for target, metadata in (png, None), (pdf, {"CreationDate": None}):
            # To a file, a PDF tells a full disk as something else than an OSError.
            figure.savefig(buffer := BytesIO(), format=target.suffix[1:], metadata=metadata)
            with write_atomically(target) as temporary:
                temporary.write_bytes(buffer.getvalue())
    return png, pdf


@contextlib.contextmanager
def _laid_out(figure: Figure) -> Iterator[None]:
    """Lay out once, or not again: each time would take half of the time of a drawing."""
    if figure.stale:
        figure.draw_without_rendering()
    engine = figure.get_layout_engine()
    figure.set_layout_engine(None)
    try:
        yield
    finally:
        figure.set_layout_engine(engine)
