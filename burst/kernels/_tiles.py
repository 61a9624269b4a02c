"""How the Triton kernels are cut for a device, and why: the tiles, named once."""

from dataclasses import dataclass

import torch
from torch import Tensor

# What a program may have of shared memory without asking for more, which Triton does only where its
# own share exceeds this: not on account of the counters of `_ptx`, of which it does not know.
PLAIN_SHARED_MEMORY = 48 << 10


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
    registers: int | None = None  # most a thread may have; None leaves it to the compiler


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
# Elsewhere; 99 KiB of shared memory suffice.
COMMON = {
    "ieee": Tile(64, 64, 16, 8, 3, 1, (1, 1)),
    "tf32x3": Tile(64, 64, 32, 8, 2, 1, (1, 1)),
    "tf32": Tile(64, 128, 32, 8, 2, 1, (1, 2)),
    "bf16": Tile(64, 128, 32, 8, 2, 1, (1, 2)),
    "16-bit": Tile(64, 128, 32, 8, 2, 1, (1, 2)),
}
# For operands with gaps, odd sizes or two types, addresses and masks take registers too: smaller
# tiles where the others would spill.
HOPPER_AWKWARD = HOPPER | {
    "tf32": HOPPER["tf32x3"],
    "bf16": HOPPER["tf32x3"],
    "16-bit": Tile(128, 64, 64, 8, 3, 1, (0, 3)),
}
COMMON_AWKWARD = COMMON | {"tf32x3": Tile(64, 64, 16, 8, 2, 1, (1, 1))}
STREAM = Tile(8, 1024, 1, 8, 1, 2, (3, 0))


def product_tile(a: Tensor, b: Tensor, precision: str, capability: tuple[int, int]) -> Tile:
    """The tile for a @ b on a device of this compute capability."""
    alike = a.dtype == b.dtype
    kind = "16-bit" if alike and a.dtype in (torch.float16, torch.bfloat16) else precision
    along_k = a.stride(1) == b.stride(0) == 1
    across = (a.stride(0), b.stride(1), a.shape[1])
    awkward = not (alike and along_k) or any(step % 64 for step in across)
    if capability[0] == 9:
        return (HOPPER_AWKWARD if awkward else HOPPER)[kind]
    return (COMMON_AWKWARD if awkward else COMMON)[kind]
