"""Annotated images -> batches: the same for any number of workers and processes, from any step on.

An image lies at the upper left of its square input, uint8; the rest is 0.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bpt.dataset.coco import CocoSplit
from bpt.detection.frames import targets_of
from bpt.detection.jitter import Geometry, Jitter, whole
from bpt.detection.objects import Batch, Targets
from bpt.loading import Places, places_in_order, places_of
from burst.errors import BurstError


class Evaluated(NamedTuple):
    """A batch of an evaluation.

    Attributes:
        batch: without targets.
        places: (b,) int64, of the images in the split.
        geometries: where each image lies in the input, to put into it what was found.
    """

    batch: Batch
    places: Places
    geometries: tuple[Geometry, ...]


def train_batches(
    split: CocoSplit,
    jitter: Jitter,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """One process's share of an epoch's batches, jittered.

    Seed and epoch decide the order of the images, see `places_of`, and with an image's place in
    the split what is drawn for it. No global generator is read.

    An image may be left without objects by the crop; it is in the batch nevertheless.

    Args:
        split: to train on, see `CocoSplit.for_training`.
        jitter: how images are drawn, and the size of the input.
        batch_size: images a global batch.
        seed: of the training.
        epoch: counted from 0.
        start: first global batch.
        rank: of this process.
        world: how many there are.
        workers: processes that read images; 0 reads them in this one.

    Raises:
        ImageError: an image cannot be read; it is named.
        BurstError: pycocotools is not installed.
    """
    batches = places_of(
        len(split),
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        start=start,
        rank=rank,
        world=world,
    )
    images = _Placed(split, jitter, draw=(seed, epoch))
    for batch, _, _ in _read(images, batches, workers):
        yield batch


def eval_batches(
    split: CocoSplit,
    *,
    size: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Evaluated]:
    """One process's share of a split, in order; each image once over all processes, and whole.

    Args:
        split: to evaluate on.
        size: pixels across the input; the longest side of each image gets so many.
        batch_size: images a batch.
        rank: of this process.
        world: how many there are.
        workers: processes that read images; 0 reads them in this one.

    Raises:
        ImageError: an image cannot be read; it is named.
    """
    batches = places_in_order(len(split), batch_size, rank=rank, world=world)
    return _read(_Placed(split, Jitter(size), draw=None), batches, workers)


class _Item(NamedTuple):
    image: Tensor
    geometry: Geometry
    targets: Targets | None
    place: int


class _Loaded(NamedTuple):
    """A batch as few tensors: each one holds a file descriptor on its way between processes."""

    images: Tensor
    geometries: tuple[Geometry, ...]
    counts: tuple[int, ...]  # of objects, image by image; none for an evaluation
    targets: tuple[Tensor, Tensor, Tensor] | None
    places: tuple[int, ...]


class _Placed(Dataset[_Item | BurstError]):
    """Index -> an image in its place, and its objects; or why there is none.

    An error is handed over as a value, because a worker process that raises it would wrap a whole
    traceback around its text.
    """

    def __init__(self, split: CocoSplit, jitter: Jitter, *, draw: tuple[int, int] | None) -> None:
        self.split, self.jitter, self.draw = split, jitter, draw

    def __getitem__(self, index: int) -> _Item | BurstError:
        try:
            image = self.split.image(index)
            if self.draw is None:
                geometry = whole(image.height, image.width, self.jitter.size)
                return _Item(geometry.apply(image), geometry, None, index)
            # A key apart from seed and epoch: their own stream has drawn the order.
            rng = np.random.default_rng(np.random.SeedSequence(self.draw, spawn_key=(index,)))
            geometry = self.jitter.geometry(image.height, image.width, self.jitter.draw(rng))
            targets = targets_of(self.split.objects(index), geometry)
            return _Item(geometry.apply(image), geometry, targets, index)
        except BurstError as error:
            return error

    def collate(self, items: list[_Item | BurstError]) -> _Loaded | BurstError:
        """The items of one batch, or the first error among them."""
        found: list[_Item] = []
        for item in items:
            if isinstance(item, BurstError):
                return item
            found.append(item)
        size = self.jitter.size
        images = torch.zeros(len(found), 3, size, size, dtype=torch.uint8)
        for one, into in zip(found, images, strict=True):
            into[:, : one.geometry.kept[0], : one.geometry.kept[1]] = one.image
        each = [one.targets for one in found if one.targets is not None]
        joined = (
            (
                torch.cat([one.boxes for one in each]),
                torch.cat([one.labels for one in each]),
                torch.cat([one.masks for one in each]),
            )
            if each
            else None
        )
        return _Loaded(
            images,
            tuple(one.geometry for one in found),
            tuple(len(one) for one in each),
            joined,
            tuple(one.place for one in found),
        )


def _read(images: _Placed, batches: Sequence[Any], workers: int) -> Iterator[Evaluated]:
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        collate_fn=images.collate,
        # Where somebody has chosen a GPU, not wherever there is one.
        pin_memory=torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
        generator=torch.Generator(),  # else it draws from the global one
    )
    for loaded in loader:
        if isinstance(loaded, BurstError):
            raise loaded
        targets: tuple[Targets, ...] = ()
        if loaded.targets is not None:
            parts = (one.split(loaded.counts) for one in loaded.targets)
            targets = tuple(Targets(*one) for one in zip(*parts, strict=True))
        geometries = tuple(loaded.geometries)  # a list, where memory was pinned
        batch = Batch(loaded.images, tuple(one.kept for one in geometries), targets)
        yield Evaluated(batch, np.array(loaded.places), geometries)
