"""What no prompt changes, computed once into a file that every process maps into its memory.

    $BPT_CACHE/NAME-KEY/rows.npy    (variants, images, ...) float32; bfloat16 as its bits, uint16

That is the tokens in front of the first prompted block. A folder's name tells of which weights
and images they are and how they were computed.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bpt.cache import cache_root, check_room, made_once, to_disk
from bpt.dataset import FileOpener, Split
from bpt.errors import Interrupted
from bpt.pixels import Kept
from bpt.signals import Signals, resume_command
from burst.backbone import Backbone
from burst.downloads import in_bytes
from burst.files import make_folder_atomically
from burst.progress import Say

VERSION = 1  # of the file's format, and of how rows are computed
ROWS = "rows.npy"
STORED: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.bfloat16: np.dtype(np.uint16),
}
Part = tuple[int, Tensor]  # where rows begin, counted over all variants, and the rows


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be there.

    Attributes:
        what: for people, such as "tokens in front of block 8".
        name: what the folder's name begins with.
        facts: all that the rows depend on; plain data.
        variants, images: rows there are of each other.
        row: shape of one.
        dtype: torch.float32 or torch.bfloat16.
    """

    what: str
    name: str
    facts: Any
    variants: int
    images: int
    row: tuple[int, ...]
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array in the file."""
        return (self.variants, self.images, *self.row)

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * STORED[self.dtype].itemsize

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        facts = [VERSION, torch.__version__, timm.__version__, self.facts]
        text = json.dumps([*facts, self.shape, str(self.dtype)])
        key = hashlib.sha256(text.encode()).hexdigest()
        return cache_root() / f"{self.name[:40]}-{key[:32]}"

    def __str__(self) -> str:
        variants = f" x {self.variants} views" if self.variants > 1 else ""
        row = " tokens x ".join(map(str, self.row))
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.images:,} images{variants} x {row} {dtype}: {in_bytes(self.size)}"


class Rows:
    """The rows that were kept.

    Args:
        wanted: what they must be.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or holds something else.
    """

    def __init__(self, wanted: Wanted) -> None:
        values = np.lib.format.open_memmap(wanted.folder / ROWS, mode="r")
        if values.shape != wanted.shape or values.dtype != STORED[wanted.dtype]:
            raise ValueError(f"{values.dtype} {values.shape}, expected {wanted.shape}")
        self._flat = np.asarray(values).reshape(-1, *wanted.row)
        self._images, self._dtype = wanted.images, wanted.dtype

    def take(self, variants: int | NDArray[np.int64], images: NDArray[np.int64]) -> Tensor:
        """A copy of the rows of these variants of these images."""
        rows = np.take(self._flat, variants * self._images + images, axis=0)
        return torch.from_numpy(rows).view(self._dtype)


def stored_rows(wanted: Wanted, compute: Callable[[], Generator[Part]], *, say: Say) -> Rows | None:
    """The rows, computed now if they are not there yet; by one process.

    Args:
        wanted: which.
        compute: gives them, part by part, each row once.
        say: called with a line now and then.

    Returns:
        None where they cannot be kept: the folder cannot be written, or there is no room. One
        line says so.

    Raises:
        Interrupted: by SIGINT or SIGTERM; nothing is left behind.
        BurstError: of `compute`; nothing is left behind.
    """

    def make() -> None:
        check_room(wanted.size, wanted.folder.parent, str(wanted))
        say(f"{wanted.what}, once: {wanted} into {wanted.folder}")
        _build(wanted, compute)

    return made_once(
        wanted.folder,
        lambda: Rows(wanted),
        make,
        doing=f"computes {wanted.what} into",
        otherwise=f"{wanted.what} are computed again each time",
        say=say,
    )


def weights_digest(model: nn.Module, *, blocks: int) -> str:
    """SHA-256 in hex of a ViT up to so many of its blocks: its tensors, and how it is built."""
    heads = [getattr(block.attn, "num_heads", None) for block in model.blocks]  # type: ignore[union-attr]
    found = hashlib.sha256(f"{model!r}{heads}".encode())
    later = tuple(f"blocks.{block}." for block in range(blocks, len(model.blocks)))  # type: ignore[arg-type]
    for name, value in model.state_dict().items():
        if not name.startswith(later):
            found.update(f"{name}\0{tuple(value.shape)}\0{value.dtype}\0".encode())
            found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def images_digest(split: Split, backbone: Backbone) -> str:
    """SHA-256 in hex of a split's images and of how they are prepared.

    Of files it tells by name, size and time whether they changed; of others by their pixels.
    """
    facts = [asdict(backbone.preprocess), PIL.__version__, split.names]
    found = hashlib.sha256(json.dumps(facts).encode())
    if isinstance(split.opener, FileOpener):
        found.update(Kept(preprocess=backbone.preprocess).key(split).encode())
    else:
        for name in split.names:
            pixels = np.asarray(split.opener(name))
            found.update(f"{pixels.shape}".encode() + pixels.tobytes())
    return found.hexdigest()


def _build(wanted: Wanted, compute: Callable[[], Generator[Part]]) -> None:
    """Make the folder, up to a signal.

    Raises:
        OSError: it cannot be written.
        Interrupted: see `stored_rows`.
    """
    stored, header = STORED[wanted.dtype], np.lib.format.write_array_header_2_0
    about = {"descr": stored.str, "fortran_order": False, "shape": wanted.shape}
    each = math.prod(wanted.row) * stored.itemsize
    with (
        Signals() as signals,
        make_folder_atomically(wanted.folder) as part,
        contextlib.closing(compute()) as found,
        (part / ROWS).open("wb") as stream,
    ):
        header(stream, about)
        start = stream.tell()
        for first, rows in found:
            stream.seek(start + first * each)
            stream.write(_bits(rows.to(wanted.dtype).cpu()).data)
            if signals.received is not None:
                raise Interrupted(signals.received, resume_command())
        to_disk(stream)


def _bits(rows: Tensor) -> NDArray[Any]:
    """As they are stored."""
    rows = rows.contiguous()
    return rows.view(torch.uint16).numpy() if rows.dtype is torch.bfloat16 else rows.numpy()
