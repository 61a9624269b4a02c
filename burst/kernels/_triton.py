"""Launches the Triton kernels of `_triton_kernels` and turns their sums into a `Histogram`.

What a launch needs beside the operands: a shift and a scale for the moments, from a probe of the
data; the axis as float32 numbers; and zeroed counters. Nothing of the product's size is held.
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
from torch import Tensor, nn

from burst.axis import Axis, FloatAxis, RegularAxis
from burst.errors import BackendError
from burst.histogram import Histogram, NonFinite
from burst.kernels import _triton_kernels as kernels
from burst.kernels._ptx import WINDOW_BINS, increment
from burst.kernels._tiles import PLAIN_SHARED_MEMORY, STREAM, Tile, product_tile
from burst.moments import Moments

NAME = "triton"
INTERPRETED = not isinstance(kernels.histogram_kernel, triton.runtime.JITFunction)
RESERVED = 1 << 10  # bytes of shared memory that a program does not get, from 9.0 on
PROBE = 256  # rows and columns of the product, or 256^2 entries, that shift and scale come from
COPY = 1 << 26  # most entries copied at once of a tensor that has gaps
READABLE = (torch.float32, torch.float16, torch.bfloat16)  # others are copied to float32
FARTHEST = 2.0**127  # regular axes must end before
INTERPRETED_PROGRAMS = 3

Kernel: TypeAlias = Any  # what `triton.jit` makes
Sums = tuple[NDArray[np.float64], NDArray[np.int64]]  # (programs, 6) and (programs, 3)


def histogram(x: Tensor, axis: Axis, *, tile: Tile | None = None) -> Histogram:
    """Count the entries of `x` in one pass over memory."""
    cut = tile or STREAM
    pieces = [piece for piece in _pieces(_readable(x)) if piece.numel()]
    sample = torch.cat([p[:: max(1, p.numel() // PROBE**2)][: PROBE**2] for p in pieces[:1]] or [x])

    def launch(piece: Tensor, run: "_Run", sums: Tensor, rare: Tensor) -> None:
        run.start(
            kernels.histogram_kernel, piece, run.probe, run.grid, run.scratch, run.counts, sums,
            rare, piece.numel(), axis.bins, ROWS=cut.m, COLUMNS=cut.n, SPLIT_M=cut.split[0],
        )  # fmt: skip

    entries = [piece.numel() for piece in pieces]
    padded = [triton.cdiv(count, cut.m * cut.n) * cut.m * cut.n for count in entries]
    return _measure(launch, pieces, sum(entries), sum(padded), _probe(sample), axis, cut, "")


def matmul_histogram(
    a: Tensor, b: Tensor, axis: Axis, *, precision: str, tile: Tile | None = None
) -> Histogram:
    """Count the entries of a @ b, whose tiles exist in registers only."""
    (m, k), n = a.shape, b.shape[1]
    a, b = _readable(a), _readable(b)
    if k < 2:  # an empty sum is 0; and Triton would unroll a loop of 1, which takes other memory
        pad = nn.functional.pad
        a, b, k = pad(a, (0, 2 - k)), pad(b, (0, 0, 0, 2 - k)), 2
    cut = tile or product_tile(a, b, precision, _capability(a.device))
    operand, how = _arithmetic(a, b, precision)
    strips = list(torch.split(b, _widest(m, cut, a.device), dim=1)) if m and n else []

    def launch(strip: Tensor, run: "_Run", sums: Tensor, rare: Tensor) -> None:
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
    return _measure(launch, strips, m * n, padded, _probe(sample), axis, cut, precision)


def takes(axis: Axis) -> bool:
    """Whether the kernels can bin on this axis: all but regular axes near float32's largest."""
    return isinstance(axis, FloatAxis) or max(abs(axis.lo), abs(axis.hi)) < FARTHEST


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


def _probe(sample: Tensor) -> Tensor:
    """(2,) float32: the sample's mean, and the power of two that makes its deviation about 1.

    Stays on the device. Non-finite values are left out; no deviation gives a scale of 1.
    """
    values = sample.double()
    finite = values.isfinite()
    count = finite.sum().clamp(min=1)
    shift = (values.where(finite, 0.0).sum() / count).float()
    deviation = values.where(finite, shift.double()) - shift
    std = ((deviation * deviation).sum() / count).sqrt()
    exponent = torch.frexp(std).exponent.clamp(-126, 126)
    scale = torch.ldexp(torch.ones_like(std), -exponent).where(std > 0, 1.0)
    return torch.stack([shift, scale.float()])


