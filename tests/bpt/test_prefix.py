"""Tokens that no prompt changes: a training from them is the training, and the file is whole."""

import json
import os
import pickle
import re
import signal
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import backbone_of, vit
from typer.testing import CliRunner

import bpt.cache
import bpt.frozen_batches
from bpt import Interrupted, PlainPrompt, PromptedViT, Recipe, open_dataset, open_run, train
from bpt.batches import batches_for
from bpt.frozen_batches import PrefixBatches
from bpt.image_batches import ImageBatches
from bpt.prefix import ROWS, Wanted, images_digest, stored_rows, weights_digest
from burst import ImageError
from cli.bpt import app

TIMED = {"seconds", "images_per_second"}
FACTS = {"what": "tokens in front of block 8", "name": "x", "facts": [1], "variants": 1}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch, one_thread):
    monkeypatch.setenv("BPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def benchmark(colours):
    return open_dataset("folder", colours)


def recipe_of(colours, **changes):
    settings = {
        "dataset": "folder",
        "data": str(colours),
        "model": "timm:test_vit",
        "weights": "random",
        "image_size": 32,
        "method": "vpt",
        "placement": "last:2",
        "num_prompts": 4,
        "epochs": 2,
        "batch_size": 8,
    }
    return Recipe(**settings | changes)


def model_of(first=1, *, after="carry", pooling="token", **changes):
    """Prompts of 3 tokens from this block to the last of 3."""
    backbone = backbone_of(vit(**changes))
    prompts = {block: PlainPrompt(torch.randn(3, 32)) for block in range(first, 3)}
    return backbone, PromptedViT(backbone, prompts, 3, after=after, pooling=pooling).eval()


def small(**changes):
    facts = {**FACTS, "images": 4, "row": (2, 3), "dtype": torch.float32}
    return Wanted(**facts | changes)


def parts(rows=None):
    values = torch.arange(24.0).reshape(4, 2, 3) if rows is None else rows
    return lambda: (part for part in ((0, values[:3]), (3, values[3:])))


def silent(_):
    pass


def numbers(folder):
    """What an epoch found, but for what a clock measured."""
    return [
        {name: value for name, value in line.items() if value is not None and name not in TIMED}
        for line in open_run(folder).metrics
    ]


def folders(root):
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


# --- the model ---


@pytest.mark.parametrize("after, pooling", [("carry", "prompts"), ("drop", "patches")])
@pytest.mark.parametrize("registers", [0, 2])
def test_a_model_goes_on_from_the_tokens_in_front_of_its_prompts(after, pooling, registers):
    backbone, model = model_of(2, after=after, pooling=pooling, reg_tokens=registers)
    if after == "drop":
        model = PromptedViT(backbone, {1: PlainPrompt(torch.randn(3, 32))}, 3, after=after)
    images = torch.randn(2, 3, 16, 16)
    tokens = model.prefix_tokens(images)
    assert tokens.shape == (2, 17 + registers, 32) and not tokens.requires_grad
    assert torch.equal(model(tokens), model(images))
    with pytest.raises(AssertionError):
        assert torch.equal(tokens, model_of(0)[1].prefix_tokens(images))


def test_tokens_of_half_the_bits_are_read_as_float32():
    _, model = model_of()
    tokens = model.prefix_tokens(torch.randn(2, 3, 16, 16))
    rounded = tokens.bfloat16()
    assert torch.equal(model(rounded), model(rounded.float()))
    assert model(rounded).dtype is torch.float32


# --- a training ---

CASES = {
    "views": {"views": 2},
    "flip": {"augmentation": "flip"},
    "flip, fewer views": {"augmentation": "flip", "views": 1},
    "none": {"augmentation": "none", "views": 1},
    "authors": {"augmentation": "none", "protocol": "authors"},
    "drop, average": {"augmentation": "flip", "after": "drop", "ema_decay": 0.5},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_a_training_from_kept_tokens_is_the_training_from_images(
    colours, tmp_path, root, monkeypatch, changes
):
    recipe = recipe_of(colours, **changes)
    kept = train(recipe, tmp_path / "kept")
    built = [name for name in folders(root) if name.startswith("folder-timm-test_vit-")]
    assert len(built) == (2 if recipe.protocol == "authors" else 3)
    monkeypatch.setattr(bpt.frozen_batches, "stored_rows", lambda *_, **__: None)
    plain = train(recipe, tmp_path / "plain")
    # The accuracies to the digit; sums of a batch of another size may be of another order.
    assert kept["test_accuracy"] == plain["test_accuracy"]
    for one, other in zip(numbers(tmp_path / "kept"), numbers(tmp_path / "plain"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
        assert one.get("val_accuracy") == other.get("val_accuracy")


def test_without_a_cache_the_centre_crops_are_the_same(colours, tmp_path, root):
    recipe = recipe_of(colours, augmentation="flip")
    train(recipe, tmp_path / "kept")
    before = folders(root)
    train(replace(recipe, cache=False), tmp_path / "plain")
    assert folders(root) == before
    for one, other in zip(numbers(tmp_path / "kept"), numbers(tmp_path / "plain"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_bfloat16_is_kept_as_such_and_close(colours, tmp_path, monkeypatch):
    recipe = recipe_of(colours, augmentation="none", precision="bfloat16")
    said = []
    train(recipe, tmp_path / "kept", say=said.append)
    assert "5 tokens x 64 bfloat16: 5.6 KiB" in said[1]
    monkeypatch.setattr(bpt.frozen_batches, "stored_rows", lambda *_, **__: None)
    train(recipe, tmp_path / "plain")
    for one, other in zip(numbers(tmp_path / "kept"), numbers(tmp_path / "plain"), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.02, abs=1e-4)


@pytest.mark.parametrize("augmentation", ["crop", "flip"])
def test_views_are_used_in_turn_and_each_is_what_that_epoch_would_draw(
    colours, benchmark, augmentation
):
    recipe = recipe_of(colours, augmentation=augmentation, views=2, epochs=4)
    backbone, model = model_of()
    batches = batches_for(recipe, benchmark, backbone, benchmark.train, model)
    assert isinstance(batches, PrefixBatches)
    images = ImageBatches(replace(recipe, views=None), benchmark, backbone, benchmark.train)
    images.keep_pixels()
    plain = ImageBatches(recipe, benchmark, backbone, benchmark.train)
    plain.keep_pixels()

    def rows(found, change):
        """In an order of their own: epochs have different ones."""
        values = torch.cat([change(batch) for batch, _ in found])
        return values[values.flatten(1).sum(1).argsort()]

    def same(x):
        return x

    first, third = (rows(batches.train(epoch, 0), same) for epoch in (0, 2))
    assert torch.allclose(first, third)
    assert not torch.allclose(first, rows(batches.train(1, 0), same))
    for epoch in (0, 1):
        expected = rows(images.train(epoch, 0), model.prefix_tokens)
        assert torch.allclose(rows(batches.train(epoch, 0), same), expected, atol=1e-5)
    for (tokens, labels), (pixels, answers) in zip(
        batches.train(3, 1), plain.train(3, 1), strict=True
    ):
        assert torch.equal(labels, answers)
        assert torch.allclose(tokens, model.prefix_tokens(pixels), atol=1e-5)


def test_no_room_is_said_with_numbers_and_the_images_are_read_instead(
    colours, tmp_path, root, monkeypatch
):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(bpt.cache.shutil, "disk_usage", lambda _: usage(10_000))
    said = []
    recipe = recipe_of(colours, augmentation="flip")
    train(recipe, tmp_path / "run", say=said.append)
    full = [line for line in said if "are computed again each time" in line]
    assert len(full) == 3
    assert "9 images x 5 tokens x 64 float32: 11.2 KiB, and 9.8 KiB are free" in full[0]
    assert not any(name.startswith("folder-timm") for name in folders(root))


def test_what_has_no_prefix_keeps_none(colours, tmp_path, root):
    for number, changes in enumerate(
        ({"placement": "shallow", "views": 2}, {"epochs": 1}, {"method": "linear", "views": None})
    ):
        train(recipe_of(colours, **changes), tmp_path / f"run{number}")
    assert not any(name.startswith("folder-timm") for name in folders(root))


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_left(tmp_path, root, colours):
    import shutil

    place = tmp_path / "images"
    shutil.copytree(colours, place)
    (place / "val" / "green" / "1.png").write_bytes(b"torn")
    with pytest.raises(ImageError, match=r"green/1\.png"):
        train(recipe_of(place), tmp_path / "run")
    assert folders(root) == []


# --- the name ---


def test_the_folder_tells_of_weights_images_and_crop_apart(benchmark):
    backbone, model = model_of()
    digest = images_digest(benchmark.val, backbone)
    assert digest == images_digest(benchmark.val, backbone)
    others = [
        images_digest(benchmark.test, backbone),
        images_digest(benchmark.val.subset([1, 0, *range(2, 9)]), backbone),
        images_digest(benchmark.val, replace(backbone, crop_fraction=0.5)),
        images_digest(benchmark.val, replace(backbone, mean=(0.4, 0.5, 0.5))),
    ]
    path = benchmark.val.opener.place / benchmark.val.names[0]
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    others.append(images_digest(benchmark.val, backbone))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len({digest, *others}) == 6
    weights = weights_digest(model.vit, blocks=1)
    assert weights != weights_digest(model.vit, blocks=2)
    with torch.no_grad():
        model.vit.blocks[2].mlp.fc1.weight[0, 0] += 1
        assert weights == weights_digest(model.vit, blocks=1)  # it lies behind
        model.vit.blocks[0].mlp.fc1.weight[0, 0] += 1
    assert weights != weights_digest(model.vit, blocks=1)
    assert weights_digest(vit(), blocks=1) != weights_digest(vit(num_heads=2), blocks=1)


def test_images_in_memory_are_told_apart_by_their_pixels():
    digits = open_dataset("digits")
    backbone, _ = model_of()
    one = images_digest(digits.val, backbone)
    changed = replace(digits.val, opener=lambda name: digits.val.opener(name).rotate(90))
    assert one == images_digest(digits.val, backbone) != images_digest(changed, backbone)


def test_seeds_share_what_does_not_depend_on_them(colours, benchmark, root):
    backbone, model = model_of()
    for changes in ({"augmentation": "flip"}, {"views": 1}):
        for seed in (0, 1):
            recipe = recipe_of(colours, seed=seed, **changes)
            batches_for(recipe, benchmark, backbone, benchmark.train, model)
        if "views" not in changes:
            assert len(folders(root)) == 3  # train, val and test
    assert len(folders(root)) == 3 + 1 + 2  # pixels of train, and a view for each seed


# --- the file ---


def test_rows_come_back_in_any_order(rng):
    values = torch.from_numpy(rng.normal(size=(6, 2, 3)).astype(np.float32))
    wanted = small(variants=2, images=3)
    behind = ((first, values[first : first + 3]) for first in (3, 0))
    rows = stored_rows(wanted, lambda: behind, say=silent)
    assert torch.equal(rows.take(1, np.array([2, 0, 0])), values[[5, 3, 3]])
    assert torch.equal(rows.take(np.array([0, 1]), np.array([1, 1])), values[[1, 4]])


def test_bfloat16_comes_back_to_the_bit(rng):
    values = torch.from_numpy(rng.normal(size=(4, 2, 3)).astype(np.float32)).bfloat16()
    rows = stored_rows(small(dtype=torch.bfloat16), parts(values), say=silent)
    assert torch.equal(rows.take(0, np.arange(4)), values)


def test_it_is_computed_once_and_told_before():
    said = []
    wanted = small(variants=10, images=1000, row=(65, 192))
    assert str(wanted) == "1,000 images x 10 views x 65 tokens x 192 float32: 476.1 MiB"
    for _ in range(2):
        assert stored_rows(small(), parts(), say=said.append)
    assert said == [f"{small().what}, once: 4 images x 2 tokens x 3 float32: 96 bytes into "
                    f"{small().folder}"]  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "gone"])
def test_a_damaged_file_is_made_anew(damage):
    stored_rows(small(), parts(), say=silent)
    file = small().folder / ROWS
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": content[:-5], "empty": b"", "noise": b"x" * 200}[damage])
    said = []
    rows = stored_rows(small(), parts(), say=said.append)
    assert len(said) == 1 and file.read_bytes() == content
    assert rows.take(0, np.array([3])).tolist() == [[[18, 19, 20], [21, 22, 23]]]


def test_a_disk_that_fills_up_leaves_nothing(root, short_files):
    said = []
    big = small(row=(200, 300))
    assert stored_rows(big, parts(torch.zeros(4, 200, 300)), say=said.append) is None
    assert re.search(r"computed again each time: .*cannot hold them, ", said[-1])
    assert folders(root) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(root, signum):
    def compute():
        os.kill(os.getpid(), signum)
        yield from parts()()

    with pytest.raises(Interrupted) as caught:
        stored_rows(small(), compute, say=silent)
    assert caught.value.signum == signum
    assert folders(root) == []
    assert pickle.loads(pickle.dumps(caught.value)).command == caught.value.command


BUILD = """
import os, signal, time
from pathlib import Path
import torch
from bpt.prefix import Wanted, stored_rows

def compute():
    with Path(place, "log").open("a") as log:
        log.write("once\\n")
    yield 0, torch.zeros(2, 3)
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    yield 2, torch.ones(2, 3)

os.environ["BPT_CACHE"] = str(Path(place, "cache"))
wanted = Wanted(
    what="rows", name="x", facts=[1], variants=1, images=4, row=(3,), dtype=torch.float32
)
assert stored_rows(wanted, compute, say=lambda _: None) is not None
"""


def test_two_processes_at_once_build_once_and_after_a_kill_the_next_does(tmp_path, forkserver):
    def started(*, kill):
        process = forkserver.Process(target=exec, args=(BUILD, {"place": tmp_path, "kill": kill}))
        process.start()
        return process

    killed = started(kill=True)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    both = [started(kill=False) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "once\n" * 2
    assert len(folders(tmp_path / "cache")) == 1


# --- by the command ---


def test_the_command_trains_from_views(colours, tmp_path, root):
    arguments = ["train", "folder", "--data", str(colours), "--model", "timm:test_vit"]
    arguments += ["--weights", "random", "--method", "vpt", "--placement", "last:2"]
    arguments += ["--num-prompts", "4", "--epochs", "3", "--batch-size", "8", "--device", "cpu"]
    out = tmp_path / "run"
    ended = CliRunner().invoke(app, [*arguments, "--views", "2", "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    shapes = {np.load(file).shape for file in root.glob(f"*/{ROWS}")}
    assert shapes == {(2, 24, 101, 64), (1, 9, 101, 64), (1, 12, 101, 64)}
    assert json.loads((out / "config.json").read_text())["recipe"]["views"] == 2
    again = [*arguments, "--augmentation", "none", "--no-cache", "--out", str(tmp_path / "none")]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert open_run(tmp_path / "none").recipe.augmentation == "none"


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["digits", "--views", "0"], "views is 0"),
        (["digits", "--augmentation", "crops"], "crop"),
        (["digits", "--method", "linear", "--views", "3"], "makes no use of views"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, text):
    ended = CliRunner().invoke(app, ["train", *arguments])
    assert ended.exit_code == 2 and text in ended.output
