"""A text file -> batches of token ids, as a language model reads them.

stream = open_text("book.txt", tokenizer, num_sequences=100, batch_size=16)
for batch in stream:          # {"input_ids": (B, N), "attention_mask": (B, N)}, int64
    model(**batch)
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burst.backbone import Backbone
from burst.device import tokens_a_batch
from burst.errors import TextError
from burst.stream import NamedStream

LENGTH = 256  # tokens of a sequence, unless the model reads fewer


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """How a text becomes the ids that a language model reads; checks itself.

    Attributes:
        encode: text -> ids, without those that mark a beginning or an end.
        prefix, suffix: the ids that stand around every sequence, perhaps none.
        max_length: ids that the model reads at once, prefix and suffix included.
        pad: the id behind a sequence that is shorter than others of its batch.
        vocabulary: how many ids the model knows, if that is known.
        fill: whether every sequence is filled up to `max_length`, for a model that reads no other.

    Raises:
        TextError: nothing of the text has room between prefix and suffix.
    """

    encode: Callable[[str], Sequence[int]]
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    max_length: int
    pad: int = 0
    vocabulary: int | None = None
    fill: bool = False

    def __post_init__(self) -> None:
        around = len(self.prefix) + len(self.suffix)
        if self.max_length <= around:
            raise TextError(
                f"sequences of {self.max_length} tokens have no room for a text: "
                f"{around} mark beginning and end"
            )


def text_for(
    backbone: Backbone,
    source: str | Path,
    *,
    num_sequences: int | None = 100,
    seed: int = 0,
) -> "TextStream":
    """`open_text` with the tokenizer of a language model.

    The batch size is chosen so that a batch has about as many tokens as one of images has.

    Raises:
        TextError: see `open_text`; or the model does not read text, or has no tokenizer.
    """
    tokenizer = backbone.text_tokenizer()
    length = min(LENGTH, tokenizer.max_length)
    device = next(backbone.model.parameters()).device
    return open_text(
        source,
        tokenizer,
        num_sequences=num_sequences,
        batch_size=max(1, tokens_a_batch(device) // length),
        length=length,
        seed=seed,
    )


def open_text(
    source: str | Path,
    tokenizer: Tokenizer,
    *,
    num_sequences: int | None,
    batch_size: int,
    length: int = LENGTH,
    seed: int = 0,
) -> "TextStream":
    """Batches of token ids of a text file.

    The file is one text: it is tokenised whole and cut into sequences of equal length, the last
    one perhaps shorter. They are put into an order that depends on nothing but the seed and how
    many there are, and the first `num_sequences` are read in that order, as of images.

    Args:
        source: a file of UTF-8 text.
        tokenizer: the model's.
        num_sequences: at most so many; None: all of them. Compare with `count`.
        batch_size: sequences a batch; the last one may be smaller.
        length: tokens of a sequence, what marks its beginning and end included; at most
            `tokenizer.max_length`.
        seed: of the order; not negative.

    Raises:
        TextError: the file is missing, empty or no UTF-8 text, or gives no token or one that the
            model does not know; or a number is out of range.
    """
    _check_numbers(num_sequences, batch_size, length, seed, tokenizer)
    room = length - len(tokenizer.prefix) - len(tokenizer.suffix)
    if room < 1:
        raise TextError(f"length {length} leaves no room between the tokens that mark both ends")
    ids = np.asarray(tokenizer.encode(_read(Path(source))), np.int64)
    if not len(ids):
        raise TextError(f"{source} gives no token; expected text")
    if tokenizer.vocabulary is not None and ids.max() >= tokenizer.vocabulary:
        raise TextError(
            f"{source} gives the token {ids.max()}, but the model knows {tokenizer.vocabulary}: "
            f"the tokenizer is another model's"
        )
    starts = np.arange(0, len(ids), room)
    order = np.random.default_rng(seed).permutation(len(starts))[:num_sequences]
    sequences = {str(i): ids[starts[i] : starts[i] + room] for i in order}
    names = list(sequences)
    return TextStream(
        source=str(source),
        batches=[names[i : i + batch_size] for i in range(0, len(names), batch_size)],
        sequences=sequences,
        fingerprint=_fingerprint(sequences),
        tokenizer=tokenizer,
        length=length,
        seed=seed,
    )


class TextStream(NamedStream):
    """Sequences of token ids in batches, as `ImageStream` is images in batches.

    Iterating yields {"input_ids": (B, N), "attention_mask": (B, N)}, both int64 on the CPU; the
    mask is 0 where a sequence was filled up behind its end: to N, the longest of its batch, or
    `Tokenizer.max_length` for a model that reads no other.

    Attributes:
        source: the file as it was given.
        names: what this stream reads, in order: each sequence's place in the text; for a shard,
            its own part.
        batch_names: the same, batch by batch.
        skipped: nothing, ever; as of images.
        fingerprint: sha256 in hex of the ids of all sequences chosen, in order; the same for every
            shard. It says what was read, whatever the file is called.
        seed: of the choice and order of the sequences.
        length: tokens of a sequence, what marks its beginning and end included.
    """

    def __init__(
        self,
        *,
        source: str,
        batches: Sequence[Sequence[str]],
        sequences: dict[str, NDArray[np.int64]],
        fingerprint: str,
        tokenizer: Tokenizer,
        length: int,
        seed: int,
    ) -> None:
        self.source = source
        self.names = [name for batch in batches for name in batch]
        self.batch_names = batches
        self.skipped: list[tuple[str, str]] = []
        self.fingerprint = fingerprint
        self.seed = seed
        self.length = length
        self._sequences = sequences
        self._tokenizer = tokenizer

    @property
    def count(self) -> int:
        """How many sequences will be read."""
        return len(self.names)

    @property
    def batches(self) -> int:
        """How many batches will be read."""
        return len(self.batch_names)

    @property
    def record(self) -> dict[str, Any]:
        """Which text, and how it is cut: plain data, as JSON gives it back."""
        return {
            "source": self.source,
            "kind": "text",
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "length": self.length,
            "prefix": list(self._tokenizer.prefix),
            "suffix": list(self._tokenizer.suffix),
        }

    def shard(self, rank: int, world_size: int) -> "TextStream":
        """The part for one of `world_size` processes: batches rank, rank + world_size, ...

        Raises:
            TextError: rank is not in 0..world_size - 1.
        """
        if not 0 <= rank < world_size:
            raise TextError(f"rank {rank} must lie in 0..{world_size - 1} (world size - 1)")
        return self.of_batches(self.batch_names[rank::world_size])

    def of_batches(self, batches: Sequence[Sequence[str]]) -> "TextStream":
        """A stream over other batches of the sequences that this one reads, by their names."""
        return TextStream(
            source=self.source,
            batches=batches,
            sequences=self._sequences,
            fingerprint=self.fingerprint,
            tokenizer=self._tokenizer,
            length=self.length,
            seed=self.seed,
        )

    def check_some_read(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Nothing to check: what was tokenised can be read."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.batch_names:
            yield self._filled_up([self._marked(self._sequences[name]) for name in batch])

    def _marked(self, ids: NDArray[np.int64]) -> Tensor:
        around = self._tokenizer.prefix, ids.tolist(), self._tokenizer.suffix
        return torch.tensor([one for part in around for one in part], device="cpu")

    def _filled_up(self, sequences: list[Tensor]) -> dict[str, Tensor]:
        longest = max(map(len, sequences))
        if self._tokenizer.fill:
            longest = self._tokenizer.max_length
        ids = torch.full((len(sequences), longest), self._tokenizer.pad, device="cpu")
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def _fingerprint(sequences: dict[str, NDArray[np.int64]]) -> str:
    digest = hashlib.sha256()
    for ids in sequences.values():
        digest.update(f"{len(ids)}\n".encode() + ids.astype("<i8").tobytes())
    return digest.hexdigest()


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path} is no UTF-8 text (byte {error.start}: {error.reason}); expected a text file"
        ) from error
    except OSError as error:
        raise TextError(
            f"cannot read {path}: {error.strerror or error}; expected a text file"
        ) from error
    if not text.strip():
        raise TextError(f"{path} is empty; expected a text")
    return text


def _check_numbers(
    num_sequences: int | None, batch_size: int, length: int, seed: int, tokenizer: Tokenizer
) -> None:
    if num_sequences is not None and num_sequences < 1:
        raise TextError(f"num_sequences {num_sequences} must be at least 1")
    if batch_size < 1:
        raise TextError(f"batch_size {batch_size} must be at least 1")
    if seed < 0:
        raise TextError(f"seed {seed} must not be negative")
    if length > tokenizer.max_length:
        raise TextError(f"length {length}: the model reads at most {tokenizer.max_length} tokens")
