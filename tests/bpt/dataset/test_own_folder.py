"""One's own folders: how they are split, what of them counts, and what is said of it."""

import os
import shutil
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from own_photos import class_folders, photo

from bpt import open_dataset
from bpt.dataset import all_training_images, fold_of
from bpt.dataset.by_name import SHARES, split_by_name
from burst import BurstError, ImageError, UnknownName

SPLITS = ("train", "val", "test")


def names_of(found):
    return {kind: set(getattr(found, kind).names) for kind in SPLITS}


def opened(root):
    """The dataset, and what is told of it."""
    told = []
    return open_dataset(f"folder:{root}", say=told.append), "\n".join(told)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("own") / "photos")


# --- folders of classes -------------------------------------------------------------------------


def test_folders_of_classes_are_split_and_the_sizes_are_said_and_recorded(photos):
    found, told = opened(photos)
    sizes = [len(getattr(found, kind)) for kind in SPLITS]
    assert found.classes == ("blue", "green", "red") and sum(sizes) == 36
    assert "36 images of 3 classes (blue, green, red)" in told and f"{sizes[0]} to train" in told
    assert found.about["split"] == {"by": "name, class by class", "shares": SHARES}
    for split in (found.train, found.val, found.test):
        assert {found.classes[label] for label in split.labels} == set(found.classes)
        assert all(
            name.startswith(found.classes[label])
            for name, label in zip(split.names, split.labels, strict=True)
        )


@pytest.mark.parametrize("pack", ["zip", "tar", "above"])
def test_an_archive_and_a_folder_above_are_split_as_the_folder(photos, tmp_path, pack):
    top, place = "holiday/photos/", tmp_path / f"my.{pack}"
    files = sorted(path for path in photos.rglob("*.png"))
    inside = [top + path.relative_to(photos).as_posix() for path in files]
    if pack == "zip":
        with zipfile.ZipFile(place, "w") as archive:
            for path, name in zip(files, inside, strict=True):
                archive.write(path, name)
            archive.writestr("__MACOSX/holiday/photos/blue/._img_0.png", b"x")
    elif pack == "tar":
        with tarfile.open(place, "w") as archive:
            for path, name in zip(files, inside, strict=True):
                archive.add(path, name)
    else:
        shutil.copytree(photos, place / top)
    plain = names_of(open_dataset(f"folder:{photos}"))
    packed = names_of(open_dataset("folder", place))
    assert packed == {kind: {top + name for name in names} for kind, names in plain.items()}


@given(st.dictionaries(st.sampled_from("abcd"), st.sets(st.integers(), min_size=3, max_size=40)))
def test_every_class_has_an_image_in_every_split(counts):
    classes = {f"{one}/{number}.png": one for one, numbers in counts.items() for number in numbers}
    kinds = split_by_name(classes, [], "here")
    assert kinds.keys() == classes.keys()
    for one in counts:
        assert {kinds[name] for name in classes if classes[name] == one} == set(SPLITS)


@given(st.integers(0, 99), st.integers(30, 60), st.integers(1, 9))
def test_an_image_that_is_added_moves_no_other(seed, count, more):
    many = {f"a/{seed}_{number}.png": "a" for number in range(count)}
    kinds = split_by_name(many, [], "here")
    if min(list(kinds.values()).count(kind) for kind in SPLITS) < 2:
        assume(False)  # a split that would be empty was given the nearest
    grown = many | {f"a/new_{number}.png": "a" for number in range(more)}
    after = split_by_name(grown, [], "here")
    assert all(after[name] == kind for name, kind in kinds.items())


def test_the_shares_are_met_on_average():
    kinds = list(split_by_name({f"{n}.png": "a" for n in range(20_000)}, [], "here").values())
    for kind, share in SHARES.items():
        assert kinds.count(kind) / len(kinds) == pytest.approx(share, abs=0.01)


def test_a_name_is_split_alike_in_both_forms_of_unicode():
    plain = {f"Bäume/Bär {number}.jpg": "Bäume" for number in range(40)}
    apart = {unicodedata.normalize("NFD", name): one for name, one in plain.items()}
    assert list(split_by_name(plain, [], "").values()) == list(
        split_by_name(apart, [], "").values()
    )


def test_classes_with_too_few_images_are_named(tmp_path):
    class_folders(tmp_path, 3, ("cat", "dog"))
    photo(tmp_path / "eel" / "1.png", 7)
    photo(tmp_path / "emu" / "1.png", 8)
    photo(tmp_path / "emu" / "2.png", 9)
    with pytest.raises(ImageError, match=r"class 'eel' \(1\), 'emu' \(2\); each .* one to test$"):
        open_dataset("folder", tmp_path)


