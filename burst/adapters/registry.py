"""The attention classes that are known: what an adapter says of each, and why others are refused.

An attention is measured if its score is `(x W_q + b_q) (y W_k + b_k)^T`, bilinear in two tokens up
to biases and scale, and terms that are added or applied later: those an adapter names in `omitted`.
Where queries or keys are normalised, pooled or taken from anything but tokens, W_q W_k^T does not
score tokens, and the class is refused.

Classes are known by their full name, so that no library is imported to be known.

    @adapter(MyAttention)
    def _mine(attention):
        return AttentionLayout(
            query=attention.q.weight, key=attention.k.weight, heads=attention.num_heads
        )
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from torch import Tensor, nn

from burst.errors import ShapeError, UnsupportedModel

# What scores can hold beyond the bilinear term.
ROTARY = "rotary position embedding"
RELATIVE = "relative position bias"
SHIFT_MASK = "shifted-window mask"

# Why an attention is refused.
UNSCORED = "so W_q W_k^T does not score tokens"
QUERY_KEY_NORM = f"it normalises queries and keys (query-key norm), {UNSCORED}"
COSINE = f"cosine attention normalises queries and keys, {UNSCORED}"
COSINE_WINDOWS = f"cosine attention in shifted windows normalises queries and keys, {UNSCORED}"
REDUCED = "its queries or keys come from a reduced map, not from the tokens"
LEARNED = "its queries are learned vectors, not tokens"
CROSS = "cross-attention: its keys come from other tokens than its queries"
REGISTER = "register an `adapter` (burst.adapter)"


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionLayout:
    """Where an adapter found an attention's weights, in torch's orientation (out, in).

    Attributes:
        query: (h d_h, d), one head after the other.
        key: (h_k d_h, d); query head i uses key head i // group.
        heads: h, of queries.
        group: h / h_k, how many query heads share a key head.
        query_bias: (h d_h,), if there is one.
        key_bias: (h_k d_h,), if there is one.
        scale: what q k^T is multiplied by; None for d_h^(-1/2).
        omitted: what the scores hold beyond the bilinear term, such as `ROTARY`.
    """

    query: Tensor
    key: Tensor
    heads: int
    group: int = 1
    query_bias: Tensor | None = None
    key_bias: Tensor | None = None
    scale: float | None = None
    omitted: tuple[str, ...] = ()


Attention: TypeAlias = Any  # nn.Module would make every attribute a Tensor or a Module
Read: TypeAlias = Callable[[Attention], AttentionLayout]
Before: TypeAlias = Callable[[Any, Any], Tensor]
Key: TypeAlias = type[nn.Module] | str
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What is known of an attention class; the arguments of `adapter`, or a reason to refuse it."""

    read: Read | None = None
    reason: str = ""
    up: int = 1
    argument: str | None = None
    same: str | None = None
    reads: str = ""
    grid: bool = False
    norm: str | None = None
    before: Before | None = None


_ADAPTERS: dict[Key, Adapter] = {}
_PREFIXES: dict[Key, Callable[[Attention], int]] = {}


def adapter(
    *classes: Key,
    up: int = 1,
    argument: str | None = None,
    same: str | None = None,
    reads: str = "",
    grid: bool = False,
    norm: str | None = None,
    before: Before | None = None,
) -> Callable[[F], F]:
    """Register how an attention class is read, by a function attention -> `AttentionLayout`.

    It serves these classes and those of their subclasses that keep their `forward`. The function
    may raise `UnsupportedModel` for an attention that it cannot read.

    Args:
        classes: types, or full names such as "package.module:MyAttention". Such a name followed by
            ".attention" is the attention of that name in a block of that class.
        up: how many names above the attention's its block is: of `layer.0.attention.self`, with 2,
            `layer.0`. With 0 the block is its own attention.
        argument: the parameter of `forward` that brings the tokens; the first if not given. They
            are (B, N, d), or (N, B, d) where the attention says `batch_first` and it is False.
        same: the parameter that brings the keys' tokens, where it is another: if it is given and
            is not the same tensor, this is no self-attention, and reading it is an error.
        reads: a submodule whose first argument is what is read, in place of the attention itself.
        grid: whether it reads (..., H, W, d), channels last.
        norm: the norm, a child of the block, whose output the attention reads. If not given it is
            `norm1`, where the block defines that before the attention, as timm does.
        before: (block, x) -> tokens, what a block does with its first argument x before its
            attention reads it. For a block that may leave its attention uncalled, or that computes
            otherwise where hooks are attached: it is then listened to from outside.
    """

    def register(read: F) -> F:
        entry = Adapter(
            read=read, up=up, argument=argument, same=same, reads=reads, grid=grid, norm=norm,
            before=before,
        )  # fmt: skip
        _ADAPTERS.update(dict.fromkeys(classes, entry))
        return read

    return register


