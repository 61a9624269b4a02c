import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import integrate, stats
from ticks import seen_on_x

from burst.errors import EmptyResult, UnknownName
from reports.depth import MEASURES, depth_grid, depth_lines
from reports.style import blank_page, house_style

MODELS = ["mae_vitb", "moco_vitb", "sup_vitb", "timm:vit_base_patch16_clip_224.openai"]


@pytest.fixture
def bursty(rng, histogram_of):
    """Blocks that differ in scale, shape and skewness, the first with far outliers."""

    def build(blocks):
        samples = {
            b: rng.laplace(0.1, 30 / (1 + b) ** 2, 400) ** (1 + (b % 2)) for b in range(blocks)
        }
        samples[0] = np.concatenate([samples[0], [-700.0, 1500.0]])
        return {block: histogram_of(values) for block, values in samples.items()}

    return build


@pytest.fixture
def table(rng):
    """A survey's statistics, as far as they are drawn, in no order."""

    def build(models, blocks=12, kurtosis=5.0):
        rows = itertools.product(models, range(blocks), ["all", "0"], ["qk", "x", "qkx"])
        frame = pd.DataFrame(rows, columns=["model", "block", "head", "quantity"])
        frame["excess_kurtosis"] = rng.uniform(-0.5, kurtosis, len(frame))
        frame["top1_energy"] = rng.uniform(0.05, 0.4, len(frame))
        frame["ggd_shape"] = rng.uniform(0.4, 2.5, len(frame))
        return frame.sample(frac=1, random_state=0)

    return build


@pytest.fixture
def undrawn(monkeypatch):
    """No layout, which takes most of the time, for what does not depend on it."""
    monkeypatch.setattr(Figure, "draw_without_rendering", lambda _: None)


def drawn_texts(figure):
    """Every text that shows: tick labels outside of the axes' limits do not."""
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    hidden = set()
    for axis in axes:
        low, high = sorted(axis.get_view_interval())
        for place, tick in zip(axis.get_majorticklocs(), axis.get_major_ticks(), strict=True):
            if not low <= place <= high:
                hidden |= {tick.label1, tick.label2}
        hidden |= {label for tick in axis.get_minor_ticks() for label in (tick.label1, tick.label2)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    return [text for text in texts if text not in hidden]


def assert_legible(figure):
    """No text lies on another, none is cut off, and none is smaller than 7 pt."""
    assert not figure.stale  # it is saved with this layout
    texts = drawn_texts(figure)
    boxes = [text.get_window_extent() for text in texts]
    for (one, here), (other, there) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        assert not here.overlaps(there), (one.get_text(), other.get_text())
    page = figure.bbox.padded(1.0)
    for text, box in zip(texts, boxes, strict=True):
        assert page.x0 <= box.x0 and box.x1 <= page.x1, text.get_text()
        assert page.y0 <= box.y0 and box.y1 <= page.y1, text.get_text()
        assert text.get_fontsize() >= 7


@pytest.mark.parametrize(
    "blocks, shared, shape",
    [
        (1, True, (1, 1)),
        (2, False, (1, 2)),
        (5, True, (2, 3)),
        (5, False, (2, 3)),
        (12, True, (3, 4)),
        (12, False, (3, 4)),
        (48, False, (10, 5)),  # the lowest panels
    ],
)
def test_a_grid_has_a_panel_a_block_and_is_legible(bursty, blocks, shared, shape):
    figure = depth_grid(bursty(blocks), quantity="qkx", title="ViT-B", shared_axes=shared)
    titles = [ax.get_title(loc="left").splitlines()[0] for ax in figure.axes]
    assert titles == [f"block {block}" for block in range(blocks)]
    assert figure.axes[0].get_gridspec().get_geometry() == shape
    width, height = figure.get_size_inches()
    assert width == (3.4 if blocks == 1 else 7.0)
    assert height <= (10.5 if blocks > 40 else 9.2)
    assert_legible(figure)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("blocks, shape", [(24, (6, 4)), (32, (7, 5)), (40, (8, 5))])
def test_a_grid_fits_a_page_up_to_forty_blocks(bursty, blocks, shape):
    figure = depth_grid(bursty(blocks), quantity="qkx", title="ViT-g")
    assert len(figure.axes) == blocks
    assert figure.axes[0].get_gridspec().get_geometry() == shape
    assert figure.get_size_inches() == pytest.approx((7.0, 9.2))


@pytest.mark.usefixtures("undrawn")
def test_twelve_blocks_are_drawn_in_order(bursty):
    hists = bursty(12)
    figure = depth_grid(dict(reversed(hists.items())), quantity="qk")
    drawn = [ax.patches[0].get_data().values.sum() for ax in figure.axes]
    assert drawn == [hists[block].count for block in range(12)]


@pytest.mark.usefixtures("undrawn")
def test_shared_axes_have_one_range_and_one_bin_width(bursty):
    figure = depth_grid(bursty(5), quantity="qkx", shared_axes=True)
    edges = [ax.patches[0].get_data().edges for ax in figure.axes]
    assert all(np.array_equal(edges[0], other) for other in edges)
    assert len({ax.get_xlim() for ax in figure.axes}) == 1
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert figure.get_supylabel() == f"entries per bin (width {edges[0][1] - edges[0][0]:.3g})"
    tallest = max(ax.patches[0].get_data().values.max() for ax in figure.axes)
    assert figure.axes[0].get_ylim()[1] > tallest


@pytest.mark.usefixtures("undrawn")
def test_own_axes_reach_as_far_as_each_blocks_values(bursty):
    hists = bursty(5)
    for ax, hist in zip(depth_grid(hists, quantity="qkx").axes, hists.values(), strict=True):
        low, high = ax.get_xlim()
        span = hist.moments.maximum - hist.moments.minimum
        assert low < hist.moments.minimum and hist.moments.maximum < high
        assert high - low < 1.1 * span  # a bin and a margin at each end


@pytest.mark.usefixtures("undrawn")
def test_the_legend_appears_once(bursty):
    figure = depth_grid(bursty(5), quantity="qk")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        r"entries ($\kappa$: excess kurtosis)",
        r"generalised Gaussian ($\beta$: shape)",
        "Laplacian",
    ]
    assert not any(ax.get_legend() for ax in figure.axes)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "quantity, label",
    [
        ("qk", r"entry of $W_q W_k^\top$ (logits before $1/\sqrt{d_h}$)"),
        ("x", r"entry of $X$ (normalised token value, unitless)"),
        ("qkx", r"entry of $W_q W_k^\top X^\top$ (logits before $1/\sqrt{d_h}$)"),
    ],
)
def test_labels_carry_units(bursty, quantity, label):
    figure = depth_grid(bursty(3), quantity=quantity)
    assert figure.get_supxlabel() == label
    assert figure.get_supylabel() == "entries per bin"


