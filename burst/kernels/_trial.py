"""May "auto" choose Triton on this GPU? Found out once: can it run there, and does it count right?

The kernels were written without the GPU that they now run on, and a wrong count looks like any
other. So before one of them is chosen for the first time, it counts small integers, which every
precision multiplies exactly, between half-integer edges, and must find what the reference finds.
"""

import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from burst.axis import Axis, FloatAxis, RegularAxis
from burst.errors import BackendWarning
from burst.histogram import Histogram
from burst.kernels import reference

STREAM = "histogram"  # the kernel for tensors; those for products go by their precision
OLDEST = (8, 0)  # compute capability from which shared-memory increments are counted together
RTOL = 1e-5  # of moments: what the kernels promise
_AXES = (FloatAxis(), RegularAxis(41, -20.5, 20.5))  # the latter does not hold everything

_passed: set[tuple[torch.device, str]] = set()
_refused: dict[torch.device, str] = {}


def installed() -> bool:
    """Whether Triton can be imported."""
    return find_spec("triton") is not None


def passes(device: torch.device, kernel: str) -> bool:
    """Whether `kernel` may be chosen on `device` without being asked for by name.

    The first call for a kernel compiles and tries it, which takes seconds unless Triton has it in
    its cache on disk. A device on which one kernel failed is not given another.

    Args:
        device: a CUDA device.
        kernel: `STREAM`, or the precision of a product.

    Warns:
        BackendWarning: once a device, if Triton cannot run there or counts wrongly.
    """
    if device not in _refused and (device, kernel) not in _passed:
        problem = obstacle(device) or failure(device, kernel)
        if problem is None:
            _passed.add((device, kernel))
        else:
            _refused[device] = problem
            warnings.warn(
                f"the triton backend is not used on {device}, which counts with torch, more "
                f"slowly: {problem}; give backend='torch' to silence this",
                BackendWarning,
                stacklevel=4,
            )
    return device not in _refused


def obstacle(device: torch.device) -> str | None:
    """What keeps the kernels from running on a GPU at all, in words; None if nothing does."""
    if not installed():
        return "Triton is not installed (pip install triton)"
    if torch.version.hip is not None:
        return "the kernels are written for NVIDIA GPUs, and this PyTorch is built for AMD's"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < OLDEST:
        return f"its compute capability is {major}.{minor}, and the kernels need 8.0"
    if import_module("burst.kernels._triton").INTERPRETED:
        return "Triton interprets its kernels (unset TRITON_INTERPRET)"
    return None


def failure(device: torch.device, kernel: str) -> str | None:
    """How `kernel` fails on small integers, in words; None if it counts right.

    Raises:
        torch.OutOfMemoryError: no room for a few MB: no fault of the kernel's.
    """
    implementation = import_module("burst.kernels._triton")
    try:
        for axis in _AXES:
            found, expected = _count(implementation, device, kernel, axis)
            if not _same(found, expected):
                return (
                    f"its {kernel} kernel counts wrongly on {axis} "
                    "(please report this GPU and the versions of torch and triton)"
                )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers and drivers fail in ways that have no common base
        return f"its {kernel} kernel does not run: {type(error).__name__}: {_first_line(error)}"
    return None


def _count(
    triton: ModuleType, device: torch.device, kernel: str, axis: Axis
) -> tuple[Histogram, Histogram]:
    """What the kernel finds on the device, and the reference on the CPU."""
    if kernel == STREAM:
        x = 8.0 * _integers(20_000)  # whole tiles and part of one
        x[::97] *= 2.0**-60  # on a float axis outside the counters on the chip
        found: Histogram = triton.histogram(x.to(device), axis)
        return found, reference.histogram(x, axis)
    a, b = _integers(144, 64), _integers(208, 64).mT  # no multiples of a tile
    found = triton.matmul_histogram(a.to(device), b.to(device), axis, precision=kernel)
    return found, reference.matmul_histogram(a, b, axis)


def _integers(*shape: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)  # the caller's stay as they are
    numbers = torch.randint(-3, 4, shape, generator=generator, device="cpu")
    return numbers.to(torch.float32)


def _same(found: Histogram, expected: Histogram) -> bool:
    return (
        found.allclose(expected, rtol=RTOL)
        and found.moments.minimum == expected.moments.minimum
        and found.moments.maximum == expected.moments.maximum
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")[:200]
