"""What the Triton kernels do with a tile: add it to the sums that moments come from.

A tile is cut into lines, the entries that one thread (or four) holds: 32 to 128 of them. Each line
is summed in float32 about a center of its own and in units of its own, and all lines in float64
about the origin of the program. None of the three is guessed, so no data can mislead them:

- the unit is a power of two, of which the line spans 1 to 8 (or fewer, where it spans less than
  2^-126): fourth powers neither overflow nor, where they matter, vanish;
- the center is the float32 number next to the line's mean;
- the origin, kept from launch to launch, is the mean of the first tile that the program saw.

Entries that are not finite, or beyond the edge, spoil the sum of their line. Then, and only then,
the tile is looked at again with such entries as holes: NaN, which all sums leave out.
benchmarks/gpu_kernels.md has the bounds.
"""

# ruff: noqa: PLR0124 (NaN alone differs from itself)

import triton.language as tl

from burst.kernels._triton_counts import Number, halves, jit

ROW = 11  # float64 numbers that a program keeps: origin, four sums, extremes, how many of what

_ROW = tl.constexpr(ROW)


@jit
def load_origin(rows_ptr: tl.tensor) -> tl.tensor:
    """Where the program's sums start from; NaN before its first finite entry."""
    return tl.load(rows_ptr + tl.program_id(0) * _ROW)


@jit
def nothing_yet(LENGTH: tl.constexpr) -> tl.tuple:
    """No sums and extremes, of `LENGTH` lines; no entries that are NaN, -inf, inf, or any."""
    zero = tl.zeros([LENGTH], tl.float64)
    infinity = tl.full([LENGTH], float("inf"), tl.float32)
    none = tl.full([], 0, tl.int64)
    return (zero, zero, zero, zero, infinity, -infinity), (none, none, none, none)


@jit
def save(origin: tl.tensor, state: tl.tuple, seen: tl.tuple, rows_ptr: tl.tensor) -> None:
    """Add what a launch found to the program's row."""
    s1, s2, s3, s4, low, high = state
    nan, negative, positive, entries = seen
    row = rows_ptr + tl.program_id(0) * _ROW
    tl.store(row, origin)
    tl.store(row + 1, tl.load(row + 1) + tl.sum(s1, 0))
    tl.store(row + 2, tl.load(row + 2) + tl.sum(s2, 0))
    tl.store(row + 3, tl.load(row + 3) + tl.sum(s3, 0))
    tl.store(row + 4, tl.load(row + 4) + tl.sum(s4, 0))
    tl.store(row + 5, tl.minimum(tl.load(row + 5), tl.min(low, 0).to(tl.float64)))
    tl.store(row + 6, tl.maximum(tl.load(row + 6), tl.max(high, 0).to(tl.float64)))
    tl.store(row + 7, tl.load(row + 7) + nan.to(tl.float64))
    tl.store(row + 8, tl.load(row + 8) + negative.to(tl.float64))
    tl.store(row + 9, tl.load(row + 9) + positive.to(tl.float64))
    tl.store(row + 10, tl.load(row + 10) + entries.to(tl.float64))


