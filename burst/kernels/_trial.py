"""Which cut of a kernel, and which way of counting, for this GPU? It is asked, once.

What a compiler makes of a kernel depends on its version, and which counter is fastest on the GPU
and the data. So where a variant of a kernel is needed for the first time on a device, each counter
(`_tiles.COUNTERS`) is tried: the first of its cuts that compiles, that the device can start and
that does not spill counts small integers, which every precision multiplies exactly, and must find
what the reference finds; then it is timed, on bursty data and on one number throughout. The fastest
one that is right is taken, and remembered in a file.

A variant is all that the compiled kernel depends on: operand types, alignment and strides, k, the
kind of axis, the precision. It is tried on operands that are alike in all of this.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burst.axis import Axis, FloatAxis
from burst.errors import BackendError, BackendWarning, OutputError
from burst.files import write_atomically
from burst.histogram import Histogram
from burst.kernels import reference
from burst.kernels._resources import Misfit
from burst.kernels._tiles import Tile, is_covered, window

if TYPE_CHECKING:
    from burst.kernels._triton import Measurement

OLDEST = (7, 5)  # compute capability; Triton knows none before
RTOL = 1e-5  # of moments: what the kernels promise
FEW = 3  # programs that share the tiles while counts are checked, so that each has several
MOST_K = 2048  # of a product that stands for another
TIMED = 1 << 23  # entries of a product, and a quarter of those of a tensor
SOURCES = ("_triton*.py", "_ptx.py", "_tiles.py", "_scaling.py", "_resources.py", "_trial.py")

Draw = Callable[[int], Tensor]  # how many numbers -> float32 on the CPU or the device
_chosen: dict[tuple[torch.device, str], "Choice"] = {}
_warned: set[tuple[torch.device, str]] = set()


class NoCut(BackendError):
    """No cut of a kernel is right on a device."""


@dataclass(frozen=True)
class Trial:
    """How a cut fared: what was wrong with it, or else how many ms it took."""

    cut: str
    problem: str | None = None
    bursty_ms: float | None = None
    constant_ms: float | None = None


@dataclass(frozen=True)
class Choice:
    """What was tried for a variant of a kernel on a device, and what was taken (None: nothing)."""

    variant: str
    device: str
    tile: Tile | None
    trials: tuple[Trial, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for a run's record."""
        taken = str(self.tile) if self.tile else None
        trials = [
            {name: value for name, value in asdict(one).items() if value is not None}
            for one in self.trials
        ]
        return {"variant": self.variant, "device": self.device, "taken": taken, "tried": trials}


