"""Which images make a group, however their batches come, and what is counted of each."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from burst.decomposition import GroupMoments
from burst.groups import GROUPS, MOST, Counted, GroupedCounter, GrowingGroups, PlannedGroups
from burst.kernels import HistogramAccumulator, histogram

sizes = st.lists(st.integers(1, 90), min_size=1, max_size=30)


def named(batches):
    """Names of so many items a batch."""
    ends = np.cumsum([0, *batches])
    return [list(map(str, range(start, end))) for start, end in itertools.pairwise(ends)]


def planned(batches, rank=0, size=1):
    """The group of each image, in the stream's order; None of those of other processes."""
    groups, start = PlannedGroups(named(batches), rank, size), 0
    found = [None] * sum(batches)
    for i, items in enumerate(batches):
        if i % size == rank:
            for group, first, last in groups.pieces(items)[0]:
                found[start + first : start + last] = [group] * (last - first)
        start += items
    return found


@given(sizes)
def test_planned_groups_are_neighbours_and_as_large_as_each_other(batches):
    found = planned(batches)
    assert found == sorted(found)
    counts = np.bincount(found)
    counts = counts[counts > 0]
    assert len(counts) == min(GROUPS, sum(batches))
    assert counts.max() - counts.min() <= 1


@given(sizes, st.integers(1, 4))
def test_an_image_is_of_the_same_group_whichever_process_reads_it(batches, size):
    shared = [planned(batches, rank, size) for rank in range(size)]
    together = [
        next(one for one in of_image if one is not None) for of_image in zip(*shared, strict=True)
    ]
    assert together == planned(batches)


@given(sizes, st.integers(1, 3), st.data())
def test_what_cannot_be_read_moves_no_other_image_to_another_group(batches, size, data):
    bad = {str(one) for one in data.draw(st.sets(st.integers(0, sum(batches) - 1)))}
    expected = planned(batches)
    for rank in range(size):
        skipped: list[tuple[str, str]] = []
        groups = PlannedGroups(named(batches), rank, size, skipped)
        for names in named(batches)[rank::size]:
            skipped += [(name, "broken") for name in names if name in bad]
            kept = [int(name) for name in names if name not in bad]
            if kept:  # a batch of bad ones alone does not come
                found = [
                    group
                    for group, first, last in groups.pieces(len(kept))[0]
                    for _ in range(first, last)
                ]
                assert found == [expected[i] for i in kept]


@given(sizes)
def test_growing_groups_are_neighbours_and_never_too_many(batches):
    groups, found = GrowingGroups(), []
    for items in batches:
        pieces, joined = groups.pieces(items)
        found = [one // joined for one in found]
        for group, first, last in pieces:
            assert last > first
            found += [group] * (last - first)
    assert len(found) == sum(batches)
    assert found == sorted(found)
    assert min(len(found), MOST // 2) <= len(set(found)) <= MOST


def test_a_counter_keeps_each_group_apart_and_joins_neighbours():
    a = torch.eye(3)
    batches = [torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    counter = GroupedCounter(lambda: HistogramAccumulator(margins=True), True)
    for i, x in enumerate(batches):
        counter.at(i // 2).add_product(a, x)
    counter.join(2)
    groups = counter.groups()
    assert list(groups) == [0, 1]
    first = sum(part.histogram for part in groups[0])
    assert first == histogram(torch.cat(batches[:4], dim=1))
    margins = sum(part.margins for part in groups[1])
    expected = GroupMoments.of(torch.cat(batches[4:], dim=1).numpy())
    np.testing.assert_allclose(margins.rows.m4, expected.m4)


def test_a_histogram_comes_back_from_its_occupied_bins():
    counter = HistogramAccumulator()
    counter.add(torch.tensor([-1e30, 0.0, 0.0, 3.5, torch.nan]))
    found = Counted.of(counter, margins=False)
    assert len(found.bins) == 3
    assert found.histogram == counter.result()
    assert found.histogram.moments == counter.result().moments
    assert found.histogram.backend == counter.result().backend
