"""A recipe and a backbone -> the model that is trained, at its start or as it was kept."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from bpt.adaptation import AdaptedViT, AdapterViT, BitFitViT, PeftViT, lora_config
from bpt.fine_tuning import FineTunedViT, TunedViT
from bpt.gates import Gates
from bpt.methods import ADAPTED
from bpt.model import PromptedViT, plain_vit
from bpt.placement import parse_placement
from bpt.prompt import (
    BilinearPrompt,
    DiagonalPrompt,
    PlainPrompt,
    PromptModule,
    WhitenedPrompt,
    build_prompt,
)
from bpt.recipe import Recipe
from bpt.tuning import Tuning
from burst.backbone import Backbone, load_backbone
from burst.errors import CheckpointError, UnsupportedModel

Model = PromptedViT | TunedViT
# Of the head's start: MAE's for fine-tuning, and the prompt-tuning code's per pretraining.
FINE_TUNING_HEAD_STD = 2e-5
PROMPTS = ("prompts.", "gates.")  # how the names of their parameters begin
HEAD_STD = {"moco_v3": 0.01}
NORMALISED_HEAD_STD = 0.01  # MAE's, of its probe behind a batch norm
MEASURED_ONLY = ("hf", "open_clip", "torchvision")  # libraries whose models are none of timm's


def open_backbone(recipe: Tuning, device: str | torch.device = "cpu") -> Backbone:
    """The recipe's backbone; with ImageNet's mean and deviation if it asks for the reference.

    It reads images of a classifier's `image_size`; a detector has its own way to other sizes.

    Raises:
        BurstError: see `load_backbone` and `check_trainable`.
    """
    check_trainable(recipe.model)
    backbone = load_backbone(
        recipe.model,
        recipe.weights,
        device=device,
        seed=recipe.seed,
        image_size=recipe.image_size if isinstance(recipe, Recipe) else None,
    )
    if recipe.normalisation == "native":
        return backbone
    return dataclasses.replace(backbone, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)


def is_trainable(model: str) -> bool:
    """Whether a model of this name may be one that prompts and heads can be put on."""
    library, colon, _ = model.partition(":")
    return not (colon and library in MEASURED_ONLY)


def check_trainable(model: str) -> None:
    """Refuse by its name a model that nothing can be put on, before it is downloaded.

    Raises:
        UnsupportedModel: it is not timm's.
    """
    if not is_trainable(model):
        raise UnsupportedModel(
            f"{model} can be measured, not trained: prompts need a timm VisionTransformer, such as "
            "timm:NAME or hf-hub:ORG/NAME"
        )


def prompted_blocks(recipe: Tuning, backbone: Backbone) -> tuple[int, ...]:
    """The blocks that get a prompt of their own; none for methods without prompts.

    Raises:
        BurstError: see `parse_placement`.
    """
    if not recipe.prompted:
        return ()
    return parse_placement(recipe.placement, len(plain_vit(backbone).blocks))


def build_model(
    recipe: Recipe,
    backbone: Backbone,
    num_classes: int,
    *,
    whitening: Mapping[int, Tensor] | None = None,
    tokens: Mapping[int, Tensor] | None = None,
) -> Model:
    """The model at its start, which the recipe's seed decides, on the backbone's device.

    Args:
        recipe: how.
        backbone: on what; shared, but for fine-tuning, full or of a part, which works on a copy.
        num_classes: outputs of the head.
        whitening: block -> what `prompt_matrices` gives, where the recipe `needs_whitening`.
        tokens: block -> (m, d), for spt.

    Raises:
        ShapeError, UnsupportedModel, BurstError: see `parse_placement`, `build_prompt`,
            `PromptedViT`, and for methods without prompts `FineTunedViT`, `PeftViT`, `AdapterViT`
            and `BitFitViT`.
    """
    device = next(backbone.model.parameters()).device
    generator = torch.Generator().manual_seed(recipe.seed)
    if recipe.method == "full":
        return FineTunedViT(
            backbone,
            num_classes,
            pooling=recipe.pooling,
            drop_path=recipe.drop_path,
            head_std=FINE_TUNING_HEAD_STD,
            checkpoint_activations=recipe.checkpoint_activations,
            generator=generator,
        ).to(device)
    if recipe.method in ADAPTED:
        return _adapted(recipe, backbone, num_classes, generator).to(device)
    prompts = build_prompts(recipe, backbone, generator, whitening=whitening, tokens=tokens)
    return _prompted(recipe, backbone, prompts, num_classes, generator).to(device)


def build_prompts(
    recipe: Tuning,
    backbone: Backbone,
    generator: torch.Generator,
    *,
    whitening: Mapping[int, Tensor] | None = None,
    tokens: Mapping[int, Tensor] | None = None,
) -> dict[int, PromptModule]:
    """Block -> its prompt at its start; none for methods without prompts.

    Arguments and errors as of `build_model`.
    """
    vit = plain_vit(backbone)
    return {
        block: build_prompt(
            recipe.prompt_options,
            width=vit.embed_dim,
            patch_size=vit.patch_embed.patch_size[0],
            generator=generator,
            whitening=(whitening or {}).get(block),
            tokens=(tokens or {}).get(block),
        )
        for block in prompted_blocks(recipe, backbone)
    }


def build_gates(recipe: Tuning, backbone: Backbone) -> Gates | None:
    """Those of gatevpt at their start; None for other methods."""
    if recipe.method != "gatevpt":
        return None
    return Gates(len(plain_vit(backbone).blocks), start=recipe.gate_init)


def restore_model(
    recipe: Recipe,
    backbone: Backbone,
    num_classes: int,
    state: Mapping[str, Tensor],
    *,
    whitening: Mapping[int, Tensor] | None = None,
) -> Model:
    """The model with the trained tensors that were kept, in eval mode.

    Args:
        recipe: it was trained with.
        backbone: the same, on the device that the model shall be on.
        num_classes: outputs of the head.
        state: what `trained_state` gave.
        whitening: block -> what `prompt_matrices` gives, where that is frozen.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; or a frozen whitening
            matrix is missing.
        UnsupportedModel, BurstError: see `build_model`.
    """
    if not recipe.prompted:
        model = build_model(recipe, backbone, num_classes)
    else:
        prompts = kept_prompts(recipe, backbone, state, whitening=whitening)
        device = next(backbone.model.parameters()).device
        model = _prompted(recipe, backbone, prompts, num_classes, torch.Generator()).to(device)
    model.load_trained_state(state)
    return model.eval()


def _head_std(recipe: Recipe, backbone: Backbone) -> float:
    if recipe.head_norm == "batch":
        return NORMALISED_HEAD_STD
    return HEAD_STD.get(backbone.pretraining, 0.02)


def _adapted(
    recipe: Recipe, backbone: Backbone, num_classes: int, generator: torch.Generator
) -> AdaptedViT:
    options: dict[str, Any] = {
        "pooling": recipe.pooling,
        "head_std": _head_std(recipe, backbone),
        "checkpoint_activations": recipe.checkpoint_activations,
        "generator": generator,
    }
    if recipe.method == "lora":
        return PeftViT(backbone, lora_config(recipe.bottleneck), num_classes, **options)
    if recipe.method == "adapter":
        return AdapterViT(backbone, num_classes, bottleneck=recipe.bottleneck, **options)
    return BitFitViT(backbone, num_classes, **options)


def _prompted(
    recipe: Recipe,
    backbone: Backbone,
    prompts: Mapping[int, PromptModule],
    num_classes: int,
    generator: torch.Generator,
) -> PromptedViT:
    return PromptedViT(
        backbone,
        prompts,
        num_classes,
        pooling=recipe.pooling,
        after=recipe.after,
        dropout=recipe.prompt_dropout,
        gates=build_gates(recipe, backbone),
        head_std=_head_std(recipe, backbone),
        checkpoint_activations=recipe.checkpoint_activations,
        head_norm=recipe.head_norm,
        generator=generator,
    )


def kept_prompts(
    recipe: Tuning,
    backbone: Backbone,
    state: Mapping[str, Tensor],
    *,
    whitening: Mapping[int, Tensor] | None = None,
    within: str = "",
) -> dict[int, PromptModule]:
    """Block -> its prompt, with the values that were kept.

    Args:
        recipe, backbone, state, whitening: see `restore_model`.
        within: what stands before `prompts.` in the state's names.

    Raises:
        CheckpointError: a tensor is missing, or not as the recipe makes it.
    """
    width = plain_vit(backbone).embed_dim
    return {
        block: _kept_prompt(recipe, block, state, whitening or {}, within, width)
        for block in prompted_blocks(recipe, backbone)
    }


def _kept_prompt(
    recipe: Tuning,
    block: int,
    state: Mapping[str, Tensor],
    whitening: Mapping[int, Tensor],
    within: str,
    width: int,
) -> PromptModule:
    options = recipe.prompt_options
    shapes = {
        "values": (options.num_prompts, width),
        "left": (options.num_prompts, options.rank),
        "right": (width, options.rank),
        "whitening": (width, width),
    }

    def kept(name: str) -> Tensor:
        key, expected = f"{within}prompts.{block}.{name}", shapes[name]
        if key not in state:
            raise CheckpointError(f"these tensors do not fit the model: {key} is missing")
        found = state[key]
        if found.shape != expected or not found.is_floating_point():
            raise CheckpointError(
                f"these tensors do not fit the model: {key} is {tuple(found.shape)} of "
                f"{found.dtype}, expected {expected} of floating-point numbers"
            )
        return found.clone()

    if recipe.method in ("vpt", "gatevpt", "spt"):
        return PlainPrompt(kept("values"))
    if recipe.method == "bpt-bilinear":
        return BilinearPrompt(kept("left"), kept("right"))
    if recipe.method == "bpt-twhiten":
        return WhitenedPrompt(kept("values"), kept("whitening"), trained=True)
    if block not in whitening:
        raise CheckpointError(f"the frozen whitening matrix of block {block} is missing")
    if recipe.method == "bpt-dwhiten":
        return DiagonalPrompt(kept("values"), whitening[block])
    return WhitenedPrompt(kept("values"), whitening[block], trained=False)


def count_parameters(model: Model) -> dict[str, int]:
    """How many numbers are trained, in prompts, in the backbone and in the head; and all.

    Gates and temperatures count as prompts.
    """
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    return {
        "trained": sum(trained.values()),
        "prompts": sum(count for name, count in trained.items() if name.startswith(PROMPTS)),
        "backbone": sum(count for name, count in trained.items() if name.startswith("vit.")),
        "head": sum(count for name, count in trained.items() if name.startswith("head.")),
        "total": sum(p.numel() for p in model.parameters()),
    }