def _grid(axis: Axis, device: torch.device) -> Tensor:
    """What `_regular_slot` needs: seven numbers, then the edges rounded up to float32.

    With y scaled by a power of two so that |lo| and |hi| are at most 1, and lo taken off in two
    parts, t = (y - lo) bins / (hi - lo) has a relative error below 4 * 2^-24: at most
    bins * 2^-22. The margin is twice that, and 2^-50 for the rounding of the edges themselves.
    """
    if isinstance(axis, FloatAxis):
        return torch.zeros(1, device=device)
    reach = max(abs(axis.lo), abs(axis.hi))
    if not takes(axis):
        raise BackendError(
            f"the triton backend takes edges below 2^127, got {reach:.3g}; use backend='torch'"
        )
    scale = math.ldexp(1.0, -max(math.frexp(reach)[1], -126))
    lo_high = float(np.float32(axis.lo * scale))
    per_width = axis.bins / ((axis.hi - axis.lo) * scale)
    margin = min(1.0, axis.bins * 2.0**-21 + per_width * 2.0**-50)
    edges = _rounded_up(axis.edges)
    highest = -_rounded_up(np.array([-axis.hi]))
    head = [scale, lo_high, axis.lo * scale - lo_high, per_width, margin, edges[0], highest[0]]
    edges[-1] = np.inf  # the last bin holds its upper edge
    return torch.tensor([*head, *edges], dtype=torch.float32, device=device)


