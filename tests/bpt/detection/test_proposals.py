"""Proposals are torchvision's, but for what detectron2 does otherwise."""

import math

import pytest
import torch
from detectors import NONE, TWO, maps, overlap, targets
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead

from bpt.detection.proposals import Anchors, Candidates, ProposalNetwork


def network(channels=8):
    torch.manual_seed(0)
    return ProposalNetwork(channels)


def candidates(*, side=96, images=2, spread=1.0):
    """What a network of random, not tiny, numbers would say."""
    generator = torch.Generator().manual_seed(0)
    anchors = Anchors()(maps(1, side=side))
    objectness = [torch.randn(images, len(one), generator=generator) for one in anchors]
    deltas = [spread * torch.randn(images, len(one), 4, generator=generator) for one in anchors]
    return Candidates(anchors, objectness, deltas)


def test_anchors_are_not_rounded_and_the_ratios_of_a_place_stand_side_by_side():
    finest = Anchors()(maps(1))[0]
    low = math.sqrt(2) * 16  # half of 32 at a ratio of a half
    wanted = [[-low, -low / 2, low, low / 2], [-16, -16, 16, 16], [-low / 2, -low, low / 2, low]]
    torch.testing.assert_close(finest[:3], torch.tensor(wanted))
    step = torch.tensor([4.0, 0, 4, 0])
    torch.testing.assert_close(finest[3:6], finest[:3] + step)


