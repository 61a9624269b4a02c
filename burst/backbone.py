"""A name -> a frozen timm model, and what its pretraining fixes: normalisation, pooling, size.

mae_vitb, sup_vitb ...   a backbone of the registry (`known_backbones`)
timm:NAME                any model of timm, with or without a pretrained tag
hf-hub:ORG/NAME          a timm model on the Hugging Face hub
"""

import difflib
import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from burst import _hub
from burst._timm import (
    HUB,
    RANDOM,
    TIMM,
    ForeignModel,
    Weights,
    current_name,
    is_known,
    known_names,
    load_foreign,
    seeded,
)
from burst.checkpoint import LoadReport, load_checkpoint
from burst.errors import BurstError, CheckpointError, ImageError, UnknownName
from burst.preprocess import Preprocess

HERE = Path(__file__).parent
PRETRAININGS = ("mae", "moco_v3", "supervised", "unknown")
POOLINGS = ("avg", "token")
WEIGHT_SUFFIXES = {".pth", ".pt", ".bin", ".safetensors", ".npz", ".tar", ".ckpt"}
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What is known of a named backbone: a plain pre-norm ViT with a class token.

    `pooling` is how a head reads it: `token`, the class token after the final norm, or `avg`, the
    mean of all tokens but the class token and then the final norm. `parameters` counts the encoder
    alone. `sha256` is of the file that comes with the package; `md5`, perhaps only its beginning,
    of the file at `url`. `shared_file_name` says that other weights are published under the same
    file name. Sizes are in pixels; `mean` and `std` are for RGB values in 0..1. `crop_fraction` and
    `crop_mode` are how its published evaluation crops, see `burst.preprocess.Preprocess`.

    Raises:
        BurstError: fields that contradict each other.
    """

    name: str
    pretraining: str
    pooling: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    parameters: int
    mean: Triple
    std: Triple
    crop_fraction: float
    licence: str
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    package_file: str | None = None
    timm_tag: str | None = None
    url: str | None = None
    sha256: str | None = None
    md5: str | None = None
    shared_file_name: bool = False
    notes: str = ""

    def __post_init__(self) -> None:
        if self.pretraining not in PRETRAININGS:
            raise UnknownName("pretraining", self.pretraining, PRETRAININGS)
        if self.pooling not in POOLINGS:
            raise UnknownName("pooling", self.pooling, POOLINGS)
        sizes = (self.image_size, self.patch_size, self.width, self.depth, self.heads)
        checks = {
            "sizes must be positive": min(*sizes, self.parameters) > 0,
            "patch_size must divide image_size": not self.image_size % max(self.patch_size, 1),
            "heads must divide width": not self.width % max(self.heads, 1),
            "mean and std must have three values": len(self.mean) == len(self.std) == 3,
            "std must be positive": min(self.std) > 0,
            "a package_file, timm_tag or url is needed": bool(self.source),
            "sha256 and md5 must be hexadecimal": all(
                re.fullmatch("[0-9a-f]+", digest) for digest in (self.sha256, self.md5) if digest
            ),
        }
        wrong = [rule for rule, holds in checks.items() if not holds]
        if wrong:
            raise BurstError(f"backbone {self.name!r}: {'; '.join(wrong)}")

    @property
    def source(self) -> str:
        """Where the weights come from: `package:FILE`, `timm:TAG` or a URL."""
        if self.package_file:
            return f"package:{self.package_file}"
        return f"timm:{self.timm_tag}" if self.timm_tag else self.url or ""

    @property
    def link(self) -> str | None:
        """A file to download by hand and give as `weights`; None if it comes with the package."""
        if self.url or not self.timm_tag:
            return self.url
        return _hub.hub_link(f"timm/{self.timm_tag}")

    def on_disk(self) -> Path | None:
        """The weight file, in the package or the hub's or torch's cache; no connection is made."""
        places = [HERE / "weights" / self.package_file] if self.package_file else []
        if self.timm_tag and (cached := _hub.cached_hub_file(f"timm/{self.timm_tag}")):
            places.append(cached)
        if self.url:
            places.append(_hub.url_cache(self.url))
            if not self.shared_file_name:
                places.append(_hub.torch_cache() / self.url.rpartition("/")[2])
        return next((place for place in places if place.is_file()), None)

    def build(self) -> nn.Module:
        """The timm VisionTransformer, untrained and without a head.

        Pooling is timm's `token` whatever `pooling` says: with `avg`, timm would put a fresh norm
        behind the mean and leave out the pretrained one.
        """
        from timm.models.vision_transformer import VisionTransformer

        model: nn.Module = VisionTransformer(
            img_size=self.image_size,
            patch_size=self.patch_size,
            embed_dim=self.width,
            depth=self.depth,
            num_heads=self.heads,
            num_classes=0,
            global_pool="token",
        )
        return model


@dataclass(frozen=True)
class Backbone:
    """A frozen model and what its pretraining fixes.

    Attributes:
        name: as it was asked for.
        model: the timm model: eval mode, float32, no parameter requires a gradient, no head.
        pretraining: `mae`, `moco_v3`, `supervised`, `unknown` (a foreign timm model), or `random`.
        pooling: `avg` or `token`, see `BackboneSpec`.
        mean, std: of RGB values in 0..1, as in pretraining.
        image_size: (height, width) in pixels.
        interpolation, crop_fraction, crop_mode: how images are resized and cropped, see
            `Preprocess`.
        weights_source: a path, URL or `package:FILE`; or `random`.
        weights_sha256: of the weight file; None if random, or if timm keeps no file of it.
        spec: the entry of the registry; None for a foreign timm model.
        report: how the file was read; None if random or if timm read it.
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
    spec: BackboneSpec | None = None
    report: LoadReport | None = None

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes what the model reads; the one place that says so.

        Raises:
            ImageError: the model's images are not square.
            UnknownName: its interpolation or crop mode is not known.
        """
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


@functools.cache
def known_backbones() -> tuple[BackboneSpec, ...]:
    """The registry, in its order; read from `backbones.toml`."""
    entries = tomllib.loads((HERE / "backbones.toml").read_text(encoding="utf-8"))["backbone"]
    return tuple(
        BackboneSpec(**entry | {"mean": tuple(entry["mean"]), "std": tuple(entry["std"])})
        for entry in entries
    )


def find_backbone(name: str) -> BackboneSpec:
    """The entry of the registry with this name.

    Raises:
        UnknownName: no entry has it; the nearest names are offered.
    """
    for spec in known_backbones():
        if spec.name == name:
            return spec
    raise UnknownName("backbone", name, [spec.name for spec in known_backbones()])


def load_backbone(
    name: str,
    weights: Weights = None,
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Backbone:
    """A backbone with its weights, frozen, for images of the size that it was pretrained with.

    Args:
        name: of the registry, `timm:NAME` or `hf-hub:ORG/NAME`. A timm tag that the registry has
            (`timm:vit_base_patch16_224.mae`) is that entry.
        weights: a checkpoint of any layout that `load_checkpoint` knows, or `"random"`. Without
            it the file in the package or a cache is used, and else downloaded.
        device: where the model goes.
        seed: of random weights; the global random state stays as it was.

    Raises:
        UnknownName: no such name; the nearest are offered.
        CheckpointError: the weights cannot be had, read or fitted; see `load_checkpoint`.
    """
    resolved = current_name(name)
    spec = _registered(resolved)
    if spec is None:
        return _foreign_backbone(name, load_foreign(resolved, weights, seed), torch.device(device))
    model, source, report = _weighted(spec, weights, seed)
    return Backbone(
        name=name,
        model=_frozen(model, torch.device(device)),
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
        spec=spec,
        report=report,
    )


def _registered(name: str) -> BackboneSpec | None:
    """The registry's entry, or None for a foreign model that timm can be asked for."""
    for spec in known_backbones():
        if name == spec.name or (spec.timm_tag and name == TIMM + spec.timm_tag):
            return spec
    on_the_hub = name.startswith(HUB) and name != HUB
    if on_the_hub or (name.startswith(TIMM) and is_known(name.removeprefix(TIMM))):
        return None
    if Path(name).suffix in WEIGHT_SUFFIXES or Path(name).is_file():
        raise CheckpointError(
            f"{name} is a file, expected the name of a backbone; name its architecture "
            f"(--model mae_vitb, --model timm:NAME) and give the file with --weights"
        )
    registered = [spec.name for spec in known_backbones()]
    near = _nearest(name, registered) or _nearest(name, known_names())
    raise UnknownName("backbone", name, near or registered, "(timm:NAME takes any timm model)")


