"""The training loop: schedule by epochs or by the clock, log, and resume where it stopped."""

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from burst.errors import BurstError, check_known
from burst.files import make_folder, save_json, write_atomically
from tools.pretrain.mae import MaskedAutoencoder
from tools.pretrain.moco import MocoV3
from tools.pretrain.pixels import Pixels
from tools.pretrain.supervised import Supervised
from tools.pretrain.vit import PATCH_SIZE

OBJECTIVES = ("mae", "moco", "supervised")
PRECISIONS = ("bfloat16", "float32")
CHECKPOINT, LOG, CONFIG = "checkpoint.pt", "log.jsonl", "config.json"
WARM_UP = 0.05  # of the schedule
SAVE_EVERY, LOG_EVERY = 300.0, 30.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained and how. Exactly one of `epochs` and `minutes` is given.

    Attributes:
        objective: "mae", "moco" or "supervised".
        epochs: passes over the images.
        minutes: of training, on the clock; the schedule follows the clock too.
        batch_size: images a step.
        lr: AdamW's learning rate at its peak, for a batch of 256; scaled with the batch.
        weight_decay: on matrices; vectors have none.
        sizes: pixels of the views, in equal shares of the schedule.
        mixup: mix images and labels (supervised only).
        seed: of weights, order and views.
        precision: "bfloat16" (autocast) or "float32".
        compile: use torch.compile.
    """

    objective: str
    epochs: float | None = None
    minutes: float | None = None
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.05
    sizes: tuple[int, ...] = (64,)
    mixup: bool = False
    seed: int = 0
    precision: str = "bfloat16"
    compile: bool = False

    def __post_init__(self) -> None:
        check_known("objective", self.objective, OBJECTIVES)
        check_known("precision", self.precision, PRECISIONS)
        if self.batch_size < 1 or any(size < 1 or size % PATCH_SIZE for size in self.sizes):
            raise BurstError(f"sizes must be multiples of {PATCH_SIZE} and batches not empty")
        if (self.epochs is None) == (self.minutes is None):
            raise BurstError("give the length of the training: either --epochs or --minutes")
        if self.objective == "mae" and len(self.sizes) > 1:
            raise BurstError("MAE trains at one size: its hidden patches already make it cheap")

    def build(self, num_classes: int, **options: int) -> nn.Module:
        """The objective at random weights, drawn with the seed."""
        torch.manual_seed(self.seed)
        if self.objective == "mae":
            return MaskedAutoencoder(self.sizes[-1], **options)
        if self.objective == "moco":
            return MocoV3(self.sizes[-1], **options)
        return Supervised(self.sizes[-1], num_classes=num_classes, mixup=self.mixup, **options)


@dataclass
class State:
    """How far the training is."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0


def train(
    recipe: Recipe, pixels: Pixels, out: Path, *, device: torch.device, resume: bool = False
) -> nn.Module:
    """Train, and leave `checkpoint.pt`, `log.jsonl` and `config.json` in `out`.

    Raises:
        BurstError: fewer images than a batch; `out` holds a run and `resume` is not given, or one
            of another recipe; or the loss is no longer finite.
    """
    if len(pixels) < recipe.batch_size:
        raise BurstError(f"{len(pixels)} images are fewer than a batch of {recipe.batch_size}")
    make_folder(out)
    _check_folder(recipe, pixels, out, resume)
    run = _Run(recipe, pixels, out, device)
    if resume and (out / CHECKPOINT).exists():
        run.load()
    run.go()
    return run.objective


