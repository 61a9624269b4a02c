import numpy as np
import pytest
import torch
from support import DIM, HEADS, vit

from burst.adapters import find_blocks
from burst.axis import RegularAxis
from burst.errors import ShapeError, UnknownName
from burst.interaction import (
    head_response_histogram,
    interaction,
    response_histogram,
    response_matrices,
    response_matrix,
)


def test_entry_i_j_scores_unit_token_i_against_unit_token_j():
    w_q, w_k = torch.randn(5, 3), torch.randn(5, 3)
    a = interaction(w_q, w_k)
    for i in range(5):
        for j in range(5):
            query, key = w_q.double()[i], w_k.double()[j]  # e_i @ w_q
            assert a[i, j].item() == pytest.approx(float((query * key).sum()), abs=1e-6)


def test_it_gives_the_scores_of_a_linear_layer_without_bias():
    query, key = torch.nn.Linear(6, 4, bias=False), torch.nn.Linear(6, 4, bias=False)
    x = torch.randn(7, 6)
    scores = query(x) @ key(x).mT
    ours = x @ interaction(query.weight.detach().mT, key.weight.detach().mT) @ x.mT
    torch.testing.assert_close(ours, scores.detach())


def test_heads_add_up_to_the_whole():
    w_q, w_k = torch.randn(3, 8, 4).double(), torch.randn(3, 8, 4).double()
    whole = interaction(*(w.permute(1, 0, 2).reshape(8, 12) for w in (w_q, w_k)))
    heads = sum(interaction(w_q[i], w_k[i]) for i in range(3))
    torch.testing.assert_close(whole, heads)


def test_the_authors_convention_is_their_product_of_torch_weights():
    weight_q, weight_k = torch.randn(6, 6), torch.randn(6, 6)  # (out, in)
    ours = interaction(weight_q.mT, weight_k.mT, convention="authors")
    assert torch.equal(ours, weight_q @ weight_k.mT)


def test_half_precision_weights_are_multiplied_in_float32():
    w = torch.randn(8, 8).half()
    assert torch.equal(interaction(w, w), w.float() @ w.float().mT)


def test_the_response_is_counted_over_all_tokens():
    a = torch.randint(-2, 3, (4, 4)).float()
    x = torch.randint(-2, 3, (2, 5, 4)).float()
    hist = response_histogram(a, x, RegularAxis(65, -32.5, 32.5))
    response = a.numpy().astype(np.float64) @ x.numpy().reshape(10, 4).T
    assert np.array_equal(hist.values(), np.histogram(response, hist.edges)[0])


def test_a_heads_response_is_that_of_its_interaction():
    w_q, w_k = (torch.randint(-2, 3, (6, 2)).float() for _ in "qk")
    x = torch.randint(-2, 3, (3, 5, 6)).float()
    axis = RegularAxis(1001, -500.5, 500.5)
    through_keys = head_response_histogram(w_q, w_k, x, axis)
    assert through_keys == response_histogram(interaction(w_q, w_k), x, axis)


def test_backend_and_precision_reach_the_product():
    x, w = torch.eye(4), torch.eye(4)
    for count, weights in ((response_histogram, (w,)), (head_response_histogram, (w, w))):
        assert count(*weights, x, backend="reference", precision="bf16").backend == "reference"
        with pytest.raises(UnknownName, match="unknown precision 'half'"):
            count(*weights, x, precision="half")


def test_what_does_not_fit_is_refused_with_both_shapes():
    with pytest.raises(ShapeError, match=r"w_q \(3, 2\) and w_k \(3, 4\)"):
        interaction(torch.ones(3, 2), torch.ones(3, 4))
    with pytest.raises(ShapeError, match=r"tokens \(5, 7\) must be \(..., 3\)"):
        response_histogram(torch.eye(3), torch.ones(5, 7))
    with pytest.raises(UnknownName, match="did you mean authors"):
        interaction(torch.eye(3), torch.eye(3), convention="author")


def graded():
    """A model whose norms have gains that are not all alike."""
    model = vit()
    for block in model.blocks:
        block.norm1.weight.data = 0.5 + torch.rand(DIM)
        block.attn.qkv.weight.data = torch.randn(3 * DIM, DIM)
    return model


def test_the_response_matrices_of_the_heads_add_up_to_that_of_the_block():
    for block in find_blocks(graded()):
        heads = [response_matrix(block, head=head) for head in range(HEADS)]
        torch.testing.assert_close(sum(heads), response_matrix(block), rtol=1e-12, atol=1e-12)


def test_response_matrices_go_with_their_blocks_and_are_of_one_width():
    blocks = find_blocks(graded())[::2]
    for (block, found), expected in zip(response_matrices(blocks, head=1), blocks, strict=True):
        assert block is expected
        assert torch.equal(found, response_matrix(expected, head=1))
    other = find_blocks(vit(embed_dim=16))[1]
    with pytest.raises(ShapeError, match=r"different widths \(0: 32, 1: 16\)"):
        response_matrices([blocks[0], other])


def test_the_response_is_that_of_its_convention_and_norm():
    model = graded()
    block = find_blocks(model)[1]
    query, key = model.blocks[1].attn.qkv.weight.detach().double().numpy().reshape(3, DIM, DIM)[:2]
    gain = model.blocks[1].norm1.weight.detach().double().numpy()
    centring = np.eye(DIM) - 1 / DIM
    for expected, options in (
        (query.T @ key, {}),
        (query @ key.T, {"convention": "authors"}),
        (centring @ np.diag(gain) @ query.T @ key, {"through_norm": True}),
        (query[8:16].T @ key[8:16], {"head": 1}),
    ):
        np.testing.assert_allclose(response_matrix(block, **options), expected, atol=1e-12)
