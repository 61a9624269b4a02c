"""The paper's benchmarks: read from small copies in the layouts that their makers publish."""

import json
import shutil
from collections import Counter
from itertools import pairwise

import layouts
import numpy as np
import pytest
import scipy.io
from PIL import Image

from bpt import dataset_info, known_datasets, locate, open_dataset
from bpt.dataset import class_fraction
from bpt.dataset.split import distinct_names
from burst import BurstError, ImageError


def described(split):
    """File name -> class number, of a split."""
    return {name: int(label) for name, label in zip(split.names, split.labels, strict=True)}


def everything(found):
    return described(found.train) | described(found.val) | described(found.test)


def colour_number(image):
    """The number that `layouts.write_jpeg` painted."""
    return round((np.asarray(image)[..., 0].mean() - 40) / 7)


# --- each one's lists ---------------------------------------------------------------------------


def test_cub_is_split_as_its_lists_say(tmp_path):
    base = layouts.cub(tmp_path)
    found = open_dataset("cub", tmp_path)
    rows = zip(
        *((base / f"{name}.txt").read_text().split()[1::2] for name in ("images",)),
        (base / "image_class_labels.txt").read_text().split()[1::2],
        (base / "train_test_split.txt").read_text().split()[1::2],
        strict=True,
    )
    expected = {
        f"images/{path}": (int(label) - 1, training == "1") for path, label, training in rows
    }
    assert everything(found) == {name: label for name, (label, _) in expected.items()}
    assert set(found.test.names) == {
        name for name, (_, training) in expected.items() if not training
    }
    assert len(found.val) == 2 and len(found.train) == 10  # ceil(12 / 10) held out
    assert found.classes == ("Black footed Albatross", "Laysan Albatross", "Sooty Albatross")


def test_nabirds_classes_are_those_with_images_in_the_order_of_their_numbers(tmp_path):
    layouts.nabirds(tmp_path)
    found = open_dataset("nabirds", tmp_path)
    assert found.classes == ("Common Eider", "Red-tailed Hawk (Light morph adult)")
    folder = {name.split("/")[1]: label for name, label in everything(found).items()}
    assert folder == {"0009": 0, "0817": 1}


def test_flowers_has_the_official_three_splits(tmp_path):
    layouts.flowers(tmp_path)
    found = open_dataset("flowers", tmp_path)
    assert described(found.train) == {
        f"jpg/image_{i:05d}.jpg": c for i, c in ((1, 2), (2, 0), (3, 1))
    }
    assert described(found.val) == {
        f"jpg/image_{i:05d}.jpg": c for i, c in ((4, 1), (5, 2), (6, 0))
    }
    assert described(found.test) == {
        f"jpg/image_{i:05d}.jpg": c for i, c in ((7, 0), (8, 1), (9, 2))
    }
    assert found.classes[:3] == ("pink primrose", "hard-leaved pocket orchid", "canterbury bells")


def test_flowers_is_read_as_torchvision_reads_it(tmp_path):
    from torchvision.datasets import Flowers102

    layouts.flowers(tmp_path / "flowers-102")
    mine = open_dataset("flowers", tmp_path)
    for theirs, split in (("train", mine.train), ("val", mine.val), ("test", mine.test)):

        class Unchecked(Flowers102):
            def _check_integrity(self):  # its checksums are those of the real files
                return True

        reference = Unchecked(str(tmp_path), theirs)
        expected = {
            f"jpg/{path.name}": label
            for path, label in zip(reference._image_files, reference._labels, strict=True)
        }
        assert described(split) == expected


def test_dogs_reads_nested_cells(tmp_path):
    layouts.dogs(tmp_path)
    found = open_dataset("dogs", tmp_path)
    assert found.classes == ("Chihuahua", "Japanese spaniel")
    assert (len(found.train), len(found.val), len(found.test)) == (7, 1, 4)
    assert {name.split("/")[1]: label for name, label in everything(found).items()} == {
        "n02085620-Chihuahua": 0,
        "n02085782-Japanese_spaniel": 1,
    }


