"""capture, find_blocks and num_prefix_tokens against a plain forward pass written out by hand."""

import pytest
import timm
import torch
from support import in_thread
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from burst.adapters import find_blocks, select_blocks
from burst.errors import BurstError, HookNeverFired, UnsupportedModel
from burst.tokens import capture

DEPTH = 3


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=DEPTH, num_heads=3, num_classes=5
    ).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def count_hooks(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def attention_inputs(vit, images):
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    inputs = []
    for block in vit.blocks:
        inputs.append(block.norm1(x))
        x = block(x)
    return inputs


def on_meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


def test_tokens_are_the_normalised_input_of_each_block_bit_for_bit(vit, images):
    with torch.inference_mode(), capture(vit) as tokens:
        vit(images)
    with torch.inference_mode():
        expected = attention_inputs(vit, images)
    assert list(tokens) == [0, 1, 2]
    for index, x in enumerate(expected):
        assert tokens[index].shape == (2, 5, 24)
        assert torch.equal(tokens[index], x)


def test_logits_are_equal_bit_for_bit_with_and_without_capture(vit, images):
    plain = vit(images)
    with capture(vit, blocks=[0, 2]):
        captured = vit(images)
    assert torch.equal(plain, captured)


def test_only_the_blocks_asked_for_are_read_and_each_once(vit, images):
    read = []
    with capture(vit, [2, 0, 2], on_tokens=lambda index, _: read.append(index)):
        vit(images)
    assert read == [0, 2]


def test_with_a_callback_nothing_is_kept(vit, images):
    read = []
    with capture(vit, on_tokens=lambda index, x: read.append((index, x.shape[0]))) as tokens:
        vit(images)
        vit(images[:1])
    assert read == [(0, 2), (1, 2), (2, 2), (0, 1), (1, 1), (2, 1)]
    assert dict(tokens) == {}


def test_without_a_callback_the_last_tokens_are_kept(vit, images):
    with capture(vit, [1]) as tokens:
        vit(images)
        vit(images[1:])
    assert torch.equal(tokens[1], attention_inputs(vit, images[1:])[1])


def test_tokens_carry_no_gradient_and_the_model_keeps_its_own(vit, images):
    with capture(vit, [0]) as tokens:
        vit(images).sum().backward()
    assert not tokens[0].requires_grad
    assert vit.blocks[0].attn.qkv.weight.grad is not None


def test_hooks_live_only_inside_the_context(vit, images):
    with capture(vit, [0, 1]):
        assert count_hooks(vit) == 2
        vit(images)
    assert count_hooks(vit) == 0


def test_captures_nest_and_the_inner_one_leaves_the_outer_one_alone(vit, images):
    with capture(vit, [0]) as outer:
        with capture(vit, [0, 1]) as inner:
            vit(images)
        assert count_hooks(vit) == 1
        vit(images[:1])
    assert count_hooks(vit) == 0
    assert inner[0].shape[0] == 2
    assert outer[0].shape[0] == 1


def test_what_another_thread_runs_is_not_read(vit, images):
    with capture(vit) as tokens:
        vit(images)
        in_thread(vit, images[:1])
    assert [len(x) for x in tokens.values()] == [2, 2, 2]


def test_an_error_in_the_forward_pass_is_not_masked_and_removes_the_hooks(vit):
    with pytest.raises(AssertionError, match="Input height"), capture(vit):
        vit(torch.zeros(1, 3, 9, 9))
    assert count_hooks(vit) == 0


def test_an_error_in_the_callback_is_not_masked_and_removes_the_hooks(vit, images):
    def fail(index, tokens):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), capture(vit, on_tokens=fail):
        vit(images)
    assert count_hooks(vit) == 0


def test_a_silent_block_raises_on_leaving_and_is_named(vit):
    with (
        pytest.raises(HookNeverFired, match=r"read in blocks\.1, blocks\.2: run the model"),
        capture(vit),
    ):
        vit.blocks[0](torch.zeros(1, 5, 24))
    assert count_hooks(vit) == 0


