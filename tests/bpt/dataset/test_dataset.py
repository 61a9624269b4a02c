"""Datasets: what is found, how it is split, and what is said of what is wrong."""

import math
import pickle
import zipfile

import numpy as np
import pytest
from colours import write_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from bpt import known_datasets, open_dataset
from bpt.dataset import hold_out
from burst import BurstError, ImageError, UnknownName

SHARES = st.sampled_from([0.1, 0.25, 1 / 3])


def test_the_digits_are_all_there_once_and_every_split_has_each_class():
    found = open_dataset("digits")
    splits = (found.train, found.val, found.test)
    assert [len(split) for split in splits] == [1000, 200, 597]
    names = [name for split in splits for name in split.names]
    assert sorted(map(int, names)) == list(range(1797))
    assert all(len(np.unique(split.labels)) == 10 for split in splits)


def test_a_digit_is_scikit_learns_with_a_margin():
    found = open_dataset("digits")
    image, label = found.test[5]
    number = int(found.test.names[5])
    assert label == load_digits().target[number]
    inside = np.asarray(image)[1:-1, 1:-1, 0] * (16 / 255)
    assert np.allclose(inside, load_digits().images[number], atol=0.04)
    assert image.mode == "RGB" and not found.flip


def test_a_folder_is_read_as_imagefolder_reads_it(colours):
    from torchvision.datasets import ImageFolder

    found = open_dataset(f"folder:{colours}")
    for kind in ("train", "val", "test"):
        theirs = ImageFolder(str(colours / kind))
        mine = getattr(found, kind)
        assert found.classes == tuple(theirs.classes)
        assert list(mine.labels) == [label for _, label in theirs.samples]
        for index in (0, len(mine) - 1):
            assert np.array_equal(np.asarray(mine[index][0]), np.asarray(theirs[index][0]))


@pytest.mark.parametrize("above", ["", "top/"])
def test_an_archive_is_the_folder_it_was_made_of(colours, tmp_path, above):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in colours.rglob("*.png"):
            file.write(path, above + path.relative_to(colours).as_posix())
    mine, theirs = open_dataset("folder", archive), open_dataset("folder", colours)
    assert mine.classes == theirs.classes
    assert [name.removeprefix(above) for name in mine.test.names] == list(theirs.test.names)
    assert np.array_equal(np.asarray(mine.train[3][0]), np.asarray(theirs.train[3][0]))
    assert (mine.digest == theirs.digest) == (not above)


def test_a_split_opens_its_archive_anew_in_another_process(colours, tmp_path):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in colours.rglob("*.png"):
            file.write(path, path.relative_to(colours).as_posix())
    split = open_dataset("folder", archive).train
    first = np.asarray(split[0][0])
    other = pickle.loads(pickle.dumps(split))
    assert np.array_equal(np.asarray(other[0][0]), first)


def test_without_val_a_tenth_of_train_is_held_out(tmp_path):
    write_images(tmp_path, {"train": 11, "test": 1})
    found = open_dataset("folder", tmp_path)
    assert (len(found.train), len(found.val)) == (29, 4)  # ceil(0.1 * 33)
    assert not set(found.train.names) & set(found.val.names)
    assert found.digest == open_dataset("folder", tmp_path).digest


# Sizes of the paper's Table 6: official training images -> validation images.
@pytest.mark.parametrize("count, held", [(5994, 600), (23929, 2393), (12000, 1200), (8144, 815)])
def test_the_held_out_share_has_the_papers_sizes(count, held):
    labels = np.sort(np.random.default_rng(0).integers(0, 120, count))
    train, val = hold_out(labels)
    assert (len(train), len(val)) == (count - held, held)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_each_class_gives_its_share_and_keeps_an_image(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    train, val = hold_out(labels)
    assert sorted([*train, *val]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        given_away = int((labels[val] == label).sum())
        assert given_away <= count - 1 or given_away == 0
        assert given_away <= np.ceil(0.1 * count) + (min(counts) == 1)


@given(st.lists(st.sampled_from([1, 1, 2, 9, 35, 300]), min_size=1, max_size=20), SHARES)
def test_what_rounding_leaves_is_held_out_one_by_one_of_the_class_that_lacks_most(counts, share):
    n = np.array(counts)
    held = np.minimum((share * n).astype(int), n - 1)
    for _ in range(min(math.ceil(round(share * n.sum(), 9)), sum(n - 1)) - sum(held)):
        held[np.where(held < n - 1, share * n - held, -np.inf).argmax()] += 1
    labels = np.repeat(np.arange(len(n)), n)
    assert np.bincount(labels[hold_out(labels, share)[1]], minlength=len(n)).tolist() == [*held]


@pytest.mark.parametrize(
    "prepare, says",
    [
        (lambda root: None, "no image"),
        (lambda root: _image(root / "train/a/1.png"), r"of class 'a' \(1\)"),
        (lambda root: _image(root / "test/a/1.png"), "no image in train/"),
        (lambda root: _image(root / "train/1.png", root / "test/a/1.png"), "lies in no class"),
        (
            lambda root: _image(root / "train/a/1.png", root / "test/b/1.png"),
            "class 'b' has no image in train/",
        ),
    ],
)
def test_a_folder_that_is_no_dataset_is_told_apart(tmp_path, prepare, says):
    prepare(tmp_path)
    with pytest.raises(ImageError, match=says) as caught:
        open_dataset("folder", tmp_path)
    assert "\n" not in str(caught.value)


def _image(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_image_becomes_rgb(tmp_path, mode):
    for kind in ("train", "test"):
        path = tmp_path / kind / "a" / ("1.jpg" if mode == "CMYK" else "1.png")
        path.parent.mkdir(parents=True)
        Image.new(mode, (5, 4)).save(path)
    assert open_dataset("folder", tmp_path).test[0][0].mode == "RGB"


def test_a_broken_image_is_named(tmp_path):
    _image(tmp_path / "train/a/1.png", tmp_path / "test/a/1.png")
    (tmp_path / "test/a/1.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"test/a/1\.png"):
        open_dataset("folder", tmp_path).test[0]


@pytest.mark.parametrize(
    "name, data, says",
    [
        ("digit", None, "digits"),
        ("digits", "x", "leave data out"),
        ("folder", None, "needs a place, as data or as folder:PATH"),
        ("folder:x", "y", "once"),
        ("folder:/nowhere", None, "does not exist"),
    ],
)
def test_a_wrong_name_or_place_is_one_line(name, data, says):
    with pytest.raises(BurstError, match=says):
        open_dataset(name, data)


def test_the_known_datasets_say_what_one_must_know():
    for info in known_datasets():
        assert info.title and info.licence and info.source and info.files
    names = "digits folder cub nabirds flowers dogs cars imagenet vtab coco"
    assert [info.name for info in known_datasets()] == names.split()
    with pytest.raises(UnknownName):
        open_dataset("cubb")


def test_the_fine_grained_classes_are_read_from_their_zip(real_data):
    found = open_dataset("folder", real_data / "critters25.zip")
    assert len(found.classes) == 25
    assert [len(split) for split in (found.train, found.val, found.test)] == [2500, 750, 2500]
