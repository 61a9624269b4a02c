"""Why do the rows of a bilinear prompt become one direction, and does another start mend it?

    OMP_NUM_THREADS=1 python benchmarks/collapse.py --data critters25.zip --out out/collapse
    OMP_NUM_THREADS=1 python benchmarks/collapse.py --dataset digits --lr 0.05 --epochs 4

Each case trains prompts of the last blocks on tokens that were computed once (each image and its
mirror image), and looks at steps 0, 1, 2, 4, ... at the effective rank of the prompt, of its
factors, and of the loss's gradient with respect to the prompt; at the end it also measures the
accuracy with each prompt cut to its first singular direction, and with all rows set to their mean.
A line a training in collapse.jsonl; what is there already is not trained again. Prints a table.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from methods import unpacked
from torch import Tensor
from torch.nn import functional

from bpt.configuration import open_benchmark
from bpt.construction import build_model, open_backbone
from bpt.diagnosis import effective_rank
from bpt.image_batches import ImageBatches
from bpt.model import PromptedViT
from bpt.optimisation import make_optimizer, schedule
from bpt.pooling import pool
from bpt.prompt import BilinearPrompt, PlainPrompt
from bpt.recipe import Recipe

# What a case changes: fields of the recipe; `start`; the rates of A and B as multiples of `lr`.
BILINEAR = {"method": "bpt-bilinear"}
BALANCED = BILINEAR | {"bilinear_init": "balanced"}
CASES = {
    "vpt": {"method": "vpt"},
    "vpt-small": {"method": "vpt", "start": "small"},
    "xavier": BILINEAR,
    "rank1": BILINEAR | {"rank": 1},
    "scaled": BILINEAR | {"start": "scaled"},
    "balanced": BALANCED,
    "even": BILINEAR | {"start": "even"},
    "even-slow": BILINEAR | {"start": "even", "rates": (0.3, 0.3)},
    "no-decay": BILINEAR | {"weight_decay": 0.0},
    "slow-A": BILINEAR | {"rates": (0.1, 1.0)},
    "slow-B": BILINEAR | {"rates": (1.0, 0.1)},
    "frozen-A": BILINEAR | {"rates": (0.0, 1.0)},
    "balanced-frozen-A": BALANCED | {"rates": (0.0, 1.0)},
    "balanced-slow-A": BALANCED | {"rates": (0.1, 1.0)},
    "balanced-slow-B": BALANCED | {"rates": (1.0, 0.1)},
    "vpt-sgd": {"method": "vpt", "optimizer": "sgd"},
    "xavier-sgd": BILINEAR | {"optimizer": "sgd"},
    "balanced-sgd": BALANCED | {"optimizer": "sgd"},
}


def plain_rms(width: int, patch_size: int) -> float:
    """Deviation of vpt's start."""
    return (2 / (3 * patch_size**2 + width)) ** 0.5


@torch.no_grad()
def restart(model: PromptedViT, start: str, seed: int) -> None:
    """Prompts at another start than their method's; "" leaves them."""
    generator = torch.Generator().manual_seed(seed)
    target = plain_rms(model.width, model.vit.patch_embed.patch_size[0])
    for prompt in model.prompts.values():
        if start == "small":  # at the scale of the bilinear prompt of rank 12
            prompt.values.mul_(0.02 * (2 * 12 / (model.width + 12)) ** 0.5 / target)
        if start == "scaled":
            prompt.left.mul_(target / prompt().square().mean().sqrt())
        if start == "even":  # orthogonal and of vpt's scale too, entries of both of one size
            size = (target / prompt.left.shape[1] ** 0.5) ** 0.5
            for factor in (prompt.left, prompt.right):
                gain = size * max(factor.shape) ** 0.5
                torch.nn.init.orthogonal_(factor, gain=gain, generator=generator)


