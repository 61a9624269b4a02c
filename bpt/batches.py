"""Where a training's batches come from: images, or what a frozen backbone makes of them, once.

Each gives, of its splits, `steps` an epoch, `train(epoch, start)` and `evaluation(split)`.
"""

import math
from dataclasses import replace
from typing import Protocol

from torch import nn

from bpt.dataset import Benchmark, Split
from bpt.frozen_batches import FeatureBatches, PrefixBatches
from bpt.image_batches import EvalBatches, ImageBatches, TrainBatches
from bpt.model import PromptedViT
from bpt.recipe import Recipe
from bpt.tuning import MADE, Tuning
from burst.backbone import Backbone
from burst.distributed import rank_and_size
from burst.errors import BurstError
from burst.progress import Say

DEFAULT = Recipe.batch_size


class Batches(Protocol):
    """What a training needs of its data."""

    steps: int

    def train(self, epoch: int, start: int) -> TrainBatches:
        """This process's share of the epoch's batches, from batch `start` on."""

    def evaluation(self, split: str) -> EvalBatches:
        """This process's share of "val" or "test", each image once over all processes."""


def batches_for(
    recipe: Recipe,
    benchmark: Benchmark,
    backbone: Backbone,
    train: Split,
    model: nn.Module,
    *,
    say: Say = lambda _: None,
) -> Batches:
    """Features for a linear probe, tokens where no prompt changes the first blocks, else images.

    Arguments and errors as of these classes.
    """
    images = ImageBatches(recipe, benchmark, backbone, train, say=say)
    if recipe.method == "linear":
        assert isinstance(model, PromptedViT)
        say("features of all images, computed once")
        return FeatureBatches(recipe, images, model)
    if recipe.keeps_tokens:
        assert isinstance(model, PromptedViT)
        if model.has_frozen_prefix:
            return PrefixBatches(recipe, images, model, say=say)
    images.keep_pixels()
    return images


def fitted(recipe: Recipe, images: int, *, begun: Tuning | None = None) -> Recipe:
    """The recipe, with a batch that so few training images fill, unless somebody gave one.

    The largest that divides as `accumulation`, processes and pairs to be mixed ask. A batch that
    was given stays, and is refused where it is not filled; one that was published does not. A
    training that goes on keeps the batch that was fitted when it was `begun`.

    Raises:
        BurstError: `accumulation` does not divide that one.
    """
    origin = recipe.origins.get("batch_size", MADE)
    chosen = recipe.batch_size != DEFAULT if origin == MADE else origin == "given"
    unit = math.lcm(recipe.accumulation, rank_and_size()[1] * (2 if recipe.mixes else 1))
    size = images // unit * unit
    reason = f"there are {images} training images, too few for {recipe.batch_size}"
    if begun and begun.origins.get("batch_size") == reason:
        size = begun.batch_size
    if chosen or images >= recipe.batch_size or not size:
        return recipe
    origins = {**recipe.origins, "batch_size": reason}
    return replace(recipe, batch_size=size, origins=origins)


def check_share(recipe: Recipe, world: int) -> None:
    """Refuse a batch of which the share of each of `world` processes cannot be mixed or normalised.

    Raises:
        BurstError: it says what to change.
    """
    share = recipe.batch_size // world
    if recipe.mixes and share % 2:
        raise BurstError(
            f"mixup and cutmix pair the images of a process, and {share} are odd; "
            "choose another batch_size"
        )
    if recipe.head_norm == "batch" and share < 2:
        raise BurstError(
            f"head_norm batch needs two images at once, and a batch_size of {recipe.batch_size} "
            f"has {share} for each of {world} processes; raise it"
        )
