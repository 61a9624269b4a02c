"""LoRA and the other tuners of peft, adapters, BitFit: little of a copy of the backbone trained."""

import copy
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import erf
from support import DEPTH, DIM, SIZE, backbone_of, vit
from torch import nn
from typer.testing import CliRunner

import bpt
from bpt import AdapterViT, BitFitViT, FineTunedViT, PeftViT, PromptedViT, Recipe
from bpt.adaptation import Adapter, check_peft, lora_config
from bpt.construction import build_model, count_parameters
from bpt.optimisation import parameter_groups
from burst import BurstError, CheckpointError, UnsupportedModel
from cli import bpt as command

CLASSES = 5
METHODS = ["lora", "adapter", "bitfit"]
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="install the extra [peft]")


@pytest.fixture
def backbone():
    return backbone_of(vit())


@pytest.fixture
def images():
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def seeded():
    return torch.Generator().manual_seed(7)


def built(method, backbone, **options):
    if method == "lora":
        pytest.importorskip("peft", reason="install the extra [peft]")
    recipe = Recipe(method=method, **options)
    return build_model(recipe, backbone, CLASSES)


def step(model, images, lr=0.1):
    """One of SGD, in training mode; the model is left in eval mode."""
    model.train()
    model(images).square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr).step()
    model.zero_grad()
    return model.eval()


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("pooling", ["token", "avg"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [False, True])
def test_at_the_start_it_is_the_plain_backbone_bit_for_bit(method, pooling, training, images):
    """What is put in adds exact zeros; also in training, where nothing pretrained drops."""
    backbone = backbone_of(vit(reg_tokens=2, proj_drop_rate=0.5), pooling=pooling)
    recipe = Recipe(method=method)
    model = built(method, backbone).train(training)
    plain = build_model(dataclasses.replace(recipe, method="linear"), backbone, CLASSES)
    assert torch.equal(model.head.weight, plain.head.weight)
    assert isinstance(plain, PromptedViT)
    assert torch.equal(model(images), plain.train(training)(images))


EXPECTED = {
    "lora": {
        f"vit.blocks.{block}.attn.qkv.lora_{side}.default.weight"
        for block in range(DEPTH)
        for side in "AB"
    },
    "adapter": {
        f"vit.blocks.{block}.ls2.adapter.{layer}.{kind}"
        for block in range(DEPTH)
        for layer in ("down", "up")
        for kind in ("weight", "bias")
    },
    "bitfit": {
        "vit.patch_embed.proj.bias",
        "vit.norm.bias",
        *(
            f"vit.blocks.{block}.{layer}.bias"
            for block in range(DEPTH)
            for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        ),
    },
}
NUMBERS = {
    "lora": DEPTH * 4 * DIM * 8,
    "adapter": DEPTH * (2 * DIM * 8 + DIM + 8),
    "bitfit": DIM + DIM + DEPTH * (DIM + 3 * DIM + DIM + DIM + 4 * DIM + DIM),
}


@pytest.mark.parametrize("method", METHODS)
def test_exactly_what_is_named_trains_and_moves(method, backbone, images):
    model = built(method, backbone)
    assert trained_names(model) == EXPECTED[method] | {"head.weight", "head.bias"}
    before = {name: value.clone() for name, value in model.named_parameters()}
    step(step(model, images), images)  # LoRA's A and an adapter's D move from the second on
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained_names(model)
    counts = count_parameters(model)
    assert (counts["backbone"], counts["prompts"]) == (NUMBERS[method], 0)
    assert counts["head"] == CLASSES * (DIM + 1)
    assert counts["trained"] == counts["backbone"] + counts["head"]


@pytest.mark.parametrize("method", METHODS)
def test_the_users_model_is_never_touched(method, backbone, images):
    before = copy.deepcopy(backbone.model.state_dict())
    structure = [(name, type(module)) for name, module in backbone.model.named_modules()]
    step(built(method, backbone), images)
    assert [(name, type(m)) for name, m in backbone.model.named_modules()] == structure
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("method", METHODS)
def test_what_was_pretrained_stays_in_eval_mode(method, backbone):
    model = built(method, backbone).train()
    inside = dict(model.vit.named_modules())
    for name, _ in backbone.model.named_modules():
        found = getattr(inside[name], "base_layer", inside[name])
        if method == "adapter" and name.endswith("ls2"):
            found = found.scale
        assert not found.training, name
    assert model.training and model.head.training


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_is_what_trains_and_loads_strictly(method, backbone, images):
    model, other = step(built(method, backbone), images), built(method, backbone, seed=3).eval()
    state = model.trained_state()
    assert set(state) == trained_names(model)
    other.load_trained_state(state)
    assert torch.equal(other(images), model(images))
    gone = sorted(EXPECTED[method])[0]
    with pytest.raises(CheckpointError, match=f"{gone} is missing"):
        other.load_trained_state({name: value for name, value in state.items() if name != gone})


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_the_start_and_the_drawn_numbers_leave_no_trace(method, backbone):
    torch.manual_seed(0)
    one = built(method, backbone, seed=1).trained_state()
    torch.manual_seed(1)
    two = built(method, backbone, seed=1).trained_state()
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = built(method, backbone, seed=2).trained_state()
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", METHODS)
def test_all_matrices_decay_alike_and_vectors_do_not(method, backbone):
    model = built(method, backbone)
    changed = dataclasses.replace(Recipe(method=method), weight_decay=0.3)
    groups = parameter_groups(model, changed)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == len(trained_names(model))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert decays[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0), name


@pytest.mark.parametrize("method", METHODS)
def test_activations_that_are_computed_again_give_the_same_gradients(method, backbone, images):
    found = []
    for again in (False, True):
        torch.manual_seed(0)  # of LoRA's dropout
        model = step(built(method, backbone, checkpoint_activations=again), images)
        model.train()(images).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert model.checkpoint_activations is again
    first, second = found
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


# --- LoRA and peft --------------------------------------------------------------------------------


@pytest.mark.parametrize("rank, alpha", [(1, 1), (3, 12), (8, 4)])
def test_lora_is_the_plain_backbone_with_w_plus_b_a_alpha_by_r(peft, backbone, images, rank, alpha):
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["attn.qkv"])
    model = PeftViT(backbone, config, CLASSES).eval()
    rng = np.random.default_rng(0)
    expected = copy.deepcopy(backbone.model)
    for block in range(DEPTH):
        a, b = rng.normal(size=(rank, DIM)), rng.normal(size=(3 * DIM, rank))
        layer = model.vit.blocks[block].attn.qkv
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(torch.from_numpy(a))
            layer.lora_B["default"].weight.copy_(torch.from_numpy(b))
            weight = expected.blocks[block].attn.qkv.weight
            changed = weight.double().numpy() + b @ a * (alpha / rank)
            weight.copy_(torch.from_numpy(changed))
    plain = PromptedViT(backbone_of(expected), {}, CLASSES)
    plain.head.load_state_dict(model.head.state_dict())
    found, wanted = model.features(images), plain.features(images)
    assert not torch.allclose(wanted, PromptedViT(backbone, {}, CLASSES).features(images), atol=0.1)
    assert torch.allclose(found, wanted, atol=1e-4)  # float32: two products in place of one
    merged = model.merged()
    assert type(merged) is FineTunedViT and not any("lora" in name for name in merged.state_dict())
    assert torch.allclose(merged(images), plain(images), atol=1e-4)
    assert torch.equal(model.features(images), found)  # as it was