@dataclass(frozen=True)
class Variant:
    """A compiled kernel, in words, and how it is run on data of one's own.

    Attributes:
        name: all that it depends on.
        run: `run(cut, draw, timed, programs)` -> what counts the drawn numbers in that cut.
        expect: `expect(draw)` -> what the reference counts of the same.
    """

    name: str
    run: Callable[..., "Measurement"]
    expect: Callable[[Draw], Histogram]

    @classmethod
    def of_stream(cls, piece: Tensor, axis: Axis) -> "Variant":
        """The kernel that counts entries that lie like those of `piece`, which is flat."""
        from burst.kernels import _triton

        def case(draw: Draw, timed: bool) -> Tensor:
            return alike(piece, (4 * TIMED if timed else 60_000,), draw)

        def run(
            cut: Tile, draw: Draw, timed: bool = False, programs: int | None = None
        ) -> "Measurement":
            pieces = [case(draw, timed)]
            return _triton.stream(pieces, axis, cut, strict=True, programs=programs)

        def expect(draw: Draw) -> Histogram:
            return reference.histogram(case(draw, False).cpu(), axis)

        size = " long" if piece.numel() >= 2**31 else ""
        return cls(f"histogram of {_kind(piece)}{size} on {_kind_of_axis(axis)}", run, expect)

    @classmethod
    def of_product(cls, a: Tensor, b: Tensor, axis: Axis, precision: str) -> "Variant":
        """The kernel that counts a product like a @ b."""
        from burst.kernels import _triton

        k = a.shape[1] if a.shape[1] <= MOST_K else MOST_K + a.shape[1] % 128

        def case(draw: Draw, timed: bool) -> tuple[Tensor, Tensor]:
            m, n = (1024, max(1024, min(TIMED // 1024, 2**25 // k))) if timed else (144, 1000)
            return alike(a, (m, k), draw), alike(b, (k, n), draw)

        def run(
            cut: Tile, draw: Draw, timed: bool = False, programs: int | None = None
        ) -> "Measurement":
            pair = case(draw, timed)
            return _triton.product(*pair, axis, precision, cut, strict=True, programs=programs)

        def expect(draw: Draw) -> Histogram:
            left, right = case(draw, False)
            return reference.matmul_histogram(left.cpu(), right.cpu(), axis)

        depth = f"k {1 << (a.shape[1] - 1).bit_length()}, a multiple of {_power_in(a.shape[1])}"
        operands = f"{_kind(a)} by {_kind(b)}, {depth}"
        return cls(f"{precision} product of {operands} on {_kind_of_axis(axis)}", run, expect)


def installed() -> bool:
    """Whether Triton can be imported."""
    return find_spec("triton") is not None


def obstacle(device: torch.device) -> str | None:
    """What keeps the kernels from running on a GPU at all, in words; None if nothing does."""
    if not installed():
        return "Triton is not installed (pip install triton)"
    if torch.version.hip is not None:
        return "the kernels are written for NVIDIA GPUs, and this PyTorch is built for AMD's"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < OLDEST:
        least = ".".join(map(str, OLDEST))
        return f"its compute capability is {major}.{minor}, and the kernels need {least}"
    from burst.kernels import _triton

    if _triton.INTERPRETED:
        return "Triton interprets its kernels (unset TRITON_INTERPRET)"
    return None


def warn(device: torch.device, problem: str) -> None:
    """Say once why "auto" does not mean Triton on this device, or not for this kernel."""
    if (device, problem) not in _warned:
        _warned.add((device, problem))
        warnings.warn(
            f"the triton backend is not used on {device}, which counts with torch, more slowly: "
            f"{problem}; give backend='torch' to silence this",
            BackendWarning,
            stacklevel=4,
        )


def kernel_trials() -> list[dict[str, Any]]:
    """Which cuts of the Triton kernels this process has tried on its GPUs, and which it took.

    Returns:
        For each kind of operands and axis on each device a dictionary, which JSON takes: `variant`
        and `device` in words; `taken`, as in `Histogram.kernel`, or None if nothing was right; and
        `tried`, of each `cut` its `problem`, or `bursty_ms` and `constant_ms`. Empty without a GPU.
    """
    return [choice.to_dict() for choice in _chosen.values()]


def fastest(variant: Variant, candidates: Sequence[Tile], device: torch.device) -> Tile:
    """The fastest right cut of a variant on a device: tried now, or known from before.

    A trial takes seconds, nearly all of it in the compiler, once for each variant and machine.

    Args:
        variant: what is to be run.
        candidates: cuts, counter by counter, the best first.
        device: a CUDA device.

    Raises:
        NoCut: none is right; it says how each fares.
        torch.OutOfMemoryError: no room for the few MB of the check: no fault of a kernel's.
    """
    key = device, variant.name
    if key not in _chosen:
        _chosen[key] = _remembered(variant, candidates, device) or _try(variant, candidates, device)
    choice = _chosen[key]
    if choice.tile is None:
        problems = "; ".join(f"{one.cut}: {one.problem}" for one in choice.trials)
        raise NoCut(
            f"no cut of its {variant.name} is right (please report this GPU and the versions of "
            f"torch and triton): {problems}"
        )
    return choice.tile


def _try(variant: Variant, candidates: Sequence[Tile], device: torch.device) -> Choice:
    trials: list[Trial] = []
    costs: dict[Tile, float] = {}
    counted: set[str] = set()
    for tile in candidates:
        if tile.counter in counted:
            continue
        problem = failure(variant, tile)
        if problem is None:
            counted.add(tile.counter)
            trial = _time(variant, tile)
            costs[tile] = (trial.bursty_ms or 0.0) + (trial.constant_ms or 0.0)
            trials.append(trial)
        else:
            trials.append(Trial(str(tile), problem))
    timed = all(one.problem or one.bursty_ms for one in trials)
    # Without times the counter that is believed to be fast, which comes first.
    best = min(costs, key=costs.__getitem__, default=None) if timed else next(iter(costs), None)
    choice = Choice(variant.name, _about(device)["device"], best, tuple(trials))
    if best and timed:
        _remember(choice, device)
    return choice


def failure(variant: Variant, tile: Tile) -> str | None:
    """How a cut fails on small integers, in words; None if it counts right.

    Raises:
        torch.OutOfMemoryError: see `fastest`.
    """
    try:
        found: Histogram = variant.run(tile, _integers, programs=FEW).collect()
    except torch.OutOfMemoryError:
        raise
    except Misfit as error:
        return str(error)
    except Exception as error:  # compilers and drivers fail in ways that have no common base
        return f"does not run: {type(error).__name__}: {_first_line(error)}"
    expected = variant.expect(_integers)
    right = (
        found.allclose(expected, rtol=RTOL)
        and found.moments.minimum == expected.moments.minimum
        and found.moments.maximum == expected.moments.maximum
    )
    return None if right else "counts wrongly"


def _time(variant: Variant, tile: Tile) -> Trial:
    from triton.testing import do_bench

    times = []
    for draw in (_bursty, _constant):
        try:
            work = variant.run(tile, draw, timed=True)
            with torch.cuda.device(work.counts.device):  # whose stream the clock looks at
                times.append(do_bench(work.launch, warmup=10, rep=40, return_mode="median"))
        except torch.OutOfMemoryError:
            return Trial(str(tile))
    return Trial(str(tile), None, *(round(float(ms), 4) for ms in times))


def alike(x: Tensor, shape: tuple[int, ...], draw: Draw) -> Tensor:
    """Drawn numbers in a tensor of this shape that compiles to the same code as `x`.

    That is, of the same type, alignment and kind of strides: 0, 1, multiples of 16, or others.
    """
    strides = _strides(x, shape)
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    first = 1 if x.data_ptr() % 16 else 0
    numbers = draw(first + extent).to(x.device, x.dtype)
    return numbers[first:].as_strided(shape, strides)


def _strides(x: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest strides of the same kind, in the same order."""
    found = [0] * len(shape)
    room = 1
    for i in sorted(range(len(shape)), key=x.stride):
        step = x.stride(i)
        if step > 1:
            step = -(-max(room, 2) // 16) * 16 + (step % 16 != 0)
        found[i] = step
        room = max(room, step * shape[i])
    return tuple(found)


def _kind(x: Tensor) -> str:
    """What the compiler knows of an operand."""
    steps = " ".join(_kind_of_step(step) for step in x.stride()) if x.ndim == 2 else ""
    aligned = "" if x.data_ptr() % 16 == 0 else " unaligned"
    return f"{str(x.dtype).removeprefix('torch.')}{aligned}" + (f" ({steps})" if steps else "")


def _kind_of_step(step: int) -> str:
    if step <= 1:
        return str(step)
    return ("16" if step % 16 == 0 else "any") + ("L" if step >= 2**31 else "")


def _power_in(k: int) -> int:
    """The largest power of two, up to 64, that divides k: no mask for blocks of that size."""
    return min(k & -k, 64)


def _kind_of_axis(axis: Axis) -> str:
    if isinstance(axis, FloatAxis):
        return f"a float axis of {axis.mantissa_bits} bits"
    if is_covered(axis, "registers"):
        return f"up to {window(axis, 'registers') - 3} regular bins"
    return "regular bins in the window" if is_covered(axis, "shared") else "many regular bins"


def _integers(count: int) -> Tensor:
    """Among them zeros, and not so many numbers that a sum of products is inexact in bfloat16."""
    generator = torch.Generator("cpu").manual_seed(0)  # the caller's stay as they are
    return torch.randint(-3, 4, (count,), generator=generator, device="cpu").float()


def _bursty(count: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    normal = torch.randn(1 << 16, generator=generator, device="cpu")
    spread = torch.randn(1 << 16, generator=generator, device="cpu").mul(2).exp()
    return (normal * spread).clamp(-100, 100).repeat(-(-count // (1 << 16)))[:count]


def _constant(count: int) -> Tensor:
    return torch.full((count,), 0.3, device="cpu")


@cache
def _about(device: torch.device) -> dict[str, str]:
    """What a choice holds for: the device, its driver, the versions, the kernels' own text."""
    here = Path(__file__).parent
    files = sorted(path for name in SOURCES for path in here.glob(name))
    text = b"".join(path.read_bytes() for path in files)
    return {
        "device": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "driver": _driver(),
        "torch": torch.__version__,
        "triton": import_module("triton").__version__,
        "kernels": hashlib.sha256(text).hexdigest(),
    }


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):  # no Linux, or a container without it
        return str(torch.version.cuda)


def _file(variant: str, device: torch.device) -> Path:
    """$BURST_CACHE, else burst in $XDG_CACHE_HOME, else ~/.cache/burst; a file a variant."""
    own = os.environ.get("BURST_CACHE")
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = json.dumps([variant, _about(device)]).encode()
    place = Path(own) if own else Path(root) / "burst"
    return place / "kernels" / f"{hashlib.sha256(key).hexdigest()[:32]}.json"


def _remember(choice: Choice, device: torch.device) -> None:
    form = {"for": _about(device), **asdict(choice)}
    try:
        with write_atomically(_file(choice.variant, device)) as temporary:
            temporary.write_text(json.dumps(form, indent=1), encoding="utf-8")
    except OutputError:
        pass  # a home that cannot be written: the next process tries again


def _remembered(
    variant: Variant, candidates: Sequence[Tile], device: torch.device
) -> Choice | None:
    """A choice from a file, unless it is damaged or of other candidates."""
    try:
        form = json.loads(_file(variant.name, device).read_text(encoding="utf-8"))
        found = dict(form["tile"], split=tuple(form["tile"]["split"]))
        trials = tuple(Trial(**one) for one in form["trials"])
        tile, device_name = Tile(**found), str(form["device"])
    except (OSError, ValueError, TypeError, LookupError):
        return None
    return Choice(variant.name, device_name, tile, trials) if tile in candidates else None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")[:200]
