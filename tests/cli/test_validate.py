"""`bpt validate` as a user types it."""

import functools
import json

import layouts
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import bpt
import bpt.validate
import burst
import reports
from bpt.search import recipes
from cli import bpt as command

SMALL = ("--epochs", "1", "--batch-size", "6", "--devices", "cpu")
ONE_POINT = functools.partial(bpt.SearchOptions, lrs=(0.01,), weight_decays=(0.0,), folds=2)


@pytest.fixture(autouse=True)
def _a_short_probe(monkeypatch):
    """A hundred epochs of it are tested in tests/bpt/search."""
    monkeypatch.setattr(recipes, "LEAST_OF_PROBE", 1)


def run(app, *arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with W.pt, as `burst whiten` writes it, its backbone's weights, and a small CUB."""
    place = tmp_path_factory.mktemp("validate")
    torch.manual_seed(0)
    weights = place / "weights.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    backbone = burst.load_backbone("timm:test_vit", str(weights), image_size=64)
    images = burst.images_for(backbone, "sample", num_images=4)
    burst.save_whitening(burst.whiten(backbone, images), place / "W.pt")
    layouts.cub(place / "data" / "cub", train=5, test=4)
    return place


@pytest.mark.slow
def test_a_whitening_is_validated_and_the_same_command_goes_on(place, tmp_path, monkeypatch):
    monkeypatch.setattr(bpt.validate, "SearchOptions", ONE_POINT)
    typed = ("validate", place / "W.pt", "--data", place / "data", "--datasets", "cub,dogs")
    typed += ("--methods", "linear,bpt-fwhiten", "--seeds", "0,1", "--out", tmp_path, *SMALL)
    result = run(command.app, *typed, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert "dogs: get it with `bpt datasets --download dogs`" in result.stderr
    assert "cub is not as published: " in result.stderr
    trained = bpt.open_run(tmp_path / record["benchmarks"][0]["methods"][1]["runs"][0]["folder"])
    (differs,) = reports.beside_published({"x": trained})["differs"]
    assert "images" in differs.split(", ")
    table = pd.read_csv(tmp_path / "benchmarks.csv")
    for line, one in zip(table.to_dict("records"), record["benchmarks"][0]["methods"], strict=True):
        results = [bpt.open_run(tmp_path / run["folder"]).result for run in one["runs"]]
        accuracies = [result["test_accuracy"] for result in results]
        assert line["test"] == pytest.approx(sum(accuracies) / 2)
    assert record["sentences"][0] in (tmp_path / "index.html").read_text()
    again = run(command.app, *typed)
    assert again.exit_code == 0 and record["sentences"][0] in again.stdout


def test_a_dry_run_lists_what_would_be_trained_and_trains_nothing(place, tmp_path):
    typed = ("validate", place / "W.pt", "--data", place / "data", "--out", tmp_path / "none")
    result = run(command.app, *typed, "--dry-run")
    assert result.exit_code == 0, result.output
    for name in ("digits", "cub", "linear", "vpt", "≤ 12"):
        assert name in result.stdout
    assert "imagenet: get it from" in result.stderr and not (tmp_path / "none").exists()
    plan = json.loads(run(command.app, *typed, "--dry-run", "--json").stdout)
    planned = {one["dataset"]: one["methods"] for one in plan["benchmarks"]}
    assert planned["digits"]["vpt"]["search"]["trials"] == 12 and "imagenet" in plan["missing"]


def test_what_fails_ends_with_the_reason_and_a_page(place, tmp_path):
    typed = ("validate", place / "W.pt", "--data", place / "data", "--datasets", "cub")
    typed += ("--batch-size", "1024")  # of seven images
    result = run(command.app, *typed, "--out", tmp_path, "--devices", "cpu", "--quiet")
    assert result.exit_code == 2 and "4 of 4 have no number, such as linear: 7" in result.stderr
    assert "fewer than a batch of 1024" in (tmp_path / "index.html").read_text()


def test_another_backbone_is_refused_in_one_line(place):
    result = run(command.app, "validate", place / "W.pt", "--model", "mae_tiny")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "does not fit mae_tiny" in result.stderr
