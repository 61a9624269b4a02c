"""nn.MultiheadAttention, torch's encoder layers and torchvision's attentions, by their scores."""

import pytest
import torch
from scores import close, omissions, randomised, recorded_scores
from torch import nn
from torch.nn.modules import module as torch_module
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.models.vision_transformer import VisionTransformer

from burst.adapters import describe_blocks, find_blocks, num_prefix_tokens
from burst.adapters.norms import first_norm
from burst.adapters.registry import CROSS, RELATIVE, SHIFT_MASK
from burst.adapters.torch import EXTRA_KEY
from burst.errors import UnsupportedModel
from burst.projection import projection
from burst.tokens import capture

WIDTH, HEADS = 24, 3
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


class SelfAttention(nn.Module):
    """A block written by hand around nn.MultiheadAttention."""

    def __init__(self, **options):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.mixing = nn.MultiheadAttention(WIDTH, HEADS, **options)

    def forward(self, x):
        x = self.norm1(x)
        values = torch.randn(*x.shape[:-1], self.mixing.vdim)
        return self.mixing(x, key=x, value=x if self.mixing.vdim == WIDTH else values)[0]


def encoder(*, norm_first=False, heads=4, layer=nn.TransformerEncoderLayer, **options):
    layer = layer(WIDTH, heads, 48, batch_first=True, norm_first=norm_first)
    options = {"enable_nested_tensor": False, **options}
    return randomised(nn.TransformerEncoder(layer, 2, **options))


def tokens_and_output(model, *args, **kwargs):
    with torch.inference_mode(), capture(model) as tokens:
        output = model(*args, **kwargs)
    return tokens, output


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"vdim": 7},
        {"vdim": 7, "bias": False, "batch_first": True},
    ],
    ids=str,
)
def test_scores_of_multi_head_attention_are_those_of_its_weights(options):
    block = randomised(SelfAttention(**options))
    with recorded_scores() as scores:
        tokens, _ = tokens_and_output(block, torch.randn(2, 5, WIDTH))
    close(
        projection(block.mixing).scores(tokens[0]), scores[0].view(-1, HEADS, *scores[0].shape[-2:])
    )
    assert find_blocks(block)[0].attention_name == "mixing"


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_an_extra_key_is_named(option):
    block = randomised(SelfAttention(batch_first=True, **{option: True}))
    assert omissions(block) == (EXTRA_KEY,)
    with recorded_scores() as scores:
        tokens, _ = tokens_and_output(block, torch.randn(2, 5, WIDTH))
    own = scores[0].view(2, HEADS, 5, 6)[..., :5]
    close(projection(block.mixing).scores(tokens[0]), own)


@pytest.mark.parametrize("heads", [2, 3])  # torch has a fast path for an even number
def test_torchvision_vit_is_measured_without_its_class_token(heads):
    vit = randomised(VisionTransformer(16, 8, 2, heads, WIDTH, 48, num_classes=5))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        plain = vit(images)
    _, captured = tokens_and_output(vit, images)
    assert torch.equal(plain, captured)
    blocks = find_blocks(vit)
    assert blocks[1].name == "encoder.layers.encoder_layer_1"
    assert blocks[1].attention_name == "encoder.layers.encoder_layer_1.self_attention"
    assert num_prefix_tokens(vit) == 1
    assert first_norm(blocks[1], WIDTH).centres
    with recorded_scores() as scores, capture(vit) as tokens:
        vit(images)  # with gradients torch takes the path that can be seen
    for block, expected in zip(blocks, scores, strict=True):
        close(projection(block.attention).scores(tokens[block.index]), expected)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("heads", [3, 4])
@pytest.mark.parametrize("mask", [None, PADDING])
def test_encoder_layers_are_read_as_they_compute_without_hooks(norm_first, heads, mask):
    model = encoder(norm_first=norm_first, heads=heads)
    x = torch.randn(2, 5, WIDTH)
    with torch.inference_mode():
        plain = model(x, src_key_padding_mask=mask)
        second = model.layers[0](x, src_key_padding_mask=mask)
        expected = [
            layer.norm1(y) if norm_first else y
            for layer, y in zip(model.layers, (x, second), strict=True)
        ]
    tokens, output = tokens_and_output(model, x, src_key_padding_mask=mask)
    assert torch.equal(output, plain)
    assert all(torch.equal(tokens[i], expected[i]) for i in (0, 1))


def test_the_fast_path_of_encoder_layers_is_still_taken(monkeypatch):
    model, calls = encoder(), []
    fast = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(
        torch, "_transformer_encoder_layer_fwd", lambda *a: calls.append(a) or fast(*a)
    )
    tokens_and_output(model, torch.randn(2, 5, WIDTH))
    assert len(calls) == 2


@pytest.mark.parametrize("training", [False, True])
def test_scores_of_encoder_layers_are_those_of_their_attention(training):
    model = encoder(norm_first=True).train(training)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    with recorded_scores() as scores, capture(model) as tokens:
        model(torch.randn(2, 5, WIDTH))
    assert not tokens[0].requires_grad
    blocks = find_blocks(model)
    assert [block.attention_name for block in blocks] == [
        "layers.0.self_attn",
        "layers.1.self_attn",
    ]
    for block, expected in zip(blocks, scores, strict=True):
        close(projection(block.attention).scores(tokens[block.index]), expected)


