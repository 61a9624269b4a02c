"""What nothing reads is not computed, and what is read stays the same, and so do its gradients."""

import itertools

import pytest
import torch
from support import backbone_of, vit

import bpt.model
from bpt import PlainPrompt, PromptedViT
from bpt.partial_block import is_known

PLACES = [(0,), (0, 1, 2, 3, 4), (3, 4), (1, 3), (4,)]
POOLINGS = ["token", "patches", "prompts", "prompts+patches"]
CASES = [
    (blocks, after, pooling)
    for blocks, after, pooling in itertools.product(PLACES, ["carry", "drop"], POOLINGS)
    if (after, pooling) != ("drop", "prompts")
]


def model_of(blocks, *, after="carry", pooling="token", **changes):
    backbone = backbone_of(vit(**{"depth": 5, **changes}))
    prompts = {block: PlainPrompt(torch.randn(3, 32)) for block in blocks}
    return PromptedViT(backbone, prompts, 5, after=after, pooling=pooling)


def found(model, images):
    """Logits, and the gradients of what is trained."""
    logits = model(images)
    gradients = torch.autograd.grad(
        (logits**2).sum(), [p for p in model.parameters() if p.requires_grad]
    )
    return [logits.detach(), *gradients]


@pytest.mark.parametrize("blocks, after, pooling", CASES)
def test_logits_and_gradients_are_those_of_whole_blocks(monkeypatch, blocks, after, pooling):
    changes = {"reg_tokens": 2, "qk_norm": True, "init_values": 0.5}
    model = model_of(blocks, after=after, pooling=pooling, **changes).double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    ours = found(model, images)
    monkeypatch.setattr(bpt.model, "is_known", lambda _: False)
    for one, other in zip(ours, found(model, images), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-10)


def test_checkpointed_it_is_the_same_to_the_bit():
    model, images = model_of((2, 3, 4), pooling="prompts+patches"), torch.randn(2, 3, 16, 16)
    ours = found(model, images)
    model.checkpoint_activations = True
    assert all(map(torch.equal, ours, found(model, images)))


def test_what_is_looked_into_or_trained_runs_as_a_whole():
    block = vit().requires_grad_(False).blocks[0]
    assert is_known(block)
    hook = block.attn.register_forward_hook(lambda *_: None)
    assert not is_known(block)
    hook.remove()
    block.norm1.requires_grad_(True)
    assert not is_known(block)
    block.requires_grad_(False)
    block.attn.qkv = torch.nn.Sequential(block.attn.qkv)  # as adapters wrap it
    assert not is_known(block)


def test_hooks_on_a_block_see_all_of_its_tokens():
    model, seen = model_of((3, 4)), []
    hook = model.vit.blocks[3].register_forward_hook(lambda _, __, out: seen.append(out.shape))
    with torch.no_grad():
        looked_into = model(images := torch.randn(1, 3, 16, 16))
    hook.remove()
    assert seen == [(1, 17 + 3, 32)]
    with torch.no_grad():
        assert torch.allclose(looked_into, model(images), atol=1e-5)
