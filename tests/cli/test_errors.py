"""What a user is told where the machine, not the input, is at fault."""

import pytest
import torch
from typer.testing import CliRunner

import bpt.engine
from cli._common import reported_errors
from cli.bpt import app

TOLD = "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 15.77 GiB."


def test_a_full_gpu_ends_a_training_in_one_line_that_says_what_takes_less(monkeypatch, tmp_path):
    def step(*_):
        raise torch.OutOfMemoryError(TOLD)

    monkeypatch.setattr(bpt.engine.Trainer, "step", step)
    small = ("--epochs", "1", "--method", "linear", "--device", "cpu", "--train-fraction", "0.1")
    result = CliRunner().invoke(app, ["train", "digits", *small, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: the GPU has no room left (tried to allocate 1.50 GiB); ")
    assert "--accumulation" in line and "Traceback" not in result.output


def test_a_full_gpu_ends_whatever_else_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended, reported_errors():
        raise torch.OutOfMemoryError(TOLD)
    assert ended.value.code == 2
    told = "error: the GPU has no room left (tried to allocate 1.50 GiB); --device cpu needs none\n"
    assert capsys.readouterr().err == told


def test_a_defect_is_no_users_mistake():
    with pytest.raises(RuntimeError, match="a bug"), reported_errors():
        raise RuntimeError("a bug")
