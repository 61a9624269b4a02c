"""Weights and tokens without structure: what is kept, exactly, and what is gone."""

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import backbone_of, vit
from torch import nn

from burst.adapters import find_blocks
from burst.backbone import load_backbone
from burst.errors import ShapeError, UnsupportedModel
from burst.nulls import content_generator, permuted_columns, permuted_weights, random_weights
from burst.projection import projection
from burst.survey import images_for, survey


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 5), min_size=0, max_size=2),
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(0, 99),
)
def test_every_column_keeps_its_values_and_nothing_else(leading, tokens, dim, seed):
    x = torch.randn(*leading, tokens, dim, generator=seeded(seed))
    before = x.clone()
    y = permuted_columns(x, seeded(seed))
    assert y.shape == x.shape and torch.equal(x, before)
    rows, shuffled = x.reshape(-1, dim), y.reshape(-1, dim)
    assert torch.equal(rows.sort(dim=0).values, shuffled.sort(dim=0).values)


def test_columns_that_went_together_are_independent_afterwards():
    common = torch.randn(5000, 1, generator=seeded())
    x = common + 0.1 * torch.randn(5000, 6, generator=seeded(1))
    off = ~torch.eye(6, dtype=torch.bool)
    assert torch.corrcoef(x.mT)[off].min() > 0.98
    shuffled = torch.corrcoef(permuted_columns(x, seeded()).mT)[off]
    assert shuffled.abs().max() < 5 / 5000**0.5  # 5 deviations of an independent pair's


def test_a_column_is_shuffled_over_all_orders():
    x = torch.arange(3.0)[:, None].repeat(1, 6000)
    orders, counts = permuted_columns(x, seeded()).mT.unique(dim=0, return_counts=True)
    assert len(orders) == 6
    assert (counts - 1000).abs().max() < 150  # 5 deviations of a sixth of 6,000


def test_equal_tokens_are_shuffled_alike_and_others_not():
    x = torch.randn(2, 5, 4, generator=seeded())
    one, other = (permuted_columns(x, content_generator(x.clone())) for _ in range(2))
    assert torch.equal(one, other)
    states = {content_generator(x + step).initial_seed() for step in range(5)}
    assert len(states) == 5


def test_a_vector_is_no_tokens():
    with pytest.raises(ShapeError, match=r"\(3,\) must be"):
        permuted_columns(torch.zeros(3), seeded())


def test_weights_in_random_order_are_the_same_weights():
    w = torch.randn(7, 11, generator=seeded())
    shuffled = permuted_weights(w, seeded())
    assert shuffled.shape == w.shape and not torch.equal(shuffled, w)
    assert torch.equal(shuffled.flatten().sort().values, w.flatten().sort().values)


def test_only_queries_and_keys_of_a_copy_are_random():
    model = vit()
    before = copy.deepcopy(model.state_dict())
    other = random_weights(model, seed=3)
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], before[name])
        if not name.endswith("attn.qkv.weight"):
            assert torch.equal(value, before[name]), name
            continue
        parts = zip(value.chunk(3), before[name].chunk(3), strict=True)
        for part, (new, old) in zip("qkv", parts, strict=True):
            assert torch.equal(new, old) == (part == "v")
            assert torch.equal(new.flatten().sort().values, old.flatten().sort().values)
    again = random_weights(model, seed=3).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in other.state_dict().items())
    assert not torch.equal(
        random_weights(model, seed=4).blocks[0].attn.qkv.weight, other.blocks[0].attn.qkv.weight
    )


def test_of_singular_values_nothing_stays():
    model = vit()
    with torch.no_grad():
        for block in model.blocks:  # one direction carries all
            block.attn.qkv.weight[:64] = torch.outer(torch.randn(64), torch.randn(32))
    for one, least in ((model, 0.999), (random_weights(model), None)):
        w = projection(find_blocks(one)[0].attention).whole()[0]
        share = torch.linalg.svdvals(w)[0] ** 2 / w.square().sum()
        assert share > least if least else share < 0.5


def test_other_attentions_are_shuffled_in_place():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    other = random_weights(encoder)
    old, new = (one.layers[1].self_attn.in_proj_weight for one in (encoder, other))
    assert not torch.equal(old[:32], new[:32]) and torch.equal(old[32:], new[32:])


def test_a_backbone_with_random_weights_is_surveyed_in_one_call():
    backbone = load_backbone("mae_tiny")
    images = images_for(backbone, "sample", num_images=4)
    found = survey(random_weights(backbone), images)
    assert set(found.table["pretraining"]) == {"random"}
    assert "random order, seed 0" in found.record["weights"]
    own = survey(backbone, images)
    assert found.record["qk_sha256"] != own.record["qk_sha256"]
    first = {one.record["weights"]: one.whole("qkx")[0].moments for one in (found, own)}
    shuffled, trained = (one.excess_kurtosis for one in first.values())
    assert abs(shuffled) < trained / 2


def test_a_model_without_attention_is_refused():
    with pytest.raises(UnsupportedModel):
        random_weights(nn.Linear(2, 2))
    refused = timm.create_model("xcit_nano_12_p16_224", num_classes=0)
    with pytest.raises(UnsupportedModel, match="no attention that can be measured"):
        random_weights(refused)


def test_interleaved_queries_and_keys_are_refused(monkeypatch):
    from burst import nulls

    read = nulls.read_layout

    def copied(attention):
        layout = read(attention)
        object.__setattr__(layout, "query", layout.query.clone())
        return layout

    monkeypatch.setattr(nulls, "read_layout", copied)
    with pytest.raises(UnsupportedModel, match="interleaved"):
        random_weights(backbone_of(vit()).model)
