"""A name -> a frozen model, and what its pretraining fixes: normalisation, pooling, size.

mae_vitb, sup_vitb ...          a backbone of the registry (`known_backbones`)
timm:NAME                       any model of timm, with or without a pretrained tag
hf-hub:ORG/NAME                 a timm model on the Hugging Face hub
hf:ORG/NAME, hf:FOLDER          a model of transformers, on the hub or from `save_pretrained`
torchvision:NAME                a model of torchvision, with or without .WEIGHTS
open_clip:NAME/PRETRAINED       a tower of an OpenCLIP model
python:package.module:factory   what a function without arguments gives
"""

import difflib
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from burst import hub
from burst.backbone_spec import BackboneSpec, Triple, known_backbones
from burst.checkpoint import LoadReport, load_checkpoint
from burst.device import check_device
from burst.errors import CheckpointError, ImageError, TextError, UnknownName, some
from burst.loading.common import (
    CODE,
    RANDOM,
    LoadOptions,
    Weights,
    check_finite,
    check_reads,
    seeded,
)
from burst.loading.packaged import load_packaged
from burst.preprocess import Preprocess

if TYPE_CHECKING:
    from burst.text import Tokenizer

WEIGHT_SUFFIXES = {".pth", ".pt", ".bin", ".safetensors", ".npz", ".tar", ".ckpt"}
LIBRARIES = {
    "timm": "timm",
    "hf-hub": "timm",
    "hf": "transformers",
    "torchvision": "torchvision",
    "open_clip": "open_clip",
    "python": "python",
}
"""What stands before the colon of a name -> the file of `burst.loading` that loads it."""
AS_WEIGHTS = "give the file as weights (--weights FILE)"
NO_IMAGES = {
    "mean": (math.nan,) * 3,
    "std": (math.nan,) * 3,
    "image_size": (0, 0),
    "interpolation": "",
}
"""What a `Backbone` says of images if its model reads none."""


