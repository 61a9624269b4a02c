"""Every kernel is compiled ahead of time, without a GPU, for the architectures that Triton knows.

`ahead.py` beside this file does it, in a process of its own: it goes through the cuts of `_tiles`
as a trial on a GPU does, and tells which is the first that the GPU could start without spilling.
The few cases here are for every day; `-m versions` takes all architectures, operands and counters.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
EVERY_DAY = [
    f"{case} sm_{capability}"
    for capability in (80, 90)
    for case in (
        *(
            "stream plain float shared",
            "stream plain regular registers",
            "stream long float shared",
        ),
        *("tf32x3 plain float shared", "tf32x3 head float shared", "tf32x3 plain many scratch"),
    )
] + ["tf32x3+margins plain float shared sm_90", "fold plain float scratch sm_80"]
# With "+margins" the product's rows and columns are summed too, and "fold" adds up columns' parts.
# 16-bit and mixed operands, gaps between rows and columns, sizes that fit nothing, more bins than
# the chip holds, and more entries than int32 counts.
PLAIN = [
    f"{kernel} plain {axis}"
    for kernel in ("stream", "ieee", "tf32x3", "tf32", "bf16")
    for axis in ("float", "regular")
]
VARIANTS = [
    *("stream float16 float", "stream long float"),
    *("tf32x3 float16 float", "tf32x3 bfloat16 regular", "tf32x3 mixed float"),
    *("tf32x3 strided float", "tf32x3 ragged float", "tf32x3 head float"),
    *("tf32 strided float", "bf16 ragged float", "ieee ragged float", "ieee least regular"),
]
MARGINS = [
    *(f"{precision}+margins plain float" for precision in ("ieee", "tf32x3", "tf32", "bf16")),
    *(f"tf32x3+margins {operands} float" for operands in ("strided", "ragged", "mixed")),
    *("tf32x3+margins bfloat16 regular", "ieee+margins least regular"),
]
FEW = [
    f"{kernel} plain float"
    for kernel in ("stream", "ieee", "tf32x3", "bf16", "tf32x3+margins", "bf16+margins")
]
ALL = [
    f"{case} {counter} sm_{capability}"
    for capability in CAPABILITIES
    for case in (PLAIN + VARIANTS + MARGINS if capability in (80, 90) else FEW)
    for counter in ("shared", "registers", "scratch")
] + [
    f"{kernel} plain many scratch sm_{capability}"
    for capability in CAPABILITIES
    for kernel in ("stream", "tf32x3", "tf32x3+margins", "fold")
]


def compiled(cases):
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("ahead.py"), *cases],
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def all_():
    return compiled(ALL)


def taken(case, found):
    """What became of a case: a cut that fits, or how each of them fares; None if none need fit."""
    if found[case] is None:
        return None  # this Triton's assembler does not know the architecture
    fits = found[case]["taken"]
    if "registers" in case and not fits:
        return None  # older Tritons spill some: the GPU has other counters
    assert fits, json.dumps(found[case]["tried"], indent=1)
    return found[case]


def check(case, facts):
    """A cut fits, equal addresses are counted together, and products run where they should."""
    kernel, operands, _, counter, architecture = case.split()
    capability = int(architecture.removeprefix("sm_"))
    assert (facts["static"] >= 20 << 10) == (counter == "shared")
    if counter == "shared" and capability >= 80:  # else bursty data would serialise
        assert facts["popc_inc"] > 0
    types = facts["types"]
    kernel = kernel.removesuffix("+margins")
    if kernel == "fold":
        assert (types["n"], types["sums_ptr"]) == ("i32", "*fp64")
        return
    if kernel == "stream":
        assert types["size"] == ("i64" if operands == "long" else "i32")
        return
    if capability >= 80 and not (kernel == "ieee" and operands != "bfloat16"):
        assert facts["unit"] != "fma"
    # The compiler knows strides of one: else neighbours are loaded one by one.
    assert types["stride_ak"] == types["stride_bk"]
    assert types["stride_ak"] == ("i32" if operands == "strided" else "constexpr")


FORKED = """
import json, sys
from pathlib import Path

sys.path.append(folder)
import ahead

Path(place, "found.json").write_text(json.dumps(dict(map(ahead.find, cases))))
"""


@pytest.mark.slow
def test_a_cut_fits_each_gpu(forked, tmp_path):
    """In one test, since each process that runs some of them would compile all."""
    pytest.importorskip("triton", reason="Triton is not installed")
    names = f"folder, cases = {str(Path(__file__).parent)!r}, {EVERY_DAY!r}\n"
    ended = forked(names + FORKED, tmp_path).end()
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    known = {case: facts for case in EVERY_DAY if (facts := taken(case, found))}
    for case, facts in known.items():
        check(case, facts)
    assert len(known) >= len(EVERY_DAY) // 2


@pytest.mark.versions
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", ALL)
def test_a_cut_of_every_variant_fits_every_gpu(case, all_):
    facts = taken(case, all_)
    if facts is None:
        pytest.skip("this Triton's assembler does not know it, or spills what is in registers")
    check(case, facts)


@pytest.mark.versions
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", [case for case in ALL if case.split()[1:3] == ["plain", "float"]])
def test_only_tf32x3_rounds_to_tf32_and_tf32_is_cut_off(case, all_):
    """What the documented bounds assume; 16-bit operands are rounded elsewhere."""
    if int(case.split("_")[-1]) < 80:
        pytest.skip("before compute capability 8 products are float32")
    facts = taken(case, all_)
    if facts is None:
        pytest.skip("this Triton's assembler does not know it, or spills what is in registers")
    assert facts["rounds to tf32"] == case.startswith("tf32x3")
