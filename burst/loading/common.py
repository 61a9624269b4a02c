"""What every library's loader is told, and what all of them do alike."""

import contextlib
import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import floor, inf, nextafter
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from burst.errors import BurstError, CheckpointError, ImageError, check_known, some

CODE = "python:"  # how the name of a model begins that code of one's own builds
RANDOM = "random"
KINDS = ("image", "text")
Weights = str | os.PathLike[str] | None
Foreign: TypeAlias = Any  # a module or an object of a library that may not be installed


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load a model; checks itself. See `burst.load_backbone`."""

    weights: Weights = None
    seed: int = 0
    image_size: int | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ImageError(f"image_size {self.image_size} must be at least 1 pixel")
        if self.kind is not None:
            check_known("kind of input", self.kind, KINDS)

    @property
    def pretrained(self) -> bool:
        """Whether the weights are to be found, neither given nor random."""
        return self.weights is None


def required(module: str, extra: str) -> ModuleType:
    """A library that an extra of this package brings.

    Raises:
        BurstError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise BurstError(
            f"{module} is not installed; pip install 'attention-burstiness[{extra}]'"
        ) from error


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeded initialisation that leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU too
        yield


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line, with its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {said}"


def crop_fraction(image_size: int, side: int) -> float:
    """The fraction by which `Preprocess` resizes to `side` and crops `image_size` of that."""
    fraction = image_size / side
    # A quotient that was rounded up would make the side one pixel smaller.
    return fraction if floor(image_size / fraction) == side else nextafter(fraction, -inf)


def patch_size(model: nn.Module) -> int | None:
    """Pixels of a patch: of the first convolution that cuts an image into squares beside another.

    None where there is none, as in models with a convolutional stem.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            patch = module.kernel_size[0]
            square = module.kernel_size == module.stride == (patch, patch)
            return patch if square and patch > 1 else None
    return None


def check_divisible(name: str, model: nn.Module, image_size: int) -> None:
    """Refuse an image size that the model's patches do not fill.

    Raises:
        ImageError: the nearest sizes are offered.
    """
    patch = patch_size(model)
    if patch and image_size % patch:
        below = image_size // patch * patch
        near = " or ".join(str(size) for size in (below, below + patch) if size)
        raise ImageError(
            f"image size {image_size} is no multiple of the {patch} pixels of a patch of {name}; "
            f"choose {near}"
        )


def check_reads(name: str, model: nn.Module, image_size: tuple[int, int]) -> None:
    """One forward pass over black images that the model may not have been made for.

    Raises:
        ImageError: the model cannot read them; its own words are given.
    """
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, *image_size, device=device))
    except Exception as error:  # models of all libraries raise anything
        height, width = image_size
        raise ImageError(
            f"{name} cannot read RGB images of {height} x {width} pixels ({first_line(error)}); "
            f"give an image_size (--image-size) that it can read"
        ) from error


def check_finite(name: str, model: nn.Module) -> None:
    """Refuse weights that training or a damaged file left without a value.

    Raises:
        CheckpointError: the first such tensor is named.
    """
    for key, value in model.named_parameters():
        # A sum is never finite with a NaN or infinity in it: one quick pass.
        if not value.is_meta and not value.sum().isfinite():
            bad = int((~torch.isfinite(value)).sum())
            if bad:
                raise CheckpointError(
                    f"{name}: {bad} of {value.numel()} values of {key} are not finite (NaN or "
                    f"infinite); the file is damaged or its training diverged"
                )


def fit(model: nn.Module, state: Mapping[str, Tensor], path: Path, *, whose: str) -> None:
    """Copy weights into a model, all of them or, after an error, none.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape differs.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        raise CheckpointError(
            f"{path} does not fit {whose}: {len(missing)} missing ({some(missing) or 'none'}), "
            f"{len(unknown)} unknown ({some(unknown) or 'none'}); nothing was loaded"
        )
    wrong = [name for name, value in state.items() if value.shape != expected[name].shape]
    if wrong:
        theirs, ours = (tuple(one[wrong[0]].shape) for one in (state, expected))
        raise CheckpointError(
            f"{path} does not fit {whose}: {wrong[0]} has shape {theirs}, expected {ours}"
            f"{f' ({len(wrong) - 1} more differ)' if len(wrong) > 1 else ''}; nothing was loaded"
        )
    unfilled = any(value.is_meta for value in expected.values())  # takes the tensors themselves
    model.load_state_dict(dict(state), strict=True, assign=unfilled)


def grouped(keys: Iterable[str]) -> list[str]:
    """Names of weights, but for those of a part that is left out whole, such as a decoder."""
    parts: dict[str, list[str]] = {}
    for key in sorted(keys):
        parts.setdefault(key.partition(".")[0], []).append(key)
    return [
        one
        for part, names in parts.items()
        for one in (names if len(names) <= 3 else [f"{part}.* ({len(names)} tensors)"])
    ]


def timm_image_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """How timm's configuration of a model prepares images, in the words of `Backbone`.

    Of an empty one: ImageNet's mean and deviation, 224 pixels, and timm's usual crop.
    """
    from timm.data.config import resolve_data_config

    given = dict(config) or {"architecture": ""}
    found = resolve_data_config(pretrained_cfg=given)  # type: ignore[no-untyped-call, unused-ignore]
    return {
        "mean": tuple(found["mean"]),
        "std": tuple(found["std"]),
        "image_size": tuple(found["input_size"][-2:]),
        "interpolation": found["interpolation"],
        "crop_fraction": found["crop_pct"],
        "crop_mode": found["crop_mode"],
    }
