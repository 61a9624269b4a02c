import errno
import hashlib
import json
import os
import subprocess

import numpy as np
import pandas as pd
import pytest

from burst import files
from burst.errors import BurstError, OutputError
from burst.files import (
    at_home,
    cache_folder,
    check_name,
    make_folder,
    make_folder_atomically,
    remove_leftovers,
    save_json,
    save_table,
    sha256_of,
    write_atomically,
)


def test_the_file_appears_whole_with_its_folders(tmp_path):
    target = tmp_path / "new" / "deep" / "table.csv"
    with write_atomically(target) as path:
        assert path.parent == target.parent
        assert path.suffix == ".csv"
        path.write_text("a,b\n")
        assert not target.exists()
    assert target.read_text() == "a,b\n"
    assert os.listdir(target.parent) == ["table.csv"]


def test_the_file_is_as_readable_as_any_other(tmp_path):
    with write_atomically(tmp_path / "one") as path:
        path.write_text("1")
    (tmp_path / "two").write_text("2")
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "two").stat().st_mode


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path, there):
    kept = tmp_path / "elsewhere" / "kept.csv"
    if there:
        kept.parent.mkdir()
        kept.write_text("old")
    (link := tmp_path / "table.csv").symlink_to("elsewhere/kept.csv")
    with write_atomically(link) as path:
        path.write_text("new")
    assert link.is_symlink() and not kept.is_symlink() and kept.read_text() == "new"
    assert os.listdir(kept.parent) == ["kept.csv"]


@pytest.mark.parametrize("stem", ["w" * 252, "漢" * 84])
def test_a_name_as_long_as_the_file_system_takes_can_be_written(tmp_path, stem):
    target = tmp_path / f"{stem}.pt"
    check_name(target)
    with write_atomically(target) as path:
        path.write_text("1")
    assert target.read_text() == "1"
    with pytest.raises(OutputError, match="cannot write .*: File name too long"):
        check_name(tmp_path / f"{stem}w.pt")


def test_a_table_is_written_without_its_index(tmp_path):
    path = save_table(tmp_path / "new" / "one.csv", pd.DataFrame({"a": [1, 2], "b": [0.5, np.nan]}))
    assert path.read_text() == "a,b\n1,0.5\n2,\n"


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_json_cannot_hold_is_refused_and_nothing_replaced(tmp_path, number):
    path = save_json(tmp_path / "new" / "one.json", {"a": [None, 0.5]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_json(path, {"a": number})
    assert json.loads(path.read_text()) == {"a": [None, 0.5]}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_keeps_what_was_there(tmp_path, error):
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(error), write_atomically(target) as path:
        path.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_full_disk_is_one_line_and_keeps_what_was_there(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")
    with (
        pytest.raises(OutputError, match=r"cannot write .*table.csv: No space left on device"),
        write_atomically(target),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_the_disk_really_full_is_told(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(OutputError, match="No space left"),
        write_atomically(tmp_path / "table.csv"),
        open("/dev/full", "w") as full,
    ):
        full.write("x")


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "No such file", "other"), ConnectionError("off")]
)
def test_an_error_about_another_file_comes_through_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as raised, write_atomically(tmp_path / "table.csv"):
        raise error
    assert raised.value is error
    assert os.listdir(tmp_path) == []


def test_an_error_about_the_temporary_file_is_told_of_the_file_that_was_wanted(tmp_path):
    with (
        pytest.raises(OutputError, match=r"cannot write .*/table\.csv: Is a directory"),
        write_atomically(tmp_path / "table.csv") as path,
    ):
        path.unlink()
        path.mkdir()
        try:
            path.write_text("x")
        finally:
            path.rmdir()
    assert os.listdir(tmp_path) == []


def test_no_room_for_a_copy_is_told_and_no_room_elsewhere_is_not(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "from", None, "elsewhere")
    with pytest.raises(OSError) as raised, write_atomically(tmp_path / "table.csv"):
        raise full
    assert raised.value is full
    with pytest.raises(OutputError, match="No space"), write_atomically(tmp_path / "t.csv") as path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "from", None, str(path))


def test_a_temporary_file_that_went_away_is_told(tmp_path):
    with (
        pytest.raises(OutputError, match="cannot write .*table.csv: No such file"),
        write_atomically(tmp_path / "table.csv") as path,
    ):
        path.unlink()


def test_a_file_where_a_folder_should_be_is_told(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot write into .*taken"):
        make_folder(tmp_path / "taken")
    with (
        pytest.raises(OutputError, match="cannot write .*taken"),
        write_atomically(tmp_path / "taken" / "table.csv"),
    ):
        pass


def test_a_folder_is_made_and_left_empty(tmp_path):
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []


def test_the_hash_is_that_of_the_bytes_of_one_file_after_the_other(tmp_path):
    first, second = tmp_path / "x", tmp_path / "y"
    first.write_bytes(b"burst")
    second.write_bytes(b"iness")
    assert sha256_of(first) == hashlib.sha256(b"burst").hexdigest()
    assert sha256_of(first, second) == hashlib.sha256(b"burstiness").hexdigest()


def test_without_a_home_a_cache_says_which_variables_name_one(no_home):
    with pytest.raises(OutputError, match="^no home directory .* set X_CACHE or XDG_CACHE_HOME$"):
        cache_folder("X_CACHE", "x")


@pytest.mark.parametrize("path", ["~/photos", "~no-such-user/photos"])
def test_a_home_that_nobody_knows_is_one_line(no_home, path):
    with pytest.raises(BurstError, match=f"^no home directory is known for {path}; "):
        at_home(path)


@pytest.fixture
def number_of_a_dead():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def begun_by(monkeypatch, number, made):
    """What a process of this number would leave if it were killed while it makes something."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: number)
        patch.setattr(files, "_making", set())
        return made.__enter__(), made  # as long as `made` lives, its block is not left


@pytest.mark.parametrize("make", [write_atomically, make_folder_atomically])
def test_what_killed_processes_left_goes_and_what_living_ones_write_stays(
    tmp_path, monkeypatch, number_of_a_dead, make
):
    target = tmp_path / "checkpoint.pt"
    dead = begun_by(monkeypatch, number_of_a_dead, make(target))
    before_us = begun_by(monkeypatch, os.getpid(), make(tmp_path / "a" / "checkpoint.pt"))
    living = begun_by(monkeypatch, os.getppid(), make(target))
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "another")
        elsewhere = begun_by(monkeypatch, number_of_a_dead, make(target))
    (users := tmp_path / f".checkpoint-{number_of_a_dead}.pt").write_text("")
    with write_atomically(target) as ours, make_folder_atomically(tmp_path / "b") as our_folder:
        monkeypatch.chdir(tmp_path)
        remove_leftovers(tmp_path.relative_to(tmp_path))
        remove_leftovers(tmp_path / "a")
        stays = (living[0], elsewhere[0], users, ours, our_folder)
        assert all(one.exists() for one in stays)
    assert not dead[0].exists() and not before_us[0].exists()