def refuse(*classes: Key, reason: str, up: int = 1) -> None:
    """Register attention classes without a token-by-token product, and say why.

    Args:
        classes: types, or full names. "package.module:Layer.cross_attention" is the attention of
            that name in a module of that class.
        reason: why, as errors and `SkippedBlock` say it.
        up: how many names above the attention's its block is, see `adapter`.
    """
    _ADAPTERS.update(dict.fromkeys(classes, Adapter(reason=reason, up=up)))


def prefix_tokens(*classes: Key) -> Callable[[F], F]:
    """Register how many tokens stand before the patches: a function module -> number.

    The module is the model itself or a part of it, such as its embeddings.
    """

    def register(count: F) -> F:
        _PREFIXES.update(dict.fromkeys(classes, count))
        return count

    return register


def known_classes() -> dict[str, Adapter]:
    """What is registered, by full name."""
    return {
        key if isinstance(key, str) else full_name(key): entry for key, entry in _ADAPTERS.items()
    }


def find_adapter(attention: nn.Module, parent: nn.Module | None, child: str) -> Adapter | None:
    """What is known of an attention that is called `child` in its parent."""
    if parent is not None:
        for kind in type(parent).__mro__:
            entry = _ADAPTERS.get(f"{full_name(kind)}.{child}")
            own = getattr(kind, "forward", None)
            if entry and (entry.reason or type(parent).forward is own):
                return entry
    found = _lookup(_ADAPTERS, attention)
    return found[1] if found else None


def prefix_counter(module: nn.Module) -> Callable[[Attention], int] | None:
    """What tells the prefix tokens of this module, if anything does."""
    found = _lookup(_PREFIXES, module)
    return found[1] if found else None


def read_layout(attention: nn.Module) -> AttentionLayout:
    """The layout of an attention, checked.

    Raises:
        UnsupportedModel: the class is not known, or refused; or it, or the module, replaces the
            forward of the one that is known.
        ShapeError: weights that do not divide into heads.
    """
    found = _lookup(_ADAPTERS, attention)
    if found is None:
        origin = type(attention).__module__
        raise UnsupportedModel(f"attention of {origin} is not known; {REGISTER}")
    kind, entry = found
    if entry.read is None:
        raise UnsupportedModel(entry.reason)
    if type(attention).forward is not kind.forward or _is_replaced(attention):
        raise UnsupportedModel(
            f"it replaces the forward of {kind.__name__}, so its scores are not known; {REGISTER}"
        )
    for norm in ("q_norm", "k_norm"):
        if not isinstance(getattr(attention, norm, None), nn.Identity | None):
            raise UnsupportedModel(QUERY_KEY_NORM)
    layout = entry.read(attention)
    _check(layout)
    return layout


def _is_replaced(attention: nn.Module) -> bool:
    """Whether this one module has a forward of its own, which is not its class's, wrapped."""
    if "forward" not in vars(attention):
        return False
    own: object = inspect.unwrap(vars(attention)["forward"])
    return getattr(own, "__func__", own) is not inspect.unwrap(type(attention).forward)


def full_name(kind: type) -> str:
    """A class's "package.module:Class"."""
    return f"{kind.__module__}:{kind.__qualname__}"


T = TypeVar("T")


def _lookup(table: dict[Key, T], module: nn.Module) -> tuple[type[nn.Module], T] | None:
    for kind in type(module).__mro__:
        found = table.get(kind) or table.get(full_name(kind))
        if found is not None:
            return kind, found
    return None


def _check(layout: AttentionLayout) -> None:
    query, key, heads = layout.query, layout.key, layout.heads
    whole = query.ndim == 2 and query.shape == (len(key) * layout.group, *key.shape[1:])
    if not whole or len(query) < heads or len(query) % heads or heads % layout.group:
        raise ShapeError(
            f"query weight {tuple(query.shape)} and key weight {tuple(key.shape)} do not fit "
            f"{heads} heads with {layout.group} to a key; pass the whole model, not a shard"
        )
    for bias, weight in ((layout.query_bias, query), (layout.key_bias, key)):
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ShapeError(f"bias {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}")
