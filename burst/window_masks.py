"""Which tokens of a shifted window do not see each other, of Swin and its kin.

Their models add -100 to such scores before the softmax, where a score of its own may be as low. So
the mask is taken from what the attention is called with, or made once more where it makes it
itself (torchvision).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from burst.score_sources import Args, Kwargs
from burst.score_tiles import Shape, Source

BETWEEN = -50.0  # the 0 and the -100 of such masks


@dataclass(frozen=True, eq=False)
class Windowed:
    """Scores of windows, window after window of each item.

    Attributes:
        source: the same without the mask, or with what the model added.
        hidden: (windows, n, n) bool, True where a query does not see a key.
    """

    source: Source
    hidden: Tensor

    @property
    def shape(self) -> Shape:
        """(B, h, n, n), where B counts windows too."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """That of the scores."""
        return self.source.device

    @property
    def masked(self) -> bool:
        """Always."""
        return True

    def tile(self, head: int, batch: slice, queries: slice) -> Tensor:
        """(b, q, n) float32, -inf where hidden."""
        logits = self.source.tile(head, batch, queries)
        windows = torch.arange(self.shape[0], device=self.device)[batch] % len(self.hidden)
        return logits.masked_fill_(self.hidden[windows, queries], -math.inf)


def hidden_in_windows(attention: nn.Module, args: Args, kwargs: Kwargs) -> Tensor | None:
    """What a call of Swin's attention does not let see.

    Args:
        attention: of timm, transformers or torchvision.
        args, kwargs: what it is called with.

    Returns:
        (windows, n, n) bool; None where windows are not shifted.
    """
    shift: Any = getattr(attention, "shift_size", None)
    if shift is not None:
        window: Any = attention.window_size
        high, wide = args[0].shape[1:3]
        return across_regions((high, wide), window, shift, args[0].device)
    given = (*args[1:], *kwargs.values())
    masks = (x for x in given if isinstance(x, Tensor) and x.ndim == 3 and x.is_floating_point())
    mask = next(masks, None)
    return None if mask is None else mask <= BETWEEN


def across_regions(
    size: tuple[int, int], window: Sequence[int], shift: Sequence[int], device: torch.device
) -> Tensor | None:
    """Pairs of a window whose tokens the shift brought together from other ends of the map.

    Source: Liu et al., "Swin Transformer", ICCV 2021, section 3.2 and figure 4, arXiv 2103.14030.

    Args:
        size: of the map, in tokens; padded to whole windows.
        window: of a window, in tokens.
        shift: by which the map is rolled; not along an axis that one window covers.
        device: of the result.

    Returns:
        (windows, n, n) bool, True across regions; None where nothing is rolled.
    """
    bands, rolled = [], False
    for length, side, by in zip(size, window, shift, strict=True):
        padded = math.ceil(length / side) * side
        place = torch.arange(padded, device=device)
        band = (place >= padded - side).int() + (place >= padded - by).int()
        moves = by > 0 and side < padded
        bands.append(band if moves else torch.zeros_like(band))
        rolled |= moves
    if not rolled:
        return None
    region = 3 * bands[0][:, None] + bands[1]
    high, wide = window
    tiles = region.reshape(-1, high, region.shape[1] // wide, wide)
    tokens = tiles.transpose(1, 2).reshape(-1, high * wide)
    return tokens[:, :, None] != tokens[:, None, :]
