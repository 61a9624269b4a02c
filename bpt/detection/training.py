"""A detector's steps: its losses, its optimiser, the rate of each step."""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bpt.detection.box_heads import STAGES
from bpt.detection.construction import detector_groups
from bpt.detection.detector import Detector
from bpt.detection.objects import Batch
from bpt.detection.recipe import WARMUP_START, DetectionRecipe
from bpt.engine import Trainer, cut, shared
from burst.distributed import rank_and_size


def loss_names(detector: str) -> tuple[str, ...]:
    """What a step's losses are called, in the order of their sums."""
    stages = len(STAGES[detector])
    endings = [""] if stages == 1 else [f"_{number}" for number in range(1, stages + 1)]
    of_boxes = [f"{kind}{ending}" for ending in endings for kind in ("class", "box")]
    return ("objectness", "proposal_box", *of_boxes, "mask")


class DetectorTrainer(Trainer[Batch]):
    """Of a detector, by the sum of its losses.

    What it counts: that sum and each loss, summed over images, and behind the first the images.
    Losses are means over images and over regions. Those of boxes are as many an image as a rule;
    those with an object, of which the mask loss is a mean, are not: cutting a step into parts gives
    an image of few objects more weight there, as detectron2 does by its number of GPUs.
    """

    def __init__(self, *args: Any, names: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self.names = names
        self.counted = 2 + len(names)

    def parts(self, batch: Batch) -> list[tuple[Batch, float]]:
        """Images and their targets."""
        moved = batch.to(self.device)
        slices = cut(len(moved), self.accumulation)
        return [(moved[part], (part.stop - part.start) / len(moved)) for part in slices]

    def loss(self, part: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the losses."""
        found: Mapping[str, Tensor] = self.network(part)
        losses = torch.stack([found[name] for name in self.names])
        total = losses.sum()
        kept = torch.cat([total.detach().reshape(1), losses.detach()]).double() * len(part)
        images = torch.full((1,), len(part), dtype=torch.float64, device=kept.device)
        return total, torch.cat([kept[:1], images, kept[1:]])


def make_detector_trainer(
    recipe: DetectionRecipe,
    detector: Detector,
    forward: Callable[[Batch], Mapping[str, Tensor]],
    steps: int,
) -> DetectorTrainer:
    """The optimiser and all around it.

    Args:
        recipe: how.
        detector: whose parameters are trained.
        forward: what gives the losses of a batch.
        steps: of the whole training.
    """
    device = detector.mean.device
    # Of the regions that steps learn from, and of stochastic depth: each process draws others.
    torch.manual_seed(recipe.seed + rank_and_size()[0])
    optimizer = torch.optim.AdamW(detector_groups(detector, recipe), lr=recipe.peak_lr)
    prompts = getattr(detector.trunk, "prompts", nn.ModuleDict())
    return DetectorTrainer(
        detector,
        shared(forward, device),
        optimizer,
        names=loss_names(recipe.detector),
        prompts=list(prompts.parameters()),
        set_lr=detection_schedule(optimizer, recipe, steps),
        device=device,
        precision=recipe.precision,
        accumulation=recipe.accumulation,
    )


def detection_schedule(
    optimizer: torch.optim.Optimizer, recipe: DetectionRecipe, steps: int
) -> Callable[[int], None]:
    """Sets the rate of step `step`, counted from 0.

    It rises linearly, from a thousandth of the peak, over the warm-up; a tenth and a hundredth of
    the peak it is behind the milestones. A group with an `lr_scale` has that share of it.

    Source: detectron2@02b5c4e, configs/common/coco_schedule.py.
    """
    warmup = recipe.warmup(steps)
    milestones = [round(share * steps) for share in recipe.milestones]

    def set_lr(step: int) -> None:
        rate = recipe.peak_lr * 0.1 ** bisect_right(milestones, step)
        if step < warmup:
            rate *= WARMUP_START + (1 - WARMUP_START) * step / warmup
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    return set_lr
