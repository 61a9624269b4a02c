"""What a dataset is: its splits, its classes, and what is known of where it comes from."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bpt.dataset.download import RemoteFile
from bpt.dataset.place import Layout
from bpt.dataset.split import Split, class_fraction, cut, hold_out
from burst.errors import BurstError, ImageError, check_share


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
        smallest_crop: least share of the area that a random crop of training takes, 0..1.
        squash: whether evaluation images are resized whole to the backbone's square, whatever their
            shape, as a benchmark's protocol may ask; else they are cropped as the backbone asks.
        about: what a run's config.json says of it besides: how it was split, which version it is.
        notes: what whoever opens it is told, in sentences.
        copies: groups of names whose files hold the same bytes, as far as they were looked for; a
            cross-validation keeps each in one fold.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split
    source: str
    flip: bool = True
    smallest_crop: float = 0.08
    squash: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    copies: tuple[tuple[str, ...], ...] = ()

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Images to train, validate and test."""
        return len(self.train), len(self.val) if self.val else 0, len(self.test)

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


@dataclass(frozen=True)
class Request:
    """What is asked of a dataset.

    Attributes:
        root: the folder or archive that it lies in; None for what is embedded.
        train_fraction: share of each class's training images to take, in (0, 1].
        train_list: a text file that names the training images.

    Raises:
        BurstError: the fraction is out of range, or both are given.
    """

    root: Path | None = None
    train_fraction: float | None = None
    train_list: Path | None = None

    def __post_init__(self) -> None:
        check_share("train_fraction", self.train_fraction)
        if self.train_fraction is not None and self.train_list is not None:
            raise BurstError("give a fraction of the training images or a list of them, not both")

    def benchmark(
        self,
        name: str,
        classes: Sequence[str],
        train: Split,
        test: Split,
        val: Split | None = None,
        *,
        held_out: float = 0.1,
        copies: Sequence[Sequence[str]] = (),
    ) -> Benchmark:
        """The dataset, once its images are sorted into splits.

        The fraction is taken first. Then, where the dataset has no validation split of its own, a
        share of what is left is held out, class by class, see `hold_out`. So training and
        validation images together are the fraction, and smaller fractions lie in larger ones.

        Classes that are tested on without a training image are noted, not refused: VTAB draws its
        training images whatever their class.

        Args:
            name, classes, train, test, val: of the benchmark.
            held_out: the share.
            copies: groups of names whose files hold the same bytes; each stays in one split.

        Raises:
            ImageError: there is nothing to train on, or nothing to test on, or an image is in two
                splits.
        """
        for kind, split in (("training", train), ("test", test)):
            if not len(split):
                raise ImageError(f"{name}: {self.root} has no {kind} image")
        given = {"train": train, "test": test} | ({"val": val} if val else {})
        names = {kind: set(split.names) for kind, split in given.items()}
        for one, other in combinations(names, 2):
            if both := names[one] & names[other]:
                raise ImageError(
                    f"{self.root}: {one} and {other} share images ({len(both):,}), such as "
                    f"{min(both)!r}; keep each in one of them"
                )
        notes = []
        if len(lacking := np.setdiff1d(test.labels, train.labels)):
            notes.append(
                f"{name}: classes tested on without a training image: {len(lacking)}, such as "
                f"{classes[int(lacking[0])]!r}"
            )
        if self.train_fraction is not None:
            train = train.subset(class_fraction(train.labels, self.train_fraction))
        if val is None:
            train, val = cut(train, copies, lambda labels: hold_out(labels, held_out)[1])
        return Benchmark(
            name, tuple(classes), train, val, test, source=str(self.root), notes=tuple(notes)
        )


# The five archives of the fine-grained benchmarks, and split files (json.zip, fgvc_split.zip) that
# may be VPT's: V-PETL Bench refers to them.
FGVC_COPY = "huggingface.co/datasets/XiN0919/FGVC"


SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a dataset before it is opened.

    Attributes:
        name: what `open_dataset` takes.
        title: for people.
        classes: how many; None where it depends on the files.
        sizes: images of train, val and test, which may be 0; None where it depends on the files.
        licence: of the images.
        citation: what to cite.
        source: where to get it.
        copies: who else hosts it, as read somewhere; not checked by us.
        files: what is expected to lie in its place.
        task: classification, or detection: then `open_coco` opens it.
        opener: what is asked of it -> `Benchmark`; None for detection, and for a family of
            datasets that is opened by the name of one.
        embedded: whether it comes with a dependency and needs no place.
        own_validation: whether it comes with a validation split; else some of its training images
            are held out, a tenth of most.
        layout: how its files are named; None where any place is taken as it is.
        downloads: what `download_dataset` fetches; empty where its licence or its site forbids it.
        members: of a family, the names of the datasets in it.
        augmentation: of training images, where its protocol asks for one; see `Recipe`.
    """

    name: str
    title: str
    classes: int | None
    sizes: tuple[int, int, int] | None
    licence: str
    citation: str
    source: str
    files: str
    task: str = "classification"
    opener: Callable[[Request], Benchmark] | None = None
    embedded: bool = False
    own_validation: bool = False
    layout: Layout | None = None
    downloads: tuple[RemoteFile, ...] = ()
    augmentation: str | None = None
    copies: tuple[str, ...] = ()
    members: tuple[str, ...] = ()

    def unlike_published(
        self, sizes: tuple[int, int, int], *, splits: Sequence[str] = SPLITS
    ) -> list[str]:
        """Which splits have more or fewer images than were published, in words.

        Args:
            sizes: images of train, val and test.
            splits: those to compare.
        """
        published = self.sizes or sizes
        return [
            f"{found:,} {split} images instead of {count:,}"
            for split, count, found in zip(SPLITS, published, sizes, strict=True)
            if split in splits and found != count
        ]


DATA = "data (--data of `bpt`, or $BPT_DATA)"


def how_to_get(info: DatasetInfo) -> str:
    """What to do where it is missing, on one line."""
    if info.downloads:
        how = f"`bpt datasets --download {info.name}`"
        return f"get it with {how}, or give its folder as {DATA}"
    also = f", or a copy, not checked by us, from {' or '.join(info.copies)}" if info.copies else ""
    return f"get it from {info.source}{also}; expected {info.files} in the folder given as {DATA}"
