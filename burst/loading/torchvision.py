"""torchvision's ViTs: `torchvision:vit_b_16`, `torchvision:vit_b_16.IMAGENET1K_SWAG_E2E_V1`."""

from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import nn

from burst import hub
from burst.backbone import Backbone
from burst.checkpoint import LoadReport, read_checkpoint
from burst.errors import CheckpointError, check_known
from burst.files import sha256_of
from burst.loading.common import (
    RANDOM,
    Foreign,
    LoadOptions,
    check_divisible,
    crop_fraction,
    fit,
    seeded,
)

HEAD = "classification head, of which nothing is measured"
POSITIONS = "encoder.pos_embedding"


def known_weights() -> dict[str, dict[str, Any]]:
    """Each Vision Transformer of torchvision -> its published weights by their names."""
    from torchvision import models

    names = models.list_models(module=models, include="vit_*")
    return {name: dict(models.get_model_weights(name).__members__) for name in names}


def load(name: str, options: LoadOptions) -> Backbone:
    """Build `torchvision:NAME` or `torchvision:NAME.WEIGHTS`, without its head.

    Images are prepared as the `transforms()` of the weights do it; where a file or random weights
    are given, as those of the weights that are named, or of torchvision's default ones. With a
    file, the model reads images of the size that the file's positions are for.

    Raises:
        UnknownName: no such model or weights.
        CheckpointError: the weights cannot be had, read or fitted.
        ImageError: its images cannot have the size asked for.
    """
    architecture, _, tag = name.partition(":")[2].partition(".")
    published = _published(architecture, tag)
    preset = published.transforms()
    facts: dict[str, Any] = {"weights_source": RANDOM, "weights_sha256": None}
    if options.weights == RANDOM:
        with seeded(options.seed):
            model = _build(name, architecture, options.image_size or preset.crop_size[0])
    else:
        given = None if options.pretrained else Path(str(options.weights))
        file = given or _fetch(name, published)
        model, before, report = _loaded(name, architecture, file, options.image_size)
        facts = {"weights_source": str(given or published.url), "weights_sha256": report.sha256}
        facts |= {"report": report, "resized_from": before}
    return Backbone(
        name=name,
        model=model,
        pretraining=RANDOM if options.weights == RANDOM else "unknown",
        pooling="token",
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        image_size=(model.image_size, model.image_size),
        interpolation=preset.interpolation.value,
        crop_fraction=crop_fraction(preset.crop_size[0], preset.resize_size[0]),
        **facts,
    )


def _published(architecture: str, tag: str) -> Foreign:
    from torchvision import models

    known = known_weights()
    check_known("Vision Transformer of torchvision", architecture, known)
    if not tag:
        return models.get_model_weights(architecture).DEFAULT
    check_known(f"weights of {architecture}", tag, known[architecture])
    return known[architecture][tag]


def _fetch(name: str, published: Foreign) -> Path:
    advice = f"get {published.url} elsewhere and give the file as weights (--weights FILE)"
    with hub.explained(name, advice):
        return hub.fetch_torch_hub_file(published.url)


def _build(name: str, architecture: str, image_size: int) -> Foreign:
    from torchvision import models

    with torch.device("meta"):
        check_divisible(name, models.get_model(architecture), image_size)
    model = models.get_model(architecture, image_size=image_size)
    model.heads = nn.Identity()
    return model


def _loaded(
    name: str, architecture: str, file: Path, image_size: int | None
) -> tuple[Any, tuple[int, int] | None, LoadReport]:
    """The model, the size of images that the file is for if it is another, and what was read."""
    state = read_checkpoint(file)
    dropped = {key: HEAD for key in state if key.startswith("heads.")}
    state = {key: value for key, value in state.items() if key not in dropped}
    patches, positions = state.get("conv_proj.weight"), state.get(POSITIONS)
    if patches is None or positions is None or patches.ndim != 4 or positions.ndim != 3:
        raise CheckpointError(f"{file} holds no Vision Transformer as torchvision saves them")
    before = patches.shape[-1] * isqrt(positions.shape[1] - 1)
    model = _build(name, architecture, image_size or before)
    if image_size not in (None, before):
        state = _resampled(model, state)
    fit(model, state, file, whose=name)
    report = LoadReport(file, "torchvision's names", sha256_of(file), len(state), dropped)
    return model, (before, before) if model.image_size != before else None, report


def _resampled(model: Foreign, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from torchvision.models.vision_transformer import interpolate_embeddings

    return dict(interpolate_embeddings(model.image_size, model.patch_size, state))
