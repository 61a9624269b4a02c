"""Is a dataset complete and readable? Counts, classes, and every image decoded once."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from bpt.dataset.benchmark import Benchmark, DatasetInfo
from bpt.dataset.split import Split
from burst.errors import ImageError
from burst.forward import Progress

AHEAD = 64  # images in flight, so that memory stays flat


@dataclass(frozen=True)
class CheckedDataset:
    """What a check found.

    Attributes:
        name: of the dataset.
        source: where it lies.
        classes: how many.
        sizes: images of train, val and test.
        mismatches: numbers that differ from the published ones, in words.
        unreadable: images that cannot be read, with the reason.
    """

    name: str
    source: str
    classes: int
    sizes: tuple[int, int, int]
    mismatches: tuple[str, ...]
    unreadable: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether it is as published and every image can be read."""
        return not self.mismatches and not self.unreadable


def check_dataset(
    info: DatasetInfo, benchmark: Benchmark, *, progress: Progress | None = None
) -> CheckedDataset:
    """Compare with what is published, and read every image.

    Args:
        info: with the published numbers.
        benchmark: the dataset, opened.
        progress: called as progress(images read, images in all).
    """
    splits = [benchmark.train, benchmark.val, benchmark.test]
    sizes = tuple(len(split) if split else 0 for split in splits)
    expected = zip(("train", "val", "test"), info.sizes or sizes, sizes, strict=True)
    mismatches = [
        f"{found:,} {kind} images instead of {count:,}"
        for kind, count, found in expected
        if found != count
    ]
    if info.classes not in (None, len(benchmark.classes)):
        mismatches.append(f"{len(benchmark.classes)} classes instead of {info.classes}")
    unreadable = []
    for done, problem in enumerate(_problems([split for split in splits if split]), 1):
        if problem:
            unreadable.append(problem)
        if progress:
            progress(done, sum(sizes))
    return CheckedDataset(
        benchmark.name,
        benchmark.source,
        len(benchmark.classes),
        (sizes[0], sizes[1], sizes[2]),
        tuple(mismatches),
        tuple(unreadable),
    )


def _problems(splits: list[Split]) -> Iterator[str | None]:
    """For each image why it cannot be read, or None. Decoders release the GIL, so threads do."""
    waiting: deque[Future[str | None]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split in splits:
            for index in range(len(split)):
                waiting.append(pool.submit(_problem, split, index))
                if len(waiting) >= AHEAD:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _problem(split: Split, index: int) -> str | None:
    try:
        split[index]
    except ImageError as error:
        return str(error)
    return None
