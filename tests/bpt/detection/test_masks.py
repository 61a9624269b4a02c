"""Masks are of their class, in the frame of their region."""

import pytest
import torch
from detectors import NONE, TWO, kept, maps, random_boxes
from torch.nn import functional

from bpt.detection.box_heads import Regions
from bpt.detection.boxes import Matches
from bpt.detection.frames import mask_targets
from bpt.detection.masks import MaskHead
from bpt.detection.pooling import Pooler


def head(num_classes=3, *, spread=0.3):
    torch.manual_seed(0)
    made = MaskHead(num_classes, 8)
    torch.nn.init.normal_(made.predictor.mask_fcn_logits.weight, std=spread)
    torch.nn.init.normal_(made.predictor.mask_fcn_logits.bias)
    return made


def regions(*labels):
    """One image's; the second object's where the label is 3."""
    labels = torch.tensor(labels)
    matches = Matches(labels, (labels == 3).long())
    return Regions([random_boxes(len(labels), least=9)], [matches])


def test_each_region_has_the_logits_that_the_whole_predictor_gives_its_class():
    made, pooled, labels = head(), torch.randn(4, 8, 14, 14), torch.tensor([3, 1, 1, 2])
    wanted = made.predictor(made.layers(pooled))[torch.arange(4), labels - 1]
    torch.testing.assert_close(made(pooled, labels), wanted, rtol=1e-4, atol=1e-5)


def test_the_weights_have_the_gradient_that_the_whole_predictor_gives_them():
    made, pooled, labels = head(), torch.randn(4, 8, 14, 14), torch.tensor([3, 1, 1, 2])
    parameters = list(made.parameters())
    whole = made.predictor(made.layers(pooled))[torch.arange(4), labels - 1]
    wanted = torch.autograd.grad(whole.square().sum(), parameters)
    found = torch.autograd.grad(made(pooled, labels).square().sum(), parameters)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_no_map_of_28_by_28_cells_is_kept_for_the_backward_pass():
    made, pooled, labels = head(), torch.randn(4, 8, 14, 14), torch.tensor([3, 1, 1, 2])
    largest = 4 * 8 * 28 * 28
    assert kept(lambda: made.predictor(made.layers(pooled)), largest) == 1
    assert kept(lambda: made(pooled, labels), largest) == 0


def test_the_loss_is_the_mean_over_the_cells_of_regions_that_show_an_object():
    made, pooler, given = head(), Pooler(maps(images=1)), regions(0, 3, 1, 0, 3)
    found = made.losses(pooler, given, [TWO])["mask"]
    shown = given.boxes[0][[1, 2, 4]]
    logits = made(pooler([shown], 14), torch.tensor([3, 1, 3])).double()
    wanted = mask_targets(TWO, torch.tensor([1, 0, 1]), shown).double()
    assert 0 < wanted.mean() < 1
    cells = wanted * functional.logsigmoid(logits) + (1 - wanted) * functional.logsigmoid(-logits)
    torch.testing.assert_close(found.double(), -cells.mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("of, labels", [(TWO, [0, 0]), (NONE, [0, 0]), (TWO, [])])
def test_without_a_region_that_shows_an_object_the_loss_is_0_and_reaches_every_weight(of, labels):
    made = head()
    labels = torch.tensor(labels, dtype=torch.int64)
    given = Regions([random_boxes(len(labels))], [Matches(labels, labels)])
    loss = made.losses(Pooler(maps(images=1)), given, [of])["mask"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in made.parameters())


def test_found_masks_are_probabilities_image_by_image():
    made, pooler = head(), Pooler(maps())
    boxes, labels = [random_boxes(3), random_boxes(0)], list(torch.tensor([1, 2, 3]).split([3, 0]))
    found = made.detect(pooler, boxes, labels)
    assert [tuple(one.shape) for one in found] == [(3, 28, 28), (0, 28, 28)]
    wanted = made(pooler(boxes, 14), torch.cat(labels)).sigmoid()
    torch.testing.assert_close(found[0], wanted)


def test_logits_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        found = head()(torch.randn(2, 8, 14, 14), torch.tensor([1, 2]))
    assert found.dtype == torch.float32


def test_the_head_starts_undecided():
    torch.manual_seed(0)
    made = MaskHead(40, 16)
    last = made.predictor.mask_fcn_logits
    assert float(last.weight.detach().std()) == pytest.approx(0.001, rel=0.1)
    assert not last.bias.any()
    assert not made.predictor.conv5_mask.bias.any()
    up = made.predictor.conv5_mask.weight.detach()
    assert float(up.std()) == pytest.approx((2 / (16 * 4)) ** 0.5, rel=0.1)
