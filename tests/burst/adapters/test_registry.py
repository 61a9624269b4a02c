"""The registry of adapters: by class and by name, along the inheritance, refused by name."""

import functools

import pytest
from timm.layers import Attention
from torch import nn

from burst.adapters import AttentionLayout, adapter, registry
from burst.errors import UnsupportedModel
from burst.projection import projection


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


def test_an_attention_with_a_forward_of_its_own_is_refused():
    attention = Attention(8, num_heads=2)
    attention.forward = lambda x: Attention.forward(attention, 2 * x)
    with pytest.raises(UnsupportedModel, match=r"^Attention: it replaces the forward of Attention"):
        projection(attention)


def test_a_forward_that_is_wrapped_and_not_replaced_is_the_same():
    attention = Attention(8, num_heads=2)
    before = attention.forward
    # As accelerate does it, to move what is read to the device of the weights.
    attention.forward = functools.update_wrapper(functools.partial(before), before)
    assert projection(attention).num_heads == 2


def test_an_unknown_class_is_refused_until_an_adapter_is_registered(monkeypatch):
    monkeypatch.setattr(registry, "_ADAPTERS", {})
    attention = Unknown()
    with pytest.raises(UnsupportedModel, match=r"^blocks\.0\.attn \(Unknown\): attention of "):
        projection(attention, name="blocks.0.attn")

    @adapter(Unknown)
    def _unknown(attention):
        return AttentionLayout(query=attention.query.weight, key=attention.key.weight, heads=2)

    assert projection(attention).w_q.shape == (2, 6, 2)
