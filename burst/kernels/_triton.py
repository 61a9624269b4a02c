"""Launches the Triton kernels of `_triton_kernels` and turns their sums into a `Histogram`.

What a launch needs beside the operands: a cut (`_tiles`), tried on this GPU (`_trial`); a shift and
a scale for the moments, from a probe of the data; the axis as float32 numbers (`_scaling`); and
zeroed counters. Nothing of the product's size is held.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from burst.axis import Axis, FloatAxis, RegularAxis
from burst.histogram import Histogram, NonFinite
from burst.kernels import _trial
from burst.kernels import _triton_kernels as kernels
from burst.kernels._ptx import increment
from burst.kernels._resources import Limits, misfit
from burst.kernels._scaling import better_probe, central_moments, check_axis, grid, probe
from burst.kernels._tiles import Tile, is_covered, product_tiles, stream_tiles, window
from burst.kernels._variant import Variant
from burst.moments import Moments

NAME = "triton"
INTERPRETED = not isinstance(kernels.histogram_kernel, triton.runtime.JITFunction)
PROBE = 256  # rows and columns of the product, or 256^2 entries, that shift and scale come from
COPY = 1 << 26  # most entries copied at once of a tensor that has gaps
READABLE = (torch.float32, torch.float16, torch.bfloat16)  # others are copied to float32
INTERPRETED_PROGRAMS = 3
ATTEMPTS = 4  # at shift and scale; the second is right unless a sample misled

Kernel: TypeAlias = Any  # what `triton.jit` makes
Sums = tuple[NDArray[np.float64], NDArray[np.int64]]  # (programs, 6) and (programs, 3)


def histogram(x: Tensor, axis: Axis, *, tile: Tile | None = None) -> Histogram:
    """Count the entries of `x` in one pass over memory; with a tile of one's own it is not tried.

    Raises:
        BackendError: see `_trial.fastest`, `_scaling.check_axis`.
    """
    check_axis(axis)
    x = _readable(x)
    pieces = [piece for piece in _pieces(x) if piece.numel()] or [x.reshape(-1)]
    return stream(pieces, axis, tile or _stream_tile(pieces[0], axis)).collect()


def matmul_histogram(
    a: Tensor, b: Tensor, axis: Axis, *, precision: str, tile: Tile | None = None
) -> Histogram:
    """Count the entries of a @ b, whose tiles exist in registers only; `tile` as in `histogram`.

    Raises:
        BackendError: see `histogram`.
    """
    check_axis(axis)
    a, b, precision = _operands(a, b, precision)
    return product(a, b, axis, precision, tile or _product_tile(a, b, axis, precision)).collect()


def stream(
    pieces: list[Tensor],
    axis: Axis,
    cut: Tile,
    *,
    strict: bool = False,
    programs: int | None = None,
) -> "Measurement":
    """The counting of flat tensors without gaps, not yet begun; the rest as in `Measurement`."""
    first = pieces[0]
    sample = first[:: max(1, first.numel() // PROBE**2)][: PROBE**2]

    def launch(run: "Measurement", piece: Tensor, sums: Tensor, rare: Tensor) -> None:
        run.start(
            kernels.histogram_kernel, piece, run.probe, run.grid, run.scratch, run.counts, sums,
            rare, piece.numel(), axis.bins, ROWS=cut.m, COLUMNS=cut.n, SPLIT_M=cut.split[0],
        )  # fmt: skip

    entries = [piece.numel() for piece in pieces]
    padded = [triton.cdiv(count, cut.m * cut.n) * cut.m * cut.n for count in entries]
    size = sum(entries), sum(padded)
    return Measurement(
        launch, pieces, size, probe(sample), axis, cut, strict=strict, programs=programs
    )


def product(
    a: Tensor,
    b: Tensor,
    axis: Axis,
    precision: str,
    cut: Tile,
    *,
    strict: bool = False,
    programs: int | None = None,
) -> "Measurement":
    """The counting of the product of two operands from `_operands`, not yet begun.

    `cut`, `strict` and `programs` as in `Measurement`.
    """
    (m, k), n = a.shape, b.shape[1]
    operand, how = _arithmetic(a, b, precision)
    strips = list(torch.split(b, _widest(m, cut, a.device), dim=1)) if m and n else []

    def launch(run: "Measurement", strip: Tensor, sums: Tensor, rare: Tensor) -> None:
        run.start(
            kernels.matmul_histogram_kernel, a, *a.stride(), strip, *strip.stride(), run.probe,
            run.grid, run.scratch, run.counts, sums, rare, m, strip.shape[1], k, axis.bins,
            BLOCK_M=cut.m, BLOCK_N=cut.n, BLOCK_K=cut.k, WHOLE_K=k % cut.k == 0,
            SPLIT_M=cut.split[0], SPLIT_N=cut.split[1], OPERAND=operand, PRECISION=how,
            WIDEN=INTERPRETED and operand == tl.bfloat16,
        )  # fmt: skip

    padded = sum(
        triton.cdiv(m, cut.m) * cut.m * triton.cdiv(s.shape[1], cut.n) * cut.n for s in strips
    )
    rows, columns = a[:: max(1, m // PROBE)], b[:, :: max(1, n // PROBE)]
    sample = rows[:PROBE].float() @ columns[:, :PROBE].float()
    around, size = probe(sample), (m * n, padded)
    return Measurement(
        launch, strips, size, around, axis, cut, precision, strict=strict, programs=programs
    )


def _stream_tile(piece: Tensor, axis: Axis) -> Tile:
    candidates = list(stream_tiles(axis))
    if INTERPRETED:
        return _interpretable(candidates)
    return _trial.fastest(Variant.of_stream(piece, axis), candidates, piece.device)


def _product_tile(a: Tensor, b: Tensor, axis: Axis, precision: str) -> Tile:
    candidates = list(product_tiles(a, b, precision, axis, _capability(a.device)))
    if INTERPRETED:
        return _interpretable(candidates)
    variant = Variant.of_product(a, b, axis, precision)
    return _trial.fastest(variant, candidates, a.device)


def _interpretable(candidates: list[Tile]) -> Tile:
    """The smallest, which comes last, of those in plain Triton; the interpreter knows no PTX."""
    return next(tile for tile in reversed(candidates) if tile.counter == "scratch")


def _operands(a: Tensor, b: Tensor, precision: str) -> tuple[Tensor, Tensor, str]:
    """Operands as the kernel reads them, and the precision that the device has.

    Before compute capability 8 there are neither tf32 nor bfloat16 products: float32 serves all.
    """
    if a.shape[1] < 2:  # an empty sum is 0; and Triton would unroll a loop of 1
        missing = 2 - a.shape[1]
        a = torch.cat([a, a.new_zeros(len(a), missing)], 1)
        b = torch.cat([b, b.new_zeros(missing, b.shape[1])])
    a, b = _readable(a), _readable(b)
    if _capability(a.device) < (8, 0):
        precision = "ieee"
        if torch.bfloat16 in (a.dtype, b.dtype):
            a, b = a.float(), b.float()
    return a, b, precision


def _readable(x: Tensor) -> Tensor:
    """float64 would need twice the shared memory, and not every GPU knows 8-bit floats."""
    return x if x.dtype in READABLE else x.float()


def _arithmetic(a: Tensor, b: Tensor, precision: str) -> tuple[Any, str]:
    """What operands are cast to and how they are multiplied.

    Products of two bfloat16, or two float16, numbers are exact in float32, so the 16-bit tensor
    cores serve every precision.
    """
    if precision == "bf16":
        return tl.bfloat16, "tf32"
    if a.dtype == b.dtype == torch.bfloat16:
        return tl.bfloat16, "tf32"
    if a.dtype == b.dtype == torch.float16:
        return tl.float16, "tf32"
    return tl.float32, precision


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def _widest(m: int, cut: Tile, device: torch.device) -> int:
    """Columns of b that a launch may take, so that no 32-bit counter of a program overflows."""
    most = _programs(cut, device) << 30
    return max(cut.n, most // max(m, cut.m) // cut.n * cut.n)


def _pieces(x: Tensor) -> Iterator[Tensor]:
    """Flat views of all entries of x in any order; copies only where x has gaps between them."""
    dense = x.permute(*sorted(range(x.ndim), key=lambda i: -x.stride()[i])) if x.ndim else x
    if dense.is_contiguous() or x.numel() <= COPY or dense.shape[0] == 1:
        flat = dense.reshape(-1)
        yield from torch.split(flat, 1 << 36)
    else:
        for part in torch.split(dense, max(1, COPY * dense.shape[0] // x.numel())):
            yield from _pieces(part)


def _programs(cut: Tile, device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count * cut.programs


class Measurement:
    """One measurement: what is launched on which parts, its buffers on the device, its result.

    Args:
        launch: starts the kernel on one part, given where its sums go.
        parts: of the data.
        size: how many entries there are, and how many the kernels see, padding included.
        around: shift and scale of the moments, from `probe`.
        axis: where the bins lie.
        cut: how the kernel is cut.
        precision: what the result says.
        strict: refuse a cut that the device cannot start or that spills (as a trial does).
        programs: how many share the work; as many as the device runs at once if not given.
    """

    def __init__(
        self,
        launch: Callable[["Measurement", Tensor, Tensor, Tensor], None],
        parts: list[Tensor],
        size: tuple[int, int],
        around: Tensor,
        axis: Axis,
        cut: Tile,
        precision: str = "",
        *,
        strict: bool = False,
        programs: int | None = None,
    ) -> None:
        self._launch, self._parts, (self._entries, self._padded) = launch, parts, size
        self.axis, self.cut, self.precision, self._unchecked = axis, cut, precision, strict
        device = around.device
        bits = axis.mantissa_bits if isinstance(axis, FloatAxis) else 0
        places = window(axis, cut.counter)
        self.programs = programs or _programs(cut, device)
        self.probe = around
        self.grid = grid(axis, device)
        scratch = self.programs * places if cut.counter == "scratch" else 1
        self.scratch = torch.zeros(scratch, dtype=torch.int32, device=device)
        beyond = 1 << bits  # NaN has keys beyond those of the infinities
        self._counts = torch.zeros(axis.bins + 2 + 2 * beyond, dtype=torch.int64, device=device)
        self.counts = self._counts[beyond:-beyond]
        self._constants = {
            "BITS": bits,
            "COVERED": is_covered(axis, cut.counter),
            "CAREFUL": False,
            "WINDOW": places,
            "COUNTER": cut.counter,
            "INCREMENT": increment(bits),
        }
        self._options: dict[str, Any] = {
            "num_warps": cut.warps,
            "num_stages": cut.stages,
            "enable_fp_fusion": True,
        }

    def start(self, kernel: Kernel, *arguments: object, **cut: object) -> None:
        """Launch the kernel.

        Raises:
            Misfit: `strict`, and the compiled kernel is not what the device can run well.
        """
        cut |= self._constants
        if self._unchecked and not INTERPRETED:
            built = kernel.warmup(*arguments, grid=(self.programs,), **cut, **self._options)
            misfit(built, self.cut, Limits.of(self.counts.device))
            self._unchecked = False  # a trial's clock must not see this again
        kernel[(self.programs,)](*arguments, **cut, **self._options)

    def launch(self) -> tuple[Tensor, Tensor]:
        """Launch on every part; (parts, programs, 6) float64 and (parts, programs, 3) int64."""
        device = self.counts.device
        shape = max(len(self._parts), 1), self.programs
        sums = torch.zeros(*shape, 6, dtype=torch.float64, device=device)
        sums[..., 4], sums[..., 5] = math.inf, -math.inf
        rare = torch.zeros(*shape, 3, dtype=torch.int64, device=device)
        with _on(device):
            for index, part in enumerate(self._parts):
                self._launch(self, part, sums[index], rare[index])
                if len(self._parts) > 1:  # a part's window starts from zero
                    self.scratch.zero_()
        return sums, rare

    def collect(self) -> Histogram:
        """Launch, again where shift and scale turn out not to fit, and read the result."""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._counts.zero_()
                self.scratch.zero_()
            sums, rare = (numbers.flatten(0, 1).cpu().numpy() for numbers in self.launch())
            nonfinite = NonFinite(*(int(number) for number in rare.sum(axis=0)))
            shift, scale = (float(number) for number in self.probe.tolist())
            moments = central_moments(self._entries - nonfinite.total, sums, shift, scale)
            if not (self._constants["CAREFUL"] or np.isfinite(sums[:, 3]).all()):
                self._constants["CAREFUL"] = True
            elif better := better_probe(moments, shift, scale):
                self.probe.copy_(torch.tensor(better))
            else:
                break
        return self._histogram(moments, nonfinite)

    def _histogram(self, moments: Moments, nonfinite: NonFinite) -> Histogram:
        counts = self.counts.cpu().numpy()
        _take_off(counts, self.axis, self._padded - self._entries, nonfinite)
        return Histogram(
            self.axis,
            counts,
            moments=moments,
            nonfinite=nonfinite,
            backend=NAME,
            precision=self.precision,
            kernel=str(self.cut),
        )


def _take_off(counts: NDArray[np.int64], axis: Axis, padding: int, nonfinite: NonFinite) -> None:
    """Remove what the kernels count beside finite values: zeros round the edge, NaN, infinities.

    On a float axis the bits of -inf are those of the lowest bin's edge, and NaN lies beyond the
    axis. On a regular one -inf is underflow, and NaN, equal to no edge, ends in the first bin.
    """
    zero = int(np.searchsorted(axis.edges, 0.0, side="right"))
    on_upper_edge = isinstance(axis, RegularAxis) and axis.hi == 0.0
    counts[zero - on_upper_edge] -= padding
    counts[-1] -= nonfinite.pos_inf
    if isinstance(axis, FloatAxis):
        counts[1] -= nonfinite.neg_inf
    else:
        counts[0] -= nonfinite.neg_inf
        counts[1] -= nonfinite.nan


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device; NumPy, below the interpreter, warns of overflow."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    return np.errstate(all="ignore") if INTERPRETED else nullcontext()
