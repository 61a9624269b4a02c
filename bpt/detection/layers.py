"""What the trained parts behind the backbone share: precision, memory and the start."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def without_autocast(device: torch.device) -> torch.autocast:
    """Where boxes and losses are computed: half precision would move a box by pixels."""
    return torch.autocast(device.type, enabled=False)


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Inside, modules start from numbers of the generator; without one, of torch's own.

    The global random state is left alone where there is a generator.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def leaves(layers: nn.Module) -> list[nn.Module]:
    """The layers of nested sequences, in their order, none of which works in place.

    In place on what a norm gave, which is a view, a layer's gradient would be copied three times.
    """
    found = [layer for layer in layers.modules() if not isinstance(layer, nn.Sequential)]
    for layer in found:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return found


def run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The layers one after the other, keeping less for the backward pass.

    Of a norm and what stands between it and the next weights only the input is kept: that is
    computed again in the backward pass, and costs little. The weights' own product is not, since
    a checkpoint ends where all that was kept is back.
    """
    for segment in _segments(layers):
        if len(segment) > 1 and isinstance(segment[0], LayerNorm2d):
            x = recomputed(segment, x)
        else:
            x = segment(x)
    return x


def recomputed(function: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """What a function gives; in the backward pass it is called again, of which it keeps nothing."""
    if not torch.is_grad_enabled():
        return function(*given)
    kept: Tensor = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return kept


def _segments(layers: Iterable[nn.Module]) -> Iterator[nn.Sequential]:
    """From a norm to the next weights, or what stands between two of these."""
    segment: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, LayerNorm2d) and segment:
            yield nn.Sequential(*segment)
            segment = []
        segment.append(layer)
        if isinstance(layer, WEIGHTED):
            yield nn.Sequential(*segment)
            segment = []
    if segment:
        yield nn.Sequential(*segment)
