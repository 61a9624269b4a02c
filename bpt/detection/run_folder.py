"""The folder of a detector's training, read: as of a classifier's, and detections.json.

detections.json   what was found in the validation images, in COCO's result format
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from bpt.dataset.coco_annotations import mask_runs
from bpt.detection.construction import restore_detector
from bpt.detection.detector import Detector
from bpt.detection.recipe import DetectionRecipe
from bpt.run_folder import RunFolder
from burst.backbone import Backbone
from burst.errors import CheckpointError

DETECTIONS = "detections.json"


@dataclass(frozen=True)
class DetectionRun(RunFolder):
    """The folder of a detector's training, read: see `bpt.open_run`."""

    @cached_property
    def recipe(self) -> DetectionRecipe:
        """What it was trained with."""
        return DetectionRecipe.from_dict(self.config["recipe"])

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Of the classes, in the annotations that it was trained on."""
        return tuple(self.config["dataset"]["category_ids"])

    def load_detector(self, device: str | torch.device = "cpu") -> tuple[Detector, Backbone]:
        """The detector of the last epoch, in eval mode, and its backbone.

        Raises:
            CheckpointError: the backbone's weights are not those that it was trained on; or the
                tensors are missing, damaged or do not fit.
        """
        backbone = self.load_backbone(device)
        state, whitening = self.trained_state(), self.frozen_whitening(backbone)
        count = len(self.classes)
        detector = restore_detector(self.recipe, backbone, count, state, whitening=whitening)
        return detector, backbone

    def detections(self) -> list[dict[str, Any]]:
        """What was found in the validation images, in COCO's result format.

        Boxes are x, y, width, height in pixels of the image, scores lie in 0..1.

        Raises:
            CheckpointError: they were not written yet, or are damaged, in their values too.
        """
        path = self.folder / DETECTIONS
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.folder} holds no {DETECTIONS}; make it with `bpt evaluate {self.folder}`"
            ) from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if not isinstance(found, list):
            raise CheckpointError(f"{path} is damaged: it holds no list of detections")
        for number, one in enumerate(found, 1):
            if not _well_formed(one, self.category_ids):
                raise CheckpointError(
                    f"{path} is damaged: its entry {number} is no detection of {self.folder}; "
                    f"make it anew with `bpt evaluate {self.folder}`"
                )
        return found


def _well_formed(one: Any, category_ids: Collection[int]) -> bool:  # noqa: ANN401  JSON
    """Whether this is what `coco_results` gives: pycocotools trusts the runs of a mask."""
    try:
        height, width = one["segmentation"]["size"]
        runs = mask_runs(one["segmentation"]["counts"].encode())
        return (
            isinstance(one["image_id"], int)
            and one["category_id"] in category_ids
            and len(one["bbox"]) == 4
            and all(math.isfinite(side) for side in one["bbox"])
            and 0 <= one["score"] <= 1
            and min(height, width) > 0
            and sum(runs) == height * width
        )
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return False