@pytest.mark.parametrize("layout", ["combined", "devkit", "kaggle"])
def test_every_layout_of_cars_is_the_same_dataset(tmp_path, layout):
    if layout == "combined":
        rows, name = layouts.cars_combined(tmp_path), "combined"
    else:
        rows, name = layouts.cars_devkit(tmp_path, doubled=layout == "kaggle"), "fname"
    found = open_dataset("cars", tmp_path)
    assert found.classes == tuple(layouts.CARS)
    tested = Counter(int(label) for label in found.test.labels)
    assert tested == Counter(row["class"] - 1 for row in rows if row["test"])
    key = {(row["test"], row[name].split("/")[-1]): row for row in rows}
    for test, split in ((0, found.train), (0, found.val), (1, found.test)):
        for place, file in enumerate(split.names):
            row = key[test, file.split("/")[-1]]
            image, label = split[place]
            assert label == row["class"] - 1
            assert colour_number(image) == pytest.approx(row["number"] % 160, abs=0.5)


def test_cars_is_read_as_torchvision_reads_it(tmp_path):
    from torchvision.datasets import StanfordCars

    layouts.cars_devkit(tmp_path / "stanford_cars")
    mine = open_dataset("cars", tmp_path)
    theirs = StanfordCars(str(tmp_path), "test")
    expected = {path.split("stanford_cars/")[1]: label for path, label in theirs._samples}
    assert described(mine.test) == expected
    assert mine.classes == tuple(theirs.classes)


def test_imagenet_tests_on_val_and_holds_a_tenth_of_train_out(tmp_path):
    layouts.imagenet(tmp_path)
    found = open_dataset("imagenet", tmp_path)
    assert (len(found.train), len(found.val), len(found.test)) == (54, 6, 6)
    assert Counter(found.val.labels.tolist()) == {0: 2, 1: 2, 2: 2}
    assert found.classes[0].startswith("tench")
    for name, label in everything(found).items():
        assert layouts.WNIDS[label] in name


