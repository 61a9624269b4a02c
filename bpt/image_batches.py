"""Batches of a training's images, and whether their pixels are kept."""

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from bpt.augmentation import Mixing
from bpt.dataset import Benchmark, FileOpener, Split, all_training_images
from bpt.loading import eval_batches, train_batches
from bpt.pixels import Kept, stored_pixels
from bpt.recipe import Recipe
from bpt.transforms import eval_transform, train_transform
from burst.backbone import Backbone
from burst.distributed import rank_and_size
from burst.errors import BurstError
from burst.progress import Say

TrainBatches = Iterable[tuple[Tensor, Tensor]]
EvalBatches = Iterable[tuple[Tensor, Tensor, Tensor]]


class ImageBatches:
    """Augmented images for training, centre crops for evaluation.

    Args:
        recipe: batch sizes, seed, augmentation, and whether there is a cache.
        benchmark: splits to evaluate on.
        backbone: whose size and normalisation are used.
        train: images to train on.
        say: called with a line now and then.

    Raises:
        BurstError: there are fewer training images than a batch holds.
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
        self.recipe, self.benchmark, self.backbone, self.say = recipe, benchmark, backbone, say
        self.split, self.steps = train, steps_of(recipe, len(train))
        self.transform = train_transform(
            benchmark,
            backbone,
            recipe.augmentation,
            randaugment=recipe.randaugment,
            random_erasing=recipe.random_erasing,
        )
        self._evaluated: dict[str, Split] = {}
        self._mixing = _mixing(recipe, len(benchmark.classes)) if recipe.mixes else None

    def train(self, epoch: int, start: int) -> TrainBatches:
        """(b, 3, H, W) float32 normalised and (b,) int64; see `Mixing` where the recipe mixes."""
        rank, world = rank_and_size()
        batches = train_batches(
            self.split,
            self.transform,
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            epoch=epoch,
            start=start,
            rank=rank,
            world=world,
            workers=self.recipe.workers,
            device=next(self.backbone.model.parameters()).device,
            views=self.recipe.views,
        )
        return self._mixing.batches(batches, epoch=epoch, start=start) if self._mixing else batches

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

    def keep_pixels(self, *, train: bool = True, evaluation: bool = True) -> None:
        """Decode the images of files now, once and for all trainings, if the recipe wants that.

        Args:
            train: those to train on.
            evaluation: those of the split that chooses the epoch.

        Raises:
            ImageError: an image cannot be read; it is named.
        """
        if not self.recipe.cache or self.recipe.total_epochs == 1:
            return
        centre = Kept(preprocess=self.backbone.preprocess)
        # All folds of a dataset share one file, which holds the images of all of them.
        every = all_training_images(self.benchmark) if self.recipe.fold else None
        if train:
            crops = self.recipe.augmentation == "crop"
            least = self.benchmark.smallest_crop if crops else None
            self.split = _kept(
                self.split, replace(centre, smallest_crop=least), self.say, within=every
            )
        chooses = self.recipe.chooses
        if evaluation and chooses is not None:
            split = getattr(self.benchmark, chooses)
            self._evaluated[chooses] = _kept(split, centre, self.say, within=every)


def _kept(split: Split, kept: Kept, say: Say, *, within: Split | None = None) -> Split:
    """The split with its pixels kept, where its images are files and there is room.

    `within` is what it was taken from, if the pixels of all of that are to be kept.
    """
    if not isinstance(split.opener, FileOpener) or not len(split):
        return split
    pixels = stored_pixels(within or split, kept, say=say)
    return replace(split, opener=pixels) if pixels else split


def _mixing(recipe: Recipe, classes: int) -> Mixing:
    options = {"mixup": recipe.mixup, "cutmix": recipe.cutmix, "seed": recipe.seed}
    return Mixing(classes=classes, **options)  # type: ignore[arg-type]


def unseen_images(recipe: Recipe, images: int) -> str:
    """How many images an epoch does not see, in words; nothing where that is below a tenth."""
    rest = images % recipe.batch_size
    if rest * 10 < images:
        return ""
    return (
        f"each epoch leaves out {rest} of {images} training images, others each time, which do "
        f"not fill a batch of {recipe.batch_size}"
    )


def steps_of(recipe: Recipe, images: int) -> int:
    """Of an epoch: whole batches.

    Raises:
        BurstError: there are fewer images than a batch holds.
    """
    if images < recipe.batch_size:
        raise BurstError(
            f"{images} training images are fewer than a batch of {recipe.batch_size}; "
            f"lower batch_size, such as --batch-size {2 ** max(0, images.bit_length() - 1)}"
        )
    return images // recipe.batch_size