def test_the_defaults_of_lora_are_those_of_its_source(peft):
    config = lora_config(4)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (4, 4, 0.1, "none")


def test_dropout_of_lora_is_active_in_training_alone(peft, backbone, images):
    model = step(built("lora", backbone), images)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


TARGET = {"target_modules": ["attn.qkv", "mlp.fc1"]}
TUNERS = {  # those that many versions of peft have
    "AdaLoraConfig": {**TARGET, "total_step": 10},
    "IA3Config": {**TARGET, "feedforward_modules": ["mlp.fc1"]},
    "LNTuningConfig": {"target_modules": ["norm1", "norm2"]},
    "LoHaConfig": TARGET,
    "LoKrConfig": TARGET,
    "LoraConfig": {**TARGET, "use_dora": True, "modules_to_save": ["patch_embed"]},
    "OFTConfig": {**TARGET, "oft_block_size": 4, "r": 0},
    "VeraConfig": {"target_modules": ["attn.qkv"], "r": 4},
}


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # timm's LayerNorm
@pytest.mark.parametrize("name", TUNERS)
def test_any_tuner_of_peft_trains_is_kept_and_merged(peft, backbone, images, name):
    config = getattr(peft, name)(**TUNERS[name])
    given = copy.deepcopy(config.to_dict())
    before = copy.deepcopy(backbone.model.state_dict())
    one, two = (PeftViT(backbone, config, CLASSES, generator=seeded()).eval() for _ in range(2))
    plain = PromptedViT(backbone, {}, CLASSES, generator=seeded())
    # To rounding: a norm that is learned of a weight, say, is divided by.
    assert torch.allclose(one(images), plain(images), atol=1e-5)
    step(one, images)
    assert not torch.allclose(one(images), plain(images), atol=1e-4)
    two.load_trained_state(one.trained_state())
    assert torch.equal(one(images), two(images))
    assert torch.allclose(one.merged()(images), one(images), atol=1e-5)
    assert config.to_dict() == given
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())
    assert one.peft_model.peft_config["default"].peft_type == config.peft_type


