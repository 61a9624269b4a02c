"""What does it cost on the CPU to histogram A X^T while it streams, and does memory stay flat?

    python benchmarks/cpu_streaming.py [--out results.csv] [--skip-notebook]

1. One ViT-B block (d = 768, 100 images of 197 tokens, random weights): product, histogram and
   moments of `burst`, next to the bare product and to three peers that do the same work. Times are
   medians of alternating runs in one process; peak memory is that of a fresh process for each.
2. A survey of `mae_tiny` over 100 and over 600 sample images: the time beyond the bare forward pass
   and the bare products. What intervals cost does not grow with the images.
3. Peak memory of that survey at 100 and at 1,000 images.
"""

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from timeit import timeit

import numpy as np
import torch

import burst

D, TOKENS, IMAGES, BINS = 768, 197, 100, 256
Row = dict[str, str | float]


def operands() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    w_q, w_k = torch.randn(2, D, D) * 0.02
    return burst.interaction(w_q, w_k), torch.randn(IMAGES * TOKENS, D)


def ours(a: torch.Tensor, x: torch.Tensor) -> object:
    return burst.response_histogram(a, x).rebin(BINS)


def with_margins(a: torch.Tensor, x: torch.Tensor) -> object:
    """The same with moments of every row and column, as a survey has them."""
    counter = burst.HistogramAccumulator(margins=True)
    counter.add_product(a, x.T)
    return counter.result().rebin(BINS), counter.margins()


def bare(a: torch.Tensor, x: torch.Tensor) -> object:
    return a @ x.T


def with_numpy(a: torch.Tensor, x: torch.Tensor) -> object:
    y = a.numpy() @ x.numpy().T
    deviation = y.astype(np.float64) - y.mean(dtype=np.float64)
    moments = [(deviation**k).mean() for k in (2, 3, 4)]
    return np.histogram(y, BINS), moments, y.min(), y.max()


def with_torch(a: torch.Tensor, x: torch.Tensor) -> object:
    y = a @ x.T
    deviation = y.double() - y.double().mean()
    moments = [(deviation**k).mean() for k in (2, 3, 4)]
    return torch.histc(y, BINS), moments, y.aminmax()


def in_a_notebook(a: torch.Tensor, x: torch.Tensor) -> object:
    from matplotlib.figure import Figure

    values = (a @ x.T).flatten().tolist()
    return Figure().subplots().hist(values, bins=BINS, log=True)


WAYS: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "bare product": bare,
    "burst": ours,
    "burst, rows and columns too": with_margins,
    "NumPy, numpy.histogram": with_numpy,
    "torch, torch.histc": with_torch,
    "notebook: tolist, plt.hist": in_a_notebook,
}


def peak_mib() -> float:
    """Highest resident memory of this process so far.

    From /proc, not getrusage: that one starts from what the parent process had.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def in_fresh_process(*arguments: str) -> float:
    """Run this file as `--measure ...`; it prints one number."""
    command = [sys.executable, str(Path(__file__)), "--measure", *arguments]
    # What is freed goes back at once, so that the peak is of memory in use.
    returned = {"MALLOC_TRIM_THRESHOLD_": "0"}
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | returned
    ).stdout
    return float(output.split()[-1])


def streaming(skip_notebook: bool) -> list[Row]:
    a, x = operands()
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for repeat in range(12):
        for name, way in WAYS.items():
            slow = way not in (bare, ours, with_margins)
            if (slow and repeat > 4) or (way is in_a_notebook and (repeat or skip_notebook)):
                continue
            times[name].append(timeit(lambda way=way: way(a, x), number=1))
    base = statistics.median(times["bare product"][1:])
    rows: list[Row] = []
    for name, seconds in times.items():
        if seconds:
            median = statistics.median(seconds[1:] or seconds)
            added = in_fresh_process("way", name)
            limit = {ours: "1.3 × bare", with_margins: "1.1 × bare"}.get(WAYS[name], "")
            rows.append(row(name, median, median / base, added, limit))
    return rows


def row(what: str, seconds: float, ratio: float, mib: float | str, limit: str = "") -> Row:
    return {
        "what": what,
        "seconds": round(seconds, 4),
        "ratio": round(ratio, 2),
        "MiB added": mib if isinstance(mib, str) else round(mib),
        "limit": limit,
    }


class Loaded:
    """The batches of an image stream, already decoded: what remains is computation."""

    def __init__(self, stream: burst.ImageStream) -> None:
        self.stream, self.loaded = stream, list(stream)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def shard(self, rank: int, world_size: int) -> "Loaded":
        """There is one process, so its share is everything."""
        return self

    def __iter__(self) -> object:
        return iter(self.loaded)


def survey_overhead(count: int) -> list[Row]:
    backbone = burst.load_backbone("mae_tiny")
    images = Loaded(burst.images_for(backbone, "sample", num_images=count))
    pairs = products_of(backbone, images)

    @torch.inference_mode()
    def forward() -> None:
        for batch in images:
            backbone.model(batch)

    def products() -> None:
        for a, x in pairs:
            a @ x.T

    works = {
        "forward": forward,
        "products": products,
        "survey": lambda: burst.survey(backbone, images),  # type: ignore[arg-type]
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(8 if count <= 100 else 4):
        for name, work in works.items():
            times[name].append(timeit(work, number=1))
    median = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    base = median["forward"] + median["products"]
    names = {
        "forward": (f"mae_tiny, {count} images: forward", ""),
        "products": (f"mae_tiny, {count} images: bare products, 12 blocks", ""),
        "survey": (f"mae_tiny, {count} images: survey, 3 quantities", "1.5 × the two"),
    }
    return [
        row(what, median[name], median[name] / base, "", limit)
        for name, (what, limit) in names.items()
    ]


def products_of(
    backbone: burst.Backbone, images: Loaded
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pairs = []
    blocks = burst.find_blocks(backbone.model)
    with torch.inference_mode():
        for batch in images:
            with burst.capture(backbone.model) as tokens:
                backbone.model(batch)
            for block in blocks:
                a = burst.interaction(*burst.projection(block.attention).whole())
                pairs.append((a, tokens[block.index].flatten(0, 1)))
    return pairs


def measure(kind: str, argument: str) -> float:
    if kind == "way":
        a, x = operands()
        before = peak_mib()
        WAYS[argument](a, x)
        return peak_mib() - before
    backbone = burst.load_backbone("mae_tiny")
    burst.survey(backbone, burst.images_for(backbone, "sample", num_images=int(argument)))
    return peak_mib()


def memory_growth() -> list[Row]:
    few, many = in_fresh_process("survey", "100"), in_fresh_process("survey", "1000")
    what = f"mae_tiny survey, peak {few:.0f} MiB at 100 images, {many:.0f} MiB at 1,000"
    return [
        {
            "what": what,
            "seconds": "",
            "ratio": "",
            "MiB added": round(many - few),
            "limit": "50 MiB",
        }
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the table as CSV")
    parser.add_argument("--skip-notebook", action="store_true", help="leave out the 5 GB peer")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure(*options.measure))
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, numpy {np.__version__}"
    )
    rows = (
        streaming(options.skip_notebook)
        + survey_overhead(100)
        + survey_overhead(600)
        + memory_growth()
    )
    print(f"{'':58}{'seconds':>10}{'ratio':>8}{'MiB added':>11}  limit")
    for one in rows:
        print("{what:58}{seconds:>10}{ratio:>8}{MiB added:>11}  {limit}".format(**one))
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
