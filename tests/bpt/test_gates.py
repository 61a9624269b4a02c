"""GateVPT against its definition: by hand in float64, and by its laws."""

import copy
import json

import pytest
import timm
import torch
from support import DEPTH, DIM, HEADS, SIZE, backbone_of, vit
from torch.nn import functional as F
from typer.testing import CliRunner

import bpt
from bpt.construction import build_model, count_parameters
from bpt.gates import Gates
from bpt.model import PromptedViT
from bpt.optimisation import make_optimizer, parameter_groups
from bpt.prompt import PlainPrompt, PromptOptions
from bpt.recipe import Recipe
from burst.errors import BurstError, CheckpointError, UnsupportedModel
from cli import bpt as command

M, CLASSES = 3, 5
ROWS = slice(1, 1 + M)


def images(number=2):
    return torch.randn(number, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def model_of(*, logits=None, temperatures=None, gated=True, options=None, **changes):
    """A GateVPT, or with `gated=False` a VPT, of random but fixed prompts and head."""
    backbone = backbone_of(vit(**(options or {})))
    generator = torch.Generator().manual_seed(5)
    prompt = PlainPrompt(torch.randn(M, DIM, generator=generator))
    gates = Gates(DEPTH) if gated else None
    with torch.no_grad():
        if logits is not None:
            gates.logits.copy_(torch.as_tensor(logits))
        if temperatures is not None:
            gates.temperatures.copy_(torch.as_tensor(temperatures))
    return PromptedViT(
        backbone, {0: prompt}, CLASSES, gates=gates, head_std=1.0, generator=generator, **changes
    ).eval()


LOGITS, TEMPERATURES = [0.4, -1.1], [0.5, 1.75, 3.0]


@torch.no_grad()
def by_hand(model, batch, prefix=1):
    """Logits in float64, token by token and head by head, from weights alone."""
    w = {name: value.double() for name, value in model.info.model.state_dict().items()}
    g = [1 / (1 + torch.exp(-one)) for one in model.gates.logits.detach().double()]
    rows = []
    for image in batch:
        patches = model.info.model.patch_embed(image[None])[0].double()
        front = [w["cls_token"][0]] + ([w["reg_token"][0]] if prefix > 1 else [])
        x = torch.cat([*front, patches]) + w["pos_embed"][0]
        x = torch.cat([x[:prefix], model.prompts["0"].values.detach().double(), x[prefix:]])
        for i in range(DEPTH):
            tau = model.gates.temperatures[i].double()
            out = block_by_hand(w, f"blocks.{i}.", x, tau)
            for row in range(prefix, prefix + M) if i < DEPTH - 1 else ():
                out[row] = g[i] * out[row] + (1 - g[i]) * x[row]
            x = out
        if model.pooling == "token":
            read = norm(w, "norm", x)[0]
        else:
            read = norm(w, "norm", x[prefix:].mean(0))
        rows.append(model.head.weight.double() @ read + model.head.bias.double())
    return torch.stack(rows)


def norm(w, name, x):
    width = x.shape[-1:]
    return F.layer_norm(x, width, w[name + ".weight"], w[name + ".bias"], eps=1e-6)


def block_by_hand(w, at, x, tau):
    y = norm(w, at + "norm1", x)
    q, k, v = (y @ w[at + "attn.qkv.weight"].T + w[at + "attn.qkv.bias"]).chunk(3, dim=1)
    size, mixed = DIM // HEADS, torch.zeros_like(x)
    for h in range(HEADS):
        s = slice(h * size, (h + 1) * size)
        qs, ks = q[:, s], k[:, s]
        if at + "attn.q_norm.weight" in w:
            qs, ks = norm(w, at + "attn.q_norm", qs), norm(w, at + "attn.k_norm", ks)
        for i in range(len(x)):
            scores = torch.exp(ks @ qs[i] / size**0.5 / tau)
            mixed[i, s] = (scores / scores.sum()) @ v[:, s]
    x = x + mixed @ w[at + "attn.proj.weight"].T + w[at + "attn.proj.bias"]
    y = norm(w, at + "norm2", x) @ w[at + "mlp.fc1.weight"].T + w[at + "mlp.fc1.bias"]
    return x + F.gelu(y) @ w[at + "mlp.fc2.weight"].T + w[at + "mlp.fc2.bias"]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, {}),
        ({}, {"pooling": "prompts+patches"}),
        ({"qk_norm": True}, {}),  # a scale in front of this norm would be undone by it
        ({"reg_tokens": 2}, {"pooling": "prompts+patches"}),
    ],
)
def test_logits_are_the_definitions(options, changes, fused):
    prefix = 3 if "reg_tokens" in options else 1
    if prefix > 1:
        options = {**options, "no_embed_class": False}
    model = model_of(logits=LOGITS, temperatures=TEMPERATURES, options=options, **changes)
    for block in model.vit.blocks:
        block.attn.fused_attn = fused
    expected = by_hand(model, images(), prefix)
    torch.testing.assert_close(model(images()).double(), expected, rtol=1e-4, atol=1e-5)
    if "qk_norm" in options:  # and it is no matter of rounding
        plain = model_of(logits=LOGITS, options=options, **changes)
        assert (plain(images()).double() - expected).abs().max() > 1e-2


