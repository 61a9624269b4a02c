"""Splits -> batches: the same for any number of workers and processes, from any step on."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bpt.dataset import Benchmark, Split
from burst.backbone import Backbone
from burst.errors import BurstError
from burst.preprocess import INTERPOLATIONS, Preprocess

Transform = Callable[[Image.Image], Tensor]


def train_transform(benchmark: Benchmark, backbone: Backbone) -> Transform:
    """Image -> (3, H, W) float32: a random crop of 8 % of the area or more, mirrored or not.

    The dataset may ask for larger crops, or for no mirroring. What is drawn comes from torch's
    global generator. Source: WangYZ1608/BPT, Dataset/FGVC.py:43-55.
    """
    crop = v2.RandomResizedCrop(
        list(backbone.image_size),
        scale=(benchmark.smallest_crop, 1.0),
        interpolation=INTERPOLATIONS[backbone.interpolation],
        antialias=True,
    )
    flip = [v2.RandomHorizontalFlip()] if benchmark.flip else []
    preprocess = preprocess_for(backbone)
    steps = v2.Compose([crop, *flip, v2.PILToTensor()])
    return lambda image: preprocess.normalise(steps(image))


def eval_transform(backbone: Backbone) -> Transform:
    """Image -> (3, H, W) float32: the short side resized to 8/7 of the size, then the centre."""
    preprocess = preprocess_for(backbone)
    return lambda image: preprocess.normalise(preprocess.centre(image))


def train_batches(
    split: Split,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One process's share of an epoch's batches.

    Seed and epoch decide the order of the images, and with an image's place in the split what is
    drawn for it. Global batch b holds images b * batch_size to (b + 1) * batch_size of the order;
    process `rank` of `world` takes every world-th of them, so that all processes together see what
    one alone would. The last, incomplete batch is left out. Torch's global generator stays as it
    was.

    Args:
        split: to train on.
        transform: draws from torch's global generator.
        batch_size: images a global batch.
        seed: of the training.
        epoch: counted from 0.
        start: first global batch.
        rank: of this process.
        world: how many there are.
        workers: processes that read images; 0 reads them in this one.

    Yields:
        (b, 3, H, W) float32 and (b,) int64.

    Raises:
        ImageError: an image cannot be read; it is named.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(split))
    batches = [
        order[step * batch_size : (step + 1) * batch_size][rank::world]
        for step in range(start, len(split) // batch_size)
    ]
    dataset = _Transformed(split, transform, draw=(seed, epoch))
    for images, labels, _ in _read(dataset, batches, workers):
        yield images, labels


def eval_batches(
    split: Split,
    transform: Transform,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One process's share of a split, in order; each image once over all processes.

    Yields:
        (b, 3, H, W) float32, (b,) int64 labels and (b,) int64 places in the split.

    Raises:
        ImageError: an image cannot be read; it is named.
    """
    places = np.arange(len(split))
    batches = [places[i : i + batch_size] for i in range(0, len(split), batch_size)]
    return _read(_Transformed(split, transform, draw=None), batches[rank::world], workers)


Item = tuple[Tensor, int, int]


class _Transformed(Dataset[Item | BurstError]):
    """Index -> image as the model reads it, label, index; or why there is none.

    An error is handed over as a value, because a worker process that raises it would wrap a whole
    traceback around its text.
    """

    def __init__(self, split: Split, transform: Transform, *, draw: tuple[int, int] | None) -> None:
        self.split, self.transform, self.draw = split, transform, draw

    def __getitem__(self, index: int) -> Item | BurstError:
        try:
            image, label = self.split[index]
            if self.draw is None:
                return self.transform(image), label, index
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(_mixed(*self.draw, index))
                return self.transform(image), label, index
        except BurstError as error:
            return error


def _read(
    dataset: _Transformed, batches: Sequence[Any], workers: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else it draws from the global one
    )
    for batch in loader:
        if isinstance(batch, BurstError):
            raise batch
        yield batch


def _collate(items: list[Item | BurstError]) -> tuple[Tensor, Tensor, Tensor] | BurstError:
    images, labels, indices = [], [], []
    for item in items:
        if isinstance(item, BurstError):
            return item
        images.append(item[0])
        labels.append(item[1])
        indices.append(item[2])
    return torch.stack(images), torch.tensor(labels), torch.tensor(indices)


def _mixed(*numbers: int) -> int:
    """One seed from several, well spread."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def preprocess_for(backbone: Backbone) -> Preprocess:
    """How the backbone's pretraining prepared an image."""
    return Preprocess(
        image_size=backbone.image_size[0],
        mean=backbone.mean,
        std=backbone.std,
        interpolation=backbone.interpolation,
    )
