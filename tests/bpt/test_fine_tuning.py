"""Full fine-tuning: the same function at the start, all of it trained, lower layers slower."""

import pytest
import torch
from support import SIZE, backbone_of, vit

from bpt import FineTunedViT, Recipe, layer_decay_groups
from bpt.construction import build_model
from bpt.optimisation import make_optimizer, schedule


@pytest.fixture
def backbone():
    return backbone_of(vit())


@pytest.fixture
def images():
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_its_features_are_timms(images, pooling):
    backbone = backbone_of(vit(), pooling=pooling)
    model = FineTunedViT(backbone, 5).eval()
    normed = backbone.model.forward_features(images)
    raw = backbone.model.norm_pre(backbone.model._pos_embed(backbone.model.patch_embed(images)))
    for block in backbone.model.blocks:
        raw = block(raw)
    expected = normed[:, 0] if pooling == "token" else backbone.model.norm(raw[:, 1:].mean(1))
    assert torch.allclose(model.features(images), expected, atol=1e-6)
    assert torch.allclose(model(images), model.head(expected), atol=1e-6)


def test_every_weight_gets_a_gradient_and_the_backbone_stays_as_it_was(backbone, images):
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    model = FineTunedViT(backbone, 5, drop_path=0.0, head_std=0.02).train()
    model(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_stochastic_depth_rises_linearly_and_rests_in_evaluation(backbone, images):
    model = FineTunedViT(backbone, 5, drop_path=0.4, head_std=0.02)
    assert [block.drop_path1.drop_prob for block in model.vit.blocks] == pytest.approx(
        [0, 0.2, 0.4]
    )
    model.eval()
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_the_paths_that_are_dropped_are_the_same_when_blocks_are_computed_again(backbone, images):
    found = []
    for again in (False, True):
        generator = torch.Generator().manual_seed(0)
        options = {"drop_path": 0.5, "head_std": 0.02, "generator": generator}
        model = FineTunedViT(backbone, 5, checkpoint_activations=again, **options).train()
        torch.manual_seed(3)
        model(images).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


LAYERS = {  # of three blocks
    "vit.cls_token": (0, 0.0),
    "vit.reg_token": (0, 0.0),
    "vit.pos_embed": (0, 0.0),
    "vit.patch_embed.proj.weight": (0, 0.3),
    "vit.norm_pre.weight": (0, 0.0),
    "vit.blocks.0.attn.qkv.weight": (1, 0.3),
    "vit.blocks.1.norm1.weight": (2, 0.0),
    "vit.blocks.2.mlp.fc1.weight": (3, 0.3),
    "vit.blocks.2.mlp.fc1.bias": (3, 0.0),
    "vit.norm.weight": (4, 0.0),
    "head.weight": (4, 0.3),
    "head.bias": (4, 0.0),
}


def test_layers_scales_and_decays_are_those_of_the_formula():
    model = FineTunedViT(backbone_of(vit(reg_tokens=2, pre_norm=True)), 5)
    groups = layer_decay_groups(model, weight_decay=0.3, layer_decay=0.5)
    where = {id(p): group for group in groups for p in group["params"]}
    assert (
        len(where) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    )
    parameters = dict(model.named_parameters())
    for name, (layer, decay) in LAYERS.items():
        group = where[id(parameters[name])]
        assert (group["lr_scale"], group["weight_decay"]) == (0.5 ** (4 - layer), decay), name


def layer_of(name):
    if name.startswith("vit.blocks."):
        return int(name.split(".")[2]) + 1
    return 4 if name.startswith(("vit.norm.", "head.")) else 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_at_every_step_a_layer_has_its_share_of_the_learning_rate(backbone, optimizer):
    options = {"optimizer": optimizer, "lr": 0.1, "min_lr": 0.01, "layer_decay": 0.65}
    recipe = Recipe(method="full", epochs=6, warmup_epochs=2, **options)
    model = build_model(recipe, backbone, 5)
    made = make_optimizer(model, recipe)
    plan = schedule(made, recipe, 10)
    for step, rate in {20: 0.1, 10: 0.05, 40: 0.055}.items():  # the peak, before it, after it
        plan.step_update(step)
        found = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            expected = 0.65 ** (4 - layer_of(name)) * rate
            assert found[id(parameter)] == pytest.approx(expected, rel=1e-12), (step, name)


def test_what_is_kept_is_everything_and_loads_strictly(backbone, images):
    one, other = FineTunedViT(backbone, 5), FineTunedViT(backbone, 5, head_std=1.0)
    other.load_trained_state(one.trained_state())
    assert torch.equal(one.eval()(images), other.eval()(images))
    assert len(one.trained_state()) == len(list(one.parameters()))
