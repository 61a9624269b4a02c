"""Batches of any kind -> what a model is called with: tensors, dictionaries, (inputs, labels).

Stream       batches that can be shared out among processes and say what they are
NamedStream  the same of items with names, which can be chosen from
as_stream    a stream of its own kind, or any other iterable as it is
as_call      one batch -> the arguments of `model(...)`, and which of its tokens are padding
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from burst.errors import BurstError
from burst.padding import Padding, padding_of

LABELS = ("labels", "label")
NAFLEX = {"patches", "patch_coord", "patch_valid"}  # of the dictionaries of timm's loader


class Stream(ABC):
    """Batches of a known source, each process's share of which is known too.

    Attributes:
        source: what was asked for.
        skipped: (name, reason) of each item left out, in order; filled while iterating.
    """

    source: str
    skipped: list[tuple[str, str]]

    @property
    @abstractmethod
    def count(self) -> int:
        """How many items there are, or were read where that is not known before."""

    @property
    @abstractmethod
    def batches(self) -> int:
        """How many batches there are; 0 where that is not known."""

    @property
    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Which items, and how they are prepared: plain data, as JSON gives it back."""

    @abstractmethod
    def shard(self, rank: int, world_size: int) -> "Stream":
        """The part for one of `world_size` processes."""

    @abstractmethod
    def __iter__(self) -> Iterator[Any]: ...

    @abstractmethod
    def check_some_read(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Refuse to go on without items, given what all the shards of this stream left out.

        Raises:
            BurstError: it is all of them.
        """


class NamedStream(Stream):
    """Batches of items that have names, so that others can be made of them.

    Attributes:
        batch_names: the items' names, batch by batch.
    """

    batch_names: Sequence[Sequence[str]]

    @abstractmethod
    def of_batches(self, batches: Sequence[Sequence[str]]) -> Self:
        """A stream over other batches of these items."""


class GivenBatches(Stream):
    """Any iterable of batches: a DataLoader, a list, a generator. Its own sampler shards it.

    Attributes:
        sizes: items of each batch read so far; the last one is being worked on.
    """

    def __init__(self, given: Iterable[Any]) -> None:
        self.source = _describe(given)
        self.skipped = []
        self.sizes: list[int] = []
        self._given = given

    @property
    def count(self) -> int:
        """How many items were read so far."""
        return sum(self.sizes)

    @property
    def batches(self) -> int:
        """Their number, if the iterable knows its length; else 0."""
        try:
            return len(self._given) if isinstance(self._given, Sized) else 0
        except TypeError:  # a DataLoader of an iterable dataset has a length that it does not know
            return 0

    @property
    def record(self) -> dict[str, Any]:
        """What kind of iterable it is; more is not known."""
        return {"source": self.source}

    def shard(self, rank: int, world_size: int) -> "Stream":
        """All of it: the iterable is each process's own."""
        return self

    def __iter__(self) -> Iterator[Any]:
        self.sizes.clear()
        for batch in self._given:
            self.sizes.append(batch_size(batch))
            yield batch

    def check_some_read(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Nothing is ever skipped."""


class Call(NamedTuple):
    """How a model is called with a batch.

    Attributes:
        args, kwargs: of `model(*args, **kwargs)`, on the model's device.
        padding: which tokens are padding, by masks on that device.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    padding: Padding


def as_stream(batches: Iterable[Any]) -> Stream:
    """The stream itself, or any iterable of batches as one.

    Raises:
        BurstError: it is a batch, or nothing that can be iterated over.
    """
    if isinstance(batches, Stream):
        return batches
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise BurstError(
            f"batches is a {type(batches).__name__}, expected an iterable of batches, such as a "
            "DataLoader, or a list of tensors or dictionaries"
        )
    return GivenBatches(batches)


def as_call(batch: object, model: nn.Module) -> Call:
    """How `model` is called with a batch.

    A tensor is its first argument, a dictionary its keyword arguments, but for `labels`; of a tuple
    or list the first entry counts, the rest are labels. Floating tensors are given the dtype of the
    model's parameters. In a dictionary the zeros of `attention_mask` (B, N) are padding, and those
    of `decoder_attention_mask` and `pixel_attention_mask` among the tokens that these speak of; as
    are those of timm's `patch_valid`, and what torch's `src_key_padding_mask` says is padding. What
    timm's NaFlex loader gives is one argument.

    Raises:
        BurstError: another kind of batch.
    """
    inputs = _inputs(batch)
    place = next(model.parameters(), None)
    if isinstance(inputs, Tensor):
        return Call((_placed(inputs, place),), {}, padding_of({}, model))
    kwargs: dict[str, Any] = {
        str(name): _placed(x, place) for name, x in inputs.items() if name not in LABELS
    }
    padding = padding_of(kwargs, model)
    if kwargs.keys() >= NAFLEX:
        return Call((kwargs,), {}, padding)
    return Call((), kwargs, padding)


def batch_size(batch: object) -> int:
    """How many items a batch has: the length of its first tensor.

    Raises:
        BurstError: another kind of batch.
    """
    inputs = _inputs(batch)
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
    return next((len(x) for x in tensors if isinstance(x, Tensor) and x.ndim), 0)


def _inputs(batch: object) -> Tensor | Mapping[str, Any]:
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(inputs, Tensor | Mapping):
        return inputs
    raise BurstError(
        f"a batch is a {type(inputs).__name__}, expected a tensor, a dictionary of tensors, or "
        "(inputs, labels)"
    )


def _placed(value: object, like: Tensor | None) -> object:
    if not isinstance(value, Tensor) or like is None:
        return value
    dtype = like.dtype if value.is_floating_point() and like.is_floating_point() else value.dtype
    return value.to(like.device, dtype, non_blocking=True)


def _describe(given: object) -> str:
    dataset = getattr(given, "dataset", None)
    inside = f" of {type(dataset).__name__}" if dataset is not None else ""
    return type(given).__name__ + inside
