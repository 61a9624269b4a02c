"""OpenCLIP's towers by the scores of their attentions; its poolers and cross-attention refused."""

import pytest
import torch
from scores import close, randomised, recorded_scores

from burst.adapters import describe_blocks, find_blocks, num_prefix_tokens
from burst.adapters.norms import first_norm
from burst.adapters.registry import COSINE, CROSS, LEARNED, QUERY_KEY_NORM
from burst.projection import projection
from burst.tokens import capture

open_clip = pytest.importorskip("open_clip", reason="install the extra [open-clip]")
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP  # noqa: E402
from open_clip.transformer import Attention, CustomResidualAttentionBlock  # noqa: E402

VISION = {"layers": 2, "width": 24, "head_width": 8, "patch_size": 4, "image_size": 8}
TEXT = {"context_length": 7, "vocab_size": 40, "width": 16, "heads": 2, "layers": 2}


def clip(kind=CLIP, vision=None, text=None):
    return randomised(
        kind(12, CLIPVisionCfg(**VISION | (vision or {})), CLIPTextCfg(**TEXT | (text or {})))
    )


def inputs():
    return torch.randn(2, 3, 8, 8), torch.randint(1, 40, (2, 7))


def run(model, *args):
    with torch.no_grad():
        plain = model(*args)
        with capture(model) as tokens:
            captured = model(*args)
    assert all(torch.equal(a, b) for a, b in zip(plain, captured, strict=True))
    return tokens


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
def test_both_towers_are_measured_by_their_scores(kind):
    model, pair = clip(kind), inputs()
    names = [block.name for block in find_blocks(model)]
    text = "transformer" if kind is CLIP else "text.transformer"
    assert names == [
        *(f"visual.transformer.resblocks.{i}" for i in (0, 1)),
        *(f"{text}.resblocks.{i}" for i in (0, 1)),
    ]
    assert run(model, *pair).keys() == {0, 1, 2, 3}
    with recorded_scores() as scores, capture(model) as tokens:
        model(*pair)  # with gradients torch takes the path that can be seen
    for block, expected in zip(find_blocks(model), scores, strict=True):
        close(projection(block.attention).scores(tokens[block.index]), expected)
    assert num_prefix_tokens(model) == 1
    assert first_norm(find_blocks(model)[0], 24).centres


def block(**options):
    return randomised(CustomResidualAttentionBlock(24, 3, **options))


@pytest.mark.parametrize("options", [{}, {"scale_attn": True}], ids=str)
def test_the_attention_of_custom_blocks_is_measured_by_its_scores(options):
    model = block(**options)
    with recorded_scores() as scores:
        tokens = run(model, torch.randn(2, 5, 24))
    close(projection(model.attn).scores(tokens[0]), scores[0].view(2, 3, 5, 5))


def test_options_that_normalise_queries_and_keys_are_refused():
    assert describe_blocks(block(scale_cosine_attn=True))[0].reason == COSINE
    attention = Attention(24, 3)
    attention.ln_q = torch.nn.LayerNorm(8)
    assert describe_blocks(attention)[0].reason == QUERY_KEY_NORM


def test_poolers_and_cross_attention_are_refused():
    vision = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 3}
    *towers, pooler = describe_blocks(clip(vision=vision).visual)
    assert all(one.supported for one in towers)
    assert (pooler.name, pooler.reason) == ("attn_pool", LEARNED)
    multimodal = {**TEXT, "context_length": 7}
    coca = open_clip.CoCa(12, multimodal, TEXT, VISION | vision)
    cross = [one for one in describe_blocks(coca) if one.name == "text_decoder.cross_attn"]
    assert [one.reason for one in cross] == [CROSS]
    resnet = open_clip.modified_resnet.ModifiedResNet((1, 1, 1, 1), 12, 4, image_size=32, width=8)
    assert describe_blocks(resnet)[0].reason.startswith("it pools a feature map")


def test_a_tower_of_timm_is_measured_as_timm_has_it():
    vision = {"timm_model_name": "test_vit", "image_size": 32, "timm_pool": ""}
    model = clip(CustomTextCLIP, vision)
    assert find_blocks(model)[0].name == "visual.trunk.blocks.0"
    assert num_prefix_tokens(model) == 1
