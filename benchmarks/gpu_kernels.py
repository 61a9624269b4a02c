"""Is the histogram of a product nearly free on a GPU, and does that of a tensor reach memory speed?

    python benchmarks/gpu_kernels.py [--out results.csv] [--alternatives] [--dry-run]

1. Checks counts and moments against the reference, by rows and columns too.
2. `matmul_histogram` of A (d x d) and 2 million tokens, 256 bins and the float axis, next to the
   bare product of the same precision (float32 for tf32x3, which cuBLAS lacks), cut into strips that
   fit, and to torch.matmul + torch.histc + moments; and by an accumulator that goes on, without
   and with moments of rows and columns. For the least d also on bursty data, of which a few bins
   take nearly all.
3. `histogram` of 2^30 float32 of four laws, next to the device's copy, torch.histc and CuPy.
4. The 16 heads of a ViT-H block, batch after batch: each added to its accumulator, next to a
   histogram for each head and batch, as added up by the caller, and to the bare products.

Times come from CUDA events, on inputs larger than the L2 cache; as many tokens and numbers as have
room, where the GPU has less. `--alternatives` also times every
cut and counter that a trial may choose; `--dry-run` runs the checks alone, tiny and interpreted,
where there is no GPU.
"""

import argparse
import csv
import json
import os
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
import triton
from torch import Tensor

from burst.axis import Axis, FloatAxis, RegularAxis
from burst.decomposition import Decomposition
from burst.errors import BackendError
from burst.kernels import (
    PRECISIONS,
    HistogramAccumulator,
    _triton,
    histogram,
    kernel_trials,
    matmul_histogram,
)
from burst.kernels._tiles import Tile, product_tiles, stream_tiles

TOKENS, ENTRIES, STRIP = 2_000_000, 1 << 30, 1 << 17
DIMS = (768, 1024, 1280, 2560)
HEADS, HEAD_DIM, BATCHES = 16, 80, (2048, 32768)  # ViT-H; tokens a batch
BOTH = ("triton", "reference")
Row = dict[str, str | float]
Work = Callable[[], object]


def laplacian(*shape: int, device: str) -> Tensor:
    sign = torch.randint(0, 2, shape, device=device, dtype=torch.int8) * 2 - 1
    return torch.empty(shape, device=device).exponential_().mul_(sign)


def heavy_tailed(*shape: int, device: str) -> Tensor:
    return torch.empty(shape, device=device).cauchy_()


LAWS: dict[str, Callable[..., Tensor]] = {
    "gaussian": torch.randn,
    "laplacian": laplacian,
    "constant": lambda *shape, device: torch.full(shape, 0.3, device=device),
    "heavy-tailed": heavy_tailed,
}
AXES: dict[str, Axis] = {"256 bins": RegularAxis(256, -6.0, 6.0), "float axis": FloatAxis()}


def check(device: str) -> None:
    """Stop unless the kernels agree with the reference on this very device."""
    size = 3000 if device == "cpu" else 1_000_003
    for law, draw in LAWS.items():
        x = draw(size, device=device)
        for axis in AXES.values():
            fast = histogram(x, axis, backend="triton")
            assert fast.backend == "triton"
            assert fast.allclose(histogram(x, axis, backend="reference"), rtol=1e-5), law
    m, k, n = (40, 70, 150) if device == "cpu" else (770, 768, 5003)
    a = torch.randint(-3, 4, (m, k), device=device).float()
    b = torch.randint(-3, 4, (n, k), device=device).float().mT
    for precision in PRECISIONS:
        for axis in (FloatAxis(), RegularAxis(1201, -600.5, 600.5)):
            fast = matmul_histogram(a, b, axis, backend="triton", precision=precision)
            slow = matmul_histogram(a, b, axis, backend="reference")
            assert fast.allclose(slow, rtol=1e-5)
            twice = HistogramAccumulator(axis, backend="triton")
            for _ in range(2):
                twice.add_product(a, b, precision=precision)
            assert twice.result().allclose(slow + slow, rtol=1e-5)
        check_margins(a, b, precision)


def check_margins(a: Tensor, b: Tensor, precision: str) -> None:
    found, known = (HistogramAccumulator(backend=one, margins=True) for one in BOTH)
    for one in (found, known):
        one.add_product(a, b, precision=precision)
    for groups in ("rows", "columns"):
        parts, exact = (
            vars(Decomposition.of(getattr(one.margins(), groups))) for one in (found, known)
        )
        for name, part in parts.items():
            assert abs(part - exact[name]) <= 1e-4, (groups, name)


