"""What the product kernel does with a tile for the moments of rows and columns, where asked to.

Rows      A line of `_triton_moments` is then a row of the tile: its sums of powers, in float64, are
          moved from the line's center to the row's origin and added to the row's in memory.
Columns   Each column of a tile is summed in float32 about a center of its own and in units of its
          own, as a line is, and these seven numbers are stored: float64 steps in the kernel would
          be repeated by every thread that shares a column. `fold_columns_kernel` then adds up the
          tiles of a column in float64, and what the decomposition needs of all columns.

So nothing cancels in float32, overflows, or vanishes, and no origin is rounded. With u = 2^-24 and
n entries of a row or a column in a tile, the sum of p-th powers of the deviations d from the center
is within (n - 1 + 2p) u Σ|d|^p; the center is next to the mean, so second powers about the mean of
a row or column are within 2 (n + 3) u, and fourth powers within 10.1 (n + 7) u, as in
benchmarks/gpu_kernels.md: 2e-5 and 9e-5 for n = 128 in the worst case, 1e-7 on ordinary data.
"""

# ruff: noqa: PLR0124 (NaN alone differs from itself)

import triton.language as tl

from burst.decomposition import ROUNDING
from burst.kernels._triton_counts import Number, halves, jit, launched
from burst.kernels._triton_moments import add_moved

PART = 7  # float32 numbers that a tile leaves of a column: count, center, unit, four sums

_PART = tl.constexpr(PART)
_ROUNDING = tl.constexpr(ROUNDING)


@jit
def add_rows(
    lines: tl.tuple, first_m: tl.tensor, m: Number, origins_ptr: tl.tensor, powers_ptr: tl.tensor
) -> None:
    """Add a tile's lines, which are rows, to the (5, m) sums about the rows' origins."""
    number, center, q1, q2, q3, q4 = lines
    row = first_m + tl.arange(0, number.shape[0])
    inside = row < m
    origin = tl.load(origins_ptr + row, mask=inside, other=0.0)
    delta = tl.where(number > 0, center - origin, 0.0)
    zero = tl.zeros(number.shape, tl.float64)
    s1, s2, s3, s4 = add_moved((zero, zero, zero, zero), number, delta, q1, q2, q3, q4)
    step = tl.full([], 1, tl.int64) * m
    at = powers_ptr + row
    tl.atomic_add(at, number, mask=inside, sem="relaxed")
    tl.atomic_add(at + step, s1, mask=inside, sem="relaxed")
    tl.atomic_add(at + 2 * step, s2, mask=inside, sem="relaxed")
    tl.atomic_add(at + 3 * step, s3, mask=inside, sem="relaxed")
    tl.atomic_add(at + 4 * step, s4, mask=inside, sem="relaxed")


