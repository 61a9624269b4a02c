"""How the Triton kernels are cut, and in which order the cuts are tried: the tiles, named once.

What a compiler makes of a cut depends on its version, and what a GPU bears on the GPU. So a cut is
a wish: for each way of counting the first of a short list is taken that compiles, that the GPU can
start and that keeps all in registers (`burst.kernels._trial`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from burst.axis import Axis, FloatAxis
from burst.kernels._ptx import WINDOW_BINS

COUNTERS = ("shared", "registers", "scratch")  # see `_triton_counts`
MOST_IN_REGISTERS = 2048  # counters; 8 in each of 256 threads, and 64 while a tile is counted
MOST_BINS = 1 << 21  # regular ones whose place float32 finds to within one, see `_scaling.grid`


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut; for `histogram`, m rows of n consecutive entries, and k unused.

    `split` halves a tile along m and n until a thread has 4 entries: how often, and along which,
    follows from where the tensor cores leave the product (a wrong choice costs time only).
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    programs: int  # that a multiprocessor runs at once
    split: tuple[int, int]
    counter: str = "shared"

    @property
    def split_columns(self) -> int:
        """How often to halve along n for sums over columns: until a thread has 16 entries."""
        return min(max(sum(self.split) - 2, 0), self.split[1])

    def __str__(self) -> str:
        size = f"{self.m} x {self.n}" + (f" x {self.k}" if self.k > 1 else "")
        return f"{self.counter} counters, tile {size}, {self.warps} warps, {self.stages} stages"


# With warp-group products (compute capability 9). At k = 768 the tensor cores need 2.25 clocks an
# entry for tf32x3, which holds two parts of each operand: a narrow tile keeps all in registers.
# tf32 and bf16 have a third and a sixth of that time, in which the L2 cache has to deliver
# 4 (1 / m + 1 / n) k bytes an entry: a wide tile.
HOPPER = {
    "ieee": Tile(128, 64, 16, 8, 2, 1, (2, 1)),
    "tf32x3": Tile(128, 64, 32, 8, 3, 1, (0, 3)),
    "tf32": Tile(128, 128, 32, 8, 3, 1, (0, 4)),
    "bf16": Tile(128, 128, 32, 8, 3, 1, (0, 4)),
    "16-bit": Tile(128, 128, 64, 8, 3, 1, (0, 4)),  # both operands, whatever the precision
}
# Elsewhere; 99 KiB of shared memory suffice. With 3 stages tf32x3 has more than the 48 KiB that
# Triton must ask for, and so gets room for the counters too. It is a chain of three products, and
# for a chain the compiler lays all warps along m, 16 rows each: 8 would multiply 64 rows twice.
COMMON = {
    "ieee": Tile(64, 64, 16, 8, 3, 1, (1, 1)),
    "tf32x3": Tile(128, 64, 32, 8, 3, 1, (0, 3)),
    "tf32": Tile(64, 128, 32, 8, 2, 1, (1, 2)),
    "bf16": Tile(64, 128, 32, 8, 2, 1, (1, 2)),
    "16-bit": Tile(64, 128, 32, 8, 2, 1, (1, 2)),
}
# For operands with gaps, odd sizes or two types, addresses and masks take registers too: smaller
# tiles where the others would spill.
SMALLER = (
    Tile(128, 64, 32, 8, 3, 1, (0, 3)),
    Tile(128, 64, 32, 8, 2, 1, (0, 3)),
    Tile(64, 64, 32, 8, 4, 1, (1, 1)),
    Tile(64, 64, 32, 8, 2, 1, (1, 1)),
    Tile(64, 64, 16, 8, 2, 1, (1, 1)),
    Tile(64, 32, 16, 4, 2, 1, (1, 1)),
    Tile(32, 32, 16, 4, 1, 1, (0, 1)),
)
# `tl.histogram` unrolls over a thread's entries, of which there are few here.
REGISTERS = (
    Tile(64, 64, 32, 8, 2, 1, (1, 1), "registers"),
    Tile(64, 32, 32, 8, 2, 1, (1, 0), "registers"),
    Tile(32, 32, 16, 8, 2, 1, (0, 0), "registers"),
)
STREAM = (
    Tile(8, 1024, 1, 8, 1, 2, (3, 0)),
    Tile(4, 1024, 1, 8, 1, 2, (2, 0)),
    Tile(2, 1024, 1, 8, 1, 2, (1, 0)),
)
STREAM_REGISTERS = (
    Tile(4, 1024, 1, 8, 1, 1, (2, 0), "registers"),
    Tile(2, 1024, 1, 8, 1, 1, (1, 0), "registers"),
)


def window(axis: Axis, counter: str) -> int:
    """How many counters a program has on the chip.

    In registers a power of two: 8 octaves a sign, or all slots and one more.
    """
    if counter != "registers":
        return WINDOW_BINS
    least = 16 << axis.mantissa_bits if isinstance(axis, FloatAxis) else axis.bins + 3
    return min(MOST_IN_REGISTERS, max(256, 1 << (least - 1).bit_length()))


def is_covered(axis: Axis, counter: str) -> bool:
    """Whether no entry can lie outside the window."""
    spare = counter == "registers"  # one place is nobody's
    return not isinstance(axis, FloatAxis) and axis.bins + 2 + spare <= window(axis, counter)


def counters_for(axis: Axis) -> tuple[str, ...]:
    """The counters that can count on an axis, in the order in which they are believed to be fast.

    A float axis of so many bits that a window of registers holds fewer than 4 octaves a sign is not
    counted there, nor a regular axis with slots outside the window anywhere but in memory.
    """
    if not isinstance(axis, FloatAxis):
        return tuple(one for one in COUNTERS if one == "scratch" or is_covered(axis, one))
    narrow = window(axis, "registers") // 2 >> axis.mantissa_bits < 4
    return tuple(one for one in COUNTERS if one != "registers" or not narrow)


def stream_tiles(axis: Axis) -> Iterator[Tile]:
    """What `histogram` may be cut into, counter by counter, the best first."""
    for counter in counters_for(axis):
        for tile in STREAM_REGISTERS if counter == "registers" else STREAM:
            yield replace(tile, counter=counter)


def product_tiles(
    a: Tensor, b: Tensor, precision: str, axis: Axis, capability: tuple[int, int]
) -> Iterator[Tile]:
    """What a @ b may be cut into, counter by counter, the best first."""
    alike = a.dtype == b.dtype and a.dtype in (torch.float16, torch.bfloat16)
    first = (HOPPER if capability[0] == 9 else COMMON)["16-bit" if alike else precision]
    fewer = tuple(replace(first, stages=n) for n in range(first.stages - 1, 1, -1))
    for counter in counters_for(axis):
        for tile in REGISTERS if counter == "registers" else (first, *fewer, *SMALLER):
            yield replace(tile, counter=counter)
