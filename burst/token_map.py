"""Where in a picture a response is bursty: the share of each token and of each dimension.

The measure is the fourth power. Excess kurtosis is n sum(y^4) / sum(y^2)^2 - 3 for entries of mean
zero, so a token's share of sum(y^4) is its share of the kurtosis; shares of tokens add up to one,
and so do those of dimensions. Shares of the squares hardly differ between tokens, as a norm has
made them nearly equally long; and a share of the largest 1 % of entries would be zero for most.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from burst.adapters import AttentionBlock, measurable_blocks, warn_of_omissions
from burst.backbone import Backbone
from burst.errors import BurstError, ImageError, UnsupportedModel
from burst.files import all_of
from burst.fingerprint import identity, subject_of
from burst.float64 import to_float64
from burst.forward import read_tokens
from burst.images import SAMPLE
from burst.interaction import interaction
from burst.patches import Origins, PatchGrid, prefix_names
from burst.precision import plain_float32
from burst.progress import Progress
from burst.projection import projection
from burst.stream import as_stream
from burst.survey import images_for

Floats = NDArray[np.float64]
COLUMNS = ("image", "block", "token", "kind", "row", "column", "share", "norm")


@dataclass(frozen=True, eq=False)
class BlockMap:
    """What one block's response Y = A X^T to one picture is made of.

    Attributes:
        kurtosis: excess kurtosis of all entries of Y, 0 for a Gaussian; NaN if they are all equal.
        share: (N,) float64, of each token in the sum of fourth powers, prefix tokens first. They
            add up to 1; NaN where Y is 0.
        norm: (N,) float64, Euclidean, of each token as the attention reads it.
        dimensions: (d,) float64, share of each dimension (row of Y) in the sum of fourth powers,
            likewise.
    """

    kurtosis: float
    share: Floats
    norm: Floats
    dimensions: Floats

    @property
    def times_even(self) -> Floats:
        """(N,) how many times its even part, 1 / N, each token holds."""
        return self.share * len(self.share)


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Where one picture is bursty.

    Attributes:
        image: its name where the stream knows names, else its number.
        pixels: (H, W, 3) uint8, the picture as the model sees it, resized and cropped.
        grid: of its patches.
        prefix: names of the tokens in front of the patches.
        blocks: by index, in rising order.
    """

    image: str | int
    pixels: NDArray[np.uint8]
    grid: PatchGrid
    prefix: tuple[str, ...]
    blocks: Mapping[int, BlockMap]

    def patches(self, values: Floats) -> Floats:
        """(rows, columns) of values of all tokens, (N,): those of the patches, as they lie."""
        return values[len(self.prefix) :].reshape(self.grid.rows, self.grid.columns)

    def table(self) -> pd.DataFrame:
        """A row a block and token: the columns `COLUMNS`; row and column are missing for prefixes.

        `share` is of the sum of fourth powers, `norm` of the token as the attention reads it.
        """
        prefix = len(self.prefix)
        token = np.arange(prefix + self.grid.count)
        patch, isnt = token - prefix, token < prefix
        place = {
            "image": self.image,
            "token": token,
            "kind": [*self.prefix, *["patch"] * self.grid.count],
            "row": pd.arrays.IntegerArray(patch // self.grid.columns, isnt.copy()),
            "column": pd.arrays.IntegerArray(patch % self.grid.columns, isnt.copy()),
        }
        parts = [
            pd.DataFrame({**place, "block": block, "share": one.share, "norm": one.norm})
            for block, one in self.blocks.items()
        ]
        return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def token_energy(
    model: nn.Module | Backbone,
    batches: Iterable[Any],
    *,
    blocks: Iterable[int] | None = None,
    progress: Progress | None = None,
) -> list[TokenMap]:
    """Which tokens and which dimensions make each block's response to a picture bursty.

    Args:
        model: any that cuts images into a grid of patches and reads them in order, or a backbone.
        batches: images, as for `burst.survey`; a few: one process reads them all.
        blocks: indices as in `find_blocks`; None for all that see the whole picture.
        progress: called as progress(batches done, batches in all, or 0 if that is not known).

    Returns:
        One map an image, in the order in which they were read. What is not a backbone does not say
        how its images were normalised: their pixels are then stretched from black to white.

    Raises:
        UnsupportedModel: the model reads no images; it has no grid of patches, or its attention
            sees windows of them; or see `burst.survey`.
        BurstError: a block index out of range; tokens that are not finite.
        ImageError: see `ImageStream`.

    Warns:
        OmittedTermWarning: once, if the scores have terms that W_q W_k^T leaves out.
    """
    _check_reads_images(model)
    subject = subject_of(model)
    found, _, omitted = measurable_blocks(subject.model, blocks)
    warn_of_omissions(subject.name, omitted)
    origins = Origins(as_stream(batches), subject.model, found, "all")
    mapper = _Mapper(found, origins, model)
    read_tokens(subject.model, origins, mapper.blocks, mapper.take, progress=progress)
    return mapper.maps(strict=blocks is not None)


@dataclass(frozen=True)
class PhotoMaps:
    """Maps of photographs, and how they were made.

    Attributes:
        maps: one a photograph, in the order in which they were given; of a folder's by name.
        bad_images: (name, reason) of each image of a folder or an archive that was left out.
        record: model and images, as plain data.
    """

    maps: tuple[TokenMap, ...]
    bad_images: tuple[tuple[str, str], ...]
    record: dict[str, Any] = field(repr=False)


def map_photos(
    backbone: Backbone,
    photos: str | Path | Sequence[str | Path],
    *,
    blocks: Iterable[int] | None = None,
    progress: Progress | None = None,
) -> PhotoMaps:
    """`token_energy` of photographs, prepared as the backbone's images are.

    Args:
        backbone: from `load_backbone`.
        photos: one or several, each an image file, or a folder or archive of some, or `sample`:
            four crops of the photographs that come with scikit-learn.
        blocks, progress: as for `token_energy`.

    Raises:
        ImageError: a photograph is missing or no image; or a folder holds none that can be read; or
            there is no photograph.
        UnsupportedModel, BurstError: see `token_energy`.

    Warns:
        OmittedTermWarning: as `token_energy`.
    """
    _check_reads_images(backbone)
    if not (places := all_of(photos)):
        raise ImageError("no photograph to map: give an image file")
    streams = [
        images_for(backbone, one, num_images=4 if one == SAMPLE else None, skip_bad=True)
        for one in dict.fromkeys(places)
    ]
    total, done = sum(stream.batches for stream in streams), count(start=1)
    maps: list[tuple[str, TokenMap]] = []
    for stream in streams:
        step = (lambda *_: progress(next(done), total)) if progress else None
        found = token_energy(backbone, stream, blocks=blocks, progress=step)
        maps += [(stream.source, one) for one in sorted(found, key=lambda one: str(one.image))]
    bad = tuple(one for stream in streams for one in stream.skipped)
    record = {**identity(backbone), "images": [stream.record for stream in streams]}
    return PhotoMaps(_told_apart(maps), bad, record)


def _told_apart(maps: Sequence[tuple[str, TokenMap]]) -> tuple[TokenMap, ...]:
    """Maps with the photographs' names; of equal ones with where they come from."""
    times = Counter(one.image for _, one in maps)
    return tuple(
        one if times[one.image] == 1 else replace(one, image=_path(source, str(one.image)))
        for source, one in maps
    )


def _path(source: str, name: str) -> str:
    return source if Path(source).name == name else f"{source}/{name}"


def _check_reads_images(model: nn.Module | Backbone) -> None:
    if isinstance(model, Backbone) and model.kind != "image":
        raise UnsupportedModel(
            f"{model.name} reads {model.what}, so there is no picture to map; choose a model that "
            "reads images"
        )


class _Mapper:
    """Takes tokens block by block, and keeps what is made of them for each picture."""

    def __init__(
        self, blocks: Sequence[AttentionBlock], origins: Origins, model: nn.Module | Backbone
    ) -> None:
        self.blocks = {block.index: block for block in blocks}
        self._origins, self._model = origins, model
        self._matrices = {
            block.index: interaction(*projection(block.attention, name=block.name).whole())
            for block in blocks
        }
        self._pictures: list[_Picture] = []
        self._without_grid: dict[int, str] = {}

    def take(self, block: int, x: Tensor) -> None:
        """What one block reads of the pictures that are being worked on."""
        name = self.blocks[block].name
        grid = self._origins.places(block, x).grid
        if grid is None:
            self._without_grid[block] = f"{name} reads {_shape(x)}"
            return
        for picture, tokens in zip(self._pictures_of(grid), x, strict=True):
            if not tokens.isfinite().all():
                raise BurstError(f"{name}: the tokens of {picture.image} are not finite")
            picture.blocks[block] = _block_map(self._matrices[block], tokens.float())
            picture.prefix = len(tokens) - grid.count

    def maps(self, *, strict: bool) -> list[TokenMap]:
        """One a picture; without blocks that have no grid, which are an error if strict."""
        mapped = any(picture.blocks for picture in self._pictures)
        if self._without_grid and (strict or not mapped):
            what = next(iter(self._without_grid.values()))
            raise UnsupportedModel(
                f"{what}, which are no grid of patches over the whole picture (windowed or pooled "
                "attention, or no image), so there is no map of it; choose a plain ViT"
            )
        model = subject_of(self._model).model
        return [picture.map(prefix_names(model, picture.prefix)) for picture in self._pictures]

    def _pictures_of(self, grid: PatchGrid) -> list["_Picture"]:
        """Those of the batch: made when its first block is read."""
        first, pixels = self._origins.first, self._origins.pixels
        assert pixels is not None  # or there would be no grid
        if len(self._pictures) == first:
            names = self._origins.names or range(first, first + len(pixels))
            seen = (_seen(image, self._model) for image in pixels)
            self._pictures += map(partial(_Picture, grid), names, seen)
        return self._pictures[first:]


@dataclass(eq=False)
class _Picture:
    """A map that is being made."""

    grid: PatchGrid
    image: str | int
    pixels: NDArray[np.uint8]
    blocks: dict[int, BlockMap] = field(default_factory=dict)
    prefix: int = 0

    def map(self, prefix: tuple[str, ...]) -> TokenMap:
        """What it is in the end."""
        blocks = {block: self.blocks[block] for block in sorted(self.blocks)}
        return TokenMap(self.image, self.pixels, self.grid, prefix, blocks)


def _block_map(a: Tensor, x: Tensor) -> BlockMap:
    """Of one picture's tokens x (N, d), in float64 but for the product."""
    with plain_float32(x.device):
        y = to_float64(a @ x.mT)
    squares = y.square()
    fourth = squares.square()
    whole = float(fourth.sum())
    centred = y - y.mean()
    variance = float(centred.square().mean())
    kurtosis = float(centred.pow(4).mean()) / variance**2 - 3.0 if variance else math.nan

    def shares(axis: int) -> Floats:
        sums = fourth.sum(dim=axis).cpu().numpy()
        return sums / whole if whole else np.full(len(sums), math.nan)

    norm = to_float64(x).norm(dim=1).cpu().numpy()
    return BlockMap(kurtosis, shares(0), norm, shares(1))


def _seen(image: Tensor, model: nn.Module | Backbone) -> NDArray[np.uint8]:
    """(H, W, 3) of a picture that was normalised; of an unknown model, from its least to its
    highest value."""
    pixels = image.detach().float().cpu()
    if isinstance(model, Backbone) and len(pixels) == 3:
        mean, std = (pixels.new_tensor(one)[:, None, None] for one in (model.mean, model.std))
        pixels = pixels * std + mean
    else:
        low, high = pixels.aminmax()
        pixels = (pixels - low) / (high - low).clamp(min=1e-12)
    shown = (255 * pixels).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return np.broadcast_to(shown[..., :3], (*shown.shape[:2], 3))


def _shape(x: Tensor) -> str:
    return f"{x.shape[-2]} tokens at a time" if x.ndim == 3 else "tokens beside padding"