def test_a_tuner_that_is_no_change_of_weights_is_not_merged(peft, backbone):
    if not hasattr(peft, "LilyConfig"):
        pytest.skip("this peft has no Lily")
    model = PeftViT(backbone, peft.LilyConfig(target_modules=["attn.qkv"]), CLASSES)
    with pytest.raises(UnsupportedModel, match="cannot turn Lily into plain weights") as caught:
        model.merged()
    assert "\n" not in str(caught.value)


def test_what_peft_cannot_do_is_said_in_one_line_and_changes_nothing(peft, backbone):
    before = copy.deepcopy(backbone.model.state_dict())
    wrong = {
        "cannot put Lora into test .*nowhere": peft.LoraConfig(target_modules=["nowhere"]),
        "tokens of a language model": peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3
        ),
        "dict is no configuration": {"r": 3},
        "PeftConfig is no configuration": peft.PeftConfig(),
    }
    for says, config in wrong.items():
        with pytest.raises(BurstError, match=says) as caught:
            PeftViT(backbone, config, CLASSES)
        assert "\n" not in str(caught.value)
    with pytest.raises(BurstError, match="rank of LoRA is 0"):
        lora_config(0)
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_a_norm_that_is_not_in_use_is_not_taken_for_the_one_that_is(peft):
    averaged = backbone_of(vit(global_pool="avg"), pooling="avg")  # timm's norm is fc_norm there
    assert isinstance(averaged.model.norm, nn.Identity)
    config = peft.LoraConfig(target_modules=["attn.qkv"], modules_to_save=["norm"])
    with pytest.raises(UnsupportedModel, match="fc_norm"):
        PeftViT(averaged, config, CLASSES)


def test_without_peft_it_says_what_to_install(monkeypatch, tmp_path, backbone):
    monkeypatch.setitem(sys.modules, "peft", None)
    for asked in (lambda: check_peft(None), lambda: built_without(backbone)):
        with pytest.raises(BurstError, match=r"pip install 'attention-burstiness\[peft\]'"):
            asked()
    result = RUNNER.invoke(command.app, ["train", "digits", "--method", "lora", "--out", "x"])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "attention-burstiness[peft]" in result.stderr
    assert not Path("x").exists()


def built_without(backbone):
    return build_model(Recipe(method="lora"), backbone, CLASSES)


# --- adapters and biases --------------------------------------------------------------------------


def test_an_adapter_is_its_formula():
    adapter = Adapter(6, 2)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape)))
    d, b, u, c = (p.detach().double().numpy() for p in adapter.parameters())
    x = rng.normal(size=(2, 3, 6))
    inner = x @ d.T + b
    gelu = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
    expected = x + gelu @ u.T + c
    found = adapter(torch.from_numpy(x).float()).detach().numpy()
    assert np.allclose(found, expected, atol=1e-6)


def test_adapters_stand_on_what_the_mlp_adds(backbone, images):
    model = AdapterViT(backbone, CLASSES, bottleneck=2, generator=seeded()).eval()
    with torch.no_grad():
        for block in model.vit.blocks:
            nn.init.normal_(block.ls2.adapter.up.weight)
    x = model.vit.norm_pre(model.vit._pos_embed(model.vit.patch_embed(images)))
    for block, plain in zip(model.vit.blocks, backbone.model.blocks, strict=True):
        y = x + plain.attn(plain.norm1(x))
        x = y + block.ls2.adapter(plain.ls2(plain.mlp(plain.norm2(y))))
    assert torch.equal(model.features(images), backbone.model.norm(x)[:, 0])


def test_what_has_no_place_for_them_is_refused(backbone):
    from timm.models.vision_transformer import ParallelThingsBlock

    odd = backbone_of(vit(block_fn=ParallelThingsBlock))
    with pytest.raises(UnsupportedModel, match="ParallelThingsBlock"):
        AdapterViT(odd, CLASSES)
    with pytest.raises(BurstError, match="bottleneck is 0"):
        AdapterViT(backbone, CLASSES, bottleneck=0)
    for module in backbone.model.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    with pytest.raises(UnsupportedModel, match="no bias"):
        BitFitViT(backbone, CLASSES)


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", ["cub", "imagenet"])
def test_a_benchmark_without_a_published_rate_says_so(method, dataset):
    recipe = bpt.recipe_for(dataset, method=method)
    assert (recipe.lr, recipe.weight_decay, recipe.batch_size) == (1e-3, 1e-4, 64)
    assert "none was published" in recipe.origins["lr"]
    assert "adapter_plus" in recipe.origins["lr"]


def test_the_published_adapter_is_found():
    recipe = bpt.recipe_for("cub", method="adapter", model="sup_vitb")
    assert recipe.origins["lr"].startswith("visinf/adapter_plus")


