"""Where a set in COCO's format may lie, and what is said of one that is not all there."""

import shutil
import tarfile
import unicodedata

import pytest
from coco_sets import content, write_images, write_json, zipped

from bpt.dataset import open_coco
from burst import BurstError, ImageError

TRAIN, VAL = content(count=5), content(first=101, count=3)


def official(root, images=""):
    for made, kind in ((TRAIN, "train2017"), (VAL, "val2017")):
        write_json(root / f"annotations/instances_{kind}.json", made)
        write_images(root / images / kind, made)
    (root / "annotations/captions_train2017.json").write_text("{}")
    return root


def packed(root):
    """As COCO publishes it: nothing is unpacked."""
    unpacked = official(root.parent / "unpacked")
    root.mkdir()
    for kind in ("train2017", "val2017"):
        zipped(unpacked / kind, root / f"{kind}.zip", above=f"{kind}/")
    zipped(unpacked / "annotations", root / "annotations_trainval2017.zip", above="annotations/")
    return root


def tars(root):
    official(root)
    for kind in ("train2017", "val2017"):
        with tarfile.open(root / f"{kind}.tar", "w") as tar:
            tar.add(root / kind, kind)
        shutil.rmtree(root / kind)
    return root


def in_images(root):
    return official(root, "images")


OFFICIAL = (official, packed, tars, in_images)


def roboflow(root):
    for made, kind in ((TRAIN, "train"), (VAL, "valid"), (content(first=201), "test")):
        write_json(root / kind / "_annotations.coco.json", made)
        write_images(root / kind, made)
    return root


def datumaro(root):
    for made, kind in ((TRAIN, "train"), (VAL, "val")):
        write_json(root / f"annotations/instances_{kind}.json", made)
        write_images(root / "images" / kind, made)
    return root


def one_image_folder(root):
    for made, kind in ((TRAIN, "Train"), (VAL, "my_validation")):
        write_json(root / f"{kind}.json", made)
        write_images(root / "images", made)
    (root / "other.json").write_text("{}")
    return root


def with_folders(root):
    """File names that tell folders, with either slash, and pictures of the same names in them."""
    for made, kind in ((content(count=5), "train"), (content(count=3), "val")):
        write_images(root / "pictures" / kind, made)
        for number, one in enumerate(made["images"]):
            start = f"pictures\\{kind}\\" if number % 2 else f"./pictures/{kind}/"
            one["file_name"] = start + one["file_name"]
        write_json(root / f"annotations/{kind}.json", made)
    return root


def elsewhere(root):
    """File names of another machine: only their base names are found."""
    for made, kind in ((content(count=5), "train"), (content(first=101, count=3), "val")):
        write_images(root / "all" / "of" / "them", made)
        for one in made["images"]:
            one["file_name"] = "/home/me/" + one["file_name"]
        write_json(root / f"{kind}.json", made)
    return root


def in_the_other_form_of_unicode(root):
    """As macOS has unpacked it."""
    for made, kind in ((content(count=5), "train"), (content(first=101, count=3), "val")):
        for one in made["images"]:
            one["file_name"] = unicodedata.normalize("NFD", "Bär " + one["file_name"])
        write_images(root / kind, made)
        for one in made["images"]:
            one["file_name"] = unicodedata.normalize("NFC", one["file_name"])
        write_json(root / f"{kind}.json", made)
    return root


def own_zip(root):
    return zipped(datumaro(root.parent / "folder"), root.with_suffix(".zip"), above="my_set/")


def own_tar(root):
    roboflow(root)
    return tarred(root, "w")


def tarred(root, mode):
    with tarfile.open(root.with_suffix(".tar"), mode) as tar:
        tar.add(root, ".")
    return root.with_suffix(".tar")


OWN = (
    roboflow,
    datumaro,
    one_image_folder,
    with_folders,
    elsewhere,
    in_the_other_form_of_unicode,
    own_zip,
    own_tar,
)


def check(found):
    assert (len(found.train), len(found.val)) == (5, 3)
    assert found.categories.ids == (3, 90) and found.categories.names == ("square", "dot")
    for split in (found.train, found.val):
        for index, image_id in enumerate(split.ids):
            image = split.image(index)
            assert image.size == (30, 20) and image.getpixel((0, 0)) == (image_id % 256, 60, 200)


@pytest.mark.parametrize("layout", OFFICIAL)
def test_cocos_own_files_are_found_packed_or_not(layout, tmp_path):
    place = layout(tmp_path / "data" / "coco")
    found = open_coco("coco", place)
    check(found)
    above = open_coco("coco", tmp_path / "data")
    own = open_coco(f"coco:{place}")
    assert above.source == found.source == own.source == str(place)
    assert above.digest == found.digest == own.digest
    assert found.name == "coco" and own.name == f"coco:{place}"


@pytest.mark.parametrize("layout", OWN)
def test_a_set_is_found_as_tools_write_it(layout, tmp_path):
    found = open_coco(f"coco:{layout(tmp_path / 'set')}")
    check(found)
    assert not any("held out" in note for note in found.notes)


def cvat(root):
    write_json(root / "annotations/instances_default.json", TRAIN)
    write_images(root / "images" / "default", TRAIN)
    return root


def label_studio(root):
    made = content(count=5)
    for one in made["images"]:
        one["file_name"] = "images/" + one["file_name"]
    write_json(root / "result.json", made)
    write_images(root, made)
    (root / "notes.json").write_text("{}")
    return root


def only_one(root):
    write_json(root / "cells.json", TRAIN)
    write_images(root / "images", TRAIN)
    return root