@pytest.mark.parametrize("source", ["kaggle", "devkit"])
def test_flat_validation_images_get_their_classes_from_a_list(tmp_path, source):
    root = layouts.imagenet(tmp_path / "ILSVRC/Data/CLS-LOC" if source == "kaggle" else tmp_path)
    expected = {path.name: path.parent.name for path in (root / "val").rglob("*.JPEG")}
    for path in list((root / "val").rglob("*.JPEG")):
        path.rename(root / "val" / path.name)
    ordered = sorted(expected.items())
    if source == "kaggle":
        lines = [f"{name[:-5]},{wnid} 1 2 3 4 " for name, wnid in ordered]
        (tmp_path / "LOC_val_solution.csv").write_text(
            "\n".join(["ImageId,PredictionString", *lines, "", ""])
        )
    else:
        folder = tmp_path / "ILSVRC2012_devkit_t12" / "data"
        folder.mkdir(parents=True)
        # The devkit's numbers are in another order than the WordNet ids.
        numbers = {wnid: number for number, wnid in enumerate(reversed(layouts.WNIDS), 1)}
        rows = [{"ILSVRC2012_ID": number, "WNID": wnid} for wnid, number in numbers.items()]
        scipy.io.savemat(folder / "meta.mat", {"synsets": layouts._struct(rows)})
        truth = "\n".join(str(numbers[wnid]) for _, wnid in ordered)
        (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    found = open_dataset("imagenet", tmp_path)
    named = {
        name.split("/")[-1]: layouts.WNIDS[label] for name, label in described(found.test).items()
    }
    assert named == expected


def flat_imagenet(root):
    layouts.imagenet(root)
    for path in list((root / "val").rglob("*.JPEG")):
        path.rename(root / "val" / path.name)
    return root


def test_a_damaged_list_of_flat_validation_images_is_named(tmp_path):
    root = flat_imagenet(tmp_path)
    (root / "LOC_val_solution.csv").write_bytes(b"ImageId,PredictionString\n\xfc,n01440764 1\n")
    with pytest.raises(ImageError, match=r"LOC_val_solution\.csv is damaged: 'utf-8'"):
        open_dataset("imagenet", root)


@pytest.mark.parametrize(
    "synset, truth, says",
    [
        ({"ID": 1}, "1", r"meta\.mat: its synsets have no ILSVRC2012_ID and no WNID"),
        ({"ILSVRC2012_ID": 1, "WNID": "n01440764"}, "0", r"data: class id 0 is not in meta\.mat"),
        ({"ILSVRC2012_ID": 1, "WNID": "n01440764"}, "x", r"a class id is no number: .*'x'"),
    ],
)
def test_a_damaged_devkit_is_told(tmp_path, synset, truth, says):
    folder = flat_imagenet(tmp_path) / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    scipy.io.savemat(folder / "meta.mat", {"synsets": layouts._struct([synset])})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    with pytest.raises(ImageError, match=says):
        open_dataset("imagenet", tmp_path)


def test_a_list_names_imagenets_training_images(tmp_path):
    layouts.imagenet(tmp_path)
    names = [f"{wnid}_{index}.JPEG" for wnid in layouts.WNIDS for index in (3, 5, 8)]
    (tmp_path / "mine.txt").write_text("\n".join(names))
    found = open_dataset("imagenet", tmp_path, train_list=tmp_path / "mine.txt")
    chosen = {name.split("/")[-1] for name in (*found.train.names, *found.val.names)}
    assert chosen == set(names)
    (tmp_path / "mine.txt").write_text("n01440764_999.JPEG\n")
    with pytest.raises(ImageError, match=r"line 1: 'n01440764_999.JPEG' is no training image"):
        open_dataset("imagenet", tmp_path, train_list=tmp_path / "mine.txt")


# --- fractions ----------------------------------------------------------------------------------


def test_fractions_are_balanced_nested_and_always_the_same():
    labels = np.repeat(np.arange(4), [100, 50, 30, 7])[np.random.default_rng(0).permutation(187)]
    parts = {
        share: set(class_fraction(labels, share).tolist()) for share in (0.01, 0.03, 0.1, 0.3, 1)
    }
    for share, part in parts.items():
        counts = Counter(labels[sorted(part)].tolist())
        assert counts == {c: max(1, int(share * n + 0.5)) for c, n in enumerate((100, 50, 30, 7))}
    ordered = [parts[share] for share in sorted(parts)]
    assert all(one < other for one, other in pairwise(ordered))
    assert set(class_fraction(labels, 0.1).tolist()) == parts[0.1]


def test_a_class_is_drawn_alike_whatever_lies_beside_it():
    labels = np.repeat([0, 1, 2], 20)
    alone = class_fraction(labels[:20], 0.25)
    assert set(alone) == set(class_fraction(labels, 0.25)[:5])


def test_a_fraction_is_taken_before_validation_images_are_held_out(tmp_path):
    layouts.imagenet(tmp_path)
    half, whole = (open_dataset("imagenet", tmp_path, train_fraction=f) for f in (0.5, 1.0))
    assert len(half.train) + len(half.val) == 30 and len(half.test) == len(whole.test) == 6
    taken = {*half.train.names, *half.val.names}
    assert taken < {*whole.train.names, *whole.val.names}


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_fraction_out_of_range_is_refused(share):
    with pytest.raises(BurstError, match=r"train_fraction is .*0\.\.1"):
        open_dataset("digits", train_fraction=share)


# --- the split files of VPT ---------------------------------------------------------------------


def write_vpt(root, splits):
    for kind, table in splits.items():
        (root / f"{kind}.json").write_text(json.dumps(table))


def test_vpt_files_decide_the_splits_and_a_missing_class_shifts_no_label(tmp_path):
    base = layouts.cub(tmp_path)
    paths = sorted(path.relative_to(base / "images").as_posix() for path in base.rglob("*.jpg"))
    by_class = {one: [path for path in paths if path.startswith(f"00{one}")] for one in (1, 2, 3)}
    write_vpt(
        base,
        {
            "train": {path: one for one, names in by_class.items() for path in names[:3]},
            "val": {by_class[3][3]: 3},  # classes 1 and 2 are absent here
            "test": {path: one for one, names in by_class.items() if one > 1 for path in names[4:]},
        },
    )
    (base / "val.json").write_text((base / "val.json").read_text(), encoding="utf-8-sig")
    found = open_dataset("cub", tmp_path)
    assert described(found.val) == {f"images/{by_class[3][3]}": 2}
    assert set(found.test.labels.tolist()) == {1, 2}
    assert len(found.train) == 9 and found.classes[2].startswith("003.")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "name, archive", [("cub", "CUB_200_2011.tgz"), ("nabirds", "nabirds.tar.gz")]
)
def test_vpt_files_beside_an_archive_or_its_folder_split_its_images(
    name, archive, packed, tmp_path
):
    place = tmp_path / "data" / name
    base = getattr(layouts, name)(place)
    paths = sorted(path.relative_to(base / "images").as_posix() for path in base.rglob("*.jpg"))
    tables = {"train": paths[:9], "val": paths[9:10], "test": paths[10:]}
    write_vpt(place, {kind: dict.fromkeys(some, 1) for kind, some in tables.items()})
    if packed:
        layouts.pack(place, place / archive, names=(base.name,))
        shutil.rmtree(base)
    for data in (tmp_path / "data", place):  # the first unpacks
        found = open_dataset(name, data)
        splits = {kind: getattr(found, kind) for kind in tables}
        assert {kind: list(split.names) for kind, split in splits.items()} == {
            kind: [f"images/{path}" for path in some] for kind, some in tables.items()
        }
        assert splits["train"][0][0].size == (24, 18)


