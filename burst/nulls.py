"""What burstiness would be by chance: weights and tokens with their structure shuffled away.

permuted_weights  W_q and W_k with their entries in random order
random_weights    a copy of a model in which every attention has such weights
permuted_columns  tokens of which each dimension's values are in a random order of their own
"""

import copy
import zlib
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from burst.adapters import find_blocks, unwrap
from burst.adapters.registry import read_layout
from burst.backbone import Backbone
from burst.errors import BurstError, ShapeError, UnsupportedModel

M = TypeVar("M", nn.Module, Backbone)


def permuted_columns(x: Tensor, generator: torch.Generator) -> Tensor:
    """Tokens of which each column's values are shuffled over all tokens, each column by itself.

    Every dimension keeps its values exactly, and so its mean, variance and tails; what the
    dimensions of one token had to do with each other is gone. What stays bursty in A X^T is then
    due to the weights and to the dimensions' own scales.

    Args:
        x: (..., d) tokens in rows, such as one batch (B, N, d); not changed.
        generator: of the order, best on the device of x; equal states give equal orders.

    Returns:
        A new tensor of x's shape, dtype and device.

    Raises:
        ShapeError: x has fewer than two dimensions.
    """
    if x.ndim < 2:
        raise ShapeError(f"tokens {tuple(x.shape)} must be (..., d), in rows")
    columns = x.reshape(-1, x.shape[-1]).mT
    keys = torch.rand(columns.shape, generator=generator, device=generator.device)
    order = keys.argsort(dim=1).to(x.device)
    return columns.gather(1, order).mT.reshape(x.shape)


def content_generator(x: Tensor) -> torch.Generator:
    """A generator on the tokens' device whose state depends on nothing but values of theirs.

    So a batch is shuffled alike whichever process reads it, and however many there are.
    """
    values = x[..., 0].detach().float().cpu().contiguous()
    return torch.Generator(x.device).manual_seed(zlib.crc32(values.numpy().tobytes()))


def permuted_weights(w: Tensor, generator: torch.Generator) -> Tensor:
    """A new tensor with the entries of `w` in random order: the same values, no structure.

    Args:
        w: of any shape.
        generator: on the CPU.
    """
    order = torch.randperm(w.numel(), generator=generator, device="cpu").to(w.device)
    return w.reshape(-1)[order].reshape(w.shape)


def random_weights(model: M, seed: int = 0) -> M:
    """A copy of a model whose queries and keys are random, of the same scale and tails.

    In every attention the entries of W_q and those of W_k are put into random order: their mean,
    variance and distribution stay as they are, their singular vectors do not. All else, the biases
    too, is the model's own. The architecture's own initialisation is another null: build the model
    without its weights, as `load_backbone(name, "random")` does.

        burst.survey(burst.random_weights(backbone), images)

    Args:
        model: any with attention, or a backbone; it is not changed. Attentions that cannot be
            measured stay as they are.
        seed: of the order.

    Returns:
        What was given, copied; a backbone says "random" of its pretraining and weights.

    Raises:
        UnsupportedModel: no attention that can be measured, or one that keeps its queries and keys
            interleaved, so that they cannot be set one by one.
    """
    if isinstance(model, Backbone):
        shuffled = random_weights(model.model, seed)
        source = f"{model.weights_source}, entries of W_q and W_k in random order, seed {seed}"
        return replace(
            model, model=shuffled, pretraining="random", weights_source=source, weights_sha256=None
        )
    shuffled = copy.deepcopy(unwrap(model))
    generator = torch.Generator().manual_seed(seed)
    changed = [_shuffle(block.attention, generator) for block in find_blocks(shuffled)]
    if not any(changed):
        raise UnsupportedModel(f"{type(shuffled).__name__} has no attention that can be measured")
    return shuffled


@torch.no_grad()
def _shuffle(attention: nn.Module, generator: torch.Generator) -> bool:
    try:
        layout = read_layout(attention)
    except BurstError:
        return False
    own = {p.untyped_storage().data_ptr() for p in attention.parameters()}
    for weight in (layout.query, layout.key):
        if weight.untyped_storage().data_ptr() not in own:
            raise UnsupportedModel(
                f"{type(attention).__name__} keeps its queries and keys interleaved, so they "
                "cannot be shuffled; build the model without its weights instead"
            )
        weight.copy_(permuted_weights(weight, generator))
    return True