def test_anchors_are_torchvisions_but_for_rounding():
    theirs = AnchorGenerator(tuple((s,) for s in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    grids, strides = [(128 // s, 160 // s) for s in (4, 8, 16, 32, 64)], [4, 8, 16, 32, 64]
    wanted = theirs.grid_anchors(grids, [(s, s) for s in strides])
    found = Anchors()([torch.zeros(1, 1, *grid) for grid in grids])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.5)


def test_the_stride_of_anchors_is_a_constant_where_the_map_is_rounded_up():
    coarsest = Anchors()(maps(1, side=96))[-1]  # two places on 96 pixels, 64 apart
    centres = (coarsest[:, :2] + coarsest[:, 2:]) / 2
    assert centres[::3].tolist() == [[0, 0], [64, 0], [0, 64], [64, 64]]


def test_anchors_and_proposals_do_not_move_under_bfloat16():
    model, pyramid, sizes = network(), maps(side=512), [(512, 512)] * 2
    half = [one.bfloat16() for one in pyramid]
    with torch.autocast("cpu", torch.bfloat16):
        said = model(half)
        found = model.propose(said, sizes, before=50)
    for one, other in zip(said.anchors, model(pyramid).anchors, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert {one.dtype for one in (*said.objectness, *said.deltas, *found)} == {torch.float32}
    again = model.propose(said, sizes, before=50)
    torch.testing.assert_close(found, again, rtol=0, atol=1e-3)


@pytest.mark.parametrize("before", [30, 1000])
def test_proposals_are_those_of_torchvision(before):
    said, sizes, model = candidates(side=128), [(100, 128), (128, 70)], network()
    theirs = RegionProposalNetwork(
        Anchors(), model.head, 0.7, 0.3, 256, 0.5,
        {"training": before, "testing": before}, {"training": 1000, "testing": 1000}, 0.7,
    ).eval()  # fmt: skip
    deltas, anchors = torch.cat(said.deltas, dim=1), torch.cat(said.anchors)
    boxes = theirs.box_coder.decode(deltas.flatten(0, 1), [anchors] * 2).view(2, -1, 4)
    counts = [len(one) for one in said.anchors]
    wanted, _ = theirs.filter_proposals(boxes, torch.cat(said.objectness, dim=1), sizes, counts)
    torch.testing.assert_close(model.propose(said, sizes, before=before), wanted)


def test_proposals_end_at_the_image_and_not_at_its_padding():
    for boxes in network().propose(candidates(side=128), [(100, 70)] * 2, before=1000):
        assert boxes[:, [0, 2]].max() == 70
        assert boxes[:, [1, 3]].max() == 100
        assert boxes.min() == 0


def test_after_the_suppression_1000_are_left_however_many_went_in():
    corner = torch.cartesian_prod(torch.arange(40.0), torch.arange(40.0)) * 10
    said = Candidates(
        [torch.cat([corner, corner + 10], dim=1)], [torch.rand(1, 1600)], [torch.zeros(1, 1600, 4)]
    )
    (found,) = network().propose(said, [(400, 400)], before=2000)
    assert len(found) == 1000
    best = said.objectness[0][0].argsort(descending=True)[:1000]
    torch.testing.assert_close(found, said.anchors[0][best])


def loop(said, of):
    """Both losses in plain Python, if no anchor is left out of the sample."""
    anchors = torch.cat(said.anchors).double().tolist()
    wrong = off = 0.0
    for i, one in enumerate(of):
        logits = torch.cat(said.objectness, dim=1)[i].double().tolist()
        deltas = torch.cat(said.deltas, dim=1)[i].double().tolist()
        boxes = one.boxes.double().tolist()
        table = [[overlap(a, b) for b in boxes] for a in anchors]
        best = [max(row[j] for row in table) for j in range(len(boxes))]
        counted = [0, 0]
        for a, row, logit, delta in zip(anchors, table, logits, deltas, strict=True):
            top = max(row, default=0.0)
            positive = top >= 0.7 or any(v > best[j] - 1e-9 and v > 0 for j, v in enumerate(row))
            if not positive and top >= 0.3:
                continue
            counted[positive] += 1
            wrong += math.log1p(math.exp(-logit if positive else logit))
            if positive:
                x0, y0, x1, y1 = boxes[row.index(top)]
                width, height = a[2] - a[0], a[3] - a[1]
                wanted = [
                    (x0 + x1 - a[0] - a[2]) / 2 / width,
                    (y0 + y1 - a[1] - a[3]) / 2 / height,
                    math.log((x1 - x0) / width),
                    math.log((y1 - y0) / height),
                ]
                off += sum(abs(p - q) for p, q in zip(delta, wanted, strict=True))
        assert sum(counted) <= 256
        assert counted[1] <= 128
    return wrong / (256 * len(of)), off / (256 * len(of))


def test_losses_equal_a_loop_in_plain_python():
    of = [
        targets((1, -3.3, 1.2, 37.7, 29.4), (2, 7.1, -6.2, 21.7, 36.1)),
        targets((1, 3.4, 2.2, 36.1, 37.3)),
    ]
    said = candidates(side=32, spread=0.3)  # 258 anchors: of these some are ignored
    found = network().losses(said, of)
    wrong, off = loop(said, of)
    assert float(found["objectness"]) == pytest.approx(wrong, rel=1e-5)
    assert float(found["proposal_box"]) == pytest.approx(off, rel=1e-5)
    assert off > 0


def test_256_anchors_of_an_image_are_sampled_and_half_of_them_positive_at_most():
    model, said = network(), candidates(side=128)
    everywhere = [targets(*((1, *a) for a in torch.cat(said.anchors)[::4].tolist())), NONE]
    positive, negative = model.sampler(
        [(torch.rand(4000) < 0.5).long(), torch.zeros(4000, dtype=torch.int64)]
    )
    assert [int(one.sum()) for one in (*positive, *negative)] == [128, 0, 128, 256]
    assert all(loss.isfinite() for loss in model.losses(said, everywhere).values())


@pytest.mark.parametrize("of", [[NONE, NONE], [NONE, TWO]])
def test_images_without_objects_give_finite_losses_and_a_gradient_everywhere(of):
    model = network()
    sum(model.losses(model(maps()), of).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_no_gradient_flows_through_proposals():
    model = network()
    found = model.propose(model(maps()), [(96, 96)] * 2, before=9)
    assert not any(one.requires_grad for one in found)


def test_the_head_starts_as_detectron2s():
    assert isinstance(network().head, RPNHead)
    for name, p in network(64).named_parameters():
        assert float(p.detach().std()) == pytest.approx(0.0 if "bias" in name else 0.01, rel=0.1)