class Tokens:
    """Tokens in front of the first prompted block, of each image and its mirror image."""

    @torch.no_grad()
    def __init__(self, model: PromptedViT, batches: object, *, mirrored: bool) -> None:
        views, labels = [], []
        for images, answers, _ in batches:
            both = [images, images.flip(-1)] if mirrored else [images]
            views.append(torch.stack([self._front(model, view) for view in both], dim=1))
            labels.append(answers)
        self.x, self.labels = torch.cat(views), torch.cat(labels)

    def batch(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Each of the chosen images as it is or mirrored, (b, N, d); and labels."""
        view = torch.randint(self.x.shape[1], (len(chosen),), generator=generator)
        return self.x[chosen, view], self.labels[chosen]

    @staticmethod
    def _front(model: PromptedViT, images: Tensor) -> Tensor:
        x = model.vit.norm_pre(model.vit._pos_embed(model.vit.patch_embed(images)))
        for block in model.vit.blocks[: model.blocks[0]]:
            x = block(x)
        return x


def logits(model: PromptedViT, x: Tensor) -> Tensor:
    """What the model says of tokens in front of its first prompted block."""
    present = 0
    for index in range(model.blocks[0], len(model.vit.blocks)):
        if index in model.blocks:
            x, present = model._prompted(x, index, present), model.num_prompts
        x = model.vit.blocks[index](x)
    return model.head(pool(model.vit, x, model.pooling, prefix=model.prefix, prompts=present))


@torch.no_grad()
def accuracy(model: PromptedViT, held_out: Tokens) -> float:
    parts = zip(held_out.x[:, 0].split(100), held_out.labels.split(100), strict=True)
    right = sum(int((logits(model, x).argmax(1) == labels).sum()) for x, labels in parts)
    return 100 * right / len(held_out.labels)


def with_prompts(model: PromptedViT, change: object) -> PromptedViT:
    """The model with each prompt changed; the head is shared."""
    prompts = {block: PlainPrompt(change(p)) for block, p in model.prompt_values().items()}
    other = PromptedViT(model.info, prompts, model.head.out_features, pooling=model.pooling)
    other.head = model.head
    return other


def first_direction(prompt: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(prompt, full_matrices=False)
    return s[0] * u[:, :1] @ vh[:1]


def mean_row(prompt: Tensor) -> Tensor:
    return prompt.mean(dim=0, keepdim=True).expand_as(prompt).clone()


def look(model: PromptedViT, gradients: dict[str, Tensor]) -> dict[str, float]:
    """Effective ranks and scales, means over the prompted blocks."""
    rows = []
    for name, prompt in model.prompts.items():
        p, gradient = prompt().detach(), gradients[name].grad
        unit = functional.normalize(p, dim=1)
        cosines = (unit @ unit.T).abs()
        others = cosines.sum() - cosines.diagonal().sum()
        row = {
            "prompt": effective_rank(p),
            "spread": effective_rank(p - p.mean(0)),
            "gradient": effective_rank(gradient),
            "same": float(gradient.mean(0).square().sum() * len(p) / gradient.square().sum()),
            "cosine": float(others / (len(p) * (len(p) - 1))) if len(p) > 1 else 1.0,
            "rms": float(p.square().mean().sqrt()),
            "gradient_rms": float(gradient.square().mean().sqrt()),
        }
        if isinstance(prompt, BilinearPrompt):
            row |= {"left": effective_rank(prompt.left), "right": effective_rank(prompt.right)}
        rows.append(row)
    return {key: float(pd.Series([row[key] for row in rows]).mean()) for key in rows[0]}


def run_one(name: str, seed: int, options: argparse.Namespace, data: dict) -> dict:
    """One training."""
    case = dict(CASES[name])
    start, rates = case.pop("start", ""), case.pop("rates", (1.0, 1.0))
    recipe = recipe_of(options, seed=seed, **case)
    backbone = data["backbone"]
    model = build_model(recipe, backbone, data["classes"]).train()
    restart(model, start, seed)
    optimizer = make_optimizer(model, recipe)
    apart(optimizer, model, rates)
    steps = len(data["train"].labels) // recipe.batch_size
    rate = schedule(optimizer, recipe, steps)
    outputs: dict[str, Tensor] = {}
    for key, prompt in model.prompts.items():
        prompt.register_forward_hook(lambda _, __, out, key=key: kept(out, outputs, key))
    generator = torch.Generator().manual_seed(seed)
    seen, began, total = {}, time.perf_counter(), steps * recipe.total_epochs
    for step in range(total):
        if step % steps == 0:
            order = torch.randperm(len(data["train"].labels), generator=generator)
        chosen = order[step % steps * recipe.batch_size :][: recipe.batch_size]
        x, labels = data["train"].batch(chosen, generator)
        rate.step_update(step)
        loss = functional.cross_entropy(logits(model, x), labels)
        loss.backward()
        if step & (step - 1) == 0 or step == total - 1:
            held = dict(outputs)
            seen[step] = look(model, held) | {"loss": float(loss.detach())}
            before = model.prompt_values()
        optimizer.step()
        if step in seen:
            after = model.prompt_values()
            ranks = [effective_rank(after[block] - before[block]) for block in before]
            seen[step]["update"] = sum(ranks) / len(ranks)
        optimizer.zero_grad(set_to_none=True)
    line = {"case": name, "seed": seed} | {key: getattr(options, key) for key in SHOWN}
    line |= {"steps": total, "seconds": round(time.perf_counter() - began, 1)}
    line["accuracy"] = accuracy(model, data["held_out"])
    line["first_direction"] = accuracy(with_prompts(model, first_direction), data["held_out"])
    line["mean_row"] = accuracy(with_prompts(model, mean_row), data["held_out"])
    return line | {"seen": seen}


def kept(out: Tensor, outputs: dict[str, Tensor], key: str) -> None:
    if out.requires_grad:
        out.retain_grad()
    outputs[key] = out


def apart(optimizer: torch.optim.Optimizer, model: PromptedViT, rates: tuple) -> None:
    """The factors in groups of their own, with these multiples of the rate."""
    if rates == (1.0, 1.0):
        return
    group = next(one for one in optimizer.param_groups if one["name"] == "prompts")
    optimizer.param_groups.remove(group)
    for side, factor in zip(("left", "right"), rates, strict=True):
        params = [getattr(prompt, side) for prompt in model.prompts.values()]
        settings = {key: value for key, value in group.items() if key != "params"}
        settings["lr"] = group["lr"] * factor
        optimizer.add_param_group({**settings, "name": side, "params": params})


SHOWN = ("model", "dataset", "placement", "pooling", "lr", "rank", "num_prompts")


def recipe_of(options: argparse.Namespace, **changed: object) -> Recipe:
    values = {name: getattr(options, name) for name in (*SHOWN, "epochs", "batch_size")}
    values |= {"data": options.images, "weight_decay": 0.005, "head_weight_decay": 0.05}
    return Recipe(**{**values, **changed})


def read(options: argparse.Namespace) -> dict:
    """Backbone and tokens."""
    options.lr, options.pooling = 0.02, "default"
    recipe = recipe_of(options, method="vpt")
    benchmark, backbone = open_benchmark(recipe), open_backbone(recipe)
    model = build_model(recipe, backbone, len(benchmark.classes))
    batches = ImageBatches(recipe, benchmark, backbone, benchmark.train)
    mirrored = options.dataset != "digits"
    train = Tokens(model, batches.centre_crops(benchmark.train), mirrored=mirrored)
    held_out = Tokens(model, batches.centre_crops(benchmark.test), mirrored=False)
    classes = len(benchmark.classes)
    return {"backbone": backbone, "classes": classes, "train": train, "held_out": held_out}


def table(lines: list[dict]) -> str:
    """Markdown: a row a case."""
    rows = []
    for line in lines:
        last = line["seen"][max(line["seen"], key=int)]
        row = {key: line[key] for key in ("case", *SHOWN[:5], "steps")}
        row |= {key: last.get(key, float("nan")) for key in ("prompt", "left", "right", "rms")}
        row |= {key: line[key] for key in ("accuracy", "first_direction", "mean_row")}
        rows.append(row)
    keys = ["case", *SHOWN[:5], "steps"]
    groups = pd.DataFrame(rows).groupby(keys, sort=False)
    means = groups.mean().round(2)
    means["sd"], means["seeds"] = groups.accuracy.std().round(2), groups.size()
    return means.reset_index().to_string(index=False)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="zip with train/, val/ and test/")
    parser.add_argument("--dataset", default="folder", choices=["folder", "digits"])
    parser.add_argument("--out", type=Path, default=Path("out/collapse"))
    parser.add_argument("--cases", default="vpt,xavier,rank1,scaled,balanced")
    parser.add_argument("--model", default="mae_tiny")
    parser.add_argument("--placement", default="last:4")
    parser.add_argument("--poolings", default="default")
    parser.add_argument("--lrs", default="0.02")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--rank", type=int, default=12)
    parser.add_argument("--per-class", default="40,1,40", help="images of train, val, test")
    return parser.parse_args()


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    options.images = None
    if options.dataset == "folder":
        counts = map(int, options.per_class.split(","))
        splits = zip(("train", "val", "test"), counts, strict=True)
        parts = {split: {split: slice(count)} for split, count in splits}
        name = f"images-{options.per_class.replace(',', '-')}"
        options.images = str(unpacked(options.data, options.out / name, parts))
    data, file = read(options), options.out / "collapse.jsonl"
    seeds, lrs = options.seeds.split(","), options.lrs.split(",")
    for seed, lr, pooling, name in product(
        map(int, seeds), map(float, lrs), options.poolings.split(","), options.cases.split(",")
    ):
        options.lr, options.pooling = lr, pooling
        same = {"case": name, "seed": seed} | {key: getattr(options, key) for key in SHOWN}
        same["steps"] = len(data["train"].labels) // options.batch_size * options.epochs
        if any(same.items() <= line.items() for line in lines_of(file)):
            continue
        line = run_one(name, seed, options, data)
        with file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(json.dumps({key: line[key] for key in line if key != "seen"}), flush=True)
    print(table(lines_of(file)))


def lines_of(file: Path) -> list[dict]:
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


if __name__ == "__main__":
    main()
