"""What a training opens, and what its run folder says of it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bpt import run_folder as folder
from bpt.construction import open_backbone
from bpt.dataset import (
    SPLITS,
    Benchmark,
    DatasetInfo,
    Split,
    all_training_images,
    dataset_info,
    file_name,
    fold_of,
    open_dataset,
    without_place,
)
from bpt.errors import RunExists
from bpt.recipe import Recipe
from bpt.tuning import Tuning
from burst.backbone import Backbone
from burst.distributed import rank_and_size
from burst.errors import BurstError, CheckpointError
from burst.files import safe_name, sha256_of
from burst.loading.common import RANDOM
from burst.progress import Say
from burst.provenance import provenance
from burst.whitening_file import load_whitening


def default_folder(recipe: Tuning, *, several: bool = False) -> Path:
    """Where a training leaves its run if nobody says: the same for the same recipe.

    Args:
        recipe: of a classifier or a detector.
        several: whether seeds lie below it, so that its name has none.

    Returns:
        runs/DATASET-MODEL-METHOD-PLACEMENT-seedN, as far as the recipe has them.
    """
    parts = [file_name(recipe.dataset), recipe.model, recipe.method]
    if recipe.prompted:
        parts.append(recipe.placement)
    if not several:
        parts.append(f"seed{recipe.seed}")
    return Path("runs") / safe_name("-".join(parts))


def open_benchmark(
    recipe: Recipe, data: str | Path | None = None, *, say: Say | None = None
) -> Benchmark:
    """The recipe's dataset, cut as its fold says; `data` says where it lies now, if it was moved.

    Raises:
        BurstError: see `open_dataset` and `fold_of`.
    """
    name = without_place(recipe.dataset) if data else recipe.dataset
    benchmark = open_dataset(
        name,
        data or recipe.data,
        train_fraction=recipe.train_fraction,
        train_list=recipe.train_list,
        say=say,
    )
    if say and recipe.fold is None:
        sizes, splits = benchmark.sizes, untouched_splits(recipe)
        say_unlike_published(dataset_info(recipe.dataset), sizes, say, splits=splits)
    return fold_of(benchmark, recipe.fold)


def untouched_splits(recipe: Recipe) -> tuple[str, ...]:
    """Those of which the recipe asks for all images, as they were published."""
    if recipe.fold is not None:
        return ("test",)
    if recipe.train_fraction in (None, 1) and recipe.train_list is None:
        return SPLITS
    return ("val", "test") if dataset_info(recipe.dataset).own_validation else ("test",)


def say_unlike_published(
    info: DatasetInfo,
    sizes: tuple[int, int, int],
    say: Say,
    *,
    splits: Sequence[str] = SPLITS,
) -> None:
    """Say, where it is so, that a benchmark is not whole; see `DatasetInfo.unlike_published`."""
    if differing := info.unlike_published(sizes, splits=splits):
        words = f"{info.name} is not as published: {', '.join(differing)}"
        say(f"{words}; published numbers are of other images")


def backbone_for(recipe: Recipe, benchmark: Benchmark, device: str | torch.device) -> Backbone:
    """The recipe's backbone, which reads images whole where the benchmark's protocol asks for that.

    Raises:
        BurstError: see `open_backbone`.
    """
    backbone = open_backbone(recipe, device)
    if not benchmark.squash:
        return backbone
    return replace(backbone, crop_fraction=1.0, crop_mode="squash")


def configuration(recipe: Recipe, benchmark: Benchmark, backbone: Backbone) -> dict[str, Any]:
    """What config.json says before the parameters are counted."""
    splits = {"train": benchmark.train, "val": benchmark.val, "test": benchmark.test}
    return {
        "kind": folder.KIND,
        "recipe": recipe_record(recipe),
        "dataset": {
            "name": benchmark.name,
            "source": benchmark.source,
            "digest": benchmark.digest,
            "classes": list(benchmark.classes),
            **{name: len(split) if split else 0 for name, split in splits.items()},
            **benchmark.about,
        },
        "backbone": {
            **backbone_record(backbone),
            "image_size": list(backbone.image_size),
            "resized_from": list(backbone.resized_from) if backbone.resized_from else None,
        },
        "whitening": whitening_record(recipe),
        "processes": rank_and_size()[1],
        **provenance(*recipe.libraries),
    }


def recipe_record(recipe: Tuning) -> dict[str, Any]:
    """A recipe in config.json, its weights found from any working folder."""
    found = recipe.to_dict()
    if recipe.weights not in (None, RANDOM):
        found["weights"] = str(Path(recipe.weights).absolute())
    return found


def backbone_record(backbone: Backbone) -> dict[str, Any]:
    """What config.json says of a backbone."""
    return {
        "name": backbone.name,
        "pretraining": backbone.pretraining,
        "weights_source": backbone.weights_source,
        "weights_sha256": backbone.weights_sha256,
        "crop_fraction": backbone.crop_fraction,
        "crop_mode": backbone.crop_mode,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "notes": list(backbone.notes),
    }


def whitening_record(recipe: Tuning) -> dict[str, str] | None:
    """What config.json says of the whitening file that was given; None where there is none.

    One that cannot be read is not told of here: a training that needs it will say so.
    """
    file = Path(recipe.whitening) if recipe.whitening else None
    if file is None or not file.is_file():
        return None
    return {"source": str(file), **whitening_identity(file)}


def whitening_identity(file: Path) -> dict[str, str]:
    """`WHITENING_KEYS` of a whitening file; without its fingerprint where it cannot be read."""
    found = {"sha256": sha256_of(file)}
    with suppress(CheckpointError):
        found["fingerprint"] = load_whitening(file).fingerprint
    return found


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
        raise RunExists(
            f"{out} already holds a run; resume it (--resume, in Python resume=True), "
            "or choose another folder (--out)"
        )
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
        BurstError: there is no validation image, and the protocol needs some.
    """
    if recipe.protocol == "standard" and not benchmark.val:
        raise BurstError(
            f"no image of {recipe.dataset} is left to validate on: each class has one, or copies "
            "of one; give more images, or --protocol last, which needs none"
        )
    return benchmark.train if recipe.protocol == "standard" else all_training_images(benchmark)
