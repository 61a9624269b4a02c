"""Models of the transformers library: `hf:ORG/NAME` on the hub, `hf:FOLDER` on this disk."""

import contextlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from burst.backbone import NO_IMAGES, Backbone
from burst.checkpoint import LoadReport, load_checkpoint
from burst.errors import CheckpointError, UnsupportedModel, some
from burst.files import sha256_of
from burst.loading.common import (
    RANDOM,
    Foreign,
    LoadOptions,
    check_divisible,
    first_line,
    grouped,
    required,
    seeded,
    timm_image_facts,
)
from burst.loading.hf_files import PROCESSOR, HfFiles, find_files, silent
from burst.loading.image_processor import processor_facts
from burst.loading.tokenizer import tokenizer_of
from burst.weightfile import read_stored, sha256_of_stored

KINDS = {
    "pixel_values": "image",
    "input_ids": "text",
    "pixel_values_videos": "video",
    "input_features": "audio",
    "input_values": "audio",
}
VIDEO = ("num_frames", "frames_per_clip")


def load(name: str, options: LoadOptions) -> Backbone:
    """Build the model that a folder or repository describes, without heads, and load its weights.

    Of a model with a tower for images and one for text, one is built, see `LoadOptions.kind`. No
    code of the repository is run, and nothing but tensors is unpickled.

    Raises:
        BurstError: transformers is not installed.
        CheckpointError: no such folder or repository; a model that transformers does not know
            without code of its repository; weights that are missing, damaged, or do not fit.
        UnsupportedModel: an encoder with a decoder, quantised weights, or an adapter alone.
        ImageError: its images cannot have the size asked for, or what prepares them cannot be told.
    """
    transformers = required("transformers", "hf")
    files = find_files(name)
    if (files.folder / "adapter_config.json").is_file():
        raise UnsupportedModel(
            f"{name} holds an adapter of another model; merge it, save the whole, and load that"
        )
    with silent(transformers), seeded(options.seed):
        whole = _configuration(transformers, files)
        config = _tower(name, whole, options.kind)
        wanted = _Wanted(transformers, files, config, whole, _class(transformers, name, config))
        model, facts = _weighted(wanted, options)
        kind = _kind(model)
        if kind == "image":
            facts |= _image_facts(transformers, files, model, options.image_size)
        else:
            facts |= NO_IMAGES
    tokenizer = partial(tokenizer_of, transformers, files, model) if kind == "text" else None
    return Backbone(
        name=name,
        model=model,
        pretraining=RANDOM if options.weights == RANDOM else "unknown",
        pooling="token",
        kind=kind,
        tokenizer=tokenizer,
        **facts,
    )


def _configuration(transformers: Foreign, files: HfFiles) -> Foreign:
    try:
        return transformers.AutoConfig.from_pretrained(
            files.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # configurations raise anything
        raise CheckpointError(
            f"{files.name}: transformers {transformers.__version__} does not know this model "
            f"without code of its repository, which is not run ({first_line(error)})"
        ) from error


def _tower(name: str, config: Foreign, kind: str | None) -> Foreign:
    """Of a model with two towers the configuration of one; of any other its own."""
    config = getattr(config, "text_config" if kind == "text" else "vision_config", None) or config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"{name} is an encoder with a decoder; give `burst.survey` its encoder, "
            f"`model.get_encoder()`, and batches of your own"
        )
    if getattr(config, "quantization_config", None):
        raise UnsupportedModel(f"{name} has quantised weights; expected plain ones")
    config.use_cache = False
    config.transformers_weights = None  # another file than the one whose digest is recorded
    if hasattr(config, "mask_ratio"):  # of masked autoencoders: all patches are to be read
        config.mask_ratio = 0.0
    return config


@dataclass(frozen=True)
class _Wanted:
    """A model to be built, and the configuration of the whole that it may be a tower of."""

    transformers: Any
    files: HfFiles
    config: Any
    whole: Any
    kind: Any


