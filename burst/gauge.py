"""Tokens, block by block -> what is counted of them, group of images by group."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from burst.adapters import AttentionBlock
from burst.errors import UnsupportedModel
from burst.groups import Counted, GroupedCounter, Groups, Piece
from burst.interaction import head_keys, interaction
from burst.kernels import HistogramAccumulator
from burst.precision import plain_float32
from burst.projection import Projection, projection
from burst.score_tiles import Scores
from burst.softmax import Found, Prefix, WeightCounter, WeightStatistics

if TYPE_CHECKING:
    from burst.survey import SurveyOptions

LOGITS = "logits"
WHOLE = "all"  # the value of `head` where the heads are taken together
Key = tuple[int, str, str]  # block, head, quantity


class Gauge:
    """Takes tokens block by block and counts them; the blocks' weights are read once.

    Args:
        blocks: to measure.
        options: how.
        groups: which group the images of the next batch belong to.
        prefixes: which tokens of each block are class token and registers, where scores are read.

    Raises:
        UnsupportedModel: a block's weights cannot be read, or not in that convention.
    """

    def __init__(
        self,
        blocks: tuple[AttentionBlock, ...],
        options: "SurveyOptions",
        groups: Groups,
        prefixes: Mapping[int, Prefix] | None = None,
    ) -> None:
        self.options = options
        self.blocks = [block.index for block in blocks]
        self._groups, self._pieces, self._items = groups, [Piece(0, 0, 1)], 1
        self._whole: dict[int, Tensor] = {}
        self._heads: dict[int, Projection] = {}
        self._weights: dict[Key, HistogramAccumulator] = {}
        self._counters: dict[Key, GroupedCounter] = {}
        self._prefixes = prefixes or {}
        self._softmax: dict[tuple[int, int, int], WeightCounter] = {}
        if options.need_weights:
            for block in blocks:
                self._read(block)

    @property
    def of_weights(self) -> dict[Key, Counted]:
        """What was counted of the entries of A."""
        return {key: Counted.of(counter, margins=False) for key, counter in self._weights.items()}

    @property
    def of_tokens(self) -> Mapping[Key, Mapping[int, list[Counted]]]:
        """What was counted of X, of A X^T and of logits, of each group of images.

        The logits of a block are those of its heads, which are not counted twice.
        """
        found = {key: counter.groups() for key, counter in self._counters.items()}
        for (block, head, quantity), groups in list(found.items()):
            if quantity == LOGITS and head != WHOLE:
                whole = found.setdefault((block, WHOLE, LOGITS), {})
                for group, parts in groups.items():
                    whole[group] = [*whole.get(group, ()), *parts]
        return found

    @property
    def softmax(self) -> dict[tuple[int, int, int], WeightStatistics]:
        """What softmax made of the logits of each (block, head, group of images)."""
        return {key: counter.result() for key, counter in self._softmax.items()}

    def measure_weights(self) -> None:
        """Count the entries of A."""
        if "qk" not in self.options.quantities:
            return
        for block, a in self._whole.items():
            self._count_weights((block, WHOLE, "qk"), a)
            for head, (w_q, w_k) in self._each_head(block):
                self._count_weights((block, head, "qk"), interaction(w_q, w_k))

    def begin_batch(self, items: int) -> None:
        """Tokens of so many images, or sequences, come next."""
        self._items = items
        self._pieces, joined = self._groups.pieces(items)
        if joined > 1:
            for counter in self._counters.values():
                counter.join(joined)
            self._join_weights(joined)

    def measure_tokens(self, block: int, tokens: Tensor) -> None:
        """Count the entries of X and of A X^T for what one block's attention reads."""
        with plain_float32(tokens.device):  # once for all products
            for group, part in self._divided(tokens):
                self._measure(block, part.reshape(-1, part.shape[-1]).float(), group)

    def measure_scores(self, block: int, scores: Scores) -> None:
        """Count the logits of one block's attention, and weigh its keys."""
        for group, first, last in self._shares(scores.shape[0]):
            for head in range(scores.heads):
                name = str(head) if self.options.per_head else WHOLE
                entries = self._counter((block, name, LOGITS)).at(group)
                weights = self._weight_counter(block, head, group)
                for tile in scores.tiles(head, first, last):
                    entries.add(tile.seen())
                    weights.add(tile)

    def _weight_counter(self, block: int, head: int, group: int) -> WeightCounter:
        key = block, head, group
        if key not in self._softmax:
            self._softmax[key] = WeightCounter(self._prefixes.get(block))
        return self._softmax[key]

    def _join_weights(self, neighbours: int) -> None:
        """Make one group of so many neighbours, as `GroupedCounter.join` does."""
        before, self._softmax = self._softmax, {}
        for (block, head, group), counter in before.items():
            self._weight_counter(block, head, group // neighbours).join(counter)

    def _shares(self, length: int) -> list[Piece]:
        """Which of so many items, or windows of items, are each group's; an item's are neighbours.

        Where they do not divide evenly it is not known whose they are.
        """
        windows, rest = divmod(length, max(self._items, 1))
        if rest:
            return [Piece(self._pieces[0].group, 0, length)]
        return [
            Piece(group, first * windows, last * windows) for group, first, last in self._pieces
        ]

    def _divided(self, tokens: Tensor) -> Iterable[tuple[int, Tensor]]:
        """The tokens (B, N, d) of each group's images.

        Where padding was left out, it is not known any more whose tokens are whose.
        """
        if tokens.ndim != 3:
            return [(self._pieces[0].group, tokens)]
        shares = self._shares(len(tokens))
        return [(group, tokens[first:last]) for group, first, last in shares]

    def _measure(self, block: int, x: Tensor, group: int) -> None:
        if "x" in self.options.quantities:
            self._counter((block, WHOLE, "x")).at(group).add(x)
        if "qkx" in self.options.quantities:
            self._multiply((block, WHOLE, "qkx"), self._whole[block], x, group)
            for head, (w_q, w_k) in self._each_head(block):
                self._multiply((block, head, "qkx"), w_q, head_keys(w_k, x), group)

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

    def _multiply(self, key: Key, a: Tensor, x: Tensor, group: int) -> None:
        self._counter(key).at(group).add_product(a, x.mT, precision=self.options.precision)

    def _counter(self, key: Key) -> GroupedCounter:
        if key not in self._counters:
            margins = key[2] == "qkx"
            self._counters[key] = GroupedCounter(lambda: self._accumulator(margins), margins)
        return self._counters[key]

    def _count_weights(self, key: Key, a: Tensor) -> None:
        self._weights[key] = self._accumulator(margins=False)
        self._weights[key].add(a)

    def _accumulator(self, margins: bool) -> HistogramAccumulator:
        return HistogramAccumulator(
            self.options.axis, backend=self.options.backend, margins=margins
        )

    def _each_head(self, block: int) -> Iterable[tuple[str, tuple[Tensor, Tensor]]]:
        weights = self._heads.get(block)
        heads = range(weights.num_heads) if weights else ()
        return ((str(i), weights.head(i)) for i in heads if weights)


def add_weights(
    parts: Iterable[Mapping[tuple[int, int, int], WeightStatistics]], *, planned: bool
) -> Found:
    """Of processes, which have parts of the same groups if these are planned, else others.

    Each block's heads in order, after all of them together; of each group of images.
    """
    found: dict[tuple[int, int], dict[tuple[int, int], WeightStatistics]] = {}
    for process, part in enumerate(parts):
        for (block, head, group), weights in part.items():
            name = 0 if planned else process, group
            for which in (-1, head):  # -1: heads together
                groups = found.setdefault((block, which), {})
                groups[name] = groups[name] + weights if name in groups else weights
    return {
        (block, WHOLE if head < 0 else str(head)): list(found[block, head].values())
        for block, head in sorted(found)
    }