def test_measures_stand_above_the_data(bursty):
    hists = bursty(2)
    figure = depth_grid(hists, quantity="qkx")
    ax = figure.axes[0]
    kurtosis = hists[0].moments.excess_kurtosis
    assert rf"$\kappa$ = {kurtosis:,.0f}, $\beta$ = 0." in ax.get_title(loc="left")
    (title,) = [text for text in drawn_texts(figure) if text.get_text().startswith("block 0")]
    assert title.get_window_extent().y0 >= ax.bbox.y1


def test_a_huge_kurtosis_stays_short(histogram_of):
    figure = depth_grid({0: histogram_of([0.0] * 200_000 + [1.0])}, quantity="x")
    assert r"$\kappa$ = 2e5" in figure.axes[0].get_title(loc="left")


def test_values_that_no_shape_fits_have_none_and_no_curve(histogram_of):
    figure = depth_grid({0: histogram_of(np.linspace(-1, 1, 1000))}, quantity="x")
    assert figure.axes[0].get_title(loc="left").endswith(r", no $\beta$")
    assert [line.get_label() for line in figure.axes[0].lines] == ["Laplacian"]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_degenerate_blocks_say_so(histogram_of, bursty, shared):
    hists = {0: histogram_of([]), 1: histogram_of([-3.0] * 5), 2: bursty(1)[0]}
    figure = depth_grid(hists, quantity="x", shared_axes=shared)
    first, second, third = (ax.get_title(loc="left") for ax in figure.axes)
    assert first == "block 0\nno entries"
    assert second == "block 1\nconstant \N{MINUS SIGN}3"
    assert third.startswith("block 2\n$")
    assert [len(ax.lines) for ax in figure.axes] == [0, 0, 2]
    assert_legible(figure)


def test_a_given_figure_is_drawn_in(bursty):
    figure = blank_page(5.0, 3.0)
    assert depth_grid(bursty(2), quantity="x", figure=figure) is figure
    assert tuple(figure.get_size_inches()) == (5.0, 3.0)
    assert_legible(figure)


def test_no_block_is_refused():
    with pytest.raises(EmptyResult, match="no block to draw"):
        depth_grid({}, quantity="qk")


def test_an_unknown_quantity_is_refused(bursty):
    with pytest.raises(UnknownName, match="unknown quantity 'qkv'; did you mean qk, qkx"):
        depth_grid(bursty(1), quantity="qkv")


@pytest.mark.parametrize("kurtosis", [5.0, 4000.0])
@pytest.mark.parametrize("models, panels", [(MODELS[:1], 3), (MODELS, 9)])
def test_lines_have_a_panel_a_measure_and_are_legible(table, models, panels, kurtosis):
    figure = depth_lines(table(models, kurtosis=kurtosis))
    assert len(figure.axes) == panels
    assert len(figure.legends) == 1
    assert not any(ax.get_legend() for ax in figure.axes)
    assert figure.get_supxlabel() == "block"
    assert_legible(figure)


@pytest.mark.usefixtures("undrawn")
def test_one_model_has_a_line_a_quantity(table):
    frame = table(MODELS[:1])
    figure = depth_lines(frame)
    whole = frame[frame["head"] == "all"].set_index("block").sort_index()
    for ax, measure in zip(figure.axes, MEASURES, strict=True):
        assert ax.get_ylabel() == measure.label
        for line, quantity in zip(ax.lines, ["qk", "x", "qkx"], strict=False):
            expected = whole.loc[whole["quantity"] == quantity, measure.column]
            assert np.array_equal(line.get_xdata(), expected.index)
            assert np.array_equal(line.get_ydata(), expected)


