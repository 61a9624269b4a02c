"""The PTX that counts on a float axis, run instruction by instruction in NumPy."""

import re

import numpy as np
import pytest

from burst.axis import FloatAxis
from burst.kernels._ptx import WINDOW_BINS, increment

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-45, -1e-45, 1.0, -1.0]


def signed(number: int) -> int:
    return (number & 0xFFFFFFFF) - ((number & 0x80000000) << 1)


OPERATIONS = {
    "shr.s32": lambda x, y: signed(x) >> y,
    "shr.u32": lambda x, y: (x & 0xFFFFFFFF) >> y,
    "shl.b32": lambda x, y: x << y,
    "and.b32": lambda x, y: x & y,
    "xor.b32": lambda x, y: x ^ y,
    "add.s32": lambda x, y: signed(x + y),
    "sub.s32": lambda x, y: signed(x - y),
    "setp.lt.u32": lambda x, y: (x & 0xFFFFFFFF) < (y & 0xFFFFFFFF),
    "setp.eq.s32": lambda x, y: signed(x) == signed(y),
    "selp.b32": lambda x, y, first: x if first else y,
    "or.pred": lambda x, y: x or y,
    "mad.wide.s32": lambda x, y, z: signed(x) * y + z,
}


def run(program: str, operands: dict[str, int]) -> tuple[str, int]:
    """Where one entry is counted: ("near", byte address) or ("far", byte address)."""
    value = dict(operands)
    hits = []

    def read(name: str) -> int:
        return value[name] if name in value else int(name, 0)

    for line in filter(None, (part.strip() for part in program.split(";"))):
        guard, operation, rest = re.fullmatch(r"(@!?\w+ )?(\S+) (.*)", line).groups()
        if guard and bool(value[guard.strip("@! ")]) == ("!" in guard):
            continue
        names = [name.strip(" []") for name in rest.split(",")]
        if operation.startswith("red."):
            hits.append(("near" if "shared" in operation else "far", read(names[0])))
            continue
        value[names[0]] = OPERATIONS[operation](*(read(name) for name in names[1:]))
    (hit,) = hits
    return hit


@pytest.mark.parametrize("bits", [1, 7, 10])
@pytest.mark.parametrize("octave", [20, 127, 140, 252])
@pytest.mark.parametrize("entry", range(4))
def test_every_float_is_counted_once_and_in_its_bin(bits, octave, entry):
    axis, half = FloatAxis(bits), WINDOW_BINS // 2
    base = max((octave << bits) - half + 1, 1)
    around = np.ldexp(1.0, octave - 127) * np.random.default_rng(entry).normal(size=40)
    _, near, far = re.fullmatch(
        r"(\{.*far;)(.*)and\.pred zero, inside0.*DONE;(.*)DONE:.*", increment(bits)
    ).groups()
    # one entry's part of each: from one sign to the next
    program = (";shr.s32 sign" + near.split("shr.s32 sign")[entry + 1]) + (
        ";shr.s32 sign" + far.split("shr.s32 sign")[entry + 1]
    )
    for y in np.array([*SPECIAL, *around], np.float32):
        word = int(np.array(y).view(np.int32))
        operands = {f"${4 + entry}": word, f"${8 + entry}": 1 << 12, f"${12 + entry}": base}
        operands[f"${16 + entry}"] = 1 << 40
        place, address = run(program, operands)
        size = word & 0x7FFFFFFF
        expected = (size if word >= 0 else -size) >> axis.shift
        if place == "far":
            key = (address - (1 << 40)) // 8 + axis.first - 1
        else:
            index = (address - (1 << 12)) // 4
            assert 0 <= index < WINDOW_BINS
            size = 0 if index == 0 else index % half + base - 1
            key = size if index < half else -size
        assert key == expected
