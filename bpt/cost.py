"""What a training will cost, before it is run: images, and floating-point operations."""

import math
from dataclasses import dataclass

from bpt.dataset import dataset_info, open_dataset
from bpt.placement import parse_placement
from bpt.recipe import Recipe
from burst.backbone_spec import BackboneSpec, known_backbones

# Operations that matrices of rank r put into a block take, by d r, a token.
ADDED = {"lora": 8.0, "adapter": 4.0}
RATE = 50e12  # operations a second: about what an A100 reaches with a ViT in bfloat16


@dataclass(frozen=True)
class TrainingCost:
    """What one training takes.

    Attributes:
        images: passes of an image through the backbone, of training and of evaluation.
        operations: floating-point operations, a multiplication and an addition counting as two.
    """

    images: int
    operations: float

    @property
    def hours(self) -> float:
        """At `RATE`: a rough figure for one GPU."""
        return self.operations / RATE / 3600


def training_cost(recipe: Recipe, sizes: tuple[int, int, int]) -> TrainingCost | None:
    """The cost of a training; None for a backbone that is not in `burst models`.

    A block of width d costs a token 24 d^2 operations, and 4 N d with each of the N tokens. Going
    back through a frozen block costs as much as going forward, through a trained one twice as much;
    blocks before the first prompt have no way back. LoRA, adapters and biases are trained in all
    blocks. With `checkpoint_activations`, those that have a way back go forward twice. A linear
    probe sees each image once.

    Args:
        recipe: what is trained.
        sizes: images to train, validate and test.
    """
    spec = next((one for one in known_backbones() if one.name == recipe.model), None)
    if spec is None:
        return None
    train, val, test = sizes
    if recipe.protocol != "standard":
        train, val = train + val, test if recipe.protocol == "authors" else 0
    epochs = recipe.total_epochs
    if recipe.method == "linear":
        images, passes = train + val + test, float(train + val + test)
    else:
        back = _way_back(recipe, spec)
        evaluated = epochs * val + test
        images = epochs * train + evaluated
        passes = epochs * train * (1.0 + back) + evaluated
    return TrainingCost(images, passes * _forward(recipe, spec))


def dataset_sizes(recipe: Recipe) -> tuple[int, int, int]:
    """Images to train, validate and test: as published, or counted where they are one's own.

    Of a published dataset's fraction, up to a few images.

    Raises:
        BurstError: one's own images cannot be opened.
    """
    info = dataset_info(recipe.dataset)
    if info.sizes:
        train, val, test = info.sizes
        if recipe.train_fraction is None:
            return info.sizes
        taken = round((train + val) * recipe.train_fraction)
        held = min(val, math.ceil(0.1 * taken))
        return taken - held, held, test
    found = open_dataset(recipe.dataset, recipe.data, train_fraction=recipe.train_fraction)
    return len(found.train), len(found.val) if found.val else 0, len(found.test)


def _forward(recipe: Recipe, spec: BackboneSpec) -> float:
    """Operations that one image takes through all blocks."""
    tokens = 1 + ((recipe.image_size or spec.image_size) // spec.patch_size) ** 2
    if recipe.prompted:
        tokens += recipe.num_prompts
    added = ADDED.get(recipe.method, 0.0) * tokens * spec.width * recipe.bottleneck
    return spec.depth * (24.0 * tokens * spec.width**2 + 4.0 * tokens**2 * spec.width + added)


def _way_back(recipe: Recipe, spec: BackboneSpec) -> float:
    """What going back costs, of what going forward does."""
    behind = 1.0
    if recipe.prompted:
        behind -= parse_placement(recipe.placement, spec.depth)[0] / spec.depth
    trained = 2.0 if recipe.method == "full" else 1.0
    return behind * (trained + recipe.checkpoint_activations)
