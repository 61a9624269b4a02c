"""What a compiled kernel takes of a GPU, and whether the GPU can start it and runs it well."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from burst.errors import BackendError
from burst.kernels._ptx import WINDOW_BINS
from burst.kernels._tiles import Tile

# What a program may have of shared memory without asking for more. Triton asks only where its own
# share exceeds this, and it does not know of the counters of `_ptx`.
PLAIN_SHARED_MEMORY = 48 << 10
RESERVED = 1 << 10  # bytes of shared memory that a program does not get, from 9.0 on

Built: TypeAlias = Any  # what `JITFunction.warmup` returns


class Misfit(BackendError):
    """A compiled kernel that the device cannot start, or that does not keep all in registers."""


@dataclass(frozen=True)
class Limits:
    """What a program may have: bytes of shared memory, registers of all its threads together."""

    shared_memory: int
    registers: int

    @classmethod
    def of(cls, device: torch.device) -> "Limits":
        """Those of a GPU, as its driver says."""
        from triton.runtime.driver import driver

        index = torch.cuda.current_device() if device.index is None else device.index
        facts = driver.active.utils.get_device_properties(index)
        return cls(facts["max_shared_mem"], facts["max_num_regs"])


@dataclass(frozen=True)
class Usage:
    """What a kernel takes.

    Attributes:
        own: bytes of shared memory that Triton knows of.
        counters: bytes of shared memory that `_ptx` declares beside.
        registers: a thread.
        spilled: bytes of a thread's registers that are kept in memory.
        threads: a program.
    """

    own: int
    counters: int
    registers: int
    spilled: int
    threads: int

    @classmethod
    def of(cls, built: Built, tile: Tile) -> "Usage":
        """Read a kernel from `JITFunction.warmup`, which is loaded onto the current device."""
        built._init_handles()  # registers are known then, as in Triton's tutorials
        counters = 4 * WINDOW_BINS + RESERVED if tile.counter == "shared" else 0
        threads = 32 * tile.warps
        return cls(built.metadata.shared, counters, built.n_regs, 4 * built.n_spills, threads)

    def problem(self, limits: Limits) -> str | None:
        """What keeps it from running, or from running well, in words; None if nothing does."""
        whole = self.own + self.counters
        if whole > limits.shared_memory:
            return f"takes {whole} bytes of shared memory of {limits.shared_memory}"
        if self.counters and self.own <= PLAIN_SHARED_MEMORY < whole:
            return f"takes {self.own} + {self.counters} bytes of shared memory, and asks for none"
        if self.registers * self.threads > limits.registers:
            return f"takes {self.registers} registers in each of {self.threads} threads"
        if self.spilled:
            return f"spills {self.spilled} bytes of a thread"
        return None


def misfit(built: Built, tile: Tile, limits: Limits) -> None:
    """Refuse a kernel that the device cannot run well.

    Raises:
        Misfit: it says why.
    """
    problem = Usage.of(built, tile).problem(limits)
    if problem:
        raise Misfit(problem)
