"""Launches the Triton kernels of `_triton_kernels` and turns what they keep into a `Histogram`.

What a launch needs beside the operands: a cut (`_tiles`), tried on this GPU (`_trial`); the axis as
float32 numbers (`_scaling`); counters; and each program's sums (`_triton_moments`), which go on
from one launch to the next. With margins also sums over rows and columns (`_triton_margins`).
Nothing is read back before a result is asked for.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from burst.axis import Axis, FloatAxis, RegularAxis
from burst.decomposition import Margins
from burst.histogram import Histogram, NonFinite
from burst.kernels import _trial
from burst.kernels import _triton_kernels as kernels
from burst.kernels._margins import DeferredMargins
from burst.kernels._ptx import increment
from burst.kernels._resources import Limits, misfit
from burst.kernels._scaling import check_axis, from_rows, grid
from burst.kernels._scratch import shared
from burst.kernels._tiles import Tile, is_covered, product_tiles, stream_tiles, window
from burst.kernels._triton_margins import PART, fold_columns_kernel
from burst.kernels._triton_moments import ROW
from burst.kernels._variant import Variant

NAME = "triton"
INTERPRETED = not isinstance(kernels.histogram_kernel, triton.runtime.JITFunction)
COPY = 1 << 26  # most entries copied at once of a tensor that has gaps
READABLE = (torch.float32, torch.float16, torch.bfloat16)  # others are copied to float32
INTERPRETED_PROGRAMS = 3
PARTS = 1 << 24  # numbers that the tiles of a launch may leave of columns: 64 MiB
FOLD = 128  # columns whose parts a program adds up
REGISTERS = 1 << 16  # of a multiprocessor
NOTHING = (np.nan, *[0.0] * 4, np.inf, -np.inf, *[0.0] * 4)  # a program's row

Kernel: TypeAlias = Any  # what `triton.jit` makes


class Accumulator:
    """What has been counted on one GPU: counters, axis and sums, made once and kept there.

    Args:
        axis: where the bins lie.
        device: where the tensors are.
        margins: whether to keep moments of products' rows and columns.
        programs: how many share the work; as many as the device runs at once if not given.
        strict: refuse a cut that the device cannot start or that spills (as a trial does).

    Raises:
        BackendError: see `_scaling.check_axis`.
    """

    def __init__(
        self,
        axis: Axis,
        device: torch.device,
        *,
        margins: bool = False,
        programs: int | None = None,
        strict: bool = False,
    ) -> None:
        check_axis(axis)
        self.axis, self.device = axis, device
        self._programs, self._unchecked = programs, strict
        self._bits = axis.mantissa_bits if isinstance(axis, FloatAxis) else 0
        beyond = 1 << self._bits  # NaN has keys beyond those of the infinities
        counts = torch.zeros(axis.bins + 2 + 2 * beyond, dtype=torch.int64, device=device)
        self._counts = counts[beyond:-beyond]
        self._grid = grid(axis, device)
        self._margins = DeferredMargins(device) if margins else None
        self._rows: dict[int, Tensor] = {}  # of so many programs
        self._scratch: dict[int, Counters] = {}  # kept, so that others find it
        self._padding = 0
        self._precisions: dict[str, None] = {}
        self._cuts: dict[str, None] = {}
        self._known: dict[object, Tile] = {}  # kind of operands -> cut

    def add(self, x: Tensor, *, cut: Tile | None = None) -> None:
        """Count the entries of `x` in one pass over memory; a cut that is given is not tried.

        Raises:
            BackendError: see `_trial.fastest`.
        """
        for piece in _pieces(_readable(x)):
            if piece.numel():
                cut = cut or self._stream_cut(piece)
                self._count_piece(piece, cut)

    def add_product(self, a: Tensor, b: Tensor, *, precision: str, cut: Tile | None = None) -> None:
        """Count the entries of a @ b, whose tiles exist in registers only; the rest as in `add`.

        Raises:
            BackendError: see `_trial.fastest`.
            ShapeError: margins are kept, and products before had more or fewer rows.
        """
        a, b, precision = _operands(a, b, precision)
        m, n = a.shape[0], b.shape[1]
        if self._margins:
            self._margins.begin(a, b)
        if m and n:
            cut = cut or self._product_cut(a, b, precision)
            widest = _widest(m, cut, self.device)
            if self._margins:
                widest = min(widest, _widest_of_parts(m, cut))
            for strip in torch.split(b, widest, dim=1):
                self._count_strip(a, strip, precision, cut)
        self._precisions[precision] = None

    def result(self) -> Histogram:
        """Read the counts and the programs' sums."""
        rows = [numbers.cpu().numpy() for numbers in self._rows.values()]
        moments, nonfinite = from_rows(np.concatenate([np.zeros((0, ROW)), *rows]))
        counts = self._counts.cpu().numpy().copy()
        _take_off(counts, self.axis, self._padding, nonfinite)
        return Histogram(
            self.axis,
            counts,
            moments=moments,
            nonfinite=nonfinite,
            backend=NAME,
            precision="+".join(self._precisions),
            kernel="+".join(self._cuts),
        )

    def margins(self) -> Margins:
        """Moments of the rows and columns of the products so far."""
        assert self._margins
        return self._margins.result()

    def _stream_cut(self, piece: Tensor) -> Tile:
        kind = piece.dtype, piece.data_ptr() % 16, piece.numel() < 2**31
        if kind not in self._known:
            self._known[kind] = _stream_tile(piece, self.axis)
        return self._known[kind]

    def _product_cut(self, a: Tensor, b: Tensor, precision: str) -> Tile:
        k, *kinds = a.shape[1], *((x.dtype, x.data_ptr() % 16, x.stride()) for x in (a, b))
        kind = precision, k, *kinds
        if kind not in self._known:
            self._known[kind] = _product_tile(
                a, b, self.axis, precision, margins=self._margins is not None
            )
        return self._known[kind]

    def _count_piece(self, piece: Tensor, cut: Tile) -> None:
        size = piece.numel()
        self._launch(
            kernels.histogram_kernel, cut, piece, places=(size, self.axis.bins),
            ROWS=cut.m, COLUMNS=cut.n, SPLIT_M=cut.split[0],
        )  # fmt: skip
        self._padding += -size % (cut.m * cut.n)

    def _count_strip(self, a: Tensor, strip: Tensor, precision: str, cut: Tile) -> None:
        (m, k), n = a.shape, strip.shape[1]
        operand, how = _arithmetic(a, strip, precision)
        kept = self._margins
        sums: tuple[Tensor | None, ...] = None, None, None
        if kept:
            size = triton.cdiv(m, cut.m), PART, n
            parts = torch.empty(size, dtype=torch.float32, device=self.device)
            sums = kept.row_origins, kept.rows, parts
        self._launch(
            kernels.matmul_histogram_kernel, cut, a, *a.stride(), strip, *strip.stride(),
            margins=sums,
            places=(m, n, k, self.axis.bins),
            BLOCK_M=cut.m, BLOCK_N=cut.n, BLOCK_K=cut.k, WHOLE_K=k % cut.k == 0,
            SPLIT_M=cut.split[0], SPLIT_N=cut.split[1], OPERAND=operand, PRECISION=how,
            WIDEN=INTERPRETED and operand == tl.bfloat16,
            MARGINS=kept is not None, SPLIT_COLUMNS=cut.split_columns if kept else 0,
        )  # fmt: skip
        padded = triton.cdiv(m, cut.m) * cut.m * triton.cdiv(n, cut.n) * cut.n
        self._padding += padded - m * n
        if kept:
            self._fold(kept, parts, m, cut)

    def _fold(self, kept: DeferredMargins, parts: Tensor, m: int, cut: Tile) -> None:
        """Add the columns that tiles left to the sums over all columns."""
        n = parts.shape[2]
        with _on(self.device):
            fold_columns_kernel[(triton.cdiv(n, FOLD),)](
                parts, kept.origin, kept.sums, m, n, BLOCK_M=cut.m, BLOCK_N=FOLD
            )

    def _launch(
        self,
        kernel: Kernel,
        cut: Tile,
        *operands: object,
        margins: tuple[Tensor | None, ...] = (),
        places: tuple[int, ...],
        **how: object,
    ) -> None:
        """Start a kernel, and wait for nothing.

        Raises:
            Misfit: `strict`, and the compiled kernel is not what the device can run well.
        """
        programs = self._programs or _programs(cut, self.device)
        window_bins = window(self.axis, cut.counter)
        in_memory = cut.counter == "scratch"
        size = programs * window_bins if in_memory else 1
        self._scratch[size] = scratch = shared(Counters, size, self.device)
        arguments = (
            *operands, self._grid, scratch.counters, self._counts, self._rows_of(programs),
            *margins, *places,
        )  # fmt: skip
        how |= {
            "BITS": self._bits,
            "COVERED": is_covered(self.axis, cut.counter),
            "WINDOW": window_bins,
            "COUNTER": cut.counter,
            "INCREMENT": increment(self._bits),
            "num_warps": cut.warps,
            "num_stages": cut.stages,
            "enable_fp_fusion": True,
        }
        if cut.programs > 1:  # so that as many fit
            how["maxnreg"] = REGISTERS // (32 * cut.warps * cut.programs)
        with _on(self.device):
            if self._unchecked and not INTERPRETED:
                built = kernel.warmup(*arguments, grid=(programs,), **how)
                misfit(built, cut, Limits.of(self.device))
                self._unchecked = False  # a trial's clock must not see this again
            if in_memory:
                scratch.counters.zero_()
            kernel[(programs,)](*arguments, **how)
        self._cuts[str(cut)] = None

    def _rows_of(self, programs: int) -> Tensor:
        """Where so many programs keep their sums, see `_triton_moments.save`."""
        if programs not in self._rows:
            nothing = torch.tensor(NOTHING, dtype=torch.float64)
            self._rows[programs] = nothing.repeat(programs, 1).to(self.device)
        return self._rows[programs]


class Counters:
    """Counters in memory, for cuts that keep them there."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.counters = torch.empty(size, dtype=torch.int32, device=device)


def _stream_tile(piece: Tensor, axis: Axis) -> Tile:
    candidates = list(stream_tiles(axis))
    if INTERPRETED:
        return _interpretable(candidates)
    return _trial.fastest(Variant.of_stream(piece, axis), candidates, piece.device)


def _product_tile(
    a: Tensor, b: Tensor, axis: Axis, precision: str, *, margins: bool = False
) -> Tile:
    candidates = list(product_tiles(a, b, precision, axis, _capability(a.device)))
    if INTERPRETED:
        return _interpretable(candidates)
    variant = Variant.of_product(a, b, axis, precision, margins=margins)
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


def _widest_of_parts(m: int, cut: Tile) -> int:
    """Columns of b of which the tiles leave `PARTS` numbers at most."""
    most = PARTS // (PART * -(-m // cut.m))
    return max(cut.n, most // cut.n * cut.n)


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
