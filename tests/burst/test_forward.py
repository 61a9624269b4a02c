"""A model run over batches: what is read, what is left out, where the forward pass ends."""

from threading import Event, Thread

import pytest
import torch
from support import DIM, vit
from torch import nn

from burst.adapters import AttentionLayout, adapter
from burst.errors import BurstError, UnsupportedModel
from burst.forward import read_tokens
from burst.stream import as_stream
from burst.tokens import capture


class Scores(nn.Module):
    """An attention of one's own, as the documentation registers one."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x, mask=None):
        scores = self.q(x) @ self.k(x).mT
        return (scores if mask is None else scores + mask).softmax(-1) @ x


@adapter(Scores)
def _read(attention):
    return AttentionLayout(query=attention.q.weight, key=attention.k.weight, heads=1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixer = Scores()

    def forward(self, x, mask):
        return x + self.mixer(x, mask=mask)


class Text(nn.Module):
    """A language model in which padding does not reach other tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, DIM)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(DIM, 7)
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids, attention_mask=None):
        mask = None
        if attention_mask is not None:
            mask = (1.0 - attention_mask[:, None].float()) * -1e9
        x = self.dropout(self.embed(input_ids))
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


@pytest.fixture
def text():
    torch.manual_seed(0)
    return Text().eval()


def collected(model, batches, blocks=(0, 2), **options):
    read = {}
    read_tokens(
        model,
        as_stream(batches),
        blocks,
        lambda block, x: read.setdefault(block, []).append(x.clone()),
        **options,
    )
    return read


def test_tokens_are_those_of_capture_batch_by_batch():
    model = vit()
    batches = [torch.randn(2, 3, 16, 16), torch.randn(3, 3, 16, 16)]
    read = collected(model, [(batch, torch.zeros(len(batch))) for batch in batches])
    for i, batch in enumerate(batches):
        with torch.inference_mode(), capture(model, [0, 2]) as tokens:
            model(batch)
        for block in (0, 2):
            assert torch.equal(read[block][i], tokens[block])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(text, side):
    sequences = [torch.tensor([1, 2, 3]), torch.tensor([4, 5]), torch.tensor([6])]
    keep = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    if side == "left":
        keep = keep.flip(1)
    ids = torch.zeros(3, 3, dtype=torch.long)
    ids[keep.bool()] = torch.cat(sequences)
    read = collected(text, [{"input_ids": ids, "attention_mask": keep}])
    alone = collected(text, [one[None] for one in sequences])
    for block in (0, 2):
        expected = torch.cat([x[0] for x in alone[block]])
        torch.testing.assert_close(read[block][0], expected)  # other sums in softmax
    assert read[0][0].shape == (6, DIM)


