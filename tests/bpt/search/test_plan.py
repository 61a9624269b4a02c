"""Equal budgets, and when a search ends."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from bpt.search.grid import Grid, default_grid
from bpt.search.halving import DIVERGED, Rung, Score
from bpt.search.plan import all_work, courses

GRIDS = {"a": default_grid(0.01, 0.0), "b": default_grid(0.05, 0.005)}


def marks(count):
    return [Rung(None, epoch) for epoch in range(1, count + 1)]


def peak(lr, decay):
    """Accuracies that fall with the distance from a best point, in decades."""

    def lookup(point, rung):
        far = abs(math.log10(point.lr / lr)) + 0.1 * abs(
            math.log10((point.weight_decay + 1e-6) / (decay + 1e-6))
        )
        return Score(100.0 - far, far, 1000)

    return lookup


def test_a_search_ends_when_all_are_inside_with_equal_budgets():
    # the best of "a" lies two steps above its grid, that of "b" in the middle
    found = courses(
        GRIDS,
        {"a": peak(0.64, 0.0), "b": peak(0.05, 0.0)},
        rungs=dict.fromkeys("ab", marks(3)),
        max_trials=16,
    )
    assert not all_work(found)
    assert {len(one.tried) for one in found.values()} == {11}
    assert [found[name].edges for name in "ab"] == [(), ()]
    assert found["a"].best.lr == 0.64
    assert max(point.lr for point in found["a"].tried) == 2.56
    assert max(point.lr for point in found["b"].tried) == 0.2  # it looked between instead


def test_while_one_method_has_work_no_best_is_called_inside_or_at_an_edge():
    def begun(point, rung):
        return None if rung else peak(1e6, 0.0)(point, rung)

    found = courses(
        GRIDS,
        {"a": begun, "b": peak(0.05, 0.0)},
        rungs=dict.fromkeys("ab", marks(2)),
        max_trials=10,
    )
    assert found["a"].work and not found["b"].work and found["b"].best.lr == 0.05
    assert [found[name].edges for name in "ab"] == [None, None]


def test_at_the_cap_it_says_that_the_best_lies_at_an_edge():
    found = courses(
        GRIDS,
        {"a": peak(1e6, 0.0), "b": peak(0.05, 0.0)},
        rungs=dict.fromkeys("ab", marks(1)),
        max_trials=10,
    )
    assert {len(one.tried) for one in found.values()} == {10}
    assert found["a"].edges == ("lr",) and not found["b"].edges


def test_where_all_diverged_smaller_rates_are_tried():
    grids = {"a": Grid((0.1, 0.4), (0.0,))}
    found = courses(
        grids, {"a": lambda *_: DIVERGED}, rungs=dict.fromkeys("ab", marks(2)), max_trials=4
    )
    assert [point.lr for point in found["a"].tried] == [0.1, 0.4, 0.025, 0.00625]
    assert found["a"].best is None and found["a"].edges


@settings(max_examples=60)
@given(
    st.floats(-6, 2),
    st.floats(-6, 2),
    st.sampled_from([0.0, 1e-4, 0.005, 0.5]),
    st.integers(1, 4),
    st.integers(8, 24),
)
def test_budgets_are_equal_and_the_best_is_inside_or_the_cap_is_reached(a, b, decay, rungs, most):
    lookups = {"a": peak(10**a, decay), "b": peak(10**b, 0.0)}
    found = courses(GRIDS, lookups, rungs=dict.fromkeys(lookups, marks(rungs)), max_trials=most)
    counts = {len(course.tried) for course in found.values()}
    assert len(counts) == 1 and 8 <= counts.pop() <= most
    for course in found.values():
        assert len(set(course.tried)) == len(course.tried)
        capped = len(course.tried) + 2 > most
        assert capped or all(one.edges == () for one in found.values())
        assert course.best is not None
