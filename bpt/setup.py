"""What a training starts from: device, folder, prompts, optimiser; alike on every process."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bpt import run as folder
from bpt.build import Model
from bpt.dataset import Benchmark, Split, open_dataset
from bpt.engine import ClassifierTrainer
from bpt.errors import RunExists
from bpt.optimisation import MovingAverage, make_optimizer, schedule
from bpt.prepare import matrices, tokens_for, whitening_for
from bpt.recipe import Recipe, Tuning
from burst.backbone import Backbone
from burst.distributed import agreed, meet, rank_and_size
from burst.errors import BurstError
from burst.provenance import provenance
from burst.whitening_file import load_whitening, save_whitening

T = TypeVar("T")


def default_folder(recipe: Tuning, *, several: bool = False) -> Path:
    """Where a training leaves its run if nobody says: the same for the same recipe."""
    dataset = recipe.dataset.partition(":")[0]
    parts = [dataset, recipe.model, recipe.method]
    if recipe.prompted:
        parts.append(recipe.placement)
    if not several:
        parts.append(f"seed{recipe.seed}")
    return Path("runs") / re.sub(r"[^\w.+-]", "-", "-".join(parts))


def open_benchmark(
    recipe: Recipe, data: str | Path | None = None, *, say: Callable[[str], None] | None = None
) -> Benchmark:
    """The recipe's dataset; `data` says where it lies now, if it was moved.

    Raises:
        BurstError: see `open_dataset`.
    """
    name = recipe.dataset.partition(":")[0] if data else recipe.dataset
    return open_dataset(
        name,
        data or recipe.data,
        train_fraction=recipe.train_fraction,
        train_list=recipe.train_list,
        say=say,
    )


def configuration(recipe: Recipe, benchmark: Benchmark, backbone: Backbone) -> dict[str, Any]:
    """What config.json says before the parameters are counted."""
    splits = {"train": benchmark.train, "val": benchmark.val, "test": benchmark.test}
    return {
        "kind": folder.KIND,
        "recipe": recipe.to_dict(),
        "dataset": {
            "name": benchmark.name,
            "source": benchmark.source,
            "digest": benchmark.digest,
            "classes": list(benchmark.classes),
            **{name: len(split) if split else 0 for name, split in splits.items()},
        },
        "backbone": backbone_record(backbone),
        "processes": rank_and_size()[1],
        **provenance(),
    }


def backbone_record(backbone: Backbone) -> dict[str, Any]:
    """What config.json says of a backbone."""
    return {
        "name": backbone.name,
        "pretraining": backbone.pretraining,
        "weights_source": backbone.weights_source,
        "weights_sha256": backbone.weights_sha256,
        "crop_fraction": backbone.crop_fraction,
        "crop_mode": backbone.crop_mode,
    }


def existing_result(
    out: Path, recipe: Tuning, config: dict[str, Any], *, resume: bool
) -> dict[str, Any] | None:
    """The result of the run in `out` if it is at its end; None if it must be trained (on).

    Raises:
        RunExists: there is a run, and `resume` is not given, or it is of another recipe, or it was
            begun by a version that cropped images otherwise.
    """
    if not (out / folder.CONFIG).exists():
        return None
    if not resume:
        raise RunExists(f"{out} already holds a run; resume it, or choose another folder")
    run = folder.open_run(out)
    folder.check_same(run, recipe, config)
    before, now = folder.crop_of(run.config), folder.crop_of(config)
    if run.result is None and before != now:
        raise RunExists(
            f"{out} was begun with images cropped at {before[0]:g} ({before[1]}), and they are now "
            f"at {now[0]:g} ({now[1]}); choose another folder"
        )
    return run.result


def training_split(recipe: Recipe, benchmark: Benchmark) -> Split:
    """The images that the protocol trains on.

    Raises:
        BurstError: there is no validation split, and the protocol needs one.
    """
    if recipe.protocol == "standard" and benchmark.val is None:
        raise BurstError(f"{recipe.dataset} has no validation split to choose the epoch on")
    if recipe.protocol == "authors" and benchmark.val is not None:
        return benchmark.train + benchmark.val
    return benchmark.train


def prompt_starts(
    recipe: Tuning,
    backbone: Backbone,
    train: Split,
    digest: str,
    *,
    out: Path,
    say: Callable[[str], None],
) -> dict[str, dict[int, Tensor]]:
    """`whitening` and `tokens` for `build_model`.

    A whitening is left in the run folder, and taken from there when the training goes on.
    """
    starts: dict[str, dict[int, Tensor]] = {}
    if recipe.needs_whitening:
        kept = out / folder.WHITENING
        # Without a configuration it is the leftover of a start that never came to be a run.
        there = kept.exists() and (out / folder.CONFIG).exists()
        whitening = agreed(lambda: load_whitening(kept, backbone) if there else None)
        if whitening is None:
            if recipe.whitening is None:
                say("whitening matrices from training images")
            whitening = whitening_for(recipe, backbone, train, digest)
            if rank_and_size()[0] == 0:
                save_whitening(whitening, kept)
        starts["whitening"] = matrices(whitening)
    if recipe.method == "spt":
        say(f"prompts start from {recipe.spt_tokens} tokens of training images")
        starts["tokens"] = tokens_for(recipe, backbone, train, digest)
    return starts


def count_parameters(model: Model) -> dict[str, int]:
    """How many numbers are trained, those of prompts and head among them, and how many are not."""
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    return {
        "trained": sum(trained.values()),
        "prompts": sum(count for name, count in trained.items() if name.startswith("prompts.")),
        "head": sum(count for name, count in trained.items() if name.startswith("head.")),
        "total": sum(p.numel() for p in model.parameters()),
    }


def make_trainer(
    recipe: Recipe, model: Model, forward: Callable[[Tensor], Tensor], steps: int
) -> ClassifierTrainer:
    """The optimiser and all around it.

    Args:
        recipe: how.
        model: whose parameters are trained.
        forward: what gives logits of a batch: the model, compiled perhaps, or the head alone.
        steps: an epoch has.
    """
    device, rank = model.head.weight.device, rank_and_size()[0]
    torch.manual_seed(recipe.seed + rank)  # of stochastic depth; each process drops others
    optimizer = make_optimizer(model, recipe)
    average = None
    if recipe.ema_decay is not None:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        average = MovingAverage(trained, recipe.ema_decay)
    prompts = getattr(model, "prompts", None)
    return ClassifierTrainer(
        model,
        shared(forward, device),
        optimizer,
        prompts=list(prompts.parameters()) if prompts is not None else [],
        set_lr=schedule(optimizer, recipe, steps).step_update,
        device=device,
        precision=recipe.precision,
        accumulation=recipe.accumulation,
        average=average,
    )


def shared(forward: Callable[..., T], device: torch.device) -> Callable[..., T]:
    """With gradients averaged over the processes, if there are several."""
    if rank_and_size()[1] == 1:
        return forward
    # The backbone is the same everywhere, and has no buffers that training changes.
    devices = [device.index] if device.type == "cuda" else None
    assert isinstance(forward, nn.Module)
    meet()  # nobody waits in there for a process that failed before
    with warnings.catch_warnings():  # newer versions of torch have a new name for the argument
        warnings.filterwarnings("ignore", message=".*broadcast_buffers")
        return nn.parallel.DistributedDataParallel(
            forward, device_ids=devices, broadcast_buffers=False
        )
