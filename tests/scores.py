"""The scores that attentions compute, seen where they reach the softmax."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from burst.adapters import describe_blocks


@contextmanager
def recorded_scores():
    """A list that grows by what each softmax, or fused attention, is given, masks included.

    From scaled_dot_product_attention it is q k^T times the scale, plus an additive mask.
    """
    calls = []
    softmax, attend = F.softmax, F.scaled_dot_product_attention

    def record_softmax(x, *args, **kwargs):
        calls.append(x.detach().float().clone())
        return softmax(x, *args, **kwargs)

    def record_attention(q, k, v, attn_mask=None, *args, **kwargs):
        scale = kwargs.get("scale") or q.shape[-1] ** -0.5
        k_of_head = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
        scores = (q @ k_of_head.mT).detach().float() * scale
        additive = attn_mask is not None and attn_mask.is_floating_point()
        calls.append(scores + attn_mask if additive else scores)
        return attend(q, k, v, attn_mask, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "softmax", record_softmax)
        patch.setattr(F, "scaled_dot_product_attention", record_attention)
        yield calls


def randomised(model, scale=0.2):
    """The model with random weights, biases among them, and gains about one; in evaluation."""
    for name, parameter in model.named_parameters():
        is_gain = parameter.ndim == 1 and name.endswith("weight")
        nn.init.normal_(parameter, mean=float(is_gain), std=scale)
    return model.eval()


def close(actual, expected):
    """Equal to 1e-4 of the largest score: float32 sums over d in another order; masked left out.

    A mask is -100 or less (Swin's; others are infinite or nearly), far below these scores.
    """
    seen = expected > -50
    actual, expected = actual.expand_as(expected)[seen], expected[seen]
    assert len(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def omissions(model):
    """What the products of a model's measurable blocks leave out, each term once."""
    terms = (term for block in describe_blocks(model) for term in block.omitted)
    return tuple(dict.fromkeys(terms))
