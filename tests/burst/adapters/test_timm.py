"""timm's attention classes against the scores that timm's own modules compute."""

from inspect import signature

import pytest
import timm
import torch
import torch.nn.functional as F
from scores import omissions
from timm.layers import Attention, AttentionRope, LayerNorm
from timm.models.eva import EvaAttention
from timm.models.hiera import MaskUnitAttention
from torch import nn

from burst.adapters import describe_blocks, find_blocks
from burst.adapters.registry import RELATIVE, ROTARY
from burst.adapters.timm import DIFFERENCE, SHIFT_MASK, TALKING_HEADS
from burst.errors import UnsupportedModel
from burst.projection import projection
from burst.tokens import capture

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
    ("swinv2_tiny_window8_256", {}, "cosine attention in shifted windows normalises"),
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
def scored(monkeypatch):
    """Queries, keys and scale that reach the attention function, call by call."""
    calls = []
    attend = F.scaled_dot_product_attention

    def record(q, k, v, **kwargs):
        calls.append((q, k, kwargs.get("scale") or q.shape[-1] ** -0.5))
        return attend(q, k, v, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    return calls


def scores_alone(block, x, calls):
    """(B, h, N, N) scores of one attention, run on the tokens that it reads in the model."""
    calls.clear()
    if block.attention is block.module:
        block.module.in_norm = nn.Identity()
    block.attention(x)
    # Differential attention makes two calls: its even heads, its odd heads.
    return torch.stack([q @ k.mT * scale for q, k, scale in calls], dim=2).flatten(1, 2)


@pytest.mark.parametrize(
    "name, options, size, omitted", MEASURED, ids=[name for name, *_ in MEASURED]
)
def test_scores_are_those_of_the_model_with_biases_and_scale(name, options, size, omitted, scored):
    model = build(known(name), {"img_size": size, **options})
    assert omissions(model) == omitted
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(BIASES):
            nn.init.normal_(parameter)
    for block in find_blocks(model):
        block.attention.fused_attn = True  # so that queries and keys can be seen
    with torch.inference_mode(), capture(model) as tokens:
        model(torch.randn(2, 3, size, size))
    for block in find_blocks(model):
        x = tokens[block.index]
        weights = projection(block.attention)
        with torch.inference_mode():
            expected = scores_alone(block, x, scored)
        assert expected.shape[1] == weights.num_heads
        # float32 sums over d in another order, relative to the largest score
        torch.testing.assert_close(
            weights.scores(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max()
        )


def test_a_rotary_embedding_leaves_scores_at_equal_positions_as_they_are(scored):
    model = build("eva02_tiny_patch14_224", {"depth": 1, "img_size": 28})
    with torch.inference_mode(), capture(model) as tokens:
        model(torch.randn(2, 3, 28, 28))
    [(q, k, _)] = scored
    weights = projection(model.blocks[0].attn)
    own = torch.einsum("bnd,hdc,hec,bne->bhn", tokens[0], weights.w_q, weights.w_k, tokens[0])
    turned = (q * k).sum(-1)
    torch.testing.assert_close(own, turned, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(q, torch.einsum("bnd,hdc->bhnc", tokens[0], weights.w_q))


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
    [(q, k, _)] = scored
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


def test_a_bias_that_the_model_shares_among_its_blocks_is_named():
    options = {**SMALL, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
    model = build("beit_base_patch16_224", options)
    assert projection(model.blocks[0].attn).omitted == ()
    assert omissions(model) == (RELATIVE,)
    assert omissions(nn.ModuleDict({"trunk": model})) == (RELATIVE,)


def test_an_embedding_that_the_model_does_not_have_is_not_named_wherever_the_model_sits():
    """EVA-02's attention in EVA-01's, which has absolute positions."""
    model = build("eva02_tiny_patch14_224", {**SMALL, "use_rot_pos_emb": False})
    assert omissions(model) == omissions(nn.ModuleDict({"trunk": model})) == ()


def test_heads_need_not_fill_the_width():
    options = {"attn_head_dim": 5, "scale_norm": True, "norm_layer": LayerNorm}
    attention = made(Attention, 12, num_heads=2, **options)
    weights = projection(attention)
    assert (weights.num_heads, weights.dim, weights.head_dim) == (2, 12, 5)
    assert weights.whole()[0].shape == (12, 10)
