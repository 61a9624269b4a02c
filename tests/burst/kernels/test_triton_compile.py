"""Every kernel is compiled ahead of time for sm_80 and sm_90, and its registers are read.

That needs no GPU, but Triton without its interpreter: this file, run as a script in a process of
its own, lets the launchers run up to the launch, compiles what they would launch, and prints what
it found as JSON.
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CAPABILITIES = (80, 90)
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")
AXES = ("float", "regular")
PLAIN = [f"{kernel} plain {axis}" for kernel in ("stream", *PRECISIONS) for axis in AXES]
# 16-bit and mixed operands, gaps between rows and columns, sizes that fit nothing, operands with
# NaN, more bins than the chip holds, and more entries than int32 counts.
VARIANTS = [
    *("stream float16 float", "stream careful float", "stream plain many", "stream long float"),
    *("tf32x3 float16 float", "tf32x3 bfloat16 regular", "tf32x3 mixed float"),
    *("tf32x3 strided float", "tf32x3 ragged float", "tf32x3 careful float", "tf32x3 plain many"),
    *("tf32 strided float", "bf16 ragged float", "ieee least regular"),
]
CASES = [f"{case} sm_{capability}" for case in PLAIN + VARIANTS for capability in CAPABILITIES]
PRODUCTS = [case for case in CASES if not case.startswith("stream")]
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}  # most that a program may have
PLAIN_SHARED_MEMORY = 48 << 10  # and without asking for more, which Triton does by its own part


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_nothing_spills(case, compiled):
    assert compiled[case]["stack"] == 0
    assert compiled[case]["local"] == 0
    assert 0 < compiled[case]["registers"] <= 255


@pytest.mark.parametrize("case", CASES)
def test_shared_memory_fits(case, compiled):
    own, window = compiled[case]["dynamic"], compiled[case]["static"]
    assert window >= 20 << 10 or " many " in case
    assert own + window <= SHARED_MEMORY[int(case[-2:])]
    assert own > PLAIN_SHARED_MEMORY or own + window <= PLAIN_SHARED_MEMORY or own == 0


@pytest.mark.parametrize("case", [case for case in CASES if " many " not in case])
def test_increments_count_equal_addresses_together(case, compiled):
    """Bursty data would otherwise serialise."""
    assert compiled[case]["popc_inc"] > 0


@pytest.mark.parametrize("case", PRODUCTS)
def test_products_run_on_the_tensor_cores(case, compiled):
    unit = "fma" if case.startswith("ieee") else "wgmma" if case.endswith("90") else "mma"
    assert compiled[case]["unit"] == unit


@pytest.mark.parametrize("case", [case for case in PRODUCTS if " plain " in case])
def test_only_tf32x3_rounds_to_tf32_and_tf32_is_cut_off(case, compiled):
    """What the documented bounds assume; 16-bit operands are rounded elsewhere."""
    assert compiled[case]["rounds to tf32"] == case.startswith("tf32x3")


@pytest.mark.parametrize("case", CASES)
def test_the_compiler_knows_strides_of_one_and_how_long_numbers_are(case, compiled):
    kernel, operands, _, _ = case.split()
    types = compiled[case]["types"]
    if kernel == "stream":
        assert types["size"] == ("i64" if operands == "long" else "i32")
    else:  # else neighbours are loaded one by one
        assert types["stride_ak"] == types["stride_bk"]
        assert types["stride_ak"] == ("i32" if operands == "strided" else "constexpr")


class Compiled(Exception):
    """Ends a launcher where it would launch, with the kernel."""


class AheadOfTime:
    """Stands for a kernel: compiles it for the arguments it is started with."""

    def __init__(self, kernel, **changed):
        self.kernel, self.changed = kernel, changed

    def warmup(self, *arguments, **constants):
        raise Compiled(self.kernel.warmup(*arguments, **(constants | self.changed)))


class NoDevice:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


def compile_one(case):
    import triton
    from triton.runtime.driver import driver

    from burst.kernels import _triton, _triton_kernels

    kernel, operands, axis, architecture = case.split()
    capability = int(architecture[-2:])
    driver.set_active(NoDevice(capability))
    changed = {"CAREFUL": True} if operands == "careful" else {}
    for name in ("histogram_kernel", "matmul_histogram_kernel"):
        function = getattr(_triton_kernels, name)
        known = function.kernel if isinstance(function, AheadOfTime) else function
        setattr(_triton_kernels, name, AheadOfTime(known, **changed))
    try:
        if kernel == "stream":
            _triton.histogram(entries(operands), axis_of(axis))
        else:
            _triton._capability = lambda _: divmod(capability, 10)
            _triton.matmul_histogram(*matrices(operands), axis_of(axis), precision=kernel)
    except Compiled as found:
        return case, read(found.args[0], Path(triton.__file__).parent / "backends/nvidia/bin")
    raise AssertionError(f"{case} launched nothing")


def axis_of(name):
    from burst.axis import FloatAxis, RegularAxis

    bins = {"regular": 256, "many": 20_000}
    return RegularAxis(bins[name], -6.0, 6.0) if name in bins else FloatAxis()


def entries(kind):
    import torch

    if kind == "long":  # never written, so of these 4 GiB hardly a page is taken
        return torch.empty(2**31 + 16, dtype=torch.bfloat16)
    return torch.zeros(1 << 16, dtype=torch.float16 if kind == "float16" else torch.float32)


def matrices(kind):
    """(768, 768) by (768, 2048), as tokens in rows are, or what else `kind` says."""
    import torch

    if kind == "strided":
        return torch.zeros(2 * 768, 2 * 768)[::2, ::2], torch.zeros(2 * 2048, 2 * 768)[::2, ::2].mT
    if kind == "ragged":
        return torch.zeros(770, 773), torch.zeros(2001, 773).mT
    of_a, of_b = {
        "float16": (torch.float16, torch.float16),
        "bfloat16": (torch.bfloat16, torch.bfloat16),
        "mixed": (torch.float32, torch.bfloat16),
    }.get(kind, (torch.float32, torch.float32))
    if kind == "least":
        return torch.zeros(1, 1), torch.zeros(1, 1)
    return torch.zeros(768, 768, dtype=of_a), torch.zeros(2048, 768, dtype=of_b).mT


def read(built, tools):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        machine = output(tools / "nvdisasm", file.name)
    number = {
        name: int(re.search(rf"{name}:(\d+)", usage)[1])
        for name in ("REG", "STACK", "LOCAL", "SHARED")
    }
    ptx = built.asm["ptx"]
    return {
        "registers": number["REG"],
        "stack": number["STACK"],
        "local": number["LOCAL"],
        "static": number["SHARED"],
        "dynamic": built.metadata.shared,
        "popc_inc": machine.count("ATOMS.POPC.INC"),
        "unit": "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "fma",
        "rounds to tf32": "cvt.rna.tf32" in ptx,
        "types": built.src.signature,
    }


def output(*command):
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True
    ).stdout


def compile_all():
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, 8)) as pool:
        return dict(pool.imap_unordered(compile_one, CASES))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(compile_all()))
