"""How much faster are prompts in the last four blocks when what lies before them is kept?

    python benchmarks/prefix.py                          # mae_tiny and a ViT-B of random weights

A training step and an evaluation step of `last:4`, from images and from kept tokens, which are
read in random order from the memory-mapped file. Also with `whole` blocks: every token of each
block is computed, also those that nothing reads, as in a plain loop. All take turns in one run,
and the median of the repeats counts. Decoding and augmentation are left out: they are saved too.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from timeit import timeit
from unittest.mock import patch

import numpy as np
import torch

import bpt.model
import burst
from bpt import Recipe, build_model
from bpt.engine import make_trainer
from bpt.prefix import Wanted, stored_rows

CLASSES = 200


def steps(name: str, weights: str | None, options: argparse.Namespace) -> dict[str, Callable]:
    """What to time, by name."""
    recipe = Recipe(
        model=name, weights=weights, method=options.method, placement="last:4",
        num_prompts=options.prompts, batch_size=options.batch,
    )  # fmt: skip
    backbone = burst.load_backbone(name, weights)
    model = build_model(recipe, backbone, CLASSES)
    trainer = make_trainer(recipe, model, model, 100)
    images = torch.randn(options.batch, 3, *backbone.image_size)
    labels = torch.randint(CLASSES, (options.batch,))
    kept, count = model.prefix_tokens(images), 8 * options.batch
    wanted = Wanted(
        what="tokens", name="benchmark", facts=name, variants=1, images=count,
        row=tuple(kept.shape[1:]), dtype=torch.float32,
    )  # fmt: skip
    parts = ((start, kept) for start in range(0, count, options.batch))
    rows = stored_rows(wanted, lambda: parts, say=print)
    rng = np.random.default_rng(0)

    def tokens() -> torch.Tensor:
        return rows.take(0, rng.permutation(count)[: options.batch])

    def evaluate(batch: torch.Tensor) -> None:
        model.eval()
        with torch.inference_mode():
            model(batch)

    def train(batch: torch.Tensor) -> None:
        model.train()
        trainer.step((batch, labels))

    def whole(work: Callable, batch: torch.Tensor) -> None:
        with patch.object(bpt.model, "is_known", lambda _: False):
            work(batch)

    return {
        "train, images, whole blocks": lambda: whole(train, images),
        "train, images": lambda: train(images),
        "train, kept tokens": lambda: train(tokens()),
        "evaluate, images, whole blocks": lambda: whole(evaluate, images),
        "evaluate, images": lambda: evaluate(images),
        "evaluate, kept tokens": lambda: evaluate(tokens()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mae_tiny,timm:vit_base_patch16_224")
    parser.add_argument("--method", default="vpt")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for name in options.models.split(","):
        work = steps(name, None if name == "mae_tiny" else "random", options)
        times: dict[str, list[float]] = {key: [] for key in work}
        for _ in range(options.repeats + 1):
            for key, one in work.items():
                times[key].append(timeit(one, number=1))
        rates = {key: options.batch / statistics.median(found[1:]) for key, found in times.items()}
        for key, rate in rates.items():
            kind = key.partition(",")[0]
            print(f"{name:30} {key:32} {rate:8.1f} images/s "
                  f"{rate / rates[f'{kind}, images']:5.2f} "
                  f"{rate / rates[f'{kind}, images, whole blocks']:5.2f}")  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BPT_CACHE"] = folder
        main()
