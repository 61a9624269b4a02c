"""What a trial runs: a compiled kernel, in words, and operands that compile to the same code.

A variant is all that the compiled kernel depends on: operand types, alignment and strides, k, the
kind of axis, the precision, and whether margins are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from burst.axis import Axis, FloatAxis
from burst.decomposition import Margins
from burst.histogram import Histogram
from burst.kernels import reference
from burst.kernels._tiles import Tile, is_covered, window

if TYPE_CHECKING:
    from burst.kernels._triton import Accumulator

MOST_K = 2048  # of a product that stands for another
TIMED = 1 << 23  # entries of a product, and a quarter of those of a tensor

Draw = Callable[[int], Tensor]  # how many numbers -> float32 on the CPU


@dataclass(frozen=True)
class Run:
    """A counting of drawn numbers, which can be launched again."""

    accumulator: "Accumulator"
    launch: Callable[[], None]

    def collect(self) -> Histogram:
        """Launch it and read what was counted."""
        self.launch()
        return self.accumulator.result()

    def margins(self) -> Margins:
        """Read what it knows of rows and columns after that."""
        return self.accumulator.margins()


@dataclass(frozen=True)
class Variant:
    """A compiled kernel, in words, and how it is run on data of one's own.

    Attributes:
        name: all that it depends on.
        run: `run(cut, draw, timed, programs)` -> what counts the drawn numbers in that cut.
        expect: `expect(draw)` -> what the reference counts of the same.
        expect_margins: the same of the moments of rows and columns; None if they are not kept.
    """

    name: str
    run: Callable[..., Run]
    expect: Callable[[Draw], Histogram]
    expect_margins: Callable[[Draw], Margins] | None = None

    @classmethod
    def of_stream(cls, piece: Tensor, axis: Axis) -> "Variant":
        """The kernel that counts entries that lie like those of `piece`, which is flat."""
        from burst.kernels import _triton

        def case(draw: Draw, timed: bool) -> Tensor:
            return alike(piece, (4 * TIMED if timed else 60_000,), draw)

        def run(cut: Tile, draw: Draw, timed: bool = False, programs: int | None = None) -> Run:
            x = case(draw, timed)
            found = _triton.Accumulator(axis, x.device, programs=programs, strict=True)
            return Run(found, lambda: found.add(x, cut=cut))

        def expect(draw: Draw) -> Histogram:
            return reference.histogram(case(draw, False).cpu(), axis)

        size = " long" if piece.numel() >= 2**31 else ""
        return cls(f"histogram of {_kind(piece)}{size} on {_kind_of_axis(axis)}", run, expect)

    @classmethod
    def of_product(
        cls, a: Tensor, b: Tensor, axis: Axis, precision: str, *, margins: bool = False
    ) -> "Variant":
        """The kernel that counts a product like a @ b, and with `margins` sums rows and columns."""
        from burst.kernels import _triton

        k = a.shape[1] if a.shape[1] <= MOST_K else MOST_K + a.shape[1] % 128

        def case(draw: Draw, timed: bool) -> tuple[Tensor, Tensor]:
            m, n = (1024, max(1024, min(TIMED // 1024, 2**25 // k))) if timed else (144, 1000)
            return alike(a, (m, k), draw), alike(b, (k, n), draw)

        def run(cut: Tile, draw: Draw, timed: bool = False, programs: int | None = None) -> Run:
            left, right = case(draw, timed)
            found = _triton.Accumulator(
                axis, left.device, margins=margins, programs=programs, strict=True
            )
            return Run(found, lambda: found.add_product(left, right, precision=precision, cut=cut))

        def expect(draw: Draw) -> Histogram:
            left, right = case(draw, False)
            return reference.matmul_histogram(left.cpu(), right.cpu(), axis)

        def expect_margins(draw: Draw) -> Margins:
            left, right = case(draw, False)
            found = reference.Accumulator(axis, torch.device("cpu"), margins=True)
            found.add_product(left.cpu(), right.cpu(), precision=precision)
            return found.margins()

        depth = f"k {1 << (a.shape[1] - 1).bit_length()}, a multiple of {_power_in(a.shape[1])}"
        operands = f"{_kind(a)} by {_kind(b)}, {depth}"
        name = f"{precision} product of {operands} on {_kind_of_axis(axis)}"
        if margins:
            return cls(f"{name} with margins", run, expect, expect_margins)
        return cls(name, run, expect)


def alike(x: Tensor, shape: tuple[int, ...], draw: Draw) -> Tensor:
    """Drawn numbers in a tensor of this shape that compiles to the same code as `x`.

    That is, of the same type, alignment and kind of strides: 0, 1, multiples of 16, or others.
    """
    strides = _strides(x, shape)
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    first = 1 if x.data_ptr() % 16 else 0
    numbers = draw(first + extent).to(x.device, x.dtype)
    return numbers[first:].as_strided(shape, strides)


def _strides(x: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest strides of the same kind, in the same order."""
    found = [0] * len(shape)
    room = 1
    for i in sorted(range(len(shape)), key=x.stride):
        step = x.stride(i)
        if step > 1:
            step = -(-max(room, 2) // 16) * 16 + (step % 16 != 0)
        found[i] = step
        room = max(room, step * shape[i])
    return tuple(found)


def _kind(x: Tensor) -> str:
    """What the compiler knows of an operand."""
    steps = " ".join(_kind_of_step(step) for step in x.stride()) if x.ndim == 2 else ""
    aligned = "" if x.data_ptr() % 16 == 0 else " unaligned"
    return f"{str(x.dtype).removeprefix('torch.')}{aligned}" + (f" ({steps})" if steps else "")


def _kind_of_step(step: int) -> str:
    if step <= 1:
        return str(step)
    return ("16" if step % 16 == 0 else "any") + ("L" if step >= 2**31 else "")


def _power_in(k: int) -> int:
    """The largest power of two, up to 64, that divides k: no mask for blocks of that size."""
    return min(k & -k, 64)


def _kind_of_axis(axis: Axis) -> str:
    if isinstance(axis, FloatAxis):
        return f"a float axis of {axis.mantissa_bits} bits"
    if is_covered(axis, "registers"):
        return f"up to {window(axis, 'registers') - 3} regular bins"
    return "regular bins in the window" if is_covered(axis, "shared") else "many regular bins"


def integers(count: int) -> Tensor:
    """Among them zeros, and not so many numbers that a sum of products is inexact in bfloat16."""
    generator = torch.Generator("cpu").manual_seed(0)  # the caller's stay as they are
    return torch.randint(-3, 4, (count,), generator=generator, device="cpu").float()


def bursty(count: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    normal = torch.randn(1 << 16, generator=generator, device="cpu")
    spread = torch.randn(1 << 16, generator=generator, device="cpu").mul(2).exp()
    return (normal * spread).clamp(-100, 100).repeat(-(-count // (1 << 16)))[:count]


def constant(count: int) -> Tensor:
    return torch.full((count,), 0.3, device="cpu")
