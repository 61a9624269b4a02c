"""What a dataset is: its splits, its classes, and what is known of where it comes from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bpt.dataset.split import Split


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A dataset that was opened.

    Attributes:
        name: of the dataset.
        classes: names, in the order of the labels.
        train, test: splits.
        val: split; None where there is none.
        source: where it was found.
        flip: whether a mirrored image is still of its class.
        smallest_crop: least share of the area that a random crop of training takes.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split
    source: str
    flip: bool = True
    smallest_crop: float = 0.08

    @property
    def digest(self) -> str:
        """SHA-256 in hex of classes, names and labels of all splits."""
        found = hashlib.sha256("\0".join(self.classes).encode())
        for split in (self.train, self.val, self.test):
            found.update(b"\0\0")
            if split is not None:
                found.update("\0".join(split.names).encode(errors="surrogateescape"))
                found.update(split.labels.tobytes())
        return found.hexdigest()


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a dataset before it is opened.

    Attributes:
        name: what `open_dataset` takes.
        title: for people.
        classes: how many; None where it depends on the files.
        sizes: images of train, val and test; None where it depends on the files.
        licence: of the images.
        citation: what to cite.
        source: where to get it.
        files: what is expected to lie in its place.
        embedded: whether it comes with a dependency and needs no place.
        opener: place -> `Benchmark`.
    """

    name: str
    title: str
    classes: int | None
    sizes: tuple[int, int, int] | None
    licence: str
    citation: str
    source: str
    files: str
    embedded: bool
    opener: Callable[[Path | None], Benchmark]
