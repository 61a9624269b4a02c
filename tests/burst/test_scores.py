"""What the softmax of each attention is given, against the model's own attention weights."""

import math

import pytest
import timm
import torch
import torchvision
import transformers
from hf_models import MODELS, REFUSED, Known
from scores import randomised
from support import DIM, in_thread, vit
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from burst.adapters import adapter, find_blocks
from burst.adapters.registry import CROSS, AttentionLayout
from burst.errors import BurstError, HookNeverFired, UnsupportedModel
from burst.forward import read_tokens
from burst.projection import projection
from burst.score_tiles import Product, Scores
from burst.scores import capture_scores, readable_blocks
from burst.softmax import SoftmaxAccumulator
from burst.stream import as_stream
from burst.tokens import capture


def read(model, *args, blocks=None, **kwargs):
    """block -> its scores (B, h, n_q, n_k) in one run, whose output must be the model's own."""
    found = {}
    with torch.no_grad():
        plain = model(*args, **kwargs)
        with capture_scores(model, blocks, on_scores=lambda i, one: found.update({i: one.whole()})):
            output = model(*args, **kwargs)
    assert all(torch.equal(one, two) for one, two in zip(flat(plain), flat(output), strict=True))
    return found


def flat(output):
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [tensor for part in parts or () for tensor in flat(part)]


def images(size=16):
    return torch.randn(2, 3, size, size)


def by_hand(attention, x):
    """Scores of a plain timm attention, from its weights, in float64."""
    heads, d = attention.num_heads, x.shape[-1]
    qkv = x.double() @ attention.qkv.weight.double().mT + attention.qkv.bias.double()
    q, k, _ = qkv.unflatten(-1, (3, heads, d // heads)).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm.double()(q), attention.k_norm.double()(k)
    return q @ k.mT * attention.scale


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_scores_of_a_vit_are_those_of_its_weights(fused, normed):
    model = randomised(vit(qk_norm=normed))
    for block in model.blocks:
        block.attn.fused_attn = fused
    x = images()
    found = read(model, x)
    with torch.no_grad(), capture(model) as tokens:
        model(x)
    assert list(found) == [0, 1, 2]
    for i, scores in found.items():
        expected = by_hand(model.blocks[i].attn, tokens[i])
        torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-4)


ROTARY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}


@pytest.mark.parametrize(
    "name, options, size",
    [
        ("eva02_tiny_patch14_224", ROTARY, 16),
        ("beit_base_patch16_224", ROTARY, 16),
        ("hiera_tiny_224", {"embed_dim": 16, "stages": (1, 1, 1, 1), "img_size": (96, 96)}, 96),
        ("nest_tiny_jx", {"img_size": 64}, 64),
        ("pvt_v2_b0", {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 10, 8)}, 32),
        ("cait_xxs24_224", {**ROTARY, "depth_token_only": 1}, 16),
        ("samvit_base_patch16_224", ROTARY, 16),
    ],
)
def test_fused_kernels_and_a_softmax_are_given_the_same_scores(name, options, size):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **options).eval()
    x = images(size)
    fused = read(model, x)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    eager = read(model, x)
    assert fused.keys() == eager.keys()
    for i, scores in fused.items():
        torch.testing.assert_close(scores, eager[i], rtol=1e-4, atol=1e-5)


