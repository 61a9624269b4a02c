"""What a detector's training will take, before it is run, by arithmetic."""

from dataclasses import dataclass

from torch import nn

from bpt.dataset.coco import open_coco
from bpt.detection.box_heads import POOLED_SIDE, SAMPLED, STAGES
from bpt.detection.configuration import training_images
from bpt.detection.construction import HIDDEN
from bpt.detection.masks import POOLED_SIDE as MASK_SIDE
from bpt.detection.proposals import AFTER
from bpt.detection.published import OFFICIAL
from bpt.detection.pyramid import POOLED, STRIDES
from bpt.detection.recipe import DetectionRecipe, detection_patch
from bpt.placement import parse_placement
from burst.backbone_spec import BackboneSpec

# Operations a second that a ViT reaches on an H100; in float32 without TensorFloat-32.
RATES = {"bfloat16": 250e12, "float16": 250e12, "float32": 40e12}
POSITIVE, FOUND = 128, 100  # regions of an image that get a mask, in training and in evaluation
# Numbers a token and its width that a block keeps for the way back, frozen and trained.
KEPT, KEPT_TRAINED = 10, 16
# The same of a pixel and its channel: of the pyramid's maps, of a region's boxes and of its mask.
KEPT_OF_MAPS, KEPT_OF_BOXES, KEPT_OF_MASKS = 10, 9, 12


# COCO 2017's classes, training images with an object that is no crowd, validation images.
OFFICIAL_SIZES = 80, 117_266, 5_000


@dataclass(frozen=True)
class Shape:
    """A plain ViT's: blocks, their width, pixels of a patch, tokens before the patches."""

    depth: int
    width: int
    patch: int
    prefix: int = 1

    @classmethod
    def of(cls, spec: BackboneSpec) -> "Shape":
        """Of a backbone that is known, as a detector's."""
        return cls(spec.depth, spec.width, detection_patch(spec.patch_size))


@dataclass(frozen=True)
class DetectionCost:
    """What a training takes.

    Attributes:
        images: passes of an image through the backbone, of training and of evaluation.
        operations: floating-point operations, a multiplication and an addition counting as two.
        precision: of the recipe.
    """

    images: int
    operations: float
    precision: str

    @property
    def hours(self) -> float:
        """On one H100, at 2.5e14 operations a second, in float32 at 4e13: a rough figure."""
        return self.operations / RATES[self.precision] / 3600


def detection_cost(
    recipe: DetectionRecipe, shape: Shape, *, classes: int, train_images: int, val_images: int
) -> DetectionCost:
    """The cost of a training and of its evaluations.

    A block of width d costs a token 24 d^2 operations, and 4 N d with each of the N tokens. Going
    back costs twice that, but for the products with frozen weights, which cost once; blocks before
    the first prompt have no way back.

    Args:
        recipe: what is trained.
        shape: of the backbone.
        classes: C, without background.
        train_images: an epoch has.
        val_images: an evaluation has.

    Raises:
        BurstError: a placement that does not fit the depth.
    """
    tokens, width = _tokens(recipe, shape), shape.width
    weights, attention = 24.0 * tokens * width**2, 4.0 * tokens**2 * width
    block = weights + attention
    back = weights * (2.0 if recipe.method == "full" else 1.0) + 2.0 * attention
    again = block if recipe.checkpoint_activations else 0.0
    forward = shape.depth * block
    train = forward + _behind(recipe, shape) * (back + again)
    train += 3.0 * _heads(recipe, shape, classes, SAMPLED, POSITIVE)
    test = forward + _heads(recipe, shape, classes, AFTER, FOUND)
    epochs, every = recipe.total_epochs, recipe.eval_every
    trained = epochs * train_images
    on_the_way = (epochs - 1) // every if every else 0
    evaluated = (on_the_way + 1) * val_images
    operations = trained * train + evaluated * test
    return DetectionCost(trained + evaluated, operations, recipe.precision)


def known_detection_cost(recipe: DetectionRecipe, spec: BackboneSpec) -> DetectionCost:
    """The cost on a backbone that is known, before anything is loaded.

    COCO has as many images as published; one's own are counted.

    Raises:
        BurstError: one's own images cannot be opened, see `open_coco`; or see `detection_cost`.
    """
    if recipe.dataset == OFFICIAL:
        classes, train, val = OFFICIAL_SIZES
        train = round(train * (recipe.train_fraction or 1.0))
    else:
        coco = open_coco(recipe.dataset, recipe.data)
        classes, val = len(coco.categories), len(coco.val)
        train = len(training_images(recipe, coco))
    return detection_cost(
        recipe, Shape.of(spec), classes=classes, train_images=train, val_images=val
    )


def detection_memory(
    recipe: DetectionRecipe, shape: Shape, detector: nn.Module, *, images: int
) -> float:
    """Bytes that a step needs: weights, gradients, AdamW's moments, what is kept for the way back.

    Args:
        recipe: what is trained.
        shape: of the backbone.
        detector: whose parameters are counted.
        images: of a step at once, on one process.
    """
    size = 4.0 if recipe.precision == "float32" else 2.0
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    weights = 4.0 * sum(p.numel() for p in detector.parameters()) + 12.0 * trained
    numbers = float(_tokens(recipe, shape) * shape.width)
    kept = numbers * (KEPT_TRAINED if recipe.method == "full" else KEPT)
    behind = _behind(recipe, shape)
    blocks = behind * numbers + kept if recipe.checkpoint_activations else behind * kept
    pixels = sum((recipe.size // stride) ** 2 for stride in STRIDES)
    regions = len(STAGES[recipe.detector]) * SAMPLED * POOLED_SIDE**2 * KEPT_OF_BOXES
    masks = POSITIVE * MASK_SIDE**2 * KEPT_OF_MASKS
    maps = recipe.channels * (pixels * KEPT_OF_MAPS + regions + masks)
    return weights + images * size * (blocks + maps)


def _tokens(recipe: DetectionRecipe, shape: Shape) -> int:
    prompts = recipe.num_prompts if recipe.prompted else 0
    return (recipe.size // shape.patch) ** 2 + shape.prefix + prompts


def _behind(recipe: DetectionRecipe, shape: Shape) -> int:
    """Blocks with a way back."""
    if recipe.method == "full":
        return shape.depth
    return shape.depth - parse_placement(recipe.placement, shape.depth)[0] if recipe.prompted else 0


def _heads(recipe: DetectionRecipe, shape: Shape, classes: int, regions: int, masks: int) -> float:
    """Operations of one image behind the ViT, forward; a convolution of k x k takes 2 k^2 c c'."""
    c, hidden = recipe.channels, HIDDEN * recipe.channels
    maps = [(recipe.size // stride) ** 2 for stride in STRIDES]
    # Before its two convolutions a finer map has been widened, and halved in width, once or twice.
    widths = [shape.width / max(1, shape.patch // stride) for stride in STRIDES]
    pyramid = sum(
        n * (2 * w * c + 18 * c * c) for n, w in zip(maps[:POOLED], widths[:POOLED], strict=True)
    )
    proposals = sum(maps) * (2 * 18 * c * c + 2 * c * 15)
    cells = POOLED_SIDE**2
    box = 4 * 18 * c * c * cells + 2 * cells * c * hidden + 2 * hidden * 5 * classes
    mask = 4 * 18 * c * c * MASK_SIDE**2 + (2 * c * c + 2 * c * classes) * (2 * MASK_SIDE) ** 2
    stages = len(STAGES[recipe.detector])
    return float(pyramid + proposals + stages * regions * box + masks * mask)
