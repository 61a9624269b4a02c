"""What the attention of each block reads: hooks on the user's own timm model.

find_blocks        the attention blocks of a model, in order, with their names
capture            a context in which each block hands over the tokens its attention reads
num_prefix_tokens  how many of those tokens are not patches
"""

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from burst.errors import BurstError, HookNeverFired, UnsupportedModel


def timm_classes(*paths: str) -> tuple[type[nn.Module], ...]:
    """The classes `models.eva:Eva`, say, that the installed timm has; others are left out."""
    classes = []
    for path in paths:
        module, _, name = path.partition(":")
        try:
            classes.append(getattr(import_module(f"timm.{module}"), name))
        except (ModuleNotFoundError, AttributeError):
            continue  # a class newer, or older, than the installed timm: no model can hold it
    return tuple(classes)


# Blocks that project queries, keys and values themselves: no `attn` inside.
FUSED_BLOCKS = timm_classes(
    "models.vision_transformer:ParallelScalingBlock",
    "models.vision_transformer:DiffParallelScalingBlock",
)
# Attentions that read their tokens as a grid or in groups, channels last.
GRID_ATTENTIONS = timm_classes(
    "models.hieradet_sam2:MultiScaleAttention",
    "models.nest:Attention",
    "models.vision_transformer_sam:Attention",
    "models.volo:Attention",
)
# Models whose class token joins after the blocks, or only in some of them.
CLASS_TOKEN_JOINS_LAST = timm_classes("models.cait:Cait", "models.xcit:Xcit")
CLASS_TOKEN_JOINS_MIDWAY = timm_classes("models.convit:ConVit")


