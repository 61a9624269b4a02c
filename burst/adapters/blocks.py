"""The attention blocks of any model whose attention has an adapter: which, where, and what of them.

find_blocks        in order, with their names
select_blocks      some of them, by index
describe_blocks    what would be measured in each, or why it cannot be
measurable_blocks  those to measure and those to leave out
num_prefix_tokens  how many of their tokens are not patches
prefix_tokens_of   the same of each block, where towers differ
"""

import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import nn

from burst.adapters.registry import (
    REGISTER,
    RELATIVE,
    ROTARY,
    Adapter,
    find_adapter,
    prefix_counter,
    read_layout,
)
from burst.errors import BurstError, UnsupportedModel, and_more, some


class OmittedTermWarning(UserWarning):
    """The scores of this model have a term that its query-key product leaves out."""


class AttentionBlock(NamedTuple):
    """One attention block of a model.

    Attributes:
        index: position among the model's attention blocks, from 0; in a plain ViT, `blocks[index]`.
        name: full name of the block's module, such as `blocks.3` or `layers.1.blocks.0`.
        module: the block.
        attention: the module with its query and key weights; the block itself where one projection
            serves attention and MLP.
        attention_name: its full name.
        adapter: what is known of its class; None if nothing is.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks a block for
    name: str
    module: nn.Module
    attention: nn.Module
    attention_name: str
    adapter: Adapter | None

    @property
    def label(self) -> str:
        """What messages call its attention: name and class."""
        return f"{self.attention_name} ({type(self.attention).__name__})"

    @property
    def reader(self) -> nn.Module:
        """The module whose input is what the attention reads."""
        return self.attention.get_submodule(self.adapter.reads if self.adapter else "")


@dataclass(frozen=True)
class BlockDescription:
    """What would be measured in one block, before anything is computed.

    `index` and `name` are those of `find_blocks`, `attention` is the class of its attention,
    `omitted` what its scores hold beyond the bilinear term. If the block cannot be measured,
    `reason` says why, and `num_heads` (h), `dim` (d) and `head_dim` (d_h) are None; else `reason`
    is None.
    """

    index: int
    name: str
    attention: str
    reason: str | None = None
    omitted: tuple[str, ...] = ()
    num_heads: int | None = None
    dim: int | None = None
    head_dim: int | None = None

    @property
    def supported(self) -> bool:
        """Whether the block can be measured."""
        return self.reason is None


@dataclass(frozen=True)
class SkippedBlock:
    """A block that was not measured, and why."""

    block: int
    name: str
    reason: str


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside (Distributed)DataParallel and torch.compile; else the model itself."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return unwrap(model.module)
    inner = dict(model.named_children()).get("_orig_mod")
    return model if inner is None else unwrap(inner)


def find_blocks(model: nn.Module) -> tuple[AttentionBlock, ...]:
    """The attention blocks of a model, in the order in which it defines them.

    An attention is a module of a class that has an adapter, or that is refused by name, whatever it
    is called and wherever it sits; or one of which nothing is known, but that is called `attn`, as
    timm and others call it, or is of a class called ...Attention, in a model that has others.
    Whether it can be measured is another question: see `describe_blocks`.

    Args:
        model: DistributedDataParallel and torch.compile are looked through.

    Returns:
        One entry for each attention, numbered from 0.

    Raises:
        UnsupportedModel: the model has no such block; a ResNet, say.
    """
    root = unwrap(model)
    modules = dict(root.named_modules(remove_duplicate=False))
    found: list[AttentionBlock] = []
    inside: tuple[str, ...] = ()
    for name, module in modules.items():
        if f"{name}.".startswith(inside):
            continue
        parent, _, child = name.rpartition(".")
        attention = unwrap(module)
        entry = find_adapter(attention, modules[parent] if name else None, child)
        if entry is None and not _is_unknown_attention(child, attention):
            continue
        block = _up(name, entry.up if entry else 1)
        found.append(
            AttentionBlock(len(found), block, unwrap(modules[block]), attention, name, entry)
        )
        inside += (f"{name}.",)
    if not any(one.adapter or _last(one.attention_name) == "attn" for one in found):
        raise UnsupportedModel(_no_block(root))
    return tuple(found)


def _is_unknown_attention(child: str, attention: nn.Module) -> bool:
    """By its name, or by that of its class; what wraps a known one, or an `attn`, is none."""
    by_name = child == "attn" and not isinstance(attention, nn.Identity)
    by_class = child != "attn" and type(attention).__name__.endswith("Attention")
    if not (by_name or (by_class and next(attention.parameters(), None) is not None)):
        return False
    parts = {name: part for name, part in attention.named_modules() if name}
    if by_class and any(_last(name) == "attn" for name in parts):
        return False
    return not any(find_adapter(part, None, "") for part in parts.values())


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _up(name: str, steps: int) -> str:
    parts = name.split(".") if name else []
    return ".".join(parts[: max(len(parts) - steps, 0)])


def _no_block(root: nn.Module) -> str:
    kinds = (type(module).__name__ for module in root.modules())
    named = dict.fromkeys(kind for kind in kinds if "attention" in kind.lower())
    advice = (
        f"of {', '.join(named)} nothing is known: {REGISTER}" if named else "choose a transformer"
    )
    return f"{type(root).__name__} has no block with an attention that is known; {advice}"


def select_blocks(model: nn.Module, blocks: Iterable[int] | None) -> tuple[AttentionBlock, ...]:
    """The blocks asked for by index, each once, in the order given; None means all.

    Raises:
        BurstError: no index, or one outside 0 .. number of blocks - 1 (-1 is no shorthand here).
        UnsupportedModel: the model has no attention block.
    """
    found = find_blocks(model)
    if blocks is None:
        return found
    chosen = dict.fromkeys(operator.index(i) for i in blocks)
    outside = [i for i in chosen if not 0 <= i < len(found)]
    if outside or not chosen:
        asked = some(map(str, outside)) or "asked for: none"
        raise BurstError(
            f"blocks {asked}: {type(unwrap(model)).__name__} has attention blocks 0 to "
            f"{len(found) - 1}; give some of these"
        )
    return tuple(found[i] for i in chosen)


def describe_blocks(model: nn.Module) -> tuple[BlockDescription, ...]:
    """Say for each attention block what would be measured, or why it cannot be.

    Reads no weights, so a model on the meta device will do.

    Raises:
        UnsupportedModel: the model has no attention blocks at all.
    """
    return tuple(_describe(model, block) for block in find_blocks(model))


def measurable_blocks(
    model: nn.Module, blocks: Iterable[int] | None
) -> tuple[tuple[AttentionBlock, ...], tuple[SkippedBlock, ...], tuple[str, ...]]:
    """The blocks to measure, those that cannot be, and what is left out of the scores.

    Raises:
        UnsupportedModel: none can be measured, or one that was asked for by index cannot be.
        BurstError: a block index out of range.
    """
    indices = None if blocks is None else tuple(blocks)
    chosen = select_blocks(model, indices)
    wanted = [_describe(model, block) for block in chosen]
    skipped = tuple(
        SkippedBlock(one.index, one.name, f"{one.attention}: {one.reason}")
        for one in wanted
        if not one.supported
    )
    if skipped and (indices is not None or len(skipped) == len(wanted)):
        first = skipped[0]
        raise UnsupportedModel(
            f"{first.name}{and_more(len(skipped))} cannot be measured: {first.reason}"
        )
    left_out = {block.block for block in skipped}
    terms = (term for one in wanted if one.supported for term in one.omitted)
    kept = tuple(block for block in chosen if block.index not in left_out)
    return kept, skipped, tuple(dict.fromkeys(terms))


def warn_of_omissions(name: str, omitted: tuple[str, ...]) -> None:
    """Say once which terms of the scores W_q W_k^T leaves out; for the function that users call.

    Warns:
        OmittedTermWarning: if there are any.
    """
    if omitted:
        message = f"left out of the scores of {name}: {', '.join(omitted)}"
        warnings.warn(message, OmittedTermWarning, stacklevel=3)


def num_prefix_tokens(model: nn.Module) -> int:
    """How many tokens in front of the patches the blocks read: class, distillation, registers.

    As an adapter says of the model or of a part of it, or as the model or a part of it itself does,
    by an attribute `num_prefix_tokens`, as timm's have it. 0 for models without such tokens.

    Raises:
        UnsupportedModel: the model has a class token but does not say where (PiT, CrossViT), or
            not in every block (ConViT); measure all of its tokens. Or its towers differ (CLIP), or
            it has no attention blocks.
    """
    root = unwrap(model)
    # A tower of text beside one of images has no patches that tokens could stand in front of.
    counts = set(_prefixes(root, find_blocks(root)).values()) - {None}
    if len(counts) > 1:
        raise UnsupportedModel(
            f"{type(root).__name__} has towers with different prefix tokens; measure one of them, "
            "or all of its tokens"
        )
    return counts.pop() or 0 if counts else 0


def prefix_tokens_of(model: nn.Module, blocks: Iterable[AttentionBlock]) -> dict[int, int]:
    """The same for each block by its index: towers of one model differ.

    Raises:
        UnsupportedModel: see `num_prefix_tokens`.
    """
    return {block: count or 0 for block, count in _prefixes(unwrap(model), blocks).items()}


def _prefixes(root: nn.Module, blocks: Iterable[AttentionBlock]) -> dict[int, int | None]:
    """Those of each block; None where nothing tells of a block, but of other towers."""
    counters = _prefix_counters(root, [block.name for block in find_blocks(root)])
    told = {name: m.num_prefix_tokens for name, m in root.named_modules() if _tells_prefix(m)}
    elsewhere = tuple(f"{scope}." for scope in (*counters, *told) if scope)

    def count(block: str) -> int | None:
        for scope in _above(block):
            if scope in counters:
                return counters[scope]()
            if scope in told:
                return int(told[scope])
        for name, _ in root.named_parameters():
            if any(hint in name for hint in PREFIX_HINTS) and not name.startswith(elsewhere):
                raise UnsupportedModel(_not_the_same(root))
        return None if counters or told else 0

    return {block.index: count(block.name) for block in blocks}


CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")  # parameters they are kept in
# Of parameters that class, distillation and register tokens are kept in.
PREFIX_HINTS = (*CLASS_TOKENS, "dist_token", "reg_token", "register")


def _prefix_counters(root: nn.Module, blocks: list[str]) -> dict[str, Callable[[], int]]:
    """What tells the prefix tokens, by the smallest part around it that has blocks."""
    found: dict[str, Callable[[], int]] = {}
    for name, module in root.named_modules():
        if count := prefix_counter(module):
            scope = name
            while scope and not any(block.startswith(f"{scope}.") for block in blocks):
                scope = scope.rpartition(".")[0]
            found.setdefault(scope, partial(count, module))
    return found


def _tells_prefix(module: nn.Module) -> bool:
    return isinstance(getattr(module, "num_prefix_tokens", None), int)


def _above(name: str) -> Iterator[str]:
    """Names of what a module is in, from the inside out."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _not_the_same(root: nn.Module) -> str:
    return (
        f"{type(root).__name__} does not have the same prefix tokens in every block; "
        "measure all of its tokens"
    )


