"""Which blocks a model has, what they are called, and what is said of them before measuring."""

import dataclasses

import pytest
import timm
import torch
from torch import nn

from burst.adapters import (
    describe_blocks,
    find_blocks,
    num_prefix_tokens,
    prefix_tokens_of,
)
from burst.adapters.timm import TALKING_HEADS
from burst.errors import UnsupportedModel


def on_meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


def test_a_model_without_attention_is_refused_by_name():
    model = on_meta("resnet18")
    for question in (describe_blocks, find_blocks):
        with pytest.raises(UnsupportedModel, match=r"^ResNet has no block"):
            question(model)


def test_what_would_be_measured_is_told_without_weights():
    model = on_meta("cait_xxs24_224", depth=1)
    measured, *skipped = describe_blocks(model)
    assert dataclasses.asdict(measured) == {
        "index": 0,
        "name": "blocks.0",
        "attention": "TalkingHeadAttn",
        "reason": None,
        "omitted": (TALKING_HEADS,),
        "num_heads": 4,
        "dim": 192,
        "head_dim": 48,
    }
    assert [(d.name, d.attention, d.supported) for d in skipped] == [
        ("blocks_token_only.0", "ClassAttn", False),
        ("blocks_token_only.1", "ClassAttn", False),
    ]
    assert skipped[0].reason.startswith("class attention: only the class token asks")


@pytest.mark.parametrize(
    "name, options, names",
    [
        ("vit_tiny_patch16_224", {"depth": 2}, ["blocks.0", "blocks.1"]),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (2, 1, 1, 1)},
            ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"],
        ),
        ("vit_small_patch16_18x2_224", {"depth": 1}, ["blocks.0.attns.0", "blocks.0.attns.1"]),
        ("vit_pwee_patch16_reg1_gap_256", {"depth": 2}, ["blocks.0", "blocks.1"]),
    ],
)
def test_blocks_are_found_in_order_with_their_full_names(name, options, names):
    found = find_blocks(on_meta(name, **options))
    assert [block.name for block in found[: len(names)]] == names
    assert [block.index for block in found] == list(range(len(found)))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mixer_s32_224"])
def test_a_model_without_attention_blocks_is_refused_by_name(name):
    model = on_meta(name)
    with pytest.raises(UnsupportedModel, match=f"^{type(model).__name__} has no block"):
        find_blocks(model)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("vit_tiny_patch16_224", 1),
        ("deit_tiny_distilled_patch16_224", 2),
        ("vit_small_patch14_reg4_dinov2", 5),
        ("vit_base_patch16_siglip_224", 0),
        ("eva02_tiny_patch14_224", 1),
        ("vit_small_patch16_dinov3", 5),
        ("swin_tiny_patch4_window7_224", 0),
        ("cait_xxs24_224", 0),
    ],
)
def test_prefix_tokens_are_counted(name, expected):
    assert num_prefix_tokens(on_meta(name)) == expected


@pytest.mark.parametrize("name", ["convit_tiny", "pit_ti_224"])
def test_prefix_tokens_that_differ_between_blocks_are_not_guessed(name):
    model = on_meta(name)
    with pytest.raises(UnsupportedModel, match=f"^{type(model).__name__} does not have the same"):
        num_prefix_tokens(model)


def test_prefix_tokens_are_those_of_a_model_inside_another():
    inner = on_meta("vit_pwee_patch16_reg1_gap_256", depth=1)  # a register, and no class token
    assert num_prefix_tokens(nn.Sequential(inner, nn.Linear(2, 2))) == 1


@pytest.mark.parametrize("token", ["class_token", "reg_token", "register_tokens"])
def test_prefix_tokens_of_a_model_of_ones_own_are_not_guessed(token):
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 8), 1, enable_nested_tensor=False
    )
    assert num_prefix_tokens(model) == 0
    model.register_parameter(token, nn.Parameter(torch.zeros(1, 1, 8)))
    with pytest.raises(UnsupportedModel, match="does not have the same prefix tokens"):
        num_prefix_tokens(model)


def test_towers_have_prefix_tokens_of_their_own():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = on_meta("vit_tiny_patch16_224", depth=1)
            self.transformer = on_meta("vit_small_patch14_reg4_dinov2", depth=1).blocks

    model = Towers()
    assert prefix_tokens_of(model, find_blocks(model)) == {0: 1, 1: 0}
    assert num_prefix_tokens(model) == 1
    model.other = on_meta("vit_small_patch14_reg4_dinov2", depth=1)
    assert prefix_tokens_of(model, find_blocks(model)) == {0: 1, 1: 0, 2: 5}
    with pytest.raises(UnsupportedModel, match="^Towers has towers with different"):
        num_prefix_tokens(model)


class OwnAttention(nn.Module):
    """Of a class that nobody has told of."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)


def test_attentions_of_which_nothing_is_known_are_told_where_others_are_known():
    """Else a model of two towers would be measured in one of them, and nobody would know."""
    tower = nn.ModuleList(nn.ModuleDict({"mixer": OwnAttention()}) for _ in range(2))
    model = nn.ModuleDict({"image": tower, "text": nn.MultiheadAttention(8, 2)})
    told = describe_blocks(model)
    assert [one.name for one in told] == ["image.0", "image.1", ""]
    assert [one.supported for one in told] == [False, False, True]
    assert told[0].reason.endswith("is not known; register an `adapter` (burst.adapter)")
    with pytest.raises(UnsupportedModel, match="of OwnAttention nothing is known"):
        find_blocks(tower)


def test_what_is_called_attention_and_wraps_one_or_has_no_weights_is_none():
    class WrappingAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2)

    class CallingAttention(nn.Module):
        pass

    model = nn.ModuleDict({"a": WrappingAttention(), "b": CallingAttention()})
    assert [one.attention_name for one in find_blocks(model)] == ["a.inner"]
