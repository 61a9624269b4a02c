"""Every class of transformers that is known, against the scores that it computes itself."""

import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hf_models import CROSS, MODELS, REFUSED, text
from scores import close, omissions, recorded_scores
from torch import nn

from burst.adapters import (
    AttentionBlock,
    describe_blocks,
    find_blocks,
    num_prefix_tokens,
)
from burst.adapters.norms import first_norm
from burst.adapters.registry import ROTARY
from burst.adapters.transformers_text import ALIBI, SINK, SOFT_CAP
from burst.errors import UnsupportedModel
from burst.projection import projection
from burst.tokens import capture

pytest.importorskip("transformers", reason="install the extra [hf]")
BY_NAME = {known.name: known for known in MODELS}


@dataclass(frozen=True)
class Reading:
    """What one attention of a block read, the scores it made of it, and its norm's output."""

    block: AttentionBlock
    tokens: torch.Tensor
    scores: torch.Tensor
    normed: torch.Tensor | None

    @property
    def weights(self):
        return projection(self.block.attention)


def turning(rotate, length, x, *rest, **kwargs):
    """A function that turns queries or keys (B, h, N, d_h) as this call of `rotate` turned its own.

    Some turn queries and keys together, some one by one; some only the first entries of each head.
    """
    width = x.shape[-1]

    def turn(y):
        part = y[..., :width]
        if len(rest) > 2:
            part = rotate(part, part, *rest[1:], **kwargs)[0]
        elif x.shape[1] == length:  # GPT-J turns (B, N, h, d_h)
            part = rotate(part.transpose(1, 2), *rest).transpose(1, 2)
        else:
            part = rotate(part, *rest)
        return torch.cat((part, y[..., width:]), dim=-1)

    return turn


