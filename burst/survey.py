"""All blocks, quantities and heads of a model in one pass over batches -> one tidy table."""

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import nn

from burst.adapters import AttentionBlock, SkippedBlock, measurable_blocks, warn_of_omissions
from burst.axis import FloatAxis
from burst.backbone import Backbone
from burst.decomposition import Margins
from burst.device import tokens_a_batch
from burst.distributed import rank_and_size, together
from burst.errors import BurstError, EmptyResult, check_known
from burst.fingerprint import Subject, check_tokens, identity, subject_of
from burst.forward import FORWARD_PRECISIONS, PERMUTED, TOKENS, read_tokens
from burst.gauge import LOGITS, WHOLE, Gauge, Key, add_weights
from burst.groups import Counted, Groups, GrowingGroups, PlannedGroups
from burst.histogram import Histogram
from burst.images import ImageStream, open_images
from burst.interaction import CONVENTIONS
from burst.kernels import PRECISIONS, kernel_trials
from burst.loading.common import patch_size
from burst.progress import Progress
from burst.scores import readable_blocks
from burst.softmax import (
    SOFTMAX_COLUMNS,
    WeightStatistics,
    prefixes_of,
    softmax_table,
)
from burst.stream import NamedStream, Stream, as_stream
from burst.survey_table import Counts, statistics, survey_table

QUANTITIES = ("qk", "x", "qkx", LOGITS)
"""What a survey can measure: see `SurveyOptions`."""
USUAL = ("qk", "x", "qkx")  # measured unless something else is asked for


@dataclass(frozen=True)
class SurveyOptions:
    """What to measure.

    Attributes:
        blocks: block indices; None for all. A block asked for by index that cannot be measured is
            an error; with None it is listed in `Survey.skipped`.
        quantities: some of `qk` (entries of A = W_q W_k^T), `x` (of X), `qkx` (of A X^T), and
            `logits` (what softmax is given: q k^T times its scale with all that the model adds or
            applies; entries that it masks are left out). Asked for alone, logits are read of blocks
            of which W_q W_k^T is not defined as well.
        per_head: measure `qk`, `qkx` and `logits` for each head too.
        convention: "paper" or "authors", see `burst.interaction.interaction`.
        tokens: "all", or "patch" to leave class, distillation and register tokens out; "permuted"
            for what there would be by chance, see `burst.permuted_columns`. With "patch" prefix
            tokens do not ask in `logits`, and stay among the keys.
        bins: regular bins that the histograms must be able to give exactly; even, 2 to 4,096.
        backend: see `burst.kernels.choose`.
        precision: how `qkx` is multiplied on a GPU, see `burst.kernels.matmul_histogram`.
        forward_precision: how the model runs: "float32" as it is, without TF32, "bfloat16" or
            "float16" under autocast.

    Raises:
        UnknownName: a quantity, convention, kind of tokens or precision that is not known.
        ShapeError: bins odd or out of range.
        BurstError: no quantity; or `per_head` with the authors' convention, whose product mixes
            the heads' output channels; or logits of permuted tokens.
    """

    blocks: tuple[int, ...] | None = None
    quantities: tuple[str, ...] = USUAL
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
        check_known("kind of tokens", self.tokens, (*TOKENS, PERMUTED))
        check_known("precision", self.precision, PRECISIONS)
        check_known("forward precision", self.forward_precision, FORWARD_PRECISIONS)
        if not self.quantities:
            raise BurstError(f"no quantity to measure; give some of {', '.join(QUANTITIES)}")
        if self.per_head and self.convention == "authors":
            raise BurstError("the authors' convention has no heads; leave per-head out")
        if self.need_scores and self.tokens == PERMUTED:
            raise BurstError("logits are of the model's own tokens; give tokens 'all' or 'patch'")
        FloatAxis.for_bins(self.bins)

    @property
    def need_images(self) -> bool:
        """Whether a quantity is asked for that weights alone do not give."""
        return set(self.quantities) != {"qk"}

    @property
    def need_weights(self) -> bool:
        """Whether a quantity is asked for that tokens alone do not give."""
        return not {"qk", "qkx"}.isdisjoint(self.quantities)

    @property
    def need_tokens(self) -> bool:
        """Whether what attentions read is asked for."""
        return not {"x", "qkx"}.isdisjoint(self.quantities)

    @property
    def need_scores(self) -> bool:
        """Whether what softmaxes are given is asked for."""
        return LOGITS in self.quantities

    @property
    def axis(self) -> FloatAxis:
        """Where the bins lie."""
        return FloatAxis.for_bins(self.bins)


