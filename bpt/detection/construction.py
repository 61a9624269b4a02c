"""A recipe and a backbone -> the detector that is trained, at its start or as it was kept."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bpt.construction import PROMPTS, build_gates, build_prompts, kept_prompts, prompted_blocks
from bpt.detection.backbone import FineTunedMap, PromptedMap, Trunk, detection_backbone
from bpt.detection.detector import Detector, DetectorOptions
from bpt.detection.recipe import DetectionRecipe
from bpt.fine_tuning import layer_decay_groups
from burst.backbone import Backbone

HIDDEN = 4  # times the channels: numbers of the boxes' fully connected layer
TRUNK = "trunk."


def build_detector(
    recipe: DetectionRecipe,
    backbone: Backbone,
    num_classes: int,
    *,
    whitening: Mapping[int, Tensor] | None = None,
    tokens: Mapping[int, Tensor] | None = None,
) -> Detector:
    """The detector at its start, which the recipe's seed decides, on the backbone's device.

    Args:
        recipe: how.
        backbone: on what; its weights are shared, but for full fine-tuning, which has a copy.
        num_classes: C, without background.
        whitening: block -> what `prompt_matrices` gives, where the recipe `needs_whitening`.
        tokens: block -> (m, d), for spt.

    Raises:
        ShapeError, UnsupportedModel, BurstError: see `detection_backbone`, `parse_placement` and
            `build_prompt`.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    resized = detection_backbone(backbone, recipe.size)
    again = {"checkpoint_activations": recipe.checkpoint_activations}
    if recipe.method == "full":
        trunk: Trunk = FineTunedMap(resized, drop_path=recipe.drop_path, **again)
    else:
        prompts = {}
        if prompted_blocks(recipe, backbone):
            prompts = build_prompts(recipe, resized, generator, whitening=whitening, tokens=tokens)
        trunk = PromptedMap(
            resized,
            prompts,
            after=recipe.after,
            dropout=recipe.prompt_dropout,
            gates=build_gates(recipe, resized),
            **again,
        )
    return _detector(recipe, trunk, num_classes, generator)


def restore_detector(
    recipe: DetectionRecipe,
    backbone: Backbone,
    num_classes: int,
    state: Mapping[str, Tensor],
    *,
    whitening: Mapping[int, Tensor] | None = None,
) -> Detector:
    """The detector with the trained tensors that were kept, in eval mode.

    Args:
        recipe: it was trained with.
        backbone: the same, on the device that the detector shall be on.
        num_classes: C, without background.
        state: what `trained_state` gave.
        whitening: block -> what `prompt_matrices` gives, where that is frozen.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; or a frozen whitening
            matrix is missing.
        ShapeError, UnsupportedModel, BurstError: see `build_detector`.
    """
    if not recipe.prompted:
        detector = build_detector(recipe, backbone, num_classes)
    else:
        resized = detection_backbone(backbone, recipe.size)
        prompts = kept_prompts(recipe, resized, state, whitening=whitening, within=TRUNK)
        gates = build_gates(recipe, resized)
        trunk = PromptedMap(resized, prompts, after=recipe.after, gates=gates)
        detector = _detector(recipe, trunk, num_classes, torch.Generator())
    detector.load_trained_state(state)
    return detector.eval()


def detector_groups(detector: Detector, recipe: DetectionRecipe) -> list[dict[str, Any]]:
    """What is trained, for the optimiser: matrices decay, vectors do not.

    For fine-tuning see `layer_decay_groups`; pyramid and heads have the whole rate.
    """
    decay = recipe.weight_decay or 0.0
    if recipe.method == "full":
        return layer_decay_groups(
            detector, weight_decay=decay, layer_decay=recipe.layer_decay, vit=f"{TRUNK}vit"
        )
    trained = [p for p in detector.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def count_detector(detector: Detector) -> dict[str, int]:
    """Numbers that are trained, in prompts, backbone and behind it; and all, frozen ones too."""
    trained = {n: p.numel() for n, p in detector.named_parameters() if p.requires_grad}
    named = tuple(f"{TRUNK}{name}" for name in PROMPTS)
    prompts = sum(count for name, count in trained.items() if name.startswith(named))
    backbone = sum(count for name, count in trained.items() if name.startswith("trunk.vit."))
    return {
        "trained": sum(trained.values()),
        "prompts": prompts,
        "backbone": backbone,
        "heads": sum(trained.values()) - prompts - backbone,
        "total": sum(p.numel() for p in detector.parameters()),
    }


def _detector(
    recipe: DetectionRecipe,
    trunk: Trunk,
    num_classes: int,
    generator: torch.Generator,
) -> Detector:
    options = DetectorOptions(
        detector=recipe.detector,
        num_classes=num_classes,
        channels=recipe.channels,
        hidden=HIDDEN * recipe.channels,
        class_agnostic=recipe.class_agnostic,
        sampling_ratio=recipe.sampling_ratio,
    )
    device = next(trunk.parameters()).device
    mean, std = trunk.info.mean, trunk.info.std
    return Detector(trunk, options, mean=mean, std=std, generator=generator).to(device)
