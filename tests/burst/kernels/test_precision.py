"""The documented bounds of each precision, as arithmetic.

Operands are rounded here in NumPy, as the formats say, and multiplied exactly: this checks the
bounds of `matmul_histogram`, not hardware. `test_triton` bounds the kernels themselves.
"""

import numpy as np
import pytest

BOUND = {
    "tf32x3": 2.0**-20,
    "tf32": 2.0**-9,
    "bf16": 2.0**-7 + 2.0**-16,
}  # beside accumulation, relative to sum_k |a_ik b_kj|


def bits(x):
    return np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)


def floats(word):
    return (word & 0xFFFFFFFF).astype(np.uint32).view(np.float32)


def to_nearest_tf32(x):
    """cvt.rna.tf32: 10 bits of mantissa, halves away from zero."""
    return floats((bits(x) + 0x1000) & ~np.uint64(0x1FFF))


def cut_to_tf32(x):
    """What tensor cores read of a float32 that was not converted."""
    return floats(bits(x) & ~np.uint64(0x1FFF))


def to_nearest_bf16(x):
    """7 bits of mantissa, halves to even."""
    word = bits(x)
    return floats((word + 0x7FFF + ((word >> np.uint64(16)) & 1)) & ~np.uint64(0xFFFF))


def in_tf32x3(a, b):
    """Two tf32 numbers for each operand; the product of the two small ones is left out."""
    big_a, big_b = to_nearest_tf32(a), to_nearest_tf32(b)
    small_a, small_b = to_nearest_tf32(a - big_a), to_nearest_tf32(b - big_b)
    return exact(big_a, big_b) + exact(small_a, big_b) + exact(big_a, small_b)


def exact(a, b):
    return a.astype(np.float64) @ b.astype(np.float64)


PRODUCT = {
    "tf32x3": in_tf32x3,
    "tf32": lambda a, b: exact(cut_to_tf32(a), cut_to_tf32(b)),
    "bf16": lambda a, b: exact(to_nearest_bf16(a), to_nearest_bf16(b)),
}


def error(product, a, b):
    """The worst entry's, relative to sum_k |a_ik b_kj|."""
    return (np.abs(product(a, b) - exact(a, b)) / exact(np.abs(a), np.abs(b))).max()


def worst_operands(precision, size):
    """Numbers just above 1 that lose the most, and all in one direction.

    In tf32x3 it is the product of the two small parts, which rounding them would make up for.
    """
    lost = {"tf32x3": 2**12 - 2, "tf32": 2**13 - 1, "bf16": 2**15 - 1}[precision]
    return floats(np.full((2, size), bits(1.0) + np.uint64(lost)))


@pytest.mark.parametrize("k", [1, 16, 768])
@pytest.mark.parametrize("precision", BOUND)
def test_rounding_the_operands_stays_within_the_documented_bound(precision, k, rng):
    for law in (rng.normal, rng.laplace, rng.standard_cauchy):
        a, b = law(size=(24, k)).astype(np.float32), law(size=(k, 24)).astype(np.float32)
        assert error(PRODUCT[precision], a, b) <= BOUND[precision]


@pytest.mark.parametrize("precision", BOUND)
def test_the_worst_operands_come_near_the_bound(precision):
    a, b = worst_operands(precision, 64)
    found = error(PRODUCT[precision], a[None], b[:, None])
    assert BOUND[precision] / 8 < found <= BOUND[precision]


@pytest.mark.parametrize("k", [1, 16, 768])
def test_accumulation_in_float32_stays_within_k_roundings(k, rng):
    a, b = rng.normal(size=(24, k)).astype(np.float32), rng.normal(size=(k, 24)).astype(np.float32)
    total = np.zeros((24, 24), np.float32)
    for i in range(k):  # one fused multiply-add after the other
        step = np.outer(a[:, i].astype(np.float64), b[i].astype(np.float64))
        total = (total.astype(np.float64) + step).astype(np.float32)
    assert error(lambda *_: total, a, b) <= k * 2.0**-24


@pytest.mark.parametrize("bits_kept", [8, 11], ids=["bfloat16", "float16"])
def test_products_of_16_bit_operands_are_exact_in_float32(bits_kept, rng):
    a, b = (rng.integers(2 ** (bits_kept - 1), 2**bits_kept, 5000).astype(np.float64) for _ in "ab")
    assert np.array_equal((a * b).astype(np.float32).astype(np.float64), a * b)
