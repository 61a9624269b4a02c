"""Is a dataset complete and readable? Counts, classes, and every image decoded once."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from bpt.dataset.benchmark import Benchmark, DatasetInfo
from bpt.dataset.coco import CocoDataset
from burst.errors import ImageError
from burst.progress import Progress

AHEAD = 64  # images in flight, so that memory stays flat
Read = Callable[[int], object]  # the image at a place


@dataclass(frozen=True)
class CheckedDataset:
    """What a check found.

    Attributes:
        name: of the dataset.
        source: where it lies.
        classes: how many.
        sizes: images of train, val and test; 0 where there is none.
        mismatches: numbers that differ from the published ones, in words.
        unreadable: images that cannot be read, with the reason.
        notes: how it was split, and what was left out by rule, in words.
    """

    name: str
    source: str
    classes: int
    sizes: tuple[int, int, int]
    mismatches: tuple[str, ...]
    unreadable: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether it is as published and every image can be read."""
        return not self.mismatches and not self.unreadable


def check_dataset(
    info: DatasetInfo, opened: Benchmark | CocoDataset, *, progress: Progress | None = None
) -> CheckedDataset:
    """Compare with what is published, and read every image; what is wrong is told, not raised.

    Args:
        info: with the published numbers.
        opened: the dataset.
        progress: called as progress(images read, images in all).
    """
    notes: tuple[str, ...] = ()
    if isinstance(opened, CocoDataset):
        classes, notes = len(opened.categories), opened.notes
        sizes = (len(opened.train), len(opened.val), 0)
        reading: list[Read] = [opened.train.image, opened.val.image]
    else:
        classes, notes = len(opened.classes), opened.notes
        sizes = opened.sizes
        splits = (opened.train, opened.val, opened.test)
        reading = [split.__getitem__ for split in splits if split]
    mismatches = info.unlike_published(sizes)
    if info.classes not in (None, classes):
        mismatches.append(f"{classes} classes instead of {info.classes}")
    unreadable = []
    counts = [size for size in sizes if size]
    for done, problem in enumerate(_problems(reading, counts), 1):
        if problem:
            unreadable.append(problem)
        if progress:
            progress(done, sum(sizes))
    return CheckedDataset(
        opened.name,
        opened.source,
        classes,
        sizes,
        tuple(mismatches),
        tuple(unreadable),
        notes,
    )


def _problems(reading: Sequence[Read], counts: Sequence[int]) -> Iterator[str | None]:
    """For each image why it cannot be read, or None. Decoders release the GIL, so threads do."""
    waiting: deque[Future[str | None]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for read, count in zip(reading, counts, strict=True):
            for index in range(count):
                waiting.append(pool.submit(_problem, read, index))
                if len(waiting) >= AHEAD:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _problem(read: Read, index: int) -> str | None:
    try:
        read(index)
    except ImageError as error:
        return str(error)
    return None
