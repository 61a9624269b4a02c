"""A model of one's own: `python:package.module:factory`, a function without arguments."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from burst.backbone import Backbone
from burst.checkpoint import load_checkpoint
from burst.errors import CheckpointError, UnknownName, UnsupportedModel
from burst.loading.common import (
    CODE,
    RANDOM,
    LoadOptions,
    check_divisible,
    first_line,
    seeded,
    timm_image_facts,
)

EXPECTED = "expected python:package.module:factory"


def load(name: str, options: LoadOptions) -> Backbone:
    """Import the module, call the factory, and ask its model how images are prepared.

    The module is looked for where Python looks, and in the working directory. A model that has
    timm's `pretrained_cfg` is believed; any other reads images with ImageNet's mean and deviation.
    Their size is the one asked for, else the one that the model says it was built for, else the
    configuration's, else 224 pixels. Its positions are its own affair: it must be able to read it.

    Raises:
        UnsupportedModel: no such module, or the factory fails or gives no `nn.Module`.
        UnknownName: the module has no such function.
        CheckpointError: weights that do not fit; or `random` ones, which the factory decides of.
        ImageError: its images cannot have the size asked for.
    """
    if options.weights == RANDOM:
        raise CheckpointError(
            f"what weights {name} has, its factory decides; give no weights, or a file"
        )
    with _working_directory(), seeded(options.seed):
        model = _made(name, _factory(name))
    facts: dict[str, Any] = {"weights_source": name, "weights_sha256": None}
    if options.weights is not None:
        report = load_checkpoint(model, options.weights)
        facts = {"weights_source": str(options.weights), "weights_sha256": report.sha256}
        facts["report"] = report
    return Backbone(
        name=name,
        model=model,
        pretraining="unknown",
        pooling="token",
        kind=_kind(model),
        **facts,
        **_image_facts(name, model, options.image_size),
    )


def _factory(name: str) -> Callable[[], object]:
    module_name, _, function = name.removeprefix(CODE).partition(":")
    if not (module_name and function.isidentifier()):
        raise UnsupportedModel(f"{name} names no function; {EXPECTED}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module raises anything
        raise UnsupportedModel(f"{name} cannot be imported ({first_line(error)})") from error
    found = getattr(module, function, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise UnknownName(f"function of {module_name}", function, known, f"({EXPECTED})")
    return found  # type: ignore[no-any-return]


def _made(name: str, factory: Callable[[], object]) -> nn.Module:
    try:
        model = factory()
    except Exception as error:  # a user's function raises anything
        raise UnsupportedModel(
            f"{name} fails ({first_line(error)}); it gets no argument"
        ) from error
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"{name} gives a {type(model).__name__}, expected a torch.nn.Module")
    if next(model.parameters(), None) is None:
        raise UnsupportedModel(f"{name} gives a {type(model).__name__} without any parameter")
    return model


def _kind(model: nn.Module) -> str:
    """What the first argument of its forward pass is called for."""
    main = getattr(model, "main_input_name", None) or next(
        iter(inspect.signature(model.forward).parameters), ""
    )
    return "text" if main == "input_ids" else "image"


def _image_facts(name: str, model: nn.Module, image_size: int | None) -> dict[str, Any]:
    config: Any = getattr(model, "pretrained_cfg", None)
    known = isinstance(config, Mapping) and "mean" in config
    facts = timm_image_facts(config if known else {})
    facts["assumed"] = not known and _kind(model) == "image"
    if built := _built_for(model):
        facts["image_size"] = built
    wanted = (image_size, image_size)
    if image_size is not None and wanted != facts["image_size"]:
        check_divisible(name, model, image_size)
        facts |= {"image_size": wanted, "resized_from": facts["image_size"] if known else None}
    return facts


def _built_for(model: nn.Module) -> tuple[int, int] | None:
    """The size of images, (H, W) in pixels, that a model says it was built for.

    timm keeps it with the embedding of patches, torchvision with the model, transformers with its
    configuration; `pretrained_cfg` tells what was pretrained, also where another size was built.
    """
    holders = getattr(model, "patch_embed", None), model, getattr(model, "config", None)
    for holder, name in zip(holders, ("img_size", "image_size", "image_size"), strict=True):
        match getattr(holder, name, None):
            case int(side) if side > 0:
                return side, side
            case [int(height), int(width)] if min(height, width) > 0:
                return height, width
    return None


@contextmanager
def _working_directory() -> Iterator[None]:
    """Modules of the working directory are found, as by `python -m`."""
    here = os.getcwd()  # noqa: PTH109
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