def shift_masks(model, windows):
    """Where Swin's own masks of -100 are, for scores (B * windows, h, n, n)."""
    return [
        torch.zeros(())
        if block.attn_mask is None
        else block.attn_mask.repeat(windows // len(block.attn_mask), 1, 1)[:, None]
        for stage in model.layers
        for block in stage.blocks
    ]


def spread_far(model):
    """The model with queries and keys, of Swin V2 a scale, that make scores beyond -100 and 100."""
    for name, parameter in model.named_parameters():
        if name.endswith(
            ("qkv.weight", "query.weight", "key.weight", "q_proj.weight", "k_proj.weight")
        ):
            nn.init.normal_(parameter, std=3.0)
        elif name.endswith("logit_scale"):
            nn.init.constant_(parameter, 6.0)  # exp of it, where the model does not cap it
    return model.eval()


@pytest.mark.parametrize("version", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
@pytest.mark.parametrize("fused", [True, False])
def test_the_shifted_windows_mask_is_left_out_to_the_entry(version, fused):
    """Whatever the scores: Swin's own mask only adds -100 to them."""
    torch.manual_seed(0)
    model = spread_far(timm.create_model(
        version, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, img_size=32,
    ))  # fmt: skip
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    found = read(model, images(32))
    for scores, mask in zip(found.values(), shift_masks(model, len(found[0])), strict=True):
        assert torch.equal(scores == -math.inf, (mask < 0).expand_as(scores))
        assert scores[scores.isfinite()].min() < -60
    assert found[1].isneginf().any()


class Masks(TorchFunctionMode):
    """Notes where -100 is filled in."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.masked_fill and args[2] == -100:
            self.found.append(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (16, 40), (16, 16), (12, 12)])
@pytest.mark.parametrize("window", [(4, 4), (3, 5)])
@pytest.mark.parametrize("v2", [False, True])
def test_a_mask_that_torchvision_makes_is_left_out_to_the_entry(size, window, v2):
    """Also of maps that are padded, or that a window covers along an axis."""
    torch.manual_seed(0)
    module = torchvision.models.swin_transformer
    options = {"block": module.SwinTransformerBlockV2} if v2 else {}
    options |= {"downsample_layer": module.PatchMergingV2} if v2 else {}
    model = module.SwinTransformer([4, 4], 16, [2], [2], list(window), **options)
    x = torch.randn(2, 3, *size)
    with Masks() as masks:
        found = read(spread_far(model), x)
    assert not found[0].isneginf().any() and len(masks.found) in (0, 2)  # it ran twice
    hidden = masks.found[0] if masks.found else torch.zeros(1, 1, 1, dtype=torch.bool)
    hidden = hidden.repeat(len(found[1]) // len(hidden), 1, 1)[:, None]
    assert torch.equal(found[1].isneginf(), hidden.expand_as(found[1]))


@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t", "vit_b_16"])
def test_torchvisions_models_are_read(name):
    kinds = {"vit_b_16": torchvision.models.VisionTransformer}
    if name in kinds:
        model = kinds[name](32, 8, 2, 4, 32, 64)
    else:
        attention = torchvision.models.swin_transformer
        block = {"swin_v2_t": attention.SwinTransformerBlockV2}.get(name)
        merge = {"swin_v2_t": attention.PatchMergingV2}.get(name)
        options = {"block": block, "downsample_layer": merge} if block else {}
        model = torchvision.models.SwinTransformer([4, 4], 16, [2], [2], [4, 4], **options)
    found = read(randomised(model), images(32))
    assert len(found) == 2
    for i, scores in found.items():
        assert scores.shape[1:] == ((2, 16, 16) if "swin" in name else (4, 17, 17))
        assert scores.isneginf().any() == ("swin" in name and i == 1)


@pytest.mark.parametrize("kind", ["Swin", "Swinv2"])
def test_the_mask_of_shifted_windows_in_transformers_is_left_out_to_the_entry(kind):
    known = getattr(transformers, f"{kind}Model")
    few = {"embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4}
    for fused in ("sdpa", "eager") if known._supports_sdpa else ("eager",):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(image_size=32, patch_size=4, **few)
        model = transformers.AutoModel.from_config(config, attn_implementation=fused)
        with Masks() as masks:
            scores = read(spread_far(model), pixel_values=images(32))
        hidden = masks.found[0].repeat(2, 1, 1)[:, None]
        assert hidden.any()
        assert torch.equal(scores[1].isneginf(), hidden.expand_as(scores[1]))
        assert not scores[0].isneginf().any()
        assert min(one[one.isfinite()].min() for one in scores.values()) < -60


NAMES = [
    "ViTModel", "Dinov2WithRegistersModel", "DINOv3ViTModel", "CLIPVisionModel", "CLIPTextModel",
    "BertModel", "GPT2Model", "LlamaModel", "Qwen2Model", "GemmaModel", "Gemma2Model", "T5Model",
    "BloomModel",
]  # fmt: skip


def hugging(names, found=MODELS):
    return [pytest.param(one, id=one.name) for one in found if one.name in names]


def own_weights(model, inputs):
    """What the model itself gives as its attention weights."""
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    if model.config.is_encoder_decoder:
        return [*output.encoder_attentions, *output.decoder_attentions]
    return list(output.attentions)


def padded(known: Known):
    """What a model is called with: texts padded on the left."""
    inputs = known.inputs()
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, :3] = 0
    return inputs


REFUSED_BUT_READ = ["Qwen3Model", "Gemma3TextModel", "Olmo2Model", "DebertaModel", "Swinv2Model"]
REFUSED_BUT_READ += ["SegformerModel"]
READ = [*hugging(NAMES), *hugging(REFUSED_BUT_READ, [one for one, _ in REFUSED])]


@pytest.mark.parametrize("known", READ)
def test_the_softmax_of_scores_is_what_transformers_give_as_attentions(known):
    model = known.build()
    inputs = padded(known)
    kept, _ = readable_blocks(model, None)
    found = read(model, blocks=[block.index for block in kept], **inputs)
    keep = inputs.get("attention_mask")
    for scores, weights in zip(found.values(), own_weights(model, inputs), strict=True):
        pair = scores.softmax(-1), weights
        if keep is not None and scores.shape[2] == keep.shape[1]:  # queries of padding see nothing
            pair = [one.transpose(1, 2)[keep.bool()] for one in pair]
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)


# The sdpa attention of Gemma 2 has no soft cap, that of GPT-2 (4.56) not its scale; Bloom has none.
DIFFERENT = {"Gemma2Model", "BloomModel", "GPT2Model"}


@pytest.mark.parametrize("known", hugging({*NAMES, "SwinModel"} - DIFFERENT))
def test_transformers_sdpa_and_eager_attention_are_given_the_same_scores(known):
    model = known.build()
    if not model._supports_sdpa:
        pytest.skip("this version has no sdpa attention of this model")
    inputs = padded(known)
    kept, _ = readable_blocks(model, None)
    blocks = [block.index for block in kept]
    eager = read(model, blocks=blocks, **inputs)
    model.set_attn_implementation("sdpa")
    for i, scores in read(model, blocks=blocks, **inputs).items():
        expected = eager[i].nan_to_num(neginf=-1e6)
        torch.testing.assert_close(scores.nan_to_num(neginf=-1e6), expected, rtol=1e-4, atol=1e-4)


def test_open_clip_is_read():
    open_clip = pytest.importorskip("open_clip", reason="install the extra [open_clip]")
    tower = open_clip.transformer.VisionTransformer(
        image_size=16, patch_size=4, width=32, layers=2, heads=4, mlp_ratio=2, output_dim=8
    )
    found = read(randomised(tower), x := images())
    with torch.no_grad(), capture(tower) as tokens:
        tower(x)
    for block in find_blocks(tower):
        expected = projection(block.attention).scores(tokens[block.index])
        torch.testing.assert_close(found[block.index], expected, rtol=1e-4, atol=1e-4)


class OneBlock(nn.Module):
    def __init__(self, attention, **call):
        super().__init__()
        self.attn, self.call = attention, call

    def forward(self, x):
        return self.attn(x, x, x, **self.call)[0]


CAUSAL = torch.ones(5, 5).triu(1).bool()
PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}]
)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"attn_mask": CAUSAL, "is_causal": True},
        {"key_padding_mask": PADDING},
        {"attn_mask": CAUSAL, "key_padding_mask": PADDING},
        {"attn_mask": torch.linspace(-3, 3, 200).view(8, 5, 5)},
    ],
)
def test_torchs_attention_on_its_fast_path_and_off_it(batch_first, options, need_weights, masks):
    attention = nn.MultiheadAttention(24, 4, batch_first=batch_first, **options)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(2, 5, 24) if batch_first else torch.randn(5, 2, 24)
    block = OneBlock(attention, need_weights=need_weights, **masks)
    [scores] = read(block.eval(), x).values()
    attention.train()  # where it takes no fast path
    weights = attention(x, x, x, average_attn_weights=False, **masks)[1]
    torch.testing.assert_close(scores.softmax(-1), weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("heads", [4, 3])  # an odd number is computed step by step
@pytest.mark.parametrize(
    "masks", [{}, {"mask": CAUSAL, "is_causal": True}, {"src_key_padding_mask": PADDING}]
)
def test_a_layer_of_torch_stays_on_its_fast_path(norm_first, heads, masks):
    layer = nn.TransformerEncoderLayer(
        24, heads, 32, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    found = read(model, x := torch.randn(2, 5, 24), **masks)
    first = model.layers[0]
    y = first.norm1(x) if norm_first else x
    names = {"mask": "attn_mask", "src_key_padding_mask": "key_padding_mask"}
    given = {names.get(name, name): mask for name, mask in masks.items()}
    first.self_attn.train()
    weights = first.self_attn(y, y, y, average_attn_weights=False, **given)[1]
    torch.testing.assert_close(found[0].softmax(-1), weights, rtol=1e-5, atol=1e-6)
    assert all("forward" not in vars(one) for one in model.layers)


def test_an_attention_that_a_library_calls_as_a_function_is_read():
    [known] = [one for one in MODELS if one.name == "WavLMModel"]
    model, inputs = known.build(), known.inputs()
    for scores, given in zip(
        read(model, **inputs).values(), own_weights(model, inputs), strict=True
    ):
        weights = scores.softmax(-1).mean(1)
        mean = given.view(2, -1, *weights.shape[1:]).mean(1)  # it repeats them for each head
        torch.testing.assert_close(weights, mean, rtol=1e-5, atol=1e-6)


class Attention(nn.Module):
    """One head, as a user may write it."""

    def __init__(self, scored):
        super().__init__()
        self.q, self.k = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.scored = scored

    def forward(self, x):
        return self.scored(self.q(x) @ self.k(x).mT) @ x


@adapter(Attention)
def _read(attention):
    return AttentionLayout(query=attention.q.weight, key=attention.k.weight, heads=1)


class Plain(nn.Module):
    def __init__(self, scored):
        super().__init__()
        self.layers = nn.ModuleList(Attention(scored) for _ in range(2))
        self.gate = nn.Softmax(-1)

    def forward(self, x):
        for layer in self.layers:
            x = self.gate(x) + layer(x)
        return x


SOFTMAXES = {
    "method": lambda x: x.softmax(-1),
    "function": lambda x: torch.softmax(x, dim=2),
    "functional": lambda x: functional.softmax(x, -1, dtype=torch.float64).float(),
    "module": nn.Softmax(dim=-1),
}


@pytest.mark.parametrize("kind", SOFTMAXES)
def test_any_softmax_over_keys_is_read_and_none_outside_the_attention(kind):
    model = Plain(SOFTMAXES[kind])
    found = read(model, x := torch.randn(2, 5, DIM))
    first = model.layers[0]
    torch.testing.assert_close(found[0][:, 0], first.q(x) @ first.k(x).mT)
    assert len(found) == 2


def test_an_attention_without_a_softmax_is_named():
    model = Plain(torch.sigmoid)
    message = r"layers\.0 \(Attention\) calls neither a softmax nor scaled_dot_product_attention"
    with pytest.raises(UnsupportedModel, match=message):
        read(model, torch.randn(2, 5, DIM))


def test_which_of_two_softmaxes_is_given_the_scores_is_not_guessed():
    model = Plain(lambda x: x.softmax(-1) + (-x).softmax(-1))
    with pytest.raises(UnsupportedModel, match=r"layers\.0 \(Attention\) calls more than one"):
        read(model, torch.randn(2, 5, DIM))


def test_a_kernel_that_nobody_can_look_into_is_named():
    [known] = [one for one in MODELS if one.name == "LlamaModel"]
    model = known.build()
    model.config._attn_implementation = "flash_attention_2"
    message = r"LlamaAttention: its attention is flash_attention_2, .*'sdpa' or 'eager'"
    with pytest.raises(UnsupportedModel, match=message):
        readable_blocks(model, None)
    with (
        pytest.raises(UnsupportedModel, match=r"layers\.0\.self_attn: its attention is flash"),
        capture_scores(model, on_scores=lambda *_: None),
    ):
        pass


def test_a_block_of_channels_or_of_other_tokens_is_left_out_and_told():
    model = timm.create_model("davit_tiny", depths=(1, 1), embed_dims=(8, 8), num_heads=(2, 2))
    kept, skipped = readable_blocks(model, None)
    assert len(kept) == len(skipped) == 2
    assert "compares channels" in skipped[0].reason
    with pytest.raises(
        UnsupportedModel, match=r"the logits of .* cannot be read: ChannelAttention"
    ):
        readable_blocks(model, [skipped[0].block])
    with pytest.raises(BurstError, match="blocks 0 to 3"):
        readable_blocks(model, [4])


class Pooled(nn.Module):
    """An encoder whose tokens learned queries ask."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.MultiheadAttention(16, 2, batch_first=True)
        self.queries = nn.Parameter(torch.randn(1, 3, 16))
        self.pool = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        x, _ = self.encoder(x, x, x)
        return self.pool(self.queries.expand(len(x), -1, -1), x, value=x)[0]


class Decoding(nn.Module):
    """An attention of OPT on the tokens of something else."""

    def __init__(self):
        super().__init__()
        sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 8, "vocab_size": 8}
        config = transformers.OPTConfig(num_attention_heads=2, num_hidden_layers=1, **sizes)
        self.self_attn = transformers.OPTModel(config).decoder.layers[0].self_attn

    def forward(self, x):
        return self.self_attn(x, key_value_states=x + 1)[0]


@pytest.mark.parametrize("kind", [Pooled, Decoding])
def test_scores_between_other_tokens_are_refused_as_their_tokens_are(kind):
    model, x = kind().eval(), torch.randn(2, 5, 16)
    for watching in (
        capture_scores(model, on_scores=lambda *_: None),
        capture(model, on_tokens=lambda *_: None),
    ):
        with pytest.raises(UnsupportedModel, match=f"{CROSS}; leave this block out"), watching:
            model(x)


def test_scores_of_an_attention_sink_are_refused():
    """Its softmax is given a column more, of the sink, and every row less its largest score."""
    (known,) = (one for one in MODELS if one.name == "GptOssModel")
    with pytest.raises(UnsupportedModel, match=r"GptOssAttention: attention sink: .*one more col"):
        readable_blocks(known.build(), None)


def count_hooks(model):
    hooks = ("_forward_pre_hooks", "_forward_hooks")
    return sum(len(getattr(module, one)) for module in model.modules() for one in hooks)


def test_hooks_and_the_watch_are_gone_afterwards_also_after_an_error():
    model = vit().eval()

    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), capture_scores(model, [0], on_scores=fail):
        model(images())
    assert count_hooks(model) == 0
    assert torch.overrides._get_current_function_mode_stack() == []
    assert len(read(model, images())) == 3


