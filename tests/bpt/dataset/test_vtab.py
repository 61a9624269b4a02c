"""VTAB-1k as NOAH's script writes it and RepAdapter hands it on."""

import shutil
import zipfile

import numpy as np
import pytest
from own_photos import vtab_task

from bpt import dataset_info, known_datasets, open_dataset, recipe_for
from bpt.dataset import check_dataset, locate
from bpt.dataset.vtab import TASKS
from burst import BurstError, ImageError, UnknownName


def test_the_tasks_are_the_nineteen_in_three_groups():
    groups = [task.group for task in TASKS.values()]
    assert [groups.count(one) for one in ("natural", "specialised", "structured")] == [7, 4, 8]
    # Classes as JieShibo/PETL-ViT and others count them, in the order of the papers' tables.
    counts = (102, 100, 47, 102, 37, 10, 397, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9)
    assert tuple(task.classes for task in TASKS.values()) == counts
    for name in TASKS:
        info = dataset_info(f"vtab:{name}")
        assert info.name == f"vtab:{name}" and info.licence and info.sizes[:2] == (800, 200)
    assert [one.name for one in known_datasets()].count("vtab") == 1


@pytest.fixture(scope="module")
def vtab(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    vtab_task(root / "vtab-1k", "eurosat", classes=10, test=10)
    vtab_task(root / "vtab-1k", "kitti", classes=4)
    return root


@pytest.mark.parametrize("below", ["", "vtab-1k", "vtab-1k/eurosat"])
def test_a_task_is_found_in_its_folder_and_above(vtab, below):
    found = open_dataset("vtab:eurosat", vtab / below)
    assert found.name == "vtab:eurosat"
    assert found.classes == tuple("0123456789")  # the lists to train on have two of them
    assert found.train.names == tuple(f"images/train800/{n:06d}.jpg" for n in range(8))
    assert found.val.names == tuple(f"images/val200/{n:06d}.jpg" for n in range(4))
    assert list(found.test.labels) == list(range(10))
    assert found.squash and found.about["group"] == "specialised"


def test_the_version_is_told_by_how_pictures_are_stored(vtab, tmp_path):
    told = []
    lossy = open_dataset("vtab:kitti", vtab, say=told.append)
    assert lossy.about["version"].startswith("pictures, JPEG") and "JPEG" in told[0]
    vtab_task(tmp_path, "kitti", classes=4, suffix="png")
    assert (
        open_dataset("vtab:kitti", tmp_path)
        .about["version"]
        .startswith("pictures without loss (the pixels of the tensors")
    )


def test_the_archive_is_unpacked_once_for_all_tasks(vtab, tmp_path):
    with zipfile.ZipFile(tmp_path / "vtab-1k.zip", "w") as archive:
        for path in sorted((vtab / "vtab-1k").rglob("*")):
            archive.write(path, path.relative_to(vtab))
    for name in ("eurosat", "kitti"):
        assert (
            open_dataset(f"vtab:{name}", tmp_path).digest
            == open_dataset(f"vtab:{name}", vtab).digest
        )
    assert locate(dataset_info("vtab:kitti"), tmp_path)[0] == tmp_path / "vtab-1k" / "kitti"


def test_an_archive_of_one_task_is_read_too(vtab, tmp_path):
    shutil.make_archive(str(tmp_path / "kitti"), "zip", vtab / "vtab-1k", "kitti")
    assert len(open_dataset("vtab:kitti", tmp_path).test) == 6


def test_where_only_the_thousand_are_listed_a_fifth_is_held_out(tmp_path):
    base = vtab_task(tmp_path, "dtd", classes=47)
    for name in ("train800.txt", "val200.txt"):
        (base / name).unlink()
    told = []
    found = open_dataset("vtab:dtd", tmp_path, say=told.append)
    assert (len(found.train), len(found.val)) == (9, 3)
    assert "has no train800.txt and val200.txt" in told[0]


@pytest.mark.parametrize(
    "line, says",
    [
        ("images/test/000000.jpg 4", r"test.txt, line 7: class 4, but KITTI.* has 4, from 0"),
        ("images/test/000000.jpg", r"test.txt, line 7: .* is no path and class number"),
        ("images/test/000000.jpg -1", r"is no path and class number"),
        ("images/test/000099.jpg 1", r"1 of 7 listed images are missing"),
    ],
)
def test_a_wrong_list_is_named_by_its_line(tmp_path, line, says):
    base = vtab_task(tmp_path, "kitti", classes=4)
    with (base / "test.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ImageError, match=says):
        open_dataset("vtab:kitti", tmp_path)


@pytest.mark.parametrize("change", [lambda text: f"\ufeff{text}", lambda text: f"./{text}"])
def test_a_mark_of_utf_8_and_a_path_from_here_change_nothing(vtab, tmp_path, change):
    base = shutil.copytree(vtab / "vtab-1k" / "kitti", tmp_path / "kitti")
    for file in base.glob("*.txt"):
        file.write_text(change(file.read_text()))
    assert open_dataset("vtab:kitti", tmp_path).digest == open_dataset("vtab:kitti", vtab).digest


def test_what_is_no_task_or_another_one_is_told(vtab):
    with pytest.raises(UnknownName, match="did you mean cifar"):
        dataset_info("vtab:cifar100")
    with pytest.raises(BurstError, match="19 datasets; say which: .*vtab:svhn"):
        open_dataset("vtab", vtab)
    with pytest.raises(ImageError, match="holds vtab:kitti, not vtab:dmlab"):
        open_dataset("vtab:dmlab", vtab / "vtab-1k" / "kitti")
    with pytest.raises(ImageError, match=r"vtab:dmlab: none of .*XiN0919/VTAB-1k"):
        open_dataset("vtab:dmlab", vtab)


def test_a_check_compares_with_the_published_sizes(vtab):
    found = check_dataset(dataset_info("vtab:kitti"), open_dataset("vtab:kitti", vtab))
    assert found.mismatches == (
        *("8 train images instead of 800", "4 val images instead of 200"),
        "6 test images instead of 711",
    )
    assert not found.unreadable and found.notes[0].startswith("vtab:kitti: pictures, JPEG")


def test_images_are_resized_whole_and_not_augmented(vtab):
    """KITTI's pictures are three times as wide as high; a centre crop would lose most of them."""
    from bpt.configuration import backbone_for
    from bpt.transforms import eval_transform, train_transform

    recipe = recipe_for("vtab:kitti", model="mae_tiny", data=str(vtab))
    assert recipe.augmentation == "none"
    assert recipe.origins["augmentation"] == "the protocol of vtab:kitti"
    found = open_dataset("vtab:kitti", vtab)
    backbone = backbone_for(recipe, found, "cpu")
    image = found.train[0][0]
    side = backbone.image_size[0]
    mean, std = (np.array(one)[:, None, None] for one in (backbone.mean, backbone.std))
    whole = np.asarray(image.resize((side, side), 3)).transpose(2, 0, 1) / 255
    for transform in (eval_transform(backbone), train_transform(found, backbone, "none")):
        shown = transform(image).numpy() * std + mean
        assert np.abs(shown - whole).max() < 3 / 255
