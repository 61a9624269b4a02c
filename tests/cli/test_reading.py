"""What `--images` names, as a user types it."""

import json

import pytest
from colours import write_images
from PIL import Image
from typed import Typed

import bpt
import burst
from cli import burst as command
from cli._reading import open_inputs

TYPED = Typed(command.app)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """36 images of 3 classes, which nobody has split."""
    return write_images(tmp_path_factory.mktemp("colours"), {"": 12})


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_histogram_measures_the_training_images_of_a_dataset_that_is_named():
    measured = ("--images", "digits", "--num-images", "6", "--blocks", "0", "--quantity", "x")
    (row,) = json.loads(TYPED.succeeded("histogram", *measured, "--json").stdout)
    backbone = burst.load_backbone("mae_tiny")
    images = bpt.dataset_images(backbone, "digits", num_images=6)
    options = burst.SurveyOptions(blocks=(0,), quantities=("x",))
    expected = burst.survey(backbone, images, options).table.iloc[0]
    assert (row["count"], row["std"]) == (expected["count"], expected["std"])


def test_a_folder_here_comes_before_the_dataset_of_its_name(tmp_path):
    backbone = burst.load_backbone("mae_tiny")
    how = {"count": 100, "seed": 0, "skip_bad": False, "quiet": True}
    digits = open_inputs(backbone, "digits", None, **how)
    assert (digits.source, digits.split) == ("digits", "train")
    (tmp_path / "digits").mkdir()
    Image.effect_noise((90, 80), 40).save(tmp_path / "digits/0.png")
    found = open_inputs(backbone, "digits", None, **how)
    assert (found.source, found.count) == ("digits", 1)


@pytest.mark.parametrize("name", ["whiten", "report", "histogram"])
def test_each_command_offers_the_nearest_name(name):
    out = () if name == "histogram" else ("--out", "out.pt")
    told = TYPED.refused(name, "--images", "digitz", *out)
    assert told.startswith("unknown image source 'digitz'; did you mean digits? (nor is there")


@pytest.mark.parametrize(
    "typed, told",
    [
        ("xyz", "unknown image source 'xyz'; known: cars, coco, cub, digits, "),
        ("cub", "cub: 'data' does not exist; get it with `bpt datasets --download cub`"),
        ("folder:gone", "image source 'gone' does not exist"),
        ("vtab:cifra", "unknown task of vtab 'cifra'; did you mean cifar?"),
        ("gone/digits", "image source 'gone/digits' does not exist; expected a folder"),
        ("n" * 300 + ".zip", "File name too long"),
    ],
)
def test_what_names_nothing_is_told(typed, told):
    assert told in TYPED.refused("histogram", "--images", typed)


def test_a_dataset_speaks_on_stderr_unless_that_is_not_wanted(colours, capsys):
    backbone = burst.load_backbone("mae_tiny")
    for quiet in (False, True):
        how = {"count": 4, "seed": 0, "skip_bad": False, "quiet": quiet}
        assert open_inputs(backbone, f"folder:{colours}", None, **how).count == 4
        out, said = capsys.readouterr()
        assert (out, "36 images of 3 classes" in said) == ("", not quiet)
