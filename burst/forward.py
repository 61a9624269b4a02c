"""A model run over batches, for what its attention reads."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import NoReturn

import torch
from torch import Tensor, nn

from burst.adapters import prefix_tokens_of, select_blocks, unwrap
from burst.errors import UnsupportedModel
from burst.nulls import content_generator, permuted_columns
from burst.precision import plain_convolutions, plain_float32
from burst.progress import Progress
from burst.score_tiles import Scores
from burst.scores import OnScores, capture_scores
from burst.stream import Call, Stream, as_call, batch_size
from burst.threads import lock_of
from burst.tokens import capture

TOKENS = ("all", "patch")
PERMUTED = "permuted"
"""All tokens, each dimension's values shuffled over a batch: see `permuted_columns`."""
FORWARD_PRECISIONS = ("float32", "bfloat16", "float16")
OnTokens = Callable[[int, Tensor], None]
Shapes = tuple[tuple[int, ...], ...]


def read_tokens(
    model: nn.Module,
    stream: Stream,
    blocks: Iterable[int],
    on_tokens: OnTokens | None,
    *,
    on_batch: Callable[[int], None] | None = None,
    on_scores: OnScores | None = None,
    tokens: str = "all",
    forward_precision: str = "float32",
    progress: Progress | None = None,
) -> None:
    """Run a model over batches and hand over what each block's attention reads, as it reads it.

    From the second batch of a shape on the forward pass ends where the last of the blocks has read
    its tokens, or its softmax is given its scores: what the model would make of them is not asked
    for. Dropout and the like are off meanwhile, and other threads that read the model wait.

    Args:
        model: batches go to its device; what wraps it (DDP, torch.compile) is left aside.
        stream: batches, of one process.
        blocks: indices as in `find_blocks`.
        on_tokens: called as on_tokens(block, x) with x (B, N, d), inside the forward pass. Where
            tokens are padding, those that are not come as (n, d). None if no tokens are asked for:
            what cannot be read as tokens is no hindrance then.
        on_batch: called with the number of items of a batch before its forward pass.
        on_scores: called as on_scores(block, scores) likewise, see `capture_scores`; queries that
            are padding do not count in them.
        tokens: "all", or "patch" to leave class, distillation and register tokens out; "permuted"
            hands over `permuted_columns` of all of a batch, while the model goes on with its own.
            In scores prefix tokens do not count as queries; keys are all that a softmax is over.
        forward_precision: "float32" runs the model as it is, its float32 products and
            convolutions unrounded whatever autocast and TF32 are allowed elsewhere; "bfloat16" and
            "float16" under autocast, so that its products are in that dtype.
        progress: called as progress(batches done, batches in all, or 0 if that is not known).

    Raises:
        UnsupportedModel: see `capture`, `capture_scores` and, for patch tokens,
            `num_prefix_tokens`; or a masked autoencoder that leaves patches out by chance.
        BurstError: a batch that is none; whatever the stream raises.
    """
    inner = unwrap(model)
    _check_reads_all(inner)
    found = select_blocks(inner, blocks)
    names = {block.index: block.name for block in found}
    chosen = tuple(names)
    prefixes = prefix_tokens_of(inner, found) if tokens == "patch" else dict.fromkeys(names, 0)
    last = _Last(len(chosen) * sum(asked is not None for asked in (on_tokens, on_scores)))
    # Not inference mode: what a module makes in its first pass and keeps could not be trained with.
    with torch.no_grad(), _evaluation(inner):
        for done, batch in enumerate(stream, start=1):
            call = as_call(batch, inner)
            if on_batch:
                on_batch(batch_size(batch))

            keep = {block: call.padding.keep(name) for block, name in names.items()}

            def receive(block: int, x: Tensor, keep: Mapping[int, Tensor | None] = keep) -> None:
                assert on_tokens
                read = _kept(x, keep[block], prefixes[block])
                if tokens == PERMUTED:
                    read = permuted_columns(read, content_generator(read))
                on_tokens(block, read)
                last.check()

            def hear(block: int, one: Scores, keep: Mapping[int, Tensor | None] = keep) -> None:
                assert on_scores
                on_scores(block, one.counting(keep[block], prefixes[block], names[block]))
                last.check()

            last.forward_begins(call)
            with suppress(_Stop), ExitStack() as stack:
                if on_tokens:
                    stack.enter_context(capture(inner, chosen, on_tokens=receive))
                if on_scores:
                    stack.enter_context(capture_scores(inner, chosen, on_scores=hear))
                _run(inner, call, forward_precision)
            last.forward_is_over()
            if progress:
                progress(done, stream.batches)


def _check_reads_all(model: nn.Module) -> None:
    """transformers' masked autoencoder leaves patches out in use as it does in training."""
    for module in model.modules():
        share = getattr(getattr(module, "config", None), "mask_ratio", None)
        if share and hasattr(module, "random_masking"):
            raise UnsupportedModel(
                f"{type(module).__name__} leaves {share:.0%} of the patches out by chance; set "
                "mask_ratio of the model's config to 0, or load it by `load_backbone`"
            )


def _run(model: nn.Module, call: Call, precision: str) -> None:
    place = next(model.parameters(), torch.empty(0, device="cpu")).device
    with ExitStack() as stack:
        if precision == "float32":
            stack.enter_context(plain_float32(place))
            stack.enter_context(plain_convolutions())
        else:
            stack.enter_context(torch.autocast(place.type, getattr(torch, precision)))
        model(*call.args, **call.kwargs)


def _kept(x: Tensor, keep: Tensor | None, prefix: int) -> Tensor:
    if keep is None:
        return x[:, prefix:]
    if keep.shape != x.shape[:2]:
        raise UnsupportedModel(
            f"the attention mask is {tuple(keep.shape)} and the attention reads "
            f"{tuple(x.shape[:2])} tokens: which of them are padding is not known; give batches "
            "without padding"
        )
    return x[:, prefix:][keep[:, prefix:].to(x.device)]  # the model may lie on several GPUs


class _Stop(BaseException):
    """All that was asked for has been read; no error, and not for the model's code to catch."""


class _Last:
    """Which reading is the last of a forward pass: known once one like it has gone through.

    Where a block is read twice in one pass, or not at all, how often may depend on the data, and
    the passes are left to end by themselves; so is the first one with inputs of a shape, which may
    be frames or crops that the model reads one after the other.
    """

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._read = 0
        self._shapes: Shapes = ()
        self._regular: set[Shapes] = set()

    def forward_begins(self, call: Call) -> None:
        inputs = (*call.args, *call.kwargs.values())
        self._shapes = tuple(tuple(x.shape) for x in inputs if isinstance(x, Tensor))
        self._read = 0

    def check(self) -> None:
        self._read += 1
        if self._read == self._blocks and self._shapes in self._regular:
            self._stop()

    def _stop(self) -> NoReturn:
        raise _Stop

    def forward_is_over(self) -> None:
        if self._read == self._blocks:
            self._regular.add(self._shapes)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """The model as in use, and then as it was; of two threads the second one waits."""
    with lock_of(model):
        training = [module for module in model.modules() if module.training]
        try:
            model.eval()
            yield
        finally:
            for module in training:
                module.training = True
