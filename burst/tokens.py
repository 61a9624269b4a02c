"""What the attention of each block reads: hooks on the user's own model.

capture  a context in which each block hands over the tokens its attention reads
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from burst.adapters import AttentionBlock, find_blocks, select_blocks
from burst.adapters.registry import CROSS
from burst.errors import HookNeverFired, UnsupportedModel
from burst.threads import of_this_thread

Hook: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


@contextmanager
def capture(
    model: nn.Module,
    blocks: Iterable[int] | None = None,
    *,
    on_tokens: Callable[[int, Tensor], None] | None = None,
) -> Iterator[Mapping[int, Tensor]]:
    """Read the tokens that enter each block's attention, while the model runs as it always does.

    What is read is the input of each block's attention: after the block's first norm, where it has
    one there. The model computes what it would compute without this context, bit for bit.

        with capture(model, blocks=[0, 11]) as tokens:
            logits = model(images)
        tokens[11]                                   # (B, N, d)

    Args:
        model: any with attention blocks, also inside DistributedDataParallel. It is not moved or
            switched.
        blocks: indices as in `find_blocks`; None means all.
        on_tokens: called as `on_tokens(index, tokens)` in the middle of the forward pass, block
            after block, and nothing is kept: memory stays flat over any number of batches.

    Yields:
        A mapping from block index to the tokens last read, detached, in the dtype and on the
        device in which the attention reads them; empty with `on_tokens`. Shape (B, N, d);
        (B * windows, N, d) where attention is windowed; grids are flattened to (B, H * W, d).
        Windows are as the attention sees them, zero padding at the border included. An attention
        that says `batch_first=False`, as `nn.MultiheadAttention` does unless told otherwise, reads
        (N, B, d): its tokens are handed over as (B, N, d) all the same.

    An attention that runs twice in one forward pass is reported twice, and the last one is kept.
    Recomputation by gradient checkpointing during the backward pass is not a new reading and is
    passed over, and so is what other threads run. Contexts nest. Leaving one removes its hooks,
    also after an error.

    Raises:
        BurstError: a block index out of range.
        HookNeverFired: on leaving, if a block asked for read nothing and no error is under way.
        UnsupportedModel: no attention blocks; two blocks that share one attention; an attention
            that reads something other than tokens, or wraps a sequence-first one, so that its own
            layout is not known; a compiled, scripted or DataParallel model, where hooks are skipped
            or run at once in several threads.
    """
    chosen = select_blocks(model, blocks)
    check_hooks_work(model, chosen)
    check_not_shared(find_blocks(model), chosen)
    _check_layout_is_known(chosen)
    tokens: dict[int, Tensor] = {}
    receive = tokens.__setitem__ if on_tokens is None else on_tokens
    fired: set[int] = set()
    handles: list[RemovableHandle] = []
    try:
        handles += _listen(chosen, fired, receive)
        yield tokens
    finally:
        for handle in handles:
            handle.remove()
    silent = ", ".join(block.name for block in chosen if block.index not in fired)
    if silent:
        raise HookNeverFired(
            f"no tokens were read in {silent}: run the model inside the context, "
            "and ask only for blocks that its forward pass reaches"
        )


def check_hooks_work(model: nn.Module, chosen: Iterable[AttentionBlock]) -> None:
    """Refuse a model in which hooks of these blocks are skipped, or run in several threads.

    Raises:
        UnsupportedModel: a compiled, scripted or DataParallel model.
    """
    readers = {block.reader for block in chosen}
    for name, module in model.named_modules():
        compiled = dict(module.named_children()).get("_orig_mod") is not None
        if compiled or getattr(module, "_compiled_call_impl", None) is not None:
            kind, advice = "compiled", "pass the model as it was before torch.compile"
        elif isinstance(module, torch.jit.ScriptModule):
            kind, advice = "scripted", "pass the Python model"
        elif isinstance(module, nn.DataParallel):
            kind, advice = "DataParallel", "pass its `.module` or use DistributedDataParallel"
        else:
            continue
        if not readers.isdisjoint(module.modules()):
            where = f" at {name}" if name else ""
            raise UnsupportedModel(f"hooks do not work on a {kind} model{where}; {advice}")


def check_not_shared(found: Iterable[AttentionBlock], chosen: Iterable[AttentionBlock]) -> None:
    """Refuse blocks that share an attention with another.

    Raises:
        UnsupportedModel: one of those chosen does.
    """
    wanted = {id(block.attention) for block in chosen}
    names: dict[int, list[str]] = {}
    for block in found:
        names.setdefault(id(block.attention), []).append(block.name)
    for attention, sharers in names.items():
        if attention in wanted and len(sharers) > 1:
            raise UnsupportedModel(
                f"{' and '.join(sharers)} share one attention module, so their tokens cannot be "
                "told apart; ask for other blocks"
            )


def _check_layout_is_known(chosen: Iterable[AttentionBlock]) -> None:
    for block in chosen:
        for name, inner in block.attention.named_modules():
            if name and _is_sequence_first(inner):
                raise UnsupportedModel(
                    f"{block.label} wraps {name} "
                    f"({type(inner).__name__}), which reads (N, B, d): whether it does so too is "
                    "not known; make that one batch_first=True, or leave this block out"
                )


def _is_sequence_first(attention: nn.Module) -> bool:
    # The word of nn.MultiheadAttention and of the attentions that are written after it.
    return getattr(attention, "batch_first", True) is False


def _listen(
    chosen: Iterable[AttentionBlock], fired: set[int], receive: Callable[[int, Tensor], None]
) -> Iterator[RemovableHandle]:
    outside: dict[nn.Module, Hook] = {}
    for block in chosen:
        hook = _reading_hook(block, fired, receive)
        if block.adapter and block.adapter.before:
            outside[block.module] = hook
        else:
            yield block.reader.register_forward_pre_hook(hook, with_kwargs=True)

    def hear(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module in outside:
            outside[module](module, args, {})

    if outside:  # global hooks that are given keyword arguments too leave a trace when removed
        yield register_module_forward_pre_hook(hear)


def _reading_hook(
    block: AttentionBlock, fired: set[int], receive: Callable[[int, Tensor], None]
) -> Hook:
    before = block.adapter.before if block.adapter else None
    module = block.module if before else block.reader
    tokens, given_to = tokens_given_to(block, module)

    @of_this_thread
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if in_backward():
            return
        x = given_to(args, kwargs)
        if before:
            if x is None:
                raise UnsupportedModel(
                    f"{block.label}: its {type(module).__name__} is given {tokens!r} by keyword; "
                    "give it its tokens as the first argument"
                )
            with torch.no_grad():
                x = before(block.module, x)
        receive(block.index, _as_tokens(x, block))
        fired.add(block.index)

    return hook


def tokens_given_to(
    block: AttentionBlock, module: nn.Module
) -> tuple[str, Callable[[tuple[Any, ...], dict[str, Any]], Any]]:
    """The name of the argument that brings a block's tokens, and what reads it of a call.

    Args:
        block: of a model.
        module: of it, which is called with them.

    Raises (what reads it):
        UnsupportedModel: keys are made of other tokens than queries.
    """
    known = block.adapter
    parameters = list(inspect.signature(module.forward).parameters)
    tokens = (known and known.argument) or parameters[0]
    keys = known.same if known else None

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        given = dict(zip(parameters, args, strict=False)) | kwargs
        x = given.get(tokens)
        if keys and given.get(keys) is not None and given[keys] is not x:
            raise UnsupportedModel(f"{block.label}: {CROSS}; leave this block out")
        return x

    return tokens, read


def in_backward() -> bool:
    """Whether a forward pass is being computed once more, by gradient checkpointing."""
    # As torch.utils.module_tracker asks: a checkpointed block runs again during backward.
    return torch._C._current_graph_task_id() != -1


def _as_tokens(x: object, block: AttentionBlock) -> Tensor:
    if isinstance(x, Tensor) and not x.is_nested:
        if x.ndim == 3:
            return x.detach().transpose(0, 1) if _is_sequence_first(block.attention) else x.detach()
        if x.ndim > 3 and block.adapter and block.adapter.grid:
            return x.detach().flatten(1, -2)
    what, advice = type(x).__name__, "leave this block out"
    if isinstance(x, Tensor) and x.is_nested:
        what = "a nested tensor"
        advice = "set `use_nested_tensor` of its nn.TransformerEncoder to False"
    elif isinstance(x, Tensor):
        what = f"shape {tuple(x.shape)}"
    raise UnsupportedModel(f"{block.label} reads {what}, expected tokens (B, N, d); {advice}")