def timed(work: Work, least: float = 1.0, most: int = 50) -> tuple[float, float, float]:
    """p20, p50 and p80 in ms, after two calls that are not counted; about `least` seconds."""
    for _ in range(2):
        work()
    times: list[float] = []
    while len(times) < 5 or (sum(times) < 1e3 * least and len(times) < most):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    low, middle, high = (statistics.quantiles(times, n=10)[i] for i in (1, 4, 7))
    return low, middle, high


def measure(what: str, work: Work, law: str, size: str, rate: Callable[[float], str]) -> Row:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        p20, p50, p80 = timed(work)
    except torch.OutOfMemoryError:
        return {"what": what, "law": law, "size": size, "rate": "out of memory"}
    except BackendError as problem:
        return {"what": what, "law": law, "size": size, "rate": str(problem)}
    row: Row = {
        "what": what,
        "law": law,
        "size": size,
        "p20 ms": round(p20, 3),
        "p50 ms": round(p50, 3),
        "p80 ms": round(p80, 3),
        "peak MiB": round((torch.cuda.max_memory_allocated() - before) / 2**20),
        "rate": rate(p50),
    }
    print("  ".join(f"{value!s:>14}" for value in row.values()), flush=True)
    return row


def bare(a: Tensor, x: Tensor, precision: str) -> Work:
    """cuBLAS alone, strip by strip into one buffer: 2 million columns of float32 need not fit."""
    if precision == "bf16":
        a, x = a.bfloat16(), x.bfloat16()
    buffer = torch.empty(a.shape[0], STRIP, dtype=a.dtype, device=a.device)

    def work() -> None:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        for strip in torch.split(x, STRIP):
            torch.mm(a, strip.mT, out=buffer[:, : len(strip)])
        torch.backends.cuda.matmul.allow_tf32 = False

    return work


def in_torch(a: Tensor, x: Tensor) -> None:
    """What one writes without this library, strip by strip."""
    for strip in torch.split(x, STRIP):
        moments(a @ strip.mT)


def moments(y: Tensor) -> tuple[Tensor, ...]:
    deviation = y - y.mean()
    square = deviation * deviation
    sums = square.sum(), (square * deviation).sum(), (square * square).sum()
    return torch.histc(y, 256, -6.0, 6.0), *sums, *y.aminmax()


