"""Other ways to the commands: `python -m burst`, and what a shell asks to complete a line."""

import importlib.metadata
import os
import runpy
import subprocess
import sys

import pytest


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["burst", "bpt"])
def test_a_command_is_run_as_a_module_too(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    version = importlib.metadata.version("attention-burstiness")
    assert capsys.readouterr().out == f"{name} {version}\n"


def as_a_script(name, *arguments, **environment):
    """The command as its console script starts it, under its own name."""
    program = f"import sys; sys.argv[0] = '{name}'; from cli.{name} import main; main()"
    return run("-c", program, *arguments, **environment)


@pytest.mark.parametrize(
    "line, words",
    [
        ("burst his", ["histogram"]),
        ("burst histogram --num", ["--num-images"]),
        ("bpt e", ["evaluate", "export"]),
    ],
)
def test_a_shell_completes_commands_and_options(line, words):
    name, _, _ = line.partition(" ")
    asked = {f"_{name.upper()}_COMPLETE": "complete_bash", "COMP_WORDS": line}
    answer = as_a_script(name, **asked, COMP_CWORD=str(line.count(" ")))
    assert answer.stdout.split() == words, answer.stderr


def test_a_shell_is_told_how_to_ask():
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # not the one that pytest is in
    script = as_a_script("burst", "--show-completion", "bash", **named).stdout
    assert "_BURST_COMPLETE=complete_bash" in script


AS_A_MODULE = """
import runpy, sys
sys.argv[1:] = ["--install-completion"]
runpy.run_module("burst", run_name="__main__", alter_sys=True)
"""


def test_no_shell_completes_a_module(forked, tmp_path):
    # typer would install a function for `python -m burst`, which breaks that of `python`
    refused = forked(AS_A_MODULE, tmp_path).end()
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: No such option")
    assert refused.stderr.endswith("see `python -m burst --help`\n")
