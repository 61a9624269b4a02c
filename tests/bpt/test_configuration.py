"""A benchmark that is opened to be trained on says so where it is not what was published."""

import layouts
import pytest

import bpt
from bpt.configuration import open_benchmark, untouched_splits

CUB = {"train": "5,394", "val": "600", "test": "5,794"}


@pytest.mark.parametrize(
    "fraction, kinds", [(None, tuple(CUB)), (1.0, tuple(CUB)), (0.5, ("test",))]
)
def test_a_benchmark_that_is_not_whole_says_so(fraction, kinds, tmp_path):
    layouts.cub(tmp_path)
    told = []
    recipe = bpt.Recipe(dataset="cub", data=str(tmp_path), train_fraction=fraction)
    there = dict(zip(CUB, open_benchmark(recipe, say=told.append).sizes, strict=True))
    differing = ", ".join(f"{there[one]} {one} images instead of {CUB[one]}" for one in kinds)
    expected = f"cub is not as published: {differing}; published numbers are of other images"
    assert told[-1] == expected


@pytest.mark.parametrize("given", [{}, {"train_fraction": 0.35}, {"fold": "1/2"}])
def test_one_that_is_whole_says_nothing_whatever_part_of_it_is_asked_for(given):
    told = []
    open_benchmark(bpt.Recipe(dataset="digits", **given), say=told.append)
    assert told == []


@pytest.mark.parametrize(
    "dataset, given, splits",
    [
        ("imagenet", {"train_list": "ten_percent.txt"}, ("test",)),
        ("flowers", {"train_fraction": 0.5}, ("val", "test")),  # it has a validation of its own
        ("flowers", {"fold": "1/5"}, ("test",)),
        ("cub", {}, ("train", "val", "test")),
    ],
)
def test_splits_that_are_asked_for_whole(dataset, given, splits):
    assert untouched_splits(bpt.Recipe(dataset=dataset, **given)) == splits
