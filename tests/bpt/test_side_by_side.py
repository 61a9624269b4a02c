"""Processes at work beside this one, and what a signal does to them."""

import multiprocessing
import os
import signal
import time
from contextlib import suppress

import pytest
from processes import LIMIT, START
from saves_when_told import be_killed, break_down, fail_but_on_the_cpu, name_the_device

from bpt.side_by_side import side_by_side
from bpt.signals import Signals, resume_command, this_command

PROGRAM = """
import functools
import multiprocessing
import os

import saves_when_told
from bpt import Interrupted
from bpt.side_by_side import side_by_side

os.setsid()
context = multiprocessing.get_context(method)
multiprocessing.get_context = lambda _: context
work = functools.partial(getattr(saves_when_told, work), place)
try:
    side_by_side({"one": work}, ["cpu"], print)
except Interrupted as error:
    print("interrupted by", int(error.signum))
"""


@pytest.fixture
def started(forkserver, tmp_path):
    """Starts a work, in a group of its own; a pipe that ends with the last process of it."""
    processes = []

    def start(work, method="fork"):  # which costs no seconds of imports
        ended, open_there = multiprocessing.Pipe(duplex=False)
        names = {"place": str(tmp_path), "rank": 0, "environment": {}}
        names |= {"work": work, "method": method, "held": open_there}
        process = forkserver.Process(target=exec, args=(START + PROGRAM, names))  # has children
        process.start()
        processes.append(process)
        open_there.close()
        deadline = time.monotonic() + LIMIT
        while not (tmp_path / "cpu.began").exists():
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.05)
        return process, ended

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_ctrl_c_which_reaches_all_processes_lets_each_save_first(started, tmp_path):
    program, _ = started("save_when_told", "spawn")
    os.killpg(program.pid, signal.SIGINT)
    program.join(LIMIT)
    assert program.exitcode == 0
    assert (tmp_path / "cpu.saved").read_text() in ("2", "15")  # whichever came first
    assert (tmp_path / "stdout0").read_text() == "interrupted by 2\n"
    assert "Traceback" not in (tmp_path / "stderr0").read_text()


def test_ctrl_c_outside_a_training_leaves_no_lock(started, tmp_path):
    program, _ = started("hold_a_lock")
    assert (tmp_path / ".run.lock").exists()
    os.killpg(program.pid, signal.SIGINT)
    program.join(LIMIT)
    assert not (tmp_path / ".run.lock").exists()
    assert (tmp_path / "stdout0").read_text() == "interrupted by 2\n"
    assert "Traceback" not in (tmp_path / "stderr0").read_text()


def test_processes_whose_parent_was_killed_save_and_end(started, tmp_path):
    program, ended = started("save_when_told")
    program.kill()
    assert ended.poll(LIMIT)
    with pytest.raises(EOFError):
        ended.recv()
    assert (tmp_path / "cpu.saved").read_text() == "15"


def test_a_killed_process_costs_its_own_work_alone(forkserver, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forkserver)
    found = {}
    works = {"one": name_the_device, "two": be_killed, "three": name_the_device}
    side_by_side(works, ["cpu"], found.__setitem__)
    assert found["one"] == found["three"] == {"device": "cpu"}
    assert found["two"].startswith("its process ended: ")


def test_a_device_that_broke_takes_one_work_alone_and_the_others_do_the_rest(
    forkserver, monkeypatch
):
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forkserver)
    found = {}
    side_by_side(
        dict.fromkeys("abcdef", fail_but_on_the_cpu), ["cpu", "cuda:99"], found.__setitem__
    )
    (broken,) = (name for name in found if not isinstance(found[name], dict))
    assert found.pop(broken) == (
        "its process ended: CUDA error: an illegal memory access was encountered"
    )
    assert len(found) == 5 and len({one["process"] for one in found.values()}) == 1

    side_by_side(dict.fromkeys("ab", fail_but_on_the_cpu), ["cuda:99"], found.__setitem__)
    assert "its process ended: CUDA error" in found["a"]
    assert found["b"].startswith("no device is left: the device 'cuda:99' cannot be used here")


def test_after_an_error_that_nobody_foresaw_another_process_works(forkserver, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forkserver)
    found = {}
    works = {"a": fail_but_on_the_cpu, "b": break_down, "c": fail_but_on_the_cpu}
    side_by_side(works, ["cpu"], found.__setitem__)
    assert found["b"].startswith("its process ended: CUDA error")
    assert found["a"]["process"] != found["c"]["process"]


def test_a_second_signal_of_one_kind_interrupts_at_once_and_one_of_another_does_not():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt) as caught:
            os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.args == (signal.SIGINT,)  # which makes the exit code


@pytest.mark.parametrize(
    ("program", "typed"), [("/bin/bpt", "bpt"), ("/lib/bpt/__main__.py", "python -m bpt")]
)
def test_what_is_to_be_typed_is_what_was_typed(program, typed, monkeypatch):
    monkeypatch.setattr("sys.argv", [program, "train", "digits", "--out", "a run"])
    assert resume_command() == f"{typed} train digits --out 'a run' --resume"


@pytest.mark.parametrize("program", ["-c", "mine.py", "/lib/ipykernel_launcher.py"])
def test_who_called_from_python_is_told_to_call_again(program, monkeypatch):
    monkeypatch.setattr("sys.argv", [program, "-f", "kernel.json"])
    assert this_command() == "call the same function again"
    assert resume_command() == "call the same function again with resume=True"
