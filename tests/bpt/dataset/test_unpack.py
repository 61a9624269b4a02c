"""Archives become folders whole or not at all."""

import io
import os
import socket
import subprocess
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

import bpt.dataset.unpack as unpacking
from bpt.dataset.unpack import unpack, unpack_nested
from burst import ImageError, OutputError

FILES = {"top/a.txt": b"one", "top/inner/b.txt": b"two" * 1000, "beside.txt": b"three"}


def write_tar(path, files=None, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in (files or FILES).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def only(folder, *names):
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_kind_of_tar_is_unpacked(tmp_path, mode):
    archive = write_tar(tmp_path / "x.tar", mode=mode)
    assert tree(unpack(archive, tmp_path / "out")) == FILES
    assert only(tmp_path, "x.tar", "out")


def test_a_zip_is_unpacked_and_nothing_gets_out_of_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("../../evil.txt", "x")
        file.writestr("a.txt", "one")
    unpack(tmp_path / "x.zip", tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("../evil.txt")) and (tmp_path / "deep/out/a.txt").exists()
    assert only(tmp_path / "deep", "out")


def test_one_folder_of_an_archive_becomes_the_target(tmp_path):
    archive = write_tar(tmp_path / "x.tgz")
    unpack(archive, tmp_path / "top", top="top")
    assert tree(tmp_path / "top") == {"a.txt": b"one", "inner/b.txt": FILES["top/inner/b.txt"]}
    with pytest.raises(ImageError, match="holds no folder bottom"):
        unpack(archive, tmp_path / "other", top="bottom")
    assert only(tmp_path, "x.tgz", "top")


def test_what_is_there_is_left_as_it_is(tmp_path):
    archive = write_tar(tmp_path / "x.tgz")
    (tmp_path / "out").mkdir()
    assert tree(unpack(archive, tmp_path / "out")) == {}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_an_archive_cut_short_leaves_nothing(tmp_path, mode, share):
    files = {f"{i}.bin": os.urandom(3000) for i in range(20)}
    archive = write_tar(tmp_path / "x.tar", files, mode)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * 60_000)])
    with pytest.raises(ImageError, match=r"x\.tar is damaged, download it again"):
        unpack(archive, tmp_path / "out")
    assert only(tmp_path, "x.tar")


def test_a_file_that_is_no_archive_is_told(tmp_path):
    (tmp_path / "x.tgz").write_bytes(b"<html>not found</html>")
    with pytest.raises(ImageError, match="is damaged"):
        unpack(tmp_path / "x.tgz", tmp_path / "out")


@pytest.mark.parametrize("kind", ["name", "link"])
def test_a_tar_that_leads_out_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member = tarfile.TarInfo("../evil.txt" if kind == "name" else "evil")
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "../../etc"
        tar.addfile(member, io.BytesIO(b""))
    with pytest.raises(ImageError, match="is not safe to unpack"):
        unpack(tmp_path / "x.tar", tmp_path / "deep" / "out")
    assert not (tmp_path / "evil.txt").exists() and only(tmp_path / "deep")


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    archive = write_tar(tmp_path / "x.tgz")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot unpack"):
        unpack(archive, tmp_path / "file" / "out")


def test_the_leftovers_of_a_killed_process_go(tmp_path):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    (tmp_path / f".part-{socket.gethostname()}@{process.pid}" / "a").mkdir(parents=True)
    unpack(write_tar(tmp_path / "x.tgz"), tmp_path / "out")
    assert only(tmp_path, "x.tgz", "out") and tree(tmp_path / "out") == FILES


def test_of_two_at_once_one_unpacks_and_the_other_waits(tmp_path, monkeypatch):
    archive, waits, said, seen = write_tar(tmp_path / "x.tgz"), threading.Event(), [], []

    def check_end(tar):
        seen.append(tar)
        assert waits.wait(20)

    def say(line):
        said.append(line)
        waits.set()

    monkeypatch.setattr(unpacking, "check_end", check_end)
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(unpack, archive, tmp_path / "out", say=say) for _ in range(2)]
    assert [tree(one.result()) for one in both] == [FILES, FILES]
    assert len(seen) == 1
    assert said == [f"waiting for another process that unpacks {tmp_path / 'out'}"]
    assert only(tmp_path, "x.tgz", "out")


def test_a_tar_of_tars_becomes_a_folder_for_each(tmp_path):
    inner = {"n01440764": {"1.JPEG": b"a", "2.JPEG": b"b"}, "n01443537": {"3.JPEG": b"c"}}
    whole = {
        f"{name}.tar": write_tar(tmp_path / "inner.tar", files, "w").read_bytes()
        for name, files in inner.items()
    }
    (tmp_path / "inner.tar").unlink()
    archive = write_tar(tmp_path / "train.tar", whole, "w")
    assert tree(unpack_nested(archive, tmp_path / "train")) == {
        f"{name}/{file}": content
        for name, files in inner.items()
        for file, content in files.items()
    }
    archive.write_bytes(archive.read_bytes()[:15_000])
    with pytest.raises(ImageError, match="is damaged"):
        unpack_nested(archive, tmp_path / "again")
    assert only(tmp_path, "train.tar", "train")
