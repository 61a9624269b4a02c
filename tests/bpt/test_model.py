"""The prompted model against a plain, slow forward written from the definition."""

import copy

import numpy as np
import pytest
import timm
import torch
from support import DEPTH, DIM, HEADS, SIZE, backbone_of, vit
from torch.nn import functional as F

from bpt.model import PromptedViT
from bpt.placement import parse_placement
from bpt.prompt import PlainPrompt, PromptOptions, build_prompt
from burst.errors import BurstError, CheckpointError, ShapeError, UnknownName, UnsupportedModel

M, CLASSES = 3, 5
PLACEMENTS = ("shallow", "deep", "last:1", "last:2", "first:2", "1+1", "interval:3")


def images(number=2):
    return torch.randn(number, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def model_of(placement="shallow", *, method="vpt", vit_options=None, pooling="token", **options):
    backbone = backbone_of(vit(**(vit_options or {})), pooling=pooling)
    generator = torch.Generator().manual_seed(5)
    chosen = PromptOptions(method=method, num_prompts=M, rank=2)
    prompts = {
        block: build_prompt(
            chosen,
            width=DIM,
            patch_size=4,
            generator=generator,
            whitening=torch.randn(DIM, DIM, generator=generator),
            tokens=torch.randn(M, DIM, generator=generator),
        )
        for block in (parse_placement(placement, DEPTH) if placement else ())
    }
    return PromptedViT(backbone, prompts, CLASSES, generator=generator, **options)


def by_hand(model, batch, prefix=1):
    """Logits in float64, image by image, from weights alone."""
    vit, w = model.vit, {k: v.double() for k, v in model.vit.state_dict().items()}
    prompts = {block: values.double() for block, values in model.prompt_values().items()}
    rows = []
    for image in batch.double():
        tokens, held = first_tokens(w, image, prefix), 0
        for i in range(len(vit.blocks)):
            if i in prompts:
                tokens = torch.cat([tokens[:prefix], prompts[i], tokens[prefix + held :]])
                held = M
            tokens = block_by_hand(w, f"blocks.{i}.", tokens)
            if model.after == "drop" and prompts and i == max(prompts):
                tokens, held = torch.cat([tokens[:prefix], tokens[prefix + held :]]), 0
        rows.append(read(model, tokens, prefix, held, w))
    head = model.head
    return torch.stack(rows) @ head.weight.double().T + head.bias.double()


def first_tokens(w, image, prefix):
    kernel, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
    grid = range(0, SIZE, 4)
    patches = [(kernel * image[:, r : r + 4, c : c + 4]).sum((1, 2, 3)) for r in grid for c in grid]
    front = [w["cls_token"][0]] + ([w["reg_token"][0]] if "reg_token" in w else [])
    return torch.cat([*front, torch.stack(patches) + bias]) + w["pos_embed"][0]


def norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], eps=1e-6)


def block_by_hand(w, at, x):
    y = norm(w, at + "norm1", x)
    q, k, v = (y @ w[at + "attn.qkv.weight"].T + w[at + "attn.qkv.bias"]).chunk(3, dim=1)
    size, parts = DIM // HEADS, []
    for h in range(HEADS):
        s = slice(h * size, (h + 1) * size)
        scores = q[:, s] @ k[:, s].T / size**0.5
        parts.append(scores.softmax(dim=1) @ v[:, s])
    x = x + torch.cat(parts, dim=1) @ w[at + "attn.proj.weight"].T + w[at + "attn.proj.bias"]
    y = norm(w, at + "norm2", x) @ w[at + "mlp.fc1.weight"].T + w[at + "mlp.fc1.bias"]
    return x + F.gelu(y) @ w[at + "mlp.fc2.weight"].T + w[at + "mlp.fc2.bias"]


def read(model, tokens, prefix, held, w):
    prompts, patches = tokens[prefix : prefix + held], tokens[prefix + held :]
    if model.pooling == "token":
        return norm(w, "norm", tokens)[0]
    chosen = {"prompts+patches": [prompts, patches], "patches": [patches], "prompts": [prompts]}
    return norm(w, "norm", torch.cat(chosen[model.pooling]).mean(dim=0))