def test_vpt_files_of_cars_find_their_images_in_either_layout(tmp_path):
    rows = layouts.cars_rows()
    table = {
        "train": {row["combined"]: row["class"] for row in rows if not row["test"]},
        "test": {row["combined"]: row["class"] for row in rows if row["test"]},
    }
    last = next(reversed(table["train"]))
    table["val"] = {last: table["train"].pop(last)}
    layouts.cars_combined(tmp_path / "one")
    layouts.cars_devkit(tmp_path / "two")
    shutil.copy(tmp_path / "one/cars_annos.mat", tmp_path / "two")
    numbers = {}
    for place in ("one", "two"):
        write_vpt(tmp_path / place, table)
        found = open_dataset("cars", tmp_path / place)
        numbers[place] = sorted(
            (colour_number(image), label)
            for image, label in (found.test[i] for i in range(len(found.test)))
        )
    assert numbers["one"] == numbers["two"]
    (tmp_path / "two/cars_annos.mat").unlink()
    with pytest.raises(ImageError, match=r"cars_annos.mat and both lists of the devkit are needed"):
        open_dataset("cars", tmp_path / "two")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no JSON"),
        ("[]", "must hold one object"),
        ('{"a.jpg": "bird"}', "class id 'bird' of 'a.jpg' is no whole number"),
        ('{"a.jpg": Infinity}', "class id inf of 'a.jpg'"),
        ('{"a.jpg": 1.7}', "class id 1.7 of 'a.jpg'"),
        ('{"a.jpg": true}', "class id True of 'a.jpg'"),
    ],
)
def test_a_damaged_split_file_is_named(tmp_path, content, told):
    base = layouts.cub(tmp_path)
    write_vpt(base, {"val": {"a.jpg": 1}, "test": {"a.jpg": 1}})
    (base / "train.json").write_text(content)
    with pytest.raises(ImageError, match=rf"train\.json.*{told}"):
        open_dataset("cub", tmp_path)


