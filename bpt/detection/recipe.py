"""Every hyper-parameter of a detector's training, in one object that checks itself."""

import re
from dataclasses import dataclass
from typing import Any

from bpt.detection.backbone import GRID, PATCHES
from bpt.methods import ADAPTED, METHODS, USED_BY
from bpt.tuning import Tuning
from burst.backbone_spec import known_backbone
from burst.errors import BurstError, ShapeError, check_known

DETECTORS = ("mask-rcnn", "cascade")
DETECTION_USED_BY = USED_BY | {"weight_decay": METHODS}  # pyramid and heads decay too
# Epochs of COCO's training images, and after which share of them the rate falls to a tenth, twice.
# Source: detectron2, configs/common/coco_schedule.py, 90,000 and 270,000 steps of 16 images.
SCHEDULES = {"1x": (12, (2 / 3, 8 / 9)), "3x": (37, (7 / 9, 25 / 27))}
WARMUP_STEPS, WARMUP_START = 1000, 0.001
# Where nobody asks for others: the supplement's (Table 8).
DEFAULTS = {"full": {"lr": 1e-4, "weight_decay": 0.1}}
FROZEN_DEFAULTS = {"lr": 5e-4, "weight_decay": 0.1}


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Tuning):
    """How a detector is trained.

    Attributes:
        dataset: "coco", or "coco:PATH" for any set in its format.
        detector: "mask-rcnn" or "cascade" (Cascade Mask R-CNN).
        image_size: S, pixels a side of the square that images are scaled into; 64 patches across
            if not given, where the model's name tells its patches ("patch8"), else of 16 pixels.
        schedule: "1x" (12 epochs) or "3x" (37), or a number of epochs with the steps of "3x".
        warmup_steps: with a linearly rising rate; at most a tenth of all.
        channels: of pyramid, proposals and the heads' convolutions; the fully connected layer of
            boxes has four times as many.
        class_agnostic: one box regression for all classes; yes for cascade, no for mask-rcnn.
        smallest_scale, largest_scale: of the images in training, where 1 fills the square.
        sampling_ratio: points that regions are read at, in a bin and direction; 0 adapts them.
        eval_every: epochs between evaluations on the way; 0 evaluates at the end alone.
        lr: at its peak; 0.0005, for full 0.0001.
        weight_decay: of all matrices that are trained; 0.1.

    Raises:
        UnknownName: a name that is not known; the nearest are offered.
        ShapeError: `image_size` is no multiple of 64.
        BurstError: a number out of range, options that contradict each other, or a method that is
            for classifiers.

    Source: rate and decay: arXiv 2506.22908, supplement, table 8; schedules: detectron2,
    configs/common/coco_schedule.py.
    """

    dataset: str = "coco"
    batch_size: int = 16
    eval_batch_size: int = 1
    detector: str = "mask-rcnn"
    image_size: int | None = None
    schedule: str = "3x"
    warmup_steps: int = WARMUP_STEPS
    channels: int = 256
    class_agnostic: bool | None = None
    smallest_scale: float = 0.1
    largest_scale: float = 2.0
    sampling_ratio: int = 0
    eval_every: int = 0

    def __post_init__(self) -> None:
        check_known("detector", self.detector, DETECTORS)
        if self.method in ADAPTED:
            raise BurstError(
                f"method {self.method} is for classifiers; train a detector with prompts, or with "
                "method linear or full"
            )
        super().__post_init__()

    @property
    def total_epochs(self) -> int:
        """Passes over the training images."""
        if self.schedule in SCHEDULES:
            return SCHEDULES[self.schedule][0]
        return int(self.schedule)

    @property
    def milestones(self) -> tuple[float, float]:
        """Shares of all steps after which the rate falls to a tenth."""
        return SCHEDULES.get(self.schedule, SCHEDULES["3x"])[1]

    @property
    def size(self) -> int:
        """`image_size` in pixels, which is filled in by now."""
        assert self.image_size is not None
        return self.image_size

    def warmup(self, steps: int) -> int:
        """Of `steps` in all, how many have a rising rate."""
        return min(self.warmup_steps, steps // 10)

    def choices(self) -> dict[str, Any]:
        """What the paper leaves open and no field says, for the record of a run."""
        return {
            "class_token": "attends; left behind before the pyramid, like prompts and registers",
            "padding": "zero after normalisation; attended to like patches",
            "norm_behind_last_block": False,
            "attention": "global in all blocks",
            "box_loss": "L1",
            "mask_targets": "share of each cell that is covered, aligned; not cut at a half",
            "crop": "after scaling, at one random share of the way for both axes",
            "crowds": "not learned",
            "weight_decay": "of matrices; not of norms, biases, positions",
            "position_embeddings": "bicubic, not antialiased",
            "classes": "those of the annotations, by ascending id, from 1",
        }

    def _fill_in(self) -> None:
        self._derive({"image_size": GRID * _patch(self.model)})
        self._derive({"class_agnostic": self.detector == "cascade"})
        self._derive(DEFAULTS.get(self.method, FROZEN_DEFAULTS))

    def _check_numbers(self) -> None:
        if self.schedule not in SCHEDULES and not re.fullmatch("[1-9][0-9]*", self.schedule):
            raise BurstError(
                f"schedule {self.schedule!r} is no number of epochs, and none of "
                f"{', '.join(SCHEDULES)}"
            )
        super()._check_numbers()
        self._check_positive("channels")
        self._check_not_negative("warmup_steps", "sampling_ratio", "eval_every")
        if self.size < 64 or self.size % 64:
            raise ShapeError(
                f"image_size is {self.image_size}; it must be a multiple of 64, such as 512"
            )
        if not 0 < self.smallest_scale <= self.largest_scale < float("inf"):
            raise BurstError(
                f"scales run from {self.smallest_scale} to {self.largest_scale}; the first must be "
                "positive and not above the second"
            )


def detection_patch(patch: int) -> int:
    """Pixels of a detector's patch, of those of the backbone's."""
    return PATCHES.get(patch, patch)


def _patch(model: str) -> int:
    """Of a backbone that is known, or as its name says; else 16."""
    if spec := known_backbone(model):
        return detection_patch(spec.patch_size)
    said = re.search(r"(?<![a-z])patch(\d+)", model)
    return detection_patch(int(said[1] if said else 16))