def test_padding_of_other_tokens_than_those_read_is_not_guessed(text):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.text = text

        def forward(self, input_ids, attention_mask):
            return self.text(input_ids[:, ::2])

    batch = {"input_ids": torch.ones(1, 4).long(), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    with pytest.raises(UnsupportedModel, match=r"mask is \(1, 4\) .* reads \(1, 2\)"):
        collected(Pooled(), [batch])


def test_the_forward_pass_ends_where_the_last_block_has_read(text):
    ran = []
    text.head.register_forward_hook(lambda *_: ran.append("head"))
    for i, layer in enumerate(text.layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    batch = torch.tensor([[1, 2]])
    read = collected(text, [batch] * 3, blocks=[1])
    assert ran == [0, 1, 2, "head"] + 2 * [0]
    assert len(read[1]) == 3


def test_a_pass_that_reads_a_block_twice_is_left_to_end_by_itself(text):
    ran = []
    text.head.register_forward_hook(lambda *_: ran.append("head"))
    twice = nn.Sequential(text)
    twice.forward = lambda ids: text(ids[:, :1]) + text(ids[:, :1])
    read = collected(twice, [torch.tensor([[1, 2]])] * 3, blocks=[1])
    assert len(read[1]) == 6
    assert len(ran) == 6


def test_how_often_a_block_is_read_may_depend_on_the_shape_of_a_batch(text):
    frames = nn.Sequential(text)
    frames.forward = lambda x: [text(x[:, t]) for t in range(x.shape[1])]
    batches = [torch.ones(1, times, 4).long() for times in (1, 3, 1, 3)]
    assert len(collected(frames, batches, blocks=[0, 2])[2]) == 8


def test_dropout_is_off_and_the_model_is_left_as_it_was(text):
    text.train()
    text.layers[1].eval()
    before = [module.training for module in text.modules()]
    one, two = (collected(text, [torch.tensor([[1, 2, 3]])]) for _ in range(2))
    assert torch.equal(one[2][0], two[2][0])
    assert [module.training for module in text.modules()] == before
    with pytest.raises(BurstError):
        collected(text, ["nonsense"])
    assert [module.training for module in text.modules()] == before


def test_a_second_thread_that_reads_the_model_waits_and_has_no_dropout_either(text):
    text.train()
    ids = torch.tensor([[1, 2, 3]])
    expected = collected(text, [ids])[2][0]
    began, over, found = Event(), Event(), []

    def late():
        began.set()
        over.wait(5)
        yield ids

    second = Thread(target=lambda: found.append(collected(text, late())[2][0]))

    def early():
        yield ids
        second.start()
        began.wait(0.1)  # in vain, if it waits

    collected(text, early())
    over.set()
    second.join()
    assert torch.equal(found[0], expected)
    assert text.dropout.training


def test_an_error_of_the_model_is_not_masked(text):
    with pytest.raises(IndexError):
        collected(text, [torch.tensor([[1]]), torch.tensor([[99]])])


def test_a_forward_pass_in_bfloat16_multiplies_in_bfloat16():
    model = vit()
    images = [torch.randn(2, 3, 16, 16)]
    seen = []
    model.blocks[0].attn.qkv.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    plain = collected(model, images)
    fast = collected(model, images, forward_precision="bfloat16")
    assert seen == [torch.float32, torch.bfloat16]
    assert not torch.equal(plain[2][0], fast[2][0].float())
    torch.testing.assert_close(plain[2][0], fast[2][0].float(), rtol=0.1, atol=0.1)


def test_a_forward_pass_in_float32_rounds_nothing_to_fewer_bits(no_precision_set):
    """cuDNN convolves in TF32 unless told otherwise; the first layer of a ViT is a convolution."""
    model, seen = vit(), []
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul

    def look(*_):
        seen.append([one.fp32_precision for one in settings])
        seen.append(torch.is_autocast_enabled("cpu"))

    model.patch_embed.proj.register_forward_hook(look)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    before = [one.fp32_precision for one in settings]
    with torch.autocast("cpu"):
        collected(model, [torch.zeros(1, 3, 16, 16)])
    assert seen == [["ieee", "ieee"], False]
    assert [one.fp32_precision for one in settings] == before == ["tf32", "tf32"]


def test_patch_tokens_leave_out_the_prefix_and_the_padding_together():
    model = vit()
    [whole] = collected(model, [torch.zeros(1, 3, 16, 16)], blocks=[0])[0]
    [patches] = collected(model, [torch.zeros(1, 3, 16, 16)], blocks=[0], tokens="patch")[0]
    assert torch.equal(patches, whole[:, 1:])


def test_progress_is_told_with_the_number_of_batches_where_it_is_known(text):
    batch, told = torch.tensor([[1]]), []
    collected(text, [batch] * 2, progress=lambda *step: told.append(step))
    collected(text, (batch for _ in range(2)), progress=lambda *step: told.append(step))
    assert told == [(1, 2), (2, 2), (1, 0), (2, 0)]


def test_permuted_tokens_are_shuffled_a_batch_and_the_model_goes_on_with_its_own():
    model, images = vit(), torch.randn(3, 3, 16, 16)
    own, shuffled = (collected(model, [images] * 2, tokens=kind) for kind in ("all", "permuted"))
    for block, reads in own.items():
        for mine, other in zip(reads, shuffled[block], strict=True):
            assert other.shape == mine.shape and not torch.equal(other, mine)
            values = [x.flatten(0, 1).sort(dim=0).values for x in (mine, other)]
            assert torch.equal(*values)
        assert torch.equal(*shuffled[block])  # equal batches, alike whoever reads them


class Places(nn.Module):
    """Positions that are made for the first input and kept, as in timm's ConViT."""

    def __init__(self):
        super().__init__()
        self.inner, self.places = vit(), None
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        if self.places is None:
            self.places = torch.linspace(0, 1, x.shape[-1])
        return self.inner(x + self.scale * self.places)


def test_a_model_that_was_measured_can_be_trained():
    model = Places()
    read_tokens(model, as_stream([torch.randn(2, 3, 16, 16)]), [0], lambda *_: None)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert model.scale.grad is not None