def _weighted(wanted: _Wanted, options: LoadOptions) -> tuple[Any, dict[str, Any]]:
    """The model, and where its weights come from."""
    if options.pretrained:
        return _pretrained(wanted)
    model = wanted.kind._from_config(wanted.config, dtype=torch.float32, **_how(wanted.kind))
    if options.weights == RANDOM:
        return model, {"weights_source": RANDOM, "weights_sha256": None}
    path = Path(options.weights)  # type: ignore[arg-type]
    try:
        report = load_checkpoint(model, path)
    except CheckpointError as error:
        found = _renamed(wanted, path)
        if found is None:
            raise error from error.__cause__
        model, report = found
    source = {"weights_source": str(path), "weights_sha256": report.sha256}
    return model, {**source, "report": report}


def _renamed(wanted: _Wanted, path: Path) -> tuple[Any, LoadReport] | None:
    """The model with a file's tensors, if transformers knows the names as older ones of its own.

    Those of most vision models have changed in version 5, and files keep the names of before.
    """
    _, stored = read_stored(path)
    if not isinstance(stored, Mapping) or not all(isinstance(x, Tensor) for x in stored.values()):
        return None
    state = {name: x.float() if x.is_floating_point() else x for name, x in stored.items()}
    try:
        model, found = _built(wanted.kind, None, wanted.config, state_dict=state)
    except Exception:  # it may raise anything; what the file lacks is said already
        return None
    if any(found[key] for key in ("missing_keys", "mismatched_keys", "error_msgs")):
        return None
    dropped = dict.fromkeys(grouped(found["unexpected_keys"]), _no_part(wanted.kind))
    layout = "names as transformers saved them"
    digest = sha256_of_stored(path)
    return model, LoadReport(path, layout, digest, len(model.state_dict()), dropped)


def _no_part(kind: Foreign) -> str:
    return f"no part of a {kind.__name__}"


def _class(transformers: Foreign, name: str, config: Foreign) -> Foreign:
    found = transformers.MODEL_MAPPING.get(type(config), None)
    if isinstance(found, tuple):
        found = found[0]
    if found is None:  # of towers, transformers lists some only
        found = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    if found is None:
        raise UnsupportedModel(
            f"{name}: transformers {transformers.__version__} has no plain model for a "
            f"{type(config).__name__}"
        )
    return found


def _how(kind: Foreign) -> dict[str, Any]:
    """Without a pooling layer where it can be left, and never with a kernel from elsewhere."""
    pools = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    attention = "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"
    return {"attn_implementation": attention} | ({"add_pooling_layer": False} if pools else {})


def _pretrained(wanted: _Wanted) -> tuple[Any, dict[str, Any]]:
    files, kind = wanted.files, wanted.kind
    weights = files.weights()
    model, found = _read(files, kind, wanted.config)
    aside = grouped(found["unexpected_keys"])
    saved = getattr(wanted.transformers, next(iter(wanted.whole.architectures or ()), ""), None)
    if found["missing_keys"] and saved not in (None, kind):
        # The part is not told from its names alone: the whole is read as it was saved.
        whole, found = _read(files, saved, wanted.whole)
        inside = [(one, part) for one, part in whole.named_modules() if isinstance(part, kind)]
        name, model = inside[0] if inside else ("", whole)
        rest = whole.state_dict() if name else ()  # else the whole is what is wanted
        aside = grouped(key for key in rest if not key.startswith(f"{name}."))
    _check_loaded(files, type(model), found)
    sha256 = sha256_of(*weights)
    dropped = dict.fromkeys(aside, _no_part(kind))
    layout = f"transformers, {weights[0].suffix[1:]}, {len(weights)} file(s)"
    report = LoadReport(weights[0], layout, sha256, len(model.state_dict()), dropped)
    return model, {"weights_source": files.source, "weights_sha256": sha256, "report": report}


def _read(files: HfFiles, kind: Foreign, config: Foreign) -> tuple[Any, dict[str, Any]]:
    """A model as transformers reads it, and what it did not find or use."""
    try:
        return _built(kind, files.folder, config, local_files_only=True, weights_only=True)
    except Exception as error:  # damaged files raise anything
        raise CheckpointError(
            f"{files.name}: its weights cannot be read ({first_line(error)})"
        ) from error