def _nearest(name: str, known: list[str]) -> list[str]:
    # Chosen here, because a list of timm's three thousand names would be no help.
    return difflib.get_close_matches(name, known, n=3, cutoff=0.5)


def _weighted(
    spec: BackboneSpec, weights: Weights, seed: int
) -> tuple[nn.Module, str, LoadReport | None]:
    if weights == RANDOM:
        with seeded(seed):
            return spec.build(), RANDOM, None
    with torch.device("meta"):  # no memory and no time for values that the file replaces
        model = spec.build()
    if weights is not None:
        return model, str(weights), load_checkpoint(model, weights)
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
            f"install the package anew, or give the file with --weights FILE"
        )
    with _hub.explained(spec.name, f"get {spec.link} elsewhere and give it with --weights FILE"):
        if spec.timm_tag:
            return _hub.fetch_hub_file(f"timm/{spec.timm_tag}")
        return _hub.fetch_url(spec.link, md5=spec.md5)


def _foreign_backbone(name: str, foreign: ForeignModel, device: torch.device) -> Backbone:
    config = foreign.config
    size = getattr(getattr(foreign.model, "patch_embed", None), "img_size", None)
    return Backbone(
        name=name,
        model=_frozen(foreign.model, device),
        pretraining=RANDOM if foreign.source == RANDOM else "unknown",
        pooling="token" if getattr(foreign.model, "global_pool", None) == "token" else "avg",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        image_size=tuple(size or config["input_size"][-2:]),
        interpolation=config["interpolation"],
        crop_fraction=config["crop_pct"],
        crop_mode=config["crop_mode"],
        weights_source=foreign.source,
        weights_sha256=foreign.sha256,
        report=foreign.report,
    )


def _frozen(model: nn.Module, device: torch.device) -> nn.Module:
    return model.eval().requires_grad_(False).to(device=device, dtype=torch.float32)
