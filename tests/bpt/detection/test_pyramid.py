"""The maps have the strides 4 to 64, whatever the patch."""

import pytest
import torch
from detectors import maps
from timm.layers.norm import LayerNorm2d
from torch import nn
from torch.nn import functional

from bpt.detection.pyramid import STRIDES, Pyramid
from burst.errors import UnsupportedModel


@pytest.mark.parametrize("patch", [8, 16])
def test_the_maps_have_strides_4_to_64_whatever_the_patch(patch):
    side = 192
    found = Pyramid(12, patch, 8)(torch.randn(2, 12, side // patch, side // patch))
    assert [one.shape[:2] for one in found] == [(2, 8)] * 5
    assert [tuple(side // n for n in one.shape[2:]) for one in found] == [(s, s) for s in STRIDES]


@pytest.mark.parametrize("patch", [8, 16])
def test_each_map_shows_a_place_where_it_is(patch):
    pyramid, side = Pyramid(12, patch, 8), 192
    x = torch.zeros(1, 12, side // patch, side // patch)
    dark = pyramid(x)
    x[:, :, 128 // patch, 64 // patch] = 1  # the patch whose corner is at (64, 128)
    for one, without, stride in zip(pyramid(x), dark, STRIDES, strict=True):
        rows, columns = torch.where((one - without).abs().sum(1)[0] > 1e-4)
        for places, at in ((rows, 128), (columns, 64)):
            reach = stride * (1.5 if stride <= 32 else 1)  # of the 3x3 convolution
            assert (places * stride >= at - reach).all()
            assert (places * stride <= at + patch + reach).all()


def test_the_finest_map_is_two_transposed_convolutions_then_a_1x1_and_a_3x3():
    torch.manual_seed(0)
    pyramid, x = Pyramid(12, 16, 8), torch.randn(2, 12, 3, 3)

    def norm(x, channels):
        mean = x.mean(dim=1, keepdim=True)
        return (x - mean) / (x.var(dim=1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    up, again, point, square = (
        layer for layer in pyramid.branches[0] if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    )
    wanted = functional.conv_transpose2d(x, up.weight, up.bias, stride=2)
    wanted = functional.gelu(norm(wanted, 6))
    wanted = functional.conv_transpose2d(wanted, again.weight, again.bias, stride=2)
    wanted = norm(functional.conv2d(wanted, point.weight), 8)
    wanted = norm(functional.conv2d(wanted, square.weight, padding=1), 8)
    torch.testing.assert_close(pyramid(x)[0], wanted, rtol=1e-4, atol=1e-5)


def test_the_last_map_is_every_second_position_of_the_one_before():
    found = Pyramid(12, 16, 8)(torch.randn(1, 12, 10, 10))
    torch.testing.assert_close(found[4], found[3][:, :, ::2, ::2], rtol=0, atol=0)


def test_norms_have_detectron2s_epsilon_and_convolutions_before_them_no_bias():
    layers = list(Pyramid(12, 16, 8).modules())
    assert {layer.eps for layer in layers if isinstance(layer, LayerNorm2d)} == {1e-6}
    assert {layer.bias for layer in layers if isinstance(layer, nn.Conv2d)} == {None}


def test_a_patch_of_14_pixels_is_refused():
    with pytest.raises(UnsupportedModel, match="14 pixels"):
        Pyramid(12, 14, 8)


def test_the_doubles_of_other_tests_have_the_shapes_of_a_pyramid():
    found = Pyramid(12, 16, 8)(torch.randn(2, 12, 6, 6))
    assert [one.shape for one in maps(8, side=96)] == [one.shape for one in found]
