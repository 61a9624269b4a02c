"""`burst map` as a user types it."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typed import Typed

import burst
from cli import _explain
from cli import burst as command

TYPED = Typed(command.app, "map")
run, refused = TYPED.run, TYPED.refused


@pytest.fixture
def photo(tmp_path):
    """Noise in the right half of a grey picture."""
    rng = np.random.default_rng(0)
    pixels = np.full((120, 160, 3), 128, np.uint8)
    pixels[:, 80:] = rng.integers(0, 256, (120, 80, 3))
    path = tmp_path / "half.png"
    Image.fromarray(pixels).save(path)
    return path


def test_a_photograph_is_mapped_with_everything_beside_it(photo, tmp_path):
    out = tmp_path / "out"
    result = run(photo, "--out", out)
    assert result.exit_code == 0, result.output
    assert "half.png" in result.stdout and "index.html" in result.stdout.replace("\n", "")
    assert {file.name for file in out.iterdir()} == {
        "index.html", "map.csv", "map_dimensions.csv", "map_half.pdf", "map_half.png", "run.json",
    }  # fmt: skip
    table = pd.read_csv(out / "map.csv")
    assert table["block"].nunique() == 3 and {0, 11} < set(table["block"])
    (one,) = burst.map_photos(burst.load_backbone("mae_tiny"), [photo]).maps
    for block, rows in table.groupby("block"):
        np.testing.assert_allclose(rows["share"], one.blocks[block].share, rtol=1e-5)
        np.testing.assert_allclose(rows["norm"], one.blocks[block].norm, rtol=1e-5)
    record = json.loads((out / "run.json").read_text())
    assert (record["model"], len(record["blocks"])) == ("mae_tiny", 3)


@pytest.mark.slow
def test_of_many_photographs_the_first_are_listed_and_the_others_counted(
    photo, tmp_path, monkeypatch
):
    assert _explain.LISTED == 8
    monkeypatch.setattr(_explain, "LISTED", 1)  # each figure takes a second
    for number in range(2):
        Image.open(photo).resize((40 + number, 30)).save(tmp_path / f"more_{number}.png")
    result = run(tmp_path, "--out", tmp_path / "out", "--blocks", "0")
    assert result.exit_code == 0, result.output
    assert result.stdout.count(".png") == 1
    assert "and 2 more photographs, on the page and in map.csv" in result.stdout
    assert "figures 3/3" in result.stderr
    assert pd.read_csv(tmp_path / "out" / "map.csv")["image"].nunique() == 3


@pytest.mark.slow
def test_blocks_that_were_asked_for_are_shown(photo, tmp_path):
    result = run(photo, "--out", tmp_path / "out", "--blocks", "2,5", "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")
    assert set(pd.read_csv(tmp_path / "out" / "map.csv")["block"]) == {2, 5}


@pytest.mark.filterwarnings("ignore:left out of the scores")
def test_each_mistake_has_its_own_line(photo, tmp_path, monkeypatch):
    out = "--out", tmp_path / "out"
    (tmp_path / "notes.txt").write_text("no image")
    assert "notes.txt is neither an image" in refused(tmp_path / "notes.txt", *out)
    assert "does not exist" in refused(tmp_path / "absent.png", *out)
    assert "blocks 0 to 11" in refused(photo, *out, "--blocks", "12")
    assert "--blocks" in refused(photo, *out, "--blocks", "some")
    swin = ("--model", "timm:swin_tiny_patch4_window7_224", "--weights", "random")
    result = run(photo, *out, *swin, "--blocks", "0")
    assert result.exit_code == 2
    assert "49 tokens at a time" in result.stderr and "choose a plain ViT" in result.stderr
    load = burst.load_backbone

    def texts(*arguments, **options):
        backbone = load("mae_tiny")
        object.__setattr__(backbone, "kind", "text")
        return backbone

    monkeypatch.setattr(burst, "load_backbone", texts)
    assert "reads text, so there is no picture to map" in refused(photo, *out)
