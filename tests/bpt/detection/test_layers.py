"""Memory is saved without a product being computed twice, and the start has its own numbers."""

import pytest
import torch
from detectors import kept
from timm.layers.norm import LayerNorm2d
from torch import nn

from bpt.detection.layers import leaves, run, seeded


def convolutions():
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), LayerNorm2d(4), nn.ReLU(inplace=True))
        for _ in range(3)
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(100, 5), nn.ReLU(inplace=True))


def gradients(forward, layers, x):
    x = x.clone().requires_grad_()
    y = forward(x)
    y.square().sum().backward()
    found = [y.detach(), x.grad, *(p.grad for p in layers.parameters())]
    layers.zero_grad()
    return found


def test_running_layers_gives_what_calling_them_gives_and_the_same_gradients():
    layers, x = convolutions(), torch.randn(2, 4, 5, 5)
    plain = gradients(layers, layers, x)
    lean = gradients(lambda x: run(leaves(layers), x), layers, x)
    torch.testing.assert_close(lean, plain, rtol=0, atol=0)


def test_a_convolution_and_a_linear_layer_are_computed_once_a_step():
    layers, calls = convolutions(), []
    for layer in layers.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda layer, given, result: calls.append(layer))
    gradients(lambda x: run(leaves(layers), x), layers, torch.randn(2, 4, 5, 5))
    assert len(calls) == 4


def test_of_a_norm_and_a_relu_only_the_input_is_kept():
    layers, x = convolutions(), torch.randn(2, 4, 5, 5)
    assert (
        kept(lambda: run(leaves(layers), x), x.numel()) == 4
    )  # the input, and of each convolution the result
    assert kept(lambda: layers(x), x.numel()) > 4


def test_without_gradients_the_layers_run_as_they_are():
    layers, x = convolutions(), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(run(leaves(layers), x), layers(x), rtol=0, atol=0)


@pytest.mark.parametrize("generator", [True, False])
def test_the_global_random_state_is_left_alone_where_there_is_a_generator(generator):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with seeded(torch.Generator().manual_seed(0) if generator else None):
        torch.rand(5)
    assert torch.equal(before, torch.get_rng_state()) == generator
