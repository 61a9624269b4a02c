"""Wires recipe, images, detector and run folder."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

from bpt import run_folder as folder
from bpt.configuration import say_unlike_published
from bpt.construction import open_backbone, prompted_blocks
from bpt.dataset import dataset_info
from bpt.dataset.coco import CocoSplit, open_coco
from bpt.detection.backbone import Trunk, detection_backbone
from bpt.detection.configuration import (
    detection_configuration,
    score_record,
    training_images,
    unlabelled,
)
from bpt.detection.construction import build_detector, count_detector
from bpt.detection.cost import Shape, detection_cost, detection_memory
from bpt.detection.detector import Detector
from bpt.detection.evaluate import DetectionScores, average_precision
from bpt.detection.inference import detect
from bpt.detection.jitter import Jitter
from bpt.detection.loading import train_batches
from bpt.detection.objects import Batch
from bpt.detection.published import OFFICIAL
from bpt.detection.recipe import DetectionRecipe
from bpt.detection.results import save_results
from bpt.detection.run_folder import DETECTIONS
from bpt.detection.training import DetectorTrainer, loss_names, make_detector_trainer
from bpt.engine import EpochState, add_up
from bpt.prompt_starts import prompt_starts
from bpt.session import Session
from burst.distributed import agreed, first_alone, rank_and_size
from burst.errors import BurstError
from burst.files import save_json
from burst.progress import spoken_time
from burst.provenance import provenance

LABEL = "last epoch, scored on the validation images once"
PACE = 10  # steps after which it is said how long the rest takes


class DetectionSession(Session[DetectionRecipe, Batch]):
    """The training of a detector. The last epoch is kept; nothing is chosen on the validation."""

    model: Detector
    trainer: DetectorTrainer
    last_scores: DetectionScores | None = None  # where the last epoch was scored on the way

    def _open(self) -> None:
        recipe = self.recipe
        self.coco = first_alone(lambda: open_coco(recipe.dataset, recipe.data, say=self.say))
        if recipe.dataset == OFFICIAL:
            sizes = len(self.coco.train), len(self.coco.val), 0
            say_unlike_published(dataset_info(OFFICIAL), sizes, self.say)
        self.backbone = open_backbone(recipe, self.device)
        detection_backbone(self.backbone, recipe.size)  # what cannot be built shows now
        prompted_blocks(recipe, self.backbone)
        self.train_split = training_images(recipe, self.coco)
        self.config = detection_configuration(recipe, self.coco, self.backbone, self.train_split)

    def _build(self) -> None:
        recipe, classes = self.recipe, len(self.coco.categories)
        resized = detection_backbone(self.backbone, recipe.size)
        images = unlabelled(self.train_split)
        starts = prompt_starts(
            recipe, resized, images, self.coco.digest, out=self.out, say=self.say
        )
        for line in (*recipe.provenance(), *self.coco.notes):
            self.say(line)
        self.model = build_detector(recipe, self.backbone, classes, **starts)
        self.config["parameters"] = count_detector(self.model)
        if recipe.compile:
            for block in self.trunk.vit.blocks:  # the rest of a detector breaks graphs
                block.compile()
        self.epochs = DetectionEpochs(recipe, self.train_split)
        self.trainer = make_detector_trainer(recipe, self.model, self.model, self.total_steps)
        self._say_cost()
        self.progress = self._paced(self.progress)

    @property
    def trunk(self) -> Trunk:
        """The backbone in the detector."""
        return cast(Trunk, self.model.trunk)

    def _say_cost(self) -> None:
        recipe, trunk, world = self.recipe, self.trunk, rank_and_size()[1]
        depth = len(trunk.vit.blocks)
        shape = Shape(depth, trunk.width, trunk.stride, trunk.prefix)
        cost = detection_cost(
            recipe,
            shape,
            classes=len(self.coco.categories),
            train_images=len(self.train_split),
            val_images=len(self.coco.val),
        )
        images = max(1, recipe.batch_size // world // recipe.accumulation)
        memory = detection_memory(recipe, shape, self.model, images=images)
        self.say(
            f"by estimate {cost.operations:.1e} operations, "
            f"{spoken_time(3600 * cost.hours)} on one H100 in {recipe.precision}, and "
            f"{memory / 2**30:.1f} GiB for {images} images at once "
            "(with accumulation or activation checkpointing less)"
        )

    def _evaluated(self, done: EpochState) -> tuple[dict[str, Any], dict[str, Tensor]]:
        loss, images, *losses, grad_norm = add_up(done.sums.clone()).tolist()
        ended, every = self.epoch + 1, self.recipe.eval_every
        last = ended == self.recipe.total_epochs
        trained = self.model.trained_state()
        self._check_finite(trained)
        due = every > 0 and ended % every == 0
        scores = self._scored(keep=last) if due else None
        self.last_scores = scores if last else None
        names = loss_names(self.recipe.detector)
        return {
            "loss": loss / images,
            "losses": {name: one / images for name, one in zip(names, losses, strict=True)},
            "box_AP": folder.finite(scores.values["box_AP"]) if scores else None,
            "mask_AP": folder.finite(scores.values["mask_AP"]) if scores else None,
            "prompt_grad_norm": grad_norm / done.step if self.trainer.prompts else None,
            "images_per_second": images / done.seconds,
        }, trained

    def _is_best(self, line: Mapping[str, Any]) -> bool:
        return line is self.metrics[-1]

    def _result(self) -> dict[str, Any]:
        scores = self.last_scores
        if scores is None:
            state = agreed(lambda: folder.open_run(self.out).trained_state())
            self.model.load_trained_state(state)
            scores = self._scored(keep=True)
        result = {
            "label": LABEL,
            "epochs": self.recipe.total_epochs,
            **score_record(scores),
            "parameters": self.config["parameters"],
            "seconds": self.seconds,
            "images_per_second": statistics.median(
                line["images_per_second"] for line in self.metrics
            ),
            "seed": self.recipe.seed,
            **provenance(),
        }
        if self.writes:
            save_json(self.out / folder.RESULT, result)
        return result

    def _scored(self, *, keep: bool) -> DetectionScores:
        """Of the validation images; what is found is kept first, whatever scoring comes to."""
        self.say(f"scoring {len(self.coco.val)} validation images")
        self.model.eval()
        found = detect(
            self.model, self.recipe, self.coco.val, self.coco.categories.ids, watch=self.watched
        )

        def scored() -> DetectionScores:
            if keep:
                save_results(self.out / DETECTIONS, found)
            return average_precision(self.coco.val.ground_truth(), found)

        return agreed(scored)

    def _spoken(self, line: Mapping[str, Any]) -> str:
        parts = "  ".join(f"{name} {value:.3f}" for name, value in line["losses"].items())
        scored = ""
        if line["box_AP"] is not None:
            scored = f"  box AP {line['box_AP']:.1f}  mask AP {line['mask_AP'] or 0:.1f}"
        rate = line["images_per_second"]
        return f"loss {line['loss']:.3f}  ({parts}){scored}  {rate:.2g} images/s"

    @property
    def _random(self) -> str:
        return "which regions a step learns from"

    def _paced(self, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """The same, and after a few steps a line on how long the rest takes."""
        seen: list[tuple[int, float]] = []
        say = self.say  # this session, which would hold itself, stays on a GPU with all it has

        def report(done: int, total: int) -> None:
            progress(done, total)
            seen.append((done, time.monotonic()))
            if len(seen) == PACE:
                (first, began), (last, now) = seen[1], seen[-1]
                left = (total - done) * (now - began) / (last - first)
                say(f"at this pace {spoken_time(left)} to go")
            del seen[PACE + 1 :]

        return report


class DetectionEpochs:
    """Jittered images and their targets."""

    def __init__(self, recipe: DetectionRecipe, split: CocoSplit) -> None:
        if len(split) < recipe.batch_size:
            raise BurstError(
                f"{len(split)} training images are fewer than a batch of {recipe.batch_size}; "
                f"lower batch_size (--batch-size {len(split) or 1})"
            )
        self.recipe, self.split = recipe, split
        self.steps = len(split) // recipe.batch_size

    def train(self, epoch: int, start: int) -> Any:  # noqa: ANN401
        """This process's share of the epoch's batches, from batch `start` on."""
        recipe, (rank, world) = self.recipe, rank_and_size()
        return train_batches(
            self.split,
            Jitter(recipe.size, recipe.smallest_scale, recipe.largest_scale),
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            epoch=epoch,
            start=start,
            rank=rank,
            world=world,
            workers=recipe.workers,
        )
