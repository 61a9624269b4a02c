"""Models that timm knows: `timm:NAME` and `hf-hub:ORG/NAME`."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from burst import hub
from burst.backbone import Backbone
from burst.checkpoint import load_checkpoint
from burst.errors import CheckpointError, UnknownName
from burst.files import sha256_of
from burst.loading.common import (
    RANDOM,
    Foreign,
    LoadOptions,
    check_divisible,
    first_line,
    seeded,
    timm_image_facts,
)
from burst.weightfile import read_stored

TIMM = "timm:"


def current_name(name: str) -> str:
    """timm's name of an architecture, perhaps with a tag, where `name` is one it has given up."""
    from timm.models import get_deprecated_models

    return str(get_deprecated_models().get(name) or name)


def nearest_names(name: str) -> list[str]:
    """The few `timm:NAME`, with and without tags, that are most like a name."""
    import timm

    # Chosen here, because a list of timm's three thousand names would be no help.
    known = [TIMM + one for one in (*timm.list_models(), *timm.list_pretrained())]
    return difflib.get_close_matches(name, known, n=3, cutoff=0.5)


def load(name: str, options: LoadOptions) -> Backbone:
    """Build `timm:NAME` or `hf-hub:ORG/NAME` and load its weights.

    Raises:
        CheckpointError: timm has no weights for it, they cannot be downloaded, or do not fit.
        ImageError: its images cannot have the size asked for.
    """
    library, _, rest = name.partition(":")
    on_hub = library != "timm"
    asked = rest if on_hub else current_name(rest)
    if not on_hub and not _is_known(asked):
        raise UnknownName("backbone", name, nearest_names(name) or nearest_names(TIMM + "vit"))
    link = hub.hub_page(asked) if on_hub else _link(asked)
    if options.pretrained and link is None:
        raise CheckpointError(
            f"timm has no pretrained weights for {name}; give a file as weights, "
            f"or the word `random` for an untrained model"
        )
    architecture = "timm:ARCHITECTURE" if on_hub else name
    advice = f"get {link} elsewhere and give the file as weights of {architecture} (--weights FILE)"
    with hub.explained(name, advice), seeded(options.seed):
        prepare = _from_hub if on_hub else _from_timm
        model, file = prepare(asked, pretrained=options.pretrained)
    # Before a file is read: positions of the size asked for are taken as they are.
    images = _image_facts(name, model, options.image_size)
    facts: dict[str, Any] = {"weights_source": str(link), "weights_sha256": None}
    if options.weights == RANDOM:
        facts["weights_source"] = RANDOM
    elif options.weights is not None:
        report = load_checkpoint(model, options.weights)
        facts = {"weights_source": str(options.weights), "weights_sha256": report.sha256}
        facts["report"] = report
    elif file is not None:
        facts["weights_sha256"] = sha256_of(file)
    return Backbone(
        name=name,
        model=model,
        pretraining=RANDOM if options.weights == RANDOM else "unknown",
        pooling="token" if getattr(model, "global_pool", None) == "token" else "avg",
        **facts,
        **images,
    )


def resize(name: str, model: nn.Module, image_size: int) -> None:
    """Let a timm model read images of another size; its position embeddings are resampled.

    Models without `set_input_size` are left as they are: those that know no positions read any
    size, and the others say for themselves that they do not.

    Raises:
        ImageError: the patches do not fill the size.
    """
    check_divisible(name, model, image_size)
    set_input_size: Any = getattr(model, "set_input_size", None)
    if set_input_size is not None:
        set_input_size(img_size=(image_size, image_size))


def _image_facts(name: str, model: nn.Module, image_size: int | None) -> dict[str, Any]:
    facts = timm_image_facts(model.pretrained_cfg)  # type: ignore[arg-type]
    own = getattr(getattr(model, "patch_embed", None), "img_size", None)
    facts["image_size"] = tuple(own or facts["image_size"])
    wanted = (image_size, image_size)
    if image_size is not None and wanted != facts["image_size"]:
        resize(name, model, image_size)
        facts |= {"image_size": wanted, "resized_from": facts["image_size"]}
    return facts


def _from_timm(name: str, *, pretrained: bool) -> tuple[nn.Module, Path | None]:
    """The model, and the file that timm has read."""
    if not pretrained:
        return _create(name), None
    from timm.models import get_pretrained_cfg

    config: Any = get_pretrained_cfg(name)
    if not config.hf_hub_id:
        model = _create(name, pretrained=True)
        return model, hub.torch_hub_file(config.url)
    file = hub.fetch_first_hub_file(config.hf_hub_id, _candidates(config.hf_hub_filename))
    return _with_file(name, file), file


def _with_file(name: str, file: Path, *, said: str | None = None) -> nn.Module:
    """A model of timm that loads this file.

    timm would ask the hub again, with all of its client's retries, were it not given the file. And
    old versions unpickle what they open, and open a folder's .safetensors as they open a .bin.
    """
    # Configurations ask for the reader of .npz also where a repository has another file.
    overlay: dict[str, Any] = {"file": str(file), "custom_load": file.suffix == ".npz"}
    if file.suffix not in {".safetensors", ".npz"}:
        overlay = {"state_dict": read_stored(file)[1]}
    overlay["source"] = ""  # neither the hub nor a folder
    model = _create(name, said=said, pretrained=True, pretrained_cfg_overlay=overlay)
    model.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator, union-attr]
    return model


def _from_hub(repository: str, *, pretrained: bool) -> tuple[nn.Module, Path | None]:
    """As `_from_timm`, of a repository that says in its `config.json` which of timm's it is."""
    said = f"hf-hub:{repository}"
    config = hub.fetch_hub_file(repository, "config.json")
    if b'"architecture"' not in config.read_bytes():
        raise CheckpointError(
            f"timm cannot load {said} (its config.json names no architecture of timm's); is it a "
            f"timm model? one of transformers is hf:{repository}"
        )
    folder = config.parent
    if not pretrained:
        return _create(f"local-dir:{folder}", said=said), None
    pinned = hub.pinned(repository, folder)
    file = hub.fetch_first_hub_file(pinned, hub.WEIGHT_FILES)
    return _with_file(f"local-dir:{file.parent}", file, said=said), file


def _candidates(filename: str | None) -> Iterator[str]:
    """The files that timm would look for, in its order: one that holds no code before others."""
    if filename in (None, hub.WEIGHT_FILES[-1]):
        yield from hub.WEIGHT_FILES
        return
    if filename == "open_clip_pytorch_model.bin":
        yield "open_clip_model.safetensors"
    elif filename.endswith(".bin"):
        yield filename.removesuffix(".bin") + ".safetensors"
    yield filename


def _create(name: str, *, said: str | None = None, **options: Foreign) -> nn.Module:
    import timm

    try:
        model: nn.Module = timm.create_model(name, num_classes=0, **options)
        return model
    except hub.FAILURES:
        raise
    except Exception as error:  # timm and the model's own code raise anything, KeyError included
        raise CheckpointError(
            f"timm cannot load {said or name} ({first_line(error)}); is it a timm model?"
        ) from error


def _link(name: str) -> str | None:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        return None
    if config.hf_hub_id:
        return hub.hub_link(config.hf_hub_id, config.hf_hub_filename or hub.WEIGHT_FILES[0])
    return str(config.url)


def _is_known(name: str) -> bool:
    """Whether timm has this architecture and, if one is given, this pretrained tag."""
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model(name):
        return False
    try:
        get_pretrained_cfg(name)
    except RuntimeError:  # the architecture exists, the tag does not
        return False
    return True