def assert_as_by_hand(model, prefix=1):
    expected = by_hand(model, images(), prefix).detach()
    torch.testing.assert_close(model(images()).double().detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("after", ["carry", "drop"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_logits_are_the_definitions_for_every_placement(placement, after):
    assert_as_by_hand(model_of(placement, after=after))


@pytest.mark.parametrize("pooling", ["prompts+patches", "patches", "prompts", "token"])
def test_logits_are_the_definitions_for_every_pooling(pooling):
    model = model_of("1+1")
    assert_as_by_hand(PromptedViT(model.info, dict(prompts_of(model)), CLASSES, pooling=pooling))


def prompts_of(model):
    return ((int(block), prompt) for block, prompt in model.prompts.items())


@pytest.mark.parametrize("method", ["spt", "bpt-fwhiten", "bpt-twhiten", "bpt-bilinear"])
def test_logits_are_the_definitions_for_every_method(method):
    assert_as_by_hand(model_of("last:2", method=method))


def test_without_prompts_it_is_the_linear_probe():
    model = model_of(None)
    expected = model.vit.forward_features(images())[:, 0]
    assert torch.equal(model.features(images()), expected)
    assert not model.features(images()).requires_grad


def test_prompts_stand_behind_registers():
    options = {"reg_tokens": 2, "no_embed_class": False}
    assert_as_by_hand(model_of("1+1", vit_options=options), prefix=3)


def test_a_backbone_that_averages_is_read_by_its_pretrained_norm():
    model = model_of("shallow", pooling="avg")
    assert model.pooling == "prompts+patches"
    assert_as_by_hand(model)


def test_a_vit_with_its_norm_behind_the_pool_is_read_by_that_norm():
    options = {"global_pool": "avg", "class_token": False}
    model = model_of("shallow", vit_options=options, pooling="avg")
    tokens = {}
    model.vit.fc_norm.register_forward_pre_hook(lambda _, given: tokens.update(x=given[0]))
    model(images())
    assert tokens["x"].shape == (2, DIM)


def test_the_order_of_prompts_does_not_matter():
    model = model_of("shallow")
    before = model(images())
    with torch.no_grad():
        model.prompts["0"].values.copy_(model.prompts["0"].values[[2, 0, 1]])
    torch.testing.assert_close(model(images()), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["bpt-bilinear", "bpt-fwhiten", "vpt"])
def test_folded_is_the_same_function(method):
    model = model_of("1+1", method=method, after="drop")
    folded = model.folded()
    assert all(isinstance(prompt, PlainPrompt) for prompt in folded.prompts.values())
    torch.testing.assert_close(folded(images()), model(images()))


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("vpt", ["prompts.2.values"]),
        ("bpt-fwhiten", ["prompts.2.values"]),
        ("bpt-twhiten", ["prompts.2.values", "prompts.2.whitening"]),
        ("bpt-bilinear", ["prompts.2.left", "prompts.2.right"]),
    ],
)
def test_exactly_prompts_and_head_are_trained(method, names):
    model = model_of("last:1", method=method).train()
    assert sorted(model.trained_state()) == sorted([*names, "head.weight", "head.bias"])
    frozen = copy.deepcopy(model.vit.state_dict())
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    before = model.trained_state()
    F.cross_entropy(model(images()), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert all(torch.equal(frozen[name], value) for name, value in model.vit.state_dict().items())
    assert all(not torch.equal(before[name], v) for name, v in model.trained_state().items())
    assert all(p.grad is None for p in model.vit.parameters())


def test_training_leaves_the_backbone_in_eval_mode():
    model = model_of(vit_options={"drop_path_rate": 0.5, "proj_drop_rate": 0.5}).train()
    assert model.training
    assert not any(module.training for module in model.vit.modules())
    assert torch.equal(model(images()), model(images()))
    model.vit.train()  # as its owner may do
    assert not any(module.training for module in model.train().vit.modules())
    assert all(prompt.training for prompt in model.prompts.values())


def test_blocks_before_the_first_prompt_run_without_autograd():
    model, seen = model_of("last:1").train(), {}
    for i, block in enumerate(model.vit.blocks):
        block.register_forward_hook(lambda _, __, out, i=i: seen.update({i: out}))
    model(images())
    assert [seen[i].requires_grad for i in range(DEPTH)] == [False, False, True]


def test_a_prompt_is_computed_once_whatever_the_batch():
    model, calls = model_of("shallow", method="bpt-bilinear"), []
    model.prompts["0"].register_forward_hook(lambda _, __, out: calls.append(out.shape))
    model(images(7))
    assert calls == [(M, DIM)]


def test_gradients_are_those_of_finite_differences():
    model = model_of("last:2", method="bpt-bilinear").double().train()
    batch, labels = images().double(), torch.tensor([0, 1])
    F.cross_entropy(model(batch), labels).backward()
    left = model.prompts["1"].left
    step = 1e-5
    with torch.no_grad():
        left[1, 0] += step
        above = float(F.cross_entropy(model(batch), labels))
        left[1, 0] -= 2 * step
        below = float(F.cross_entropy(model(batch), labels))
    slope = (above - below) / (2 * step)
    assert float(left.grad[1, 0]) == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_trained_tensors_are_taken_over_strictly():
    model, other = model_of("1+1"), model_of("1+1")
    state = {name: value + 1 for name, value in model.trained_state().items()}
    other.load_trained_state(state)
    assert all(torch.equal(v, state[name]) for name, v in other.trained_state().items())
    short = {name: value for name, value in state.items() if name != "prompts.2.values"}
    wrong = short | {"prompts.1.values": torch.zeros(1), "head.bias": torch.zeros(2)}
    words = r"prompts.2.values is missing; prompts.1.values is unexpected; head.bias has shape \(2,"
    with pytest.raises(CheckpointError, match=words):
        other.load_trained_state(wrong)
    assert all(torch.equal(v, state[name]) for name, v in other.trained_state().items())


def test_autocast_computes_in_its_own_type_and_trains_in_float32():
    model = model_of("shallow", method="bpt-bilinear").train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images())
    assert logits.dtype == torch.bfloat16
    logits.float().square().sum().backward()
    assert model.prompts["0"].left.grad.dtype == torch.float32
    np.testing.assert_allclose(logits.float().detach(), model(images()).detach(), atol=0.05)


@pytest.mark.parametrize("method", ["bpt-fwhiten", "bpt-bilinear"])
def test_under_autocast_the_folded_model_gives_the_same_bits(method):
    model = model_of("last:2", method=method).eval()
    folded = model.folded()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(folded.features(images()), model.features(images()))


def test_the_folded_model_can_be_exported():
    model = model_of("1+1", method="bpt-bilinear").folded().eval()
    program = torch.export.export(model, (images(),))
    torch.testing.assert_close(program.module()(images()), model(images()))


@pytest.mark.parametrize("head_norm", ["none", "batch"])
def test_a_model_is_made_and_folded_without_the_global_random_state(head_norm):
    backbone = backbone_of(vit())
    before = torch.get_rng_state()
    one = torch.Generator()
    PromptedViT(backbone, {}, CLASSES, head_norm=head_norm, generator=one).folded()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options, says",
    [({"head_norm": "Batch"}, "did you mean batch"), ({"dropout": 2.0}, "dropout is")],
)
def test_an_option_of_the_model_is_checked_where_it_is_made(options, says):
    with pytest.raises(BurstError, match=says):
        model_of(**options)