class _Run:
    """One training, from its first or its resumed step."""

    def __init__(self, recipe: Recipe, pixels: Pixels, out: Path, device: torch.device) -> None:
        self.recipe, self.pixels, self.out, self.device = recipe, pixels, out, device
        self.objective = recipe.build(len(pixels.classes)).to(device)
        self.loss = torch.compile(self.objective) if recipe.compile else self.objective
        self.optimizer = torch.optim.AdamW(_groups(self.objective, recipe), betas=_betas(recipe))
        self.state = State()
        _seed(recipe.seed)
        on_device = device.type == "cuda"  # 70,000 images of 64 pixels are 0.9 GB
        self.values = torch.from_numpy(np.array(pixels.values)).to(device) if on_device else None
        self.labels = torch.from_numpy(pixels.labels).to(device)

    def go(self) -> None:
        """Step until the schedule is done; log and save now and then, and at the end."""
        saved = logged = time.monotonic()
        since = self.state.images
        losses: list[Tensor] = []
        while (progress := self.progress()) < 1:
            begun = time.monotonic()
            losses.append(self.step(progress))
            now = time.monotonic()
            self.state.seconds += now - begun
            if now - logged > LOG_EVERY:
                self.log(progress, losses, (self.state.images - since) / (now - logged))
                losses, since, logged = [], self.state.images, now
            if now - saved > SAVE_EVERY:
                self.save()
                saved = now
        if losses:
            rate = (self.state.images - since) / max(time.monotonic() - logged, 1e-9)
            self.log(1.0, losses, rate)
        self.save()

    def progress(self) -> float:
        """The share of the schedule that is done."""
        recipe, state = self.recipe, self.state
        if recipe.epochs is not None:
            steps = len(self.pixels) // recipe.batch_size * recipe.epochs
            return state.step / max(round(steps), 1)
        assert recipe.minutes is not None
        return state.seconds / (60 * recipe.minutes)

    def step(self, progress: float) -> Tensor:
        """One batch; the loss, detached."""
        recipe = self.recipe
        self.set_size(progress)
        lr = recipe.lr * recipe.batch_size / 256 * shape(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"
        ):
            loss: Tensor = self.loss(*self.batch())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
        self.optimizer.step()
        if isinstance(self.objective, MocoV3):
            self.objective.after_step(progress)
        self.state.step += 1
        self.state.images += recipe.batch_size
        return loss.detach()

    def batch(self) -> Iterator[Tensor]:
        """The next uint8 images, and their labels if the objective looks at them."""
        size, number = self.recipe.batch_size, self.state.step
        steps = len(self.pixels) // size
        epoch, place = divmod(number, steps)
        if getattr(self, "epoch", None) != epoch:
            generator = torch.Generator().manual_seed(self.recipe.seed + 1000 * epoch)
            self.order, self.epoch = torch.randperm(len(self.pixels), generator=generator), epoch
        chosen = self.order[place * size : (place + 1) * size]
        if self.values is not None:
            yield self.values[chosen.to(self.device)]
        else:
            yield torch.from_numpy(self.pixels.values[chosen.sort().values.numpy()])
        if self.recipe.objective == "supervised":
            chosen = chosen if self.values is not None else chosen.sort().values
            yield self.labels[chosen.to(self.device)]

    def set_size(self, progress: float) -> None:
        sizes = self.recipe.sizes
        size = sizes[min(int(progress * len(sizes)), len(sizes) - 1)]
        if len(sizes) > 1 and getattr(self, "size", None) != size:
            self.objective.set_size(size)  # type: ignore[operator]
            self.size = size

    def log(self, progress: float, losses: list[Tensor], rate: float) -> None:
        """A line in the log and on the terminal; here it shows that a loss is not finite."""
        loss, state = float(torch.stack(losses).mean()), self.state
        if not math.isfinite(loss):
            raise BurstError(
                f"the loss is {loss} after {state.images} images; lower --lr, or use "
                f"--precision float32; {self.out / CHECKPOINT} holds the last good state"
            )
        line = {
            "progress": round(progress, 4),
            "epoch": round(state.images / len(self.pixels), 3),
            "images": state.images,
            "loss": round(loss, 5),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": round(rate, 1),
            "minutes": round(state.seconds / 60, 2),
        }
        with (self.out / LOG).open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        text = "  ".join(f"{name} {value:.4g}" for name, value in line.items())
        Console(stderr=True, soft_wrap=True).print(text, highlight=False)

    def save(self) -> None:
        content = {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": asdict(self.state),
            "random": _random_states(self.device),
        }
        with write_atomically(self.out / CHECKPOINT) as temporary:
            torch.save(content, temporary)

    def load(self) -> None:
        content = torch.load(self.out / CHECKPOINT, map_location=self.device, weights_only=True)
        self.objective.load_state_dict(content["objective"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.state = State(**content["state"])
        _restore(content["random"], self.device)


def shape(progress: float) -> float:
    """Linear warm-up, then half a cosine down to zero; 1 at the peak."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 1e-3)
    return (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


def _groups(objective: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Weight decay on matrices only."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.squeeze().ndim > 1]
    vectors = [p for p in trained if p.squeeze().ndim <= 1]
    return [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _betas(recipe: Recipe) -> tuple[float, float]:
    return (0.9, 0.95) if recipe.objective == "mae" else (0.9, 0.999)


def _check_folder(recipe: Recipe, pixels: Pixels, out: Path, resume: bool) -> None:
    """Write the recipe into a new folder; compare it with that of an old one."""
    mine = {**asdict(recipe), "sizes": list(recipe.sizes), "data": pixels.digest}
    path = out / CONFIG
    if path.exists():
        theirs = json.loads(path.read_text())
        differing = sorted(name for name in mine if theirs.get(name) != mine[name])
        if not resume:
            raise BurstError(f"{out} already holds a run; go on with --resume, or choose another")
        if differing:
            raise BurstError(f"{out} was trained with another {', '.join(differing)}; see {path}")
    save_json(path, mine)


def _seed(seed: int) -> None:
    """timm's mix-up draws from NumPy, everything else from torch."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _random_states(device: torch.device) -> dict[str, Any]:
    name, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.array(keys, np.int64)), position, has_gauss],
        "numpy_cached": float(cached),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"].cpu())
    name, keys, position, has_gauss = states["numpy"]
    words = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state((name, words, position, has_gauss, states["numpy_cached"]))
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