@pytest.mark.parametrize("name", ["", "/", "."])
def test_a_path_that_names_no_file_is_missing(tmp_path, name):
    base = layouts.flowers(tmp_path)
    write_vpt(base, {"train": {name: 1}, "val": {"a.jpg": 1}, "test": {"a.jpg": 1}})
    with pytest.raises(ImageError, match=r"1 of 1 listed images are missing"):
        open_dataset("flowers", tmp_path)


def test_split_files_that_overlap_are_refused(tmp_path):
    base = layouts.cub(tmp_path)
    names = sorted(path.relative_to(base / "images").as_posix() for path in base.rglob("*.jpg"))
    parts = {"train": names[:9], "val": names[9:12], "test": names[11:]}
    write_vpt(base, {kind: dict.fromkeys(part, 1) for kind, part in parts.items()})
    with pytest.raises(ImageError, match=rf"test and val share images \(1\), .*{names[11]}"):
        open_dataset("cub", tmp_path)


def test_a_class_without_a_training_image_is_told(tmp_path):
    base = layouts.cub(tmp_path)
    file = base / "train_test_split.txt"
    file.write_text("".join(f"{n} {int(n > 6 and n % 6 < 4)}\n" for n in range(1, 19)))
    told = []
    open_dataset("cub", tmp_path, say=told.append)
    assert told == [
        "cub: classes tested on without a training image: 1, such as 'Black footed Albatross'"
    ]


def test_split_files_must_be_complete(tmp_path):
    base = layouts.cub(tmp_path)
    write_vpt(base, {"train": {"a.jpg": 1}})
    with pytest.raises(ImageError, match=r"no val\.json and no test\.json"):
        open_dataset("cub", tmp_path)


# --- archives, odd cases, damage ----------------------------------------------------------------


def test_an_official_archive_needs_no_other_step(tmp_path):
    layouts.cub(tmp_path / "made")
    place = tmp_path / "downloads"
    place.mkdir()
    archive = layouts.pack(
        tmp_path / "made", place / "CUB_200_2011.tgz", names=("CUB_200_2011", "attributes.txt")
    )
    expected = open_dataset("cub", tmp_path / "made")
    said = []
    found = open_dataset("cub", place, say=said.append)
    assert found.digest == expected.digest and said == [f"unpacking {archive}"]
    assert open_dataset("cub", archive, say=said.append).digest == expected.digest
    assert len(said) == 1  # unpacked once


@pytest.mark.parametrize("file", ["CUB_200_2011 (1).tgz", "cub.tar", "cub.zip", "birds"])
def test_an_archive_that_is_given_is_opened_whatever_its_name(tmp_path, file):
    layouts.cub(tmp_path / "made")
    archive = tmp_path / file
    if file.endswith("zip"):
        shutil.make_archive(str(archive.with_suffix("")), "zip", tmp_path / "made", "CUB_200_2011")
    else:
        mode = "w" if file.endswith("tar") else "w:gz"
        layouts.pack(tmp_path / "made", archive, names=["CUB_200_2011"], mode=mode)
    assert locate(dataset_info("cub"), archive)[0] == archive
    found = open_dataset("cub", archive)
    assert found.digest == open_dataset("cub", tmp_path / "made").digest


def test_one_of_several_archives_is_known_by_its_name_alone(tmp_path):
    (tmp_path / "Images").mkdir()
    layouts.pack(tmp_path, tmp_path / "images (1).tar", names=["Images"], mode="w")
    with pytest.raises(ImageError, match=r"images \(1\)\.tar is none of images.tar, lists.tar; "):
        open_dataset("dogs", tmp_path / "images (1).tar")


def test_a_file_that_is_no_archive_is_not_opened_as_one(tmp_path):
    base = layouts.cub(tmp_path)
    assert open_dataset("cub", base / "images.txt").digest == open_dataset("cub", base).digest


def test_cub_that_was_unpacked_into_a_folder_of_its_name_is_found(tmp_path):
    base = layouts.cub(tmp_path / "CUB_200_2011")
    assert locate(dataset_info("cub"), tmp_path)[0] == base