class AttentionBlock(NamedTuple):
    """One attention block of a model.

    Attributes:
        index: position among the model's attention blocks, from 0; in a plain ViT, `blocks[index]`.
        name: full name of the block's module, such as `blocks.3` or `layers.1.blocks.0`.
        module: the block.
        attention: its `attn`, or the block itself where one projection serves attention and MLP.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks a block for
    name: str
    module: nn.Module
    attention: nn.Module

    @property
    def attention_name(self) -> str:
        """Full name of the attention module."""
        if self.attention is self.module:
            return self.name
        return f"{self.name}.attn" if self.name else "attn"

    @property
    def reader(self) -> nn.Module:
        """The module whose first input is what the attention reads."""
        if self.attention is self.module:
            return self.module.get_submodule("in_proj")
        return self.attention


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside (Distributed)DataParallel and torch.compile; else the model itself."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return unwrap(model.module)
    inner = dict(model.named_children()).get("_orig_mod")
    return model if inner is None else unwrap(inner)


def find_blocks(model: nn.Module) -> tuple[AttentionBlock, ...]:
    """The attention blocks of a model, in the order in which it defines them.

    A block is a module with a child called `attn`, as timm names it in plain ViTs (`blocks.*`),
    in hierarchical ones such as Swin (`layers.*.blocks.*`) and in ViTs with two attentions side
    by side (`blocks.*.attns.*`); or one of timm's parallel blocks, which fuse attention and MLP.
    Whether the attention can be measured is another question: `burst.projection` answers it.

    Args:
        model: a timm model; DistributedDataParallel and torch.compile are looked through.

    Returns:
        One entry for each attention, numbered from 0.

    Raises:
        UnsupportedModel: the model has no such block; a ResNet, say.
    """
    root = unwrap(model)
    found: list[AttentionBlock] = []
    inside: tuple[str, ...] = ()
    for name, module in root.named_modules(remove_duplicate=False):
        fused = isinstance(module, FUSED_BLOCKS)
        attention = module if fused else dict(module.named_children()).get("attn")
        if isinstance(attention, nn.Identity | None) or f"{name}.".startswith(inside):
            continue
        found.append(AttentionBlock(len(found), name, module, unwrap(attention)))
        inside += (f"{found[-1].attention_name}.",)
    if not found:
        raise UnsupportedModel(
            f"{type(root).__name__} has no block with an attention module called `attn`; "
            "choose a Vision Transformer"
        )
    return tuple(found)


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
        raise BurstError(
            f"blocks {outside or 'asked for: none'}: {type(unwrap(model)).__name__} has attention "
            f"blocks 0 to {len(found) - 1}; give some of these"
        )
    return tuple(found[i] for i in chosen)


@contextmanager
def capture(
    model: nn.Module,
    blocks: Iterable[int] | None = None,
    *,
    on_tokens: Callable[[int, Tensor], None] | None = None,
) -> Iterator[Mapping[int, Tensor]]:
    """Read the tokens that enter each block's attention, while the model runs as it always does.

    What is read is the input of `blocks[i].attn`: after the block's first norm, where it has one
    there. The model computes what it would compute without this context, bit for bit.

        with capture(model, blocks=[0, 11]) as tokens:
            logits = model(images)
        tokens[11]                                   # (B, N, d)

    Args:
        model: a timm model, also inside DistributedDataParallel. It is not moved or switched.
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
    passed over. Contexts nest. Leaving one removes its hooks, also after an error.

    Raises:
        BurstError: a block index out of range.
        HookNeverFired: on leaving, if a block asked for read nothing and no error is under way.
        UnsupportedModel: no attention blocks; two blocks that share one attention; an attention
            that reads something other than tokens, or wraps a sequence-first one, so that its own
            layout is not known; a compiled, scripted or DataParallel model, where hooks are skipped
            or run at once in several threads.
    """
    chosen = select_blocks(model, blocks)
    _check_hooks_work(model, chosen)
    _check_not_shared(find_blocks(model), chosen)
    _check_layout_is_known(chosen)
    tokens: dict[int, Tensor] = {}
    receive = tokens.__setitem__ if on_tokens is None else on_tokens
    fired: set[int] = set()
    handles = []
    try:
        for block in chosen:
            hook = _reading_hook(block, fired, receive)
            handles.append(block.reader.register_forward_pre_hook(hook, with_kwargs=True))
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


def num_prefix_tokens(model: nn.Module) -> int:
    """How many tokens in front of the patches the blocks read: class, distillation, registers.

    0 for CaiT, whose class token joins after the blocks, and for models without such tokens.

    Raises:
        UnsupportedModel: the model has a class token but does not say where (PiT, CrossViT), or
            not in every block (ConViT); measure all of its tokens.
    """
    root = unwrap(model)
    if isinstance(root, CLASS_TOKEN_JOINS_LAST):
        return 0
    count = getattr(root, "num_prefix_tokens", None)
    if count is None and not any("cls_token" in name for name, _ in root.named_parameters()):
        return 0
    if not isinstance(count, int) or isinstance(root, CLASS_TOKEN_JOINS_MIDWAY):
        raise UnsupportedModel(
            f"{type(root).__name__} does not have the same prefix tokens in every block; "
            "measure all of its tokens"
        )
    return count


def _check_hooks_work(model: nn.Module, chosen: Iterable[AttentionBlock]) -> None:
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


def _check_not_shared(found: Iterable[AttentionBlock], chosen: Iterable[AttentionBlock]) -> None:
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
                    f"{block.attention_name} ({type(block.attention).__name__}) wraps {name} "
                    f"({type(inner).__name__}), which reads (N, B, d): whether it does so too is "
                    "not known; make that one batch_first=True, or leave this block out"
                )


def _is_sequence_first(attention: nn.Module) -> bool:
    # The word of nn.MultiheadAttention and of the attentions that are written after it.
    return getattr(attention, "batch_first", True) is False


def _reading_hook(
    block: AttentionBlock, fired: set[int], receive: Callable[[int, Tensor], None]
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    parameter = next(iter(inspect.signature(block.reader.forward).parameters))

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _in_backward():
            return
        x = args[0] if args else kwargs.get(parameter)
        receive(block.index, _as_tokens(x, block))
        fired.add(block.index)

    return hook


def _in_backward() -> bool:
    # As torch.utils.module_tracker asks: a checkpointed block runs again during backward.
    return torch._C._current_graph_task_id() != -1


def _as_tokens(x: object, block: AttentionBlock) -> Tensor:
    if isinstance(x, Tensor) and not x.is_nested:
        if x.ndim == 3:
            return x.detach().transpose(0, 1) if _is_sequence_first(block.attention) else x.detach()
        if x.ndim > 3 and isinstance(block.attention, GRID_ATTENTIONS):
            return x.detach().flatten(1, -2)
    what = type(x).__name__
    if isinstance(x, Tensor):
        what = "a nested tensor" if x.is_nested else f"shape {tuple(x.shape)}"
    raise UnsupportedModel(
        f"{block.attention_name} ({type(block.attention).__name__}) reads {what}, "
        "expected tokens (B, N, d); leave this block out"
    )
