import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burst.axis import FloatAxis, RegularAxis, axis_from_dict
from burst.errors import ShapeError

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_the_default_float_edges_are_the_bfloat16_numbers():
    import torch

    patterns = torch.arange(0x7F80, dtype=torch.int32).to(torch.int16)  # all finite, >= 0
    bfloats = patterns.view(torch.bfloat16).double().numpy()
    edges = FloatAxis().edges
    middle = len(edges) // 2
    assert np.array_equal(edges[middle:-1], bfloats)
    assert np.array_equal(edges[:middle], -np.append(bfloats[1:], 2.0**128)[::-1])
    assert edges[-1] == 2.0**128


@given(float32s, st.integers(1, 10))
def test_every_float_lies_in_a_bin_at_most_one_step_wide(number, bits):
    axis = FloatAxis(bits)
    bin_ = np.searchsorted(axis.edges, number, side="right") - 1
    low, high = axis.edges[bin_ : bin_ + 2]
    assert low <= number < high
    if abs(number) >= 2.0**-126:  # normal numbers
        # (-b, -a] mirrors [a, b) but for its ends, so a number at -a may sit in the next bin
        assert high - low <= 2.0**-bits * max(abs(low), abs(high))


@pytest.mark.parametrize(
    "bins, bits", [(2, 7), (256, 7), (512, 7), (514, 8), (1000, 8), (4096, 10)]
)
def test_the_axis_for_so_many_bins_is_the_coarsest_that_gives_them(bins, bits):
    assert FloatAxis.for_bins(bins).mantissa_bits == bits
    assert bins <= 4 << bits


@pytest.mark.parametrize("axis", [RegularAxis(5, -1.0, 4.0), FloatAxis(), FloatAxis(4, -10, 300)])
def test_boost_has_the_same_edges(axis):
    assert np.array_equal(axis.to_boost().edges, axis.edges)
    assert len(axis.edges) == axis.bins + 1
    assert np.all(np.diff(axis.edges) > 0)


@pytest.mark.parametrize("axis", [RegularAxis(5, -1.0, 4.0), FloatAxis(4, -10, 300)])
def test_the_plain_form_reads_back(axis):
    assert axis_from_dict(axis.to_dict()) == axis


@pytest.mark.parametrize("form", [{}, {"kind": "circular"}, {"kind": "regular", "bins": 3}])
def test_another_form_is_refused(form):
    with pytest.raises(ShapeError, match="not an axis"):
        axis_from_dict(form)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: RegularAxis(0, 0.0, 1.0), "at least 1 bin"),
        (lambda: RegularAxis(3, 1.0, 1.0), "lo < hi"),
        (lambda: RegularAxis(3, 0.0, np.inf), "finite"),
        (lambda: FloatAxis(0), "mantissa_bits"),
        (lambda: FloatAxis(11), "mantissa_bits"),
        (lambda: FloatAxis(7, 5, 5), "no bins"),
        (lambda: FloatAxis(7, 0, 10**6), "no bins"),
        (lambda: FloatAxis.for_bins(7), "even"),
        (lambda: FloatAxis.for_bins(0), "from 2"),
        (lambda: FloatAxis.for_bins(5000), "to 4096"),
    ],
)
def test_an_impossible_axis_is_refused_with_its_numbers(make, words):
    with pytest.raises(ShapeError, match=words):
        make()
