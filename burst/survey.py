"""All blocks, quantities and heads of a model in one pass over batches -> one tidy table."""

import operator
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor, nn

from burst.adapters import AttentionBlock, SkippedBlock, measurable_blocks, warn_of_omissions
from burst.axis import FloatAxis
from burst.backbone import Backbone
from burst.device import tokens_a_batch
from burst.distributed import add_histograms, rank_and_size, together
from burst.errors import (
    BurstError,
    EmptyResult,
    UnsupportedModel,
    check_known,
)
from burst.fingerprint import Subject, check_tokens, identity, subject_of
from burst.forward import FORWARD_PRECISIONS, TOKENS, Progress, read_tokens
from burst.histogram import Histogram
from burst.images import ImageStream, open_images
from burst.interaction import CONVENTIONS, head_keys, interaction
from burst.kernels import PRECISIONS, HistogramAccumulator, kernel_trials
from burst.loading.common import patch_size
from burst.projection import Projection, projection
from burst.statistics import STATISTICS, describe
from burst.stream import as_stream

QUANTITIES = ("qk", "x", "qkx")
WHOLE = "all"  # the value of `head` where the heads are taken together
COLUMNS = ("model", "pretraining", "block", "head", "quantity", *STATISTICS)

Key = tuple[int, str, str]  # block, head, quantity


@dataclass(frozen=True)
class SurveyOptions:
    """What to measure.

    Attributes:
        blocks: block indices; None for all. A block asked for by index that cannot be measured is
            an error; with None it is listed in `Survey.skipped`.
        quantities: some of `qk` (entries of A = W_q W_k^T), `x` (of X), `qkx` (of A X^T).
        per_head: measure `qk` and `qkx` for each head too.
        convention: "paper" or "authors", see `burst.interaction.interaction`.
        tokens: "all", or "patch" to leave class, distillation and register tokens out.
        bins: regular bins that the histograms must be able to give exactly.
        backend: see `burst.kernels.choose`.
        precision: how `qkx` is multiplied on a GPU, see `burst.kernels.matmul_histogram`.
        forward_precision: how the model runs: "float32" as it is, "bfloat16" or "float16" under
            autocast.

    Raises:
        UnknownName: a quantity, convention, kind of tokens or precision that is not known.
        ShapeError: bins odd or out of range.
        BurstError: no quantity; or `per_head` with the authors' convention, whose product mixes
            the heads' output channels.
    """

    blocks: tuple[int, ...] | None = None
    quantities: tuple[str, ...] = QUANTITIES
    per_head: bool = False
    convention: str = "paper"
    tokens: str = "all"
    bins: int = 256
    backend: str = "auto"
    precision: str = "tf32x3"
    forward_precision: str = "float32"

    def __post_init__(self) -> None:
        if self.blocks is not None:  # NumPy's numbers and a range would not go into a record
            object.__setattr__(self, "blocks", tuple(operator.index(i) for i in self.blocks))
        for quantity in self.quantities:
            check_known("quantity", quantity, QUANTITIES)
        check_known("convention", self.convention, CONVENTIONS)
        check_known("kind of tokens", self.tokens, TOKENS)
        check_known("precision", self.precision, PRECISIONS)
        check_known("forward precision", self.forward_precision, FORWARD_PRECISIONS)
        if not self.quantities:
            raise BurstError(f"no quantity to measure; give some of {', '.join(QUANTITIES)}")
        if self.per_head and self.convention == "authors":
            raise BurstError("the authors' convention has no heads; leave per-head out")
        FloatAxis.for_bins(self.bins)

    @property
    def need_images(self) -> bool:
        """Whether a quantity is asked for that weights alone do not give."""
        return self.quantities != ("qk",)

    @property
    def need_weights(self) -> bool:
        """Whether a quantity is asked for that tokens alone do not give."""
        return self.quantities != ("x",)

    @property
    def axis(self) -> FloatAxis:
        """Where the bins lie."""
        return FloatAxis.for_bins(self.bins)


