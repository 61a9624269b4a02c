"""What the Triton kernels do with a tile: count its entries. Its moments are in `_triton_moments`.

Counts go to a window of `WINDOW` counters on the chip.
What falls outside the window is rare, and is added to the final counts in memory at once; the
window follows when the program has seen its last tile.

Counters (`COUNTER`):
    shared     the window is shared memory, an entry one PTX increment (`burst.kernels._ptx`).
    registers  the window is a tensor in registers, to which `tl.histogram` of each tile is added:
               plain Triton, whose cost does not depend on the data, but grows with the window.
    scratch    the window is the program's own piece of device memory, which stays in the L2 cache.
               Plain Triton too; axes of many regular bins need it.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import triton
import triton.language as tl

from burst.kernels._ptx import CLEAR, DECLARE, READ

# What the decorator returns is launched as kernel[grid](...): no function type describes that.
jit: Callable[[Callable[..., Any]], Any] = triton.jit
# One compiled kernel serves all sizes.
launched: Callable[[Callable[..., Any]], Any] = triton.jit(
    do_not_specialize=["m", "n", "size", "bins"]
)
# A size or a stride. Not `int`: Triton takes that for int32, whatever the value, and then neither
# knows that a stride is 1, which joins loads, nor takes more than 2^31 entries.
Number: TypeAlias = tl.tensor

FLUSH = tl.constexpr(1024)

_DECLARE = tl.constexpr(DECLARE)
_CLEAR = tl.constexpr(CLEAR)
_READ = tl.constexpr(READ)


@jit
def open_window(scratch_ptr: tl.tensor, WINDOW: tl.constexpr, COUNTER: tl.constexpr) -> tl.tensor:
    """The program's counters, all 0: a shared address, a pointer to zeroed memory, or a tensor."""
    if COUNTER == "shared":
        window = tl.inline_asm_elementwise(
            _DECLARE, "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )
        for first in range(0, WINDOW, FLUSH):
            index = first + tl.arange(0, FLUSH)
            tl.inline_asm_elementwise(
                _CLEAR, "=r,r", [window + 4 * index], dtype=tl.int32, is_pure=False, pack=1
            )
        tl.debug_barrier()
    elif COUNTER == "registers":
        window = tl.zeros([WINDOW], tl.int32)
    else:
        window = scratch_ptr + tl.program_id(0).to(tl.int64) * WINDOW
    return window


@jit
def _read(window: tl.tensor, index: tl.tensor, COUNTER: tl.constexpr) -> tl.tensor:
    if COUNTER == "shared":
        number = tl.inline_asm_elementwise(
            _READ, "=r,r", [window + 4 * index], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        number = tl.load(window + index, volatile=True)
    return number


@jit
def flush(
    window: tl.tensor,
    base: tl.tensor,
    counts_ptr: tl.tensor,
    slots: Number,
    BITS: tl.constexpr,
    WINDOW: tl.constexpr,
    COUNTER: tl.constexpr,
) -> None:
    """Add the window to the counts of the whole axis; each index is one slot, or none."""
    if COUNTER == "registers":
        index = tl.arange(0, WINDOW)
        _add(window, index, base, counts_ptr, slots, BITS, WINDOW)
    else:
        tl.debug_barrier()
        for first in range(0, WINDOW, FLUSH):
            index = first + tl.arange(0, FLUSH)
            number = _read(window, index, COUNTER)
            _add(number, index, base, counts_ptr, slots, BITS, WINDOW)


@jit
def _add(
    number: tl.tensor,
    index: tl.tensor,
    base: tl.tensor,
    counts_ptr: tl.tensor,
    slots: Number,
    BITS: tl.constexpr,
    WINDOW: tl.constexpr,
) -> None:
    slot = index  # on a regular axis
    real = slot < slots
    if BITS > 0:  # undo `_float_index`
        half: tl.constexpr = WINDOW // 2
        size = tl.where(index == 0, 0, index % half + tl.maximum(base, 1) - 1)
        slot = tl.where(index < half, size, -size) + ((255 << BITS) + 1)
        real = (slot < slots) & (index != half)
    tl.atomic_add(counts_ptr + slot, number.to(tl.int64), mask=(number != 0) & real, sem="relaxed")


@jit
def _float_key(y: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """The float's own bits as a signed whole number, rounded down to `BITS` mantissa bits.

    Sign and magnitude become two's complement, so that the arithmetic shift rounds down on both
    sides of zero and -0.0 joins 0.0: `burst.axis.FloatAxis`.
    """
    bits = y.to(tl.int32, bitcast=True)
    sign = bits >> 31
    return (((bits & 0x7FFFFFFF) ^ sign) - sign) >> (23 - BITS)


@jit
def _float_index(key: tl.tensor, base: tl.tensor, WINDOW: tl.constexpr) -> tl.tuple:
    """A key's place in the window, and whether it has one.

    The window holds |key| from base >= 1 on, positive keys in its lower half and negative ones in
    its upper half, each from place 1. Place 0 is for key 0: zeros are common, and far from all
    else. Place WINDOW / 2 is nobody's.
    """
    half: tl.constexpr = WINDOW // 2
    size = tl.where(key < 0, -key, key)
    place = size - base + 1
    inside = (key == 0) | ((place > 0) & (place < half))
    index = tl.where(key == 0, 0, tl.where(key < 0, place + half, place))
    return index, inside


@jit
def float_base(
    y: tl.tensor, AXIS: tl.constexpr, BITS: tl.constexpr, WINDOW: tl.constexpr
) -> tl.tensor:
    """The window's lowest |key|, from a tile; 0, which is not one, if it holds nothing but zeros.

    The window ends above the largest |y|, or at inf: two octaves above where it has 16 or more,
    one where it has fewer.
    """
    size = tl.where(tl.abs(y) < float("inf"), tl.abs(y), 0.0)
    largest = tl.max(tl.max(size, AXIS), 0)
    headroom: tl.constexpr = 2 if (WINDOW // 2 >> BITS) >= 16 else 1
    stop = tl.minimum((largest.to(tl.int32, bitcast=True) >> 23) + 1 + headroom, 255) << BITS
    return tl.where(largest > 0, tl.maximum(stop - WINDOW // 2 + 1, 1), 0)


@jit
def _regular_slot(y: tl.tensor, grid_ptr: tl.tensor, bins: Number) -> tl.tensor:
    """0 underflow, 1.. bins, bins + 1 overflow, exactly as float64 edges have it.

    t = (y - lo) bins / (hi - lo) in float32 is off by less than the margin of `_scaling.grid`, so
    its floor is right unless t is that near to a whole number. Those few are compared with the
    edges themselves, each rounded up to float32: for a float32 y, y >= edge exactly if y >= that.
    """
    scale, lo_high, lo_low = tl.load(grid_ptr), tl.load(grid_ptr + 1), tl.load(grid_ptr + 2)
    per_width, margin = tl.load(grid_ptr + 3), tl.load(grid_ptr + 4)
    lowest, highest = tl.load(grid_ptr + 5), tl.load(grid_ptr + 6)
    t = ((y * scale - lo_high) - lo_low) * per_width
    t = tl.where(t > 0.0, tl.minimum(t, bins * 1.0), 0.0)  # NaN too becomes 0
    nearest = (t + 0.5).to(tl.int32)
    estimate = tl.minimum(t.to(tl.int32), bins - 1)
    near = tl.abs(t - nearest.to(tl.float32)) <= margin
    edge = grid_ptr + 7 + estimate
    lower = tl.load(edge, mask=near, other=-float("inf"))
    upper = tl.load(edge + 1, mask=near, other=float("inf"))
    slot = 1 + estimate + (y >= upper).to(tl.int32) - (y < lower).to(tl.int32)
    return tl.where(y < lowest, 0, tl.where(y > highest, bins + 1, slot))


@jit
def _count(
    y: tl.tensor,
    window: tl.tensor,
    base: tl.tensor,
    grid_ptr: tl.tensor,
    counts_ptr: tl.tensor,
    bins: Number,
    BITS: tl.constexpr,
    COVERED: tl.constexpr,
    WINDOW: tl.constexpr,
    COUNTER: tl.constexpr,
    INCREMENT: tl.constexpr,
) -> tl.tensor:
    """Count every entry of a tile, those that are not finite too; the launcher takes these off.

    An entry adds 1 to the window, or to the counts themselves if it lies outside. `COVERED` says
    that none can: a regular axis of fewer slots than the window.
    """
    if BITS > 0 and COUNTER == "shared":
        tl.inline_asm_elementwise(
            INCREMENT,
            "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r,r,r,l,l,l,l",
            [y.to(tl.int32, bitcast=True), window, base, counts_ptr.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=4,
        )
    elif COVERED and COUNTER == "shared":
        tl.inline_asm_elementwise(
            INCREMENT,
            "=r,r,r",
            [_regular_slot(y, grid_ptr, bins), window],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        if BITS > 0:
            key = _float_key(y, BITS)
            index, inside = _float_index(key, base, WINDOW)
            slot = key + ((255 << BITS) + 1)
        else:
            slot = _regular_slot(y, grid_ptr, bins)
            index = slot
            inside = slot < WINDOW
        if COUNTER == "registers":
            # Without a mask, which older versions of Triton lack: to a place that is nobody's.
            nobody: tl.constexpr = WINDOW // 2 if BITS > 0 else WINDOW - 1
            index = tl.where(inside, index, nobody)
            ENTRIES: tl.constexpr = y.shape[0] * y.shape[1]
            window += tl.histogram(tl.reshape(index, [ENTRIES]), WINDOW)
        else:
            tl.atomic_add(window + index, 1, mask=inside, sem="relaxed")
        if not COVERED:
            one = tl.full(slot.shape, 1, tl.int64)
            tl.atomic_add(counts_ptr + slot, one, mask=~inside, sem="relaxed")
    return window


@jit
def halves(y: tl.tensor, AXIS: tl.constexpr) -> tl.tuple:
    """The two halves of a tile along `AXIS`, each in the registers it is in."""
    if AXIS == 0:
        pair = tl.permute(tl.reshape(y, [2, y.shape[0] // 2, y.shape[1]]), [1, 2, 0])
    else:
        pair = tl.permute(tl.reshape(y, [y.shape[0], 2, y.shape[1] // 2]), [0, 2, 1])
    return tl.split(pair)


@jit
def count_parts(
    y: tl.tensor,
    window: tl.tensor,
    base: tl.tensor,
    grid_ptr: tl.tensor,
    counts_ptr: tl.tensor,
    bins: Number,
    BITS: tl.constexpr,
    COVERED: tl.constexpr,
    WINDOW: tl.constexpr,
    COUNTER: tl.constexpr,
    INCREMENT: tl.constexpr,
    SPLIT_M: tl.constexpr,
    SPLIT_N: tl.constexpr,
) -> tl.tensor:
    """`_count` part after part, the tile halved `SPLIT_M` and `SPLIT_N` times; the window.

    Increments keep their order, so what is worked out for one waits for those before it: a few
    entries at a time need few registers. `tl.histogram` takes a tile at once.
    """
    if SPLIT_M + SPLIT_N == 0 or COUNTER == "registers":
        window = _count(
            y, window, base, grid_ptr, counts_ptr, bins,
            BITS, COVERED, WINDOW, COUNTER, INCREMENT,
        )  # fmt: skip
    else:
        AXIS: tl.constexpr = 1 if SPLIT_N > 0 else 0
        LESS_M: tl.constexpr = SPLIT_M - 1 + AXIS
        LESS_N: tl.constexpr = SPLIT_N - AXIS
        first, second = halves(y, AXIS)
        window = count_parts(
            first, window, base, grid_ptr, counts_ptr, bins,
            BITS, COVERED, WINDOW, COUNTER, INCREMENT, LESS_M, LESS_N,
        )  # fmt: skip
        window = count_parts(
            second, window, base, grid_ptr, counts_ptr, bins,
            BITS, COVERED, WINDOW, COUNTER, INCREMENT, LESS_M, LESS_N,
        )  # fmt: skip
    return window
