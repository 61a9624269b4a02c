"""How fast is a training step, next to a plain loop as the authors of BPT write it?

    python benchmarks/training.py                        # mae_tiny and a ViT-B of random weights

The plain loop: the prompt's factors are expanded over the batch before their product, every block
is in autograd, an exponential moving average of the whole model is updated each step, float32. Two
of it: `plain` computes the gradient of every weight and uses those of prompts and head; `frozen` is
told not to. Ours is `bpt.engine.ClassifierTrainer` on `bpt.PromptedViT`. Both have the same
backbone, batch, prompts and optimiser; they take turns, and the median of the repeats counts.
Linear probing is a whole probe of 100 epochs over so many images, ours with the features computed
once.
"""

import argparse
import copy
import csv
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timm.utils import ModelEmaV2
from torch import Tensor, nn
from torch.nn import functional

import burst
from bpt import Recipe, build_model
from bpt.engine import ClassifierTrainer, autocast
from bpt.optimisation import parameter_groups

CLASSES, PROMPTS, RANK, EPOCHS = 200, 100, 75, 100


class Plain(nn.Module):
    """The same function in the plain way."""

    def __init__(self, model: nn.Module, *, frozen: bool) -> None:
        super().__init__()
        self.vit = copy.deepcopy(model.vit).requires_grad_(not frozen)
        self.prompts = copy.deepcopy(model.prompts)
        self.head = copy.deepcopy(model.head)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        x = self.vit._pos_embed(self.vit.patch_embed(images))
        present = 0
        for index, block in enumerate(self.vit.blocks):
            if str(index) in self.prompts:
                prompt = self.prompts[str(index)]
                left = prompt.left.expand(len(images), -1, -1)  # before the product
                tokens = left @ prompt.right.mT
                x = torch.cat([x[:, :1], tokens, x[:, 1 + present :]], dim=1)
                present = tokens.shape[1]
            x = block(x)
        return self.head(self.vit.norm(x[:, 1:].mean(dim=1)))


def plain_step(model: nn.Module, device: torch.device, *, frozen: bool) -> Callable[..., None]:
    plain = Plain(model, frozen=frozen).to(device)
    trained = [*plain.prompts.parameters(), *plain.head.parameters()]
    optimizer, average = torch.optim.AdamW(trained, lr=1e-3), ModelEmaV2(plain, decay=0.9999)

    def step(images: Tensor, labels: Tensor) -> None:
        loss = functional.cross_entropy(plain(images), labels)
        plain.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(plain)

    return step


def our_step(
    model: nn.Module, recipe: Recipe, device: torch.device, *, precision: str, compiled: bool
) -> Callable[..., None]:
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), lr=1e-3)
    trainer = ClassifierTrainer(
        model,
        torch.compile(model) if compiled else model,
        optimizer,
        prompts=list(model.prompts.parameters()),
        set_lr=lambda _: None,
        device=device,
        precision=precision,
    )
    model.train()
    return lambda images, labels: trainer.step((images, labels))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def steps(name: str, backbone: burst.Backbone, options: argparse.Namespace) -> list[dict]:
    """Images a second of each way, for shallow and last:4."""
    device, rows = torch.device(options.device), []
    images = torch.randn(options.batch, 3, *backbone.image_size, device=device)
    labels = torch.randint(CLASSES, (options.batch,), device=device)
    for placement in ("shallow", "last:4"):
        recipe = Recipe(placement=placement, num_prompts=PROMPTS, rank=RANK)
        model = build_model(recipe, backbone, CLASSES)
        ways = {
            "plain": plain_step(model, device, frozen=False),
            "plain, frozen": plain_step(model, device, frozen=True),
        }
        for precision in ("float32", "bfloat16"):
            ways[f"bpt, {precision}"] = our_step(
                model, recipe, device, precision=precision, compiled=False
            )
        if device.type == "cuda":
            ways["bpt, bfloat16, compiled"] = our_step(
                model, recipe, device, precision="bfloat16", compiled=True
            )
        times: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(options.repeats + 1):  # the first warms up
            for way, step in ways.items():
                spent = seconds(partial(step, images, labels), device)
                if repeat:
                    times[way].append(spent)
        base = statistics.median(times["plain"])
        for way, spent in times.items():
            median = statistics.median(spent)
            rate = options.batch / median
            row = {"model": name, "case": placement, "way": way, "images_per_second": rate}
            rows.append(row | {"times": base / median})
    return rows


def probe(name: str, backbone: burst.Backbone, options: argparse.Namespace) -> list[dict]:
    """Linear probing: a step of the plain way, and ours with its features paid over all epochs."""
    device = torch.device(options.device)
    model = build_model(Recipe(method="linear"), backbone, CLASSES)
    images = torch.randn(options.batch, 3, *backbone.image_size, device=device)
    labels = torch.randint(CLASSES, (options.batch,), device=device)
    plain = plain_step(model, device, frozen=True)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=1e-3)

    def features() -> Tensor:
        with torch.no_grad(), autocast(device, "float32"):
            return model.features(images)

    known = features()

    def head() -> None:
        loss = functional.cross_entropy(model.head(known), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    found: dict[str, list[float]] = {"plain": [], "features": [], "head": []}
    for repeat in range(options.repeats + 1):
        spent = {
            "plain": seconds(lambda: plain(images, labels), device),
            "features": seconds(features, device),
            "head": seconds(head, device),
        }
        if repeat:
            for way, values in found.items():
                values.append(spent[way])
    median = {way: statistics.median(values) for way, values in found.items()}
    ours = median["features"] / EPOCHS + median["head"]
    return [
        {
            "model": name,
            "case": f"linear, {EPOCHS} epochs",
            "way": way,
            "images_per_second": options.batch / spent,
            "times": median["plain"] / spent,
        }
        for way, spent in (("plain, frozen", median["plain"]), ("bpt", ours))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mae_tiny,mae_vitb")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows = []
    for name in options.models.split(","):
        weights = None if name.endswith("_tiny") else "random"
        backbone = burst.load_backbone(name, weights, device=options.device)
        for row in [*steps(name, backbone, options), *probe(name, backbone, options)]:
            rows.append(row)
            print(
                f"{row['model']:9} {row['case']:18} {row['way']:24} "
                f"{row['images_per_second']:10.1f} images/s {row['times']:7.2f} times",
                flush=True,
            )
    if options.out:
        with options.out.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
