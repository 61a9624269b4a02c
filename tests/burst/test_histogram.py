import json

import boost_histogram as bh
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from burst.axis import FloatAxis, RegularAxis
from burst.errors import ShapeError
from burst.histogram import Histogram, NonFinite
from burst.kernels import histogram
from burst.moments import Moments

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
samples = st.lists(float32s, max_size=50)
AXES = [FloatAxis(), FloatAxis(2), RegularAxis(12, -2.0, 4.0)]


def count(sample, axis=AXES[0]) -> Histogram:
    return histogram(torch.tensor(sample, dtype=torch.float32), axis)


@given(samples, samples, st.sampled_from(AXES))
def test_two_halves_add_to_the_whole(one, two, axis):
    assert count(one, axis) + count(two, axis) == count(one + two, axis)


@given(samples, st.sampled_from([2, 10, 16, 100, 256, 512]))
def test_rebinning_gives_what_numpy_counts_on_those_edges(sample, bins):
    regular = count(sample).rebin(bins)
    expected, _ = np.histogram(np.array(sample, np.float64), regular.edges)
    assert np.array_equal(regular.values(), expected)
    assert regular.sum() == len(sample)  # nothing falls outside


@given(st.lists(float32s, min_size=1, max_size=50), st.sampled_from([2, 10, 100, 512]))
def test_rebinned_bins_are_the_narrowest_power_of_two_that_holds_all(sample, bins):
    regular = count(sample).rebin(bins).axis
    width = (regular.hi - regular.lo) / bins
    assert regular.lo == -regular.hi
    assert np.frexp(width)[0] == 0.5  # a power of two
    array = np.array(sample, np.float64)
    assume(np.abs(array).max() >= 2.0**-120)
    fits_half = np.all((array >= -regular.hi / 2) & (array < regular.hi / 2))
    assert not fits_half


@given(samples, samples)
def test_adding_then_rebinning_does_not_depend_on_how_the_sample_was_split(one, two):
    whole, parts = count(one + two).rebin(64), (count(one) + count(two)).rebin(64)
    assert whole == parts


def test_neighbours_of_a_regular_axis_merge():
    fine = count([-1.9, -1.1, 0.2, 3.9, 9.0, -9.0], RegularAxis(12, -2.0, 4.0))
    coarse = fine.rebin(3)
    assert coarse.values(flow=True).tolist() == [1, 2, 1, 1, 1]
    with pytest.raises(ShapeError, match="12 bins do not merge evenly into 5"):
        fine.rebin(5)


@pytest.mark.parametrize("bins", [3, 0, 514])
def test_bins_that_a_float_axis_cannot_give_exactly_are_refused(bins):
    with pytest.raises(ShapeError, match="even number of bins up to 512"):
        count([1.0]).rebin(bins)


def test_different_axes_do_not_add():
    with pytest.raises(ShapeError, match="different axes"):
        count([1.0], AXES[0]) + count([1.0], AXES[2])
    with pytest.raises(ShapeError, match="different axes"):
        count([1.0], AXES[2]) + count([1.0], RegularAxis(12, -2.0, 5.0))
    with pytest.raises(ShapeError, match="7 and 2 mantissa bits"):
        count([1.0], AXES[0]) + count([1.0], AXES[1])
    with pytest.raises(TypeError):
        count([1.0]) + 3


def test_sum_of_a_list_starts_from_zero():
    parts = [count([1.0, 2.0]), count([3.0]), count([])]
    assert sum(parts) == count([1.0, 2.0, 3.0])


def test_only_occupied_bins_are_stored():
    hist = count([1.0, 1.5])
    assert hist.edges[0] == 1.0
    assert hist.edges[-1] == 1.5 + 2.0**-7
    assert count([]).values().tolist() == [0]


def test_the_axis_of_a_finished_histogram_counts_everything_again():
    first = count([1.0, 2.0])
    assert count([-5.0, 9.0], first.axis) == count([-5.0, 9.0])


def test_it_is_a_boost_histogram_with_flow():
    hist = count([-5.0, 0.0, 1.0, 99.0], RegularAxis(12, -2.0, 4.0))
    boost = hist.to_boost()
    reference = bh.Histogram(bh.axis.Regular(12, -2.0, 4.0), storage=bh.storage.Int64())
    reference.fill([-5.0, 0.0, 1.0, 99.0])
    assert boost == reference
    assert boost.axes[0] == hist.axes[0]


def test_the_plotting_protocol_is_complete():
    hist = count([-5.0, 0.0, 1.0, 99.0], RegularAxis(12, -2.0, 4.0))
    assert hist.kind == "COUNT"
    assert len(hist.axes) == 1
    assert not hist.axes[0].traits.circular
    assert np.array_equal(hist.values(), hist.counts())
    assert np.array_equal(hist.variances(flow=True), hist.values(flow=True))
    assert (hist.sum(), hist.sum(flow=True), hist.count) == (2, 4, 4)


def test_counts_cannot_be_changed_from_outside():
    with pytest.raises(ValueError, match="read-only"):
        count([1.0]).values()[0] = 7


@given(st.lists(st.floats(width=32), max_size=30), st.sampled_from(AXES))
def test_the_plain_form_survives_json(sample, axis):
    hist = count(sample, axis)
    back = Histogram.from_dict(json.loads(json.dumps(hist.to_dict())))
    assert back == hist
    assert back.moments == hist.moments
    assert back.backend == hist.backend


def test_a_plain_form_that_lacks_a_part_is_refused():
    with pytest.raises(ShapeError, match="without axis, backend, counts, moments, nonfinite"):
        Histogram.from_dict({})


def test_equality_sees_axis_counts_and_what_is_not_finite():
    assert count([1.0]) != count([1.5])
    assert count([1.0]) != count([1.0, 1.0])
    assert count([1.0]) != count([1.0, float("nan")])
    assert count([1.0]) != count([1.0], AXES[2])
    assert count([1.0]) != "a histogram"


def test_there_is_no_hash_to_contradict_equality():
    one, other = count([1.0, 2.0]), count([1.0, 2.0])
    assert one == other
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_allclose_also_sees_the_moments():
    hist = count([1.0, 2.0, 4.0])
    moved = Histogram(hist.axis, hist.values(flow=True), moments=Moments.of([1.0, 2.0, 4.001]))
    assert hist == moved
    assert not hist.allclose(moved)
    assert hist.allclose(moved, rtol=0.1)


def test_merging_says_when_two_implementations_counted():
    one, two = count([1.0]), histogram(torch.ones(1), backend="reference")
    assert (one + two).backend == "torch+reference"


def test_counts_that_do_not_fit_are_refused():
    axis, moments = RegularAxis(2, 0.0, 1.0), Moments.of([0.1])
    with pytest.raises(ShapeError, match=r"\(3,\) must be \(4,\)"):
        Histogram(axis, [0, 1, 0], moments=moments)
    with pytest.raises(ShapeError, match="nothing can lie outside"):
        Histogram(FloatAxis(7, 0, 2), [1, 0, 0, 0], moments=moments)
    with pytest.raises(ShapeError, match="2 values were binned but moments saw 1"):
        Histogram(axis, [0, 1, 1, 0], moments=moments)


def test_what_is_not_finite_adds():
    assert NonFinite(1, 2, 3) + NonFinite(1, 1, 1) == NonFinite(2, 3, 4)
    assert NonFinite(1, 2, 3).total == 6
