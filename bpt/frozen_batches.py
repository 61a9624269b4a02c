"""Batches of what a frozen backbone makes of images, computed once: tokens, or features."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpt.dataset import Split
from bpt.engine import autocast
from bpt.image_batches import EvalBatches, ImageBatches, TrainBatches
from bpt.loading import (
    Places,
    augmented,
    eval_batches,
    mirrored,
    mixed_seed,
    places_in_order,
    places_of,
)
from bpt.model import PromptedViT
from bpt.pixels import in_order
from bpt.prefix import Part, Rows, Wanted, images_digest, stored_rows, weights_digest
from bpt.recipe import Recipe
from bpt.transforms import eval_transform
from burst.distributed import add_rows, gather, rank_and_size, together
from burst.errors import EmptyResult
from burst.progress import Say

REMEMBERED = 8  # splits: a search trains many probes on the same features
_FEATURES: dict[Any, Tensor] = {}


class PrefixBatches:
    """Tokens in front of the first prompted block, computed once and for all trainings.

    Those of evaluation images always. Those of training images where no more than so many views of
    each are wanted, or the augmentation is so simple that all are known; else they are images.
    What cannot be kept, as there is no room, is images as well.

    Args:
        recipe: batch sizes, seed, augmentation and precision. In bfloat16 the tokens are kept so.
        images: of the same splits.
        model: its `prefix_tokens` are kept; on its device, in eval mode.
        say: called with a line now and then.

    Raises:
        ImageError: an image cannot be read; it is named.
        Interrupted: by a signal; see `stored_rows`.
    """

    def __init__(
        self, recipe: Recipe, images: ImageBatches, model: PromptedViT, *, say: Say = lambda _: None
    ) -> None:
        self.recipe, self.images, self.model, self.say = recipe, images, model, say
        self.steps, self.device = images.steps, next(model.parameters()).device
        self._weights = weights_digest(model.vit, blocks=model.first_block)
        self._row = self._prefix(torch.zeros(1, 3, *images.backbone.image_size)).shape[1:]
        read = ("val", "test") if recipe.chooses == "val" else ("test",)
        self._evaluated = {name: self._centres(getattr(images.benchmark, name)) for name in read}
        images.keep_pixels(train=False, evaluation=self._evaluated[read[0]] is None)
        self._train = self._training_rows()

    def train(self, epoch: int, start: int) -> TrainBatches:
        """(b, N, d) and (b,) int64; or images, see `ImageBatches`."""
        if self._train is None:
            return self.images.train(epoch, start)
        recipe, split, (rank, world) = self.recipe, self.images.split, rank_and_size()
        size, seed = recipe.batch_size, recipe.seed
        batches = places_of(
            len(split), batch_size=size, seed=seed, epoch=epoch, start=start, rank=rank, world=world
        )
        view = epoch if recipe.views is None else epoch % recipe.views
        found = self._taken(self._train, split, batches, partial(self._variants, view))
        return ((tokens, labels) for tokens, labels, _ in found)

    def evaluation(self, split: str) -> EvalBatches:
        """(b, N, d), or images, (b,) int64 labels and indices."""
        rows = self._evaluated.get(split)
        if rows is None:
            return self.images.evaluation(split)
        found, (rank, world) = getattr(self.images.benchmark, split), rank_and_size()
        size = self.recipe.eval_batch_size
        batches = places_in_order(len(found), size, rank=rank, world=world)
        return self._taken(rows, found, batches, lambda _: 0)

    def _taken(
        self,
        rows: Rows,
        split: Split,
        batches: Sequence[Places],
        variants: Callable[[Places], int | NDArray[np.int64]],
    ) -> EvalBatches:
        """Tokens, labels and places; a thread reads the next ones while these are used."""

        def take(places: Places) -> Tensor:
            found = rows.take(variants(places), places)
            return found.pin_memory() if self.device.type == "cuda" else found

        with contextlib.closing(in_order(take, batches, ahead=1)) as taken:
            for places, tokens in zip(batches, taken, strict=True):
                yield tokens, torch.from_numpy(split.labels[places]), torch.from_numpy(places)

    def _variants(self, view: int, places: Places) -> int | NDArray[np.int64]:
        """Which rows of these images the view is."""
        if self.recipe.augmentation == "crop":
            return view
        if not self.images.transform.flip:
            return 0
        return mirrored((self.recipe.seed, view), places).astype(np.int64)

    def _training_rows(self) -> Rows | None:
        if self.recipe.augmentation != "crop":
            found = self._centres(self.images.split, flip=self.images.transform.flip)
            self.images.keep_pixels(train=found is None, evaluation=False)
            return found
        whole = self.images.split
        self.images.keep_pixels(evaluation=False)
        return self._crops(whole) if self.recipe.views else None

    def _crops(self, whole: Split) -> Rows | None:
        """Views of training images: what they would be in so many epochs."""
        assert self.recipe.views is not None
        views = min(self.recipe.views, self.recipe.total_epochs)
        split, transform, benchmark = (
            self.images.split,
            self.images.transform,
            self.images.benchmark,
        )
        batches = places_in_order(len(split), self.recipe.eval_batch_size)

        def compute() -> Generator[Part]:
            for view in range(views):
                images = augmented(
                    split,
                    transform,
                    batches,
                    draw=(self.recipe.seed, view),
                    workers=self.recipe.workers,
                    device=self.device,
                )
                for places, (batch, _) in zip(batches, images, strict=True):
                    yield view * len(split) + int(places[0]), self._prefix(batch)

        reads = type(split.opener).__name__  # which decides how crops are resized
        facts = ["crop", reads, self.recipe.seed, benchmark.smallest_crop, benchmark.flip]
        return self._stored(whole, facts, views, compute)

    def _centres(self, split: Split, *, flip: bool = False) -> Rows | None:
        """Centre crops; with `flip` the mirrored ones behind them."""

        def compute() -> Generator[Part]:
            transform, size = eval_transform(self.images.backbone), self.recipe.eval_batch_size
            batches = eval_batches(split, transform, batch_size=size, workers=self.recipe.workers)
            for images, _, places in batches:
                yield int(places[0]), self._prefix(images)
                if flip:
                    yield len(split) + int(places[0]), self._prefix(images.flip(-1))

        return self._stored(split, ["centre"], 2 if flip else 1, compute)

    def _stored(
        self, split: Split, facts: list[Any], variants: int, compute: Callable[[], Generator[Part]]
    ) -> Rows | None:
        block, precision = self.model.first_block, self.recipe.precision
        backbone, benchmark = self.images.backbone, self.images.benchmark
        images = images_digest(split, backbone)
        wanted = Wanted(
            what=f"tokens in front of block {block}",
            name=f"{benchmark.name}-{backbone.name}".replace("/", "-").replace(":", "-"),
            facts=[*facts, self._weights, block, images, precision, self.device.type],
            variants=variants,
            images=len(split),
            row=tuple(self._row),
            dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32,
        )
        return stored_rows(wanted, compute, say=self.say)

    @torch.no_grad()
    def _prefix(self, images: Tensor) -> Tensor:
        with autocast(self.device, self.recipe.precision):
            return self.model.prefix_tokens(images.to(self.device))


class FeatureBatches:
    """What a frozen backbone makes of centre crops, computed once: for linear probing.

    Where the recipe's augmentation is "flip", of the mirrored ones too.

    Every process computes its share of the features and holds all of them.

    Args:
        recipe: batch sizes, seed and precision.
        images: of the same splits.
        model: its `features` are read.
    """

    def __init__(self, recipe: Recipe, images: ImageBatches, model: PromptedViT) -> None:
        self.recipe, self.images, self.model = recipe, images, model
        self.steps = images.steps
        self._weights = weights_digest(model.vit, blocks=len(model.vit.blocks))
        self.features = self._remembered(images.split)
        self.labels = torch.from_numpy(images.split.labels)
        self.mirrored = None
        if recipe.augmentation == "flip" and images.transform.flip:
            self.mirrored = self._remembered(images.split, flip=True)
        self._evaluated: dict[str, Tensor] = {}

    def train(self, epoch: int, start: int) -> TrainBatches:
        """(b, d) float32 and (b,) int64, in an order that depends on seed and epoch alone."""
        generator = torch.Generator().manual_seed(mixed_seed(self.recipe.seed, epoch))
        order = torch.randperm(len(self.labels), generator=generator)
        size, (rank, world) = self.recipe.batch_size, rank_and_size()
        for step in range(start, self.steps):
            chosen = order[step * size : (step + 1) * size][rank::world]
            yield self._drawn(epoch, chosen), self.labels[chosen]

    def evaluation(self, split: str) -> EvalBatches:
        """(b, d) float32, (b,) int64 labels and indices."""
        images: Split = getattr(self.images.benchmark, split)
        if split not in self._evaluated:
            self._evaluated[split] = self._remembered(images)
        rank, world = rank_and_size()
        columns = self._evaluated[split], torch.from_numpy(images.labels), torch.arange(len(images))
        parts = [torch.split(one, self.recipe.eval_batch_size) for one in columns]
        return list(zip(*parts, strict=True))[rank::world]

    def _drawn(self, epoch: int, chosen: Tensor) -> Tensor:
        """Features of these images, mirrored or not as the epoch draws it."""
        if self.mirrored is None:
            return self.features[chosen]
        flips = torch.from_numpy(mirrored((self.recipe.seed, epoch), chosen.numpy()))
        return torch.where(flips[:, None], self.mirrored[chosen], self.features[chosen])

    def _remembered(self, split: Split, *, flip: bool = False) -> Tensor:
        """What `_read` gives of a split, kept for the next training in this process."""
        recipe, model = self.recipe, self.model
        backbone = self.images.backbone
        key = (
            self._weights,
            images_digest(split, backbone),
            flip,
            model.pooling,
            recipe.precision,
            recipe.eval_batch_size,
            next(model.parameters()).device,
            rank_and_size(),
        )
        found = _FEATURES.pop(key, None)
        if not all(gather(found is not None)):  # they are read together, or by none
            found = self._read(split, flip=flip)
        assert found is not None
        _FEATURES[key] = found
        while len(_FEATURES) > REMEMBERED:
            _FEATURES.pop(next(iter(_FEATURES)))
        return found

    @torch.no_grad()
    def _read(self, split: Split, *, flip: bool) -> Tensor:
        """(N, d) features of a split's images, which all processes share the work of.

        Raises:
            EmptyResult: there is no image.
        """
        if not len(split):
            raise EmptyResult("no image to take features of")
        device = next(self.model.parameters()).device
        # Gigabytes, so they are there once.
        features = torch.zeros(len(split), self.model.width, device="cpu")

        def read() -> None:
            for batch, _, places in self.images.centre_crops(split):
                images = (batch.flip(-1) if flip else batch).to(device)
                with autocast(device, self.recipe.precision):
                    features[places] = self.model.features(images).float().cpu()

        together(read)
        add_rows(features)  # where one process has a row, the others have zeros
        return features
