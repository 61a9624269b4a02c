"""The few lines of PTX with which Triton's kernels count in shared memory.

Triton has no shared-memory atomics of its own. From sm_80 on, `red.shared.add` of the constant 1
becomes ATOMS.POPC.INC: equal addresses in a warp are counted together, so that
bursty and even constant data cost no more than others.
"""

from functools import cache

# 20 KiB: room for 4,096 regular bins and flow, or 20 octaves a sign of 7 mantissa bits. Triton asks
# for more than 48 KiB only where its own share exceeds that; else the two must fit into them.
WINDOW_BINS = 5120

DECLARE = f".shared .align 16 .b8 burst_window[{4 * WINDOW_BINS}];\nmov.u32 $0, burst_window;"
CLEAR = "{ st.shared.u32 [$1], 0; mov.u32 $0, 0; }"
READ = "ld.shared.u32 $0, [$1];"


@cache
def increment(bits: int) -> str:
    """PTX that counts in shared memory: one entry, or on a float axis of `bits` mantissa bits four.

    Operands, four of each on a float axis: results that nobody reads, the place (or on a float axis
    the entry's bits), the window's address; on a float axis also the window's lowest |key| and the
    address of the counts' slot 0. Its arithmetic is that of `_float_key` and `_float_index`; done
    outside, the compiler would find the places of a whole tile before it counts the first, and run
    out of registers. The branch, over increments in memory that are rare, also holds it back.
    """
    if not bits:
        return (
            "{ .reg .b32 address; shl.b32 address, $1, 2; add.s32 address, address, $2;"
            " red.shared.add.u32 [address], 1; mov.u32 $0, 0; }"
        )
    near = "".join(_near(bits, entry) for entry in range(4))
    far = "".join(_far(bits, entry) for entry in range(4))
    return (
        "{ .reg .pred inside0, inside1, inside2, inside3, zero;"
        " .reg .b32 sign, size, part, address; .reg .b64 far;"
        f" {near} and.pred zero, inside0, inside1; and.pred zero, zero, inside2;"
        f" and.pred zero, zero, inside3; @zero bra DONE; {far} DONE:"
        " mov.u32 $0, 0; mov.u32 $1, 0; mov.u32 $2, 0; mov.u32 $3, 0; }"
    )


def _near(bits: int, entry: int) -> str:
    shift, half = 23 - bits, WINDOW_BINS // 2
    y, window, base = f"${4 + entry}", f"${8 + entry}", f"${12 + entry}"
    return (
        f" shr.s32 sign, {y}, 31;"
        f" and.b32 size, {y}, 0x7fffffff;"
        f" and.b32 part, sign, {(1 << shift) - 1};"  # negative numbers round away from 0
        " add.s32 size, size, part;"
        f" shr.u32 size, size, {shift};"
        f" sub.s32 part, size, {base};"
        f" setp.lt.u32 inside{entry}, part, {half - 1};"
        " shl.b32 part, part, 2;"
        f" add.s32 address, part, {window};"
        f" and.b32 part, sign, {4 * half};"
        " add.s32 address, address, part;"
        " add.s32 address, address, 4;"
        " setp.eq.s32 zero, size, 0;"
        f" selp.b32 address, {window}, address, zero;"
        f" or.pred inside{entry}, inside{entry}, zero;"
        f" @inside{entry} red.shared.add.u32 [address], 1;"
    )


def _far(bits: int, entry: int) -> str:
    shift, y, counts = 23 - bits, f"${4 + entry}", f"${16 + entry}"
    return (
        f" shr.s32 sign, {y}, 31;"
        f" and.b32 size, {y}, 0x7fffffff;"
        " xor.b32 size, size, sign;"
        " sub.s32 size, size, sign;"
        f" shr.s32 size, size, {shift};"
        f" add.s32 size, size, {(255 << bits) + 1};"
        f" mad.wide.s32 far, size, 8, {counts};"
        f" @!inside{entry} red.global.add.u64 [far], 1;"
    )
