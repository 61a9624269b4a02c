"""Towers of OpenCLIP: `open_clip:NAME/PRETRAINED`, `open_clip:hf-hub:ORG/NAME`, `...local-dir:`."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from burst import hub
from burst.backbone import NO_IMAGES, Backbone
from burst.checkpoint import LoadReport
from burst.errors import CheckpointError, ImageError, TextError, UnknownName, check_known, some
from burst.files import at_home, sha256_of
from burst.loading.common import (
    RANDOM,
    Foreign,
    LoadOptions,
    check_divisible,
    first_line,
    grouped,
    required,
    seeded,
)
from burst.loading.tokenizer import hf_tokenizer
from burst.text import Tokenizer

HUB = "hf-hub:"
FOLDER = "local-dir:"
CONFIGURATION = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CLIP_CACHE = "~/.cache/clip"  # where OpenCLIP puts what it fetches from a URL
CROP_MODES = {"shortest": "center", "squash": "squash"}


def known_weights() -> dict[str, list[str]]:
    """Each architecture of OpenCLIP -> the names of its published weights."""
    open_clip = required("open_clip", "open-clip")
    return {one: open_clip.list_pretrained_tags_by_model(one) for one in open_clip.list_models()}


def load(name: str, options: LoadOptions) -> Backbone:
    """Build a model of OpenCLIP, load its weights, and keep the tower of images or of text.

    Args:
        name: `open_clip:NAME/PRETRAINED` of OpenCLIP's lists; `/PRETRAINED` may be left out where
            weights are given or random. After `open_clip:` also `hf-hub:ORG/NAME`, a repository
            with an `open_clip_config.json`, and `local-dir:FOLDER`, a folder with one.
        options: `kind` says which tower; without it, that of images.

    Raises:
        BurstError: open_clip_torch is not installed.
        UnknownName: no such architecture, or no such weights.
        CheckpointError: the weights cannot be had, read or fitted.
        ImageError: its images cannot have the size asked for.
    """
    open_clip = required("open_clip", "open-clip")
    asked = _asked(open_clip, name)
    facts: dict[str, Any] = {"weights_source": RANDOM, "weights_sha256": None}
    file = None
    if options.weights != RANDOM:
        file, facts["weights_source"] = _file(open_clip, asked, options)
    with seeded(options.seed):
        model = _build(open_clip, asked, file, options.image_size)
    part = "text" if options.kind == "text" else "visual"
    if file is not None:
        report = _report(model, part, file)
        facts |= {"report": report, "weights_sha256": report.sha256}
    tower = getattr(model, part)
    if part == "text":
        tower.register_forward_pre_hook(_ids_alone, with_kwargs=True)
        tokenizer = partial(_tokenizer, open_clip, asked, tower)
        facts |= {"kind": "text", "tokenizer": tokenizer, **NO_IMAGES}
    else:
        facts |= _image_facts(asked, tower, options.image_size)
    return Backbone(
        name=name,
        model=tower,
        pretraining=RANDOM if options.weights == RANDOM else "unknown",
        pooling="token",
        **facts,
    )


@dataclass(frozen=True)
class _Asked:
    """What a name stands for.

    Attributes:
        name: as it was typed.
        model_name: what OpenCLIP is to be told.
        config: of the architecture.
        published: what OpenCLIP knows of the weights that were named.
        folder: that the configuration lies in, if it is not OpenCLIP's own.
        repository: that the folder is a snapshot of.
    """

    name: str
    model_name: str
    config: dict[str, Any]
    published: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    repository: str | None = None

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Of the architecture's images, in pixels."""
        size: int | list[int] = self.config["vision_cfg"].get("image_size", 224)
        return size if isinstance(size, int) else (size[0], size[1])


def _asked(open_clip: Foreign, name: str) -> _Asked:
    rest = name.partition(":")[2]
    if rest.startswith(HUB):
        repository = rest.removeprefix(HUB)
        with _explained(name, repository):
            folder = hub.fetch_hub_file(repository, CONFIGURATION).parent
        return _in_folder(name, folder, hub.pinned(repository, folder))
    if rest.startswith(FOLDER):
        return _in_folder(name, at_home(rest.removeprefix(FOLDER)), None)
    known = open_clip.list_models()
    whole = rest.replace("/", "-")  # as OpenAI wrote ViT-B/32
    if whole in known:
        return _Asked(name, whole, open_clip.get_model_config(whole))
    front, _, tag = rest.rpartition("/")
    model_name = (front or rest).replace("/", "-")
    check_known("model of OpenCLIP", model_name, known)
    published = open_clip.get_pretrained_cfg(model_name, tag)
    if not published:
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        raise UnknownName(f"weights of {model_name}", tag, tags)
    return _Asked(name, model_name, open_clip.get_model_config(model_name), published)


def _in_folder(name: str, folder: Path, repository: str | None) -> _Asked:
    try:
        config = json.loads((folder / CONFIGURATION).read_bytes())["model_cfg"]
        return _Asked(name, f"{FOLDER}{folder}", dict(config), {}, folder, repository)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} holds no {CONFIGURATION} of OpenCLIP's ({first_line(error)})"
        ) from error


def _explained(name: str, repository: str) -> AbstractContextManager[None]:
    page = hub.hub_page(repository)
    return hub.explained(name, f"get {page} elsewhere and give its file as weights")


