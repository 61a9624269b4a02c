"""Every kernel is compiled ahead of time for sm_80 and sm_90, and its registers are read.

That needs no GPU, but Triton without its interpreter: this file, run as a script in a process of
its own, compiles and prints what it found as JSON.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CAPABILITIES = (80, 90)
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")
AXES = {"float": 7, "regular": 0}  # mantissa bits
POINTERS = {
    "probe_ptr": "fp32",
    "grid_ptr": "fp32",
    "scratch_ptr": "i32",
    "counts_ptr": "i64",
    "sums_ptr": "fp64",
    "rare_ptr": "i64",
}
CASES = [
    f"{kernel} {axis} sm_{capability}"
    for kernel in ("stream", *PRECISIONS)
    for axis in AXES
    for capability in CAPABILITIES
]
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
    assert window >= 20 << 10
    assert own + window <= SHARED_MEMORY[int(case[-2:])]
    assert own > PLAIN_SHARED_MEMORY or own + window <= PLAIN_SHARED_MEMORY or own == 0


@pytest.mark.parametrize("case", CASES)
def test_increments_count_equal_addresses_together(case, compiled):
    """Bursty data would otherwise serialise."""
    assert compiled[case]["popc_inc"] > 0


@pytest.mark.parametrize("case", [case for case in CASES if "stream" not in case])
def test_products_run_on_the_tensor_cores(case, compiled):
    unit = "fma" if case.startswith("ieee") else "wgmma" if case.endswith("90") else "mma"
    assert compiled[case]["unit"] == unit


def compile_all():
    return {case: compile_one(*case.split()) for case in CASES}


def compile_one(kernel, axis, architecture):
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from burst.kernels import _triton, _triton_kernels
    from burst.kernels._ptx import increment

    capability, bits = int(architecture[-2:]), AXES[axis]
    constants = {"BITS": bits, "COVERED": not bits, "CAREFUL": False, "COUNTER": "shared"}
    constants["INCREMENT"] = increment(bits)
    if kernel == "stream":
        function, tile = _triton_kernels.histogram_kernel, _triton.STREAM
        constants |= {"ROWS": tile.m, "COLUMNS": tile.n, "SPLIT_M": tile.split[0]}
        pointers, whole = {"x_ptr": "fp32", **POINTERS}, []
    else:
        function = _triton_kernels.matmul_histogram_kernel
        tile = _triton.product_tile(kernel, divmod(capability, 10))
        bf16 = kernel == "bf16"
        constants |= {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k, "WHOLE_K": True}
        constants |= {"SPLIT_M": tile.split[0], "SPLIT_N": tile.split[1], "WIDEN": False}
        constants |= {"OPERAND": tl.bfloat16 if bf16 else tl.float32}
        constants |= {"PRECISION": "tf32" if bf16 else kernel, "stride_ak": 1, "stride_bk": 1}
        pointers = {"a_ptr": "fp32", "b_ptr": "fp32", **POINTERS}
        whole = ["stride_am", "stride_bn", "m", "n", "k"]  # multiples of 16, as at d = 768
    names = function.arg_names
    signature = {
        name: "constexpr"
        if name in constants
        else f"*{pointers[name]}"
        if name in pointers
        else "i32"
        for name in names
    }
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in [*pointers, *whole]}
    values = {(names.index(name),): value for name, value in constants.items()}
    built = triton.compile(
        ASTSource(function, signature, values, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
    )
    return read(built, Path(triton.__file__).parent / "backends/nvidia/bin")


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
    }


def output(*command):
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True
    ).stdout


if __name__ == "__main__":
    sys.stdout.write(json.dumps(compile_all()))
