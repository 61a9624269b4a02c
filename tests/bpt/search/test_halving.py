"""Who goes on at a rung, and who is best."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpt.search.grid import Point
from bpt.search.halving import DIVERGED, LEAST, Rung, Score, best_of, kept, race, rungs

accuracies = st.lists(st.one_of(st.none(), st.integers(0, 100)), min_size=1, max_size=12)


def score(accuracy):
    return DIVERGED if accuracy is None else Score(float(accuracy), 1.0, 100)


def marks(count):
    return [Rung(None, epoch) for epoch in range(1, count + 1)]


@pytest.mark.parametrize(
    "epochs, folds, expected",
    [
        (1, None, [(None, 1)]),
        (3, None, [(None, 1), (None, 2), (None, 3)]),
        (100, None, [(None, 25), (None, 50), (None, 100)]),
        (2, 3, [(0, 1), (0, 2), (1, 2), (2, 2)]),
    ],
)
def test_rungs_lie_at_a_quarter_a_half_and_all_then_at_each_fold(epochs, folds, expected):
    assert rungs(epochs, folds, halving=True) == [Rung(*one) for one in expected]


def test_where_all_are_compared_the_better_half_goes_on_but_at_least_three():
    points = [Point(0.1 * (i + 1), 0.0) for i in range(8)]
    scores = {point: score(10 * i) for i, point in enumerate(points)}

    def first(count):
        some = points[:count]
        return kept(some, {one: scores[one] for one in some}, by_rate=False)

    assert first(8) == points[4:]
    assert first(4) == points[1:4]
    assert first(2) == points[:2]


def test_by_rate_the_better_half_of_each_rate_goes_on():
    scores = {Point(rate, decay): score(10 * rate + decay) for rate in (1, 2) for decay in range(3)}
    scores |= {Point(3, 0): score(1), Point(4, 0): DIVERGED, Point(5, 0): DIVERGED}
    scores |= {Point(5, 1): score(0)}
    wanted = [Point(1, 1), Point(1, 2), Point(2, 1), Point(2, 2), Point(3, 0), Point(5, 1)]
    assert kept(list(scores), scores, by_rate=True) == wanted


def test_a_latecomer_is_compared_with_all_that_came_before():
    old = {Point(0.1 * (i + 1), 0.0): score(50 + i) for i in range(7)}
    good, bad = Point(5.0, 0.0), Point(6.0, 0.0)
    scores = {**old, good: score(54), bad: score(10)}
    assert kept([good, bad], scores, by_rate=False) == [good]


def test_equal_accuracies_are_told_apart_by_the_loss():
    a, b = Point(0.1, 0.0), Point(0.2, 0.0)
    assert best_of({a: Score(90.0, 0.5, 10), b: Score(90.0, 0.4, 10)}) == b
    assert best_of({a: DIVERGED, b: DIVERGED}) is None


@given(accuracies, st.integers(1, 4))
def test_whoever_leads_at_every_rung_is_at_the_end_and_nobody_that_diverged(found, count):
    points = [Point(0.1 * (i + 1), 0.0) for i in range(len(found))]
    table = dict(zip(points, map(score, found), strict=True))
    work, finalists = race([points], marks(count), lambda point, rung: table[point])
    assert work == []
    best = best_of(table)
    if count > 1:
        assert not any(one.diverged for one in finalists.values())
        good = sum(one is not None for one in found)
        assert len(finalists) >= min(LEAST, good)
    assert best_of(finalists) == best


def test_a_rate_that_leads_only_once_it_has_fallen_comes_to_the_end():
    """As 0.2 of plain prompts did on a small backbone: 8.1 % after a quarter, 20.4 at the end."""
    early = {0.003: 10.1, 0.0125: 9.9, 0.05: 8.7, 0.2: 8.1}
    late = {0.003: 17.0, 0.0125: 17.1, 0.05: 17.4, 0.2: 20.4}
    points = [Point(rate, decay) for rate in early for decay in (0.0, 0.005)]
    asked = []

    def lookup(point, rung):
        asked.append((point, rung))
        accuracy = (early, early, late)[rung][point.lr] - 100 * point.weight_decay
        return Score(accuracy, 1.0, 1000)

    work, finalists = race([points], rungs(12, None, halving=True), lookup)
    assert not work and best_of(finalists) == Point(0.2, 0.0)
    assert [sum(rung == one for _, rung in asked) for one in range(3)] == [8, 4, 4]


def test_without_halving_every_trial_comes_to_the_end_of_its_training():
    points = [Point(rate, decay) for rate in (0.1, 0.2) for decay in (0.0, 0.1, 0.2)]
    table = {point: score(i) for i, point in enumerate(points)}
    marks = rungs(12, None, halving=False)
    assert marks == [Rung(None, 12)]
    assert race([points], marks, lambda point, _: table[point]) == ([], table)
    folds = rungs(12, 2, halving=False)
    assert folds == [Rung(0, 12), Rung(1, 12)]
    assert race([points], folds, lambda point, _: table[point])[1].keys() == set(points[3:])


def test_where_all_that_came_to_the_end_diverged_those_that_were_stopped_go_on():
    """Low decays lead early and diverge late; what is stable was stopped, and is still there."""
    points = [Point(0.1, 0.1 * i) for i in range(8)]
    curves = {point: [10 + i, 20 + i, 30 + i] for i, point in enumerate(points)}
    curves |= {point: [50 + i, 60 + i, None] for i, point in enumerate(points[3:])}
    work, finalists = race(
        [points], rungs(12, None, halving=True), lambda point, rung: score(curves[point][rung])
    )
    assert not work
    assert best_of(finalists) == points[2]


@given(st.lists(st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=3, max_size=3)))
def test_nothing_that_could_be_chosen_is_left_out_where_all_else_diverged(found):
    points = [Point(0.1 * (i % 2 + 1), 0.1 * i) for i in range(len(found))]
    curves = {  # what diverged stays so
        point: [None if None in one[: i + 1] else one[i] for i in range(3)]
        for point, one in zip(points, found, strict=True)
    }
    finalists = race(
        [points], rungs(12, None, halving=True), lambda point, rung: score(curves[point][rung])
    )[1]
    could = any(one[-1] is not None for one in curves.values())
    assert (best_of(finalists) is not None) == could


@given(accuracies, st.integers(1, 4), st.randoms(use_true_random=False))
def test_work_in_any_order_comes_to_the_same_end(found, count, random):
    points = [Point(0.1 * (i + 1), 0.0) for i in range(len(found))]
    known, runs = {}, []

    def lookup(point, rung):
        return known.get((point, rung))

    while True:
        work, finalists = race([points], marks(count), lookup)
        if not work:
            break
        item = random.choice(work)
        assert item not in known
        known[item] = score(found[points.index(item[0])])
        runs.append(item)
    assert len(set(runs)) == len(runs)
    direct = race([points], marks(count), lambda point, _: score(found[points.index(point)]))
    assert finalists == direct[1]


def test_an_extension_is_not_stopped_before_the_end_of_a_training():
    """As with a strong weight decay, which is behind for as long as the learning rate is high."""
    first = [Point(0.1 * (i + 1), 0.0) for i in range(8)]
    late, never = Point(0.1, 1.0), Point(0.2, 1.0)
    curves = {point: [40 + i, 50 + i, 52 + i] for i, point in enumerate(first)}
    curves |= {late: [10, 30, 90], never: [10, 20, 30]}

    def lookup(point, rung):
        return score(curves[point][rung])

    marks = rungs(12, None, halving=True)
    alone = race([first, [late, never]], marks, lookup)[1]
    assert best_of(alone) == late and never in alone
    assert late not in race([[*first, late, never]], marks, lookup)[1]  # beside (0.1, 0)


def test_between_folds_an_extension_is_stopped_and_what_diverges_is_at_once():
    first = [Point(0.1 * (i + 1), 0.0) for i in range(8)]
    bad, lost = Point(0.1, 1.0), Point(0.2, 1.0)
    curves = {point: [40 + i] * 4 for i, point in enumerate(first)} | {bad: [10] * 4}
    asked = []

    def lookup(point, rung):
        asked.append((point, rung))
        return DIVERGED if point == lost else score(curves[point][rung])

    marks = rungs(12, 2, halving=True)  # after 3, 6 and 12 epochs, then the second
    race([first, [bad, lost]], marks, lookup)
    assert max(rung for point, rung in asked if point == bad) == 2
    assert max(rung for point, rung in asked if point == lost) == 0