def test_open_gates_at_temperature_1_are_plain_vpt():
    gated, plain = model_of(logits=[1e4, 1e4]), model_of(gated=False)
    torch.testing.assert_close(gated(images()), plain(images()))  # which computes less of a block
    other = model_of(logits=[1e4, 1e4], temperatures=[1.0, 1.0, 0.9])
    assert not torch.allclose(other(images()), model_of(gated=False)(images()), atol=1e-3)


def inputs_of_blocks(model):
    seen = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        for block in model.vit.blocks
    ]
    model(images())
    for hook in hooks:
        hook.remove()
    return seen


def test_shut_gates_show_every_block_the_same_prompt():
    model = model_of(logits=[-1e4, -1e4])
    for x in inputs_of_blocks(model):
        assert torch.equal(x[:, ROWS], model.prompts["0"]().expand(2, -1, -1))
    start = model_of()  # sigmoid(-10) of what a block does is left
    for x in inputs_of_blocks(start):
        torch.testing.assert_close(
            x[:, ROWS], start.prompts["0"]().expand(2, -1, -1), atol=1e-3, rtol=0
        )


def test_other_rows_are_the_blocks_own_output_and_the_last_block_has_no_gate():
    model = model_of(logits=LOGITS)
    before = inputs_of_blocks(model)
    behind, _ = model.tokens(images())
    for i, (block, x, after) in enumerate(
        zip(model.vit.blocks, before, [*before[1:], behind], strict=True)
    ):
        plain = block(x)
        assert torch.equal(plain[:, :1], after[:, :1])
        assert torch.equal(plain[:, 1 + M :], after[:, 1 + M :])
        assert torch.equal(plain[:, ROWS], after[:, ROWS]) == (i == DEPTH - 1)


@pytest.mark.parametrize("training", [True, False])
def test_temperatures_outside_their_range_are_brought_back_before_they_are_used(training):
    outside = model_of(temperatures=[-3.0, 100.0, 0.5]).train(training)
    inside = model_of(temperatures=[0.01, 10.0, 0.5])
    with torch.inference_mode(mode=not training):
        assert torch.equal(outside(images()), inside(images()))
    assert torch.equal(outside.gates.temperatures, torch.tensor([0.01, 10.0, 0.5]))
    assert outside.gates.temperatures.requires_grad


def test_a_temperature_that_was_brought_back_still_learns():
    model = model_of(temperatures=[50.0, 1.0, -2.0])
    model(images()).square().sum().backward()
    assert (model.gates.temperatures.grad != 0).all()
    again = model(images()) + model(images())  # two ways forward, then one back
    again.sum().backward()


