"""One stage or three, each from the boxes of the one before."""

import pytest
import torch
from detectors import NONE, TWO, maps, overlap, random_boxes
from torch.nn import functional

from bpt.detection.box_heads import BoxHead, BoxHeads, Regions
from bpt.detection.boxes import Matches, clip, decode, select
from bpt.detection.pooling import Pooler

SIZES = [(88, 80), (96, 96)]
WEIGHTS = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]


class Recorder(Pooler):
    """A pooler that remembers which regions were read, and what it gave."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.boxes, self.pooled = [], []

    def read(self, regions, size):
        self.boxes.append([regions[regions[:, 0] == image, 1:] for image in range(len(SIZES))])
        self.pooled.append(super().read(regions, size))
        return self.pooled[-1]


def heads(kind="cascade", *, num_classes=3, class_agnostic=True, spread=0.05):
    """Whose boxes move: as they start they would hardly."""
    torch.manual_seed(0)
    made = BoxHeads(
        kind, num_classes=num_classes, channels=8, hidden=16, class_agnostic=class_agnostic
    )
    for stage in made.stages:
        torch.nn.init.normal_(stage.box.weight, std=spread)
        torch.nn.init.normal_(stage.classes.weight, std=0.3)
    return made


def outputs(made):
    """The logits and deltas of each stage, filled by a call."""
    found = []
    for stage in made.stages:
        stage.register_forward_hook(lambda stage, given, result: found.append(result))
    return found


def proposals(count=40):
    return [clip(random_boxes(count, least=8, seed=i), size) for i, size in enumerate(SIZES)]


def some_regions():
    """Eight of the first image, four of the second, of which some show an object."""
    boxes = [random_boxes(8, least=9), random_boxes(4, least=9, seed=1)]
    labels = [torch.tensor([0, 1, 3, 0, 3, 0, 1, 0]), torch.tensor([0, 0, 3, 0])]
    indices = [torch.tensor([0, 0, 1, 0, 1, 0, 0, 0]), torch.tensor([0, 0, 1, 0])]
    return Regions(boxes, [Matches(*one) for one in zip(labels, indices, strict=True)])


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_losses_equal_a_loop_in_double_precision(class_agnostic):
    stage = heads("mask-rcnn", class_agnostic=class_agnostic).stages[0]
    regions = some_regions()
    logits, deltas = torch.randn(12, 4), torch.randn(12, 1 if class_agnostic else 3, 4)
    found = stage.losses(logits, deltas, regions, [TWO, TWO])
    wrong = off = torch.zeros((), dtype=torch.float64)
    rows = zip(
        torch.cat(regions.boxes).double(),
        regions.labels().tolist(),
        torch.cat([one.indices for one in regions.matches]).tolist(),
        strict=True,
    )
    for row, (box, label, index) in enumerate(rows):
        wrong = wrong - logits[row].double().softmax(0)[label].log()
        if label:
            truth = TWO.boxes[index].double()
            size = box[2:] - box[:2]
            shift = 10 * (truth[:2] + truth[2:] - box[:2] - box[2:]) / 2 / size
            growth = 5 * ((truth[2:] - truth[:2]) / size).log()
            own = deltas[row, 0 if class_agnostic else label - 1].double()
            off = off + (own - torch.cat([shift, growth])).abs().sum()
    torch.testing.assert_close(found, (wrong.float() / 12, off.float() / 12))


def test_mask_rcnn_has_one_stage_and_the_cascade_three_of_rising_overlap():
    assert [one.matcher.high_threshold for one in heads("mask-rcnn").stages] == [0.5]
    assert [one.matcher.high_threshold for one in heads().stages] == [0.5, 0.6, 0.7]
    assert [one.matcher.low_threshold for one in heads().stages] == [0.5, 0.6, 0.7]
    assert [one.weights for one in heads().stages] == WEIGHTS
    assert set(losses_of(heads("mask-rcnn"))) == {"class", "box"}
    assert set(losses_of(heads())) == {f"{k}_{i}" for k in ("class", "box") for i in (1, 2, 3)}


def losses_of(made, pooler=None, of=(TWO, NONE), given=None):
    regions = made.sample(given or proposals(), of)
    return made.losses(pooler or Pooler(maps()), regions, SIZES, of)


def test_a_stage_begins_with_the_clipped_boxes_of_the_one_before():
    made, pooler = heads(spread=3.0), Recorder(maps())
    said = outputs(made)
    losses_of(made, pooler)
    assert len(pooler.boxes) == 3
    dropped = 0
    for number in (0, 1):
        moved = decode(said[number][1], torch.cat(pooler.boxes[number]), WEIGHTS[number])[:, 0]
        parts = moved.detach().split([len(one) for one in pooler.boxes[number]])
        for part, size, found in zip(parts, SIZES, pooler.boxes[number + 1], strict=True):
            cut = clip(part, size)
            wanted = cut[(cut[:, 0] < cut[:, 2]) & (cut[:, 1] < cut[:, 3])]
            dropped += len(cut) - len(wanted)
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
            assert not found.requires_grad
    assert dropped  # some were pushed out of the image


def test_later_stages_label_all_regions_by_their_own_overlap():
    made, pooler = heads(spread=0.5), Recorder(maps())
    said = outputs(made)
    given = [TWO.boxes + shift for shift in (1.5, -1)]
    losses = losses_of(made, pooler, [TWO, TWO], given)
    for number, least in ((2, 0.6), (3, 0.7)):
        labels = []
        for box in torch.cat(pooler.boxes[number - 1]).tolist():
            overlaps = [overlap(box, one) for one in TWO.boxes.tolist()]
            best = max(overlaps)
            labels.append(int(TWO.labels[overlaps.index(best)]) if best >= least else 0)
        assert 0 < labels.count(0) < len(labels)
        wanted = functional.cross_entropy(said[number - 1][0], torch.tensor(labels))
        torch.testing.assert_close(losses[f"class_{number}"], wanted)


def test_the_objects_own_boxes_are_among_the_regions():
    regions = heads().sample([torch.zeros(0, 4)] * 2, [TWO, NONE])
    torch.testing.assert_close(regions.boxes[0], TWO.boxes)
    assert regions.labels().tolist() == TWO.labels.tolist()


def test_512_regions_of_an_image_are_sampled_a_quarter_positive_at_most():
    made, near = heads("mask-rcnn"), TWO.boxes[:1] + torch.rand(400, 4)
    far = torch.tensor([[60.0, 70, 80, 90]]) + torch.rand(700, 4)
    regions = made.sample([torch.cat([near, far]), far[:5]], [TWO, NONE])
    labels = regions.matches[0].labels
    assert (len(labels), int((labels > 0).sum())) == (512, 128)
    assert len(regions.boxes[1]) == 5


@pytest.mark.parametrize("kind, factor", [("mask-rcnn", 1.0), ("cascade", 1 / 3)])
def test_each_stage_gives_the_maps_its_share_of_the_gradient_and_itself_all(kind, factor):
    made, pyramid = heads(kind), [one.requires_grad_() for one in maps()]
    regions = made.sample(proposals(), [TWO, NONE])
    losses = made.losses(Pooler(pyramid), regions, SIZES, [TWO, NONE])
    name = "class" if kind == "mask-rcnn" else "class_1"
    weight, finest = made.stages[0].classes.weight, pyramid[0]
    scaled = torch.autograd.grad(losses[name], [finest, weight])
    logits, _ = made.stages[0](Pooler(pyramid)(regions.boxes, 7))
    plain = functional.cross_entropy(logits, regions.labels())
    wanted = torch.autograd.grad(plain, [finest, weight])
    torch.testing.assert_close(scaled[0], factor * wanted[0])
    torch.testing.assert_close(scaled[1], wanted[1])


def test_scores_are_the_mean_of_the_stages_and_boxes_those_of_the_last():
    made, pooler = heads(), Recorder(maps())
    said = outputs(made)
    with torch.no_grad():
        found = made.detect(pooler, proposals(), SIZES)
    mean = sum(logits.softmax(dim=1) for logits, _ in said) / 3
    moved = decode(said[2][1], torch.cat(pooler.boxes[2]), WEIGHTS[2])
    for i, (size, one) in enumerate(zip(SIZES, found, strict=True)):
        part = slice(40 * i, 40 * i + 40)
        assert len(one.boxes) > 3
        wanted = select(clip(moved[part], size), mean[part])
        torch.testing.assert_close(one, wanted)


def test_at_test_empty_boxes_stay_until_the_last_stage_so_that_scores_fit():
    made, pooler = heads(spread=3.0), Recorder(maps())
    with torch.no_grad():
        made.detect(pooler, proposals(), SIZES)
    assert [[len(one) for one in boxes] for boxes in pooler.boxes] == [[40, 40]] * 3
    last = pooler.boxes[2][0]
    assert (last[:, 0] == last[:, 2]).any()


def test_one_stage_gives_each_class_its_own_box():
    made, pooler = heads("mask-rcnn", class_agnostic=False), Recorder(maps())
    said = outputs(made)
    with torch.no_grad():
        found = made.detect(pooler, proposals(), SIZES)[0]
    logits, deltas = said[0]
    boxes = clip(decode(deltas[:40], pooler.boxes[0][0], WEIGHTS[0]), SIZES[0])
    for box, score, label in zip(*found, strict=True):
        row = (logits[:40].softmax(dim=1)[:, label] - score).abs().argmin()
        torch.testing.assert_close(boxes[row, label - 1], box)


def test_with_nothing_left_after_a_stage_losses_are_finite_and_reach_every_weight():
    made = heads()
    with torch.no_grad():
        made.stages[0].box.bias.copy_(torch.tensor([-1e4, 0, 0, 0]))  # out of the image
    pooler = Recorder(maps())
    losses = losses_of(made, pooler, [TWO, TWO])
    assert sum(len(one) for one in pooler.boxes[1]) == 0
    assert float(losses["class_2"].detach()) == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_logits_and_boxes_are_float32_under_autocast():
    stage = heads().stages[0]
    with torch.autocast("cpu", torch.bfloat16):
        said = stage(torch.randn(3, 8, 7, 7))
    assert {one.dtype for one in said} == {torch.float32}


def test_convolutions_run_in_channels_last():
    stage, layouts = heads().stages[0], []
    for layer in stage.layers.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_pre_hook(
                lambda layer, given: layouts.append(
                    given[0].is_contiguous(memory_format=torch.channels_last)
                )
            )
    stage(Pooler(maps())(proposals(), 7))
    assert layouts == [True] * 4


def test_a_head_starts_as_detectron2s():
    torch.manual_seed(0)
    options = {"num_classes": 40, "channels": 16, "hidden": 256, "class_agnostic": False}
    stage = BoxHead(0.5, WEIGHTS[0], **options)
    linear = stage.layers[5]
    spread = {
        stage.layers[0][0].weight: (2 / (16 * 9)) ** 0.5,
        linear.weight: (1 / (16 * 49)) ** 0.5,  # uniform: its bound is sqrt(3) times that
        stage.classes.weight: 0.01,
        stage.box.weight: 0.001,
    }
    for weight, wanted in spread.items():
        assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.1)
    assert not any(layer.bias.any() for layer in (linear, stage.classes, stage.box))
    assert float(linear.weight.detach().abs().max()) <= (3 / (16 * 49)) ** 0.5