@pytest.mark.parametrize("blocks", [[3], [-1], [0, 7], []])
def test_a_block_that_is_not_there_is_told_the_range(vit, blocks):
    with pytest.raises(BurstError, match=r"VisionTransformer has attention blocks 0 to 2"):
        select_blocks(vit, blocks)


def test_attention_called_with_keywords_is_read_too(vit, images):
    block = vit.blocks[1]
    block.forward = lambda x, **_: x + block.attn(attn_mask=None, x=block.norm1(x))
    with capture(vit, [1]) as tokens:
        vit(images)
    assert tokens[1].shape == (2, 5, 24)


def test_an_attention_that_runs_twice_is_reported_twice(vit, images):
    block = vit.blocks[0]
    once = block.forward
    block.forward = lambda x, **kwargs: once(once(x, **kwargs), **kwargs)
    read = []
    with capture(vit, [0], on_tokens=lambda index, x: read.append(x)) as _:
        vit(images)
    assert len(read) == 2
    assert not torch.equal(read[0], read[1])


def test_blocks_that_share_one_attention_cannot_be_told_apart(vit, images):
    vit.blocks[2].attn = vit.blocks[0].attn
    assert [block.name for block in find_blocks(vit)] == ["blocks.0", "blocks.1", "blocks.2"]
    with pytest.raises(UnsupportedModel, match=r"blocks\.0 and blocks\.2 share"), capture(vit):
        vit(images)
    with capture(vit, [1]) as tokens:
        vit(images)
    assert list(tokens) == [1]


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_by_gradient_checkpointing_is_not_read_again(vit, images, reentrant):
    for block in vit.blocks:
        plain = block.forward
        block.forward = lambda x, plain=plain, **kwargs: torch.utils.checkpoint.checkpoint(
            plain, x, use_reentrant=reentrant, **kwargs if not reentrant else {}
        )
    read = []
    with capture(vit, on_tokens=lambda index, _: read.append(index)):
        vit(images.requires_grad_()).sum().backward()
    assert read == [0, 1, 2]
    assert vit.blocks[0].attn.qkv.weight.grad is not None


def test_distributed_models_are_read_through_their_wrapper(vit, images):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(vit)
        with capture(wrapped, [0]) as tokens:
            wrapped(images)
    finally:
        torch.distributed.destroy_process_group()
    assert find_blocks(wrapped)[0].name == "blocks.0"
    assert torch.equal(tokens[0], attention_inputs(vit, images)[0])


def compiled_whole(vit):
    return torch.compile(vit, backend="eager")


def compiled_in_place(vit):
    vit.compile(backend="eager")
    return vit


def compiled_block(vit):
    vit.blocks[1] = torch.compile(vit.blocks[1], backend="eager")
    return vit


def compiled_attention(vit):
    vit.blocks[1].attn = torch.compile(vit.blocks[1].attn, backend="eager")
    return vit


@pytest.mark.parametrize(
    "wrap", [compiled_whole, compiled_in_place, compiled_block, compiled_attention]
)
def test_compiled_models_are_refused_because_they_skip_hooks(vit, wrap):
    model = wrap(vit)
    with pytest.raises(UnsupportedModel, match="compiled model"), capture(model):
        pass
    assert len(find_blocks(model)) == DEPTH


def test_a_compiled_part_that_holds_no_attention_asked_for_does_no_harm(vit, images):
    model = compiled_block(vit)
    model.head = torch.compile(model.head, backend="eager")
    with capture(model, [0]) as tokens:
        model.blocks[0](torch.zeros(1, 5, 24))
    assert tokens[0].shape == (1, 5, 24)


def test_data_parallel_models_are_refused_because_hooks_run_in_threads(vit):
    model = nn.DataParallel(vit)
    with pytest.raises(UnsupportedModel, match="DataParallel"), capture(model):
        pass