@pytest.mark.parametrize("name", ["logits", "temperatures"])
@pytest.mark.parametrize("fused", [True, False])
def test_gradients_are_finite_differences(name, fused):
    model = model_of(logits=LOGITS, temperatures=TEMPERATURES, options={"qk_norm": True}).double()
    for block in model.vit.blocks:
        block.attn.fused_attn = fused
    batch = images().double()

    def loss():
        return model(batch).square().sum()

    loss().backward()
    parameter, step = getattr(model.gates, name), 1e-5
    for place in range(len(parameter)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[place] += sign * step
                values.append(loss().item())
                parameter[place] -= sign * step
        expected = (values[0] - values[1]) / (2 * step)
        assert float(parameter.grad[place]) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_the_users_model_stays_as_it_is_and_shares_its_weights():
    own = vit().eval()
    names, before = [*own.state_dict()], own(images())
    model = PromptedViT(backbone_of(own), {0: PlainPrompt(torch.zeros(M, DIM))}, 2, gates=Gates(3))
    with torch.no_grad():
        model.gates.temperatures.fill_(2.0)
    model(images()).sum().backward()
    assert [*own.state_dict()] == names
    assert torch.equal(own(images()), before)
    assert not any(parameter.requires_grad for parameter in own.parameters())
    assert model.vit.blocks[0].attn.qkv.weight is own.blocks[0].attn.qkv.weight


def test_what_is_trained_is_named_once_and_counted():
    model = model_of()
    trained = model.trained_state()
    assert {name: tuple(value.shape) for name, value in trained.items()} == {
        "gates.logits": (DEPTH - 1,),
        "gates.temperatures": (DEPTH,),
        "prompts.0.values": (M, DIM),
        "head.weight": (CLASSES, DIM),
        "head.bias": (CLASSES,),
    }
    plain, gated = count_parameters(model_of(gated=False)), count_parameters(model)
    for name in ("trained", "prompts", "total"):
        assert gated[name] - plain[name] == 2 * DEPTH - 1
    assert gated["prompts"] == PromptOptions(method="gatevpt", num_prompts=M).parameters(DIM, DEPTH)


def test_a_vit_b_has_76800_and_23_numbers():
    model = vit(img_size=32, patch_size=16, embed_dim=768, depth=12, num_heads=12, mlp_ratio=0.01)
    recipe = Recipe(method="gatevpt", num_prompts=100)
    counts = count_parameters(build_model(recipe, backbone_of(model), 10))
    assert counts["prompts"] == 76_800 + 23
    assert PromptOptions(method="gatevpt").parameters(768, depth=12) == 76_823


def test_it_starts_as_published():
    model = build_model(Recipe(method="gatevpt", num_prompts=M), backbone_of(vit()), CLASSES)
    bound = (6 / (3 * 4**2 + DIM)) ** 0.5
    assert 0.5 * bound < float(model.prompt_values()[0].abs().max()) <= bound
    assert model.gates.logits.tolist() == [-10.0] * (DEPTH - 1)
    assert model.gates.temperatures.tolist() == [1.0] * DEPTH
    recipe = bpt.recipe_for("cub", method="gatevpt")
    model = build_model(recipe, backbone_of(vit()), CLASSES)
    assert model.gates.logits.sigmoid().tolist() == pytest.approx([0.0066929] * (DEPTH - 1), 1e-4)
    assert (recipe.optimizer, recipe.lr, recipe.batch_size) == ("sgd", 0.1, 64)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.prompt_dropout) == (100, 10, 0.1)
    assert (recipe.weight_decay, recipe.head_weight_decay) == (0.0, 0.0)
    assert (recipe.gate_init, recipe.num_prompts) == (5.0, 100)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_gates_and_temperatures_do_not_decay(optimizer):
    options = {"weight_decay": 0.3, "optimizer": optimizer, "gate_init": 1.0}
    recipe = Recipe(method="gatevpt", num_prompts=M, **options)
    model = build_model(recipe, backbone_of(vit()), CLASSES)
    groups = {group["name"]: group for group in parameter_groups(model, recipe)}
    held = {id(parameter) for parameter in groups["vectors"]["params"]}
    assert {id(model.gates.logits), id(model.gates.temperatures)} < held
    assert groups["vectors"]["weight_decay"] == 0 and groups["prompts"]["weight_decay"] == 0.3
    before = model.trained_state()
    model(images()).square().sum().backward()
    make_optimizer(model, recipe).step()
    after = model.trained_state()
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_a_folded_or_copied_model_is_the_same_function_with_gates_of_its_own():
    model = model_of(logits=LOGITS, temperatures=TEMPERATURES)
    for other in (model.folded(), copy.deepcopy(model)):
        assert torch.equal(other(images()), model(images()))
        with torch.no_grad():
            other.gates.temperatures.fill_(5.0)
        assert not torch.allclose(other(images()), model(images()), atol=1e-3)
        assert model.gates.temperatures.tolist() == TEMPERATURES


