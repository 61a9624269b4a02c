"""Regions that may show an object: a small network over all maps of a pyramid, and its losses.

Source: Ren et al. 2015, arXiv 1506.01497; numbers as in detectron2's ViTDet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms

from bpt.detection.boxes import Weights, clip, decode, encode, match, nonempty
from bpt.detection.layers import without_autocast
from bpt.detection.objects import Targets
from bpt.detection.pyramid import STRIDES

SIZES = (32, 64, 128, 256, 512)  # sides of the anchors of each map, in pixels
RATIOS = (0.5, 1.0, 2.0)  # height to width
WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)
SAMPLED, POSITIVE = 256, 0.5  # anchors of an image that count in the losses
BEFORE_TRAINING, BEFORE_TEST, AFTER = 2000, 1000, 1000  # proposals: of a map; of an image
OVERLAP = 0.7


class Anchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors of a pyramid: torchvision's, neither rounded nor in the precision of the maps."""

    def __init__(self) -> None:
        super().__init__(tuple((size,) for size in SIZES), (RATIOS,) * len(SIZES))

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """(len(aspect_ratios) * len(scales), 4) boxes around the origin, each of area scale²."""
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        root = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        width, height = (sides / root[:, None]).flatten(), (sides * root[:, None]).flatten()
        return torch.stack([-width, -height, width, height], dim=1) / 2

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """For each map (h * w * 3, 4) float32, row by row; the ratios of a position side by side.

        The anchors of a position lie around the corner of its cell, as in detectron2.
        """
        self.set_cell_anchors(torch.float32, maps[0].device)
        anchors: list[Tensor] = self.grid_anchors(
            [one.shape[-2:] for one in maps], [(stride, stride) for stride in STRIDES]
        )
        return anchors


@dataclass(frozen=True)
class Candidates:
    """All anchors of a batch with what the network says of them, map by map, in float32.

    Attributes:
        anchors: of each map (a_l, 4).
        objectness: of each map (B, a_l) logits.
        deltas: of each map (B, a_l, 4).
    """

    anchors: list[Tensor]
    objectness: list[Tensor]
    deltas: list[Tensor]


class ProposalNetwork(nn.Module):
    """Two 3x3 convolutions, then for each anchor whether it shows an object, and where.

    Args:
        channels: of the maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = RPNHead(channels, len(RATIOS), conv_depth=2)
        self.anchors = Anchors()
        self.matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
        self.sampler = BalancedPositiveNegativeSampler(SAMPLED, POSITIVE)

    def forward(self, maps: Sequence[Tensor]) -> Candidates:
        """What the network says of each anchor; (B, channels, S/s, S/s) maps of five strides."""
        objectness, deltas = self.head(list(maps))
        return Candidates(
            self.anchors(maps),
            [one.permute(0, 2, 3, 1).flatten(1).float() for one in objectness],
            [one.permute(0, 2, 3, 1).reshape(len(one), -1, 4).float() for one in deltas],
        )

    @torch.no_grad()
    def propose(
        self, candidates: Candidates, sizes: Sequence[tuple[int, int]], *, before: int
    ) -> list[Tensor]:
        """Of each image the (k, 4) boxes that are best, at most 1000, the best first.

        Args:
            candidates: what `forward` gave.
            sizes: (height, width) of each image, at whose border boxes are cut.
            before: how many of each map go into the suppression of doubles.
        """
        scores, boxes, levels = [], [], []
        parts = zip(candidates.anchors, candidates.objectness, candidates.deltas, strict=True)
        for level, (anchors, objectness, deltas) in enumerate(parts):
            best, index = objectness.topk(min(before, objectness.shape[1]), dim=1)
            chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4))
            moved = decode(chosen.view(-1, 1, 4), anchors[index.flatten()], WEIGHTS)
            scores.append(best)
            boxes.append(moved.view(*index.shape, 4))
            levels.append(torch.full_like(index[0], level))
        level_of = torch.cat(levels)
        images = zip(torch.cat(boxes, dim=1), torch.cat(scores, dim=1), sizes, strict=True)
        return [_suppressed(clip(box, size), score, level_of) for box, score, size in images]

    def losses(self, candidates: Candidates, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """`objectness` and `proposal_box`: sums over sampled anchors, over 256 times images.

        An anchor is positive from an overlap of 0.7 with an object, or if none overlaps the object
        more; negative below 0.3. Positives pay the plain L1 distance of their four numbers.
        """
        anchors = torch.cat(candidates.anchors)
        objectness = torch.cat(candidates.objectness, dim=1)
        deltas = torch.cat(candidates.deltas, dim=1)
        with without_autocast(anchors.device):
            matches = [match(anchors, one, self.matcher) for one in targets]
            positive, negative = self.sampler([one.labels for one in matches])
            wrong, off = objectness.new_zeros(()), deltas.new_zeros(())
            for i, one in enumerate(targets):
                is_object = torch.where(positive[i])[0]
                sampled = torch.cat([is_object, torch.where(negative[i])[0]])
                wanted = (matches[i].labels[sampled] > 0).float()
                wrong = wrong + functional.binary_cross_entropy_with_logits(
                    objectness[i, sampled], wanted, reduction="sum"
                )
                truth = one.boxes[matches[i].indices[is_object]]
                off = off + functional.l1_loss(
                    deltas[i, is_object],
                    encode(truth, anchors[is_object], WEIGHTS),
                    reduction="sum",
                )
        share = SAMPLED * len(targets)
        return {"objectness": wrong / share, "proposal_box": off / share}


def _suppressed(boxes: Tensor, scores: Tensor, levels: Tensor) -> Tensor:
    kept = torch.where(nonempty(boxes))[0]
    boxes = boxes[kept]
    best = batched_nms(boxes, scores[kept], levels[kept], OVERLAP)[:AFTER]
    return boxes[best]
