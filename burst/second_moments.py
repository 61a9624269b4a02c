"""Tokens, batch by batch -> count, mean and scatter of each block: all that whitening needs.

SecondMoments    of one sample of tokens; adds
TokenMoments     of the blocks of a backbone, with what they were measured on; adds, saved and read
collect_moments  one pass over images -> TokenMoments
split_images     a stream -> one to fit on and one held out
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from burst._weightfile import DAMAGE, read_stored
from burst.adapters import select_blocks
from burst.backbone import Backbone
from burst.distributed import rank_and_size, together
from burst.errors import (
    BurstError,
    CheckpointError,
    EmptyResult,
    OutputError,
    ShapeError,
    check_known,
)
from burst.files import write_atomically
from burst.fingerprint import model_differences, qk_sha256
from burst.float64 import to_float64
from burst.forward import TOKENS, Progress, read_tokens
from burst.images import ImageStream

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
        """Moments of tokens (B, N, d), of any floating dtype, on their device.

        On the CPU where that device has no float64 (Apple's MPS): each batch is copied there.

        Raises:
            ShapeError: another shape, or no tokens.
        """
        if tokens.ndim != 3 or not tokens.numel():
            raise ShapeError(f"tokens {tuple(tokens.shape)} must be (B, N, d), none of them 0")
        x = to_float64(tokens.detach())
        mean = x.mean(dim=(0, 1))
        centred = (x - mean).flatten(0, 1)
        # What rounding left in the mean is taken out of the scatter too: exact for equal tokens.
        rest = centred.mean(dim=0)
        scatter = centred.mT @ centred - len(centred) * torch.outer(rest, rest)
        return cls(len(centred), mean + rest, scatter, x.mean(dim=0))

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
        images: how many images were read.
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


def collect_moments(
    backbone: Backbone,
    images: ImageStream,
    *,
    blocks: Iterable[int] | None = None,
    tokens: str = "all",
    progress: Progress | None = None,
) -> TokenMoments:
    """Second moments of what the blocks' attention reads, in one pass over the images.

    Each block's tokens are added up inside its forward hook, on the device of the model (see
    `SecondMoments.of`), so memory does not grow with the number of images. In a process group each
    process takes its share of the batches and all get the whole, the same up to float64 rounding
    however many there are.

    Args:
        backbone: from `load_backbone`.
        images: from `images_for`.
        blocks: indices as in `find_blocks`; None for all.
        tokens: "all", or "patch" to leave class, distillation and register tokens out.
        progress: called as progress(batches done, batches in all).

    Raises:
        BurstError: a block index out of range; tokens that are not finite, with their block.
        UnknownName: another kind of tokens.
        UnsupportedModel: see `capture`.
        EmptyResult: no image was read.
        ImageError: see `ImageStream`.
    """
    check_known("kind of tokens", tokens, TOKENS)
    chosen = {block.index: block.name for block in select_blocks(backbone.model, blocks)}
    found: dict[int, SecondMoments] = {}

    def add(block: int, x: Tensor) -> None:
        new = SecondMoments.of(x)
        if not new.is_finite():
            raise BurstError(f"{chosen[block]}: the tokens of {backbone.name} are not finite")
        found[block] = found[block] + new if block in found else new

    mine = images.shard(*rank_and_size())

    def read() -> TokenMoments:
        read_tokens(backbone.model, mine, chosen, add, tokens=tokens, progress=progress)
        return TokenMoments(
            {block: found[block].to("cpu") for block in sorted(found)},
            backbone.name,
            backbone.weights_sha256,
            tokens,
            mine.count - len(mine.skipped),
            (images.record,),
            tuple(mine.skipped),
            qk_sha256(backbone.model),
        )

    return _merged(images, together(read))


def _merged(images: ImageStream, parts: Sequence[TokenMoments]) -> TokenMoments:
    """The moments of all processes, some of which may not have read an image."""
    bad = tuple(one for part in parts for one in part.bad_images)
    full = [part for part in parts if part.blocks]
    if not full:
        images.check_some_read(bad)
        raise EmptyResult(f"no image of {images.source} was read, so there is nothing to whiten")
    whole = full[0]
    for one in full[1:]:
        whole = whole + one
    return replace(whole, bad_images=bad)


def split_images(images: ImageStream, share: float) -> tuple[ImageStream, ImageStream]:
    """Two streams over a stream's images: one to fit on, one held out.

    The images are in random order, so every k-th is held out, k = round(1 / share). This goes by an
    image's place in the stream: it does not depend on batches or processes. The images of a batch
    that stay are read together as before.

    Args:
        images: a whole stream, not a shard.
        share: of the images to hold out, up to one half; 0 for none.

    Returns:
        The stream to fit on, which is never empty, and the one held out, which is where there are
        fewer than k images.

    Raises:
        BurstError: share is outside 0..1/2.
    """
    if not 0 <= share <= 0.5:
        raise BurstError(f"the share of images to hold out is {share}; it must lie in 0..0.5")
    every = round(1 / share) if share else images.count + 1
    fitting: list[list[str]] = []
    held: list[str] = []
    place = 0
    for batch in images.batch_names:
        last = [(place + i) % every == every - 1 for i in range(len(batch))]
        fitting.append([name for name, out in zip(batch, last, strict=True) if not out])
        held += [name for name, out in zip(batch, last, strict=True) if out]
        place += len(batch)
    size = max(len(batch) for batch in images.batch_names)
    batches = [held[i : i + size] for i in range(0, len(held), size)]
    return images.of_batches([batch for batch in fitting if batch]), images.of_batches(batches)
