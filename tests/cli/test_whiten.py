"""`burst whiten` as a user types it."""

import json
import os

import pytest
import torch
from typer.testing import CliRunner

import burst
from cli import burst as command

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(command.app, ["whiten", *(str(argument) for argument in arguments)])


@pytest.mark.slow
def test_without_a_model_whiten_writes_matrices_that_fit_the_default_model(tmp_path):
    result = run("--out", tmp_path / "W.pt", "--num-images", "10")
    assert result.exit_code == 0, result.output
    assert "written to" in result.stdout
    stored = torch.load(tmp_path / "W.pt", weights_only=True)
    assert stored["W"].shape == (12, 192, 192)
    assert stored["eigenvalues"].shape == (12, 192)
    about = json.loads(stored["metadata"])
    assert about["weights_sha256"] == burst.find_backbone("mae_tiny").sha256
    assert len(about["per_block"]) == 12
    whitening = burst.load_whitening(tmp_path / "W.pt", burst.load_backbone("mae_tiny"))
    assert torch.equal(whitening.W, stored["W"])


def test_json_is_what_python_computes(tmp_path):
    arguments = ("--num-images", "10", "--blocks", "2", "--method", "pca", "--shrinkage", "oas")
    result = run(*arguments, "--out", tmp_path / "W.safetensors", "--json")
    (row,) = json.loads(result.stdout)
    backbone = burst.load_backbone("mae_tiny")
    images = burst.images_for(backbone, "sample", num_images=10)
    options = burst.WhiteningOptions(blocks=(2,), method="pca", shrinkage="oas")
    (expected,) = burst.whiten(backbone, images, options).blocks
    assert row["kept"] == expected.kept
    assert row["shrinkage"] == pytest.approx(expected.shrinkage)
    assert row["whiteness_error"] == pytest.approx(expected.whiteness_error)


@pytest.mark.filterwarnings("default::burst.whitening.RankWarning")
def test_few_tokens_are_warned_of_and_what_is_no_number_is_null_in_json(tmp_path):
    few = ("--num-images", "2", "--blocks", "0")  # too few to hold any out
    result = run(*few, "--out", tmp_path / "W.pt", "--quiet", "--json")
    assert result.exit_code == 0
    (row,) = json.loads(result.stdout, parse_constant=pytest.fail)
    assert row["whiteness_error"] is None
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: ")
    assert "192 dimensions" in line


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--method", "zac"), "did you mean zca"),
        (("--shrinkage", "lots"), "unknown shrinkage"),
        (("--shrinkage", "2"), "0..1"),
        (("--floor", "-1"), "floor"),
        (("--recipe", "author"), "did you mean authors"),
        (("--method", "cholesky", "--num-images", "2"), "cholesky"),
        (("--blocks", "12"), "blocks 0 to 11"),
    ],
)
def test_each_mistake_has_its_own_line(arguments, words, tmp_path):
    result = run(*arguments, "--out", tmp_path / "W.pt")
    assert result.exit_code == 2
    error = [line for line in result.stderr.splitlines() if not line.startswith("batches")]
    (line,) = error
    assert line.startswith("error: ")
    assert words in line
    assert os.listdir(tmp_path) == []


def test_a_file_of_another_kind_is_refused_before_the_work(tmp_path):
    result = run("--out", tmp_path / "W.npz")
    assert result.exit_code == 2
    assert ".pt or .safetensors" in result.stderr
