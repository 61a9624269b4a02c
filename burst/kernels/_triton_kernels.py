"""The Triton kernels: one digests a product tile by tile in registers, one a tensor that exists.

Both are persistent: as many programs as the device runs at once share the tiles among them. A tile
is counted and summed where it lies, by `_triton_counts` and `_triton_moments`; `_triton_margins`
does the same by rows and columns of the product.
"""

import triton.language as tl

from burst.kernels._triton_counts import (
    Number,
    count_parts,
    float_base,
    flush,
    jit,
    launched,
    open_window,
)
from burst.kernels._triton_margins import add_rows, save_columns
from burst.kernels._triton_moments import add_moments, load_origin, nothing_yet, save


@jit
def _product(
    a_ptr: tl.tensor,
    stride_am: Number,
    stride_ak: Number,
    b_ptr: tl.tensor,
    stride_bk: Number,
    stride_bn: Number,
    m: Number,
    n: Number,
    k: Number,
    first_m: tl.tensor,
    first_n: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE_K: tl.constexpr,
    OPERAND: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """One (BLOCK_M, BLOCK_N) float32 tile of a @ b; 0 outside the product.

    Rows and columns beyond the end are loaded from the last one instead: no mask in the loop.
    """
    rows = first_m + tl.arange(0, BLOCK_M)
    columns = first_n + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    a_row = tl.minimum(rows, m - 1).to(tl.int64) * stride_am
    b_column = tl.minimum(columns, n - 1).to(tl.int64) * stride_bn
    a = a_ptr + a_row[:, None] + inner.to(tl.int64)[None, :] * stride_ak
    b = b_ptr + b_column[None, :] + inner.to(tl.int64)[:, None] * stride_bk
    step_a = tl.full([], BLOCK_K, tl.int64) * stride_ak
    step_b = tl.full([], BLOCK_K, tl.int64) * stride_bk
    y = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for done in range(0, k, BLOCK_K):
        if WHOLE_K:
            left, right = tl.load(a), tl.load(b)
        else:
            left = tl.load(a, mask=inner[None, :] < k - done, other=0.0)
            right = tl.load(b, mask=inner[:, None] < k - done, other=0.0)
        left, right = left.to(OPERAND), right.to(OPERAND)
        if WIDEN:  # the interpreter cannot multiply bfloat16
            left, right = left.to(tl.float32), right.to(tl.float32)
        y = tl.dot(left, right, y, input_precision=PRECISION)
        a += step_a
        b += step_b
    if (first_m + BLOCK_M > m) | (first_n + BLOCK_N > n):
        y = tl.where((rows[:, None] < m) & (columns[None, :] < n), y, 0.0)
    return y


@launched
def matmul_histogram_kernel(
    a_ptr: tl.tensor,
    stride_am: Number,
    stride_ak: Number,
    b_ptr: tl.tensor,
    stride_bk: Number,
    stride_bn: Number,
    grid_ptr: tl.tensor,
    scratch_ptr: tl.tensor,
    counts_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    origins_ptr: tl.tensor,
    powers_ptr: tl.tensor,
    parts_ptr: tl.tensor,
    m: Number,
    n: Number,
    k: Number,
    bins: Number,
    BITS: tl.constexpr,
    COVERED: tl.constexpr,
    WINDOW: tl.constexpr,
    COUNTER: tl.constexpr,
    INCREMENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE_K: tl.constexpr,
    SPLIT_M: tl.constexpr,
    SPLIT_N: tl.constexpr,
    OPERAND: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    MARGINS: tl.constexpr,
    SPLIT_COLUMNS: tl.constexpr,
) -> None:
    """counts[slot(y_ij)] += 1, s_p += (y_ij - origin)^p for y = a @ b, (m, k) by (k, n).

    With `MARGINS` also row i's powers += (y_ij - its origin)^p, and what a tile's columns are made
    of; without them the three pointers are None.

    Tiles of one column strip follow one another, so b is read from memory once and a, which is
    small, stays in the L2 cache.
    """
    # With margins a line is a row, so the tile is halved along n alone.
    SPLIT_LINES: tl.constexpr = 0 if MARGINS else SPLIT_M
    LENGTH: tl.constexpr = BLOCK_M >> SPLIT_LINES
    state, seen = nothing_yet(LENGTH)
    origin = load_origin(rows_ptr)
    window = open_window(scratch_ptr, WINDOW, COUNTER)
    base = tl.full([], 0, tl.int32)
    tiles_m = tl.cdiv(m, BLOCK_M)
    for tile in range(tl.program_id(0), tiles_m * tl.cdiv(n, BLOCK_N), tl.num_programs(0)):
        first_m = (tile % tiles_m) * BLOCK_M
        first_n = (tile // tiles_m) * BLOCK_N
        y = _product(
            a_ptr, stride_am, stride_ak, b_ptr, stride_bk, stride_bn, m, n, k, first_m, first_n,
            BLOCK_M, BLOCK_N, BLOCK_K, WHOLE_K, OPERAND, WIDEN, PRECISION,
        )  # fmt: skip
        if BITS > 0:  # noqa: SIM102 (known when the kernel is built, unlike the next)
            if base == 0:
                base = float_base(y, 1, BITS, WINDOW)
        edge = (first_m + BLOCK_M > m) | (first_n + BLOCK_N > n)
        entries = tl.minimum(m - first_m, BLOCK_M) * tl.minimum(n - first_n, BLOCK_N)
        rows, columns = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
        valid = (rows < m)[:, None] & (columns < n)[None, :]
        window = count_parts(
            y, window, tl.maximum(base, 1), grid_ptr, counts_ptr, bins,
            BITS, COVERED, WINDOW, COUNTER, INCREMENT, SPLIT_M, SPLIT_N,
        )  # fmt: skip
        origin, state, seen, lines, spoilt = add_moments(
            y, valid, edge, entries, origin, state, seen, LENGTH, SPLIT_LINES, SPLIT_N
        )
        if MARGINS:
            add_rows(lines, first_m, m, origins_ptr, powers_ptr)
            save_columns(y, first_m, first_n, m, n, spoilt, parts_ptr, BLOCK_M, SPLIT_COLUMNS)
    flush(window, base, counts_ptr, bins + 2, BITS, WINDOW, COUNTER)
    save(origin, state, seen, rows_ptr)


@launched
def histogram_kernel(
    x_ptr: tl.tensor,
    grid_ptr: tl.tensor,
    scratch_ptr: tl.tensor,
    counts_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    size: Number,
    bins: Number,
    BITS: tl.constexpr,
    COVERED: tl.constexpr,
    WINDOW: tl.constexpr,
    COUNTER: tl.constexpr,
    INCREMENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT_M: tl.constexpr,
) -> None:
    """The same for the `size` entries that lie from `x_ptr` on, whatever their order.

    A tile is (ROWS, COLUMNS) of consecutive entries; COLUMNS spans all threads with 16-byte loads,
    so that sums along the rows stay within a thread.
    """
    LENGTH: tl.constexpr = COLUMNS // 4
    TILE: tl.constexpr = ROWS * COLUMNS
    state, seen = nothing_yet(LENGTH)
    origin = load_origin(rows_ptr)
    window = open_window(scratch_ptr, WINDOW, COUNTER)
    base = tl.full([], 0, tl.int32)
    offsets = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    for tile in range(tl.program_id(0), (size - 1) // TILE + 1, tl.num_programs(0)):
        start = tl.full([], TILE, tl.int64) * tile
        edge = start + TILE > size
        valid = offsets < size - start
        if edge:
            y = tl.load(x_ptr + start + offsets, mask=valid, other=0.0).to(tl.float32)
        else:
            y = tl.load(x_ptr + start + offsets).to(tl.float32)
        if BITS > 0:  # noqa: SIM102 (known when the kernel is built, unlike the next)
            if base == 0:
                base = float_base(y, 0, BITS, WINDOW)
        window = count_parts(
            y, window, tl.maximum(base, 1), grid_ptr, counts_ptr, bins,
            BITS, COVERED, WINDOW, COUNTER, INCREMENT, SPLIT_M, 0,
        )  # fmt: skip
        entries = tl.minimum(size - start, TILE)
        origin, state, seen, _lines, _spoilt = add_moments(
            y, valid, edge, entries, origin, state, seen, LENGTH, SPLIT_M, 0
        )
    flush(window, base, counts_ptr, bins + 2, BITS, WINDOW, COUNTER)
    save(origin, state, seen, rows_ptr)
