import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from burst.archive import _is_image, list_images, open_tar
from burst.errors import ImageError
from burst.preprocess import FORMATS

CONTENT = {
    "a/one.jpg": b"1" * 700,
    "a/b/two.PNG": b"2" * 9,
    "three.Jpeg": b"3",
    "a-b/four.tiff": b"4" * 5000,
}
OTHER = {"readme.txt": b"x", ".hidden.jpg": b"x", ".git/five.jpg": b"x", "__MACOSX/six.jpg": b"x"}


def in_folder(root, content):
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def in_zip(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def in_tar(path, content, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


KINDS = ["folder", "zip", "tar"]
COMPRESSED = ["tar.gz", "tar.bz2", "tar.xz"]


def packed(kind, folder, content):
    if kind == "folder":
        return in_folder(folder / "images", content)
    if kind == "zip":
        return in_zip(folder / "images.zip", content)
    return in_tar(folder / f"images.{kind}", content, f"w:{kind.partition('.')[2]}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_lists_the_same_names_and_sizes(kind, tmp_path):
    files = list_images(packed(kind, tmp_path, CONTENT | OTHER))
    assert files.sizes == {name: len(data) for name, data in CONTENT.items()}
    assert files.others == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_reads_the_bytes_asked_for_in_any_order(kind, tmp_path):
    files = list_images(packed(kind, tmp_path, CONTENT | OTHER))
    names = ["three.Jpeg", "a/one.jpg", "a/b/two.PNG"]
    with files.reader() as read:
        for name in [*names, "a/one.jpg"]:
            assert read(name) == CONTENT[name]


def test_files_of_every_format_that_is_read_are_images():
    kinds = {kind for suffix, kind in Image.registered_extensions().items() if _is_image(suffix)}
    assert kinds == set(FORMATS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_without_an_image_says_what_was_looked_for(kind, tmp_path):
    with pytest.raises(ImageError, match=r"no image.*\.jpg .*\.webp.*2 other files"):
        list_images(packed(kind, tmp_path, {"a.txt": b"x", "b/c.csv": b"y", ".d.jpg": b"z"}))


@pytest.mark.parametrize("name", ["images.{}", "images.tar", "images"])
@pytest.mark.parametrize("kind", COMPRESSED)
def test_a_compressed_tar_is_refused_with_what_to_do_whatever_its_name(kind, name, tmp_path):
    path = packed(kind, tmp_path, CONTENT).rename(tmp_path / name.format(kind))
    for look in (list_images, open_tar):
        with pytest.raises(
            ImageError, match=r"unpack it and .*folder, or .*zip or an unc"
        ) as caught:
            look(path)
        assert str(caught.value).startswith(f"{path} is a compressed tar")
        assert "\n" not in str(caught.value)


def test_an_uncompressed_tar_is_read_whatever_its_name(tmp_path):
    path = packed("tar", tmp_path, CONTENT).rename(tmp_path / "images.tar.gz")
    assert list_images(path).sizes.keys() == CONTENT.keys()


def test_dot_slash_in_a_tar_is_no_hidden_folder(tmp_path):
    path = in_tar(tmp_path / "x.tar", {"./a/one.jpg": b"1"})
    assert list_images(path).sizes == {"a/one.jpg": 1}


def test_a_hard_link_in_a_tar_reads_as_its_target(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        first, link = tarfile.TarInfo("a.jpg"), tarfile.TarInfo("b.jpg")
        first.size, link.type, link.linkname = 3, tarfile.LNKTYPE, "a.jpg"
        archive.addfile(first, io.BytesIO(b"abc"))
        archive.addfile(link)
    files = list_images(path)
    with files.reader() as read:
        assert read("b.jpg") == read("a.jpg") == b"abc"


def test_folders_behind_links_are_searched_but_not_in_circles(tmp_path):
    root = in_folder(tmp_path / "root", {"a/one.jpg": b"1"})
    in_folder(tmp_path / "elsewhere", {"two.jpg": b"22"})
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    assert list_images(root).sizes == {"a/one.jpg": 1, "b/two.jpg": 2}


def test_a_link_that_leads_nowhere_is_listed_so_that_it_is_missed(tmp_path):
    root = in_folder(tmp_path / "root", {"one.jpg": b"1"})
    (root / "two.jpg").symlink_to(tmp_path / "gone")
    files = list_images(root)
    assert set(files.sizes) == {"one.jpg", "two.jpg"}
    with files.reader() as read, pytest.raises(OSError, match="No such file"):
        read("two.jpg")


def test_one_image_file_is_a_source(tmp_path):
    in_folder(tmp_path, {"one.jpg": b"1", "two.jpg": b"2"})
    files = list_images(tmp_path / "one.jpg")
    assert files.sizes == {"one.jpg": 1}
    with files.reader() as read:
        assert read("one.jpg") == b"1"


def whole(kind, folder):
    return packed(kind, folder, CONTENT).read_bytes()


def cut_header(folder):
    """A tar that stops in the middle of its second header."""
    return whole("tar", folder)[: 512 + 1024 + 100]


DAMAGED = {
    "cut.zip": lambda folder: whole("zip", folder)[:-30],
    "text.zip": lambda folder: b"not a zip",
    "cut.tar": lambda folder: whole("tar", folder)[:1000],
    "header.tar": cut_header,
    "cut.tar.gz": lambda folder: whole("tar.gz", folder)[:-40],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_told_in_one_line(name, tmp_path):
    (tmp_path / "x").mkdir()
    path = tmp_path / name
    path.write_bytes(DAMAGED[name](tmp_path / "x"))
    with pytest.raises(ImageError, match=r"damaged|not a complete|compressed tar") as caught:
        list_images(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_encrypted_zip_is_told(tmp_path):
    path = in_zip(tmp_path / "x.zip", {"a.jpg": b"1"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"encrypted \('a.jpg'\)"):
        list_images(path)


@pytest.mark.parametrize("name", ["notes.txt", "weights.pth", "noextension", "lone.gz"])
def test_a_file_of_another_kind_is_told(name, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(b"hello") if name == "lone.gz" else b"hello")
    with pytest.raises(ImageError, match="neither an image nor an archive; expected a folder"):
        list_images(tmp_path / name)


def test_what_does_not_exist_is_told(tmp_path):
    with pytest.raises(ImageError, match="does not exist; expected a folder"):
        list_images(tmp_path / "gone.zip")


def test_a_device_is_neither_a_folder_nor_a_file():
    with pytest.raises(ImageError, match="neither a folder nor a file"):
        list_images(Path("/dev/null"))
