"""Kernels compiled ahead of time, without a GPU: what each cut takes, on which architecture.

Run as a script in a process of its own, since Triton must not be in its interpreter: it lets the
launchers run up to the launch, compiles what they would launch, reads registers and shared memory
from the binary, and prints as JSON what it found.

    python ahead.py "tf32x3 plain float shared sm_90" "tf32x3+margins plain float shared sm_90" ...
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

# Most that a program may have of shared memory; and the registers of all its threads.
SHARED_MEMORY = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB
REGISTERS = 65536


class Compiled(Exception):
    """Ends a launcher where it would launch, with the kernel."""


class AheadOfTime:
    """Stands for a kernel: compiles it for the arguments it is started with."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            raise Compiled(self.kernel.warmup(*arguments, grid=grid, **constants))

        return launch


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


def knows(capability):
    """Whether this Triton's assembler knows an architecture."""
    return f"sm_{capability}" in output(assembler(capability), "--help")


def assembler(capability):
    """Some versions bring another one for the newest architectures."""
    newest = tools() / "ptxas-blackwell"
    return newest if capability >= 100 and newest.exists() else tools() / "ptxas"


def tools():
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin"


def find(case):
    """The first cut of a case that fits, and all that were tried: {"cut": problem or usage}."""
    import torch
    from triton.runtime.driver import driver

    from burst.kernels import _triton, _triton_kernels
    from burst.kernels._resources import Limits, Usage
    from burst.kernels._tiles import product_tiles, stream_tiles

    kernel, operands, axis_name, counter, architecture = case.split()
    kernel, _, margins = kernel.partition("+")
    capability = int(architecture.removeprefix("sm_"))
    if not knows(capability):
        return case, None
    driver.set_active(NoDevice(capability))
    _triton._capability = lambda _: divmod(capability, 10)
    wrap(_triton_kernels, "histogram_kernel", "matmul_histogram_kernel")
    wrap(_triton, "fold_columns_kernel")
    axis = axis_of(axis_name)
    if kernel == "stream":
        x = entries(operands)
        candidates = stream_tiles(axis)

        def run(tile):
            _triton.Accumulator(axis, torch.device("cpu")).add(x, cut=tile)
    elif kernel == "fold":
        candidates = product_tiles(*matrices(operands), "tf32x3", axis, divmod(capability, 10))

        def run(tile):
            found = _triton.Accumulator(axis, torch.device("cpu"), margins=True)
            found._fold(found._margins, torch.zeros(6, 7, 2048), 768, tile)
    else:
        a, b, precision = _triton._operands(*matrices(operands), kernel)
        candidates = product_tiles(a, b, precision, axis, divmod(capability, 10))

        def run(tile):
            found = _triton.Accumulator(axis, torch.device("cpu"), margins=margins == "margins")
            found.add_product(a, b, precision=precision, cut=tile)

    limits = Limits(SHARED_MEMORY[capability] << 10, REGISTERS)
    tried = {}
    for tile in candidates:
        if tile.counter != counter:
            continue
        try:
            run(tile)
        except Compiled as compiled:
            facts = read(compiled.args[0])
            built = SimpleNamespace(
                _init_handles=lambda: None,
                metadata=SimpleNamespace(shared=facts["own"]),
                n_regs=facts["registers"],
                n_spills=facts["spilled"] // 4,
            )
            usage = Usage.of(built, tile)
            problem = usage.problem(limits)
            tried[str(tile)] = problem
            if problem is None:
                return case, {"taken": str(tile), "tried": tried, **facts}
        except Exception as error:
            tried[str(tile)] = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    return case, {"taken": None, "tried": tried}


def wrap(module, *names):
    """Let kernels be compiled where they would be started, once."""
    for name in names:
        function = getattr(module, name)
        if not isinstance(function, AheadOfTime):
            setattr(module, name, AheadOfTime(function))


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
    if kind == "head":  # d_h = 72: no multiple of a block
        return torch.zeros(768, 72), torch.zeros(2048, 72).mT
    of_a, of_b = {
        "float16": (torch.float16, torch.float16),
        "bfloat16": (torch.bfloat16, torch.bfloat16),
        "mixed": (torch.float32, torch.bfloat16),
    }.get(kind, (torch.float32, torch.float32))
    if kind == "least":
        return torch.zeros(1, 1), torch.zeros(1, 1)
    return torch.zeros(768, 768, dtype=of_a), torch.zeros(2048, 768, dtype=of_b).mT


def read(built):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = output(tools() / "cuobjdump", "--dump-resource-usage", file.name)
        machine = output(tools() / "nvdisasm", file.name)
    number = {
        name: int(re.search(rf"{name}:(\d+)", usage)[1])
        for name in ("REG", "STACK", "LOCAL", "SHARED")
    }
    ptx = built.asm["ptx"]
    units = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma": "mma.sync"}
    return {
        "registers": number["REG"],
        "spilled": number["STACK"] + number["LOCAL"],
        "static": number["SHARED"],
        "own": built.metadata.shared,
        "popc_inc": machine.count("ATOMS.POPC.INC"),
        "unit": next((unit for unit, text in units.items() if text in ptx), "fma"),
        "rounds to tf32": "cvt.rna.tf32" in ptx or "cvt.rn.tf32" in ptx,
        "types": built.src.signature,
    }


def output(*command):
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True
    ).stdout


def main():
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, 8)) as pool:
        found = dict(pool.imap_unordered(find, sys.argv[1:], chunksize=4))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
