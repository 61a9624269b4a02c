"""A trained detector on images: scores of a split, and the objects in any image."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from bpt.dataset import FileOpener
from bpt.dataset.coco import CocoSplit, open_coco
from bpt.detection.configuration import training_images
from bpt.detection.detector import Detector
from bpt.detection.evaluate import DetectionScores, average_precision
from bpt.detection.jitter import whole
from bpt.detection.loading import eval_batches
from bpt.detection.objects import Batch, Detections
from bpt.detection.recipe import DetectionRecipe
from bpt.detection.results import Results, coco_results, save_results
from bpt.detection.run_folder import DETECTIONS, DetectionRun
from bpt.engine import autocast
from bpt.inference import readable
from burst.device import choose_device
from burst.distributed import agreed, rank_and_size, together
from burst.errors import BurstError, CheckpointError, ImageError, check_known
from burst.files import all_of
from burst.progress import Say

SPLITS = ("train", "val")


@dataclass(frozen=True)
class FoundObjects:
    """What was found in one image.

    Attributes:
        place: where the image lies.
        image: upright, 8-bit RGB.
        objects: in COCO's result form, the best first, each with the `name` of its class: bbox is
            x, y, width, height in pixels of the image, score lies in 0..1.
    """

    place: str
    image: Image.Image
    objects: list[dict[str, Any]]


def detect(
    detector: Detector,
    recipe: DetectionRecipe,
    split: CocoSplit,
    category_ids: Sequence[int],
    *,
    watch: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Results:
    """All that is found in a split, over all processes, in COCO's result form and its order.

    Args:
        detector: of which images; on its device.
        recipe: it was trained with.
        split: the images, each once.
        category_ids: of the classes.
        watch: what goes on between two batches.

    Raises:
        ImageError: an image cannot be read, on whichever process.
    """
    device, (rank, world) = detector.mean.device, rank_and_size()

    def read() -> list[tuple[int, Results]]:
        rows = []
        batches = eval_batches(
            split,
            size=recipe.size,
            batch_size=recipe.eval_batch_size,
            rank=rank,
            world=world,
            workers=recipe.workers,
        )
        for batch, places, geometries in watch(batches):
            with autocast(device, recipe.precision):
                found = detector.detect(batch.to(device))
            for one, place, geometry in zip(found, places, geometries, strict=True):
                image = int(split.ids[place])
                rows.append((int(place), coco_results(one, geometry, image, category_ids)))
        return rows

    rows = sorted((row for process in together(read) for row in process), key=lambda row: row[0])
    return [entry for _, entries in rows for entry in entries]


def evaluate_detector(
    run: DetectionRun,
    split: str = "val",
    *,
    data: str | Path | None = None,
    device: str = "cpu",
) -> tuple[DetectionScores, Path]:
    """Scores of a run's detector, and the file of what it found.

    That is detections.json in the run's folder, or detections-train.json, in COCO's form. Under
    `torchrun` the processes share the images.

    Args:
        run: from `open_run`.
        split: "val" or "train".
        data: where the dataset lies now, if it was moved.
        device: to run on: "auto", "cpu", "cuda", ...

    Raises:
        UnknownName: no such split.
        CheckpointError: the images are not those of the training; or see `load_detector`.
        ImageError: an image cannot be read, on whichever process; or see `open_coco`.
        BurstError: the device is not here, or pycocotools is not installed.
        OutputError: the folder cannot be written.
    """
    images = open_images(run, split, data=data)
    chosen = choose_device(device)
    detector, _ = run.load_detector(chosen)
    found = detect(detector, run.recipe, images, run.category_ids)
    path = run.folder / (DETECTIONS if split == "val" else f"detections-{split}.json")

    def scored() -> DetectionScores:
        save_results(path, found)
        return average_precision(images.ground_truth(), found)

    return agreed(scored), path


def open_images(
    run: DetectionRun, split: str = "val", *, data: str | Path | None = None
) -> CocoSplit:
    """The annotated images that a run was trained or scored on.

    Args:
        run: from `open_run`.
        split: "val", or "train" for the images that the recipe trains on.
        data: where the dataset lies now, if it was moved.

    Raises:
        UnknownName: no such split.
        CheckpointError: the images are others now.
        ImageError, BurstError: see `open_coco`.
    """
    check_known("split", split, SPLITS)
    recipe = run.recipe
    name = recipe.dataset.partition(":")[0] if data else recipe.dataset
    place = data or recipe.data
    if data and recipe.dataset != name:
        name, place = f"{name}:{data}", None
    coco = open_coco(name, place)
    noted = run.config["dataset"]
    if coco.digest != noted["digest"]:
        raise CheckpointError(f"{coco.source} holds other images than {run.folder} was made of")
    if noted.get("objects_digest") not in (None, coco.objects_digest):
        raise CheckpointError(
            f"{coco.source} has other masks, areas or crowds than {run.folder} was made of"
        )
    return coco.val if split == "val" else training_images(recipe, coco)


def predict_objects(
    run: DetectionRun,
    images: str | Path | Sequence[str | Path],
    *,
    threshold: float = 0.5,
    device: str = "cpu",
    on_bad: Say | None = None,
) -> Iterator[FoundObjects]:
    """What a run's detector finds in images, one after another.

    Args:
        run: from `open_run`.
        images: a file, folder or archive of images, or several; what they hold is read in order of
            names, and turned as a camera says that it was held.
        threshold: least score, in 0..1; none below 0.05 is found.
        device: to run on: "auto", "cpu", "cuda", ...
        on_bad: called with a line for each image that cannot be read, which is then left out; if
            not given, the first one is raised.

    Raises:
        ImageError: an image is missing or, without `on_bad`, cannot be read; it is named.
        CheckpointError: see `DetectionRun.load_detector`.
        BurstError: the threshold is out of range, or the device is not here.
    """
    if not 0 <= threshold <= 1:
        raise BurstError(f"threshold is {threshold}; it must lie in 0..1")
    openers = [FileOpener(Path(place)) for place in all_of(images)]
    if not openers:
        raise ImageError("no image to look at; name files, folders or archives")
    detector, _ = run.load_detector(choose_device(device))
    for place, stored in readable(openers, on_bad):
        image = ImageOps.exif_transpose(stored)
        yield FoundObjects(place, image, _found_in(image, detector, run, threshold))


def _found_in(
    image: Image.Image, detector: Detector, run: DetectionRun, threshold: float
) -> list[dict[str, Any]]:
    recipe, device = run.recipe, detector.mean.device
    geometry = whole(image.height, image.width, recipe.size)
    height, width = geometry.kept
    pixels = torch.zeros(1, 3, recipe.size, recipe.size, dtype=torch.uint8)
    pixels[0, :, :height, :width] = geometry.apply(image)
    with autocast(device, recipe.precision):
        (found,) = detector.detect(Batch(pixels, (geometry.kept,)).to(device))
    good = int((found.scores >= threshold).sum())  # the best come first
    kept = Detections(
        found.boxes[:good], found.scores[:good], found.labels[:good], found.masks[:good]
    )
    names = dict(zip(run.category_ids, run.classes, strict=True))
    return [
        {"name": names[entry["category_id"]], **entry}
        for entry in coco_results(kept, geometry, 0, run.category_ids)
    ]
