"""Which cut of a kernel, and which way of counting, for this GPU? It is asked, once.

What a compiler makes of a kernel depends on its version, and which counter is fastest on the GPU
and the data. So where a variant of a kernel is needed for the first time on a device, each counter
(`_tiles.COUNTERS`) is tried: the first of its cuts that compiles, that the device can start and
that does not spill counts small integers, which every precision multiplies exactly, and must find
what the reference finds, of rows and columns too where these are kept; then it is timed, on bursty
data and on one number throughout. The fastest one that is right is taken, and remembered in a file.

See `_variant` for what is tried.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burst.decomposition import Decomposition, Margins
from burst.errors import BackendError, BackendWarning, OutputError
from burst.files import cache_folder, write_atomically
from burst.histogram import Histogram
from burst.kernels._resources import Misfit
from burst.kernels._tiles import Tile
from burst.kernels._variant import Variant, bursty, constant, integers

OLDEST = (7, 5)  # compute capability; Triton knows none before
RTOL = 1e-5  # of moments: what the kernels promise
NOT_RUN = "does not run"
FEW = 3  # programs that share the tiles while counts are checked, so that each has several
SOURCES = ("_triton*.py", "_ptx.py", "_tiles.py", "_scaling.py", "_resources.py", "_variant.py")

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

    @property
    def cost(self) -> float | None:
        """Its time on both kinds of data; None if it was not timed."""
        if self.bursty_ms is None or self.constant_ms is None:
            return None
        return self.bursty_ms + self.constant_ms


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
    try:
        from burst.kernels import _triton
    except Exception as error:  # of a Triton that does not fit the machine, or its torch
        return f"Triton cannot be imported: {_told(error)}"
    if _triton.INTERPRETED:
        return "Triton interprets its kernels (unset TRITON_INTERPRET)"
    return _no_launcher()


@cache
def _no_launcher() -> str | None:
    """Why Triton cannot build what starts its kernels from the Python at hand; None if it can."""
    from triton.runtime import driver

    try:
        _ = driver.active  # is built with what it needs
    except Exception as error:  # of compilers and file systems
        return (
            "Triton cannot build what starts its kernels, for which it needs a C compiler and "
            f"Python's headers (gcc and python3-dev): {_told(error)}"
        )
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
        raise NoCut(_why_none(variant.name, choice.trials))
    return choice.tile


def _why_none(variant: str, trials: Sequence[Trial]) -> str:
    """Where all cuts fail alike to run, it is the machine's fault: it may lack a C compiler."""
    problems = {str(one.problem) for one in trials}
    if len(problems) == 1 and all(one.startswith(NOT_RUN) for one in problems):
        return f"its kernels have one problem, however they are cut: {problems.pop()}"
    told = "; ".join(f"{one.cut}: {one.problem}" for one in trials)
    return (
        f"no cut of its {variant} is right (please report this GPU and the versions of torch and "
        f"triton): {told}"
    )


def _try(variant: Variant, candidates: Sequence[Tile], device: torch.device) -> Choice:
    trials: list[Trial] = []
    right: dict[Tile, Trial] = {}
    for tile in candidates:
        if tile.counter not in {one.counter for one in right}:
            problem = failure(variant, tile)
            trial = Trial(str(tile), problem) if problem else _time(variant, tile)
            trials.append(trial)
            if not problem:
                right[tile] = trial
    costs = {tile: trial.cost for tile, trial in right.items() if trial.cost is not None}
    timed = len(costs) == len(right)
    # Without times the counter that is believed to be fast, which comes first.
    best = min(costs, key=costs.__getitem__, default=None) if timed else next(iter(right))
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
        run = variant.run(tile, integers, programs=FEW)
        found: Histogram = run.collect()
        margins: Margins | None = run.margins() if variant.expect_margins else None
    except torch.OutOfMemoryError:
        raise
    except Misfit as error:
        return str(error)
    except Exception as error:  # compilers and drivers fail in ways that have no common base
        return f"{NOT_RUN}: {_told(error)}"
    expected = variant.expect(integers)
    right = (
        found.allclose(expected, rtol=RTOL)
        and found.moments.minimum == expected.moments.minimum
        and found.moments.maximum == expected.moments.maximum
    )
    if not right:
        return "counts wrongly"
    if variant.expect_margins and margins:
        return None if _alike(margins, variant.expect_margins(integers)) else "sums margins wrongly"
    return None


def _alike(found: Margins, expected: Margins) -> bool:
    """Whether moments of rows, and the parts of the kurtosis by columns, are right."""
    n, scale = expected.rows.count, np.sqrt(expected.rows.variance)
    units = 1 / (n + 1), scale, *(n * scale**p for p in (2, 3, 4))
    rows = zip(found.rows.arrays(), expected.rows.arrays(), units, strict=True)
    parts, known = (vars(Decomposition.of(one.columns)) for one in (found, expected))
    return (
        all((np.abs(a - b) <= RTOL * unit).all() for a, b, unit in rows)
        and bool(found.columns.count == expected.columns.count)
        and all(
            np.allclose(parts[name], known[name], atol=10 * RTOL, equal_nan=True) for name in known
        )
    )


def _time(variant: Variant, tile: Tile) -> Trial:
    from triton.testing import do_bench

    times = []
    for draw in (bursty, constant):
        try:
            work = variant.run(tile, draw, timed=True)
            with torch.cuda.device(work.accumulator.device):  # whose stream the clock looks at
                times.append(do_bench(work.launch, warmup=10, rep=40, return_mode="median"))
        except torch.OutOfMemoryError:
            return Trial(str(tile))
    return Trial(str(tile), None, *(round(float(ms), 4) for ms in times))


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
    key = json.dumps([variant, _about(device)]).encode()
    name = f"{hashlib.sha256(key).hexdigest()[:32]}.json"
    return cache_folder("BURST_CACHE", "burst") / "kernels" / name


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
    except (OSError, OutputError, ValueError, TypeError, LookupError):
        return None
    return Choice(variant.name, device_name, tile, trials) if tile in candidates else None


def _told(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "no message")[:200]
    return f"{type(error).__name__}: {line}"
