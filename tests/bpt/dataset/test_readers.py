"""What every reader must survive: missing, extra, broken and odd images, other cases of names."""

import shutil

import layouts
import numpy as np
import pytest
from colours import write_images
from PIL import Image

from bpt import open_dataset
from burst import ImageError

WRITERS = {
    "cub": layouts.cub,
    "nabirds": layouts.nabirds,
    "flowers": layouts.flowers,
    "dogs": layouts.dogs,
    "cars": lambda root: (layouts.cars_devkit(root), root)[1],
    "imagenet": layouts.imagenet,
    "folder": lambda root: write_images(root, {"train": 5, "val": 2, "test": 2}),
}
LISTED = [name for name in WRITERS if name not in ("imagenet", "folder")]  # others have no lists


@pytest.fixture(params=WRITERS)
def name(request):
    return request.param


@pytest.fixture
def root(name, tmp_path):
    return WRITERS[name](tmp_path / "data")


def images(root):
    suffixes = {".jpg", ".jpeg", ".png"}
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes)


def splits(found):
    return [split for split in (found.train, found.val, found.test) if split]


def test_every_image_is_in_one_split_with_a_label_of_its_class(name, root):
    found = open_dataset(name, root)
    names = [one for split in splits(found) for one in split.names]
    assert len(set(names)) == len(names) == len(images(root))
    for split in splits(found):
        assert split.labels.dtype == np.int64
        assert split.labels.min() >= 0 and split.labels.max() < len(found.classes)
        image, _ = split[0]
        assert image.mode == "RGB"


def test_opening_twice_gives_the_same(name, root):
    assert open_dataset(name, root).digest == open_dataset(name, root).digest


@pytest.mark.parametrize("listed", LISTED)
def test_an_image_that_a_list_names_and_is_not_there_is_told(listed, tmp_path):
    root = WRITERS[listed](tmp_path)
    gone = images(root)[2]
    gone.unlink()
    with pytest.raises(ImageError, match=rf"1 of \d+ listed images are missing.*{gone.name}"):
        open_dataset(listed, root)


def test_files_that_are_no_images_do_not_count(name, root):
    before = open_dataset(name, root).digest
    beside = images(root)[0].parent
    (beside / "Thumbs.db").write_bytes(b"x")
    (beside / ".hidden.jpg").write_bytes(b"x")
    (root / "README").write_text("read me")
    assert open_dataset(name, root).digest == before


def test_a_broken_image_is_named_when_it_is_read(name, root):
    found = open_dataset(name, root)
    broken = found.train.names[0]
    path = root / broken
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=path.name):
        found.train[0]
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=f"{path.name}.*empty"):
        found.train[0]


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_every_kind_of_pixel_becomes_rgb(name, root, mode):
    found = open_dataset(name, root)
    kind = "PNG" if mode in ("RGBA", "P") else "JPEG"
    Image.new(mode, (9, 7)).save(root / found.test.names[0], kind)
    image, _ = found.test[0]
    assert image.mode == "RGB" and image.size == (9, 7)


@pytest.mark.parametrize("listed", LISTED)
def test_the_case_of_an_image_folder_does_not_matter(listed, tmp_path):
    root = WRITERS[listed](tmp_path)
    before = open_dataset(listed, root)
    first = before.train[0][0].tobytes()
    folder = {"flowers": "jpg", "dogs": "Images", "cars": "cars_train"}.get(listed, "images")
    (root / folder).rename(root / folder.swapcase())
    after = open_dataset(listed, root)
    assert list(after.train.labels) == list(before.train.labels)
    assert after.train[0][0].tobytes() == first


@pytest.mark.parametrize("name", ["cub", "nabirds"], indirect=True)
def test_lists_saved_on_windows_are_the_same(name, root):
    before = open_dataset(name, root).digest
    for file in root.rglob("*.txt"):
        file.write_bytes(file.read_text().replace("\n", "\r\n").encode("utf-8-sig"))
    assert open_dataset(name, root).digest == before


def test_an_empty_folder_is_told(name, tmp_path):
    with pytest.raises(ImageError):
        open_dataset(name, tmp_path)


def test_a_folder_without_its_images_is_told(name, root):
    for path in images(root):
        path.unlink()
    with pytest.raises(ImageError):
        open_dataset(name, root)


def test_a_dataset_is_found_from_the_folder_above(name, root, tmp_path):
    if name == "folder":
        pytest.skip("one's own images have no folder's name to look for")
    above = tmp_path / "above"
    shutil.copytree(root, above / name)
    assert open_dataset(name, above).train.names