@jit
def save_columns(
    y: tl.tensor,
    first_m: tl.tensor,
    first_n: tl.tensor,
    m: Number,
    n: Number,
    spoilt: tl.tensor,
    parts_ptr: tl.tensor,
    BLOCK_M: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    """Store what a tile, halved `SPLIT` times along n, knows of its columns: (m tiles, 7, n).

    `spoilt` says whether entries may lie beyond the edge or not be finite: those are left out.
    """
    if SPLIT > 0:
        first, second = halves(y, 1)
        HALF: tl.constexpr = y.shape[1] // 2
        save_columns(first, first_m, first_n, m, n, spoilt, parts_ptr, BLOCK_M, SPLIT - 1)
        save_columns(second, first_m, first_n + HALF, m, n, spoilt, parts_ptr, BLOCK_M, SPLIT - 1)
    else:
        row = first_m + tl.arange(0, y.shape[0])
        column = first_n + tl.arange(0, y.shape[1])
        if spoilt:
            valid = (row < m)[:, None] & (column < n)[None, :]
            holed = tl.where((tl.abs(y) < float("inf")) & valid, y, float("nan"))
            inside, center, unit, p1, p2, p3, p4 = _columns(holed, True)
        else:
            inside, center, unit, p1, p2, p3, p4 = _columns(y, False)
        step = tl.full([], 1, tl.int64) * n
        at = parts_ptr + (first_m // BLOCK_M) * _PART * step + column
        known = column < n
        tl.store(at, inside, mask=known)
        tl.store(at + step, center, mask=known)
        tl.store(at + 2 * step, unit, mask=known)
        tl.store(at + 3 * step, p1, mask=known)
        tl.store(at + 4 * step, p2, mask=known)
        tl.store(at + 5 * step, p3, mask=known)
        tl.store(at + 6 * step, p4, mask=known)


@jit
def _columns(y: tl.tensor, HOLES: tl.constexpr) -> tl.tuple:
    """Each column's count, center, unit, and sums of powers about the center, in units.

    A power of two next to the largest |y| is the unit here. Where the column spans less, its
    entries differ by 2^-24 units at least, so that fourth powers are 2^-96 at least.
    """
    size = tl.abs(y)
    inside = tl.full([y.shape[1]], y.shape[0], tl.float32)
    if HOLES:
        size = tl.where(y == y, size, 0.0)
        inside = tl.sum(tl.where(y == y, 1.0, 0.0), 0)
    field = 254 - (tl.max(size, 0).to(tl.int32, bitcast=True) >> 23)
    field = tl.minimum(tl.maximum(field, 1), 253)
    scale = (field << 23).to(tl.float32, bitcast=True)
    y = y * scale[None, :]
    whole = y
    if HOLES:
        whole = tl.where(y == y, y, 0.0)
    center = tl.sum(whole, 0) / tl.maximum(inside, 1.0)
    d = y - center[None, :]
    if HOLES:
        d = tl.where(d == d, d, 0.0)
    d2 = d * d
    sums = tl.sum(tl.join(tl.join(d, d2 * d), tl.join(d2, d2 * d2)), 0)
    odd, even = tl.split(sums)
    p1, p3 = tl.split(odd)
    p2, p4 = tl.split(even)
    unit = ((254 - field) << 23).to(tl.float32, bitcast=True)
    return inside, center, unit, p1, p2, p3, p4


@launched
def fold_columns_kernel(
    parts_ptr: tl.tensor,
    origin_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    m: Number,
    n: Number,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Add up the parts of each column in float64, and add what all columns are to the 14 sums.

    The sums are those of `DeferredMargins`. A column is added up about the center of its first
    part, so that it may lie far from the origin.
    """
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    known = column < n
    step = tl.full([], 1, tl.int64) * n
    zero = tl.zeros([BLOCK_N], tl.float64)
    count, about, sums = zero, zero, (zero, zero, zero, zero)
    at = parts_ptr + column
    for _ in range(tl.cdiv(m, BLOCK_M)):
        number = tl.load(at, mask=known, other=0.0).to(tl.float64)
        unit = tl.load(at + 2 * step, mask=known, other=0.0).to(tl.float64)
        center = tl.load(at + step, mask=known, other=0.0).to(tl.float64) * unit
        q1 = tl.load(at + 3 * step, mask=known, other=0.0).to(tl.float64) * unit
        q2 = tl.load(at + 4 * step, mask=known, other=0.0).to(tl.float64) * (unit * unit)
        q3 = tl.load(at + 5 * step, mask=known, other=0.0).to(tl.float64) * (unit * unit * unit)
        q4 = tl.load(at + 6 * step, mask=known, other=0.0).to(tl.float64) * (unit * unit)
        about = tl.where(count > 0, about, center)
        delta = tl.where(number > 0, center - about, 0.0)
        sums = add_moved(sums, number, delta, q1, q2, q3, q4 * (unit * unit))
        count += number
        at += _PART * step
    _add_columns(count, about, sums, tl.load(origin_ptr), sums_ptr)


@jit
def _add_columns(
    count: tl.tensor, about: tl.tensor, sums: tl.tuple, origin: tl.tensor, sums_ptr: tl.tensor
) -> None:
    """`decomposition.group_sums`, about `origin`."""
    s1, s2, s3, s4 = sums
    n = tl.where(count > 0, count, 1.0)
    c = s1 / n
    m2 = tl.maximum(s2 - c * s1, 0.0)
    m3 = s3 - c * (3 * s2 - 2 * c * s1)
    m4 = tl.maximum(s4 - c * (4 * s3 - c * (6 * s2 - 3 * c * s1)), 0.0)
    mean = about + c
    d = mean - origin
    s = m2 / n
    rounded = _ROUNDING * mean
    varies = m2 > count * (rounded * rounded)
    square = tl.where(varies, m2 * m2, 1.0)
    _add(sums_ptr, count)
    _add(sums_ptr + 1, count * d)
    _add(sums_ptr + 2, count * d * d)
    _add(sums_ptr + 3, count * d * d * d)
    _add(sums_ptr + 4, count * d * d * (d * d))
    _add(sums_ptr + 5, m2)
    _add(sums_ptr + 6, m2 * s)
    _add(sums_ptr + 7, m2 * d)
    _add(sums_ptr + 8, m2 * d * d)
    _add(sums_ptr + 9, m3)
    _add(sums_ptr + 10, m3 * d)
    _add(sums_ptr + 11, m4)
    _add(sums_ptr + 12, tl.where(varies, count, 0.0))
    _add(sums_ptr + 13, tl.where(varies, count * (count * m4 / square), 0.0))


@jit
def _add(at: tl.tensor, x: tl.tensor) -> None:
    tl.atomic_add(at, tl.sum(x, 0), sem="relaxed")
