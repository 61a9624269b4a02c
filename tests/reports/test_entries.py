import itertools

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy import integrate, stats

from burst.axis import RegularAxis
from burst.distribution import Laplace
from burst.errors import ShapeError, UnknownName
from burst.histogram import Histogram
from burst.moments import Moments
from reports.entries import bin_edges, draw_histogram, fit_laws

DEGENERATE = {
    "empty": [],
    "zeros": [0.0] * 9,
    "constant": [3.0] * 9,
    "a constant far from zero": [-2e30] * 9,
    "one value": [1e-3],
    "two values": [0.0, 1.0],
    "subnormal": [1e-40, 2e-40, 5e-40],
    "one bin at most": [1000.0, 1000.01, 1000.02],
}


@pytest.fixture
def ax():
    return Figure().add_subplot()


@pytest.fixture
def sample(rng):
    return (rng.laplace(0.3, 2.0, 5000) + 40.0 * (rng.random(5000) < 0.01)).astype(np.float32)


def test_drawn_heights_are_the_counts_of_the_sample(ax, histogram_of, sample):
    drawn = draw_histogram(ax, histogram_of(sample)).entries.get_data()
    assert np.array_equal(drawn.values, np.histogram(sample, drawn.edges)[0])
    assert drawn.values.sum() == sample.size


@pytest.mark.parametrize("bins", [1, 7, 64, 256, 512])
def test_bins_span_the_values_and_no_more(histogram_of, sample, bins):
    edges = bin_edges([histogram_of(sample)], bins=bins)
    width = edges[1] - edges[0]
    assert np.log2(width).is_integer()
    assert edges[0] <= sample.min() < edges[1]
    assert edges[-2] <= sample.max() < edges[-1]
    assert np.ptp(sample) / width <= bins


def test_bins_are_as_narrow_as_asked_for_where_the_axis_allows(histogram_of, sample):
    width = np.diff(bin_edges([histogram_of(sample)], bins=64))[0]
    assert np.ptp(sample) / (width / 2) > 64


def test_edges_of_several_histograms_span_them_all(histogram_of):
    edges = bin_edges([histogram_of([-1.0, 5.0]), histogram_of([]), histogram_of([0.0, 90.0])])
    assert (edges[0], edges[-1]) == (-1.0, 90.5)


def test_given_edges_are_drawn_and_what_lies_beyond_is_left_out(ax, histogram_of, sample):
    edges = np.arange(-2.0, 9.0)
    drawn = draw_histogram(ax, histogram_of(sample), bins=edges).entries.get_data()
    assert np.array_equal(drawn.edges, edges)
    inside = sample[sample < edges[-1]]  # numpy closes the last bin
    assert np.array_equal(drawn.values, np.histogram(inside, edges)[0])


def test_edges_that_cut_bins_are_refused(ax, histogram_of, sample):
    with pytest.raises(ShapeError, match="100 bins cut through"):
        draw_histogram(ax, histogram_of(sample), bins=np.linspace(-50, 50, 101) / 3)


def test_no_bins_are_refused(ax, histogram_of):
    with pytest.raises(ShapeError, match="at least 1 bin, got 0"):
        draw_histogram(ax, histogram_of([1.0, 2.0]), bins=0)


def regular(lo, hi, values=(0.1, 0.2, 0.9)):
    counts = np.histogram(values, np.linspace(lo, hi, 11))[0]
    return Histogram(RegularAxis(10, lo, hi), np.pad(counts, 1), moments=Moments.of(values))


def test_a_regular_axis_keeps_its_bins(ax):
    hist = regular(-1.0, 1.0)
    drawn = draw_histogram(ax, hist, bins=3).entries.get_data()
    assert np.array_equal(drawn.edges, hist.edges)
    assert np.array_equal(drawn.values, hist.values())


def test_different_regular_axes_have_no_common_bins():
    with pytest.raises(ShapeError, match="different regular axes"):
        bin_edges([regular(-1.0, 1.0), regular(-2.0, 2.0)])


LAWS = {
    "laplacian": stats.laplace(0.3, 2.0),
    "generalised gaussian": stats.gennorm(0.7, 0.1, 1.5),
    "gaussian": stats.norm(0.0, 3.0),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_curve_is_the_count_that_its_law_expects_in_each_bin(ax, histogram_of, sample, name):
    artists = draw_histogram(ax, histogram_of(sample), bins=64, laws={name: LAWS[name]})
    edges = artists.entries.get_data().edges
    at, height = artists.curves[name].get_data()
    for lower, upper in itertools.pairwise(edges):
        points = [lower, np.clip(LAWS[name].median(), lower, upper), upper]  # a cusp between
        share = sum(integrate.quad(LAWS[name].pdf, *ends)[0] for ends in itertools.pairwise(points))
        drawn = height[np.argmin(np.abs(at - (lower + upper) / 2))]
        expected = sample.size * share
        if expected >= 0.5:
            assert drawn == pytest.approx(expected, rel=1e-6)  # quad's accuracy
        else:
            assert np.isnan(drawn) or drawn == 0.5


def test_a_curve_ends_at_half_an_entry(ax, histogram_of, sample):
    artists = draw_histogram(ax, histogram_of(sample), laws={"gaussian": stats.norm(0, 1)})
    heights = artists.curves["gaussian"].get_ydata()
    assert np.nanmin(heights) == 0.5
    assert np.isnan(heights[-1])


def test_a_law_much_narrower_than_a_bin_is_seen(ax, histogram_of, sample):
    law = Laplace(0.1, 1e-4)
    artists = draw_histogram(ax, histogram_of(sample), bins=16, laws={"laplacian": law})
    assert np.nanmax(artists.curves["laplacian"].get_ydata()) == pytest.approx(sample.size)


def test_the_fitted_laws_are_drawn_unless_others_are_given(ax, histogram_of, sample):
    hist = histogram_of(sample)
    assert set(draw_histogram(ax, hist).curves) == set(fit_laws(hist))
    assert draw_histogram(ax, hist, laws={}).curves == {}


def test_a_law_without_a_style_is_refused(ax, histogram_of, sample):
    with pytest.raises(UnknownName, match="unknown law 'laplace'; did you mean laplacian"):
        draw_histogram(ax, histogram_of(sample), laws={"laplace": stats.laplace()})


def test_the_frame_holds_every_bin_and_curve(ax, histogram_of, sample):
    artists = draw_histogram(ax, histogram_of(sample))
    counts, edges, _ = artists.entries.get_data()
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert left < edges[0] and edges[-1] < right
    assert bottom == 0.5 and counts.max() < top
    assert all(np.nanmax(curve.get_ydata()) < top for curve in artists.curves.values())


@pytest.mark.parametrize("values", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_data_draws_without_warnings(ax, histogram_of, values):
    artists = draw_histogram(ax, histogram_of(values))
    ax.figure.draw_without_rendering()
    drawn = artists.entries.get_data()
    assert drawn.values.sum() == len(values)
    assert np.all(np.diff(drawn.edges) > 0)


@pytest.mark.parametrize("name", ["empty", "zeros", "constant"])
def test_data_that_does_not_vary_has_no_curve(ax, histogram_of, name):
    assert draw_histogram(ax, histogram_of(DEGENERATE[name])).curves == {}


def test_pyplot_knows_no_figure(ax, histogram_of, sample):
    draw_histogram(ax, histogram_of(sample))
    assert plt.get_fignums() == []
