"""One makes it, the others wait: threads with a lock each, and a process that is killed."""

import errno
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock

from burst.lock import if_alone, one_at_a_time


def test_the_second_says_once_that_it_waits_and_finds_what_the_first_made(tmp_path):
    target, waits, said = tmp_path / "new" / "file", threading.Event(), []

    def first():
        with one_at_a_time(target, "makes"):
            entered.set()
            assert waits.wait(20)
            target.write_text("made")

    def say(line):
        said.append(line)
        waits.set()

    entered = threading.Event()
    with ThreadPoolExecutor() as pool:
        made = pool.submit(first)
        assert entered.wait(20)
        with one_at_a_time(target, "makes", say=say):
            assert target.read_text() == "made"
        made.result()
    assert said == [f"waiting for another process that makes {target}"]
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_never_are_two_inside_whether_they_end_well_or_not(tmp_path):
    inside, most = [], []

    def work(number):
        with one_at_a_time(tmp_path / "file", "makes"):
            inside.append(number)
            most.append(len(inside))
            threading.Event().wait(0.002)
            inside.remove(number)
            if number % 2:
                raise ValueError

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(work, number) for number in range(24)]
    assert most == [1] * 24
    assert [type(one.exception()) for one in done] == [type(None), ValueError] * 12
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys, time
from filelock import FileLock
FileLock(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(100)
"""


def test_a_process_that_was_killed_keeps_nobody_waiting(tmp_path):
    place = str(tmp_path / ".file.lock")
    command = [sys.executable, "-c", HOLDER, place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
    with one_at_a_time(tmp_path / "file", "makes", say=pytest.fail):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_holds_is_left_to_it(tmp_path):
    with if_alone(tmp_path / "file", say=pytest.fail) as first:
        with if_alone(tmp_path / "file", say=pytest.fail) as second:
            assert (first, second) == (True, False)
        assert [path.name for path in tmp_path.iterdir()] == [".file.lock"]
    assert list(tmp_path.iterdir()) == []


def makes(target, say):
    return one_at_a_time(target, "makes", say=say)


@pytest.mark.parametrize(
    ("guard", "line"),
    [
        (makes, "{0} has no locks; see that no other process makes {0}/file"),
        (if_alone, "{0} has no locks; see that no other process works in it"),
    ],
)
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError()]
)
def test_a_file_system_without_locks_does_without_and_says_so(
    error, guard, line, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    said = []
    with guard(tmp_path / "file", say=said.append) as alone:
        (tmp_path / "file").write_text("made")
    assert alone in (None, True)
    assert said == [line.format(tmp_path)]


@pytest.mark.parametrize("guard", [makes, if_alone])
def test_another_error_of_a_lock_is_not_hidden(guard, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(PermissionError), guard(tmp_path / "file", say=pytest.fail):
        pytest.fail("entered")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(OSError), one_at_a_time(tmp_path / "taken" / "file", "makes"):
        pass
