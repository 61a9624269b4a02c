"""Images with labels: opened one by one, from any process; and a validation split cut off."""

import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from burst.archive import DAMAGED, ImageFiles, Read, list_images, reason
from burst.errors import ImageError
from burst.preprocess import decode

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """A map-style dataset: index -> (RGB image, label).

    Attributes:
        names: of the n images, for messages and predictions.
        labels: (n,) int64, from 0.
        opener: name -> image; must pickle, for worker processes.
    """

    names: tuple[str, ...]
    labels: Labels
    opener: Callable[[str], Image.Image]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """The image and its label.

        Raises:
            ImageError: it cannot be read; named, with the reason.
        """
        return self.opener(self.names[index]), int(self.labels[index])

    def subset(self, indices: Sequence[int] | NDArray[np.intp]) -> "Split":
        """The images at these places, in this order."""
        names = tuple(self.names[index] for index in indices)
        return Split(names, self.labels[np.asarray(indices, np.intp)], self.opener)

    def __add__(self, other: "Split") -> "Split":
        """Both, one after the other.

        Raises:
            ValueError: they do not have one opener.
        """
        if self.opener is not other.opener:
            raise ValueError("only splits of one dataset can be joined")
        labels = np.concatenate([self.labels, other.labels])
        return Split(self.names + other.names, labels, self.opener)


class FileOpener:
    """Name -> image, from a folder or an archive; each process opens it once for itself.

    Args:
        place: a folder, zip or uncompressed tar.

    Raises:
        ImageError: see `burst.archive.list_images`.
    """

    place: Path
    files: ImageFiles
    _handle: "_Handle | None"
    _lock: threading.Lock

    def __init__(self, place: Path) -> None:
        self.__setstate__({"place": place, "files": list_images(place)})

    def __call__(self, name: str) -> Image.Image:
        """The image, 8-bit RGB.

        Raises:
            ImageError: it cannot be read; named, with the reason.
        """
        try:
            return decode(self._reader()(name))
        except ImageError as error:
            raise ImageError(f"cannot read image {name!r} of {self.place}: {error}") from error
        except DAMAGED as error:
            why = reason(error)
            raise ImageError(f"cannot read image {name!r} of {self.place}: {why}") from error

    def describe(self, name: str) -> str:
        """Where the image lies: its path, or that of its archive with its name behind a colon."""
        if self.place.is_dir():
            return str(self.place / name)
        return str(self.place) if self.place.name == name else f"{self.place}:{name}"

    def _reader(self) -> Read:
        with self._lock:
            if self._handle is None or self._handle.process != os.getpid():
                self._handle = _Handle(self.files)  # a fork shares the parent's file position
            return self._handle.read

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.place = state["place"]
        self.files = state["files"]
        self._handle = None
        self._lock = threading.Lock()


class _Handle:
    """A place that one process has opened."""

    def __init__(self, files: ImageFiles) -> None:
        self.process = os.getpid()
        self._open = ExitStack()
        self.read: Read = self._open.enter_context(files.reader())


def hold_out(labels: Labels, share: float = 0.1) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places to train on and places held out, class by class and always the same.

    Of N images ceil(share N) are held out, of each class its share, rounded by the largest
    remainder (ties to the first class); the last image of a class stays. Which ones, a generator
    seeded with 0 draws.

    >>> [len(part) for part in hold_out(np.repeat([0, 1], 5_994 // 2))]
    [5394, 600]
    """
    counts = np.unique(labels, return_counts=True)[1]
    total = min(math.ceil(round(share * len(labels), 9)), int((counts - 1).sum()))
    quota = np.minimum(np.floor(share * counts).astype(int), counts - 1)
    rest = share * counts - quota
    while (left := total - int(quota.sum())) > 0:  # each class gives one more at most a round
        larger = np.flatnonzero(quota < counts - 1)
        first = larger[np.argsort(-rest[larger], kind="stable")[:left]]
        quota[first] += 1
        rest[first] -= 1
    rng = np.random.default_rng(0)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])[: len(counts)]
    held = [rng.permutation(part)[:number] for part, number in zip(members, quota, strict=True)]
    out = np.sort(np.concatenate(held)) if held else np.empty(0, np.intp)
    return np.setdiff1d(np.arange(len(labels)), out), out


def cut(
    split: Split,
    copies: Sequence[Sequence[str]],
    choose: Callable[[Labels], NDArray[np.intp]],
) -> tuple[Split, Split]:
    """Images to train on, and images held out of which no copy is trained on.

    Args:
        split: of images.
        copies: groups of names whose files hold the same bytes. Of each the first is drawn from and
            the others go with it; those in several classes are all trained on.
        choose: labels of what is drawn from -> places among them that are held out.
    """
    first = np.arange(len(split))
    drawn = np.ones(len(split), bool)
    place = {name: number for number, name in enumerate(split.names)} if copies else {}
    for names in copies:
        group = sorted(place[name] for name in names if name in place)
        if len(group) > 1:
            first[group] = group[0]
            drawn[group] = False
            drawn[group[0]] = len(set(split.labels[group].tolist())) == 1
    places = np.flatnonzero(drawn)
    held = np.isin(first, places[choose(split.labels[places])])
    return split.subset(np.flatnonzero(~held)), split.subset(np.flatnonzero(held))


def distinct_names(names: Sequence[str], ids: Iterable[int] | None = None) -> tuple[str, ...]:
    """The names of classes, with the id behind those that others have too: "cat (id 2)".

    Without ids it is the label, from 0.
    """
    counts = Counter(names)
    numbered = zip(names, count() if ids is None else ids, strict=False)
    return tuple(f"{name} (id {n})" if counts[name] > 1 else name for name, n in numbered)


def class_fraction(labels: Labels, share: float) -> NDArray[np.intp]:
    """Places of a share of each class: round(share n_c) of its n_c images, at least one.

    Each class is drawn in an order that a generator seeded with the class decides, so it is always
    the same, and smaller shares lie in larger ones.

    >>> class_fraction(np.array([0, 0, 0, 1, 1, 1, 1]), 0.5).tolist()
    [0, 1, 4, 5]
    """
    chosen = []
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    for one, members in zip(classes, np.split(order, starts[1:]), strict=False):
        count = max(1, math.floor(share * len(members) + 0.5))
        chosen.append(np.random.default_rng([1, int(one)]).permutation(members)[:count])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.intp)
