"""Boxes stay in float32, and their four numbers are those of every R-CNN."""

import math

import pytest
import torch
from detectors import NONE, TWO, overlap, random_boxes, targets
from torchvision.models.detection._utils import Matcher

from bpt.detection.boxes import clip, decode, encode, match, nonempty, select

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def test_a_box_moves_by_the_numbers_computed_by_hand():
    box, deltas = torch.tensor([[100.0, 100, 200, 300]]), torch.tensor([[[1, -0.5, 0.5, -0.25]]])
    wanted = torch.tensor([[[104.7415, 94.8771, 215.2585, 285.1230]]])
    torch.testing.assert_close(decode(deltas, box, WEIGHTS), wanted, rtol=0, atol=1e-4)


def test_deltas_in_half_precision_do_not_round_the_boxes():
    boxes = random_boxes(200, side=1024)
    deltas = torch.randn(200, 2, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    moved = decode(deltas, boxes, WEIGHTS)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, decode(deltas.float(), boxes, WEIGHTS), rtol=0, atol=1e-3)


def test_a_side_grows_62_times_at_most():
    moved = decode(torch.tensor([[[0.0, 0, 1000, 0]]]), torch.tensor([[0.0, 0, 8, 8]]), WEIGHTS)
    assert moved[0, 0, 2] - moved[0, 0, 0] == pytest.approx(8 * 1000 / 16)


def test_decoding_undoes_encoding():
    boxes, wanted = random_boxes(50), random_boxes(50, seed=1)
    deltas = encode(wanted, boxes, WEIGHTS)[:, None]
    torch.testing.assert_close(decode(deltas, boxes, WEIGHTS)[:, 0], wanted, rtol=1e-5, atol=1e-4)


def test_encoded_are_shifts_in_sides_and_logarithms_of_growth():
    found = encode(torch.tensor([[10.0, 0, 30, 40]]), torch.tensor([[0.0, 0, 10, 10]]), WEIGHTS)
    wanted = [10 * 15 / 10, 10 * 15 / 10, 5 * math.log(2), 5 * math.log(4)]
    assert found.tolist()[0] == pytest.approx(wanted)


def test_boxes_are_cut_at_the_border_of_height_and_width():
    cut = clip(torch.tensor([[[-5.0, -6, 200, 300]]]), (100, 50))
    assert cut.tolist() == [[[0, 0, 50, 100]]]


def test_a_box_without_width_or_height_or_with_nan_is_empty():
    boxes = torch.tensor([[0.0, 0, 1, 1], [1, 0, 1, 1], [0, 1, 1, 1], [math.nan, 0, 1, 1]])
    assert nonempty(boxes).tolist() == [True, False, False, False]


def test_each_box_is_of_the_object_that_it_overlaps_most():
    boxes = random_boxes(300)
    found = match(boxes, TWO, Matcher(0.3, 0.3))
    for box, label, index in zip(boxes.tolist(), *found, strict=True):
        overlaps = [overlap(box, one) for one in TWO.boxes.tolist()]
        best = overlaps.index(max(overlaps))
        assert label == (TWO.labels[best] if max(overlaps) >= 0.3 else 0)
        assert index == best or label == 0
    assert (found.labels > 0).sum() > 10


def test_between_two_thresholds_a_box_is_neither_object_nor_background():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 80]])
    found = match(boxes, targets((7, 0, 0, 10, 10)), Matcher(0.7, 0.3))
    assert found.labels.tolist() == [7, -1, 0]


@pytest.mark.parametrize("boxes, of", [(random_boxes(4), NONE), (torch.zeros(0, 4), TWO)])
def test_without_boxes_or_objects_all_is_background(boxes, of):
    found = match(boxes, of, Matcher(0.5, 0.5))
    assert found.labels.tolist() == found.indices.tolist() == [0] * len(boxes)


def scored(*rows):
    """(n, 1 + 2) scores of two classes."""
    return torch.tensor([[0.0, *row] for row in rows])


def test_doubles_are_suppressed_within_a_class_alone():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])[:, None]
    found = select(boxes, scored((0.9, 0), (0.8, 0.7), (0.6, 0)))
    assert found.labels.tolist() == [1, 2, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    torch.testing.assert_close(found.boxes, boxes[:, 0])


def test_each_class_has_its_own_box_where_there_are_several():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30]]])
    found = select(boxes, scored((0.6, 0.7)))
    assert found.boxes.tolist() == [[20, 20, 30, 30], [0, 0, 10, 10]]
    assert found.labels.tolist() == [2, 1]


def test_scores_up_to_the_threshold_and_empty_boxes_are_left_out():
    boxes = torch.tensor([[0.0, 0, 10, 10], [40, 0, 40, 10], [60, 0, 70, 10]])[:, None]
    found = select(boxes, scored((0.05, 0), (0.9, 0), (0.0501, 0)))
    assert found.boxes.tolist() == [[60, 0, 70, 10]]


def test_the_best_hundred_are_kept_best_first():
    corner = 10.0 * torch.arange(150)[:, None]
    boxes = torch.cat([corner, corner * 0, corner + 9, corner * 0 + 9], dim=1)[:, None]
    scores = torch.linspace(0.1, 0.9, 150)[torch.randperm(150)]
    found = select(boxes, torch.stack([1 - scores, scores], dim=1))
    assert found.scores.tolist() == scores.sort(descending=True).values[:100].tolist()
