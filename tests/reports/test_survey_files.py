"""The files of a run: what design promises of each."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import burst
from burst.errors import BurstError, OutputError
from reports.survey_files import run_record, save_survey, seed_of

FIGURES = ("depth_qk", "depth_x", "depth_qkx", "depth_lines")


@pytest.fixture(scope="module")
def survey():
    backbone = burst.load_backbone("mae_tiny")
    images = burst.images_for(backbone, "sample", num_images=3, seed=5)
    return burst.survey(backbone, images, burst.SurveyOptions(blocks=(0, 11), bins=100))


@pytest.fixture(scope="module")
def run(survey, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, save_survey(survey, folder / "new" / "out")


def test_everything_promised_is_there_and_nothing_else(run):
    folder, files = run
    expected = {"statistics.csv", "histograms.npz", "survey.npz", "run.json"}
    expected |= {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")}
    assert set(os.listdir(folder / "new" / "out")) == expected
    assert {file.name for file in files} == expected


def test_the_table_reads_back_as_it_was(run, survey):
    table = pd.read_csv(run[0] / "new/out/statistics.csv", dtype={"head": str})
    pd.testing.assert_frame_equal(table, survey.table)


def test_the_histograms_hold_every_counted_value(run, survey):
    with np.load(run[0] / "new/out/histograms.npz") as stored:
        assert len(stored.files) == 2 * len(survey.histograms)
        for row in survey.table.itertuples():
            name = f"mae_tiny/{row.block}/{row.head}/{row.quantity}"
            counts, edges = stored[f"{name}/counts"], stored[f"{name}/edges"]
            assert (counts.dtype, edges.dtype) == (np.int64, np.float64)
            assert counts.sum() == row.count
            assert len(edges) == 101
            assert edges[0] <= row.min
            assert row.max < edges[-1]


def test_the_survey_reads_back_as_it_was(run, survey):
    found = burst.Survey.load(run[0] / "new/out/survey.npz")
    pd.testing.assert_frame_equal(found.table, survey.table)
    assert found.histograms == survey.histograms


def test_the_record_says_seed_versions_and_weights(run):
    record = json.loads((run[0] / "new/out/run.json").read_text())
    assert record["seed"] == 5
    assert record["weights_sha256"] == burst.find_backbone("mae_tiny").sha256
    assert {"python", "torch", "timm", "numpy", "attention-burstiness"} <= set(record["versions"])
    assert record["options"]["bins"] == 100
    assert record["skipped_blocks"] == record["omitted"] == []


def test_skipped_blocks_are_in_the_record(survey):
    from dataclasses import replace

    skipped = burst.SkippedBlock(3, "blocks.3", "reason")
    record = run_record(replace(survey, skipped=(skipped,)))
    assert record["skipped_blocks"] == [{"block": 3, "name": "blocks.3", "reason": "reason"}]
    json.dumps(record)


def test_the_figures_open(run):
    for name in FIGURES:
        with Image.open(run[0] / f"new/out/{name}.png") as image:
            image.load()
            assert image.width > 1500
        assert (run[0] / f"new/out/{name}.pdf").read_bytes().startswith(b"%PDF")


def test_an_interruption_leaves_no_half_written_file(run, survey, tmp_path, monkeypatch):
    shutil.copytree(run[0] / "new/out", tmp_path, dirs_exist_ok=True)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_survey(survey, tmp_path)
    assert set(os.listdir(tmp_path)) == set(before)
    assert (tmp_path / "histograms.npz").read_bytes() == before["histograms.npz"]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is(survey, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="cannot write into"):
        save_survey(survey, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "a file"


def test_what_softmax_makes_of_logits_has_a_file_of_its_own(tmp_path):
    backbone = burst.load_backbone("mae_tiny")
    images = burst.images_for(backbone, "sample", num_images=2)
    options = burst.SurveyOptions(blocks=(0, 11), quantities=("logits",))
    found = burst.survey(backbone, images, options)
    files = {file.name for file in save_survey(found, tmp_path, seed=0)}
    assert {"softmax.csv", "depth_logits.png", "depth_lines.png"} <= files
    table = pd.read_csv(tmp_path / "softmax.csv", dtype={"head": str})
    pd.testing.assert_frame_equal(table, found.softmax)
    assert list(table["head"]) == 2 * ["all", "0", "1", "2"]


def test_the_seed_is_the_one_that_the_images_were_chosen_by():
    chosen = {"model": "one", "images": {"seed": 5}}
    split = {"model": "one", "images": {"sources": [{"seed": 5}, {"seed": 5}]}}
    undrawn = {"model": "one", "images": {"seed": None}}
    assert seed_of(undrawn, 3) == 3 and seed_of(undrawn, None) is None
    for record in (chosen, split):
        assert seed_of(record, None) == seed_of(record, 5) == 5
        with pytest.raises(BurstError, match="seed is 0, and the images of one .* by seed 5"):
            seed_of(record, 0)
    for images in (None, {"source": "DataLoader"}):
        assert seed_of({"model": "one", "images": images}, 3) == 3
