"""A detector's steps: rates, groups, what is trained, what is counted."""

import numpy as np
import pytest
import torch
from support import backbone_of, vit

from bpt.detection.construction import (
    build_detector,
    count_detector,
    detector_groups,
    restore_detector,
)
from bpt.detection.cost import Shape, detection_cost, detection_memory
from bpt.detection.objects import FRAME, Batch, Targets
from bpt.detection.recipe import DetectionRecipe
from bpt.detection.training import detection_schedule, loss_names, make_detector_trainer

CLASSES = 3


def backbone():
    return backbone_of(vit(img_size=32, patch_size=8))


def recipe(**changes):
    small = {"image_size": 64, "channels": 8, "batch_size": 2, "num_prompts": 4, "rank": 2}
    return DetectionRecipe(**small | changes)


def batch(count=2, seed=0):
    """Pictures with an object each, and one without."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)
    one = Targets(
        torch.tensor([[8.0, 10.0, 40.0, 50.0]]),
        torch.tensor([2]),
        torch.full((1, FRAME, FRAME), 255, dtype=torch.uint8),
    )
    none = Targets(one.boxes[:0], one.labels[:0], one.masks[:0])
    sizes = ((64, 64), (48, 64)) * count
    return Batch(images, sizes[:count], ((one, none) * count)[:count])


def test_the_rate_rises_linearly_and_falls_twice():
    """As detectron2's WarmupParamScheduler over a MultiStepParamScheduler."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [parameter]}, {"params": [], "lr_scale": 0.5}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    steps, warmup = 270_000, 1000
    set_lr = detection_schedule(optimizer, DetectionRecipe(lr=2.0), steps)
    for step in (0, 1, 500, 999, 1000, 209_999, 210_000, 249_999, 250_000, 269_999):
        set_lr(step)
        expected = 2.0 * (1.0 if step < 210_000 else 0.1 if step < 250_000 else 0.01)
        if step < warmup:
            expected *= 0.001 + 0.999 * step / warmup
        rates = [group["lr"] for group in optimizer.param_groups]
        np.testing.assert_allclose(rates, [expected, expected / 2], rtol=1e-12)


@pytest.mark.parametrize("detector", ["mask-rcnn", "cascade"])
def test_the_losses_are_counted_by_their_names(detector):
    model = build_detector(recipe(detector=detector), backbone(), CLASSES)
    trainer = make_detector_trainer(recipe(detector=detector), model, model, 10)
    torch.manual_seed(0)
    expected = {name: one.detach() for name, one in model.losses(batch()).items()}
    assert tuple(sorted(expected)) == tuple(sorted(loss_names(detector)))
    torch.manual_seed(0)
    total, counts = trainer.loss(batch())
    assert torch.equal(
        total.detach(), torch.stack([expected[n] for n in loss_names(detector)]).sum()
    )
    assert counts.tolist() == pytest.approx(
        [
            2 * float(total.detach()),
            2,
            *(2 * float(expected[name]) for name in loss_names(detector)),
        ]
    )


@pytest.mark.parametrize("method", ["linear", "vpt", "gatevpt", "bpt-bilinear", "full"])
def test_every_trained_number_moves_and_nothing_else(method):
    chosen = recipe(method=method, drop_path=0.0, gate_init=1.0)
    model = build_detector(chosen, backbone(), CLASSES)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = make_detector_trainer(chosen, model, model, 10)
    trainer.set_lr(5)
    for step in range(2):  # a class whose region was never sampled has no gradient in one
        trainer.step(batch(seed=step))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved == trained
    prompts = {name for name in trained if name.startswith("trunk.prompts.")}
    backbones = {name for name in trained if name.startswith("trunk.vit.")}
    assert bool(prompts) == (method in ("vpt", "gatevpt", "bpt-bilinear"))
    gates = {"trunk.gates.logits", "trunk.gates.temperatures"}
    assert trained & gates == (gates if method == "gatevpt" else set())
    assert bool(backbones) == (method == "full")


def test_matrices_decay_and_vectors_do_not():
    chosen = recipe(weight_decay=0.3)
    model = build_detector(chosen, backbone(), CLASSES)
    decay = {}
    for group in detector_groups(model, chosen):
        decay |= {id(p): (group["weight_decay"], p.ndim) for p in group["params"]}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(decay) == len(trained)
    assert all(decay[id(p)] == (0.3 if p.ndim > 1 else 0.0, p.ndim) for p in trained)


def test_layers_of_a_fine_tuned_backbone_are_slower_towards_the_input():
    chosen = recipe(method="full", layer_decay=0.5)
    model = build_detector(chosen, backbone(), CLASSES)
    scales = {}
    for group in detector_groups(model, chosen):
        scales |= {id(p): (group["lr_scale"], group["weight_decay"]) for p in group["params"]}
    names = {name: scales[id(p)] for name, p in model.named_parameters() if id(p) in scales}
    assert names["trunk.vit.patch_embed.proj.weight"][0] == 0.5**4  # 3 blocks, and what follows
    assert [names[f"trunk.vit.blocks.{i}.attn.qkv.weight"][0] for i in range(3)] == [
        *(0.125, 0.25, 0.5)
    ]
    assert names["trunk.vit.pos_embed"] == (0.5**4, 0.0)
    heads = {scale for name, (scale, _) in names.items() if not name.startswith("trunk.")}
    assert heads == {1.0}


