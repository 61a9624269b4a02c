"""W_q and W_k of one attention, head by head."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from burst.errors import BurstError, ShapeError, UnsupportedModel
from burst.projection import Projection, projection


def on_meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


@pytest.fixture
def vit():
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    )
    for block in model.blocks:
        nn.init.normal_(block.attn.qkv.bias)
    return model.eval()


def test_each_head_scores_as_its_rows_of_qkv_do(vit):
    attention = vit.blocks[0].attn
    nn.init.zeros_(attention.qkv.bias)
    x = torch.randn(7, 24)
    q, k, _ = attention.qkv(x).unflatten(-1, (3, 3, 8)).permute(1, 2, 0, 3)
    weights = projection(attention)
    for i in range(3):
        w_q, w_k = weights.head(i)
        torch.testing.assert_close(x @ w_q @ w_k.T @ x.T, q[i] @ k[i].T)


def test_heads_add_up_to_the_whole(vit):
    weights = projection(vit.blocks[1].attn)
    w_q, w_k = weights.whole()
    assert w_q.shape == w_k.shape == (24, 24)
    torch.testing.assert_close(w_q @ w_k.T, (weights.w_q @ weights.w_k.mT).sum(0))


def test_the_whole_is_the_transpose_of_timms_weights(vit):
    w_q, w_k = projection(vit.blocks[0].attn).whole()
    weight = vit.blocks[0].attn.qkv.weight
    assert torch.equal(w_q, weight[:24].T)
    assert torch.equal(w_k, weight[24:48].T)


def test_weights_are_a_float32_copy_without_gradient(vit):
    attention = vit.bfloat16().blocks[0].attn
    weights = projection(attention)
    before = weights.w_q.clone()
    assert weights.w_q.dtype == weights.w_k.dtype == torch.float32
    assert not weights.w_q.requires_grad
    nn.init.zeros_(attention.qkv.weight)
    assert torch.equal(weights.w_q, before)


def test_a_replaced_linear_is_refused_rather_than_read_without_its_change(vit):
    class LoraLinear(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x.sum()

    vit.blocks[0].attn.qkv = LoraLinear(24, 72)
    with pytest.raises(UnsupportedModel, match=r"qkv is a LoraLinear, expected nn.Linear"):
        projection(vit.blocks[0].attn)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(vit, value):
    nn.init.constant_(vit.blocks[1].attn.qkv.weight[3], value)
    with pytest.raises(BurstError, match=r"^blocks\.1\.attn \(Attention\): .* not finite"):
        projection(vit.blocks[1].attn, name="blocks.1.attn")


def test_weights_without_values_are_refused():
    model = on_meta("vit_tiny_patch16_224", depth=1)
    with pytest.raises(BurstError, match="meta device"):
        projection(model.blocks[0].attn)


@pytest.mark.parametrize("shape", [(70, 24), (69, 24), (0,)])
def test_weights_that_do_not_divide_into_heads_are_refused(vit, shape):
    vit.blocks[0].attn.qkv.weight = nn.Parameter(torch.zeros(shape))
    with pytest.raises(ShapeError, match=r"^Attention: "):
        projection(vit.blocks[0].attn)


def test_a_projection_checks_its_shapes():
    with pytest.raises(ShapeError, match=r"must both be \(heads, d, d_h\)"):
        Projection(torch.zeros(2, 8, 4), torch.zeros(2, 8, 3))
    with pytest.raises(ShapeError, match="head 2 is out of range: there are heads 0 to 1"):
        Projection(torch.zeros(2, 8, 4), torch.zeros(2, 8, 4)).head(2)