def test_some_of_the_layers_are_read():
    model = encoder()
    with torch.no_grad(), capture(model, [1]) as tokens:
        model(torch.randn(2, 5, WIDTH))
    assert list(tokens) == [1]


def test_a_layer_that_is_given_its_tokens_by_keyword_is_refused():
    layer = encoder().layers[0]
    message = r"TransformerEncoderLayer is given 'src' by keyword"
    with pytest.raises(UnsupportedModel, match=message), capture(layer):
        layer(src=torch.randn(2, 5, WIDTH))


def test_listening_from_outside_ends_with_the_context():
    model = encoder()
    with pytest.raises(ZeroDivisionError), capture(model):
        raise ZeroDivisionError
    with torch.no_grad(), capture(model):
        model(torch.randn(2, 5, WIDTH))
    # torch.compile and every module's call look whether there is a trace of any.
    traces = [name for name in vars(torch_module) if name.startswith("_global_")]
    assert not any(
        len(trace) for name in traces if hasattr(trace := getattr(torch_module, name), "__len__")
    )
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_other_models_that_run_inside_the_context_are_not_read():
    model, other = encoder(), encoder()
    x = torch.randn(2, 5, WIDTH)
    with torch.no_grad(), capture(model) as tokens:
        model(x)
        other(2 * x)
    assert torch.equal(tokens[0], x)


class Doubling(nn.TransformerEncoderLayer):
    def forward(self, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
        return self._sa_block(2 * src, src_mask, src_key_padding_mask)


def test_an_encoder_layer_with_a_forward_of_its_own_is_read_at_its_attention():
    model = encoder(layer=Doubling)
    x = torch.randn(2, 5, WIDTH)
    tokens, _ = tokens_and_output(model, x)
    assert torch.equal(tokens[0], 2 * x)


class Halving(nn.TransformerEncoderLayer):
    def _sa_block(self, x, *args, **kwargs):
        return super()._sa_block(x / 2, *args, **kwargs)


def test_an_encoder_layer_that_changes_what_its_attention_reads_is_refused():
    message = "Halving replaces _sa_block, so what its attention reads is not known"
    with pytest.raises(UnsupportedModel, match=message):
        tokens_and_output(encoder(layer=Halving), torch.randn(2, 5, WIDTH))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padding_that_the_encoder_takes_out_is_refused_with_what_to_do():
    model = encoder(enable_nested_tensor=True)
    x = torch.randn(2, 5, WIDTH)
    message = (
        r"layers\.0\.self_attn \(MultiheadAttention\) reads a nested tensor.*use_nested_tensor"
    )
    with pytest.raises(UnsupportedModel, match=message):
        tokens_and_output(model, x, src_key_padding_mask=PADDING)
    model.use_nested_tensor = False
    tokens, _ = tokens_and_output(model, x, src_key_padding_mask=PADDING)
    assert torch.equal(tokens[0], x)


def test_attention_to_other_tokens_is_refused():
    decoder = nn.TransformerDecoderLayer(WIDTH, HEADS, 48, batch_first=True).eval()
    own, cross = describe_blocks(decoder)
    assert (own.supported, own.num_heads) == (True, HEADS)
    assert cross.reason == CROSS
    narrow = nn.MultiheadAttention(WIDTH, HEADS, kdim=7, vdim=7)
    with pytest.raises(UnsupportedModel, match=r"^MultiheadAttention: cross-attention"):
        projection(narrow)


def test_attention_to_other_tokens_is_found_when_it_runs():
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    x, y = torch.randn(2, 5, WIDTH), torch.randn(2, 4, WIDTH)
    with pytest.raises(UnsupportedModel, match="cross-attention: its keys come from other"):
        tokens_and_output(attention, x, y, y)
    tokens, _ = tokens_and_output(attention, x, key=x, value=torch.randn(2, 5, WIDTH))
    assert torch.equal(tokens[0], x)


def swin(kind=ShiftedWindowAttention, shift=1):
    return randomised(kind(WIDTH, [2, 2], [shift, shift], HEADS))


def test_torchvision_windows_are_scored_within_each_window():
    attention = swin(shift=0)
    x = torch.randn(2, 4, 6, WIDTH)
    with recorded_scores() as scores:
        tokens, _ = tokens_and_output(attention, x)
    windows = tokens[0].view(2, 2, 2, 3, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(12, 4, WIDTH)
    bias = attention.get_relative_position_bias()
    close(projection(attention).scores(windows) + bias, scores[0])


def test_shifted_windows_name_their_mask_and_cosine_attention_is_refused():
    assert omissions(swin(shift=0)) == (RELATIVE,)
    assert omissions(swin(shift=1)) == (RELATIVE, SHIFT_MASK)
    assert describe_blocks(swin(ShiftedWindowAttentionV2))[0].reason.startswith("cosine attention")


def test_the_attention_of_maxvit_has_a_scale_of_its_own():
    attention = randomised(RelativePositionalMultiHeadAttention(WIDTH, 8, 4))
    x = torch.randn(2, 3, 4, WIDTH)
    with recorded_scores() as scores:
        tokens, _ = tokens_and_output(attention, x)
    windows = tokens[0].view(2, 3, 4, WIDTH)
    bias = attention.get_relative_positional_bias()
    close(projection(attention).scores(windows) + bias, scores[0])
    assert omissions(attention) == (RELATIVE,)
