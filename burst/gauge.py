"""Tokens, block by block -> what is counted of them, group of images by group."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from burst.adapters import AttentionBlock
from burst.errors import UnsupportedModel
from burst.groups import Counted, GroupedCounter, Groups, Piece
from burst.interaction import head_keys, interaction
from burst.kernels import HistogramAccumulator
from burst.projection import Projection, projection

if TYPE_CHECKING:
    from burst.survey import SurveyOptions

WHOLE = "all"  # the value of `head` where the heads are taken together
Key = tuple[int, str, str]  # block, head, quantity


class Gauge:
    """Takes tokens block by block and counts them; the blocks' weights are read once.

    Args:
        blocks: to measure.
        options: how.
        groups: which group the images of the next batch belong to.

    Raises:
        UnsupportedModel: a block's weights cannot be read, or not in that convention.
    """

    def __init__(
        self, blocks: tuple[AttentionBlock, ...], options: "SurveyOptions", groups: Groups
    ) -> None:
        self.options = options
        self.blocks = [block.index for block in blocks]
        self._groups, self._pieces, self._items = groups, [Piece(0, 0, 1)], 1
        self._whole: dict[int, Tensor] = {}
        self._heads: dict[int, Projection] = {}
        self._weights: dict[Key, HistogramAccumulator] = {}
        self._counters: dict[Key, GroupedCounter] = {}
        if options.need_weights:
            for block in blocks:
                self._read(block)

    @property
    def of_weights(self) -> dict[Key, Counted]:
        """What was counted of the entries of A."""
        return {key: Counted.of(counter, margins=False) for key, counter in self._weights.items()}

    @property
    def of_tokens(self) -> Mapping[Key, Mapping[int, list[Counted]]]:
        """What was counted of X and of A X^T, of each group of images."""
        return {key: counter.groups() for key, counter in self._counters.items()}

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

    def measure_tokens(self, block: int, tokens: Tensor) -> None:
        """Count the entries of X and of A X^T for what one block's attention reads."""
        for group, part in self._divided(tokens):
            self._measure(block, part.reshape(-1, part.shape[-1]).float(), group)

    def _divided(self, tokens: Tensor) -> Iterable[tuple[int, Tensor]]:
        """The tokens (B, N, d) of each group's images; windows of an image are neighbours.

        Where padding was left out, it is not known any more whose tokens are whose.
        """
        windows, rest = divmod(len(tokens), max(self._items, 1))
        if tokens.ndim != 3 or rest:
            return [(self._pieces[0].group, tokens)]
        return [
            (group, tokens[first * windows : last * windows]) for group, first, last in self._pieces
        ]

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
