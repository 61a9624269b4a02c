"""What softmax makes of an attention's scores: how many keys a query listens to, and to which.

SoftmaxAccumulator  scores of one block, added one batch after the other
WeightCounter       the weights of one head alone
WeightStatistics    means over queries, and deviations; they add up over batches, heads, processes
Prefix              which keys are the class token and registers
softmax_table       one row a block and head
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from burst.adapters import AttentionBlock, prefix_tokens_of, unwrap
from burst.adapters.blocks import CLASS_TOKENS, PREFIX_HINTS
from burst.axis import Axis, FloatAxis
from burst.errors import UnsupportedModel
from burst.float64 import to_float64
from burst.histogram import Histogram
from burst.jackknife import NONE, Interval, Scale, interval
from burst.kernels import HistogramAccumulator
from burst.score_tiles import Scores, Tile

WEIGHTS = (
    "keys",
    "entropy",
    "relative_entropy",
    "max_weight",
    "first_weight",
    "class_weight",
    "register_weight",
)
SOFTMAX_COLUMNS = (
    "model",
    "pretraining",
    "block",
    "head",
    "queries",
    *(name for weight in WEIGHTS for name in (weight, f"{weight}_std")),
    *(f"{weight}_{end}" for weight in WEIGHTS for end in ("low", "high")),
)
"""The columns of `Survey.softmax`: `queries`, and of each quantity that `WeightStatistics` defines
the mean over queries, as NAME_std the deviation, and as NAME_low and NAME_high the ends of the 95 %
interval of the mean over images."""
SCALES = {weight: Scale(least=0.0, most=1.0) for weight in WEIGHTS} | {
    "keys": Scale(least=0.0),
    "entropy": Scale(least=0.0),
}
_DEFAULT_AXIS = FloatAxis()


@dataclass(frozen=True)
class Prefix:
    """How many class tokens and, behind them, registers and the like stand in front.

    Attributes:
        classes: 0 or 1.
        registers: also distillation tokens.
    """

    classes: int = 0
    registers: int = 0

    @property
    def total(self) -> int:
        """Of both."""
        return self.classes + self.registers


@dataclass(frozen=True, eq=False)
class WeightStatistics:
    """Of each of `WEIGHTS`, over queries: how many there are, their sum and that of their squares.

        keys              how many keys the query sees: those that no mask forbids
        entropy           of its weights, in nats
        relative_entropy  entropy / log(keys), 0 to 1
        max_weight        the largest of its weights, 0 to 1
        first_weight      of the first token; behind padding, of the first that is none
        class_weight      of the class token
        register_weight   of all registers together

    A quantity that a query does not have (the relative entropy of one that sees one key, say, or
    the weight of a class token where there is none) is left out.

    Attributes:
        sums: (7, 3) float64, a row a quantity: number of queries, sum, sum of squares.
    """

    sums: NDArray[np.float64]

    @property
    def queries(self) -> int:
        """How many queries saw a key."""
        return int(self.sums[0, 0])

    def means(self) -> dict[str, float]:
        """Means over queries, by the quantities' names; NaN where no query has it."""
        return dict(zip(WEIGHTS, self._means.tolist(), strict=True))

    def deviations(self) -> dict[str, float]:
        """Population standard deviations over queries, likewise."""
        with np.errstate(invalid="ignore"):
            squares = self.sums[:, 2] / self.sums[:, 0]
        variances = np.maximum(squares - self._means**2, 0.0)
        return dict(zip(WEIGHTS, np.sqrt(variances).tolist(), strict=True))

    @property
    def _means(self) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            means: NDArray[np.float64] = self.sums[:, 1] / self.sums[:, 0]
        return means

    def __add__(self, other: "WeightStatistics") -> "WeightStatistics":
        return WeightStatistics(self.sums + other.sums)


class SoftmaxAccumulator:
    """The logits of one block, and what softmax makes of them, over any number of batches.

    No n x n map is kept, nor made beyond a tile; masked entries are left out of everything.

    Args:
        prefix: which keys are class token and registers.
        axis: where the bins of the logits lie.
        backend: of the histograms, see `burst.kernels.choose`.
    """

    def __init__(
        self, prefix: Prefix | None = None, axis: Axis = _DEFAULT_AXIS, *, backend: str = "auto"
    ) -> None:
        self._prefix = prefix or Prefix()
        self._axis, self._backend = axis, backend
        self._histograms: list[HistogramAccumulator] = []
        self._weights: list[WeightCounter] = []

    def add(self, scores: Scores) -> None:
        """Count the logits of each head, and weigh the keys.

        Raises:
            UnsupportedModel: another number of heads than before.
            UnknownName, BackendError: see `HistogramAccumulator`.
        """
        if not self._weights:
            axis, backend = self._axis, self._backend
            heads = range(scores.heads)
            self._histograms = [HistogramAccumulator(axis, backend=backend) for _ in heads]
            self._weights = [WeightCounter(self._prefix) for _ in heads]
        if scores.heads != len(self._weights):
            raise UnsupportedModel(
                f"scores of {scores.heads} heads follow scores of {len(self._weights)}; measure "
                "blocks of one number of heads"
            )
        with torch.no_grad():
            for head, (entries, weights) in enumerate(
                zip(self._histograms, self._weights, strict=True)
            ):
                for tile in scores.tiles(head):
                    entries.add(tile.seen())
                    weights.add(tile)

    def histograms(self) -> list[Histogram]:
        """Of the logits of each head, in order; none before `add`."""
        return [histogram.result() for histogram in self._histograms]

    def weights(self) -> list[WeightStatistics]:
        """Of the weights of each head, in order; none before `add`."""
        return [one.result() for one in self._weights]