@dataclass(frozen=True, eq=False)
class Survey:
    """What a survey found.

    Attributes:
        table: one row a block, head and quantity, with the columns `COLUMNS`; `head` is "all" or a
            number as text. NaN where a statistic is not defined. `kurtosis_null` and what follows
            it say where the kurtosis of `qkx` sits (see `burst.decomposition`): that of Gaussian
            tokens of the same covariance; what remains when each row is centred and divided by its
            deviation; the parts that are spread of variances between rows, and between tokens.
            `NAME_low` and `NAME_high` are 95 % intervals over images (see `burst.jackknife`).
        histograms: the histogram behind each row, under (block, head, quantity).
        skipped: blocks that could not be measured.
        omitted: terms of the attention scores that W_q W_k^T leaves out, such as a relative
            position bias.
        bad_images: (name, reason) of each image, or sequence, that was left out.
        record: model, weights, images and options, as plain data for a run's record.
        margins: moments of the rows (dimensions of a prompt) and columns (tokens) of each `qkx`.
        softmax: what softmax makes of `logits`: one row a block and head, with the columns
            `SOFTMAX_COLUMNS` (see `burst.softmax`); none if they are not asked for.
    """

    table: pd.DataFrame
    histograms: dict[Key, Histogram]
    skipped: tuple[SkippedBlock, ...]
    omitted: tuple[str, ...]
    bad_images: tuple[tuple[str, str], ...]
    record: dict[str, Any] = field(repr=False)
    margins: dict[Key, Margins] = field(default_factory=dict, repr=False)
    softmax: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=list(SOFTMAX_COLUMNS)), repr=False
    )

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
        ImageError: see `open_images`; or the backbone does not read images, or not square ones.
        UnknownName: the backbone's interpolation or crop mode is not known.
    """
    return open_images(
        source,
        num_images=num_images,
        batch_size=images_a_batch(backbone),
        **vars(backbone.preprocess),
        seed=seed,
        skip_bad=skip_bad,
    )


def images_a_batch(backbone: Backbone) -> int:
    """The batch size of `images_for`.

    Raises:
        ImageError: the backbone does not read images, or not square ones.
    """
    patches = getattr(getattr(backbone.model, "patch_embed", None), "num_patches", None)
    side = backbone.preprocess.image_size // (patch_size(backbone.model) or 16)
    tokens = patches or max(1, side**2)
    device = next(backbone.model.parameters()).device
    return max(1, tokens_a_batch(device) // tokens)


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
            asked for by index cannot be; or the authors' product does not have the tokens' width.
            See also `capture`, and for logits `capture_scores`.
        HookNeverFired: see `capture`.
        BurstError: block index out of range; a batch that is none; weights that are not finite.
        EmptyResult: of a quantity no finite value was read.
        ImageError: see `ImageStream`.
        UnknownName, BackendError: see `burst.kernels.choose`.

    Warns:
        OmittedTermWarning: once, if the scores have terms that W_q W_k^T leaves out.
        BackendWarning: as `burst.histogram`.
    """
    options = options or SurveyOptions()
    if not isinstance(options, SurveyOptions):
        raise BurstError(f"options are a {type(options).__name__}, expected SurveyOptions")
    check_tokens(model, options.tokens)
    subject = subject_of(model, name)
    blocks, skipped, omitted = _chosen_blocks(subject.model, options)
    if options.need_weights:
        warn_of_omissions(subject.name, omitted)
    stream = as_stream(batches)
    rank, size = rank_and_size()
    mine = stream.shard(rank, size)
    prefixes = prefixes_of(subject.model, blocks) if options.need_scores else {}
    gauge = Gauge(blocks, options, _groups(stream, mine, rank, size), prefixes)

    def measure() -> _Part:
        if rank == 0:  # weights belong to no image: counted once, not once a process
            gauge.measure_weights()
        if options.need_images:
            read_tokens(
                subject.model,
                mine,
                gauge.blocks,
                gauge.measure_tokens if options.need_tokens else None,
                on_batch=gauge.begin_batch,
                on_scores=gauge.measure_scores if options.need_scores else None,
                tokens=options.tokens,
                forward_precision=options.forward_precision,
                progress=progress,
            )
        read = mine.count - len(mine.skipped)
        return _Part(gauge.of_weights, gauge.of_tokens, gauge.softmax, mine.skipped, read)

    parts = together(measure)
    bad = tuple(one for part in parts for one in part.skipped)
    stream.check_some_read(bad)
    planned = isinstance(stream, NamedStream)
    histograms: dict[Key, Histogram] = {}
    margins: dict[Key, Margins] = {}
    rows: dict[Key, dict[str, float]] = {}
    for key, counts in _counts(parts, planned=planned):
        histograms[key], rows[key] = counts.histogram, statistics(counts)
        if counts.margins:
            margins[key] = counts.margins
    _check_complete(histograms, options, f"{subject.name} on {stream.source}")
    record = _record(subject, options, histograms)
    if options.need_images:
        read = sum(part.read for part in parts)
        record["images"] = stream.record | {"count": read, "bad": [list(one) for one in bad]}
    table = survey_table(subject.name, subject.pretraining, rows)
    weights = add_weights((part.softmax for part in parts), planned=planned)
    softmax = softmax_table(subject.name, subject.pretraining, weights)
    return Survey(table, histograms, skipped, omitted, bad, record, margins, softmax)