def test_blocks_computed_again_on_the_way_back_give_the_same_gradients():
    one, two = (model_of(logits=LOGITS, temperatures=TEMPERATURES) for _ in range(2))
    two.checkpoint_activations = True
    for model in (one, two):
        model(images()).square().sum().backward()
    for name, parameter in one.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, two.get_parameter(name).grad), name


@pytest.mark.slow
def test_it_compiles_and_runs_under_autocast():
    model = model_of(logits=LOGITS, temperatures=[0.5, 1.7, 30.0])
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(images()), model(images()))
    assert float(model.gates.temperatures[2].detach()) == 10.0
    compiled(images()).sum().backward()
    assert (model.gates.temperatures.grad != 0).any()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images())
    torch.testing.assert_close(half.float(), model(images()), rtol=0.1, atol=0.2)


@pytest.mark.parametrize("gated", [True, False])
def test_dropout_leaves_out_a_share_of_the_prompts_values_in_training_alone(gated):
    model = model_of(gated=gated, dropout=0.25)
    assert torch.equal(model(images()), model_of(gated=gated)(images()))
    torch.manual_seed(0)
    model.train()
    shown = torch.cat([inputs_of_blocks(model)[0][:, ROWS] for _ in range(50)])
    assert not torch.equal(shown[0], shown[1])  # drawn anew for each image
    prompt = model.prompts["0"]().detach()
    kept = shown != 0
    assert float((~kept).float().mean()) == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(shown[kept], (prompt / 0.75).expand_as(shown)[kept])
    model.eval()
    assert torch.equal(model(images()), model_of(gated=gated)(images()))


