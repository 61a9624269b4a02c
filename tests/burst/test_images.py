import io
import os
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from burst import images as images_module
from burst.errors import ImageError, UnknownName
from burst.images import open_images
from burst.preprocess import Preprocess

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
OPTIONS = {
    "num_images": None,
    "batch_size": 4,
    "image_size": 16,
    "mean": MEAN,
    "std": STD,
}
REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("BURST_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def opened(source, **changes):
    return open_images(source, **(OPTIONS | changes))


def picture(seed, kind="PNG"):
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    height, width = rng.integers(18, 40, 2)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def content(count=10):
    """An ImageFolder of two classes, JPEG and PNG in turn."""
    kinds = [("jpg", "JPEG"), ("png", "PNG")]
    return {
        f"{'cat' if i % 3 else 'dog'}/{i:03}.{kinds[i % 2][0]}": picture(i, kinds[i % 2][1])
        for i in range(count)
    }


def folder(root, files=None):
    for name, data in (content() if files is None else files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in reversed(files.items()):  # the order in the file must not matter
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def spoilt(root, *bad, count=10):
    """A folder of `count` images, those of index `bad` (in name order) cut short."""
    files = content(count)
    for i in bad:
        name = sorted(files)[i]
        files[name] = files[name][:200]
    return folder(root, files)


def tensors(stream):
    return list(stream)


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


def our_threads():
    return [t for t in threading.enumerate() if t.name.startswith("burst-images")]


# What is read


def test_batches_are_float32_and_the_last_may_be_smaller(tmp_path):
    stream = opened(folder(tmp_path))
    assert [tuple(b.shape) for b in stream] == [(4, 3, 16, 16), (4, 3, 16, 16), (2, 3, 16, 16)]
    assert all(b.dtype == torch.float32 for b in stream)
    assert (stream.count, stream.batches, stream.skipped) == (10, 3, [])
    assert sorted(stream.names) == sorted(content())
    assert stream.source == str(tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_gives_the_tensors_of_the_folder(kind, tmp_path):
    root = folder(tmp_path / "images")
    path = tmp_path / f"images.{kind}"
    if kind == "zip":
        zipped(path, content())
    else:
        tarred(path, content())
    expected, ours = opened(root, num_images=7), opened(path, num_images=7)
    assert ours.names == expected.names
    assert ours.fingerprint == expected.fingerprint
    assert same(tensors(ours), tensors(expected))


def test_each_image_is_the_one_that_its_name_says(tmp_path):
    stream = opened(folder(tmp_path))
    chain = Preprocess(image_size=16, mean=MEAN, std=STD)
    everything = torch.cat(tensors(stream))
    for name, ours in zip(stream.names, everything, strict=True):
        with Image.open(tmp_path / name) as image:
            assert torch.equal(ours, chain.normalise(chain.centre(image.convert("RGB"))))


def test_options_reach_the_transform(tmp_path):
    root = folder(tmp_path)
    plain = tensors(opened(root))
    assert not same(plain, tensors(opened(root, interpolation="nearest")))
    assert not same(plain, tensors(opened(root, crop_fraction=1.0)))
    assert next(iter(opened(root, image_size=9))).shape == (4, 3, 9, 9)


def test_one_image_file_is_a_source(tmp_path):
    root = folder(tmp_path)
    stream = opened(root / "dog" / "000.jpg")
    assert (stream.names, stream.count) == (["000.jpg"], 1)
    assert [tuple(b.shape) for b in stream] == [(1, 3, 16, 16)]


def test_fewer_images_than_asked_for_are_all_read(tmp_path):
    stream = opened(folder(tmp_path), num_images=99)
    assert stream.count == 10
    assert sum(len(b) for b in stream) == 10


# Which images, in what order


def test_the_same_seed_gives_the_same_stream_twice(tmp_path):
    root = folder(tmp_path)
    first, second = opened(root, num_images=6, seed=3), opened(root, num_images=6, seed=3)
    assert first.names == second.names
    assert same(tensors(first), tensors(second))
    assert same(tensors(first), tensors(first))  # and again on repeating it


def test_another_seed_chooses_other_images(tmp_path):
    root = folder(tmp_path)
    choices = {frozenset(opened(root, num_images=5, seed=s).names) for s in range(5)}
    prints = {opened(root, num_images=5, seed=s).fingerprint for s in range(5)}
    assert len(choices) > 1
    assert len(prints) == 5


def test_a_few_images_are_the_first_of_many(tmp_path):
    root = folder(tmp_path)
    assert opened(root, num_images=4).names == opened(root).names[:4]


def test_the_choice_does_not_depend_on_the_file_systems_order(tmp_path):
    files = content()
    forwards = folder(tmp_path / "a", files)
    backwards = folder(tmp_path / "b", dict(reversed(files.items())))
    assert opened(forwards, num_images=5).names == opened(backwards, num_images=5).names


def test_the_fingerprint_changes_with_a_name_or_a_size(tmp_path):
    root = folder(tmp_path)
    before = opened(root).fingerprint
    assert len(before) == 64
    (root / "dog" / "000.jpg").rename(root / "dog" / "0000.jpg")
    renamed = opened(root).fingerprint
    with (root / "dog" / "0000.jpg").open("ab") as file:
        file.write(b"!")
    assert len({before, renamed, opened(root).fingerprint}) == 3


def test_a_name_that_is_no_utf8_can_be_fingerprinted(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(picture(0))
    assert opened(tmp_path).fingerprint


def test_a_folder_called_sample_is_reached_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "sample")
    assert opened("./sample").count == opened(Path("sample")).count == 10
    assert opened("sample", num_images=3).count == 3


# Shards


@pytest.mark.parametrize("count, batch_size", [(10, 4), (1, 4), (9, 1), (12, 3)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_shards_partition_the_batches_exactly(tmp_path, count, batch_size, world_size):
    stream = opened(folder(tmp_path, content(count)), batch_size=batch_size)
    whole = tensors(stream)
    shards = [stream.shard(rank, world_size) for rank in range(world_size)]
    for rank, shard in enumerate(shards):
        assert same(tensors(shard), whole[rank::world_size])
        assert shard.batches == len(whole[rank::world_size])
        assert shard.fingerprint == stream.fingerprint
    assert sum(shard.count for shard in shards) == stream.count
    assert sorted(n for shard in shards for n in shard.names) == sorted(stream.names)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_bad_image_leaves_its_own_batch_only_in_every_shard(tmp_path, world_size):
    stream = opened(spoilt(tmp_path, 2, 6, 7), batch_size=3, skip_bad=True)
    whole = tensors(stream)
    clean = folder(tmp_path / "clean", content())
    good = dict(zip(stream.names, torch.cat(tensors(opened(clean))), strict=True))
    bad = {name for name, _ in stream.skipped}
    expected = [
        torch.stack([good[n] for n in batch if n not in bad])
        for batch in (stream.names[i : i + 3] for i in range(0, 10, 3))
        if not bad.issuperset(batch)
    ]
    assert same(whole, expected)
    shards = [stream.shard(rank, world_size) for rank in range(world_size)]
    parts = [batch for shard in shards for batch in shard]
    assert sum(len(p) for p in parts) == 7
    assert all(any(torch.equal(p, w) for w in whole if p.shape == w.shape) for p in parts)
    assert {name for shard in shards for name, _ in shard.skipped} == bad


@pytest.mark.parametrize("rank, world_size", [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(tmp_path, rank, world_size):
    with pytest.raises(ImageError, match="rank"):
        opened(folder(tmp_path)).shard(rank, world_size)


# Bad images


def test_a_bad_image_is_named_with_the_way_out(tmp_path):
    with pytest.raises(ImageError, match=r"skip_bad \(--skip-bad\) leaves it out") as caught:
        tensors(opened(spoilt(tmp_path, 4)))
    assert repr(sorted(content())[4]) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert our_threads() == []


def test_skipped_images_are_counted_and_named_with_their_reason(tmp_path):
    root = spoilt(tmp_path, 1, 3)
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("no image")
    stream = opened(root, skip_bad=True)
    for _ in range(2):  # repeating the stream starts the list anew
        assert sum(len(b) for b in stream) == 8
        assert len(stream.skipped) == 4
    assert stream.count == 12
    reasons = dict(stream.skipped)
    assert "empty" in reasons["empty.png"]
    assert "no readable JPEG" in reasons["text.jpg"]
    assert [n for n in stream.names if n in reasons] == [n for n, _ in stream.skipped]


def test_a_batch_of_bad_images_only_is_not_yielded(tmp_path):
    stream = opened(spoilt(tmp_path, 0, 1, 2, 3, count=5), batch_size=1, skip_bad=True)
    assert (len(tensors(stream)), stream.batches) == (1, 5)


def test_no_good_image_at_all_is_an_error_with_skip_bad_too(tmp_path):
    stream = opened(spoilt(tmp_path, *range(10)), skip_bad=True)
    with pytest.raises(ImageError, match="none of the 10 images"):
        tensors(stream)
    # A shard cannot know whether another one has good images.
    assert tensors(stream.shard(0, 2)) == []


def test_a_damaged_zip_member_is_a_bad_image(tmp_path):
    path = zipped(tmp_path / "x.zip", {"a.png": picture(1), "b.png": picture(2)})
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 255
    path.write_bytes(data)
    stream = opened(path, skip_bad=True)
    assert sum(len(b) for b in stream) == 1
    assert [name for name, _ in stream.skipped] == ["a.png"]
    assert "CRC" in stream.skipped[0][1]


def test_a_file_that_vanishes_is_a_bad_image(tmp_path):
    root = folder(tmp_path)
    stream = opened(root, skip_bad=True)
    (root / "dog" / "000.jpg").unlink()
    assert sum(len(b) for b in stream) == 9
    assert stream.skipped == [("dog/000.jpg", "No such file or directory")]


# Sources and numbers that cannot be


@pytest.mark.parametrize(
    "source, message",
    [
        ("smaple", "unknown image source 'smaple'.*known: sample"),
        ("no/such/folder", "does not exist; expected a folder"),
        ("gone.zip", "does not exist"),
        ("", "source is empty"),
        ("n" * 300, "unknown image source"),
        ("n" * 300 + "/x", "File name too long"),
    ],
)
def test_a_source_that_does_not_exist_is_told(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match=message) as caught:
        opened(source)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(ImageError, match="holds no image"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"num_images": 0}, {"num_images": -1}, {"batch_size": 0}, {"seed": -1}]
)
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(ImageError, match=next(iter(changes))):
        opened("sample", **({"num_images": 1} | changes))


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(UnknownName):
        opened("sample", num_images=1, interpolation="cubic")


# Memory and threads


class Counting:
    """Counts images decoded; those not yet consumed must stay within a bound."""

    def __init__(self, decode):
        self.decode, self.done, self.lock = decode, 0, threading.Lock()

    def __call__(self, data):
        image = self.decode(data)
        with self.lock:
            self.done += 1
        return image


@pytest.mark.parametrize("batch_size", [1, 5])
def test_images_decoded_ahead_stay_within_one_batch(tmp_path, monkeypatch, batch_size):
    decode = Counting(images_module.decode)
    monkeypatch.setattr(images_module, "decode", decode)
    consumed, ahead = 0, []
    for batch in opened(folder(tmp_path, content(40)), batch_size=batch_size):
        consumed += len(batch)
        time.sleep(0.01)  # gives the threads the time to run away, if they could
        ahead.append(decode.done - consumed)
    assert consumed == decode.done == 40
    assert max(ahead) <= batch_size
    assert max(ahead) > 0  # and they do work ahead


def test_leaving_the_loop_early_ends_the_threads(tmp_path):
    stream = opened(folder(tmp_path))
    for _ in stream:
        assert our_threads()
        break
    assert our_threads() == []


def test_closing_after_the_first_batch_ends_the_threads(tmp_path):
    batches = iter(opened(tarred(tmp_path / "x.tar", content())))
    next(batches)
    batches.close()
    assert our_threads() == []


@pytest.mark.skipif(
    not (DATA / "imagenet-sample.zip").is_file(),
    reason="imagenet-sample.zip not found; BURST_TEST_DATA names its folder",
)
def test_real_photographs_are_read():
    stream = opened(DATA / "imagenet-sample.zip", num_images=6, image_size=64)
    batches = tensors(stream)
    assert [tuple(b.shape) for b in batches] == [(4, 3, 64, 64), (2, 3, 64, 64)]
    assert all(b.std() > 0.1 for b in batches)