def fitting(most: int, size: int) -> int:
    """How many things of so many bytes have room, with a quarter left for what is made of them."""
    free, _ = torch.cuda.mem_get_info()
    return min(most, 3 * free // 4 // size)


def products(dim: int, alternatives: bool) -> list[Row]:
    tokens = fitting(TOKENS, 6 * dim)  # in float32, and once more in bfloat16
    x = torch.randn(tokens, dim, device="cuda")
    a = torch.randn(dim, dim, device="cuda") / dim**0.5
    size, flops = f"{dim} x {dim} x {tokens}", 2.0 * dim * dim * tokens

    def rate(ms: float) -> str:
        return f"{flops / ms / 1e9:.0f} TFLOP/s"

    rows = [
        measure("torch: matmul, histc, moments", lambda: in_torch(a, x), "gaussian", size, rate)
    ]
    for precision in PRECISIONS:
        if precision != "tf32x3":  # its peer is cuBLAS in float32
            rows.append(
                measure(f"cuBLAS {precision}", bare(a, x, precision), "gaussian", size, rate)
            )
        for name, axis in AXES.items():
            every = alternatives and dim == DIMS[0]
            for label, tile in tiles(a, x, precision, axis, every).items():

                def work(
                    axis: Axis = axis,
                    tile: Tile | None = tile,
                    how: str = precision,
                ) -> object:
                    found = _triton.Accumulator(axis, a.device)
                    found.add_product(a, x.mT, precision=how, cut=tile)
                    return found.result()

                rows.append(
                    measure(f"burst {precision}, {name}{label}", work, "gaussian", size, rate)
                )
        for margins in (False, True):
            kept = HistogramAccumulator(backend="triton", margins=margins)
            kept.add_product(a, x.mT, precision=precision)  # finds a cut, and the rows' origins

            def go_on(kept: HistogramAccumulator = kept, how: str = precision) -> object:
                return kept.add_product(a, x.mT, precision=how)

            what = f"burst {precision}, float axis, going on" + ", margins" * margins
            rows.append(measure(what, go_on, "gaussian", size, rate))
    if dim == DIMS[0]:
        x *= heavy_tailed(tokens, 1, device="cuda").clamp_(-100, 100) / 100
        for name, axis in AXES.items():

            def bursty(axis: Axis = axis) -> object:
                return matmul_histogram(a, x.mT, axis, backend="triton")

            rows.append(measure(f"burst tf32x3, {name}", bursty, "bursty", size, rate))
    return rows


def tiles(
    a: Tensor, x: Tensor, precision: str, axis: Axis, alternatives: bool
) -> dict[str, Tile | None]:
    """What the trial chose, and with `alternatives` every cut that it may choose."""
    found: dict[str, Tile | None] = {"": None}
    if alternatives:
        capability = torch.cuda.get_device_capability()
        cuts = product_tiles(a, x.mT, precision, axis, capability)
        found |= {f", {tile}": tile for tile in cuts}
    return found


def streams(alternatives: bool) -> list[Row]:
    power = fitting(ENTRIES, 12).bit_length() - 1  # the numbers, their copy, and what draws them
    size = f"2^{power}"

    def rate(ms: float) -> str:
        return f"{4 * 2**power / ms / 1e9:.2f} TB/s read"

    rows = []
    for law, draw in LAWS.items():
        x = draw(2**power, device="cuda")
        if law == "gaussian":
            y = torch.empty_like(x)
            copy = measure("copy (twice the bytes)", lambda x=x, y=y: y.copy_(x), law, size, rate)
            rows.append(copy)
            del y
        works: dict[str, Work] = {
            f"burst {name}": lambda x=x, axis=axis: histogram(x, axis, backend="triton")
            for name, axis in AXES.items()
        }
        for name, axis in AXES.items() if alternatives else ():
            for tile in stream_tiles(axis):
                works[f"burst {name}, {tile}"] = lambda x=x, axis=axis, tile=tile: in_one_cut(
                    x, axis, tile
                )
        works["torch.histc"] = lambda x=x: torch.histc(x, 256, -6.0, 6.0)
        works |= with_cupy(x)
        rows += [measure(name, work, law, size, rate) for name, work in works.items()]
        del x, works
    return rows


def in_one_cut(x: Tensor, axis: Axis, tile: Tile) -> object:
    found = _triton.Accumulator(axis, x.device)
    found.add(x, cut=tile)
    return found.result()


def heads() -> list[Row]:
    rows = []
    for tokens in BATCHES:
        dim = HEADS * HEAD_DIM
        w_q = torch.randn(HEADS, dim, HEAD_DIM, device="cuda") / dim**0.5
        keys = torch.randn(HEADS, tokens, HEAD_DIM, device="cuda")
        pairs = list(zip(w_q, keys.mT, strict=True))
        kept = [HistogramAccumulator(backend="triton") for _ in pairs]
        sums = [matmul_histogram(*pair, backend="triton") for pair in pairs]

        def add(pairs: list = pairs, kept: list = kept) -> None:
            for accumulator, (a, b) in zip(kept, pairs, strict=True):
                accumulator.add_product(a, b)

        def add_up(pairs: list = pairs, sums: list = sums) -> None:
            for i, (a, b) in enumerate(pairs):
                sums[i] += matmul_histogram(a, b, backend="triton")

        def multiply(pairs: list = pairs) -> None:
            for a, b in pairs:
                a @ b

        size = f"{HEADS} x ({dim} x {HEAD_DIM} x {tokens})"
        flops = 2.0 * HEADS * dim * HEAD_DIM * tokens

        def rate(ms: float, flops: float = flops) -> str:
            return f"{flops / ms / 1e9:.0f} TFLOP/s"

        works: dict[str, Work] = {
            "cuBLAS, float32": multiply,
            "burst tf32x3, accumulators": add,
            "burst tf32x3, histograms summed": add_up,
        }
        rows += [measure(name, work, "gaussian", size, rate) for name, work in works.items()]
    return rows


def with_cupy(x: Tensor) -> dict[str, Work]:
    try:
        import cupy
    except ImportError:
        return {}
    same = cupy.from_dlpack(x)
    return {"cupy.histogram": lambda: cupy.histogram(same, 256, (-6.0, 6.0))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the table as CSV")
    parser.add_argument("--alternatives", action="store_true", help="time other counters and tiles")
    parser.add_argument(
        "--dry-run", action="store_true", help="only check, interpreted, on the CPU"
    )
    options = parser.parse_args()
    if options.dry_run:
        check("cpu")
        print("the kernels agree with the reference under Triton's interpreter; nothing was timed")
        return
    if not torch.cuda.is_available():
        parser.error("no GPU is here; --dry-run checks the kernels without one")
    check("cuda")
    about = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print("the kernels agree with the reference on", *about.values())
    print(json.dumps(kernel_trials(), indent=1))
    parts = [heads, partial(streams, options.alternatives)]
    parts += [partial(products, dim, options.alternatives) for dim in DIMS]
    rows: list[Row] = []
    for part in parts:
        rows += part()
        torch.cuda.empty_cache()
        if options.out:
            write(options.out, rows, about)


def write(path: Path, rows: list[Row], about: dict[str, str]) -> None:
    """What is known so far."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *about])
        writer.writeheader()
        writer.writerows(row | about for row in rows)


if __name__ == "__main__":
    main()
