"""Where a token comes from: which image, which place in its picture, or which prefix token.

patch_grid     how many rows and columns of patches a model cuts an image into
Origins        batches, and while each is worked on, whose tokens the attention reads
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from burst.adapters import AttentionBlock, find_blocks, prefix_tokens_of, unwrap
from burst.adapters.blocks import CLASS_TOKENS
from burst.adapters.registry import full_name
from burst.errors import UnsupportedModel
from burst.padding import Padding
from burst.stream import NamedStream, Stream, as_call, batch_size

PATCH = "patch"
TOKEN = "token"
_DISTILLATION = ("dist_token", "distillation_token")
_REORDERED = ("timm.models.nest:",)  # blocks of patches one after the other, all as one sequence


@dataclass(frozen=True)
class PatchGrid:
    """Patches of an image in rows from above, each from the left.

    Attributes:
        rows, columns: how many there are.
        height, width: of one, in pixels.
    """

    rows: int
    columns: int
    height: int
    width: int

    @property
    def count(self) -> int:
        """How many patches there are."""
        return self.rows * self.columns


def patch_grid(model: nn.Module, height: int, width: int) -> PatchGrid | None:
    """How a model cuts an image of so many pixels into patches; None if it does not say.

    That is known of models whose first convolution has the stride of its kernel, and of timm's
    whose `patch_embed` has a `grid_size`.
    """
    root = unwrap(model)
    first = next((module for module in root.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.kernel_size == first.stride and max(first.stride) > 1:
        down, across = (int(side) for side in first.stride)
        return PatchGrid(height // down, width // across, down, across)
    embedding = getattr(root, "patch_embed", None)
    grid = getattr(embedding, "grid_size", None)
    if grid and tuple(getattr(embedding, "img_size", None) or ()) == (height, width):
        rows, columns = grid
        return PatchGrid(rows, columns, height // rows, width // columns)
    return None


def prefix_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """What the tokens in front of the patches are: class, distillation, register 0, register 1 ...

    They stand in this order in all models that are known. One whose parameters' names tell nothing
    is called "prefix 0" and so on.
    """
    parameters = [name for name, _ in unwrap(model).named_parameters()]

    def has(hints: Sequence[str]) -> bool:
        return any(hint in name for name in parameters for hint in hints)

    hints = {"class": CLASS_TOKENS, "distillation": _DISTILLATION}
    names = [what for what, of_these in hints.items() if has(of_these)][:count]
    rest = "register" if has(("reg_token", "register")) else "prefix"
    return (*names, *(f"{rest} {i}" for i in range(count - len(names))))


@dataclass(frozen=True, eq=False)
class Places:
    """Of each row that a block reads, whose token it is.

    Attributes:
        item: (n,) int64 on the CPU, its image or sequence: a number within the batch.
        token: (n,) int64 on the CPU, its place among the tokens of that item, prefix included;
            where attention is windowed, window after window.
        grid: where the tokens behind the prefix are the patches of the picture, in order.
    """

    item: Tensor
    token: Tensor
    grid: PatchGrid | None


class Origins(Stream):
    """A stream that knows, while a batch of it is worked on, where its tokens come from.

    Args:
        stream: what is read.
        model: what reads it.
        blocks: those whose tokens are read.
        tokens: as for `read_tokens`.

    Attributes:
        first: the number of the batch's first item: how many there were before.
        names: of the batch's items; None where the stream knows no names.
        prefixes: how many tokens stand before the patches of each block; 0 where nobody knows.
    """

    def __init__(
        self, stream: Stream, model: nn.Module, blocks: Sequence[AttentionBlock], tokens: str
    ) -> None:
        self.source, self.skipped = stream.source, stream.skipped
        self.first = 0
        self.names: Sequence[str] | None = None
        self.prefixes = _prefixes(model, blocks)
        self._stream, self._model = stream, unwrap(model)
        self._blocks = {block.index: block for block in blocks}
        self._patches_only = tokens == PATCH
        self._batch: Any = None
        self._padding: Padding | None = None

    @property
    def count(self) -> int:
        """As of the stream."""
        return self._stream.count

    @property
    def batches(self) -> int:
        """As of the stream."""
        return self._stream.batches

    @property
    def record(self) -> dict[str, Any]:
        """As of the stream."""
        return self._stream.record

    def shard(self, rank: int, world_size: int) -> "Origins":
        """The part for one of `world_size` processes."""
        part = self._stream.shard(rank, world_size)
        tokens = PATCH if self._patches_only else "all"
        return Origins(part, self._model, list(self._blocks.values()), tokens)

    def check_some_read(self, skipped: Sequence[tuple[str, str]]) -> None:
        """As of the stream."""
        self._stream.check_some_read(skipped)

    def __iter__(self) -> Iterator[Any]:
        self.first = 0
        waiting = iter(self._stream.batch_names if isinstance(self._stream, NamedStream) else ())
        for batch in self._stream:
            self._batch, self._padding, self.names = batch, None, None
            if isinstance(self._stream, NamedStream):
                self.names = _read_of(waiting, self._stream.skipped)
            yield batch
            self.first += batch_size(batch)

    @property
    def pixels(self) -> Tensor | None:
        """The batch as the model reads it, (B, 3, H, W), where it is images."""
        inputs = self._batch[0] if isinstance(self._batch, tuple | list) else self._batch
        if isinstance(inputs, Mapping):
            inputs = inputs.get("pixel_values")
        return inputs if isinstance(inputs, Tensor) and inputs.ndim == 4 else None

    def places(self, block: int, x: Tensor) -> Places:
        """Where the tokens come from that `read_tokens` has just handed over for a block."""
        prefix = self.prefixes[block] if self._patches_only else 0
        if x.ndim == 2:  # those that are not padding
            if self._padding is None:
                self._padding = as_call(self._batch, self._model).padding
            keep = self._padding.keep(self._blocks[block].name)
            assert keep is not None  # or x would be (B, N, d)
            kept = keep[:, prefix:].nonzero().cpu()
            return Places(kept[:, 0], kept[:, 1] + prefix, None)
        items, windows = batch_size(self._batch), len(x) / max(batch_size(self._batch), 1)
        if windows != int(windows) or not windows:
            kind = type(self._blocks[block].attention).__name__
            raise UnsupportedModel(
                f"{self._blocks[block].name} ({kind}) reads {len(x)} sequences of {items} images: "
                "whose tokens they are is not known; leave this block out"
            )
        each = int(windows) * x.shape[1]
        grid = self._grid(block, x.shape[1] + prefix) if windows == 1 else None
        return Places(
            torch.arange(items, device="cpu").repeat_interleave(each),
            torch.arange(prefix, prefix + each, device="cpu").repeat(items),
            grid,
        )

    def _grid(self, block: int, tokens: int) -> PatchGrid | None:
        if self.pixels is None or is_reordered(self._blocks[block]):
            return None
        grid = patch_grid(self._model, *self.pixels.shape[-2:])
        return grid if grid and grid.count == tokens - self.prefixes[block] else None


def is_reordered(block: AttentionBlock) -> bool:
    """Whether a block reads patches in another order than they have in the picture."""
    return full_name(type(block.attention)).startswith(_REORDERED)


def _prefixes(model: nn.Module, blocks: Sequence[AttentionBlock]) -> dict[int, int]:
    root = unwrap(model)
    try:
        return prefix_tokens_of(root, blocks or find_blocks(root))
    except UnsupportedModel:  # nobody knows: then no token is called a patch either
        return {block.index: 0 for block in blocks}


def _read_of(waiting: Iterator[Sequence[str]], skipped: Sequence[tuple[str, str]]) -> Sequence[str]:
    """The names of the next batch that was read: one of bad items alone was not."""
    bad = {name for name, _ in skipped}
    for names in waiting:
        if kept := [name for name in names if name not in bad]:
            return kept
    return []
