"""Parameter groups, the learning rate of each step, the moving average."""

import math

import pytest
import torch
from support import DIM, backbone_of, vit

from bpt.construction import build_model
from bpt.optimisation import MovingAverage, make_optimizer, parameter_groups, schedule
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


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_single_step_behind_the_warm_up_has_the_peak_rate_and_no_warning(warmup, caplog):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    recipe = Recipe(epochs=1 + warmup, warmup_epochs=warmup, lr=0.3)
    plan = schedule(optimizer, recipe, 1)
    plan.step_update(warmup)
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert caplog.records == []


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


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lars_steps_as_a_loop_in_float64(backbone, weight_decay):
    recipe = Recipe(
        method="linear", optimizer="lars", lr=6.4, head_weight_decay=weight_decay, epochs=1
    )
    model = build_model(recipe, backbone, 5)
    optimizer = make_optimizer(model, recipe)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    trained["head.bias"].data.normal_()  # at its start of 0 nothing would be adapted
    values = {n: p.detach().double() for n, p in trained.items()}
    momenta = {n: torch.zeros_like(value) for n, value in values.items()}
    for _ in range(2):
        for name, parameter in trained.items():
            parameter.grad = torch.randn_like(parameter)
            step = parameter.grad.double()
            if parameter.ndim > 1:
                norm = step.norm() + weight_decay * values[name].norm()
                decayed = step + weight_decay * values[name]
                step = 0.001 * values[name].norm() / norm * decayed
            momenta[name] = 0.9 * momenta[name] + step
            values[name] = values[name] - 6.4 * momenta[name]
        optimizer.step()
    for name, parameter in trained.items():
        assert torch.allclose(parameter.double(), values[name], rtol=1e-5, atol=1e-7), name


def test_lars_adapts_the_class_token_of_a_fine_tuning_and_no_vector(backbone):
    recipe = Recipe(method="full", optimizer="lars")
    model = build_model(recipe, backbone, 5)
    groups = make_optimizer(model, recipe).param_groups
    adapted = {id(p): group["always_adapt"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert adapted[id(parameter)] == (parameter.ndim > 1), name


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
