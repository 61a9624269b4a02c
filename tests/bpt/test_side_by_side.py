"""Processes at work beside this one, and what a signal does to them."""

import os
import signal
import time
from contextlib import suppress

import pytest
from processes import LIMIT, START

from bpt.signals import Signals, resume_command, this_command

PROGRAM = """
import functools
import os

from bpt import Interrupted
from bpt.side_by_side import side_by_side
from saves_when_told import save_when_told

os.setsid()
work = functools.partial(save_when_told, place)
try:
    side_by_side({"one": work}, ["cpu"], print)
except Interrupted as error:
    print("interrupted by", int(error.signum))
"""


@pytest.fixture
def program(forkserver, tmp_path):
    """It is at work, in a group of its own."""
    names = {"place": str(tmp_path), "rank": 0, "environment": {}}
    process = forkserver.Process(target=exec, args=(START + PROGRAM, names))  # may have children
    process.start()
    deadline = time.monotonic() + LIMIT
    while not (tmp_path / "cpu.began").exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def test_ctrl_c_which_reaches_all_processes_lets_each_save_first(program, tmp_path):
    os.killpg(program.pid, signal.SIGINT)
    program.join(LIMIT)
    assert program.exitcode == 0
    assert (tmp_path / "cpu.saved").read_text() in ("2", "15")  # whichever came first
    assert (tmp_path / "stdout0").read_text() == "interrupted by 2\n"
    assert "Traceback" not in (tmp_path / "stderr0").read_text()


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