def test_an_attention_that_does_not_read_tokens_is_refused():
    class Toy(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.attn(x)

    toy = Toy()
    message = r"attn \(Conv2d\) reads shape \(1, 3, 4, 5\), expected tokens \(B, N, d\)"
    with pytest.raises(UnsupportedModel, match=message), capture(toy):
        toy(torch.zeros(1, 3, 4, 5))


def test_tokens_read_as_a_grid_come_as_a_sequence():
    model = timm.create_model(
        "samvit_base_patch16", depth=1, embed_dim=24, num_heads=3, img_size=48, num_classes=0
    )
    with capture(model) as tokens:
        model(torch.zeros(2, 3, 48, 48))
    windows, window = tokens[0].shape[:2]
    assert (windows, window, tokens[0].shape[2]) == (2, 14 * 14, 24)


def test_parallel_blocks_are_read_at_their_projection():
    model = timm.create_model("vit_pwee_patch16_reg1_gap_256", depth=1, img_size=32).eval()
    with capture(model) as tokens:
        model.forward_features(images := torch.randn(1, 3, 32, 32))
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    assert torch.equal(tokens[0], model.blocks[0].in_norm(x))


class TorchBlock(nn.Module):
    """x (B, N, d) -> x + attention, by torch's own class, called as `call` says."""

    def __init__(self, attention, call):
        super().__init__()
        self.norm1 = nn.LayerNorm(24)
        self.attn = attention
        self.call = call

    def forward(self, x):
        return x + self.call(self.attn, self.norm1(x))


def batch_first(attention, y):
    return attention(y, y, y, need_weights=False)[0]


def sequence_first(attention, y):
    y = y.transpose(0, 1)
    return attention(query=y, key=y, value=y)[0].transpose(0, 1)


@pytest.mark.parametrize("call", [batch_first, sequence_first])
@pytest.mark.parametrize("training", [True, False])  # torch has a fast path of its own in eval
def test_tokens_come_batch_first_however_the_attention_reads_them(call, training):
    attention = nn.MultiheadAttention(24, 4, batch_first=call is batch_first)
    block = TorchBlock(attention, call).train(training)
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        plain = block(x)
        with capture(block) as tokens:
            assert torch.equal(block(x), plain)
        assert torch.equal(tokens[0], block.norm1(x))


class Unknown(nn.Module):
    """An attention of which nothing is known but its layout."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first

    def forward(self, query, key=None, value=None, **_):
        return (query,)


def test_an_unknown_attention_that_wraps_a_sequence_first_one_is_refused(vit, images):
    wrapper = nn.Module()
    wrapper.inner = Unknown(batch_first=False)
    wrapper.forward = lambda x, **_: sequence_first(wrapper.inner, x)
    vit.blocks[1].attn = wrapper
    message = r"blocks\.1\.attn \(Module\) wraps inner \(Unknown\), which reads \(N, B, d"
    with pytest.raises(UnsupportedModel, match=message), capture(vit):
        vit(images)
    with capture(vit, [0, 2]) as tokens:
        vit(images)
    assert list(tokens) == [0, 2]
    wrapper.inner = Unknown(batch_first=True)
    wrapper.forward = lambda x, **_: batch_first(wrapper.inner, x)
    with capture(vit, [1]) as tokens:
        vit(images)
    assert tokens[1].shape == (2, 5, 24)


def test_a_known_attention_in_an_unknown_one_is_read_itself(vit, images):
    wrapper = nn.Module()
    wrapper.inner = nn.MultiheadAttention(24, 4)
    wrapper.forward = lambda x, **_: sequence_first(wrapper.inner, x)
    vit.blocks[1].attn = wrapper
    assert find_blocks(vit)[1].attention is wrapper.inner
    with capture(vit, [1]) as tokens:
        vit(images)
    assert tokens[1].shape == (2, 5, 24)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_sequences_of_several_lengths_in_one_tensor_are_refused():
    block = TorchBlock(nn.MultiheadAttention(24, 4, batch_first=True), batch_first).eval()
    x = torch.nested.nested_tensor([torch.randn(5, 24), torch.randn(3, 24)])
    message = r"attn \(MultiheadAttention\) reads a nested tensor, expected tokens"
    with torch.no_grad(), pytest.raises(UnsupportedModel, match=message), capture(block):
        block.attn(x, x, x, need_weights=False)
