"""Spectra of W_q W_k^T against NumPy's SVD of the product in float64, and known answers."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DEPTH, DIM, HEADS, backbone_of, vit
from torch import nn

from burst.adapters import OmittedTermWarning
from burst.errors import BurstError, ShapeError, UnsupportedModel
from burst.projection import Projection, projection
from burst.spectrum import (
    COLUMNS,
    _together,
    describe_spectrum,
    singular_values,
    spectrum,
    symmetric_share,
)

shapes = st.tuples(st.integers(1, 24), st.integers(1, 40), st.integers(0, 10**6))


def factors(d, m, seed=0):
    """Two (d, m) float32 whose singular values fall by some orders."""
    rng = np.random.default_rng(seed)
    scale = np.logspace(0, -3, m)
    return tuple(torch.tensor(rng.normal(size=(d, m)) * scale, dtype=torch.float32) for _ in "qk")


def product(w_q, w_k):
    return w_q.double().numpy() @ w_k.double().numpy().T


@settings(max_examples=60)
@given(shapes)
def test_singular_values_are_those_of_the_product(shape):
    d, m, seed = shape
    w_q, w_k = factors(d, m, seed)
    expected = np.linalg.svd(product(w_q, w_k), compute_uv=False)
    found = singular_values(w_q, w_k)
    assert found.dtype == np.float64
    assert len(found) == min(d, m)
    np.testing.assert_allclose(found, expected[: min(d, m)], rtol=0, atol=1e-13 * expected[0])
    assert (np.diff(found) <= 0).all()


@settings(max_examples=60)
@given(shapes)
def test_the_symmetric_share_is_that_of_the_product(shape):
    w_q, w_k = factors(*shape)
    a = product(w_q, w_k)
    expected = np.linalg.norm((a + a.T) / 2) ** 2 / np.linalg.norm(a) ** 2
    assert symmetric_share(w_q, w_k) == pytest.approx(expected, abs=1e-10)


@settings(max_examples=40)
@given(shapes)
def test_ranks_and_norms_are_those_of_the_product(shape):
    w_q, w_k = factors(*shape)
    a = product(w_q, w_k)
    s = np.linalg.svd(a, compute_uv=False)
    found = describe_spectrum(singular_values(w_q, w_k))
    assert found["frobenius_norm"] == pytest.approx(np.linalg.norm(a))
    assert found["spectral_norm"] == pytest.approx(np.linalg.norm(a, 2))
    assert found["stable_rank"] == pytest.approx(np.linalg.norm(a) ** 2 / np.linalg.norm(a, 2) ** 2)
    p = s[s > 1e-12 * s[0]] / s.sum()
    assert found["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert 1 <= found["stable_rank"] <= found["rank"] * (1 + 1e-12)
    assert found["stable_rank"] <= found["effective_rank"] * (1 + 1e-9)
    assert found["effective_rank"] <= found["rank"] * (1 + 1e-12)


@settings(max_examples=30)
@given(shapes, st.sampled_from([1e-30, 1e-3, 1e10, 1e30]))
def test_the_scale_of_the_weights_changes_norms_alone(shape, scale):
    w_q, w_k = factors(*shape)
    one, other = (describe_spectrum(singular_values(w_q * c, w_k)) for c in (1, scale))
    assert symmetric_share(w_q * scale, w_k) == pytest.approx(symmetric_share(w_q, w_k), abs=1e-5)
    for name in ("stable_rank", "effective_rank", "tail_exponent"):
        assert other[name] == pytest.approx(one[name], rel=1e-4, nan_ok=True)
    assert other["spectral_norm"] == pytest.approx(scale * one["spectral_norm"], rel=1e-5)


@pytest.mark.parametrize("d, m", [(8, 3), (8, 8), (5, 20)])
def test_equal_factors_are_symmetric_and_turned_ones_antisymmetric(d, m):
    w_q, _ = factors(d, m)
    assert symmetric_share(w_q, w_q) == pytest.approx(1, abs=1e-12)
    first, second = factors(d, m)
    both = torch.cat([first, second], dim=1), torch.cat([second, -first], dim=1)
    assert symmetric_share(*both) == pytest.approx(0, abs=1e-12)


def test_a_product_of_rank_one_is_known():
    w_q, w_k = (torch.tensor([[1.0], [0], [0], [2]]), torch.tensor([[0.0], [3], [0], [4]]))
    values = singular_values(w_q.repeat(1, 6), w_k.repeat(1, 6) / 6)
    np.testing.assert_allclose(values, [5 * 5**0.5, 0, 0, 0])
    found = describe_spectrum(values)
    assert found["rank"] == 1
    assert found["stable_rank"] == found["effective_rank"] == 1
    assert np.isnan(found["tail_exponent"])
    # A = q k^T: tr(A A) = (q k)^2
    assert symmetric_share(w_q, w_k) == pytest.approx((1 + 64 / 125) / 2)


def test_a_matrix_of_equal_singular_values_has_full_stable_and_effective_rank():
    found = describe_spectrum(singular_values(torch.eye(7), 3 * torch.eye(7)))
    for name in ("rank", "stable_rank", "effective_rank"):
        assert found[name] == pytest.approx(7)
    assert found["spectral_norm"] == 3


def test_zero_weights_have_no_ranks():
    zero = torch.zeros(6, 4)
    values = singular_values(zero, zero)
    np.testing.assert_array_equal(values, np.zeros(4))
    found = describe_spectrum(values)
    assert found["rank"] == found["tail_count"] == found["spectral_norm"] == 0
    assert all(np.isnan(found[name]) for name in ("stable_rank", "effective_rank", "tail_ks"))
    assert np.isnan(symmetric_share(zero, zero))
    assert list(found) == list(describe_spectrum(np.ones(3)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    w_q, w_k = factors(5, 2)
    w_k[1, 1] = bad
    for function in (singular_values, symmetric_share):
        with pytest.raises(BurstError, match="not finite"):
            function(w_q, w_k)
    model = vit()
    model.blocks[1].attn.qkv.weight.data[3, 3] = bad
    with pytest.raises(BurstError, match=r"blocks\.1\.attn .*not finite"):
        spectrum(model)
    assert len(spectrum(model, [0, 2]).values) == 2 * (1 + HEADS)


def test_factors_must_be_matrices_of_one_shape():
    for pair in ((torch.ones(3, 2), torch.ones(3, 3)), (torch.ones(3), torch.ones(3))):
        with pytest.raises(ShapeError, match="one shape"):
            singular_values(*pair)
        with pytest.raises(ShapeError, match="one shape"):
            symmetric_share(*pair)


def test_the_table_holds_whole_and_heads_of_every_block():
    backbone = backbone_of(vit())
    calls = []
    found = spectrum(backbone, progress=lambda *numbers: calls.append(numbers))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert list(found.table.columns) == list(COLUMNS)
    heads = ["all", *map(str, range(HEADS))]
    assert list(found.values) == [(block, head) for block in range(DEPTH) for head in heads]
    assert list(zip(found.table["block"], found.table["head"], strict=True)) == list(found.values)
    assert set(found.table["model"]) == {"test"} and set(found.table["pretraining"]) == {"random"}
    rows = found.table.set_index(["block", "head"])
    for block in range(DEPTH):
        weight = backbone.model.blocks[block].attn.qkv.weight.double().numpy()
        query, key = weight[:DIM].T, weight[DIM : 2 * DIM].T
        width = DIM // HEADS
        parts = {"all": slice(None)} | {str(i): slice(i * width, (i + 1) * width) for i in range(4)}
        for head, part in parts.items():
            a = query[:, part] @ key[:, part].T
            s = np.linalg.svd(a, compute_uv=False)[: found.values[block, head].size]
            np.testing.assert_allclose(found.values[block, head], s, atol=1e-14)
            row = rows.loc[(block, head)]
            assert row["rank"] == (DIM if head == "all" else width)
            symmetric = np.linalg.norm((a + a.T) / 2) ** 2 / np.linalg.norm(a) ** 2
            assert row["symmetric_share"] == pytest.approx(symmetric)
            assert row["symmetric_share_null"] == pytest.approx((1 + 1 / DIM) / 2)


def test_blocks_and_heads_can_be_left_out():
    found = spectrum(vit(), blocks=(2, 0), per_head=False)
    assert list(found.values) == [(2, "all"), (0, "all")]
    assert found.record["blocks"] == [2, 0]
    with pytest.raises(BurstError, match="blocks 0 to 2"):
        spectrum(vit(), blocks=(3,))
    with pytest.raises(UnsupportedModel):
        spectrum(nn.Linear(3, 3))


def test_the_null_is_random_factors_of_the_same_shape_and_norm():
    found = spectrum(vit(), blocks=(1,))
    for key, null in found.nulls.items():
        assert np.linalg.norm(null) == pytest.approx(np.linalg.norm(found.values[key]))
    row = found.table.iloc[0]
    rng = np.random.default_rng(3)
    draws = []
    for _ in range(50):
        a = rng.normal(size=(DIM, DIM)) @ rng.normal(size=(DIM, DIM)).T
        one = describe_spectrum(np.linalg.svd(a, compute_uv=False))
        share = np.linalg.norm((a + a.T) / 2) ** 2 / np.linalg.norm(a) ** 2
        draws.append((one["stable_rank"], one["effective_rank"], share))
    low, high = np.min(draws, axis=0), np.max(draws, axis=0)
    names = ["stable_rank_null", "effective_rank_null", "symmetric_share_null"]
    null = row[names].to_numpy(float)
    assert (low <= null).all() and (null <= high).all()
    again = spectrum(vit(), blocks=(1,))
    pd.testing.assert_frame_equal(found.table, again.table)


def test_grouped_queries_share_keys_and_so_rank():
    w_q, w_k = torch.randn(6, 40, 3), torch.randn(2, 40, 3).repeat_interleave(3, dim=0)
    whole_q, whole_k = _together(w_q, w_k)
    assert whole_q.shape == whole_k.shape == (40, 6)
    a = product(*Projection(w_q, w_k).whole())
    expected = np.linalg.svd(a, compute_uv=False)
    np.testing.assert_allclose(singular_values(whole_q, whole_k), expected[:6], rtol=1e-6)
    assert expected[6] < 1e-13 * expected[0]


def test_grouped_query_attention_of_a_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=10, hidden_size=24, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaModel(config)
    with pytest.warns(OmittedTermWarning):
        found = spectrum(model)
    weights = projection(model.layers[0].self_attn)
    expected = np.linalg.svd(product(*weights.whole()), compute_uv=False)
    assert len(found.values[0, "all"]) == 12
    np.testing.assert_allclose(found.values[0, "all"], expected[:12], rtol=1e-9)
    for i in range(4):
        head = np.linalg.svd(product(*weights.head(i)), compute_uv=False)[:6]
        np.testing.assert_allclose(found.values[0, str(i)], head, rtol=1e-9)


def test_query_biases_stay_out():
    model = vit(qkv_bias=True)
    before = spectrum(model).table
    nn.init.normal_(model.blocks[0].attn.qkv.bias)
    pd.testing.assert_frame_equal(spectrum(model).table, before)


def test_a_model_of_all_zeros_is_told_by_nan_not_by_an_error():
    model = vit()
    nn.init.zeros_(model.blocks[0].attn.qkv.weight)
    table = spectrum(model, blocks=(0,)).table
    assert (table["rank"] == 0).all()
    assert table[["stable_rank", "effective_rank", "symmetric_share"]].isna().all(axis=None)


def test_half_precision_weights_are_read_exactly():
    w_q, w_k = (w.half() for w in factors(9, 4))
    np.testing.assert_array_equal(
        singular_values(w_q, w_k), singular_values(w_q.double(), w_k.double())
    )