def _file(open_clip: Foreign, asked: _Asked, options: LoadOptions) -> tuple[Path, str]:
    """The weight file, and where a reader of a record finds it."""
    if options.weights is not None:
        given = Path(options.weights)
        if not given.is_file():
            raise CheckpointError(f"weight file {given} does not exist, or is none")
        return given, str(given)
    if asked.folder and not asked.repository:
        there = [asked.folder / name for name in WEIGHTS if (asked.folder / name).is_file()]
        if not there:
            raise CheckpointError(f"{asked.folder} holds no weights, expected {WEIGHTS[0]}")
        return there[0], str(there[0])
    place, _, filename = asked.published.get("hf_hub", "").rpartition("/")
    if repository := asked.repository or place:
        with _explained(asked.name, repository):
            file = hub.fetch_first_hub_file(repository, [filename] if filename else WEIGHTS)
            return file, hub.hub_page(repository)
    if url := asked.published.get("url"):
        cached = at_home(CLIP_CACHE) / url.rpartition("/")[2]
        advice = f"get {url} elsewhere and give the file as weights (--weights FILE)"
        with hub.explained(asked.name, advice):
            return cached if cached.is_file() else hub.fetch_url(url), url
    tags = open_clip.list_pretrained_tags_by_model(asked.model_name)
    raise CheckpointError(
        f"which weights of {asked.name}? name them as {asked.name}/PRETRAINED "
        f"({some(tags) or 'none are published'}), give a file, or the word `random`"
    )


def _build(open_clip: Foreign, asked: _Asked, file: Path | None, image_size: int | None) -> Foreign:
    # Told by a file and not by its name, OpenCLIP neither fetches it nor knows its activation.
    quick = asked.published.get("quick_gelu", asked.config.get("quick_gelu", False))
    options = {"pretrained_hf": False, "quick_gelu": quick, "force_image_size": image_size}
    local = asked.folder is not None
    try:
        with _silent():
            model = open_clip.create_model(
                asked.model_name,
                pretrained=None if local or file is None else str(file),
                force_custom_text=True,
                **({"load_weights": False} if local else {}),
                **options,
            )
            if local and file is not None:
                open_clip.load_checkpoint(model, str(file))
    except Exception as error:  # damaged files, and models of other libraries, raise anything
        raise CheckpointError(
            f"{asked.name} cannot be loaded from {file or 'its configuration'} "
            f"({first_line(error)})"
        ) from error
    return model


def _report(model: nn.Module, part: str, file: Path) -> LoadReport:
    keys = model.state_dict()
    other = [key for key in keys if not key.startswith(f"{part}.")]
    dropped = dict.fromkeys(grouped(other), f"no part of the {part} tower")
    return LoadReport(file, "OpenCLIP", sha256_of(file), len(keys) - len(other), dropped)


@contextmanager
def _silent() -> Iterator[None]:
    """Without what OpenCLIP writes into the root logger, which it also gives a handler."""
    root = logging.getLogger()
    disabled, handlers = logging.root.manager.disable, list(root.handlers)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers


def _image_facts(asked: _Asked, tower: Foreign, image_size: int | None) -> dict[str, Any]:
    config = {**tower.preprocess_cfg, **asked.published}
    mode = CROP_MODES.get(config["resize_mode"])
    if mode is None:
        raise ImageError(
            f"{asked.name} resizes images by their {config['resize_mode']} side, which is not "
            f"known; give `burst.survey` batches of your own"
        )
    own = asked.image_size
    before = (own, own) if isinstance(own, int) else own
    size = before if image_size is None else (image_size, image_size)
    if size != before:
        check_divisible(asked.name, tower, size[0])
    return {
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "image_size": size,
        "interpolation": config["interpolation"],
        "crop_fraction": 1.0,
        "crop_mode": mode,
        "resized_from": None if size == before else before,
    }


def _ids_alone(
    tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """OpenCLIP's towers know padding by its id, and no attention mask."""
    if "input_ids" not in kwargs:
        return args, kwargs
    return (kwargs["input_ids"],), {}


def _tokenizer(open_clip: Foreign, asked: _Asked, tower: Foreign) -> Tokenizer:
    try:
        with _silent():
            found = open_clip.get_tokenizer(asked.model_name)
    except Exception as error:  # what it fetches elsewhere fails in many ways
        raise TextError(f"{asked.name} has no tokenizer here ({first_line(error)})") from error
    limits = {"max_length": tower.context_length, "vocabulary": tower.vocab_size, "fill": True}
    if hasattr(found, "tokenizer"):
        return _cleaned(found, hf_tokenizer(asked.name, found.tokenizer, **limits))
    return Tokenizer(
        encode=found.encode,
        prefix=(found.sot_token_id,),
        suffix=(found.eot_token_id,),
        **limits,
    )


def _cleaned(found: Foreign, tokenizer: Tokenizer) -> Tokenizer:
    """With what OpenCLIP does around a tokenizer of transformers, as SigLIP's needs it."""
    suffix = tokenizer.suffix
    if found.strip_sep_token:
        suffix = tuple(0 if one == found.tokenizer.sep_token_id else one for one in suffix)
    encode = tokenizer.encode
    return replace(tokenizer, encode=lambda text: encode(found.clean_fn(text)), suffix=suffix)