class WeightCounter:
    """What `WEIGHTS` are of the queries of one head, tile by tile.

    Args:
        prefix: which keys are class token and registers.
    """

    def __init__(self, prefix: Prefix | None = None) -> None:
        self._prefix = prefix or Prefix()
        self._sums = torch.zeros(len(WEIGHTS), 3, dtype=torch.float64, device="cpu")

    def add(self, tile: Tile) -> None:
        """Add the queries of a tile; on a GPU nothing is waited for."""
        values = to_float64(query_weights(tile, self._prefix))
        has = values.isfinite()
        values = values.where(has, 0.0)
        sums = torch.stack([has.double().sum(1), values.sum(1), values.square().sum(1)], dim=1)
        self._sums = self._sums.to(sums.device) + sums

    def join(self, other: "WeightCounter") -> None:
        """Add what another one of the same head has."""
        self._sums = self._sums + other._sums.to(self._sums.device)

    def result(self) -> WeightStatistics:
        """Of all that was added."""
        return WeightStatistics(self._sums.cpu().numpy())


def query_weights(tile: Tile, prefix: Prefix) -> Tensor:
    """What each query has of `WEIGHTS`, (7, r) float32; NaN where it has not.

    It has none where a logit that it sees is infinite or not a number.

    Where keys are not tokens, none of them is the first, a class token or a register.

    With e = exp(logit - highest logit) and z = sum(e) the weights are e / z, the largest is 1 / z,
    and their entropy is log(z) - sum(e (logit - highest)) / z, in nats.
    """
    logits = tile.logits
    below = logits - logits.amax(dim=1, keepdim=True)
    e = below.exp()
    if tile.masked:
        keys = (logits != -math.inf).sum(dim=1).float()
        below = below.masked_fill(logits == -math.inf, 0.0)
    else:
        keys = torch.full_like(e[:, 0], logits.shape[1])
    z = e.sum(dim=1)
    entropy = z.log() - torch.linalg.vecdot(e, below) / z
    missing = torch.full_like(z, math.nan)
    first = classes = registers = missing
    if tile.tokens:
        place = torch.zeros_like(z, dtype=torch.int64) if tile.first is None else tile.first
        first = e.gather(1, place[:, None])[:, 0] / z
        classes = e[:, : prefix.classes].sum(dim=1) / z if prefix.classes else missing
        behind = e[:, prefix.classes : prefix.total]
        registers = behind.sum(dim=1) / z if prefix.registers else missing
    seen = keys.where((keys > 0) & z.isfinite(), math.nan)
    return torch.stack([seen, entropy, entropy / keys.log(), 1 / z, first, classes, registers])


def prefixes_of(model: nn.Module, blocks: Iterable[AttentionBlock]) -> dict[int, Prefix]:
    """The prefix of each block by its index; empty where the model does not say.

    The class token stands first, where there is one: see `num_prefix_tokens`.
    """
    chosen = tuple(blocks)
    totals = dict.fromkeys((block.index for block in chosen), 0)
    with suppress(UnsupportedModel):  # it is not known where the class token is
        totals = prefix_tokens_of(model, chosen)
    names = [name for name, _ in unwrap(model).named_parameters()]
    return {
        block.index: _prefix(totals[block.index], _has_class_token(block.name, names))
        for block in chosen
    }


def _prefix(total: int, has_class: bool) -> Prefix:
    classes = min(total, int(has_class))
    return Prefix(classes, total - classes)


def _has_class_token(block: str, parameters: list[str]) -> bool:
    """In the smallest part around the block that keeps tokens of its own."""
    scope = block
    while scope:
        scope = scope.rpartition(".")[0]
        inside = [name for name in parameters if name.startswith(f"{scope}." if scope else "")]
        kept = [name for name in inside if any(hint in name for hint in PREFIX_HINTS)]
        if kept:
            return any(hint in name for name in kept for hint in CLASS_TOKENS)
    return False


Found = Mapping[tuple[int, str], Sequence[WeightStatistics]]


def softmax_table(model: str, pretraining: str, found: Found) -> pd.DataFrame:
    """One row for each (block, head), with the columns `SOFTMAX_COLUMNS`.

    Args:
        model, pretraining: of every row.
        found: of each group of images; means have 95 % intervals over these.
    """
    rows = []
    for (block, head), groups in found.items():
        weights = WeightStatistics(np.sum([group.sums for group in groups], axis=0))
        pairs = zip(weights.means().values(), weights.deviations().values(), strict=True)
        numbers = [x for xs in (*pairs, *_intervals(weights, groups)) for x in xs]
        rows.append((model, pretraining, block, head, weights.queries, *numbers))
    return pd.DataFrame(rows, columns=list(SOFTMAX_COLUMNS))


def _intervals(whole: WeightStatistics, groups: Sequence[WeightStatistics]) -> Iterator[Interval]:
    """Of the means of `WEIGHTS`, in their order."""
    for place, (name, mean) in enumerate(whole.means().items()):
        sums = np.array([group.sums[place] for group in groups if group.sums[place, 0]])
        others = whole.sums[place] - sums.reshape(-1, 3)
        if len(sums) > 1:
            yield interval(mean, others[:, 1] / others[:, 0], sums[:, 0], scale=SCALES[name])
        else:
            yield NONE
