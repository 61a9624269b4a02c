import hashlib

import numpy as np
import pytest
import torch
from support import backbone_of, vit

import burst
from burst.errors import TextError
from burst.text import Tokenizer, open_text


def letters(**changes) -> Tokenizer:
    """A token a letter; 1 in front of each sequence and 2 behind it."""
    facts = {"encode": lambda text: [ord(one) for one in text], "prefix": (1,), "suffix": (2,)}
    return Tokenizer(**{**facts, "max_length": 12, "pad": 9, **changes})


@pytest.fixture
def book(tmp_path):
    """26 letters: two sequences of 10, and one of 6."""
    path = tmp_path / "book.txt"
    path.write_text("abcdefghijklmnopqrstuvwxyz")
    return path


def read(stream) -> list[str]:
    """The sequences of a stream as text, without what was put around them."""
    rows = []
    for batch in stream:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            kept = ids[mask.bool()].tolist()
            assert (kept[0], kept[-1]) == (1, 2)
            rows.append("".join(map(chr, kept[1:-1])))
    return rows


def opened(path, **changes):
    options = {"num_sequences": None, "batch_size": 2, "length": 12} | changes
    return open_text(path, letters(), **options)


def test_every_token_of_a_text_is_read_once(book):
    stream = opened(book)
    assert sorted(read(stream)) == ["abcdefghij", "klmnopqrst", "uvwxyz"]
    assert (stream.count, stream.batches) == (3, 2)
    assert read(stream) == read(stream)


def test_a_shorter_sequence_is_filled_up_and_masked(book):
    (batch,) = opened(book, batch_size=3)
    short = batch["attention_mask"].sum(1) == 8
    assert short.sum() == 1
    assert batch["input_ids"][short][0, 8:].tolist() == [9] * 4
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64


def test_a_model_that_reads_one_length_is_given_that(book):
    stream = open_text(
        book, letters(fill=True, max_length=20), num_sequences=None, batch_size=1, length=12
    )
    assert {tuple(batch["input_ids"].shape) for batch in stream} == {(1, 20)}
    assert sorted(read(stream)) == ["abcdefghij", "klmnopqrst", "uvwxyz"]


def test_ten_sequences_are_the_first_of_a_hundred(tmp_path):
    (tmp_path / "long.txt").write_text("x" * 977)
    few, many = (opened(tmp_path / "long.txt", num_sequences=n).names for n in (10, 90))
    assert few == many[:10]
    expected = np.random.default_rng(0).permutation(98)[:10]
    assert few == [str(i) for i in expected]


def test_the_seed_decides_the_order(book):
    orders = [opened(book, seed=seed).names for seed in (0, 0, 1, 2, 3)]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1


def test_shards_read_what_the_whole_reads(book):
    whole = opened(book, batch_size=1)
    parts = [whole.shard(rank, 2) for rank in range(2)]
    assert sorted(read(parts[0]) + read(parts[1])) == sorted(read(whole))
    assert {part.fingerprint for part in parts} == {whole.fingerprint}
    with pytest.raises(TextError, match="rank 2 must lie in 0..1"):
        whole.shard(2, 2)


def test_the_fingerprint_tells_what_was_read_not_where(book, tmp_path):
    (tmp_path / "copy.txt").write_bytes(book.read_bytes())
    (tmp_path / "other.txt").write_text("abcdefghijklmnopqrstuvwxyZ")
    same, other = (opened(tmp_path / name).fingerprint for name in ("copy.txt", "other.txt"))
    assert opened(book).fingerprint == same != other
    digest = hashlib.sha256()
    for sequence in read(opened(book)):
        digest.update(f"{len(sequence)}\n".encode())
        digest.update(np.array([ord(one) for one in sequence], "<i8").tobytes())
    assert digest.hexdigest() == same


def test_the_record_says_how_the_text_was_cut(book):
    record = opened(book, seed=4).record
    assert {**record, "fingerprint": None} == {
        "source": str(book),
        "kind": "text",
        "fingerprint": None,
        "seed": 4,
        "length": 12,
        "prefix": [1],
        "suffix": [2],
    }


def test_a_part_of_the_sequences_is_a_stream_of_its_own(book):
    part = opened(book).of_batches([["2"], ["0"]])
    assert read(part) == ["uvwxyz", "abcdefghij"]
    assert part.skipped == []


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"\xff\xd8\xff\xe0 a photo", r"no UTF-8 text \(byte 0"),
    ],
)
def test_a_file_that_is_no_text_is_told(tmp_path, content, words):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TextError, match=words):
        opened(path)


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(TextError, match="Is a directory; expected a text file"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_sequences": 0}, "num_sequences 0 must be at least 1"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"seed": -1}, "seed -1 must not be negative"),
        ({"length": 13}, "length 13: the model reads at most 12 tokens"),
        ({"length": 2}, "length 2 leaves no room"),
    ],
)
def test_a_number_out_of_range_is_told(book, changes, words):
    with pytest.raises(TextError, match=words):
        opened(book, **changes)


def test_a_tokenizer_of_another_model_is_told(book):
    with pytest.raises(TextError, match="gives the token 122, but the model knows 100"):
        open_text(book, letters(vocabulary=100), num_sequences=1, batch_size=1, length=12)


def test_a_tokenizer_without_room_for_a_text_is_refused():
    with pytest.raises(TextError, match="sequences of 2 tokens have no room"):
        letters(max_length=2)


def test_a_byte_order_mark_is_no_token(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert read(opened(tmp_path / "text.txt")) == ["abc"]


def test_a_model_of_images_reads_no_text(book):
    with pytest.raises(TextError, match="test reads images, not text; give no text"):
        burst.text_for(backbone_of(vit()), book)


def test_a_model_of_text_reads_no_images():
    reader = backbone_of(vit(), kind="text")
    with pytest.raises(burst.ImageError, match=r"reads text, not images; give a text file"):
        burst.images_for(reader, "sample")
    with pytest.raises(TextError, match="has no tokenizer of its own"):
        reader.text_tokenizer()


def test_a_batch_of_text_has_as_many_tokens_as_one_of_images(book):
    reader = backbone_of(vit(), kind="text", tokenizer=letters)
    stream = burst.text_for(reader, book)
    assert stream.length == 12
    assert stream.batches == 1
    book.write_text("x" * 10 * 1000)
    assert len(burst.text_for(reader, book, num_sequences=None).batch_names[0]) == 4096 // 12
