"""Query and key weights out of the linear maps in which attentions keep them."""

from typing import NamedTuple

from torch import Tensor, nn

from burst.adapters.registry import Attention, AttentionLayout
from burst.errors import ShapeError, UnsupportedModel


class Linear(NamedTuple):
    """A linear map x -> x @ weight^T + bias, in torch's orientation (out, in)."""

    weight: Tensor
    bias: Tensor | None


def linear(attention: Attention, name: str) -> Linear:
    """The linear map of this name.

    Raises:
        UnsupportedModel: it is something else, such as a LoRA adapter or a quantised layer.
    """
    found: nn.Module = attention.get_submodule(name)
    if not isinstance(found, nn.Linear) or type(found).forward is not nn.Linear.forward:
        raise UnsupportedModel(
            f"{name} is a {type(found).__name__}, expected nn.Linear; merge adapters such as LoRA "
            "into the weights and dequantise them"
        )
    return Linear(found.weight, found.bias)


def separate(
    attention: Attention,
    query: str,
    key: str,
    *,
    heads: int,
    group: int = 1,
    scale: float | None = None,
    omitted: tuple[str, ...] = (),
) -> AttentionLayout:
    """A layout with one linear map for the queries and one for the keys."""
    q, k = linear(attention, query), linear(attention, key)
    return AttentionLayout(
        query=q.weight, key=k.weight, query_bias=q.bias, key_bias=k.bias,
        heads=heads, group=group, scale=scale, omitted=omitted,
    )  # fmt: skip


def fused(
    packed: Linear,
    label: str,
    *,
    heads: int,
    parts: int = 3,
    scale: float | None = None,
    omitted: tuple[str, ...] = (),
) -> AttentionLayout:
    """A layout whose rows are all queries, all keys and, with three parts, all values.

    Raises:
        ShapeError: the rows of `label`, as it is called, do not divide into so many parts.
    """
    rows, rest = divmod(packed.weight.shape[0], parts)
    if rest:
        raise ShapeError(
            f"{label} weight {tuple(packed.weight.shape)} does not divide into {parts}"
        )
    q, k = slice(None, rows), slice(rows, 2 * rows)
    weight, bias = packed
    return AttentionLayout(
        query=weight[q],
        key=weight[k],
        query_bias=None if bias is None else bias[q],
        key_bias=None if bias is None else bias[k],
        heads=heads,
        scale=scale,
        omitted=omitted,
    )
