"""Maps of strides 4 to 64 from the one map of a plain ViT.

Source: Li et al. 2022, arXiv 2203.16527, section 3 ("simple feature pyramid"); layers, norms and
biases as in detectron2, modeling/backbone/vit.py.
"""

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from bpt.detection.layers import leaves, run
from burst.errors import UnsupportedModel

STRIDES = (4, 8, 16, 32, 64)  # of the five maps, in pixels of the input
POOLED = 4  # of these maps regions are read; the last is for proposals only
PATCHES = (8, 16)


class Pyramid(nn.Module):
    """Five maps of the same number of channels from one.

    Each of the first four comes from the ViT's map by itself: transposed convolutions make it
    larger, max pooling smaller; a 1x1 and a 3x3 convolution follow, each with a norm over the
    channels. The fifth is every second position of the fourth. What a branch does follows from the
    stride that it is to have, so that patches of 8 and of 16 pixels give the same strides.

    Args:
        width: d, channels of the ViT's map.
        stride: p, the side of a patch in pixels: 8 or 16.
        channels: of the maps.

    Raises:
        UnsupportedModel: another patch.
    """

    def __init__(self, width: int, stride: int, channels: int) -> None:
        super().__init__()
        if stride not in PATCHES:
            raise UnsupportedModel(f"patches of {stride} pixels; a pyramid needs 8 or 16")
        self.branches = nn.ModuleList(
            _branch(width, stride, target, channels) for target in STRIDES[:POOLED]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, d, S/p, S/p) -> (B, channels, S/s, S/s) for each stride s."""
        maps = [run(leaves(branch), x) for branch in self.branches]
        return [*maps, functional.max_pool2d(maps[-1], kernel_size=1, stride=2)]


def _branch(width: int, stride: int, target: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    if stride > target:
        layers.append(nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2))
        width, stride = width // 2, stride // 2
    if stride > target:
        second = nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)
        layers += [LayerNorm2d(width), nn.GELU(), second]
        width, stride = width // 2, stride // 2
    if stride < target:
        layers.append(nn.MaxPool2d(kernel_size=target // stride))
    return nn.Sequential(
        *layers,
        nn.Conv2d(width, channels, kernel_size=1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels),
    )