def _built(
    kind: Foreign, place: Path | None, config: Foreign, **weights: Foreign
) -> tuple[Any, dict[str, Any]]:
    found: tuple[Any, dict[str, Any]] = kind.from_pretrained(
        place,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are looked at here, like all that was not loaded
        **weights,
        **_how(kind),
    )
    return found


def _check_loaded(files: HfFiles, kind: Foreign, found: dict[str, Any]) -> None:
    """transformers makes up what a file does not hold, and only warns of it."""
    if found["error_msgs"]:
        reason = str(found["error_msgs"][0]).splitlines()[0]
        raise CheckpointError(f"{files.name}: its weights do not fit ({reason})")
    if found["mismatched_keys"]:
        key, *shapes = _as_tuple(sorted(found["mismatched_keys"])[0])
        told = f" ({' and '.join(str(tuple(one)) for one in shapes)})" if shapes else ""
        raise CheckpointError(
            f"{files.name}: the shape of {key} is not what the configuration says{told}"
        )
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise CheckpointError(
            f"{files.name}: {len(missing)} weights of a {kind.__name__} are missing "
            f"({some(missing)})"
        )


def _as_tuple(value: Foreign) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _kind(model: Foreign) -> str:
    """What the model is called with; a word or the names of its arguments."""
    parameters = inspect.signature(model.forward).parameters.values()
    needed = [
        one.name for one in parameters if one.default is one.empty and one.kind < one.VAR_POSITIONAL
    ]
    if len(needed) > 1:
        return " and ".join(needed)
    if any(hasattr(model.config, one) for one in VIDEO):
        return "video"
    return KINDS.get(model.main_input_name, str(model.main_input_name))


def _image_facts(
    transformers: Foreign, files: HfFiles, model: Foreign, image_size: int | None
) -> dict[str, Any]:
    trained = _pair(getattr(model.config, "image_size", None))
    processor = _processor(transformers, files)
    if processor is None:
        facts = timm_image_facts({}) | {"assumed": True}
        facts["image_size"] = trained or facts["image_size"]
    else:
        facts = processor_facts(files.name, processor)
    if image_size is not None:
        facts["image_size"] = (image_size, image_size)
    if trained is not None and trained != facts["image_size"]:
        facts["resized_from"] = trained
        check_divisible(files.name, model, facts["image_size"][0])
    _call_rightly(model, resized="resized_from" in facts)
    return facts


def _pair(size: Foreign) -> tuple[int, int] | None:
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _processor(transformers: Foreign, files: HfFiles) -> Foreign:
    """The image processor, as Pillow computes it where it can; None if the model has none."""
    files.fetch(PROCESSOR)
    if not any((files.folder / name).is_file() for name in PROCESSOR):
        return None
    read = partial(
        transformers.AutoImageProcessor.from_pretrained,
        files.folder,
        local_files_only=True,
        trust_remote_code=False,
    )
    try:
        with contextlib.suppress(ValueError):  # some are computed on tensors only
            return read(use_fast=False)
        return read()
    except Exception as error:  # processors raise anything
        raise CheckpointError(
            f"{files.name}: its image processor cannot be read ({first_line(error)})"
        ) from error


def _call_rightly(model: Foreign, *, resized: bool) -> None:
    """Let a call with images alone mean: all patches, in their order, at whatever size."""
    known = inspect.signature(model.forward).parameters
    interpolates = resized and "interpolate_pos_encoding" in known
    masks = "noise" in known  # whose order decides which patches are read, and in which order
    if interpolates or masks:
        hook = partial(_with_arguments, interpolates=interpolates, masks=masks)
        model.register_forward_pre_hook(hook, with_kwargs=True)


def _with_arguments(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    interpolates: bool,
    masks: bool,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    added: dict[str, Any] = {"interpolate_pos_encoding": True} if interpolates else {}
    if masks:
        images: Tensor = args[0] if args else kwargs["pixel_values"]
        height, width = _pair(model.config.patch_size)  # type: ignore[misc, union-attr]
        count = (images.shape[-2] // height) * (images.shape[-1] // width)
        order = torch.arange(count, device=images.device, dtype=images.dtype)
        added["noise"] = order.expand(len(images), -1)
    return args, added | kwargs