@contextmanager
def recorded_turns(attention, length):
    """A list of how queries and keys are turned, call by call."""
    module = sys.modules[type(attention).__module__]
    turns, rotate = [], getattr(module, "apply_rotary_pos_emb", None)

    def record(*args, **kwargs):
        turns.append(turning(rotate, length, *args, **kwargs))
        return rotate(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        if rotate:
            patch.setattr(module, "apply_rotary_pos_emb", record)
        yield turns


@contextmanager
def recorded_norms(blocks):
    """What the norm named by each block's adapter gave last, by the block's index."""
    outputs, handles = {}, []
    for block in blocks:
        norm = dict(block.module.named_children()).get(block.adapter.norm)
        if norm is not None:
            record = partial(lambda index, *call: outputs.update({index: call[-1]}), block.index)
            handles.append(norm.register_forward_hook(record))
    yield outputs
    for handle in handles:
        handle.remove()


def paired(blocks, read, scores, norms):
    """The readings with the scores that follow from each: others are of routers and poolers."""
    left, readings = iter(scores), []
    for index, x in read:
        n = x.shape[1]
        own = next(s for s in left if s.ndim > 2 and s.shape[-2] == n and s.shape[-1] in (n, n + 1))
        own = own.view(len(x), -1, *own.shape[-2:])
        readings.append(Reading(blocks[index], x, own, norms.get(index)))
    return readings


def run(model, inputs):
    """Readings, turns and output of a forward pass in which all that is measured is read.

    There is one turn for each reading of a rotary attention.
    """
    blocks = find_blocks(model)
    chosen = [block.index for block in blocks if block.adapter.read]
    read = []
    with (
        torch.no_grad(),
        recorded_scores() as scores,
        recorded_norms(blocks) as norms,
        recorded_turns(blocks[chosen[0]].attention, next(iter(inputs.values())).shape[1]) as turns,
        capture(model, chosen, on_tokens=lambda index, x: read.append((index, x))),
    ):
        torch.manual_seed(1)
        output = model(**inputs)[0]
    readings = paired(blocks, read, scores, norms)
    rotary = sum(ROTARY in reading.weights.omitted for reading in readings)
    step = len(turns) // max(rotary, 1)
    return readings, turns[::step] if rotary else [], output


def turned_scores(reading, turn):
    """q k^T times the scale, of queries and keys that are turned as the model turned its own."""
    weights, x = reading.weights, reading.tokens
    pairs = (weights.w_q, weights.b_q), (weights.w_k, weights.b_k)
    q, k = (turn(x.unsqueeze(1) @ w + (0.0 if b is None else b[:, None])) for w, b in pairs)
    return q @ k.mT * (weights.head_dim**-0.5 if weights.scale is None else weights.scale)


def check_scores(reading, turns):
    """Add to the bilinear scores what is said to be left out of them, and compare."""
    omitted, own = reading.weights.omitted, reading.scores
    ours = reading.weights.scores(reading.tokens)
    if ROTARY in omitted:
        assert not torch.allclose(ours[..., 1:, 0], own[..., 1:, 0], atol=1e-3)
        ours = turned_scores(reading, turns.pop(0))
    if SOFT_CAP in omitted:
        cap = reading.block.attention.attn_logit_softcapping
        ours = cap * (ours / cap).tanh()
    if SINK in omitted:  # one more column, and all of them shifted alike
        ours = ours - reading.block.attention.sinks[:, None, None]
        own = own[..., :-1] - own[..., -1:]
    if ALIBI in omitted:
        line = (own - ours)[..., -1, :]  # the last token is not masked anywhere
        slope = line.diff(dim=-1)
        torch.testing.assert_close(slope, slope[:1, :, :1].expand_as(slope), rtol=1e-3, atol=1e-4)
        assert line.abs().min() < 1e-4 < slope.min()
    else:
        close(ours, own)


@pytest.mark.parametrize("known", MODELS, ids=lambda known: known.name)
def test_scores_and_output_are_those_of_the_model(known):
    model, inputs = known.build(), known.inputs()
    described = describe_blocks(model)
    assert omissions(model) == known.omitted
    assert sum(one.supported for one in described) == known.attentions
    assert len(described) - known.attentions == known.refused
    with torch.no_grad():
        torch.manual_seed(1)  # the masked autoencoder shuffles its patches
        plain = model(**inputs)[0]
    readings, turns, captured = run(model, inputs)
    assert torch.equal(plain, captured)
    assert len(turns) == sum(ROTARY in reading.weights.omitted for reading in readings)
    for reading in readings:
        check_scores(reading, turns)
        if reading.normed is not None and reading.normed.shape == reading.tokens.shape:
            assert torch.equal(reading.normed, reading.tokens)
    if known.prefix is not None:
        assert num_prefix_tokens(model) == known.prefix


@pytest.mark.parametrize("known, reason", REFUSED, ids=lambda x: getattr(x, "name", ""))
def test_an_attention_without_a_token_product_is_refused_by_name(known, reason):
    model = known.build()
    described = describe_blocks(model)
    refused = [one for one in described if not one.supported]
    assert refused
    assert all(reason in one.reason for one in refused)


POSITIONAL = ["BeitModel", "Data2VecVisionModel", "MPNetModel", "T5Model", "SwinModel"]


@pytest.mark.parametrize("name", POSITIONAL)
def test_a_relative_position_bias_is_all_that_is_left_out(name):
    known = replace(BY_NAME[name], silent=())
    reading = run(known.build(), known.inputs())[0][0]
    bias = reading.scores - reading.weights.scores(reading.tokens)
    assert bias.std() > 0.05
    torch.testing.assert_close(bias, bias[:1].expand_as(bias), rtol=0, atol=1e-4)


def test_albert_has_one_attention_that_reads_the_tokens_of_each_layer():
    known = BY_NAME["AlbertModel"]
    model = known.build()
    readings, _, _ = run(model, known.inputs())
    assert len(readings) == model.config.num_hidden_layers == 2
    assert not torch.equal(readings[0].tokens, readings[1].tokens)


def test_blocks_are_called_by_their_layer():
    names = {
        "ViTModel": "attention",
        "BertModel": "attention.self",
        "MPNetModel": "attention.attn",
        "GPT2Model": "attn",
        "VideoMAEModel": "attention",
        "LlamaModel": "self_attn",
    }
    for name, attention in names.items():
        second = find_blocks(BY_NAME[name].build())[1]
        assert second.name.endswith(".1")
        assert second.attention_name == f"{second.name}.{attention}"


@pytest.mark.parametrize(
    "name, centres",
    [
        ("ViTModel", True),
        ("CLIPVisionModel", True),
        ("Dinov2Model", True),
        ("GPT2Model", True),
        ("CohereModel", True),
        ("LlamaModel", False),
        ("GemmaModel", False),
        ("GptOssModel", False),
        ("T5Model", False),
        ("Aimv2VisionModel", False),
    ],
)
def test_the_norm_before_an_attention_is_known(name, centres):
    block = find_blocks(BY_NAME[name].build())[0]
    norm = first_norm(block, 32)
    module = block.module.get_submodule(block.adapter.norm)
    x = torch.randn(5, 32)
    with torch.no_grad():
        y = module(x) - getattr(module, "bias", torch.zeros(32))
    expected = (x - x.mean(-1, keepdim=True) if norm.centres else x) * norm.gain.float()
    assert norm.centres == centres
    torch.testing.assert_close(torch.cosine_similarity(y, expected), torch.ones(5))


BESIDE = [known for known, reason in REFUSED if reason == CROSS and known.inputs is text]


@pytest.mark.parametrize("known", BESIDE, ids=lambda known: known.name)
def test_self_attention_beside_cross_attention_is_measured(known):
    model = known.build()
    inputs = {**known.inputs(), "encoder_hidden_states": torch.randn(2, 3, 32)}
    readings, turns, _ = run(model, inputs)
    assert readings
    for reading in readings:
        check_scores(reading, turns)


def test_attention_to_other_tokens_is_found_when_it_runs():
    attention = find_blocks(BY_NAME["T5Model"].build())[0].attention
    x = torch.randn(2, 5, 32)
    message = r"\(T5Attention\): cross-attention: its keys come from other tokens"
    with pytest.raises(UnsupportedModel, match=message), capture(attention):
        attention(x, key_value_states=x + 1)


def test_a_replaced_linear_map_is_refused():
    class Lora(nn.Module):
        def forward(self, x):
            return x

    for name, child in (
        ("GPT2Model", "c_attn"),
        ("FalconModel", "query_key_value"),
        ("LlamaModel", "k_proj"),
    ):
        attention = find_blocks(BY_NAME[name].build())[0].attention
        setattr(attention, child, Lora())
        with pytest.raises(UnsupportedModel, match=f"{child} is a Lora, expected"):
            projection(attention)


def test_tokens_behind_the_patches_are_not_counted_as_patches():
    with pytest.raises(UnsupportedModel, match="detection tokens behind its patches"):
        num_prefix_tokens(BY_NAME["YolosModel"].build())


@pytest.mark.parametrize(
    "options",
    [
        {"alibi": True},
        {"multi_query": True},
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "multi_query": True, "alibi": True},
    ],
    ids=str,
)
def test_the_kinds_of_falcon_are_measured_by_their_scores(options):
    known = BY_NAME["FalconModel"]
    one = replace(known, options={**known.options, **options})
    readings, turns, _ = run(one.build(), one.inputs())
    for reading in readings:
        check_scores(reading, turns)


@pytest.mark.parametrize("name, expected", [("CLIP", None), ("Siglip", 0)])
def test_prefix_tokens_of_a_model_of_two_towers_are_those_of_both(name, expected):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
    config = getattr(transformers, f"{name}Config")(
        text_config={**small, "intermediate_size": 16, "vocab_size": 30}, vision_config=vision
    )
    model = getattr(transformers, f"{name}Model")(config)
    if expected is not None:
        assert num_prefix_tokens(model) == expected
        return
    assert num_prefix_tokens(model.vision_model) == 1
    assert num_prefix_tokens(model.text_model) == 0
    with pytest.raises(UnsupportedModel, match="towers with different prefix tokens"):
        num_prefix_tokens(model)
