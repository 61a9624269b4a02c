"""A detector learns and finds the same, whatever mode, precision or company it is in."""

from types import SimpleNamespace

import pytest
import torch
from detectors import MEAN, NONE, STD, TWO, Trunk, batch, detector, targets

from bpt.detection.detector import Detector, DetectorOptions
from bpt.detection.objects import Batch
from burst.errors import BurstError, ShapeError, UnknownName, UnsupportedModel

KINDS = ["mask-rcnn", "cascade"]


def bold(kind="mask-rcnn", **options):
    """One that finds something: as it starts it would be undecided."""
    made = detector(kind, **options)
    generator = torch.Generator().manual_seed(0)
    for stage in made.boxes.stages:
        torch.nn.init.normal_(stage.classes.weight, std=0.3, generator=generator)
    return made


def trained(made):
    return {name: p for name, p in made.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind, millions", [("mask-rcnn", 25.0), ("cascade", 55.3)])
def test_on_a_vit_b_as_much_is_trained_as_in_detectron2s_vitdet(kind, millions):
    trunk = torch.nn.Module()
    trunk.width, trunk.stride = 768, 16
    options = DetectorOptions(detector=kind, num_classes=80)
    with torch.device("meta"):
        made = Detector(trunk, options, mean=MEAN, std=STD)
    assert sum(p.numel() for p in made.parameters()) == pytest.approx(1e6 * millions, abs=5e4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", [(TWO, NONE), (NONE, NONE), (TWO, TWO)], ids=["one", "none", "all"])
def test_losses_are_finite_float32_scalars_that_reach_every_trained_parameter(kind, of):
    made = detector(kind)
    losses = made.losses(batch(*of))
    assert all(one.dtype == torch.float32 and one.shape == () for one in losses.values())
    assert all(one.isfinite() for one in losses.values())
    sum(losses.values()).backward()
    without = [name for name, p in trained(made).items() if p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in trained(made).values())
    assert made.trunk.vit.weight.grad is None


@pytest.mark.parametrize(
    "kind, of_boxes",
    [
        ("mask-rcnn", ["class", "box"]),
        ("cascade", ["class_1", "box_1", "class_2", "box_2", "class_3", "box_3"]),
    ],
)
def test_calling_a_detector_gives_its_losses_by_name(kind, of_boxes):
    wanted = ["objectness", "proposal_box", *of_boxes, "mask"]
    assert list(detector(kind)(batch(TWO))) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_of_one_class_learns_and_finds(kind):
    made = bold(kind, num_classes=1)
    losses = made.losses(batch(targets((1, 10, 12, 50, 60))))
    assert all(one.isfinite() for one in losses.values())
    (found,) = made.detect(batch(NONE))
    assert set(found.labels.tolist()) == {1}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_comes_best_first_in_the_image_with_its_masks(kind):
    for found in bold(kind).detect(batch(TWO, NONE)):
        assert 0 < len(found) <= 100
        assert found.masks.shape == (len(found), 28, 28)
        assert found.boxes.dtype == found.scores.dtype == found.masks.dtype == torch.float32
        assert (found.scores.diff() <= 0).all()
        assert found.scores.min() > 0.05
        assert set(found.labels.tolist()) <= {1, 2, 3}
        assert found.boxes.min() >= 0
        assert (found.boxes.max(dim=0).values <= torch.tensor([80, 88, 80, 88])).all()
        assert not found.masks.requires_grad


def assert_same(found, wanted, **tolerance):
    for one, other in zip(found, wanted, strict=True):
        for name in ("labels", "boxes", "scores", "masks"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_detections_do_not_depend_on_the_mode(kind):
    made, given = bold(kind), batch(TWO, NONE)
    results = []
    for mode in (True, False):
        made.train(mode)
        torch.manual_seed(0)
        results.append((made.losses(given), made.detect(given)))
    (losses, found), (losses_again, found_again) = results
    torch.testing.assert_close(losses, losses_again, rtol=0, atol=0)
    assert_same(found, found_again, rtol=0, atol=0)


def test_detections_are_the_same_with_another_image_in_the_batch():
    made, given = bold(), batch(NONE, NONE)
    together = made.detect(given)
    alone = [made.detect(given[i : i + 1])[0] for i in (0, 1)]
    assert_same(together, alone, rtol=1e-4, atol=1e-3)


def test_what_lies_in_the_padding_is_not_seen():
    made, given = bold(), batch(NONE)
    noise = given.images.clone()
    noise[:, :, 88:] = 255
    noise[:, :, :, 80:] = 255
    assert_same(made.detect(given), made.detect(Batch(noise, given.sizes)), rtol=0, atol=0)


def test_images_are_normalised_and_then_padded_with_zeros():
    made, given = detector(), batch(NONE)
    made.detect(given)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    wanted = (given.images / 255 - mean) / std
    wanted[:, :, 88:] = 0
    wanted[:, :, :, 80:] = 0
    torch.testing.assert_close(made.trunk.images, wanted, rtol=1e-5, atol=1e-5)


def recorded(monkeypatch, owner, name):
    """The arguments and the result of each call of a method from now on."""
    calls, method = [], getattr(owner, name)

    def call(*args, **options):
        result = method(*args, **options)
        calls.append(SimpleNamespace(args=args, options=options, result=result))
        return result

    monkeypatch.setattr(owner, name, call)
    return calls


def test_2000_proposals_of_a_map_go_into_training_and_1000_into_a_test(monkeypatch):
    made = detector()
    calls = recorded(monkeypatch, made.proposals, "propose")
    made.losses(batch(TWO))
    made.detect(batch(TWO))
    assert [one.options["before"] for one in calls] == [2000, 1000]


@pytest.mark.parametrize("kind", KINDS)
def test_under_bfloat16_autocast_boxes_are_float32_and_as_good_as_without(kind):
    made, given = bold(kind), batch(TWO, NONE)
    with torch.autocast("cpu", torch.bfloat16):
        losses, found = made.losses(given), made.detect(given)
    assert {one.dtype for one in losses.values()} == {torch.float32}
    assert {x.dtype for one in found for x in (one.boxes, one.scores, one.masks)} == {torch.float32}
    odd = torch.cat([one.boxes for one in found])
    assert (odd != odd.bfloat16().float()).float().mean() > 0.5  # not on bfloat16's grid
    sum(losses.values()).backward()
    assert all(p.grad.dtype == torch.float32 for p in trained(made).values())


def test_proposals_that_are_learned_from_end_at_the_image_and_not_at_its_padding(monkeypatch):
    made = bold("mask-rcnn")
    sampled = recorded(monkeypatch, made.boxes, "sample")
    given = batch(TWO)
    small = Batch(given.images, ((40, 56),), given.targets)
    made.losses(small)
    (proposals,) = sampled[0].args[0]
    assert len(proposals) > 10
    assert float(proposals[:, 0::2].max()) <= 56 and float(proposals[:, 1::2].max()) <= 40


def test_masks_are_learned_on_the_regions_of_the_first_stage(monkeypatch):
    made = bold("cascade")
    sampled = recorded(monkeypatch, made.boxes, "sample")
    of_masks = recorded(monkeypatch, made.masks, "losses")
    made.losses(batch(TWO))
    assert of_masks[0].args[1] is sampled[0].result


def test_masks_are_found_in_the_boxes_of_the_last_stage(monkeypatch):
    made = bold("cascade")
    of_masks = recorded(monkeypatch, made.masks, "detect")
    (found,) = made.detect(batch(TWO))
    torch.testing.assert_close(of_masks[0].args[1], [found.boxes], rtol=0, atol=0)


def test_a_seed_gives_the_same_start_and_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (trained(detector("cascade", seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, second[name]) for name, p in first.items())
    assert not torch.equal(first["boxes.stages.0.box.weight"], other["boxes.stages.0.box.weight"])


def test_a_step_draws_from_the_global_generator():
    many = targets(*((1, 5.0 * i, 3.0 * i, 5.0 * i + 30, 3.0 * i + 40) for i in range(9)))
    made = detector()
    seeds = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        seeds.append(float(made.losses(batch(many))["objectness"].detach()))
    assert seeds[0] == seeds[1] != seeds[2]


def test_training_mode_leaves_the_frozen_backbone_in_eval_mode():
    made = detector().train()
    assert made.training
    assert made.pyramid.training
    assert not made.trunk.vit.training


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_can_be_kept_and_taken_over(kind):
    first, second = bold(kind), bold(kind, seed=3)
    state = first.trained_state()
    assert "trunk.prompt" in state
    assert not any(name.startswith("trunk.vit") for name in state)
    assert all(one.is_contiguous() for one in state.values())  # as files of tensors want it
    second.load_trained_state(state)
    assert_same(first.detect(batch(TWO)), second.detect(batch(TWO)), rtol=0, atol=0)


def test_regression_is_class_agnostic_in_the_cascade_alone_unless_asked_for():
    assert detector("mask-rcnn").boxes.stages[0].box.out_features == 12
    assert detector("mask-rcnn", class_agnostic=True).boxes.stages[0].box.out_features == 4
    assert detector("cascade").boxes.stages[0].box.out_features == 4


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_the_samples_of_a_bin_can_be_chosen(sampling_ratio, monkeypatch):
    made = detector(sampling_ratio=sampling_ratio)
    calls = recorded(monkeypatch, torch.ops.torchvision, "roi_align")
    made.detect(batch(TWO))
    assert {one.args[5:] for one in calls} == {(sampling_ratio, True)}


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"detector": "mask-rnn", "num_classes": 3}, UnknownName, "mask-rcnn"),
        ({"num_classes": 0}, BurstError, "num_classes is 0"),
        ({"num_classes": 3, "sampling_ratio": -1}, BurstError, "sampling_ratio is -1"),
        ({"num_classes": 3, "channels": 0}, BurstError, "channels is 0"),
        ({"num_classes": 3, "hidden": 0}, BurstError, "hidden is 0"),
        (
            {"detector": "cascade", "num_classes": 3, "class_agnostic": False},
            BurstError,
            "class-agnostic",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        DetectorOptions(**options)


def test_images_without_targets_are_refused():
    with pytest.raises(ShapeError, match="1 images and 0 targets"):
        detector().losses(Batch(batch(NONE).images, batch(NONE).sizes))


def test_a_side_that_is_no_multiple_of_32_is_refused():
    with pytest.raises(ShapeError, match="112 x 112"):
        detector().detect(batch(NONE, side=112))


def test_a_patch_that_no_pyramid_fits_is_refused():
    trunk = Trunk()
    trunk.stride = 14
    with pytest.raises(UnsupportedModel):
        detector(trunk=trunk)
