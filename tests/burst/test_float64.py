"""Where a device has no float64. No such device is here: a tensor that refuses it stands in."""

import pytest
import torch
from support import backbone_of, vit

from burst import whitened
from burst.adapters import find_blocks
from burst.adapters.norms import first_norm
from burst.float64 import to_float64
from burst.second_moments import SecondMoments


class Refusing(torch.Tensor):
    """On the CPU in truth; says that it is on MPS, and refuses float64 in PyTorch's words."""

    device = property(lambda _: torch.device("mps"))

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(found, cls) and found.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return found


def refusing(x):
    return x.detach().clone().as_subclass(Refusing)


def test_the_stand_in_refuses_float64():
    with pytest.raises(TypeError, match="MPS"):
        refusing(torch.ones(3)).double()


def test_float64_stays_on_a_device_that_has_it_and_goes_to_the_cpu_from_one_that_has_not():
    x = torch.randn(3)
    assert torch.equal(to_float64(refusing(x)), x.double())
    assert type(to_float64(refusing(x))) is torch.Tensor
    assert to_float64(torch.empty(2, device="meta")).device.type == "meta"


def test_moments_of_tokens_without_float64_are_those_on_the_cpu():
    x = torch.randn(2, 5, 3)
    found, expected = SecondMoments.of(refusing(x)), SecondMoments.of(x)
    for name in ("mean", "scatter", "positions"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_the_gain_of_a_norm_without_float64_is_read():
    backbone = backbone_of(vit())
    (block, *_) = find_blocks(backbone.model)
    norm = block.module.norm1
    expected = norm.weight.detach().double()
    del norm.weight
    norm.weight = refusing(expected.float())
    assert torch.equal(first_norm(block, len(expected)).gain, expected)


def test_a_whitened_response_without_float64_is_multiplied_on_the_cpu(monkeypatch):
    w, a, x = torch.randn(3, 4, 4)
    seen = []
    monkeypatch.setattr(whitened, "response_histogram", lambda matrix, *_: seen.append(matrix))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: (self, device))
    whitened.whitened_histogram(refusing(w), refusing(a), refusing(x))
    ((product, device),) = seen
    assert torch.equal(product, (w.double() @ a.double()).float())
    assert device == torch.device("mps")
