"""A trained run on images: scores of a split, and the most likely classes of any image."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bpt.configuration import open_benchmark
from bpt.dataset import SPLITS, Benchmark, FileOpener
from bpt.engine import Scores, autocast, classify
from bpt.loading import eval_batches
from bpt.run_folder import Run, read_predictions
from bpt.transforms import eval_transform
from burst.device import choose_device
from burst.distributed import rank_and_size
from burst.errors import BurstError, CheckpointError, ImageError, check_known, one_line
from burst.files import all_of
from burst.progress import Say


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run on one split.

    Attributes:
        split: its name.
        images: how many.
        loss: mean cross-entropy, in nats.
        accuracy: top-1, percent.
        per_class: class -> accuracy in percent; NaN where the split has no image of it.
    """

    split: str
    images: int
    loss: float
    accuracy: float
    per_class: dict[str, float]


def evaluate_run(
    run: Run, split: str = "test", *, data: str | Path | None = None, device: str = "cpu"
) -> Evaluation:
    """Scores of a run's best epoch on a split, each image once, also under `torchrun`.

    Args:
        run: from `open_run`.
        split: "train", "val" or "test", in centre crops.
        data: where the dataset lies now, if it was moved.
        device: to run on: "auto", "cpu", "cuda", ...; under `torchrun` each process has its GPU.

    Raises:
        UnknownName: no such split.
        CheckpointError: the images are not those of the training; or see `Run.load_model`.
        ImageError: an image cannot be read, on whichever process.
        BurstError: the dataset has no such split, the device is not here; or see `open_dataset`.
    """
    scores, named, labels = _answers(run, split, data, device)
    right = (named == labels).double()
    per_class = {
        name: float(100 * right[labels == label].mean()) for label, name in enumerate(run.classes)
    }
    return Evaluation(split, scores.images, scores.loss, scores.accuracy, per_class)


def confusion_matrix(
    run: Run, split: str = "test", *, data: str | Path | None = None, device: str = "cpu"
) -> NDArray[np.int64]:
    """How often a run's best epoch takes each class for each other.

    Arguments and errors as of `evaluate_run`. Of the test split no image is read where the training
    kept what it named each (`predictions.safetensors`, which is checked); `data` and `device` are
    not used then.

    Returns:
        (C, C) int64 counts of images: the row is the true class, the column the one named.
    """
    classes = len(run.classes)
    kept = read_predictions(run.folder, classes=classes) if split == "test" else None
    if kept:
        named, labels = kept["predicted"], kept["labels"]
    else:
        _, named, labels = _answers(run, split, data, device)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels.numpy(), named.numpy()), 1)
    return counts


def run_benchmark(run: Run, data: str | Path | None = None) -> Benchmark:
    """The dataset of a run; `data` says where it lies now, if it was moved.

    Raises:
        CheckpointError: it holds other images than the run was made of.
        BurstError: see `open_benchmark`.
    """
    benchmark = open_benchmark(run.recipe, data)
    if benchmark.digest != run.config["dataset"]["digest"]:
        raise CheckpointError(
            f"{benchmark.source} holds other images than {run.folder} was made of"
        )
    return benchmark


def _answers(
    run: Run, split: str, data: str | Path | None, device: str
) -> tuple[Scores, Tensor, Tensor]:
    """Scores over all processes, and of each image the most likely class and its own, (n,)."""
    check_known("split", split, SPLITS)
    recipe = run.recipe
    images = getattr(run_benchmark(run, data), split)
    if images is None:
        raise BurstError(f"{recipe.dataset} has no split {split}")
    chosen = choose_device(device)
    model, backbone = run.load_model(chosen)
    rank, world = rank_and_size()
    batches = eval_batches(
        images,
        eval_transform(backbone),
        batch_size=recipe.eval_batch_size,
        rank=rank,
        world=world,
        workers=recipe.workers,
    )
    scores, answers = classify(model, batches, device=chosen, precision=recipe.precision)
    return scores, answers[:, 0], answers[:, 1]


@torch.inference_mode()
def predict(
    run: Run,
    images: str | Path | Sequence[str | Path],
    *,
    top: int = 5,
    device: str = "cpu",
    on_bad: Say | None = None,
) -> list[dict[str, Any]]:
    """The most likely classes of images, by a run's best epoch.

    Args:
        run: from `open_run`.
        images: a file, folder or archive of images, or several; what they hold is read in order of
            names.
        top: how many classes, at most as many as there are.
        device: to run on: "auto", "cpu", "cuda", ...; under `torchrun` each process has its GPU.
        on_bad: called with a line for each image that cannot be read, which is then left out; if
            not given, the first one is raised.

    Returns:
        For each image its `image` (where it lies) and `classes`, a list of `name` and
        `probability`, in 0..1, the most likely first.

    Raises:
        ImageError: an image is missing or, without `on_bad`, cannot be read; it is named.
        CheckpointError: see `Run.load_model`.
        BurstError: `top` is not positive, or the device is not here.
    """
    if top < 1:
        raise BurstError(f"top is {top}; it must be at least 1")
    openers = [FileOpener(Path(place)) for place in all_of(images)]
    if not openers:
        raise ImageError("no image to classify; name files, folders or archives")
    chosen = choose_device(device)
    model, backbone = run.load_model(chosen)
    transform, size = eval_transform(backbone), run.recipe.eval_batch_size
    answers, names = [], run.classes
    reading = ((place, transform(image)) for place, image in readable(openers, on_bad))
    while shown := list(islice(reading, size)):
        batch = torch.stack([pixels for _, pixels in shown])
        with autocast(chosen, run.recipe.precision):
            logits = model(batch.to(chosen)).float().cpu()
        likely = logits.softmax(dim=1).topk(min(top, len(names)))
        for (place, _), values, labels in zip(shown, *likely, strict=True):
            classes = [
                {"name": names[label], "probability": value}
                for value, label in zip(values.tolist(), labels.tolist(), strict=True)
            ]
            answers.append({"image": place, "classes": classes})
    return answers


def readable(
    openers: Iterable[FileOpener], on_bad: Say | None
) -> Iterator[tuple[str, Image.Image]]:
    """Where each image lies, and the image, in order of names; what cannot be read is told.

    Raises:
        ImageError: an image cannot be read, and nobody is told.
    """
    for opener in openers:
        for name in sorted(opener.files.sizes):
            try:
                image = opener(name)
            except ImageError as error:
                if on_bad is None:
                    raise
                on_bad(one_line(error))
            else:
                yield opener.describe(name), image