def only_train_and_test(root):
    for made, kind in ((TRAIN, "train"), (content(first=201), "test")):
        write_json(root / kind / "_annotations.coco.json", made)
        write_images(root / kind, made)
    return root


def zip_beside(root):
    zipped(cvat(root) / "images" / "default", root / "images.zip")
    shutil.rmtree(root / "images")
    return root


@pytest.mark.parametrize("layout", [cvat, label_studio, only_one, only_train_and_test, zip_beside])
def test_of_one_json_a_tenth_is_held_out_and_said(layout, tmp_path):
    found = open_coco(f"coco:{layout(tmp_path / 'set')}")
    assert (len(found.train), len(found.val)) == (4, 1)
    assert sorted([*found.train.ids, *found.val.ids]) == [1, 2, 3, 4, 5]
    assert "val: 1 of 5 images, held out as there is no JSON for it" in found.notes
    assert found.val.image(0).getpixel((0, 0)) == (found.val.ids[0] % 256, 60, 200)


def test_what_is_held_out_does_not_depend_on_the_order_of_the_file(tmp_path):
    made = content(count=31)
    write_images(tmp_path / "images", made)
    write_json(tmp_path / "set.json", made)
    first = open_coco(f"coco:{tmp_path}")
    write_json(tmp_path / "set.json", made | {"images": made["images"][::-1]})
    again = open_coco(f"coco:{tmp_path}")
    assert len(first.val) == 4 and first.val.ids.tolist() == again.val.ids.tolist()
    assert first.digest == again.digest


def test_a_link_in_a_circle_is_followed_once(tmp_path):
    cvat(tmp_path / "set")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    assert len(open_coco(f"coco:{tmp_path / 'set'}").train) == 4


def lacking(root):
    datumaro(root)
    for path in sorted((root / "images" / "train").iterdir())[1:3]:
        path.unlink()


def two_of_a_name(root):
    write_json(root / "set.json", TRAIN)
    write_images(root / "a", TRAIN)
    write_images(root / "b", TRAIN)


def other_categories(root):
    datumaro(root)
    made = content(first=101, count=3)
    made["categories"][0]["name"] = "point"
    write_json(root / "annotations/instances_val.json", made)


def no_images(root):
    write_json(root / "train.json", TRAIN)
    write_json(root / "val.json", VAL)


def three_for_training(root):
    datumaro(root)
    for name in ("train_a", "train_b"):
        write_json(root / f"annotations/instances_{name}.json", TRAIN)


def many(root):
    for name in "abc":
        write_json(root / f"{name}.json", TRAIN)


def only_val(root):
    write_json(root / "annotations/instances_val.json", VAL)


def one_image(root):
    made = content(count=2)
    made["images"].pop()
    made["annotations"] = made["annotations"][:1]
    write_images(root, write_json(root / "set.json", made))


def only_crowds(root):
    made = content(count=5)
    for one in made["annotations"]:
        one["iscrowd"] = 1
    write_images(root, write_json(root / "set.json", made))


def is_empty(root):
    root.mkdir()


def a_text(root):
    root.write_text("no archive")


@pytest.mark.parametrize(
    "prepare, says",
    [
        (lacking, r"lacks 2 of 5 images of .*instances_train.json, such as '000002.png'"),
        (
            two_of_a_name,
            r"'000001.png' may be a/000001.png or b/000001.png .* must tell the folder",
        ),
        (other_categories, r"instances_train.json has category 'dot' with id 90, and .*_val.json"),
        (no_images, "holds no image"),
        (three_for_training, r"instances_train.json, .*not one JSON for training and one for val"),
        (many, r"has a.json, b.json, c.json, which are not one JSON for training"),
        (only_val, "not one JSON for training and one for validation"),
        (one_image, "has 1 image; expected two"),
        (only_crowds, "no object to learn"),
        (is_empty, "has no JSON of annotations; expected annotations/instances_"),
        (a_text, "is no folder, zip or tar"),
        (lambda root: None, "does not exist"),
    ],
)
def test_what_is_absent_or_ambiguous_is_one_line(prepare, says, tmp_path):
    prepare(tmp_path / "set")
    with pytest.raises(ImageError, match=says) as caught:
        open_coco(f"coco:{tmp_path / 'set'}")
    assert "\n" not in str(caught.value)


def test_a_set_in_a_compressed_tar_is_refused_with_what_to_do(tmp_path):
    place = tarred(roboflow(tmp_path / "set"), "w:gz")
    with pytest.raises(ImageError, match=r"set\.tar is a compressed tar, .* unpack it"):
        open_coco(f"coco:{place}")


def test_cocos_own_files_that_are_missing_are_told_with_where_to_get_them(tmp_path):
    with pytest.raises(ImageError, match=r"get it from https://cocodataset.org"):
        open_coco("coco", tmp_path)
    official(tmp_path)
    shutil.rmtree(tmp_path / "val2017")
    with pytest.raises(ImageError, match=r"no val2017/ and no val2017.zip or .tar"):
        open_coco("coco", tmp_path)
    (tmp_path / "annotations/instances_val2017.json").unlink()
    with pytest.raises(ImageError, match=r"neither annotations/instances_val2017.json nor"):
        open_coco("coco", tmp_path)


@pytest.mark.parametrize(
    "name, data, says",
    [
        ("cocoa", None, "did you mean coco"),
        ("cub", None, "unknown detection dataset"),
        ("coco:x", "y", "give its place once"),
        ("coco:", None, "needs a place"),
    ],
)
def test_a_wrong_name_or_two_places_are_one_line(name, data, says):
    with pytest.raises(BurstError, match=says):
        open_coco(name, data)