def _rounded_up(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The least float32 numbers not below `values`."""
    nearest = values.astype(np.float32)
    up: NDArray[np.float32] = np.nextafter(nearest, np.float32(np.inf), dtype=np.float32)
    return np.where(nearest.astype(np.float64) < values, up, nearest)


class _Run:
    """The device buffers of one measurement, and the constants that its kernels are built for."""

    def __init__(self, axis: Axis, cut: Tile, probe: Tensor) -> None:
        device = probe.device
        bits = axis.mantissa_bits if isinstance(axis, FloatAxis) else 0
        covered = not bits and axis.bins + 2 <= WINDOW_BINS
        in_shared_memory = not INTERPRETED and (bits or covered)  # wide regular axes are not
        counter = cut.counter if in_shared_memory else "scratch"
        self.programs = _programs(cut, device)
        self.probe = probe
        self.grid = _grid(axis, device)
        scratch = self.programs * WINDOW_BINS if counter == "scratch" else 1
        self.scratch = torch.zeros(scratch, dtype=torch.int32, device=device)
        self._beyond = 1 << bits  # NaN has keys beyond those of the infinities
        self._counts = torch.zeros(
            axis.bins + 2 + 2 * self._beyond, dtype=torch.int64, device=device
        )
        self.counts = self._counts[self._beyond : -self._beyond]
        self.constants = {
            "BITS": bits,
            "COVERED": covered,
            "CAREFUL": False,
            "COUNTER": counter,
            "INCREMENT": increment(bits),
        }
        self.options: dict[str, Any] = {
            "num_warps": cut.warps,
            "num_stages": cut.stages,
            "maxnreg": cut.registers,
            "enable_fp_fusion": True,
        }

    def start(self, kernel: Kernel, *arguments: object, **cut: object) -> None:
        """Launch, with fewer stages where shared memory could not be had otherwise.

        Raises:
            BackendError: nor with one.
        """
        cut |= self.constants
        while not (INTERPRETED or self._fits(kernel, *arguments, **cut)):
            if self.options["num_stages"] == 1:
                raise BackendError(
                    "no cut of the triton backend fits this product; use backend='torch'"
                )
            self.options["num_stages"] -= 1
        kernel[(self.programs,)](*arguments, **cut, **self.options)

    def _fits(self, kernel: Kernel, *arguments: object, **cut: object) -> bool:
        """Whether the device will start it; see `PLAIN_SHARED_MEMORY`."""
        built = kernel.warmup(*arguments, grid=(self.programs,), **cut, **self.options)
        own: int = built.metadata.shared
        window = 4 * WINDOW_BINS + RESERVED if cut["COUNTER"] == "shared" else 0
        return own > PLAIN_SHARED_MEMORY or own + window <= PLAIN_SHARED_MEMORY

    def clear(self) -> None:
        """Start again with empty counters."""
        self._counts.zero_()
        self.scratch.zero_()


Launch = Callable[[Tensor, _Run, Tensor, Tensor], None]


def _measure(
    launch: Launch,
    parts: list[Tensor],
    entries: int,
    padded: int,
    probe: Tensor,
    axis: Axis,
    cut: Tile,
    precision: str,
) -> Histogram:
    """Launch on every part, again where shift and scale turn out not to fit, and collect."""
    run = _Run(axis, cut, probe)
    shift, scale = 0.0, 1.0
    moments, nonfinite = Moments(), NonFinite()
    for _ in range(4):
        sums, rare = _launch_all(launch, parts, run)
        nan, negative, positive = (int(number) for number in rare.sum(axis=0))
        nonfinite = NonFinite(nan, negative, positive)
        shift, scale = (float(number) for number in run.probe.tolist())
        moments = _moments(entries - nonfinite.total, sums, shift, scale)
        if not (run.constants["CAREFUL"] or np.isfinite(sums[:, 3]).all()):
            run.constants["CAREFUL"] = True
        elif better := _better_probe(moments, shift, scale):
            run.probe.copy_(torch.tensor(better))
        else:
            break
        run.clear()
    counts = run.counts.cpu().numpy()
    _take_off(counts, axis, padded - entries, nonfinite)
    return Histogram(
        axis,
        counts,
        moments=moments,
        nonfinite=nonfinite,
        backend=NAME,
        precision=precision,
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


def _launch_all(launch: Launch, parts: list[Tensor], run: _Run) -> Sums:
    device = run.counts.device
    shape = max(len(parts), 1), run.programs
    sums = torch.zeros(*shape, 6, dtype=torch.float64, device=device)
    sums[..., 4], sums[..., 5] = math.inf, -math.inf
    rare = torch.zeros(*shape, 3, dtype=torch.int64, device=device)
    with _on(device):
        for index, part in enumerate(parts):
            launch(part, run, sums[index], rare[index])
            if len(parts) > 1:  # a part's window starts from zero
                run.scratch.zero_()
    return sums.reshape(-1, 6).cpu().numpy(), rare.reshape(-1, 3).cpu().numpy()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device; NumPy, below the interpreter, warns of overflow."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    return np.errstate(all="ignore") if INTERPRETED else nullcontext()


def _moments(count: int, sums: NDArray[np.float64], shift: float, scale: float) -> Moments:
    """Central moments from s_p = sum of ((y - shift) scale)^p.

    With u = s1 / n: m2 = s2 - n u^2, m3 = s3 - 3 u s2 + 2 n u^3,
    m4 = s4 - 4 u s3 + 6 u^2 s2 - 3 n u^4, each divided by scale^p.
    """
    if not count:
        return Moments()
    low, high = float(sums[:, 4].min()), float(sums[:, 5].max())
    if low == high:
        return Moments(count, low, 0.0, 0.0, 0.0, low, high)
    s1, s2, s3, s4 = (math.fsum(column) if np.isfinite(column).all() else math.inf
                      for column in sums[:, :4].T)  # fmt: skip
    u = s1 / count
    m2 = max(s2 - count * u**2, 0.0)
    m3 = s3 - 3 * u * s2 + 2 * count * u**3
    m4 = max(s4 - 4 * u * s3 + 6 * u**2 * s2 - 3 * count * u**4, 0.0)
    return Moments(count, shift + u / scale, m2 / scale**2, m3 / scale**3, m4 / scale**4, low, high)


def _better_probe(moments: Moments, shift: float, scale: float) -> tuple[float, float] | None:
    """Another shift and scale, if the fourth powers left float32's range or the mean is far off.

    The largest |(y - shift) scale| must lie from 2^-10 to 2^28: no sum of fourth powers overflows
    then, and what underflows is below 2^-100 of the sum.
    """
    if moments.minimum >= moments.maximum:
        return None
    reach = max(moments.maximum - shift, shift - moments.minimum)
    if not 2.0**-10 <= reach * scale <= 2.0**28:
        return shift, math.ldexp(1.0, -min(max(math.frexp(reach)[1], -126), 126))
    if abs(moments.mean - shift) > 4.0 * math.sqrt(max(moments.variance, 0.0)):
        return moments.mean, scale
    return None
