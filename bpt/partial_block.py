"""A frozen block's output for those of its tokens that are read afterwards.

Where the next block has a prompt of its own, what this one makes of its prompt is thrown away: the
prompt's keys and values are all that is needed of it. The head reads some tokens behind the last
block. And a prompt's queries, keys and values are the same for all images.
"""

from typing import Any

import torch
from timm.models.vision_transformer import (  # type: ignore[attr-defined, unused-ignore]
    Attention,
    Block,
)
from torch import Tensor, nn
from torch.nn import functional


def is_known(block: nn.Module) -> bool:
    """Whether a block is timm's plain one, frozen, and nobody looks into it with hooks."""
    attention: Any = getattr(block, "attn", None)
    return (
        type(block) is Block
        and type(attention) is Attention
        and type(attention.qkv) is nn.Linear
        and getattr(attention, "gate", None) is None
        and not any(one._forward_hooks or one._forward_pre_hooks for one in block.modules())
        and not any(one.requires_grad for one in block.parameters())
    )


def partial_block(
    block: Any,  # noqa: ANN401  a module whose parts are read
    x: Tensor,
    prompt: Tensor | None,
    rows: slice,
    *,
    at: int | None,
) -> Tensor:
    """The block's output, up to rounding, for the tokens that are read.

    Args:
        block: see `is_known`; in eval mode.
        x: (B, N, d) tokens in front of it, without the prompt.
        prompt: (1, m, d), or (B, m, d) where images have different ones; None for none.
        rows: which of `x` are read.
        at: how many of these stand before the prompt's tokens; None if those are not read.

    Returns:
        (B, n, d), or (B, n + m, d) with the prompt's.
    """
    read, attention = x[:, rows], block.attn
    normed = block.norm1(x)
    queries = _heads(attention, normed[:, rows], "q")
    keys_values = _heads(attention, normed, "kv")
    if prompt is not None:
        normed = block.norm1(prompt)
        keys_values = _joined(keys_values, _heads(attention, normed, "kv"), x.shape[0], 0)
        if at is not None:
            queries = _joined(queries, _heads(attention, normed, "q"), x.shape[0], at)
            prompt = prompt.expand(x.shape[0], -1, -1)
            read = torch.cat([read[:, :at], prompt, read[:, at:]], dim=1)
    keys, values = keys_values
    found = functional.scaled_dot_product_attention(
        attention.q_norm(queries[0]), attention.k_norm(keys), values
    )
    found = attention.norm(found.transpose(1, 2).flatten(2))
    x = read + block.ls1(attention.proj(found))
    out: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
    return out


def _heads(attention: Any, x: Tensor, what: str) -> Tensor:  # noqa: ANN401
    """(1 or 2, B, heads, N, d_h): queries, or keys and values, of (B, N, d) normed tokens."""
    width = attention.num_heads * attention.head_dim
    mine = slice(0, width) if what == "q" else slice(width, None)
    bias = attention.qkv.bias
    found = functional.linear(x, attention.qkv.weight[mine], None if bias is None else bias[mine])
    shape = *found.shape[:2], len(what), attention.num_heads, attention.head_dim
    return found.reshape(shape).permute(2, 0, 3, 1, 4)


def _joined(images: Tensor, prompt: Tensor, batch: int, at: int) -> Tensor:
    """A prompt's heads among those of the images, behind `at` of their tokens."""
    prompt = prompt.expand(-1, batch, -1, -1, -1)
    return torch.cat([images[..., :at, :], prompt, images[..., at:, :]], dim=3)