@pytest.mark.parametrize("attention", ["timm", "torch", "layer"])
def test_what_another_thread_runs_is_not_read(attention):
    if attention == "timm":
        model, x = vit().eval(), images()
    elif attention == "torch":
        model, x = OneBlock(nn.MultiheadAttention(24, 4, batch_first=True)), torch.randn(2, 5, 24)
    else:
        layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True)
        model, x = nn.TransformerEncoder(layer, 1).eval(), torch.randn(2, 5, 24)
    read = []
    with capture_scores(model, [0], on_scores=lambda _, one: read.append(one.shape[0])):
        model(x)
        in_thread(model, x[:1])
    assert read == [2]


def test_a_block_that_did_not_run_is_named():
    model = vit()
    with (
        pytest.raises(HookNeverFired, match=r"no scores were read in blocks\.1: run the model"),
        capture_scores(model, [0, 1], on_scores=lambda *_: None),
    ):
        model.blocks[0](torch.zeros(1, 5, DIM))


def test_gradients_are_the_models_own_and_recomputation_is_passed_over():
    model, x = vit(), images()
    model.set_grad_checkpointing()
    model.train()
    seen = []
    with capture_scores(model, on_scores=lambda i, one: seen.append(one.whole().requires_grad)):
        model(x).sum().backward()
    assert seen == [False] * 3
    assert model.blocks[0].attn.qkv.weight.grad is not None


