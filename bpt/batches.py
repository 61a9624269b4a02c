"""Where a training's batches come from: images, or features that were computed once.

Both give, of their splits, `steps` an epoch, `train(epoch, start)` and `evaluation(split)`.
"""

import dataclasses
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from bpt.dataset import Benchmark, FileOpener, Split
from bpt.engine import autocast
from bpt.loading import (
    eval_batches,
    eval_transform,
    mixed_seed,
    train_batches,
    train_transform,
)
from bpt.pixels import Kept, stored_pixels
from bpt.recipe import Recipe
from burst.backbone import Backbone
from burst.distributed import first_alone, rank_and_size, together
from burst.errors import BurstError
from burst.progress import Say

TrainBatches = Iterable[tuple[Tensor, Tensor]]
EvalBatches = Iterable[tuple[Tensor, Tensor, Tensor]]


class Batches(Protocol):
    """What a training needs of its data."""

    steps: int

    def train(self, epoch: int, start: int) -> TrainBatches:
        """This process's share of the epoch's batches, from batch `start` on."""

    def evaluation(self, split: str) -> EvalBatches:
        """This process's share of "val" or "test", each image once over all processes."""


class ImageBatches:
    """Augmented images for training, centre crops for evaluation.

    If the recipe wants a cache, the images of files are decoded now, once and for all trainings:
    those to train on, and those of the split that chooses the epoch.

    Args:
        recipe: batch sizes, seed, and whether there is a cache.
        benchmark: splits to evaluate on.
        backbone: whose size and normalisation are used.
        train: images to train on.
        say: called with a line now and then.

    Raises:
        BurstError: there are fewer training images than a batch holds.
        ImageError: an image cannot be read; it is named.
    """

    def __init__(
        self,
        recipe: Recipe,
        benchmark: Benchmark,
        backbone: Backbone,
        train: Split,
        *,
        say: Say = lambda _: None,
    ) -> None:
        self.recipe, self.benchmark, self.backbone = recipe, benchmark, backbone
        self.split, self.steps = train, _steps(recipe, len(train))
        self._evaluated: dict[str, Split] = {}
        # A linear probe computes its features once; to keep pixels too would be of no use.
        if recipe.cache and recipe.total_epochs > 1 and recipe.method != "linear":
            self._keep_pixels(say)

    def train(self, epoch: int, start: int) -> TrainBatches:
        """(b, 3, H, W) float32 normalised and (b,) int64."""
        rank, world = rank_and_size()
        return train_batches(
            self.split,
            train_transform(self.benchmark, self.backbone),
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            epoch=epoch,
            start=start,
            rank=rank,
            world=world,
            workers=self.recipe.workers,
            device=next(self.backbone.model.parameters()).device,
        )

    def evaluation(self, split: str) -> EvalBatches:
        """(b, 3, H, W) float32 normalised, (b,) int64 labels and indices."""
        return self.centre_crops(self._evaluated.get(split) or getattr(self.benchmark, split))

    def centre_crops(self, split: Split) -> EvalBatches:
        """The same of any split."""
        rank, world = rank_and_size()
        return eval_batches(
            split,
            eval_transform(self.backbone),
            batch_size=self.recipe.eval_batch_size,
            rank=rank,
            world=world,
            workers=self.recipe.workers,
        )

    def _keep_pixels(self, say: Say) -> None:
        preprocess = self.backbone.preprocess
        whole = Kept(preprocess=preprocess, smallest_crop=self.benchmark.smallest_crop)
        self.split = _kept(self.split, whole, say)
        chooses = "test" if self.recipe.protocol == "authors" else "val"
        split = getattr(self.benchmark, chooses)
        self._evaluated[chooses] = _kept(split, Kept(preprocess=preprocess), say)


class FeatureBatches:
    """What a frozen backbone makes of centre crops, computed once: for linear probing.

    Every process computes its share of the features and holds all of them.

    Args:
        recipe: batch sizes, seed and precision.
        images: of the same splits.
        model: its `features` are read.
    """

    def __init__(self, recipe: Recipe, images: ImageBatches, model: nn.Module) -> None:
        self.recipe, self.images, self.model = recipe, images, model
        self.steps = images.steps
        self.features, self.labels, _ = self._read(images.centre_crops(images.split))
        self._evaluated: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def train(self, epoch: int, start: int) -> TrainBatches:
        """(b, d) float32 and (b,) int64, in an order that depends on seed and epoch alone."""
        generator = torch.Generator().manual_seed(mixed_seed(self.recipe.seed, epoch))
        order = torch.randperm(len(self.labels), generator=generator)
        size, (rank, world) = self.recipe.batch_size, rank_and_size()
        for step in range(start, self.steps):
            chosen = order[step * size : (step + 1) * size][rank::world]
            yield self.features[chosen], self.labels[chosen]

    def evaluation(self, split: str) -> EvalBatches:
        """(b, d) float32, (b,) int64 labels and indices."""
        if split not in self._evaluated:
            self._evaluated[split] = self._read(self.images.evaluation(split))
        rank, world = rank_and_size()
        size = self.recipe.eval_batch_size
        parts = [torch.split(part, size) for part in self._evaluated[split]]
        return list(zip(*parts, strict=True))[rank::world]

    @torch.no_grad()
    def _read(self, batches: EvalBatches) -> tuple[Tensor, Tensor, Tensor]:
        """Features, labels and indices of all processes' images, in order of the index."""
        device = next(self.model.parameters()).device

        def read() -> list[tuple[Tensor, Tensor, Tensor]]:
            rows = []
            for images, labels, indices in batches:
                with autocast(device, self.recipe.precision):
                    features = self.model.features(images.to(device))  # type: ignore[operator]
                rows.append((features.float().cpu(), labels, indices))
            return rows

        parts = [part for process in together(read) for part in process]
        features, labels, indices = (torch.cat(column) for column in zip(*parts, strict=True))
        order = indices.argsort()
        return features[order], labels[order], indices[order]


def _kept(split: Split, kept: Kept, say: Say) -> Split:
    """The split with its pixels kept, where its images are files and there is room."""
    if not isinstance(split.opener, FileOpener) or not len(split):
        return split
    pixels = first_alone(lambda: stored_pixels(split, kept, say=say))
    return dataclasses.replace(split, opener=pixels) if pixels else split


def _steps(recipe: Recipe, images: int) -> int:
    if images < recipe.batch_size:
        raise BurstError(
            f"{images} training images are fewer than a batch of {recipe.batch_size}; "
            "lower batch_size"
        )
    return images // recipe.batch_size