def _chosen_blocks(
    model: nn.Module, options: SurveyOptions
) -> tuple[tuple[AttentionBlock, ...], tuple[SkippedBlock, ...], tuple[str, ...]]:
    """Those to measure, those to leave out, and terms of the scores that are left out."""
    if options.quantities == (LOGITS,):
        return *readable_blocks(model, options.blocks), ()
    blocks, skipped, omitted = measurable_blocks(model, options.blocks)
    if options.need_scores:
        readable_blocks(model, [block.index for block in blocks])
    return blocks, skipped, omitted


class _Part(NamedTuple):
    """What one process found."""

    of_weights: dict[Key, Counted]
    of_tokens: Mapping[Key, Mapping[int, list[Counted]]]
    softmax: dict[tuple[int, int, int], WeightStatistics]
    skipped: list[tuple[str, str]]
    read: int


def _groups(stream: Stream, mine: Stream, rank: int, size: int) -> Groups:
    if isinstance(stream, NamedStream):
        return PlannedGroups(stream.batch_names, rank, size, mine.skipped)
    return GrowingGroups()


def _counts(parts: Iterable[_Part], *, planned: bool) -> Iterator[tuple[Key, Counts]]:
    """Of all processes, which have parts of the same groups if these are planned, else others.

    One row after the other, for a row's groups in full take some 10 MiB.
    """
    weights: dict[Key, Counted] = {}
    groups: dict[Key, dict[tuple[int, int], list[Counted]]] = {}
    for process, part in enumerate(parts):
        weights |= part.of_weights
        for key, counted in part.of_tokens.items():
            for group, some in counted.items():
                name = 0 if planned else process, group
                groups.setdefault(key, {}).setdefault(name, []).extend(some)
    for key in sorted([*weights, *groups], key=_order):
        if key in weights:
            yield key, Counts(weights[key].histogram, None, ())
        else:
            yield key, Counts.of(dict(sorted(groups[key].items())).values())


def _check_complete(histograms: dict[Key, Histogram], options: SurveyOptions, what: str) -> None:
    found = {quantity for (_, _, quantity), hist in histograms.items() if hist.count}
    missing = [quantity for quantity in options.quantities if quantity not in found]
    if missing:
        raise EmptyResult(f"no finite value of {' or '.join(missing)} was read from {what}")


def _order(key: Key) -> tuple[int, int, int]:
    block, head, quantity = key
    return block, -1 if head == WHOLE else int(head), QUANTITIES.index(quantity)


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