def collected(model, batches, **options):
    found = []
    read_tokens(
        model,
        as_stream(batches),
        options.pop("blocks", (0, 2)),
        None,
        on_scores=lambda i, one: found.append((i, one)),
        **options,
    )
    return found


def test_the_forward_pass_ends_at_the_last_softmax():
    model = vit()
    ran = []
    for i, block in enumerate(model.blocks):
        block.attn.proj.register_forward_hook(lambda *_, i=i: ran.append(i))
    assert len(collected(model, [images()] * 3, blocks=[0, 1])) == 6
    assert ran == [0, 1, 2] + 2 * [0]
    assert torch.overrides._get_current_function_mode_stack() == []


def test_tokens_and_scores_are_read_in_one_pass():
    model = vit()
    order = []
    read_tokens(
        model,
        as_stream([images()] * 2),
        (1, 2),
        lambda i, _: order.append(("x", i)),
        on_scores=lambda i, _: order.append(("logits", i)),
    )
    assert order == 2 * [("x", 1), ("logits", 1), ("x", 2), ("logits", 2)]


def test_patch_tokens_leave_out_the_prefix_as_queries_only():
    model = vit(reg_tokens=2)
    [(_, scores)] = collected(model, [images()], blocks=[0], tokens="patch")
    whole = scores.whole()
    tiles = torch.cat([tile.logits for tile in scores.tiles(1)])
    assert whole.shape == (2, 4, 19, 19)
    assert torch.equal(tiles, whole[:, 1, 3:].flatten(0, 1))