@dataclass(frozen=True)
class Backbone:
    """A frozen model and what its pretraining fixes.

    Attributes:
        name: as it was asked for.
        model: eval mode, float32, no parameter requires a gradient, no head where it can be left.
        pretraining: `mae`, `moco_v3`, `supervised`, `saliency`, `unknown` (not of the registry), or
            `random`.
        pooling: `avg` or `token`, see `BackboneSpec`.
        mean, std: of RGB values in 0..1, as in pretraining.
        image_size: (height, width) in pixels.
        interpolation, crop_fraction, crop_mode: how images are resized and cropped, see
            `Preprocess`.
        weights_source: a path, URL, `package:FILE` or `NAME==VERSION:FILE`; or `random`.
        weights_sha256: of the weight file, of several one after the other; None if random, or if
            a library keeps no file of it.
        report: how the file was read, and what of it was left aside; None if random or if the
            library does not tell.
        kind: what it reads: `image`, `text`, or another word, such as `video`, of which only the
            caller has batches. What is said of images has no meaning then.
        resized_from: (height, width) of the images of its pretraining, if it reads others here.
        assumed: whether it says nothing of its images, and ImageNet's mean and deviation stand in.
        tokenizer: makes its own tokenizer; None unless it reads text.
    """

    name: str
    model: nn.Module
    pretraining: str
    pooling: str
    mean: Triple
    std: Triple
    image_size: tuple[int, int]
    interpolation: str
    weights_source: str
    weights_sha256: str | None
    crop_fraction: float = 0.875
    crop_mode: str = "center"
    report: LoadReport | None = None
    kind: str = "image"
    resized_from: tuple[int, int] | None = None
    assumed: bool = False
    tokenizer: "Callable[[], Tokenizer] | None" = None

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes what the model reads; the one place that says so.

        Raises:
            ImageError: the model does not read images, or its images are not square.
            UnknownName: its interpolation or crop mode is not known.
        """
        if self.kind == "text":
            raise ImageError(f"{self.name} reads text, not images; give a text file (--text FILE)")
        if self.kind != "image":
            raise ImageError(
                f"{self.name} reads {self.what}, not images; "
                f"give `burst.survey` batches of your own"
            )
        height, width = self.image_size
        if height != width:
            raise ImageError(f"{self.name} reads {height} x {width} images; only squares are known")
        return Preprocess(
            image_size=height,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_fraction=self.crop_fraction,
            crop_mode=self.crop_mode,
        )

    @property
    def what(self) -> str:
        """What it reads, in words."""
        return {"image": "images", "video": "videos"}.get(self.kind, self.kind)

    def text_tokenizer(self) -> "Tokenizer":
        """How a text becomes what the model reads.

        Raises:
            TextError: the model does not read text, or has no tokenizer that can be had.
        """
        if self.kind != "text":
            raise TextError(f"{self.name} reads {self.what}, not text; give no text (--text)")
        if self.tokenizer is None:
            raise TextError(
                f"{self.name} has no tokenizer of its own; give `burst.survey` batches of your own"
            )
        return self.tokenizer()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its numbers should know of how it was loaded, a sentence each."""
        notes = []
        if self.resized_from:
            (height, width), (before, across) = self.image_size, self.resized_from
            notes.append(
                f"images are read at {height} x {width} pixels, not at the {before} x {across} of "
                f"the pretraining; position embeddings, if there are any, are resampled"
            )
        if self.assumed:
            notes.append(
                f"{self.name} does not say how its images are prepared; "
                f"ImageNet's mean and deviation are assumed, at {self.image_size[0]} pixels"
            )
        trained = self.report.trained_at if self.report else None
        if trained not in (None, *self.image_size) and not self.resized_from:
            code = self.name.startswith(CODE)
            remedy = "build the model so" if code else f"--image-size {trained} measures it so"
            notes.append(f"the file was trained at {trained} x {trained} pixels: {remedy}")
        if self.report and self.report.copies:
            named = [f"`{place}`" if place else "the plain names" for place in self.report.copies]
            notes.append(f"the file holds the model as {some(named)}; the first is loaded")
        if self.report and self.report.dropped:
            notes.append(f"left aside of the weights: {some(self.report.dropped)}")
        if self.report and self.report.kept:
            notes.append(f"not in the weights, left as made: {some(self.report.kept)}")
        for tensor, how in self.report.resampled.items() if self.report else ():
            notes.append(f"{tensor} is resampled {how}")
        return tuple(notes)


def load_backbone(
    name: str,
    weights: Weights = None,
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
    image_size: int | None = None,
    kind: str | None = None,
) -> Backbone:
    """A model with its weights, frozen, and how it was pretrained to read images or text.

    Args:
        name: see the top of this file. A timm tag that the registry has
            (`timm:vit_base_patch16_224.mae`) is that entry.
        weights: a checkpoint of any layout that `load_checkpoint` knows, or `"random"`. Without
            it the file in the package or a cache is used, and else downloaded.
        device: where the model goes; "auto" is the GPU, if there is one, and else the CPU.
        seed: of random weights; the global random state stays as it was.
        image_size: side in pixels of the images to read, where it is not the pretraining's;
            position embeddings are resampled as the model's library does it.
        kind: "image" or "text": which tower of a model that has both; without it, of images.

    Raises:
        UnknownName: no such name; the nearest are offered.
        CheckpointError: the weights cannot be had, read or fitted; see `load_checkpoint`.
        ImageError: RGB images of this size cannot be read, or what prepares them cannot be told.
        UnsupportedModel: an encoder with a decoder, quantised weights, or an adapter alone (`hf:`);
            a function that gives no model (`python:`).
        BurstError: the name's library is not installed; PyTorch does not have the device here.
    """
    place = check_device(str(device))
    options = LoadOptions(weights=weights, seed=seed, image_size=image_size, kind=kind)
    with torch.device("cpu"):  # whatever the default device: seeds are of the CPU's generator
        found = _load(name, options)
    model = found.model.eval().requires_grad_(False).to(place, torch.float32)
    check_finite(name, model)
    found = replace(found, name=name, model=model)
    if found.resized_from and found.report and (side := found.report.trained_at):
        trained = side, side
        found = replace(found, resized_from=None if trained == found.image_size else trained)
    doubtful = image_size or found.resized_from or found.assumed or name.startswith(CODE)
    if found.kind == "image" and doubtful:
        check_reads(name, model, found.image_size)
    if found.kind != "image" and image_size:
        raise ImageError(f"{name} reads {found.what}, not images; give no image size")
    return found