def test_dogs_and_imagenet_are_unpacked_from_their_archives(tmp_path):
    layouts.dogs(tmp_path / "dogs_made")
    place = tmp_path / "dogs"
    place.mkdir()
    layouts.pack(tmp_path / "dogs_made", place / "images.tar", names=("Images",), mode="w")
    lists = ("train_list.mat", "test_list.mat")
    layouts.pack(tmp_path / "dogs_made", place / "lists.tar", names=lists, mode="w")
    said = []
    found = open_dataset("dogs", tmp_path, say=said.append)  # from the folder above
    assert found.digest == open_dataset("dogs", tmp_path / "dogs_made").digest
    assert sorted(said) == [f"unpacking {place / name}" for name in ("images.tar", "lists.tar")]

    made = layouts.imagenet(tmp_path / "made")
    for wnid in layouts.WNIDS:
        files = [path.name for path in sorted((made / "train" / wnid).iterdir())]
        layouts.pack(made / "train" / wnid, made / f"{wnid}.tar", names=files, mode="w")
    place = tmp_path / "imagenet"
    place.mkdir()
    inner = [f"{wnid}.tar" for wnid in layouts.WNIDS]
    layouts.pack(made, place / "ILSVRC2012_img_train.tar", names=inner, mode="w")
    shutil.copytree(made / "val", place / "val")
    assert open_dataset("imagenet", place).digest == open_dataset("imagenet", made).digest


def test_a_half_unpacked_folder_is_told(tmp_path):
    base = layouts.cub(tmp_path)
    shutil.rmtree(base / "images/002.Laysan_Albatross")
    with pytest.raises(ImageError, match=r"4 of 12 listed images are missing, such as 'images/002"):
        open_dataset("cub", tmp_path)


@pytest.mark.parametrize("name", ["images.txt", "classes.txt", "train_test_split.txt"])
def test_a_list_cut_short_is_told(tmp_path, name):
    base = layouts.cub(tmp_path)
    lines = (base / name).read_text().splitlines()
    (base / name).write_text("\n".join(lines[:-1]))
    with pytest.raises(ImageError, match=r"is not in both images.txt and|has no class 3"):
        open_dataset("cub", tmp_path)
    (base / name).write_text("1\n")
    with pytest.raises(ImageError, match=rf"{name}, line 1: '1' must have 2 columns"):
        open_dataset("cub", tmp_path)
    (base / name).unlink()
    with pytest.raises(ImageError, match=rf"{name}"):
        open_dataset("cub", tmp_path)


def test_a_split_of_birds_that_is_neither_0_nor_1_is_told(tmp_path):
    file = layouts.cub(tmp_path) / "train_test_split.txt"
    file.write_text(file.read_text().replace("3 1\n", "3 2\n", 1))
    with pytest.raises(ImageError, match=r"train_test_split.txt gives image 3 the split '2'; exp"):
        open_dataset("cub", tmp_path)


@pytest.mark.parametrize("name", ["images", "image_class_labels", "train_test_split", "classes"])
def test_an_id_that_a_list_of_birds_has_twice_is_told(tmp_path, name):
    file = layouts.cub(tmp_path) / f"{name}.txt"
    file.write_text(file.read_text() + "1 0\n")
    with pytest.raises(ImageError, match=rf"{name}.txt: 1 occurs twice$"):
        open_dataset("cub", tmp_path)


@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat"])
def test_a_damaged_mat_file_is_told(tmp_path, name):
    layouts.flowers(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=rf"{name} (is damaged|has no variable)"):
        open_dataset("flowers", tmp_path)


def rewritten(path, change):
    """Variables of a .mat file, after a change."""
    content = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
    change(content)
    scipy.io.savemat(path, content)


def test_labels_of_flowers_that_start_at_0_are_refused_by_the_file(tmp_path):
    layouts.flowers(tmp_path)
    rewritten(tmp_path / "imagelabels.mat", lambda content: content.update(labels=[[3, 1, 0, 2]]))
    with pytest.raises(ImageError, match=r"imagelabels\.mat, labels: number 3 is 0; expected"):
        open_dataset("flowers", tmp_path)


