"""Where a search begins, what counts as an edge, and what is tried next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpt.search.grid import Grid, Point, default_grid, extension, outward
from burst import BurstError

GRID = Grid((0.01, 0.1), (0.0, 0.005))
lrs = st.lists(
    st.floats(1e-6, 10).map(lambda x: float(f"{x:.3g}")), min_size=1, max_size=4, unique=True
)
decays = st.lists(
    st.sampled_from([0.0, 1e-4, 1e-3, 0.01, 0.1]), min_size=1, max_size=3, unique=True
)


def test_a_default_grid_has_the_methods_own_values_and_no_decay():
    grid = default_grid(0.04, 0.005)
    assert grid.lrs == (0.0025, 0.01, 0.04, 0.16) and grid.weight_decays == (0.0, 0.005)
    assert default_grid(0.01, 0.0).weight_decays == (0.0, 0.05)
    assert len(grid.points) == 8 and grid.points[0] == Point(0.0025, 0.0)


@pytest.mark.parametrize(
    "best, expected",
    [
        (Point(0.1, 0.0), [Point(1.0, 0.0)]),
        (Point(0.01, 0.0), [Point(0.001, 0.0)]),
        (Point(0.1, 0.005), [Point(1.0, 0.005), Point(0.1, 0.05)]),
    ],
)
def test_at_an_edge_the_next_step_goes_outward(best, expected):
    assert outward(best, GRID.points, GRID) == expected


def test_inside_and_at_no_decay_there_is_no_edge():
    tried = [*GRID.points, Point(1.0, 0.0)]
    assert outward(Point(0.1, 0.0), tried, GRID) == []
    assert outward(Point(0.1, 0.001), [Point(0.1, 0.001), *tried], GRID) == []


def test_below_the_lowest_decay_comes_none():
    grid = Grid((0.1,), (0.01, 0.1))
    assert outward(Point(0.1, 0.01), grid.points, grid) == [Point(0.1, 0.0)]
    assert outward(Point(0.1, 0.1), grid.points, grid) == [Point(0.1, 1.0)]


def test_one_value_is_no_edge():
    grid = Grid((0.1,), (0.01,))
    assert outward(Point(0.1, 0.01), grid.points, grid) == []


@given(lrs, decays, st.integers(1, 6), st.data())
def test_an_extension_has_as_many_new_points_as_asked_for_and_goes_outward_first(
    lrs, decays, count, data
):
    grid = Grid(tuple(lrs), tuple(decays))
    best = data.draw(st.sampled_from(grid.points))
    if len(lrs) == len(decays) == 1:
        with pytest.raises(BurstError, match="nothing to refine"):
            extension(best, grid.points, grid, count)
        return
    found = extension(best, grid.points, grid, count)
    assert len(set(found)) == len(found) == count and not set(found) & set(grid.points)
    edges = outward(best, grid.points, grid)
    assert found[: len(edges)] == edges[:count]
    for point in found[len(edges) :]:  # refinements stay within a step of the best
        assert len(lrs) > 1 or point.lr == best.lr
        assert len(decays) > 1 or point.weight_decay == best.weight_decay
        assert point.lr / best.lr <= grid.lr_factor and best.lr / point.lr <= grid.lr_factor


@pytest.mark.parametrize(
    "lrs, decays, says",
    [
        ((), (0.0,), "at least one number"),
        ((0.1, 0.0), (0.0,), "positive"),
        ((0.1,), (-1.0,), "0 or more"),
        ((0.1, 0.1), (0.0,), "a value twice"),
        ((float("nan"),), (0.0,), "positive"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(lrs, decays, says):
    with pytest.raises(BurstError, match=says):
        Grid(lrs, decays)