def _load(name: str, options: LoadOptions) -> Backbone:
    library, _, rest = name.partition(":")
    if library in LIBRARIES and rest:
        loader = importlib.import_module(f"burst.loading.{LIBRARIES[library]}")
        if library == "timm" and (spec := _tagged(loader.current_name(rest))):
            return _load_registered(spec, options)
        loaded: Backbone = loader.load(name, options)
        return loaded
    for spec in known_backbones():
        if spec.name == name:
            return _load_registered(spec, options)
    raise _unknown(name)


def _tagged(name: str) -> BackboneSpec | None:
    """The registry's entry of a name of timm's with its tag."""
    return next((spec for spec in known_backbones() if spec.timm_tag == name), None)


def _unknown(name: str) -> CheckpointError | UnknownName:
    if Path(name).suffix in WEIGHT_SUFFIXES or Path(name).is_file():
        return CheckpointError(
            f"{name} is a file, expected the name of a model; name its architecture "
            f"(mae_vitb, timm:NAME) and give the file as weights (--model NAME --weights {name})"
        )
    from burst.loading.timm import nearest_names

    registered = [spec.name for spec in known_backbones()]
    near = difflib.get_close_matches(name, registered, n=3, cutoff=0.5) or nearest_names(name)
    libraries = ", ".join(f"{library}:NAME" for library in LIBRARIES)
    return UnknownName("backbone", name, near or registered, f"(or {libraries})")


def _load_registered(spec: BackboneSpec, options: LoadOptions) -> Backbone:
    model, source, report = _weighted(spec, options)
    found = Backbone(
        name=spec.name,
        model=model,
        pretraining=RANDOM if source == RANDOM else spec.pretraining,
        pooling=spec.pooling,
        mean=spec.mean,
        std=spec.std,
        image_size=(spec.image_size, spec.image_size),
        interpolation=spec.interpolation,
        crop_fraction=spec.crop_fraction,
        crop_mode=spec.crop_mode,
        weights_source=source,
        weights_sha256=report.sha256 if report else None,
        report=report,
    )
    if options.image_size in (None, spec.image_size):
        return found
    from burst.loading.timm import resize

    resize(spec.name, model, options.image_size)
    size = (options.image_size, options.image_size)
    return replace(found, image_size=size, resized_from=found.image_size)


def _weighted(spec: BackboneSpec, options: LoadOptions) -> tuple[nn.Module, str, LoadReport | None]:
    if options.weights == RANDOM:
        with seeded(options.seed):
            return spec.build(), RANDOM, None
    with torch.device("meta"):  # no memory and no time for values that the file replaces
        model = spec.build()
    if options.weights is not None:
        if options.image_size is not None:  # first: positions of this size are taken as they are
            from burst.loading.timm import resize

            resize(spec.name, model, options.image_size)
        return model, str(options.weights), load_checkpoint(model, options.weights)
    if spec.distribution:
        return model, spec.source, load_packaged(model, spec)
    report = load_checkpoint(model, spec.on_disk() or _fetch(spec))
    if spec.sha256 and report.sha256 != spec.sha256:
        raise CheckpointError(
            f"{report.path} has SHA-256 {report.sha256}, expected {spec.sha256}; "
            f"install the package anew"
        )
    return model, spec.source, report


def _fetch(spec: BackboneSpec) -> Path:
    if spec.link is None:
        raise CheckpointError(
            f"{spec.package_file}, the weights of {spec.name}, is missing from the package; "
            f"install the package anew, or give the file as weights (--weights FILE)"
        )
    with hub.explained(spec.name, f"get {spec.link} elsewhere and {AS_WEIGHTS}"):
        if spec.timm_tag:
            return hub.fetch_hub_file(f"timm/{spec.timm_tag}")
        return hub.fetch_url(spec.link, md5=spec.md5)