def test_what_it_cannot_have_is_refused_in_one_line():
    for options in ({"placement": "deep"}, {"placement": "last:1"}, {"after": "drop"}):
        with pytest.raises(BurstError, match="gatevpt has one prompt") as caught:
            Recipe(method="gatevpt", **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(BurstError, match="makes no use of after"):
        bpt.recipe_for("digits", method="gatevpt", after="carry")
    for name, value in {"gate_init": 5.0, "prompt_dropout": 0.1}.items():
        with pytest.raises(BurstError, match=f"makes no use of {name}"):
            bpt.recipe_for("digits", method="bpt-bilinear", **{name: value})
    with pytest.raises(BurstError, match="depth is 0"):
        Gates(0)
    with pytest.raises(BurstError, match="gate_init is inf"):
        Recipe(method="gatevpt", gate_init=float("inf"))
    with pytest.raises(BurstError, match="gate_init is nan"):
        Gates(3, start=float("nan"))
    with pytest.raises(BurstError, match="prompt_dropout is 1"):
        Recipe(method="vpt", prompt_dropout=1.0)


def test_an_attention_without_a_place_for_temperatures_is_refused():
    for name in ("ParallelScalingBlock", "ParallelThingsBlock"):
        block = getattr(timm.models.vision_transformer, name)
        with pytest.raises(UnsupportedModel, match=r"blocks\.0 attends in a .* of timm") as caught:
            build_model(Recipe(method="gatevpt"), backbone_of(vit(block_fn=block)), CLASSES)
        assert "\n" not in str(caught.value)


def run(*arguments):
    result = CliRunner().invoke(command.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def trained(colours, tmp_path_factory):
    """A run of two epochs, as a user types it."""
    out = tmp_path_factory.mktemp("gates") / "run"
    options = ("--method", "gatevpt", "--gate-init", "0.5", "--prompt-dropout", "0.1")
    small = ("--model", "python:support:vit", "--num-prompts", "4")
    length = ("--epochs", "2", "--batch-size", "8", "--device", "cpu", "--pooling", "patches")
    result = run("train", f"folder:{colours}", *small, *length, *options, "--out", out)
    return out, result


@pytest.mark.slow
def test_from_the_option_to_the_number_in_the_file(trained, tmp_path):
    out, result = trained
    kept = bpt.open_run(out)
    assert (kept.recipe.gate_init, kept.recipe.prompt_dropout) == (0.5, 0.1)
    depth = len(kept.load_model()[0].vit.blocks)
    width = kept.trained_state()["prompts.0.values"].shape[1]
    assert kept.result["parameters"]["prompts"] == 4 * width + 2 * depth - 1
    state = kept.trained_state()
    assert state["gates.logits"].shape == (depth - 1,)
    assert not torch.equal(state["gates.logits"], torch.full((depth - 1,), -0.5))
    assert not torch.equal(state["gates.temperatures"], torch.ones(depth))
    assert "gatevpt" not in result.stderr  # nothing to warn of
    record = json.loads(run("evaluate", out, "--json").stdout)
    assert record["accuracy"] == pytest.approx(kept.result["test_accuracy"])
    shown = run("report", out, "--no-confusion", "--out", tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "gatevpt" in shown.stdout and "at first sigmoid(-0.5)" in page
    for value in state["gates.temperatures"].tolist():
        assert f"{value:.4g}" in page


def test_a_training_that_goes_on_comes_to_the_same_numbers(trained, tmp_path, monkeypatch):
    out, _ = trained
    kept = bpt.open_run(out)

    class Stop(Exception):
        pass

    step = bpt.engine.Trainer.step

    def stopping(self, batch):
        stopping.done += 1
        if stopping.done > 4:
            raise Stop
        return step(self, batch)

    stopping.done = 0
    monkeypatch.setattr(bpt.engine.Trainer, "step", stopping)
    with pytest.raises(Stop):
        bpt.train(kept.recipe, tmp_path / "again", device="cpu")
    monkeypatch.setattr(bpt.engine.Trainer, "step", step)
    bpt.train(kept.recipe, tmp_path / "again", device="cpu", resume=True)
    theirs = bpt.open_run(tmp_path / "again").trained_state()
    assert all(torch.equal(value, theirs[name]) for name, value in kept.trained_state().items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.9's own
def test_exported_file_and_program_give_the_runs_logits(trained, tmp_path):
    out, _ = trained
    file, program = tmp_path / "m.safetensors", tmp_path / "m.pt2"
    run("export", out, "--out", file, "--program", program)
    theirs, backbone = bpt.open_run(out).load_model()
    batch = torch.randn(3, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    model, _ = bpt.load_exported(file)
    assert torch.allclose(model(batch), theirs(batch), atol=1e-5)
    assert torch.equal(model.gates.temperatures, theirs.gates.temperatures)
    loaded = torch.export.load(program).module()
    assert torch.allclose(loaded(batch[:1]), theirs(batch[:1]), atol=1e-5)
    assert torch.allclose(loaded(batch), theirs(batch), atol=1e-5)
    state = theirs.trained_state()
    del state["gates.logits"]
    with pytest.raises(CheckpointError, match=r"gates\.logits is missing"):
        theirs.load_trained_state(state)