@jit
def _add_parts(
    y: tl.tensor,
    sums: tl.tuple,
    about: tl.tuple,
    WHAT: tl.constexpr,
    LENGTH: tl.constexpr,
    SPLIT_M: tl.constexpr,
    SPLIT_N: tl.constexpr,
    HOLES: tl.constexpr,
) -> tl.tuple:
    """Add each part of a tile to `sums`, entry by entry; they have a part's shape in lines.

    `WHAT` is "extremes", "total" (and with holes the count), or "powers".
    """
    if SPLIT_M + SPLIT_N > 0:
        AXIS: tl.constexpr = 1 if SPLIT_N > 0 else 0
        LESS_M: tl.constexpr = SPLIT_M - 1 + AXIS
        LESS_N: tl.constexpr = SPLIT_N - AXIS
        first, second = halves(y, AXIS)
        sums = _add_parts(first, sums, about, WHAT, LENGTH, LESS_M, LESS_N, HOLES)
        sums = _add_parts(second, sums, about, WHAT, LENGTH, LESS_M, LESS_N, HOLES)
    else:
        y = tl.reshape(y, [LENGTH, y.shape[0] * y.shape[1] // LENGTH])
        if WHAT == "extremes":
            least, most = sums
            if HOLES:
                least = tl.minimum(least, tl.where(y == y, y, float("inf")))
                most = tl.maximum(most, tl.where(y == y, y, -float("inf")))
            else:
                least, most = tl.minimum(least, y), tl.maximum(most, y)
            sums = least, most
        elif WHAT == "total":
            total, inside = sums
            d = y * about[0][:, None] - about[1][:, None]
            if HOLES:
                d = tl.where(d == d, d, 0.0)
                inside += tl.where(y == y, 1.0, 0.0)
            sums = total + d, inside
        else:
            s1, s2, s3, s4 = sums
            d = y * about[0][:, None] - about[1][:, None]
            if HOLES:
                d = tl.where(d == d, d, 0.0)
            d2 = d * d
            sums = s1 + d, s2 + d2, s3 + d2 * d, s4 + d2 * d2
    return sums


@jit
def _look(
    y: tl.tensor,
    LENGTH: tl.constexpr,
    SPLIT_M: tl.constexpr,
    SPLIT_N: tl.constexpr,
    HOLES: tl.constexpr,
) -> tl.tuple:
    """Each line's extremes, center, exponent field of 1 / unit, number of entries; is it finite?

    In units from its least entry a line's total is small, so the center is the float32 number next
    to the mean. NaN and infinities spoil the total, and nothing else does.
    """
    FULL: tl.constexpr = y.shape[0] * y.shape[1] // LENGTH
    WIDTH: tl.constexpr = FULL >> (SPLIT_M + SPLIT_N)
    infinity = tl.full([LENGTH, WIDTH], float("inf"), tl.float32)
    zero = tl.zeros([LENGTH, WIDTH], tl.float32)
    leasts, mosts = _add_parts(
        y, (infinity, -infinity), (), "extremes", LENGTH, SPLIT_M, SPLIT_N, HOLES
    )
    least, most = tl.min(leasts, 1), tl.max(mosts, 1)
    reach = tl.where(most > least, most - least, 0.0)
    field = tl.minimum(tl.maximum(254 - (reach.to(tl.int32, bitcast=True) >> 23), 1), 253)
    field = tl.where(reach > 0, field, 127)  # 1.0
    scale = (field << 23).to(tl.float32, bitcast=True)
    totals, ones = _add_parts(
        y, (zero, zero), (scale, least * scale), "total", LENGTH, SPLIT_M, SPLIT_N, HOLES
    )
    total = tl.sum(totals, 1)
    inside = tl.full([LENGTH], FULL, tl.float32)
    if HOLES:
        inside = tl.sum(ones, 1)
    unit = ((254 - field) << 23).to(tl.float32, bitcast=True)
    center = (least * scale + total / tl.maximum(inside, 1.0)) * unit
    center = tl.minimum(tl.maximum(center, least), most)
    center = tl.where(inside > 0, center, 0.0)
    return least, most, center, field, inside, tl.abs(total) < float("inf")


@jit
def _powers(
    y: tl.tensor,
    center: tl.tensor,
    field: tl.tensor,
    LENGTH: tl.constexpr,
    SPLIT_M: tl.constexpr,
    SPLIT_N: tl.constexpr,
    HOLES: tl.constexpr,
) -> tl.tuple:
    """Each line's sums of powers of y - center, in float32 and in units."""
    WIDTH: tl.constexpr = (y.shape[0] * y.shape[1] // LENGTH) >> (SPLIT_M + SPLIT_N)
    scale = (field << 23).to(tl.float32, bitcast=True)
    zero = tl.zeros([LENGTH, WIDTH], tl.float32)
    p1, p2, p3, p4 = _add_parts(
        y, (zero, zero, zero, zero), (scale, center * scale), "powers",
        LENGTH, SPLIT_M, SPLIT_N, HOLES,
    )  # fmt: skip
    return tl.sum(p1, 1), tl.sum(p2, 1), tl.sum(p3, 1), tl.sum(p4, 1)


@jit
def add_moved(
    sums: tl.tuple,
    number: tl.tensor,
    delta: tl.tensor,
    q1: tl.tensor,
    q2: tl.tensor,
    q3: tl.tensor,
    q4: tl.tensor,
) -> tl.tuple:
    """Add sums of powers of `number` deviations d + delta, from those of d."""
    s1, s2, s3, s4 = sums
    moved = number * delta  # sum of (d + delta)^p, by powers of d
    s1 += q1 + moved
    s2 += q2 + delta * (2 * q1 + moved)
    s3 += q3 + delta * (3 * q2 + delta * (3 * q1 + moved))
    s4 += q4 + delta * (4 * q3 + delta * (6 * q2 + delta * (4 * q1 + moved)))
    return s1, s2, s3, s4


@jit
def add_moments(
    y: tl.tensor,
    valid: tl.tensor,
    edge: tl.tensor,
    entries: Number,
    origin: tl.tensor,
    state: tl.tuple,
    seen: tl.tuple,
    LENGTH: tl.constexpr,
    SPLIT_M: tl.constexpr,
    SPLIT_N: tl.constexpr,
) -> tl.tuple:
    """Add a tile, of which `entries` are valid: all but at an edge. It may set the origin.

    Besides, for `_triton_margins`: each line's count, center and four sums about it, in float64;
    and whether there may be entries to leave out.
    """
    s1, s2, s3, s4, low, high = state
    nan, negative, positive, before = seen
    least, most, center, field, inside, fine = _look(y, LENGTH, SPLIT_M, SPLIT_N, False)
    spoilt = edge | (tl.min(fine.to(tl.int32), 0) == 0)
    if spoilt:
        ok = (tl.abs(y) < float("inf")) & valid
        nan += tl.sum(tl.sum((y != y).to(tl.int32), 1), 0)
        negative += tl.sum(tl.sum((y == -float("inf")).to(tl.int32), 1), 0)
        positive += tl.sum(tl.sum((y == float("inf")).to(tl.int32), 1), 0)
        holed = tl.where(ok, y, float("nan"))
        least, most, center, field, inside, fine = _look(holed, LENGTH, SPLIT_M, SPLIT_N, True)
        p1, p2, p3, p4 = _powers(holed, center, field, LENGTH, SPLIT_M, SPLIT_N, True)
    else:
        p1, p2, p3, p4 = _powers(y, center, field, LENGTH, SPLIT_M, SPLIT_N, False)
    number, c = inside.to(tl.float64), center.to(tl.float64)
    if origin != origin:
        origin = tl.sum(number * c, 0) / tl.sum(number, 0)  # still NaN, if there is none
    delta = tl.where(inside > 0, c - origin, 0.0)
    unit = ((254 - field) << 23).to(tl.float32, bitcast=True).to(tl.float64)
    q1 = p1.to(tl.float64) * unit
    q2 = p2.to(tl.float64) * (unit * unit)
    q3 = p3.to(tl.float64) * (unit * unit * unit)
    q4 = p4.to(tl.float64) * (unit * unit) * (unit * unit)
    s1, s2, s3, s4 = add_moved((s1, s2, s3, s4), number, delta, q1, q2, q3, q4)
    low, high = tl.minimum(low, least), tl.maximum(high, most)
    state = s1, s2, s3, s4, low, high
    lines = number, c, q1, q2, q3, q4
    return origin, state, (nan, negative, positive, before + entries), lines, spoilt
