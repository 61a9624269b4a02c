"""What a training will cost, before it is run: images, and floating-point operations."""

import math
from dataclasses import dataclass

from bpt.dataset import dataset_info, open_dataset
from bpt.placement import parse_placement
from bpt.recipe import Recipe
from burst.backbone_spec import BackboneSpec, known_backbone

# Operations that matrices of rank r put into a block take, by d r, a token.
ADDED = {"lora": 8.0, "adapter": 4.0}
# Numbers a token and its width that a block keeps for the way back, frozen and trained; and that
# it holds at once on the way forward.
KEPT, KEPT_TRAINED, IN_A_BLOCK = 10, 16, 7
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
        """At 5e13 operations a second, as an A100 in bfloat16: a rough figure for one GPU."""
        return self.operations / RATE / 3600


@dataclass(frozen=True)
class VitShape:
    """A plain ViT's: blocks, their width, and tokens without prompts."""

    depth: int
    width: int
    tokens: int

    @classmethod
    def of(cls, spec: BackboneSpec, image_size: int | None = None) -> "VitShape":
        """Of a backbone that is known, perhaps at another size of images."""
        patches = ((image_size or spec.image_size) // spec.patch_size) ** 2
        return cls(spec.depth, spec.width, 1 + patches)


def training_cost(
    recipe: Recipe,
    sizes: tuple[int, int, int],
    *,
    shape: VitShape | None = None,
    flip: bool = True,
) -> TrainingCost | None:
    """The cost of a training; None without a `shape`, for a backbone not in `burst models`.

    A block of width d costs a token 24 d^2 operations, and 4 N d with each of the N tokens. Going
    back costs twice that, but for the products with frozen weights, which cost once; blocks before
    the first prompt have no way back. LoRA, adapters and biases are trained in all blocks. With
    `checkpoint_activations`, blocks that have a way back go forward twice. What is computed once
    counts once: the features of a linear probe, and tokens in front of the first prompt, see
    `kept_images`.

    Args:
        recipe: what is trained.
        sizes: images to train, validate and test.
        shape: of the backbone, where it is not known.
        flip: whether images of the dataset may be mirrored.

    Raises:
        BurstError: a placement that does not fit the depth.
    """
    shape = shape or _known_shape(recipe)
    if shape is None:
        return None
    train, val, test = used_sizes(recipe, sizes)
    front, behind, back = _operations(recipe, shape)
    if recipe.method == "linear":
        mirrored = recipe.augmentation == "flip" and flip
        once = _evaluated(recipe, sizes)
        passes = train * (1 + mirrored) + once
        return TrainingCost(train + once, passes * (front + behind))
    trained = recipe.total_epochs * train
    evaluated = recipe.total_epochs * val + test
    once, again = kept_images(recipe, sizes, flip=flip), 0
    if not recipe.keeps_tokens:
        once, again = 0, trained + evaluated
    elif _variants(recipe, flip) is None:
        again = trained
    operations = (once + again) * front + (trained + evaluated) * behind + trained * back
    return TrainingCost(trained + evaluated, operations)


def used_sizes(recipe: Recipe, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """Images that the protocol trains on, chooses the epoch on, and reads at the end."""
    train, val, test = sizes
    if recipe.protocol == "standard":
        return train, val, test
    return train + val, test if recipe.protocol == "authors" else 0, test


def kept_images(recipe: Recipe, sizes: tuple[int, int, int], *, flip: bool = True) -> int:
    """How many images' tokens are kept, counting each view: see `bpt.frozen_batches`."""
    if not recipe.keeps_tokens:
        return 0
    train = used_sizes(recipe, sizes)[0]
    return _evaluated(recipe, sizes) + train * (_variants(recipe, flip) or 0)


def _evaluated(recipe: Recipe, sizes: tuple[int, int, int]) -> int:
    """How many different images are evaluated: protocol authors does it twice with the same."""
    _, val, test = used_sizes(recipe, sizes)
    return test if recipe.protocol == "authors" else val + test


def kept_bytes(
    recipe: Recipe, sizes: tuple[int, int, int], shape: VitShape, *, flip: bool = True
) -> int:
    """Bytes on disk of the tokens that are kept; 0 where no block stands in front of a prompt."""
    if first_block(recipe, shape) == 0:
        return 0
    each = shape.tokens * shape.width * (2 if recipe.precision == "bfloat16" else 4)
    return kept_images(recipe, sizes, flip=flip) * each


def training_memory(recipe: Recipe, shape: VitShape, *, trained: int, total: int) -> float:
    """Bytes that a step needs: weights, gradients, AdamW's moments, what is kept for the way back.

    Args:
        recipe: what is trained.
        shape: of the backbone.
        trained, total: parameters.
    """
    size = 4.0 if recipe.precision == "float32" else 2.0
    images = math.ceil(recipe.batch_size / recipe.accumulation)
    full = recipe.method == "full"
    back = [] if recipe.method == "linear" else _tokens(recipe, shape)[first_block(recipe, shape) :]
    kept = KEPT_TRAINED if full else KEPT
    numbers = kept * sum(back)
    if recipe.checkpoint_activations and back:
        numbers = sum(back) + kept * max(back)
    training = images * numbers * shape.width
    evaluation = recipe.eval_batch_size * IN_A_BLOCK * max(_tokens(recipe, shape)) * shape.width
    return 4.0 * total + 12.0 * trained + size * max(training, evaluation)


def first_block(recipe: Recipe, shape: VitShape) -> int:
    """The first that a prompt stands in front of; 0 for methods without prompts."""
    return parse_placement(recipe.placement, shape.depth)[0] if recipe.prompted else 0


def dataset_sizes(recipe: Recipe) -> tuple[int, int, int]:
    """Images to train, validate and test: as published, or counted where they are one's own.

    Of a published dataset's fraction, up to a few images.

    Raises:
        BurstError: one's own images cannot be opened, see `open_dataset`.
    """
    info = dataset_info(recipe.dataset)
    if info.sizes:
        train, val, test = info.sizes
        if recipe.train_fraction is None:
            return info.sizes
        if info.own_validation:  # which stays whole
            return round(train * recipe.train_fraction), val, test
        taken = round((train + val) * recipe.train_fraction)
        held = min(val, math.ceil(0.1 * taken))
        return taken - held, held, test
    return open_dataset(recipe.dataset, recipe.data, train_fraction=recipe.train_fraction).sizes


def _known_shape(recipe: Recipe) -> VitShape | None:
    spec = known_backbone(recipe.model)
    return VitShape.of(spec, recipe.image_size) if spec else None


def _tokens(recipe: Recipe, shape: VitShape) -> list[int]:
    """Of each block: those of the images, and prompts from the first prompted block on."""
    if not recipe.prompted:
        return [shape.tokens] * shape.depth
    blocks = parse_placement(recipe.placement, shape.depth)
    last = blocks[-1] if recipe.after == "drop" else shape.depth
    here = [blocks[0] <= block <= last for block in range(shape.depth)]
    return [shape.tokens + recipe.num_prompts * prompts for prompts in here]


def _operations(recipe: Recipe, shape: VitShape) -> tuple[float, float, float]:
    """Of one image: forward in front of the first prompt, forward behind it, and back."""
    width, first = shape.width, first_block(recipe, shape)
    added = ADDED.get(recipe.method, 0.0) * width * recipe.bottleneck
    weights = [n * (24.0 * width**2 + added) for n in _tokens(recipe, shape)]
    attention = [4.0 * n**2 * width for n in _tokens(recipe, shape)]
    forward = [sum(both) for both in zip(weights, attention, strict=True)]
    trained = 2.0 if recipe.method == "full" else 1.0
    back = trained * sum(weights[first:]) + 2.0 * sum(attention[first:])
    again = sum(forward[first:]) if recipe.checkpoint_activations else 0.0
    return sum(forward[:first]), sum(forward[first:]), back + again


def _variants(recipe: Recipe, flip: bool) -> int | None:
    """Views of a training image whose tokens are kept; None where each epoch draws others."""
    if recipe.augmentation == "crop":
        return min(recipe.views, recipe.total_epochs) if recipe.views else None
    return 2 if recipe.augmentation == "flip" and flip else 1
