"""W_q and W_k against the scores that timm's own modules compute."""

import dataclasses
import sys
from inspect import signature

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, LayerNorm
from timm.models.eva import EvaAttention
from timm.models.hiera import MaskUnitAttention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from burst.errors import BurstError, ShapeError, UnsupportedModel
from burst.projection import (
    DIFFERENCE,
    RELATIVE,
    ROTARY,
    SHIFT_MASK,
    TALKING_HEADS,
    Layout,
    Projection,
    adapter,
    describe_blocks,
    omissions,
    projection,
)
from burst.tokens import capture, find_blocks

SMALL = {"embed_dim": 48, "num_heads": 3, "depth": 2}
# architecture, options, image size, what its scores hold beyond the bilinear term
MEASURED = [
    ("vit_tiny_patch16_224", {"depth": 2}, 32, ()),
    ("vit_small_patch16_224", {"depth": 2}, 32, ()),
    ("deit_tiny_distilled_patch16_224", {"depth": 2}, 32, ()),
    ("vit_small_patch14_reg4_dinov2", {"depth": 2}, 28, ()),
    ("vit_base_patch16_siglip_224", SMALL, 32, ()),
    ("vit_small_patch16_18x2_224", {"depth": 1}, 32, ()),
    ("vit_pwee_patch16_reg1_gap_256", {"depth": 2}, 32, ()),
    ("naflexvit_base_patch16_gap", SMALL, 32, ()),
    ("eva_giant_patch14_224", {**SMALL, "embed_dim": 24}, 28, ()),
    ("beit_base_patch16_224", SMALL, 32, (RELATIVE,)),
    ("vit_relpos_small_patch16_224", {"depth": 2}, 32, (RELATIVE,)),
    ("eva02_tiny_patch14_224", {"depth": 2}, 28, (ROTARY,)),
    ("vit_small_patch16_dinov3", {"depth": 2}, 32, (ROTARY,)),
    ("vit_dwee_patch16_reg1_gap_256", {"depth": 2}, 32, (DIFFERENCE,)),
    ("vit_dpwee_patch16_reg1_gap_256", {"depth": 2}, 32, (DIFFERENCE,)),
    (
        "swin_tiny_patch4_window7_224",
        {"depths": (2, 1, 1, 1), "embed_dim": 24, "window_size": 2},
        64,
        (RELATIVE, SHIFT_MASK),
    ),
]
REFUSED = [
    ("xcit_nano_12_p16_224", {"depth": 1}, "it compares channels"),
    ("swinv2_tiny_window8_256", {}, "cosine attention normalises"),
    ("vit_base_patch16_xp_224", {"depth": 1}, "query-key norm"),
    ("gemma4_vit_167m", {}, "query-key norm"),
    ("mvitv2_tiny", {}, "it pools queries or keys"),
    ("levit_128s", {}, "batch norm follows"),
    ("coatnet_nano_rw_224", {}, "channels-first feature maps"),
    ("mobilenetv5_base", {}, "attention of timm.layers.attention2d is not known"),
]
BIASES = ("qkv.bias", "q_bias", "q_proj.bias", "k_proj.bias", "in_proj.bias")


def known(name):
    """The name of an architecture; skipped where this timm does not have it."""
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    return name


def made(kind, *sizes, **options):
    """An attention of timm's; skipped where this timm cannot make one with these options."""
    if unknown := sorted(options.keys() - signature(kind).parameters):
        pytest.skip(f"{kind.__name__} of timm {timm.__version__} has no {', '.join(unknown)}")
    try:
        return kind(*sizes, **options)
    except AttributeError as error:  # its own mistake: of EvaAttention with qk_norm, for one
        pytest.skip(f"timm {timm.__version__}: {error}")


def build(name, options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **options).eval()


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