def cells(*values):
    found = np.empty(len(values), object)
    found[:] = values
    return found


ODD = {  # a variable of a .mat file -> what is said of it
    "text": (["a", "b"], "is no list of numbers$"),
    "table": ([[1, 2], [3, 4]], "is no list of numbers$"),
    "ragged": (cells([1], [1, 2]), "is no list of numbers$"),
    "nan": ([1, np.nan], r"number 2 is nan; expected a whole number from 1 to 1,000,000$"),
    "infinite": ([np.inf], "number 1 is inf; "),
    "fraction": ([1, 1.5], r"number 2 is 1\.5; "),
    "huge": ([10**8], "number 1 is 100000000; "),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("dataset, file", [("flowers", "imagelabels"), ("dogs", "train_list")])
def test_labels_that_are_no_whole_numbers_are_told(tmp_path, dataset, file, name):
    getattr(layouts, dataset)(tmp_path)
    values, says = ODD[name]
    rewritten(tmp_path / f"{file}.mat", lambda content: content.update(labels=values))
    with pytest.raises(ImageError, match=rf"{file}\.mat, labels:? {says}"):
        open_dataset(dataset, tmp_path)


@pytest.mark.parametrize("field, odd", [("class", np.nan), ("test", [1, 0]), ("bbox_x1", "left")])
def test_annotations_of_cars_that_are_no_numbers_are_told(tmp_path, field, odd):
    layouts.cars_combined(tmp_path)

    def spoil(content):
        content["annotations"][0, 0][field] = odd

    rewritten(tmp_path / "cars_annos.mat", spoil)
    with pytest.raises(ImageError, match=rf"cars_annos\.mat, {field}(: number 1 is| is no list)"):
        open_dataset("cars", tmp_path)


@pytest.mark.parametrize("labels", [[1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 3, 2, 2, 2, 2]])
def test_a_label_of_dogs_that_contradicts_its_folder_is_refused(tmp_path, labels):
    layouts.dogs(tmp_path)
    rewritten(tmp_path / "train_list.mat", lambda content: content.update(labels=labels))
    with pytest.raises(ImageError, match=r"do not match one to one: \S+ has label [23]"):
        open_dataset("dogs", tmp_path)


@pytest.mark.parametrize("odd", [0, 10])
def test_an_image_of_flowers_that_there_is_not_is_named(tmp_path, odd):
    layouts.flowers(tmp_path)
    rewritten(tmp_path / "setid.mat", lambda content: content.update(valid=[[4, odd, 6]]))
    with pytest.raises(ImageError, match=rf"valid: number 2 is {odd}; expected .* 1 to 9$"):
        open_dataset("flowers", tmp_path)


@pytest.mark.parametrize("layout", ["combined", "devkit"])
def test_classes_of_cars_that_start_at_0_are_refused_by_the_file(tmp_path, layout):
    combined = layout == "combined"
    (layouts.cars_combined if combined else layouts.cars_devkit)(tmp_path)
    file = "cars_annos.mat" if combined else "devkit/cars_train_annos.mat"

    def lower(content):
        for one in content["annotations"][0]:
            one["class"] -= 1

    rewritten(tmp_path / file, lower)
    with pytest.raises(ImageError, match=rf"{file}, class: number 1 is 0; expected"):
        open_dataset("cars", tmp_path)


def test_annotations_of_cars_that_lack_a_field_or_all_images_are_told(tmp_path):
    layouts.cars_devkit(tmp_path)
    file = tmp_path / "devkit/cars_train_annos.mat"
    rewritten(file, lambda content: content.update(annotations=content["annotations"][:, :0]))
    with pytest.raises(ImageError, match=r"cars_train_annos\.mat lists no image"):
        open_dataset("cars", tmp_path)
    shutil.copy(tmp_path / "cars_test_annos_withlabels.mat", tmp_path / "cars_annos.mat")
    (tmp_path / "car_ims").mkdir()
    with pytest.raises(ImageError, match=r"annotations have no relative_im_path"):
        open_dataset("cars", tmp_path)


def test_extra_files_do_not_count(tmp_path):
    base = layouts.cub(tmp_path)
    before = open_dataset("cub", tmp_path).digest
    layouts.write_jpeg(base / "images" / "stray.jpg", 1)
    (base / "images" / "Thumbs.db").write_bytes(b"x")
    assert open_dataset("cub", tmp_path).digest == before


def test_the_case_of_folders_does_not_matter(tmp_path):
    layouts.dogs(tmp_path)
    (tmp_path / "Images").rename(tmp_path / "images")
    (tmp_path / "train_list.mat").rename(tmp_path / "Train_List.mat")
    found = open_dataset("dogs", tmp_path)
    assert found.train[0][0].mode == "RGB" and found.train.names[0].startswith("images/")


def test_grey_and_cmyk_images_become_rgb_and_a_broken_one_is_named(tmp_path):
    base = layouts.cub(tmp_path)
    paths = sorted(base.rglob("*.jpg"))
    Image.new("L", (9, 9), 77).save(paths[0])
    Image.new("CMYK", (9, 9)).save(paths[1])
    found = open_dataset("cub", tmp_path)
    for split in (found.train, found.val, found.test):
        assert all(split[place][0].mode == "RGB" for place in range(len(split)))
    name = found.train.names[0]
    (base / name).write_bytes((base / name).read_bytes()[:300])
    with pytest.raises(ImageError, match=name):
        found.train[0]


def test_a_place_without_the_dataset_says_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(ImageError, match=r"nowhere.*does not exist.*--download cub"):
        open_dataset("cub", tmp_path / "nowhere")
    with pytest.raises(ImageError, match=r"none of images.txt.*nabirds.tar.gz.*given as data"):
        open_dataset("nabirds", tmp_path)
    monkeypatch.setenv("BPT_DATA", str(tmp_path))
    layouts.cub(tmp_path / "cub")
    assert len(open_dataset("cub").classes) == 3


def test_birds_are_not_taken_for_the_other_birds(tmp_path):
    """Their lists have the same names."""
    places = {"cub": layouts.cub(tmp_path), "nabirds": layouts.nabirds(tmp_path)}
    for name, other in (("cub", "nabirds"), ("nabirds", "cub")):
        assert open_dataset(name, places[name]).train.names
        assert locate(dataset_info(name), places[other])[0] is None
        with pytest.raises(ImageError, match="holds another dataset"):
            open_dataset(name, places[other])


def test_another_dataset_with_more_classes_is_refused(tmp_path, monkeypatch):
    import dataclasses

    from bpt.dataset import birds, registry

    layouts.cub(tmp_path)
    small = dataclasses.replace(birds.CUB, classes=2)
    monkeypatch.setattr(registry, "DATASETS", (small,))
    with pytest.raises(ImageError, match=r"has 3 classes, and cub 2: is it another dataset"):
        open_dataset("cub", tmp_path)


def test_what_is_stated_agrees_with_table_6_of_the_paper():
    stated = {one.name: (one.classes, one.sizes) for one in known_datasets()}
    assert stated["cub"] == (200, (5394, 600, 5794))
    assert stated["nabirds"] == (555, (21536, 2393, 24633))
    assert stated["flowers"] == (102, (1020, 1020, 6149))
    assert stated["dogs"] == (120, (10800, 1200, 8580))
    assert stated["cars"] == (196, (7329, 815, 8041))
    assert all(
        one.licence and one.citation and one.source and one.files for one in known_datasets()[2:]
    )


def test_names_that_several_classes_have_get_their_numbers():
    names = ("crane", "crow", "crane")
    assert distinct_names(names) == ("crane (id 0)", "crow", "crane (id 2)")
    assert distinct_names(names, (4, 5, 6)) == ("crane (id 4)", "crow", "crane (id 6)")
