"""How white is it on other images? By number of images, floor, method, shrinkage and recipe.

    python benchmarks/whiteness.py --fit DIR --held-out DIR [--model NAME] [--held-out-images N]

`--fit` and `--held-out` are two image sources without an image in common. Second moments are
collected once for each number of images; everything else is computed from them. Prints Markdown:
each number is the median over the blocks.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence

import burst

COUNTS = (10, 30, 100, 300, 1000)
FLOORS = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
METHODS = ("zca", "pca", "cholesky", "zca-cor", "pca-cor")
SHRINKAGES: tuple[str | float, ...] = ("none", "oas", 0.001, 0.01, 0.1)


def collect(backbone: burst.Backbone, source: str, count: int) -> burst.TokenMoments:
    return burst.collect_moments(backbone, burst.images_for(backbone, source, num_images=count))


def measured(whitening: burst.Whitening) -> tuple[str, str]:
    """Kept directions and whiteness error, medians over the blocks."""
    kept = statistics.median(one.kept for one in whitening.blocks)
    error = statistics.median(one.whiteness_error for one in whitening.blocks)
    return f"{kept:g}", f"{error:.3f}" if error < 1e3 else f"{error:.1e}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--model", default="mae_tiny")
    parser.add_argument("--held-out-images", type=int, default=1000)
    options = parser.parse_args()
    warnings.simplefilter("ignore", burst.RankWarning)
    backbone = burst.load_backbone(options.model)
    start = time.perf_counter()
    held = collect(backbone, options.held_out, options.held_out_images)
    moments = {count: collect(backbone, options.fit, count) for count in COUNTS}
    dim = next(iter(held.blocks.values())).dim
    tokens = {count: next(iter(one.blocks.values())).count for count, one in moments.items()}

    def whiten(count: int = COUNTS[-1], **how: object) -> tuple[str, str]:
        asked = burst.WhiteningOptions(**how)  # type: ignore[arg-type]
        return measured(burst.whiten_moments(backbone, moments[count], asked, held_out=held))

    print(f"{options.model}, d = {dim}, held out: {held.images} images\n")
    print("Whiteness error (directions kept), ZCA:\n")
    table(
        ("images", "tokens a dimension", *(f"floor {floor:g}" for floor in FLOORS)),
        (
            (
                str(count),
                f"{tokens[count] / dim:.1f}",
                *("{1} ({0})".format(*whiten(count, floor=floor)) for floor in FLOORS),
            )
            for count in COUNTS
        ),
    )
    print(f"Methods, {COUNTS[-1]} images, floor 1e-6:\n")
    table(("method", "kept", "error"), ((name, *whiten(method=name)) for name in METHODS))
    print("Shrinkage, ZCA, floor 1e-6, error (directions kept):\n")
    table(
        ("shrinkage", *(f"{count} images" for count in COUNTS)),
        (
            (str(how), *("{1} ({0})".format(*whiten(count, shrinkage=how)) for count in COUNTS))
            for how in SHRINKAGES
        ),
    )
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