@pytest.fixture
def scored(monkeypatch):
    """Queries and keys that reach the attention function, call by call."""
    calls = []
    attend = F.scaled_dot_product_attention

    def record(q, k, v, **kwargs):
        calls.append((q, k))
        return attend(q, k, v, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    return calls


def scores_alone(block, x, calls):
    """(h, B, N, N) scores of one attention, run on the tokens that it reads in the model."""
    calls.clear()
    if block.attention is block.module:
        block.module.in_norm = nn.Identity()
    block.attention(x)
    # Differential attention makes two calls: its even heads, its odd heads.
    return torch.stack([(q @ k.mT).transpose(0, 1) for q, k in calls], dim=1).flatten(0, 1)


@pytest.mark.parametrize(
    "name, options, size, omitted", MEASURED, ids=[name for name, *_ in MEASURED]
)
def test_the_product_is_what_the_model_scores(name, options, size, omitted, scored):
    model = build(known(name), {"img_size": size, **options})
    assert omissions(model) == omitted
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(BIASES):
            nn.init.zeros_(parameter)
    for block in find_blocks(model):
        block.attention.fused_attn = True  # so that queries and keys can be seen
    with torch.inference_mode(), capture(model) as tokens:
        model(torch.randn(2, 3, size, size))
    for block in find_blocks(model):
        x = tokens[block.index]
        weights = projection(block.attention)
        scores = torch.einsum("bnd,hdc,hec,bme->hbnm", x, weights.w_q, weights.w_k, x)
        with torch.inference_mode():
            expected = scores_alone(block, x, scored)
        assert expected.shape[0] == weights.num_heads
        # float32 sums over d in another order, relative to the largest score
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_a_rotary_embedding_leaves_scores_at_equal_positions_as_they_are(scored):
    model = build("eva02_tiny_patch14_224", {"depth": 1, "img_size": 28})
    with torch.inference_mode(), capture(model) as tokens:
        model(torch.randn(2, 3, 28, 28))
    [(q, k)] = scored
    weights = projection(model.blocks[0].attn)
    own = torch.einsum("bnd,hdc,hec,bne->bhn", tokens[0], weights.w_q, weights.w_k, tokens[0])
    turned = (q * k).sum(-1)
    torch.testing.assert_close(own, turned, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(q, torch.einsum("bnd,hdc->bhnc", tokens[0], weights.w_q))


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


def test_heads_need_not_fill_the_width():
    options = {"attn_head_dim": 5, "scale_norm": True, "norm_layer": LayerNorm}
    attention = made(Attention, 12, num_heads=2, **options)
    weights = projection(attention)
    assert (weights.num_heads, weights.dim, weights.head_dim) == (2, 12, 5)
    assert weights.whole()[0].shape == (12, 10)


@pytest.mark.parametrize("kind", [AttentionRope, EvaAttention])
def test_split_projections_give_what_the_fused_one_gives(kind):
    options = {"num_heads": 2, "scale_norm": False, "gated": True}
    fused, split = made(kind, 8, **options), made(kind, 8, qkv_fused=False, **options)
    with torch.no_grad():
        split.q_proj.weight.copy_(fused.qkv.weight[:8])
        split.k_proj.weight.copy_(fused.qkv.weight[8:16])
    assert torch.equal(projection(fused).w_q, projection(split).w_q)
    assert torch.equal(projection(fused).w_k, projection(split).w_k)


def test_grouped_queries_share_the_keys_of_their_group(scored):
    options = {"num_heads": 4, "num_kv_heads": 2, "qkv_fused": False, "qkv_bias": False}
    attention = made(AttentionRope, 16, **options)
    weights = projection(attention)
    assert torch.equal(weights.w_k[0], weights.w_k[1])
    assert not torch.equal(weights.w_k[1], weights.w_k[2])
    attention(x := torch.randn(1, 5, 16))
    [(q, k)] = scored
    scores = torch.einsum("bnd,hdc,hec,bme->bhnm", x, weights.w_q, weights.w_k, x)
    torch.testing.assert_close(scores, q @ k.mT)


def test_cait_is_read_before_its_heads_talk():
    model = build("cait_xxs24_224", {"depth": 1, "img_size": 32})
    attention = model.blocks[0].attn
    nn.init.zeros_(attention.qkv.bias)
    mixed = []
    attention.proj_l.register_forward_pre_hook(lambda _, args: mixed.append(args[0]))
    attention(x := torch.randn(1, 5, 192))
    weights = projection(attention)
    scores = torch.einsum("bnd,hdc,hec,bme->bnmh", x, weights.w_q, weights.w_k, x)
    torch.testing.assert_close(mixed[0], scores * attention.scale)
    assert omissions(model) == weights.omitted == (TALKING_HEADS,)


@pytest.mark.parametrize("name, options, reason", REFUSED, ids=[name for name, *_ in REFUSED])
def test_attention_without_a_token_product_is_refused_by_name(name, options, reason):
    model = on_meta(known(name), **options)
    block, description = find_blocks(model)[0], describe_blocks(model)[0]
    assert reason in description.reason
    assert not description.supported
    message = rf"^{block.attention_name} \({type(block.attention).__name__}\): .*{reason}"
    with pytest.raises(UnsupportedModel, match=message):
        projection(block.attention, name=block.attention_name)


@pytest.mark.parametrize("kind", [Attention, AttentionRope, EvaAttention])
def test_query_key_norm_is_refused_in_any_class(kind):
    options = {"num_heads": 2, "qk_norm": True, "scale_norm": False, "norm_layer": LayerNorm}
    with pytest.raises(UnsupportedModel, match=f"^{kind.__name__}: it normalises queries"):
        projection(made(kind, 8, **options))


def test_only_the_blocks_of_hiera_that_do_not_pool_queries_are_measured():
    assert projection(MaskUnitAttention(8, 16, heads=2)).w_q.shape == (2, 8, 8)
    with pytest.raises(UnsupportedModel, match="it pools queries"):
        projection(MaskUnitAttention(8, 16, heads=2, q_stride=4))


def test_a_model_without_attention_is_refused_by_name():
    model = on_meta("resnet18")
    for question in (describe_blocks, omissions):
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


def test_a_bias_that_the_model_shares_among_its_blocks_is_named():
    options = {**SMALL, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
    model = build("beit_base_patch16_224", options)
    assert projection(model.blocks[0].attn).omitted == ()
    assert omissions(model) == (RELATIVE,)


class Renamed(Attention):
    pass


class Louder(Attention):
    def forward(self, x, **kwargs):
        return super().forward(2 * x, **kwargs)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(6, 4), nn.Linear(6, 4)


def test_a_subclass_that_keeps_its_forward_is_read_like_its_parent():
    assert projection(Renamed(8, num_heads=2)).num_heads == 2


def test_a_subclass_with_another_forward_is_refused():
    with pytest.raises(UnsupportedModel, match=r"^Louder: it replaces the forward of Attention"):
        projection(Louder(8, num_heads=2))


def test_an_unknown_class_is_refused_until_an_adapter_is_registered(monkeypatch):
    monkeypatch.setattr(sys.modules["burst.projection"], "_ADAPTERS", {})
    attention = Unknown()
    with pytest.raises(UnsupportedModel, match=r"^blocks\.0\.attn \(Unknown\): attention of "):
        projection(attention, name="blocks.0.attn")

    @adapter(Unknown)
    def _unknown(attention):
        return Layout(attention.query.weight, attention.key.weight, heads=2)

    assert projection(attention).w_q.shape == (2, 6, 2)


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