@pytest.mark.usefixtures("undrawn")
def test_several_models_have_a_row_a_quantity_and_a_line_a_model(table):
    frame = table(MODELS).sort_values("model")
    figure = depth_lines(frame)
    titles = [ax.get_title(loc="left") for ax in figure.axes[::3]]
    assert titles == [r"$W_q W_k^\top$", r"$X$", r"$W_q W_k^\top X^\top$"]
    rows = frame[(frame["head"] == "all") & (frame["quantity"] == "qkx")]
    for line, model in zip(figure.axes[-1].lines, MODELS, strict=False):
        expected = rows[rows["model"] == model].set_index("block").sort_index()["ggd_shape"]
        assert line.get_label() == model
        assert np.array_equal(line.get_ydata(), expected)


@pytest.mark.usefixtures("undrawn")
def test_no_row_of_several_models_is_cut_off(table):
    frame = table(MODELS)
    rises = frame["quantity"].map({"qk": 1.0, "x": 2.0, "qkx": 3.0})
    frame = frame.assign(top1_energy=frame["top1_energy"] * rises)
    for ax in depth_lines(frame).axes[1::3]:
        assert ax.get_ylim()[0] == 0
        assert ax.get_ylim()[1] > frame["top1_energy"].max()


@pytest.mark.usefixtures("undrawn")
def test_lines_differ_in_colour_and_without_it(table):
    lines = depth_lines(table(MODELS)).axes[0].lines[: len(MODELS)]
    for look in ("get_color", "get_marker", "get_linestyle"):
        assert len({getattr(line, look)() for line in lines}) == len(MODELS)


def top_energy(law):
    """Share of the variance beyond the 99 % quantile of |x|, by quadrature."""
    tail, _ = integrate.quad(lambda x: x * x * law.pdf(x), law.ppf(0.995), np.inf)
    return 2 * tail / law.var()


@pytest.mark.usefixtures("undrawn")
def test_grey_lines_are_what_a_gaussian_and_a_laplacian_have(table):
    figure = depth_lines(table(MODELS[:1]))
    levels = [[line.get_ydata()[0] for line in ax.lines[-2:]] for ax in figure.axes]
    laws = stats.norm(), stats.laplace()
    assert levels[0] == [float(law.stats("k")) for law in laws]
    assert levels[1] == pytest.approx([top_energy(law) for law in laws], rel=1e-7)
    assert levels[2] == [2.0, 1.0]
    assert [line.get_label() for line in figure.axes[0].lines[-2:]] == ["Gaussian", "Laplacian"]


@pytest.mark.usefixtures("undrawn")
def test_kurtosis_that_spreads_is_drawn_on_a_log_scale(table):
    scales = {k: depth_lines(table(MODELS[:1], kurtosis=k)).axes[0].get_yscale() for k in (5, 500)}
    assert scales == {5: "linear", 500: "symlog"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("kurtosis", "said"), [(5, 0), (500, 1)])
def test_every_panel_on_a_symmetric_log_axis_says_so(table, kurtosis, said):
    labels = [ax.get_ylabel() for ax in depth_lines(table(MODELS, kurtosis=kurtosis)).axes]
    assert [one.count("symmetric log") for one in labels] == [said, 0, 0] * 3


@pytest.mark.usefixtures("undrawn")
def test_blocks_are_whole_numbers(table):
    for blocks in (1, 2, 12, 40):
        ticks = seen_on_x(depth_lines(table(MODELS[:1], blocks=blocks)).axes[0])
        assert ticks and all(tick.is_integer() for tick in ticks)


@pytest.mark.usefixtures("undrawn")
def test_missing_values_are_gaps(table):
    frame = table(MODELS[:1])
    frame.loc[frame["block"] == 4, "excess_kurtosis"] = np.nan
    frame["ggd_shape"] = np.nan
    first, _, last = depth_lines(frame).axes
    assert np.flatnonzero(np.isnan(first.lines[0].get_ydata())).tolist() == [4]
    assert np.isnan(last.lines[0].get_ydata()).all()


def test_a_table_without_whole_blocks_is_refused(table):
    frame = table(MODELS[:1])
    with pytest.raises(EmptyResult, match="no row with head 'all'"):
        depth_lines(frame[frame["head"] == "0"])


def test_drawing_leaves_no_trace(bursty, table):
    before = dict(plt.rcParams)
    depth_grid(bursty(1), quantity="x")
    depth_lines(table(MODELS[:1]))
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


def test_a_redraw_under_other_settings_looks_the_same(bursty):
    figure = depth_grid(bursty(2), quantity="x")
    sizes = [text.get_fontsize() for text in drawn_texts(figure)]
    with house_style(), plt.rc_context({"xtick.labelsize": 20, "font.size": 20}):
        figure.draw_without_rendering()
    assert [text.get_fontsize() for text in drawn_texts(figure)] == sizes
