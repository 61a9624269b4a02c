"""`burst spectrum` as a user types it."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import burst
from cli import burst as command

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(command.app, ["spectrum", *(str(argument) for argument in arguments)])


def test_spectrum_alone_prints_a_line_a_block_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("--blocks", "0,3")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[0] for row in rows if row[:1] in (["0"], ["3"], ["random"])] == ["0", "3", "random"]
    assert os.listdir(tmp_path) == []


def test_json_is_what_python_computes():
    result = run("--blocks", "5", "--per-head", "--json", "--quiet")
    expected = burst.spectrum(burst.load_backbone("mae_tiny"), (5,)).table
    found = pd.DataFrame(json.loads(result.stdout))
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert len(found) == 4


def test_a_folder_gets_table_values_record_and_figure(tmp_path):
    result = run("--blocks", "1", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    names = ("run.json", "singular_values.npz", "spectrum.csv", "spectrum.pdf", "spectrum.png")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(names)
    with np.load(tmp_path / "out" / "singular_values.npz") as arrays:
        assert sorted(arrays) == ["mae_tiny/1/all/null", "mae_tiny/1/all/values"]
    assert "written to" in result.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--blocks", "12"), "blocks 0 to 11"),
        (("--blocks", "x"), "neither `all` nor a list"),
        (("--model", "mae_tin"), "did you mean mae_tiny"),
    ],
)
def test_each_mistake_has_its_own_line(arguments, words):
    result = run(*arguments, "--quiet")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    state = burst.load_backbone("mae_tiny").model.state_dict()
    state["blocks.7.attn.qkv.weight"][0, 0] = torch.nan
    save_file(state, tmp_path / "broken.safetensors")
    result = run("--weights", tmp_path / "broken.safetensors", "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "not finite" in line
    assert os.listdir(tmp_path / "out") == []
