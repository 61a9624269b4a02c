"""What the softmax of each attention is given: logits, with all that the model makes of them.

capture_scores   a context in which each block hands over its scores, in the middle of a run
Scores           those of one attention, tile by tile
readable_blocks  which blocks have scores of tokens that can be read, and why others have not

Scores are read where they are used: fused attention is given queries, keys and a mask, any other
attention calls a softmax. So biases, rotary embeddings, norms of queries and keys, relative
positions and soft caps are all in them, whether W_q W_k^T knows of them or not.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from burst.adapters import (
    AttentionBlock,
    SkippedBlock,
    describe_blocks,
    find_blocks,
    open_clip,
    select_blocks,
    timm,
)
from burst.adapters.registry import COSINE_WINDOWS, CROSS, LEARNED, SHIFT_MASK
from burst.adapters.transformers_text import SINK
from burst.errors import HookNeverFired, UnsupportedModel, and_more
from burst.score_sources import Args, Kwargs, Sources
from burst.score_tiles import Scores, Source
from burst.threads import lock_of, of_this_thread
from burst.tokens import (
    check_hooks_work,
    check_not_shared,
    in_backward,
    tokens_given_to,
)
from burst.window_masks import Windowed, hidden_in_windows

OnScores: TypeAlias = Callable[[int, Scores], None]

# Why a softmax of an attention is not over the tokens that its queries are made of.
NO_SCORES = (CROSS, LEARNED, timm.CHANNELS, timm.LINEAR, timm.OUTLOOK, open_clip.POOLED)
# Terms with which a softmax is given more than scores, or is not alone.
OTHER_SCORES = {
    timm.POSITION_GATE: "it has a softmax beside that of its scores",
    SINK: "its softmax is over one more column than there are keys, and is given scores less the "
    "largest of their row",
}
KERNELS = ("flash", "flex", "paged")


@contextmanager
def capture_scores(
    model: nn.Module, blocks: Iterable[int] | None = None, *, on_scores: OnScores
) -> Iterator[None]:
    """Read what each block's softmax is given, while the model runs as it always does.

    The model computes what it would compute without this context, bit for bit.

        with capture_scores(model, [11], on_scores=lambda block, scores: print(scores.shape)):
            model(images)                        # (B, h, n, n)

    Args:
        model: any with attention blocks. It is not moved or switched.
        blocks: indices as in `find_blocks`; None means all.
        on_scores: called as `on_scores(index, scores)` in the middle of the forward pass, block
            after block, each time its attention runs, and without gradients. What `Scores` holds is
            the model's own, and the model may write over it once the call has returned.

    Contexts nest, with each other and with those of `capture`. Recomputation by gradient
    checkpointing during the backward pass is passed over, and so is what other threads run.

    Raises:
        BurstError: a block index out of range.
        HookNeverFired: on leaving, if the attention of a block asked for did not run, and no error
            is under way.
        UnsupportedModel: no attention blocks; two blocks that share one attention; an attention
            that ran and called neither a softmax nor
            `scaled_dot_product_attention` (flash and flex attention do not), or more than one of
            them; or whose scores are not told by head; whose keys are made of other tokens than its
            queries; a model in which hooks do not work, see `capture`.
    """
    chosen = select_blocks(model, blocks)
    check_hooks_work(model, chosen)
    check_not_shared(find_blocks(model), chosen)
    _check_kernels(chosen)
    windows = _with_window_masks(model)
    listeners = [_Listener(block, on_scores, block.index in windows) for block in chosen]
    with ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener.listening())
        yield
    silent = ", ".join(one.block.name for one in listeners if not one.runs)
    if silent:
        raise HookNeverFired(
            f"no scores were read in {silent}: run the model inside the context, "
            "and ask only for blocks that its forward pass reaches"
        )


def readable_blocks(
    model: nn.Module, blocks: Iterable[int] | None
) -> tuple[tuple[AttentionBlock, ...], tuple[SkippedBlock, ...]]:
    """The blocks whose scores can be read, and those whose cannot.

    Raises:
        UnsupportedModel: none can be read, or one that was asked for by index cannot be.
        BurstError: a block index out of range.
    """
    indices = None if blocks is None else tuple(blocks)
    chosen = select_blocks(model, indices)
    why = _reasons(model)
    skipped = tuple(
        SkippedBlock(one.index, one.name, f"{type(one.attention).__name__}: {why[one.index]}")
        for one in chosen
        if one.index in why
    )
    if skipped and (indices is not None or len(skipped) == len(chosen)):
        first = skipped[0]
        others = and_more(len(skipped))
        raise UnsupportedModel(f"the logits of {first.name}{others} cannot be read: {first.reason}")
    return tuple(one for one in chosen if one.index not in why), skipped


def _reasons(model: nn.Module) -> dict[int, str]:
    """Why there are no scores to read in a block, where there are none."""
    found = {}
    for block, told in zip(find_blocks(model), describe_blocks(model), strict=True):
        other = next((term for term in told.omitted if term in OTHER_SCORES), None)
        if told.reason and (block.adapter is None or told.reason in NO_SCORES):
            found[block.index] = told.reason
        elif other:
            found[block.index] = f"{other}: {OTHER_SCORES[other]}"
        elif timm.DIFFERENCE in told.omitted and getattr(block.attention, "fused_attn", False):
            found[block.index] = "it takes two softmaxes in fused kernels; set its fused_attn False"
        elif kernel := _own_kernel(block):
            found[block.index] = kernel
    return found


def _own_kernel(block: AttentionBlock) -> str | None:
    """What to say of a transformers model whose attention is computed where nobody can look."""
    config: Any = getattr(block.attention, "config", None)
    chosen = str(getattr(config, "_attn_implementation", ""))
    if not any(kernel in chosen for kernel in KERNELS):
        return None
    return (
        f"its attention is {chosen}, which takes its softmax inside a kernel of its own; load the "
        "model with attn_implementation='sdpa' or 'eager'"
    )


def _check_kernels(chosen: Iterable[AttentionBlock]) -> None:
    for block in chosen:
        if kernel := _own_kernel(block):
            raise UnsupportedModel(f"{block.attention_name}: {kernel}")


def _with_window_masks(model: nn.Module) -> set[int]:
    """Swin's blocks, of both versions."""
    return {
        told.index
        for told in describe_blocks(model)
        if SHIFT_MASK in told.omitted or told.reason == COSINE_WINDOWS
    }


