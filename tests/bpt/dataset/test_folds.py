"""Folds: disjoint, complete, with each class's share, and always the same."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpt import Benchmark, Split
from bpt.dataset import all_training_images, fold_of, parse_fold
from burst import BurstError


def benchmark(counts, val=0):
    labels = np.repeat(np.arange(len(counts)), counts)
    split = Split(tuple(f"{i}" for i in range(len(labels))), labels, opener=str)
    order = np.random.default_rng(0).permutation(len(labels))
    train, held = split.subset(order[val:]), split.subset(order[:val])
    names = tuple(f"class {i}" for i in range(len(counts)))
    return Benchmark("test", names, train, held if val else None, split.subset([0]), "nowhere")


@given(st.lists(st.integers(5, 20), min_size=1, max_size=5), st.integers(2, 5), st.integers(0, 4))
def test_each_image_is_held_out_once_and_classes_keep_their_share(counts, folds, val):
    whole = benchmark(counts, val)
    cut = [fold_of(whole, f"{number}/{folds}") for number in range(1, folds + 1)]
    names = sorted(all_training_images(whole).names)
    assert sorted(name for one in cut for name in one.val.names) == names
    for one in cut:
        assert sorted(one.train.names + one.val.names) == names
        assert one.test is whole.test
        held = np.bincount(one.val.labels, minlength=len(counts))
        assert all(abs(n - c / folds) < 1 for n, c in zip(held, counts, strict=True))
    again = fold_of(whole, f"1/{folds}")
    assert again.val.names == cut[0].val.names and again.digest == cut[0].digest
    assert len({one.digest for one in cut}) == folds


def test_a_class_of_fewer_images_is_missing_in_some_folds():
    cut = [fold_of(benchmark([10, 1]), f"{number}/3") for number in (1, 2, 3)]
    assert sum(int((one.val.labels == 1).sum()) for one in cut) == 1


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(2, 4))
def test_copies_are_never_trained_on_while_one_of_them_is_validated_on(ends, folds):
    whole = benchmark([15, 16])
    edges = sorted({0, *ends, 31})
    copies = [tuple(map(str, range(a, b))) for a, b in itertools.pairwise(edges)]
    copies = tuple(group for group in copies if 1 < len(group) < 4)
    whole = dataclasses.replace(whole, copies=copies)
    cut = [fold_of(whole, f"{number}/{folds}") for number in range(1, folds + 1)]
    across = {name for group in copies if {"14", "15"} <= set(group) for name in group}
    validated = sorted(name for one in cut for name in one.val.names)
    assert validated == sorted(set(whole.train.names) - across)
    for one in cut:
        for group in copies:
            assert len({name in one.train.names for name in group}) == 1
        assert len(one.train) + len(one.val) == len(whole.train)


def test_too_many_folds_are_refused():
    with pytest.raises(BurstError, match="at most 3 training images of a class.*4 folds"):
        fold_of(benchmark([3, 2]), "1/4")


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/1", "1", "a/b", "1/5/2", "-1/5", ""])
def test_what_is_no_fold_is_refused(text):
    with pytest.raises(BurstError, match="no part of at least two, such as 2/5"):
        parse_fold(text)
    assert parse_fold("2/5") == (2, 5)
