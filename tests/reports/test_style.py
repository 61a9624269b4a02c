import resource

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from burst.errors import OutputError, UnknownName
from reports.style import (
    PAGE_WIDTH,
    QUANTITIES,
    blank_page,
    decimals,
    house_style,
    law_style,
    legend_above,
    make_room,
    marker_size,
    model_lines,
    percent,
    quantity_style,
    save_figure,
)


@pytest.fixture
def figure():
    with house_style():
        figure = blank_page(3.4, 2.0)
        figure.add_subplot().plot([0, 1], [1, 0], label="a line")
    return figure


def test_the_style_ends_with_its_context():
    before = dict(mpl.rcParams)
    with house_style():
        assert mpl.rcParams["pdf.fonttype"] == 42
        assert 7 <= mpl.rcParams["xtick.labelsize"] <= mpl.rcParams["font.size"] <= 9
    assert dict(mpl.rcParams) == before


def test_a_saved_png_has_300_pixels_an_inch(figure, tmp_path):
    png, _ = save_figure(figure, tmp_path / "new" / "vit.b16")
    assert png == tmp_path / "new" / "vit.b16.png"
    with Image.open(png) as image:
        assert image.size == (1020, 600)


def test_a_saved_pdf_embeds_its_fonts_and_no_date(figure, tmp_path):
    _, pdf = save_figure(figure, tmp_path / "figure")
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/CIDFontType2" in content and b"/FontFile2" in content  # TrueType
    assert b"/Type3" not in content
    assert b"CreationDate" not in content


def test_equal_figures_give_equal_files(figure, tmp_path):
    one, two = (save_figure(figure, tmp_path / name) for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_saving_replaces_what_was_there(figure, tmp_path):
    old = tmp_path / "figure.png"
    old.write_text("old")
    save_figure(figure, tmp_path / "figure")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.pdf", "figure.png"]
    assert old.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("short_files")  # which takes back how long files may be
@pytest.mark.parametrize("kind, written", [("png", []), ("pdf", ["figure.png"])])
def test_a_full_disk_leaves_what_was_there(figure, tmp_path, monkeypatch, kind, written):
    old, savefig = tmp_path / f"figure.{kind}", figure.savefig
    old.write_text("old")

    def on_a_full_disk(*args, format, **options):
        if format == kind:
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
        savefig(*args, format=format, **options)

    monkeypatch.setattr(figure, "savefig", on_a_full_disk)
    with pytest.raises(OutputError, match=f"cannot write {old}: File too large"):
        save_figure(figure, tmp_path / "figure")
    assert old.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([old.name, *written])


def test_a_folder_that_cannot_be_written_is_told_in_one_line(figure, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write") as caught:
        save_figure(figure, tmp_path / "file" / "figure")
    assert "\n" not in str(caught.value)


def test_a_legend_is_as_narrow_as_its_figure(figure):
    (line,) = figure.axes[0].lines
    with house_style():
        legend = legend_above(figure, {f"a long name, number {i}": line for i in range(6)})
    assert figure.legends == [legend]
    assert legend.get_window_extent().width < figure.bbox.width
    assert len(legend.get_texts()) == 6


def test_no_legend_is_cut_off_in_the_files(tmp_path):
    """Text has another width there than on a screen: five columns of these are too wide."""
    with house_style():
        figure = blank_page(7.0, 2.0)
        (line,) = figure.add_subplot().plot([0, 1], [0, 1], marker="o")
        names = [f"weight decay {decay}" for decay in ("0", "0.005", "0.05")]
        names += ["chosen", "part of its epochs or folds", "end of what was tried"]
        legend_above(figure, dict.fromkeys(names, line))
    png, _ = save_figure(figure, tmp_path / "figure")
    pixels = np.asarray(Image.open(png).convert("L"))
    assert pixels.shape[1] == 2100 and (pixels[:, [*range(10), *range(-10, 0)]] == 255).all()


@pytest.mark.parametrize("count", [3, 16, 39])
def test_a_legend_of_many_takes_no_room_of_the_panels(count):
    names = [f"bpt-bilinear, last:4, train_fraction 0.1, lr {0.01 * i:.2f}" for i in range(count)]
    with house_style():
        figure = blank_page(7.0, 2.8)
        (line,) = figure.add_subplot().plot([0, 1], [0, 1], marker="o")
        legend = legend_above(figure, dict.fromkeys(names, line))
        make_room(figure, legend)
        figure.draw_without_rendering()  # a layout that fails warns, which is an error
    (ax,) = figure.axes
    assert legend.get_window_extent().y0 > ax.get_window_extent().y1
    assert 1.5 < ax.get_window_extent().height / figure.dpi < 2.4


def test_a_legend_wider_than_its_figure_has_one_column():
    figure = Figure(figsize=(1.0, 1.0), layout="constrained")
    handles = dict.fromkeys(["a very long name indeed", "another"], mpl.lines.Line2D([], []))
    legend_above(figure, handles)
    assert len(figure.legends) == 1


def test_models_have_different_colours_and_families_their_own():
    lines = model_lines(["x", "mae_vitb", "mae_vitl", "moco_vitb", *"abcdef"])
    assert len({line.colour for line in lines.values()}) == 10
    assert lines["mae_vitb"].colour == model_lines(["mae_tiny"])["mae_tiny"].colour
    assert lines["moco_vitb"].colour == model_lines(["moco_tiny"])["moco_tiny"].colour


def test_more_models_than_colours_still_have_lines():
    assert len(model_lines(f"model {i}" for i in range(15))) == 15


def test_markers_of_a_deep_model_stand_apart():
    with house_style():
        assert marker_size(12) == mpl.rcParams["lines.markersize"]
        assert 48 * marker_size(48) < 0.8 * 72 * PAGE_WIDTH / 3  # a third of a page


def test_unknown_names_are_refused():
    with pytest.raises(UnknownName, match="unknown quantity 'qxk'"):
        quantity_style("qxk")
    with pytest.raises(UnknownName, match="unknown law 'cauchy'; known: gaussian"):
        law_style("cauchy")


@pytest.mark.parametrize("name", ["qk", "x", "qkx"])
def test_quantities_name_their_unit(name):
    quantity = QUANTITIES[name]
    assert quantity.axis_label == f"entry of {quantity.symbol} ({quantity.unit})"


@pytest.mark.parametrize(
    ("value", "count", "text"),
    [(-0.04, 1, "0.0"), (-0.004, 2, "0.00"), (-1.26, 1, "\N{MINUS SIGN}1.3"), (12.34, 1, "12.3")],
)
def test_nothing_is_called_minus_zero(value, count, text):
    assert decimals(value, count) == text


def test_a_share_is_told_in_percent():
    assert [percent(0.1234), percent(0.1234, 0), percent(1)] == ["12.3 %", "12 %", "100.0 %"]