def test_the_head_starts_as_asked_and_by_its_generator():
    one, two = model_of(head_std=0.01), model_of(head_std=0.01)
    assert torch.equal(one.head.weight, two.head.weight)
    assert float(one.head.weight.detach().std()) == pytest.approx(0.01, rel=0.2)
    assert not one.head.bias.detach().any()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"pooling": "mean"}, UnknownName, "patches"),
        ({"after": "keep"}, UnknownName, "carry"),
        ({"pooling": "prompts", "after": "drop"}, BurstError, "carried to the last block"),
    ],
)
def test_bad_options_are_refused(change, error, words):
    model = model_of()
    with pytest.raises(error, match=words):
        PromptedViT(model.info, dict(prompts_of(model)), CLASSES, **change)


def test_prompts_that_do_not_fit_are_refused():
    backbone = backbone_of(vit())
    with pytest.raises(ShapeError, match=r"expected one \(m, 32\)"):
        PromptedViT(backbone, {0: PlainPrompt(torch.zeros(2, 8))}, CLASSES)
    two = {0: PlainPrompt(torch.zeros(2, DIM)), 1: PlainPrompt(torch.zeros(3, DIM))}
    with pytest.raises(ShapeError, match="expected one"):
        PromptedViT(backbone, two, CLASSES)
    with pytest.raises(ShapeError, match="blocks 0 to 2"):
        PromptedViT(backbone, {3: PlainPrompt(torch.zeros(2, DIM))}, CLASSES)


def test_models_that_are_no_plain_vit_are_refused():
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1,), num_heads=(3,))
    with pytest.raises(UnsupportedModel, match="SwinTransformer"):
        PromptedViT(backbone_of(swin), {}, CLASSES)
    no_class_token = vit(class_token=False, global_pool="avg")
    with pytest.raises(UnsupportedModel, match="no class token"):
        PromptedViT(backbone_of(no_class_token), {}, CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["shallow", "last:1", "1+1"])
def test_a_compiled_model_is_one_graph_with_the_same_values_and_gradients(placement):
    model = model_of(placement, method="bpt-bilinear")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    found = {}
    for name, forward in (("plain", model), ("compiled", compiled)):
        model.zero_grad()
        forward(images()).logsumexp(1).sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        found[name] = forward(images()).detach(), gradients
    assert torch.equal(found["plain"][0], found["compiled"][0])
    for name, gradient in found["plain"][1].items():
        assert torch.allclose(gradient, found["compiled"][1][name], rtol=1e-5, atol=1e-7)


def test_a_normed_head_is_maes_and_folds_into_one_matrix():
    """main_linprobe.py: BatchNorm1d without weights, eps 1e-6, in front of the head."""
    torch.manual_seed(0)
    model = PromptedViT(backbone_of(vit()), {}, 3, head_norm="batch").train()
    theirs = torch.nn.BatchNorm1d(32, affine=False, eps=1e-6)
    for _ in range(3):
        features = 3 + 2 * torch.randn(7, 32)
        expected = torch.nn.functional.linear(theirs(features), model.head.weight, model.head.bias)
        assert torch.allclose(model.head(features), expected, atol=1e-6)
    state = model.trained_state()
    assert set(state) == {
        "head.weight",
        "head.bias",
        "head.norm.running_mean",
        "head.norm.running_var",
    }
    assert torch.equal(state["head.norm.running_var"], theirs.running_var)
    batch = images(4)
    folded = model.eval().folded()
    assert type(folded.head) is torch.nn.Linear
    assert torch.allclose(folded(batch), model(batch), atol=1e-5)
    other = PromptedViT(backbone_of(vit()), {}, 3, head_norm="batch").eval()
    other.load_trained_state(state)
    assert torch.equal(other(batch), model(batch))