def test_a_step_cut_into_parts_adds_the_same_gradients_up():
    """But for which regions are drawn: here all are, since there are few."""
    model = build_detector(recipe(), backbone(), CLASSES)
    found = []
    for accumulation in (1, 2):
        trainer = make_detector_trainer(recipe(accumulation=accumulation), model, model, 10)
        parts = trainer.parts(batch())
        assert [len(part) for part, _ in parts] == [2 // accumulation] * accumulation
        assert sum(share for _, share in parts) == 1.0
        torch.manual_seed(0)
        model.zero_grad()
        for part, share in parts:
            (trainer.loss(part)[0] * share).backward()
        found.append(model.pyramid.state_dict and next(model.pyramid.parameters()).grad.clone())
    assert torch.isfinite(found[0]).all()
    assert torch.nn.functional.cosine_similarity(*[g.flatten() for g in found], dim=0) > 0.8


def test_the_same_seed_has_the_same_start_and_the_global_state_is_left_alone():
    vit = backbone()
    before = torch.get_rng_state()
    one, other = (build_detector(recipe(seed=4), vit, CLASSES) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    third = build_detector(recipe(seed=5), backbone(), CLASSES)
    name = "trunk.prompts.0.left"
    assert not torch.equal(one.get_parameter(name), third.get_parameter(name))


@pytest.mark.parametrize(
    "method", ["linear", "vpt", "gatevpt", "bpt-bilinear", "bpt-fwhiten", "bpt-dwhiten", "full"]
)
@pytest.mark.parametrize("detector", ["mask-rcnn", "cascade"])
def test_what_was_trained_restores_the_detector(method, detector):
    placement = "shallow" if method == "gatevpt" else "deep"
    chosen = recipe(method=method, detector=detector, placement=placement)
    w = {block: torch.randn((32,) if method == "bpt-dwhiten" else (32, 32)) for block in range(3)}
    model = build_detector(chosen, backbone(), CLASSES, whitening=w)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    model.eval()
    again = restore_detector(chosen, backbone(), CLASSES, model.trained_state(), whitening=w)
    for mine, theirs in zip(model.detect(batch()), again.detect(batch()), strict=True):
        assert torch.equal(mine.boxes, theirs.boxes)
        assert torch.equal(mine.masks, theirs.masks)


def test_numbers_are_counted_apart():
    model = build_detector(recipe(), backbone(), CLASSES)
    found = count_detector(model)
    assert found["prompts"] == 2 * (4 + 32)
    assert found["backbone"] == 0
    assert found["trained"] == found["prompts"] + found["heads"]
    assert found["total"] == sum(p.numel() for p in model.parameters())
    plain, gated = (
        count_detector(build_detector(recipe(method=method), backbone(), CLASSES))
        for method in ("vpt", "gatevpt")
    )
    assert gated["prompts"] - plain["prompts"] == gated["trained"] - plain["trained"] == 2 * 3 - 1
    tuned = count_detector(build_detector(recipe(method="full"), backbone(), CLASSES))
    assert tuned["heads"] == found["heads"] and tuned["backbone"] > 0


def test_the_cost_of_the_papers_run_is_about_what_the_operations_add_up_to():
    """Detection facts, section 7: 1.36 TFLOP in a ViT-B, 0.62 behind it, 2.3e19 in all."""
    papers = DetectionRecipe(model="mae_vitb", precision="bfloat16")
    shape = Shape(12, 768, 16)
    images = {"classes": 80, "train_images": 117_266, "val_images": 5000}
    found = detection_cost(papers, shape, **images)
    assert found.images == 37 * 117_266 + 5000
    assert found.operations == pytest.approx(2.3e19, rel=0.15)
    assert found.hours == pytest.approx(26, rel=0.15)
    later = detection_cost(DetectionRecipe(model="mae_vitb", placement="last:4"), shape, **images)
    none = detection_cost(DetectionRecipe(model="mae_vitb", method="linear"), shape, **images)
    assert none.operations < later.operations < found.operations
    again = detection_cost(
        DetectionRecipe(model="mae_vitb", checkpoint_activations=True), shape, **images
    )
    assert again.operations > found.operations


@pytest.mark.parametrize("every, evaluations", [(0, 1), (1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_cost_counts_each_evaluation_once(every, evaluations):
    four = recipe(schedule="4", eval_every=every)
    found = detection_cost(four, Shape(3, 32, 8), classes=3, train_images=10, val_images=1000)
    assert found.images == 4 * 10 + evaluations * 1000


def test_memory_counts_what_a_step_keeps():
    model = build_detector(recipe(), backbone(), CLASSES)
    shape = Shape(3, 32, 8)

    def bytes_of(images, **changes):
        return detection_memory(recipe(**changes), shape, model, images=images)

    one, two, three = (bytes_of(images) for images in (1, 2, 3))
    assert two > one
    assert two - one == pytest.approx(three - two)
    assert bytes_of(2, checkpoint_activations=True) < two
    assert bytes_of(2, precision="bfloat16") < two
    assert one > 4 * sum(p.numel() for p in model.parameters())