def test_files_with_the_same_bytes_stay_together(tmp_path):
    class_folders(tmp_path, 10, ("cat", "dog"))
    for number in range(10):
        for copy in ("a copy", "z copy"):
            shutil.copy(
                tmp_path / f"cat/img_{number}.png", tmp_path / f"cat/{copy} of {number}.png"
            )
    found, told = opened(tmp_path)
    where = {name: kind for kind, names in names_of(found).items() for name in names}
    for number in range(10):
        copies = (f"img_{number}", f"a copy of {number}", f"z copy of {number}")
        assert len({where[f"cat/{name}.png"] for name in copies}) == 1
    assert "30 images are the same as others, each kept in one split" in told


def test_what_lies_in_two_classes_is_only_trained_on(tmp_path):
    class_folders(tmp_path, 8, ("cat", "dog"))
    for number in range(4):
        shutil.copy(tmp_path / f"cat/img_{number}.png", tmp_path / f"dog/again_{number}.png")
    found, told = opened(tmp_path)
    both = {f"cat/img_{n}.png" for n in range(4)} | {f"dog/again_{n}.png" for n in range(4)}
    assert both <= set(found.train.names)
    assert "8 images are the same as others, in different classes, so only trained on" in told


def test_copies_do_not_make_a_class_large_enough(tmp_path):
    class_folders(tmp_path, 4, ("cat", "dog"))
    photo(tmp_path / "eel" / "1.png", 7)
    for number in (2, 3, 4):
        shutil.copy(tmp_path / "eel/1.png", tmp_path / f"eel/{number}.png")
    with pytest.raises(ImageError, match=r"'eel' \(1\).*; copies count once"):
        open_dataset("folder", tmp_path)
    shutil.rmtree(tmp_path / "eel")
    shutil.copytree(tmp_path / "cat", tmp_path / "kitten")
    with pytest.raises(ImageError, match=r"'cat' \(0\).* and those in two classes not at all"):
        open_dataset("folder", tmp_path)


def test_what_does_not_count_is_said(photos, tmp_path):
    root = shutil.copytree(photos, tmp_path / "photos")
    photo(root / "cover.png", 1)
    photo(root / "red" / "sub" / "deeper" / "extra.png", 2)
    photo(root / ".thumbnails" / "x.png", 3)
    (root / "blue" / "IMG_1.HEIC").write_bytes(b"x")
    found, told = opened(root)
    every = set().union(*names_of(found).values())
    assert "red/sub/deeper/extra.png" in every and len(every) == 37
    assert "images that lie in no folder of a class, 1, such as 'cover.png'" in told
    assert "other files, 1" in told


@pytest.mark.parametrize("folder", ["photos/cat", "photos"])
def test_a_folder_whose_name_is_not_utf_8_is_refused_by_name(tmp_path, folder):
    class_folders(tmp_path / "photos", 4, ("cat", "dog"))
    odd = Path(os.fsdecode(b"\xe4\xf6"))  # as unpacked from a zip of long ago
    (tmp_path / folder).rename((tmp_path / folder).parent / odd)
    place = tmp_path / "photos" if folder != "photos" else tmp_path / odd
    with pytest.raises(ImageError, match=r"the folder b'.*\\xe4\\xf6' is not named in UTF-8"):
        open_dataset("folder", place)


@pytest.mark.parametrize("classes", [(), ("cat",)])
def test_two_classes_are_needed(tmp_path, classes):
    class_folders(tmp_path, 3, classes)
    photo(tmp_path / "1.png", 1)
    with pytest.raises(ImageError, match="no folders of classes|only one folder of a class, 'cat'"):
        open_dataset("folder", tmp_path)