def test_queries_that_are_padding_do_not_count():
    [known] = [one for one in MODELS if one.name == "Qwen2Model"]
    model, inputs = known.build(), padded(known)
    accumulators = {i: SoftmaxAccumulator() for i in (0, 1)}
    read_tokens(
        model, as_stream([inputs]), (0, 1), None, on_scores=lambda i, one: accumulators[i].add(one)
    )
    alone = {i: SoftmaxAccumulator() for i in (0, 1)}
    rows = [(0, inputs["input_ids"][:1, 3:]), (1, inputs["input_ids"][1:])]
    batches = [{"input_ids": ids} for _, ids in rows]
    read_tokens(model, as_stream(batches), (0, 1), None, on_scores=lambda i, one: alone[i].add(one))
    for i in (0, 1):
        for one, two in zip(accumulators[i].weights(), alone[i].weights(), strict=True):
            assert one.queries == two.queries == 4 + 7
            for name, mean in one.means().items():
                assert mean == pytest.approx(two.means()[name], rel=1e-4, nan_ok=True)
        for one, two in zip(accumulators[i].histograms(), alone[i].histograms(), strict=True):
            assert one.count == two.count == 4 * 5 / 2 + 7 * 8 / 2


def test_padding_of_other_tokens_than_those_that_ask_is_not_guessed():
    scores = Scores(product(1, 5))
    with pytest.raises(
        UnsupportedModel, match=r"mask is \(1, 4\) and the queries of b are \(1, 5\)"
    ):
        scores.counting(torch.ones(1, 4).bool(), 0, "b")


