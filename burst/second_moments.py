"""Tokens, batch by batch -> count, mean and scatter of each block: all that whitening needs.

SecondMoments    of one sample of tokens; adds
TokenMoments     of the blocks of a backbone, with what they were measured on; adds, saved and read
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from burst.errors import (
    BurstError,
    CheckpointError,
    OutputError,
    ShapeError,
)
from burst.files import write_atomically
from burst.fingerprint import model_differences
from burst.float64 import to_float64
from burst.weightfile import DAMAGE, read_stored

KIND = "burst second moments 1"


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """Count, mean and scatter of n tokens in d dimensions, in float64.

    Addition merges two samples about their own means (Chan, Golub and LeVeque 1983,
    doi 10.1080/00031305.1983.10483115), so that nothing cancels however far the mean is from zero.

    Attributes:
        count: n.
        mean: (d,).
        scatter: (d, d), sum over the tokens of (x - mean)(x - mean)^T.
        positions: (N, d), the mean over images of the token at each position; the authors' recipe
            needs it and nothing else does. None where the images did not agree on N.

    Raises:
        ShapeError: on adding samples of different d.
    """

    count: int
    mean: Tensor
    scatter: Tensor
    positions: Tensor | None

    @classmethod
    def of(cls, tokens: Tensor) -> "SecondMoments":
        """Moments of tokens (B, N, d), or (n, d) without positions; of any floating dtype.

        On the CPU where that device has no float64 (Apple's MPS): each batch is copied there.

        Raises:
            ShapeError: another shape, or no tokens.
        """
        if tokens.ndim not in (2, 3) or not tokens.numel():
            raise ShapeError(f"tokens {tuple(tokens.shape)} must be (B, N, d) or (n, d), none 0")
        x = to_float64(tokens.detach())
        rows = x.reshape(-1, x.shape[-1])
        mean = rows.mean(dim=0)
        centred = rows - mean
        # What rounding left in the mean is taken out of the scatter too: exact for equal tokens.
        rest = centred.mean(dim=0)
        scatter = centred.mT @ centred - len(centred) * torch.outer(rest, rest)
        positions = x.mean(dim=0) if x.ndim == 3 else None
        return cls(len(centred), mean + rest, scatter, positions)

    @property
    def dim(self) -> int:
        """d: the width of a token."""
        return self.mean.shape[0]

    def covariance(self, *, centred: bool = True) -> Tensor:
        """(d, d) float64: the population's covariance (divided by n), or E[x x^T]."""
        covariance = self.scatter / self.count
        return covariance if centred else covariance + torch.outer(self.mean, self.mean)

    def is_finite(self) -> bool:
        """Whether every token was finite: one that was not spoils the mean."""
        return bool(torch.isfinite(self.mean).all())

    def to(self, device: str | torch.device) -> "SecondMoments":
        """A copy on another device, which must have float64, or on the same."""
        parts = {"mean": self.mean, "scatter": self.scatter, "positions": self.positions}
        copies: dict[str, Any] = {
            name: part if part is None else part.to(device, copy=True)
            for name, part in parts.items()
        }
        return replace(self, **copies)

    def __add__(self, other: "SecondMoments") -> "SecondMoments":
        if self.dim != other.dim:
            raise ShapeError(f"moments in {self.dim} and in {other.dim} dimensions do not add")
        count = self.count + other.count
        share = other.count / count
        delta = other.mean - self.mean
        return SecondMoments(
            count,
            self.mean + share * delta,
            self.scatter + other.scatter + self.count * share * torch.outer(delta, delta),
            _between(self.positions, other.positions, share),
        )


def _between(one: Tensor | None, other: Tensor | None, share: float) -> Tensor | None:
    if one is None or other is None or one.shape != other.shape:
        return None
    return one + share * (other - one)


@dataclass(frozen=True, eq=False)
class TokenMoments:
    """Second moments of what each block's attention reads, and of which model and images.

    Attributes:
        blocks: moments by block index, in rising order, on the CPU.
        model: the backbone's name.
        weights_sha256: of its weight file, if it has one.
        tokens: "all" or "patch".
        images: how many images, or sequences of a text, were read.
        sources: what image streams were read, each once: their `record`. In files that were written
            before it said more, `source` and `fingerprint` alone.
        bad_images: (name, reason) of each image that was left out.
        qk_sha256: the model's fingerprint, see `burst.fingerprint`; None in files that were written
            before there was one, which are told by name and weight file.

    Raises:
        BurstError: on adding moments of another model, other blocks or another kind of tokens.
    """

    blocks: Mapping[int, SecondMoments]
    model: str
    weights_sha256: str | None
    tokens: str
    images: int
    sources: tuple[Mapping[str, Any], ...]
    bad_images: tuple[tuple[str, str], ...] = ()
    qk_sha256: str | None = None

    def __add__(self, other: "TokenMoments") -> "TokenMoments":
        differing = model_differences(vars(self), vars(other))
        if self.tokens != other.tokens:
            differing.append(f"tokens {self.tokens}, not {other.tokens}")
        if differing:
            raise BurstError(f"moments that differ do not add: {'; '.join(differing)}")
        if self.blocks.keys() != other.blocks.keys():
            raise BurstError(f"blocks {[*self.blocks]} and {[*other.blocks]} do not add")
        return replace(
            self,
            blocks={block: one + other.blocks[block] for block, one in self.blocks.items()},
            images=self.images + other.images,
            sources=self.sources + tuple(s for s in other.sources if s not in self.sources),
            bad_images=self.bad_images + other.bad_images,
        )

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, whole or not at all.

        Raises:
            OutputError: another suffix, a place that cannot be written, or a full disk.
        """
        if Path(path).suffix != ".safetensors":
            raise OutputError(f"cannot write {path}: moments are saved as .safetensors")
        tensors: dict[str, Tensor] = {}
        for block, one in self.blocks.items():
            parts = {"mean": one.mean, "scatter": one.scatter, "positions": one.positions}
            tensors |= {f"{block}/{k}": v.contiguous() for k, v in parts.items() if v is not None}
        about = {name: value for name, value in vars(self).items() if name != "blocks"}
        about |= {"counts": {block: one.count for block, one in self.blocks.items()}}
        with write_atomically(path) as temporary:
            # save_file tells a full disk as something else than an OSError
            temporary.write_bytes(save(tensors, {"kind": KIND, "about": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> "TokenMoments":
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing, damaged, or a file of another kind.
        """
        _, tensors = read_stored(Path(path))
        about = _metadata(Path(path))
        try:
            counts, sources = about.pop("counts"), about.pop("sources")
            blocks = {int(block): _read(tensors, block, n) for block, n in counts.items()}
            bad = tuple((name, why) for name, why in about.pop("bad_images"))
            return cls(blocks, sources=tuple(map(_source, sources)), bad_images=bad, **about)
        except (ShapeError, *DAMAGE) as error:
            raise CheckpointError(f"{path} does not hold second moments: {error}") from error


def _metadata(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            found: dict[str, str] = file.metadata() or {}
        if found["kind"] == KIND:
            return dict(json.loads(found["about"]))
    except DAMAGE:
        pass
    raise CheckpointError(f"{path} does not hold second moments; expected what `save` wrote")


def _source(entry: list[str] | dict[str, Any]) -> dict[str, Any]:
    if isinstance(entry, list):  # as it was written before it said more
        return dict(zip(("source", "fingerprint"), entry, strict=True))
    return entry


def _read(tensors: Mapping[str, Tensor], block: str, count: int) -> SecondMoments:
    mean, scatter = tensors[f"{block}/mean"], tensors[f"{block}/scatter"]
    positions = tensors.get(f"{block}/positions")
    if scatter.shape != (len(mean), len(mean)):
        raise ShapeError(f"mean {tuple(mean.shape)} and scatter {tuple(scatter.shape)}")
    found = SecondMoments(count, mean, scatter, positions)
    if not (found.is_finite() and torch.isfinite(scatter).all()):
        raise ShapeError(f"block {block} is not finite")
    return found