def test_a_place_that_is_named_as_a_dataset_is_told_how_to_name_it(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    with pytest.raises(UnknownName, match="folder:photos"):
        open_dataset("photos")


def test_a_home_folder_is_found_behind_the_colon(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert len(open_dataset("folder:~/photos").classes) == 3


@pytest.mark.parametrize("name, data", [("folder:~nobody-is/x", None), ("cub", "~nobody-is/x")])
def test_a_home_of_nobody_is_one_line(name, data):
    with pytest.raises(BurstError, match="no home directory is known for ~nobody-is/x"):
        open_dataset(name, data)


# --- folders of splits --------------------------------------------------------------------------


def split_folders(root, **counts):
    for split, count in counts.items():
        for place, name in enumerate(("cat", "dog")):
            for number in range(count):
                seed = 100 * len(split) + 10 * place + number
                photo(root / split / name / f"{number}.png", seed)
    return root


@pytest.mark.parametrize(
    "train, val, test",
    [("training", "validation", "testing"), ("Train", "Valid", "Test"), ("TRAIN", "dev", "test")],
)
def test_splits_have_several_names(tmp_path, train, val, test):
    found = open_dataset("folder", split_folders(tmp_path, **{train: 4, val: 2, test: 3}))
    assert [len(getattr(found, kind)) for kind in SPLITS] == [8, 4, 6]
    assert all(name.startswith(f"{val}/") for name in found.val.names)


def test_without_test_val_is_tested_on_and_a_tenth_is_held_out(tmp_path):
    found, told = opened(split_folders(tmp_path, train=10, val=3))
    assert [len(getattr(found, kind)) for kind in SPLITS] == [18, 2, 6]
    assert all(name.startswith("val/") for name in found.test.names)
    assert "has no test images: its validation images are tested on" in told
    assert found.about["split"] == {"by": "given", "tested_on": "val"}


def test_train_alone_is_split_by_name(tmp_path):
    found, _ = opened(split_folders(tmp_path, train=10))
    assert found.classes == ("cat", "dog")
    assert sum(len(getattr(found, kind)) for kind in SPLITS) == 20
    assert found.about["split"]["by"] == "name, class by class"


def test_folders_beside_the_splits_do_not_count(tmp_path):
    split_folders(tmp_path, train=4, test=2)
    photo(tmp_path / "unlabelled" / "x" / "1.png", 1)
    found, told = opened(tmp_path)
    assert len(found.train) + len(found.val) == 8
    assert "images that do not lie in test/, train/, 1" in told


def test_a_class_may_be_called_train(tmp_path):
    found = open_dataset("folder", class_folders(tmp_path, 4, ("train", "plane", "car")))
    assert found.classes == ("car", "plane", "train")


@pytest.mark.parametrize(
    "splits, doubled",
    [
        (("training_set", "test_set"), False),
        (("train_images", "test_images", "val_images"), False),
        (("TrainingData", "testset"), True),
        (("seg_train", "seg_test"), True),
        (("train", "test1"), False),
    ],
)
def test_folders_with_a_word_of_a_split_in_their_names_are_splits(tmp_path, splits, doubled):
    counts = dict(zip(splits, (4, 3, 2), strict=False))
    split_folders(tmp_path, **{f"{one}/{one}" if doubled else one: n for one, n in counts.items()})
    photo(tmp_path / "seg_pred" / "seg_pred" / "1.png", 1)
    found, told = opened(tmp_path)
    assert found.classes == ("cat", "dog") and found.about["split"]["by"] == "given"
    assert {name.split("/")[0] for name in found.test.names} == {splits[1]}
    assert len(found.test) == 6 and len(found.train) + len(found.val) == 8 + 4 * (len(splits) > 2)
    assert f"{splits[1]}/ is read as test/, with the classes cat, dog; if these" in told
    assert "1, such as 'seg_pred/seg_pred/1.png'" in told


def test_a_table_says_that_folders_called_like_splits_are_classes(tmp_path):
    split_folders(tmp_path, train_set=4, test_set=4)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    rows = [f"{name},{name.parts[0]}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["filename,label", *rows]))
    assert open_dataset(f"folder:{tmp_path}/labels.csv").classes == ("test_set", "train_set")


@pytest.mark.parametrize(
    "classes",
    [("steam_train", "train_station"), ("test_tube", "vial"), ("train_car", "test_car", "bus")],
)
def test_classes_may_have_such_a_word_in_their_names(tmp_path, classes):
    assert open_dataset("folder", class_folders(tmp_path, 4, classes)).classes == tuple(
        sorted(classes)
    )


@pytest.mark.parametrize("splits", [("train", "test1"), ("train_images", "test_images")])
def test_folders_called_like_splits_without_classes_are_refused(tmp_path, splits):
    class_folders(tmp_path, 4, splits)
    says = rf"{min(splits)}/ and {max(splits)}/ are called like splits, .* rename them if they are"
    with pytest.raises(ImageError, match=says):
        open_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    "counts, says",
    [
        ({"train_a": 3, "train_b": 1, "test_a": 1}, "has both train_a/ and train_b/"),
        ({"train": 3, "val": 1, "valid": 1}, "has both val/ and valid/"),
        ({"test": 3, "other": 3}, "no image in train/"),
    ],
)
def test_splits_that_contradict_are_refused(tmp_path, counts, says):
    with pytest.raises(ImageError, match=says):
        open_dataset("folder", split_folders(tmp_path, **counts))


def test_a_test_image_that_is_trained_on_is_said(tmp_path):
    split_folders(tmp_path, train=4, test=2)
    shutil.copy(tmp_path / "train/cat/1.png", tmp_path / "test/cat/same.png")
    _, told = opened(tmp_path)
    assert "1 test images are also among those to train or validate, such as test/cat/same" in told


# --- what else opens datasets -------------------------------------------------------------------


def test_folds_and_fractions_are_of_the_images_to_train_on(photos):
    found = open_dataset(f"folder:{photos}")
    folds = [fold_of(found, f"{number}/3") for number in (1, 2, 3)]
    held = [name for one in folds for name in one.val.names]
    assert sorted(held) == sorted(all_training_images(found).names)
    assert all(one.test.names == found.test.names and one.about == found.about for one in folds)
    half = open_dataset(f"folder:{photos}", train_fraction=0.5)
    assert half.test.names == found.test.names and set(half.train.names) < set(found.train.names)


def test_an_image_that_comes_or_goes_changes_the_digest(photos, tmp_path):
    root = shutil.copytree(photos, tmp_path / "photos")
    before = open_dataset("folder", root).digest
    assert before == open_dataset(f"folder:{photos}").digest
    photo(root / "red" / "new.png", 5)
    assert open_dataset("folder", root).digest != before


def test_only_files_of_one_size_are_read_to_find_copies(tmp_path, monkeypatch):
    from bpt.dataset import duplicates
    from bpt.dataset.split import FileOpener

    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(bytes([number]) * (1000 + number))
    (tmp_path / "same size.jpg").write_bytes(b"x" * 1000)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(os.urandom(2_000))
    shutil.copy(tmp_path / "a.jpg", tmp_path / "c.jpg")
    (tmp_path / "empty 1.jpg").touch()
    (tmp_path / "empty 2.jpg").touch()
    opener = FileOpener(tmp_path)
    whole = []
    reader = opener.files.reader

    class Watched:
        sizes, others, glance = opener.files.sizes, 0, opener.files.glance

        @staticmethod
        def reader():
            from contextlib import contextmanager

            @contextmanager
            def watched():
                with reader() as read:
                    yield lambda name: whole.append(name) or read(name)

            return watched()

    opener.files = Watched()
    assert duplicates.same_bytes(opener) == [("a.jpg", "c.jpg")]
    assert sorted(whole) == ["a.jpg", "c.jpg"]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_copies_are_found_wherever_they_lie(tmp_path, kind):
    """Of one size, alike in the middle, at the ends or nowhere."""
    from bpt.dataset.duplicates import same_bytes
    from bpt.dataset.split import FileOpener

    root = tmp_path / "photos"
    root.mkdir()
    middle, other = b"m" * 50_000, b"o" * 50_000
    contents = {"a": b"x" + middle, "b": b"y" + middle, "c": b"x" + other, "d": b"x" + middle}
    for name, content in contents.items():
        (root / f"{name}.jpg").write_bytes(content)
    place = root if kind == "folder" else tmp_path / f"my.{kind}"
    if kind != "folder":
        shutil.make_archive(str(tmp_path / "my"), kind, root)
    assert same_bytes(FileOpener(place)) == [("a.jpg", "d.jpg")]


def test_copies_stay_together_in_a_cross_validation_of_own_photos(tmp_path):
    class_folders(tmp_path, count=12)
    for name in ("red", "blue"):
        for path in sorted((tmp_path / name).iterdir()):
            (path.parent / f"copy of {path.name}").write_bytes(path.read_bytes())
    whole = open_dataset(f"folder:{tmp_path}")
    for number in (1, 2, 3):
        one = fold_of(whole, f"{number}/3")
        trained = {(tmp_path / name).read_bytes() for name in one.train.names}
        assert not trained & {(tmp_path / name).read_bytes() for name in one.val.names}


def test_copies_stay_together_where_a_tenth_is_held_out(tmp_path):
    names = ("red", "blue")
    class_folders(tmp_path / "train", 20, names)
    for number, name in enumerate(names):
        photo(tmp_path / "test" / name / "1.png", 9000 + number, name)
        for path in sorted((tmp_path / "train" / name).iterdir()):
            (path.parent / f"copy of {path.name}").write_bytes(path.read_bytes())
    found = open_dataset("folder", tmp_path)
    assert found.sizes == (72, 8, 2)  # two of twenty images of each class, and their copies
    trained = {(tmp_path / name).read_bytes() for name in found.train.names}
    assert not trained & {(tmp_path / name).read_bytes() for name in found.val.names}