def product(batch, n, heads=2, **options):
    torch.manual_seed(0)
    q, k = torch.randn(2, batch, heads, n, 3)
    fixed = {"axis": 1, "scale": 0.5, "masks": (), "causal": True}
    return Product(q=q, k=k, **fixed | options)


@pytest.mark.parametrize("size", [1, 7, 20, 64, 1 << 19])
def test_tiles_of_any_size_give_the_same(monkeypatch, size):
    whole = product(3, 5).tile(1, slice(None), slice(None)).flatten(0, 1)
    monkeypatch.setattr("burst.score_tiles.CPU_TILE", size)
    tiles = [tile.logits for tile in Scores(product(3, 5)).tiles(1)]
    assert all(tile.numel() <= max(size, 5) for tile in tiles)
    torch.testing.assert_close(torch.cat(tiles), whole)


def test_no_map_of_all_scores_is_ever_made(monkeypatch):
    """Of 600 tokens a map has 360,000 scores a head; here a tile has 6,000."""
    monkeypatch.setattr("burst.score_tiles.CPU_TILE", 6000)
    largest = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest.append(result.untyped_storage().nbytes())
            return result

    scores = Scores(product(1, 600, causal=False))
    accumulator = SoftmaxAccumulator()
    monkeypatch.setattr("burst.softmax.HistogramAccumulator", lambda *_, **__: Counter())
    with Spy():
        accumulator.add(scores)
    assert max(largest) <= 8 * 6000
    assert accumulator.weights()[0].queries == 600


class Counter:
    def add(self, x):
        pass