@dataclass(frozen=True)
class Survey:
    """What a survey found.

    Attributes:
        table: one row a block, head and quantity, with the columns `COLUMNS`; `head` is "all" or a
            number as text. NaN where a statistic is not defined.
        histograms: the histogram behind each row, under (block, head, quantity).
        skipped: blocks that could not be measured.
        omitted: terms of the attention scores that W_q W_k^T leaves out, such as a relative
            position bias.
        bad_images: (name, reason) of each image, or sequence, that was left out.
        record: model, weights, images and options, as plain data for a run's record.
    """

    table: pd.DataFrame
    histograms: dict[Key, Histogram]
    skipped: tuple[SkippedBlock, ...]
    omitted: tuple[str, ...]
    bad_images: tuple[tuple[str, str], ...]
    record: dict[str, Any] = field(repr=False)

    def whole(self, quantity: str) -> dict[int, Histogram]:
        """Each measured block, counted from 0, with its histogram, heads together."""
        return {
            block: hist
            for (block, head, name), hist in self.histograms.items()
            if head == WHOLE and name == quantity
        }

    def save(self, path: str | Path) -> None:
        """Write an .npz file that holds all of it, whole or not at all.

        Raises:
            OutputError: another suffix, a place that cannot be written, or a full disk.
        """
        from burst.survey_file import write_survey

        write_survey(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "Survey":
        """Read what `save` wrote: the table, every count and moment, and what else there was.

        Histograms add as before they were saved. The record is as JSON gives it back: tuples in it
        are lists.

        Raises:
            CheckpointError: missing, damaged, or a file of another kind.
        """
        from burst.survey_file import read_survey

        return read_survey(path)


def images_for(
    backbone: Backbone,
    source: str | Path,
    *,
    num_images: int | None = 100,
    seed: int = 0,
    skip_bad: bool = False,
) -> ImageStream:
    """`open_images` as the backbone's images are prepared, see `Backbone.preprocess`.

    The batch size is chosen so that a batch has about 4,096 tokens on the CPU and eight times as
    many on a GPU, whatever the size of image and patch.

    Raises:
        ImageError: see `open_images`; or the backbone's images are not square.
    """
    preprocess = backbone.preprocess
    patches = getattr(getattr(backbone.model, "patch_embed", None), "num_patches", None)
    side = preprocess.image_size // (patch_size(backbone.model) or 16)
    tokens = patches or max(1, side**2)
    device = next(backbone.model.parameters()).device
    return open_images(
        source,
        num_images=num_images,
        batch_size=max(1, tokens_a_batch(device) // tokens),
        **vars(preprocess),
        seed=seed,
        skip_bad=skip_bad,
    )


def survey(
    model: nn.Module | Backbone,
    batches: Iterable[Any] = (),
    options: SurveyOptions | None = None,
    *,
    name: str | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Measure a model's burstiness, block by block, in one pass over batches.

    Each block's work is done inside its forward hook, while its tokens are in cache, and only
    histograms are kept: memory does not grow with the number of batches. In a process group all
    processes get the whole result. Images from `images_for` are shared out among them, and the
    counts do not depend on how many there are, as long as each computes with the same number of
    threads; any other batches are the caller's to share out, as a `DistributedSampler` does.

    Args:
        model: any with attention that has an adapter (`burst.describe_blocks` says), on any device;
            or a backbone from `load_backbone`.
        batches: any iterable of tensors, dictionaries (keyword arguments of the model) or (inputs,
            labels), such as a DataLoader, or images from `images_for`. Tokens whose
            `attention_mask` is 0 are left out. Not read where only `qk` is asked for.
        options: what to measure; all blocks and quantities if not given.
        name: what the model is called in the table; a backbone's own name, or its class.
        progress: called as progress(batches done, batches in all, or 0 if that is not known).

    Raises:
        UnsupportedModel: the model has no attention, or none that can be measured, or a block
            asked for by index cannot be.
        BurstError: block index out of range; a batch that is none.
        EmptyResult: no token was read.
        ImageError: see `ImageStream`.

    Warns:
        OmittedTermWarning: once, if the scores have terms that W_q W_k^T leaves out.
    """
    options = options or SurveyOptions()
    check_tokens(model, options.tokens)
    subject = subject_of(model, name)
    blocks, skipped, omitted = measurable_blocks(subject.model, options.blocks)
    if options.need_weights:
        warn_of_omissions(subject.name, omitted)
    stream = as_stream(batches)
    rank, size = rank_and_size()
    mine = stream.shard(rank, size)
    gauge = _Gauge(blocks, options)

    def measure() -> _Part:
        if rank == 0:  # weights belong to no image: counted once, not once a process
            gauge.measure_weights()
        if options.need_images:
            read_tokens(
                subject.model,
                mine,
                gauge.blocks,
                gauge.measure_tokens,
                tokens=options.tokens,
                forward_precision=options.forward_precision,
                progress=progress,
            )
        return _Part(gauge.histograms, mine.skipped, mine.count - len(mine.skipped))

    parts = together(measure)
    bad = tuple(one for part in parts for one in part.skipped)
    stream.check_some_read(bad)
    counted = add_histograms(part.histograms for part in parts)
    histograms = {key: counted[key] for key in sorted(counted, key=_order)}
    _check_complete(histograms, options, f"{subject.name} on {stream.source}")
    record = _record(subject, options, histograms)
    if options.need_images:
        read = sum(part.read for part in parts)
        record["images"] = stream.record | {"count": read, "bad": [list(one) for one in bad]}
    table = _table(subject, histograms)
    return Survey(table, histograms, skipped, omitted, bad, record)


class _Part(NamedTuple):
    """What one process found."""

    histograms: dict[Key, Histogram]
    skipped: list[tuple[str, str]]
    read: int


def _check_complete(histograms: dict[Key, Histogram], options: SurveyOptions, what: str) -> None:
    found = {quantity for (_, _, quantity), hist in histograms.items() if hist.count}
    missing = [quantity for quantity in options.quantities if quantity not in found]
    if missing:
        raise EmptyResult(f"no finite value of {' or '.join(missing)} was read from {what}")


class _Gauge:
    """Takes tokens block by block and counts them; the blocks' weights are read once."""

    def __init__(self, blocks: tuple[AttentionBlock, ...], options: SurveyOptions) -> None:
        self.options = options
        self.blocks = [block.index for block in blocks]
        self._whole: dict[int, Tensor] = {}
        self._heads: dict[int, Projection] = {}
        self._counters: dict[Key, HistogramAccumulator] = {}
        if options.need_weights:
            for block in blocks:
                self._read(block)

    @property
    def histograms(self) -> dict[Key, Histogram]:
        """What was counted so far."""
        return {key: counter.result() for key, counter in self._counters.items()}

    def measure_weights(self) -> None:
        """Count the entries of A."""
        if "qk" not in self.options.quantities:
            return
        for block, a in self._whole.items():
            self._counter(block, WHOLE, "qk").add(a)
            for head, (w_q, w_k) in self._each_head(block):
                self._counter(block, head, "qk").add(interaction(w_q, w_k))

    def measure_tokens(self, block: int, tokens: Tensor) -> None:
        """Count the entries of X and of A X^T for what one block's attention reads."""
        x = tokens.reshape(-1, tokens.shape[-1]).float()
        if "x" in self.options.quantities:
            self._counter(block, WHOLE, "x").add(x)
        if "qkx" in self.options.quantities:
            self._multiply((block, WHOLE, "qkx"), self._whole[block], x)
            for head, (w_q, w_k) in self._each_head(block):
                self._multiply((block, head, "qkx"), w_q, head_keys(w_k, x))

    def _read(self, block: AttentionBlock) -> None:
        weights = projection(block.attention, name=block.attention_name)
        a = interaction(*weights.whole(), convention=self.options.convention)
        if a.shape[0] != weights.dim and "qkx" in self.options.quantities:
            raise UnsupportedModel(
                f"{block.attention_name}: the authors' product is {tuple(a.shape)} and tokens have "
                f"{weights.dim} dimensions; use the paper's convention"
            )
        self._whole[block.index] = a
        if self.options.per_head:
            self._heads[block.index] = weights

    def _multiply(self, key: Key, a: Tensor, x: Tensor) -> None:
        self._counter(*key).add_product(a, x.mT, precision=self.options.precision)

    def _counter(self, block: int, head: str, quantity: str) -> HistogramAccumulator:
        key = block, head, quantity
        if key not in self._counters:
            self._counters[key] = HistogramAccumulator(
                self.options.axis, backend=self.options.backend
            )
        return self._counters[key]

    def _each_head(self, block: int) -> Iterable[tuple[str, tuple[Tensor, Tensor]]]:
        weights = self._heads.get(block)
        heads = range(weights.num_heads) if weights else ()
        return ((str(i), weights.head(i)) for i in heads if weights)


def _order(key: Key) -> tuple[int, int, int]:
    block, head, quantity = key
    return block, -1 if head == WHOLE else int(head), QUANTITIES.index(quantity)


def _table(subject: Subject, histograms: dict[Key, Histogram]) -> pd.DataFrame:
    rows = [
        (subject.name, subject.pretraining, *key, *describe(hist).values())
        for key, hist in histograms.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _record(
    subject: Subject, options: SurveyOptions, histograms: dict[Key, Histogram]
) -> dict[str, Any]:
    place = next(subject.model.parameters())
    return {
        **identity(subject),
        "images": None,
        "options": asdict(options),
        "backend": sorted({hist.backend for hist in histograms.values()}),
        "precision": sorted({hist.precision for hist in histograms.values()} - {""}),  # of products
        "kernels": kernel_trials(),
        "nonfinite": sum(hist.nonfinite.total for hist in histograms.values()),
        "device": str(place.device),
        "processes": rank_and_size()[1],
    }