class _Listener:
    """Hands over the scores of one block, each time its attention runs."""

    def __init__(self, block: AttentionBlock, on_scores: OnScores, windowed: bool) -> None:
        self.block = block
        self.runs = 0
        self._on_scores = on_scores
        self._windowed = windowed
        self._hidden: Tensor | None = None
        self._sources = Sources(block.attention, block.label)
        self._calls = 0
        self._watch = ExitStack()
        _, self._refuse_other_keys = tokens_given_to(block, block.attention)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Be told of each run.

        torch's own attention computes otherwise where its operations are watched, and its layer
        where hooks are attached, so scores are made of what they are given.
        """
        with ExitStack() as stack:
            stack.callback(self._watch.close)
            if self.block.adapter and self.block.adapter.before:
                stack.enter_context(heard(self.block.module, self._layer_begins))
            elif isinstance(self.block.attention, nn.MultiheadAttention):
                given = of_this_thread(self._torch_begins)
                hook = self.block.attention.register_forward_pre_hook(given, with_kwargs=True)
                stack.callback(hook.remove)
            else:
                attention, ends = self.block.attention, of_this_thread(self._ends)
                begins = of_this_thread(self._begins)
                hook = attention.register_forward_pre_hook(begins, with_kwargs=True)
                stack.callback(hook.remove)
                stack.callback(attention.register_forward_hook(ends).remove)
            yield

    def _begins(self, attention: nn.Module, args: Args, kwargs: Kwargs) -> None:
        self._watch.close()  # the model may have caught an error that ended the last run
        self._calls = 0
        if not in_backward():
            self._refuse_other_keys(args, kwargs)
            self._hidden = hidden_in_windows(attention, args, kwargs) if self._windowed else None
            self._watch.enter_context(_Watch(self._sees))

    def _sees(self, function: object, args: Args, kwargs: Kwargs) -> None:
        source = self._sources.of_function(function, args, kwargs)
        if source is None:
            return
        self._calls += 1
        if self._calls > 1:
            raise UnsupportedModel(
                f"{self.block.label} calls more than one softmax, and which of them is given its "
                "scores is not known; leave this block out"
            )
        self._hand_over(source)

    def _ends(self, *_: object) -> None:
        if in_backward():
            return
        self._watch.close()
        if not self._calls:
            raise UnsupportedModel(
                f"{self.block.label} calls neither a softmax nor scaled_dot_product_attention, "
                "so its logits cannot be read; leave this block out"
            )

    def _torch_begins(self, _: nn.Module, args: Args, kwargs: Kwargs) -> None:
        if not in_backward():
            self._refuse_other_keys(args, kwargs)
            self._hand_over(self._sources.of_module(args, kwargs))

    def _layer_begins(self, args: Args, kwargs: Kwargs) -> None:
        if not in_backward():
            self._hand_over(self._sources.of_layer(self._tokens, args, kwargs))

    def _tokens(self, x: Tensor) -> Tensor:
        assert self.block.adapter and self.block.adapter.before
        with torch.no_grad():
            return self.block.adapter.before(self.block.module, x)

    def _hand_over(self, source: Source) -> None:
        self.runs += 1
        if self._hidden is not None:
            source = Windowed(source, self._hidden)
        with torch.no_grad():
            self._on_scores(self.block.index, Scores(source))


class _Watch(TorchFunctionMode):
    """Is told of each function of torch before it runs."""

    def __init__(self, told: Callable[[object, Args, Kwargs], None]) -> None:
        super().__init__()
        self._told = told

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Args = (),
        kwargs: Kwargs | None = None,
    ) -> object:
        kwargs = kwargs or {}
        self._told(func, args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def heard(module: nn.Module, told: Callable[[Args, Kwargs], None]) -> Iterator[None]:
    """Be told what a module is called with by this thread, without a hook."""
    told = of_this_thread(told)
    with lock_of(module):
        before = vars(module).get("forward")
        forward = module.forward

        @wraps(forward)
        def forward_and_tell(*args: object, **kwargs: object) -> object:
            told(args, kwargs)
            return forward(*args, **kwargs)

        module.forward = forward_and_tell
        try:
            yield
        finally:
            del module.forward
            if before is not None:
                module.forward = before
