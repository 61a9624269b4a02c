"""Parameter groups, the learning rate of each step, the moving average."""

import math

import pytest
import torch
from support import DIM, backbone_of, vit

from bpt.build import build_model
from bpt.optimisation import MovingAverage, parameter_groups, schedule
from bpt.recipe import Recipe


@pytest.fixture(scope="module")
def backbone():
    return backbone_of(vit())


def test_prompts_head_and_vectors_decay_apart(backbone):
    recipe = Recipe(num_prompts=4, rank=2, placement="last:2")
    model = build_model(recipe, backbone, 5)
    groups = {group["name"]: group for group in parameter_groups(model, recipe)}
    decays = {name: group["weight_decay"] for name, group in groups.items()}
    assert decays == {"prompts": 5e-3, "head": 0.5, "vectors": 0.0}
    shapes = {n: sorted(tuple(p.shape) for p in g["params"]) for n, g in groups.items()}
    assert shapes["prompts"] == sorted([(4, 2), (DIM, 2)] * 2)
    assert shapes["head"] == [(5, DIM)]
    assert shapes["vectors"] == [(5,)]


@pytest.mark.parametrize("method", ["vpt", "bpt-bilinear", "linear", "full"])
def test_every_trained_parameter_is_in_one_group(backbone, method):
    recipe = Recipe(method=method, num_prompts=4, rank=2)
    model = build_model(recipe, backbone, 5)
    grouped = [id(p) for group in parameter_groups(model, recipe) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("warmup", [0, 2])
def test_the_learning_rate_follows_the_published_formula(warmup):
    recipe = Recipe(epochs=7, warmup_epochs=warmup, lr=0.3, min_lr=0.01)
    steps = 5
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    plan = schedule(optimizer, recipe, steps)
    for step in range(7 * steps):
        plan.step_update(step)
        e = step / steps
        if e < warmup:
            expected = 0.3 * e / warmup
        else:
            wave = 1 + math.cos(math.pi * (e - warmup) / (7 - warmup))
            expected = 0.01 + (0.3 - 0.01) * 0.5 * wave
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)


def test_a_group_with_a_scale_follows_at_its_scale():
    group = {"params": [torch.zeros(1, requires_grad=True)], "lr_scale": 0.5}
    optimizer = torch.optim.AdamW([group], lr=0.3)
    plan = schedule(optimizer, Recipe(epochs=4, warmup_epochs=0, lr=0.3), 1)
    plan.step_update(0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.15)


def test_the_average_is_that_of_a_loop_in_float64(rng):
    values = rng.normal(size=(30, 4))
    parameter = torch.zeros(4)
    average = MovingAverage({"p": parameter}, decay=0.9)
    expected = [0.0] * 4
    for number, row in enumerate(values, start=1):
        parameter.copy_(torch.from_numpy(row))
        average.update({"p": parameter})
        decay = min(0.9, (1 + number) / (10 + number))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, row, strict=True)]
    assert average.values["p"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert parameter.tolist() == pytest.approx(values[-1].tolist(), rel=1e-6)


def test_a_loaded_average_goes_on_where_it_stopped():
    whole = MovingAverage({"p": torch.zeros(3)}, decay=0.9)
    values = torch.randn(8, 3)
    for row in values[:4]:
        whole.update({"p": row})
    other = MovingAverage({"p": torch.ones(3)}, decay=0.9)
    other.load(whole.state())
    for row in values[4:]:
        whole.update({"p": row})
        other.update({"p": row})
    assert torch.equal(whole.values["p"], other.values["p"])