def test_options_of_other_methods_and_detectors_are_refused():
    for given, says in (
        ({"method": "bitfit", "bottleneck": 3}, "no use of bottleneck, which is for lora, adapter"),
        ({"method": "lora", "rank": 3}, "no use of rank"),
        ({"method": "lora", "head_weight_decay": 0.1}, "no use of head_weight_decay"),
        ({"method": "adapter", "bottleneck": 0}, "bottleneck is 0"),
        ({"method": "adapter", "pooling": "prompts"}, "no prompts to pool"),
    ):
        with pytest.raises(BurstError, match=says):
            bpt.recipe_for("cub", **given)
    with pytest.raises(BurstError, match="method lora is for classifiers"):
        bpt.detection_recipe_for("coco", method="lora")


def test_the_cost_goes_back_through_all_blocks():
    def operations(method, **given):
        recipe = Recipe(model="mae_vitb", method=method, epochs=10, **given)
        return bpt.training_cost(recipe, (1000, 0, 0)).operations

    bitfit = operations("bitfit")
    assert operations("full") == pytest.approx(1.5 * bitfit, rel=0.03)  # attention has no weights
    assert bitfit < operations("adapter") < operations("lora") < 1.01 * bitfit
    assert operations("lora", bottleneck=16) - bitfit == pytest.approx(
        2 * (operations("lora") - bitfit)
    )


# --- the whole way --------------------------------------------------------------------------------


def typed(*arguments):
    found = RUNNER.invoke(command.app, [str(one) for one in arguments])
    assert found.exit_code == 0, found.output
    return found.stdout


SMALL = ("--model", "timm:test_vit", "--weights", "random", "--batch-size", 8, "--device", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_from_the_command_to_the_number(method, colours, tmp_path):
    if method == "lora":
        pytest.importorskip("peft", reason="install the extra [peft]")
    options = () if method == "bitfit" else ("--bottleneck", 3)
    options += ("--image-size", 64, "--views", 2, "--checkpoint-activations")
    dataset, out = f"folder:{colours}", tmp_path / "run"
    shown = typed(
        "train", dataset, "--method", method, "--epochs", 1, *SMALL, *options, "--out", out
    )
    run = bpt.open_run(out)
    counts = run.config["parameters"]
    assert f"backbone {counts['backbone']:,}, head {counts['head']:,}" in shown
    assert ("peft" in run.config["versions"]) == (method == "lora")
    if method != "bitfit":
        assert run.recipe.bottleneck == 3
        numbers = {"lora": 4 * 64 * 3, "adapter": 2 * 64 * 3 + 64 + 3}
        assert counts["backbone"] == 6 * numbers[method]
    kept = load_file(out / "prompt.safetensors")
    assert sum(value.numel() for value in kept.values()) == counts["trained"]
    scores = json.loads(typed("evaluate", out, "--json"))
    assert scores["accuracy"] == pytest.approx(run.result["test_accuracy"])
    assert scores["loss"] == pytest.approx(run.result["test_loss"], rel=1e-5)
    picture = colours / "test" / "red" / "0.png"
    likely = json.loads(typed("predict", out, picture, "--json"))[0]["classes"]
    assert sum(one["probability"] for one in likely) == pytest.approx(1)
    typed("report", out, "--out", tmp_path / "report", "--no-confusion")
    page = (tmp_path / "report" / "index.html").read_text()
    assert f"<td>{method}</td>" in page
    typed("export", out, "--out", tmp_path / "m.safetensors")
    exported, classes = bpt.load_exported(tmp_path / "m.safetensors")
    model, backbone = run.load_model()
    images = torch.randn(2, 3, *backbone.image_size, generator=seeded())
    assert classes == run.classes and type(exported).__name__ != "PeftViT"
    assert torch.allclose(exported(images), model(images), atol=1e-5)


def test_interrupted_lora_comes_to_the_same_bits(peft, colours, tmp_path):
    recipe = Recipe(
        dataset="folder", data=str(colours), method="lora", model="timm:test_vit",
        weights="random", image_size=32, epochs=2, batch_size=8,
    )  # fmt: skip

    def stop(done, total):
        if done == 4:  # the first step of the second epoch, in the middle of dropout's draws
            os.kill(os.getpid(), signal.SIGTERM)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = bpt.train(recipe, tmp_path / "whole", device="cpu")
        with pytest.raises(bpt.Interrupted):
            bpt.train(recipe, tmp_path / "run", device="cpu", progress=stop)
        resumed = bpt.train(recipe, tmp_path / "run", device="cpu", resume=True)
    finally:
        torch.set_num_threads(before)
    one, two = (load_file(tmp_path / name / "prompt.safetensors") for name in ("whole", "run"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert whole["test_loss"] == resumed["test_loss"]
