"""The largest entries of a product that exists, by NumPy alone, and sums that add up."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burst import _peaks
from burst._peaks import Peaks

SHAPES = [(1, 1, 1), (5, 7, 3), (64, 64, 64), (48, 700, 48)]


def peaks_of(a, x, item, token, k, *, cuts=()):
    found = Peaks(k)
    bounds = [0, *sorted(cuts), len(x)]
    for start, stop in itertools.pairwise(bounds):
        part = slice(start, stop)
        found.add(a, x[part], item[part], token[part])
    return found


def largest(a, x, item, token, k):
    """By sorting every entry in Python's order of tuples."""
    y = (a.double() @ x.double().mT).float().numpy()
    entries = [
        (-abs(float(y[i, j])), int(item[j]), int(token[j]), i, float(y[i, j]))
        for i in range(y.shape[0])
        for j in range(y.shape[1])
    ]
    return sorted(entries)[:k]


def assert_is(found, expected):
    assert found.value.tolist() == [entry[4] for entry in expected]
    for name, place in (("item", 1), ("token", 2), ("dimension", 3)):
        assert getattr(found, name).tolist() == [entry[place] for entry in expected], name


def numbers(n, each=4):
    return torch.arange(n) // each, torch.arange(n) % each


def integers(m, n, d, seed=0, bound=6):
    """Small ones: their products are exact in float32, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    a, x = (torch.randint(-bound, bound + 1, s, generator=generator) for s in ((m, d), (n, d)))
    return a.float(), x.float()


@pytest.mark.parametrize("m, n, d", SHAPES)
def test_the_largest_entries_are_those_of_the_product(m, n, d):
    (a, x), (item, token) = integers(m, n, d), numbers(n)
    assert_is(peaks_of(a, x, item, token, 20), largest(a, x, item, token, 20))


@pytest.mark.parametrize("tile", [1, 17, 4096])
def test_tiles_change_nothing(monkeypatch, tile):
    (a, x), (item, token) = integers(13, 50, 13), numbers(50)
    monkeypatch.setattr(_peaks, "CPU_TILE", tile)
    found = peaks_of(a, x, item, token, 9)
    assert_is(found, largest(a, x, item, token, 9))
    y = (a @ x.mT).double().numpy()
    np.testing.assert_array_equal(found.by_dimension, (y**2).sum(1))
    assert found.energy == (y**2).sum()
    for place in range(4):
        assert found.by_token[place] == (y**2)[:, token.numpy() == place].sum()
    assert found.tokens.tolist() == [13, 13, 12, 12]


@settings(max_examples=60)
@given(
    n=st.integers(0, 30),
    d=st.integers(1, 6),
    k=st.integers(1, 40),
    bound=st.integers(0, 3),
    cuts=st.lists(st.integers(0, 30), max_size=3),
    seed=st.integers(0, 9),
)
def test_parts_add_up_to_the_whole_ties_included(n, d, k, bound, cuts, seed):
    (a, x), (item, token) = integers(d, n, d, seed, bound), numbers(n)
    whole = peaks_of(a, x, item, token, k)
    assert_is(whole, largest(a, x, item, token, k))
    assert_is(peaks_of(a, x, item, token, k, cuts=[min(c, n) for c in cuts]), whole_entries(whole))
    mine = torch.arange(n) % 3 == 0  # as two processes would have them
    halves = [peaks_of(a, x[own], item[own], token[own], k) for own in (mine, ~mine)]
    for sum_ in (halves[0] + halves[1], halves[1] + halves[0]):
        assert_is(sum_, whole_entries(whole))
        for name in ("by_dimension", "by_token", "tokens"):  # integers: exact
            one, other = getattr(sum_, name), getattr(whole, name)
            length = max(len(one), len(other))
            padded = [np.pad(part, (0, length - len(part))) for part in (one, other)]
            np.testing.assert_array_equal(*padded)


def whole_entries(peaks):
    parts = peaks.item, peaks.token, peaks.dimension, peaks.value
    return [(-abs(v), int(i), int(t), int(d), float(v)) for i, t, d, v in zip(*parts, strict=True)]


def test_a_product_of_zeros_has_its_first_entries():
    a, x = torch.zeros(3, 3), torch.zeros(8, 3)
    found = peaks_of(a, x, *numbers(8), 5)
    assert found.value.tolist() == [0.0] * 5
    assert found.dimension.tolist() == [0, 1, 2, 0, 1] and found.token.tolist() == [0, 0, 0, 1, 1]


def test_numbers_of_items_move_together():
    a, x = integers(3, 8, 3)
    found = peaks_of(a, x, *numbers(8), 5)
    assert (found.moved(10).item - found.item).tolist() == [10] * 5
    assert found.moved(10).by_token is found.by_token


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_energy_neither_overflows_nor_vanishes(scale):
    a, x = torch.eye(3), torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 4.0]]) * scale
    found = peaks_of(a, x, *numbers(2), 1)
    np.testing.assert_allclose(found.by_dimension, np.array([5, 20, 16]) * scale**2, rtol=1e-6)
    np.testing.assert_allclose(found.by_token, np.array([5, 36]) * scale**2, rtol=1e-6)