def _describe(model: nn.Module, block: AttentionBlock) -> BlockDescription:
    kind = type(block.attention).__name__
    try:
        if block.adapter and block.adapter.reason:
            raise UnsupportedModel(block.adapter.reason)
        layout = read_layout(block.attention)
    except BurstError as error:
        return BlockDescription(block.index, block.name, kind, str(error))
    rows, dim = layout.query.shape
    shape = (layout.heads, dim, rows // layout.heads)
    omitted = _omitted_in(model, block, layout.omitted)
    return BlockDescription(block.index, block.name, kind, None, omitted, *shape)


def _omitted_in(
    model: nn.Module, block: AttentionBlock, omitted: tuple[str, ...]
) -> tuple[str, ...]:
    """The same terms, corrected by what a model of timm passes, or not, to its attentions."""
    root = unwrap(model)
    around = [root.get_submodule(name) for name in _above(block.name)]

    def nearest(name: str) -> object:  # of a model that may be a part of another
        return next((getattr(one, name) for one in around if hasattr(one, name)), ...)

    if nearest("rope") is None:
        omitted = tuple(term for term in omitted if term != ROTARY)
    if nearest("rel_pos_bias") not in (None, ...) and RELATIVE not in omitted:
        omitted += (RELATIVE,)
    return omitted
