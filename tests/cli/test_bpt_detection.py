"""`bpt` on images in COCO's format, as a user types it."""

import json

import pandas as pd
import pytest
from coco_sets import content, write_images, write_json, zipped
from colours import write_images as write_colours
from PIL import Image
from shapes import SHAPES, write_shapes
from typed import Typed

import bpt
from bpt.detection.recipe import DetectionRecipe
from cli import bpt as command
from cli._training import _own_photos

SMALL = ("--image-size", "64", "--channels", "8", "--batch-size", "2", "--device", "cpu")
PROMPT = ("--num-prompts", "4", "--rank", "2")
TYPED = Typed(command.app)
run, succeeded, refused = TYPED.run, TYPED.succeeded, TYPED.refused


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), 4, size=64, count=2)


@pytest.fixture(scope="module")
def runs(shapes, tmp_path_factory):
    """A run with prompts and one without, as they were typed, and what was said of the first."""
    folder = tmp_path_factory.mktemp("runs")
    options = (f"coco:{shapes}", "--schedule", "1", *SMALL)
    said = succeeded("train", *options, *PROMPT, "--out", folder / "prompts")
    succeeded("train", *options, "--method", "linear", "--out", folder / "linear")
    return folder / "linear", folder / "prompts", said


def test_photos_to_try_it_on_are_offered_where_they_lie(shapes, runs, tmp_path):
    (hint,) = [line for line in runs[2].stdout.splitlines() if line.startswith("to name what")]
    assert hint.endswith(f"bpt predict {runs[1]} {shapes}")
    packed, made = tmp_path / "packed", content()
    for kind in ("train", "val"):
        write_json(packed / f"annotations/instances_{kind}2017.json", made)
        write_images(tmp_path / kind, made)
        zipped(tmp_path / kind, packed / f"{kind}2017.zip")
    assert _own_photos(DetectionRecipe(dataset=f"coco:{packed}")) == packed / "val2017.zip"
    assert _own_photos(DetectionRecipe(dataset=f"coco:{tmp_path / 'gone'}")) is None
    assert _own_photos(DetectionRecipe(dataset="coco")) is None
    assert _own_photos(bpt.Recipe(dataset="vtab:cifar")) is None


@pytest.mark.slow
def test_a_part_of_coco_is_told_from_the_training_to_the_table(tmp_path):
    """In its own layout, as it is typed; and its last epoch is scored once."""
    place, out = tmp_path / "coco", tmp_path / "run"
    splits = ("train2017", "val2017")
    write_shapes(place, 2, size=64, count=2, splits=splits)
    for split in splits:
        (place / split).symlink_to(place / "images")
    options = ("--model", "mae_tiny", "--schedule", "2", "--eval-every", "1", *SMALL, *PROMPT)
    said = succeeded("train", "coco", "--data", place, *options, "--out", out).stderr
    assert "coco is not as published: 2 train images instead of 118,287, 2 val images" in said
    assert said.count("scoring 2 validation images") == 2  # of two epochs
    succeeded("report", out, "--data", place, "--out", tmp_path / "page")
    table = pd.read_csv(tmp_path / "page" / "published.csv")
    assert all("images" in differs.split(", ") for differs in table["differs"])
    best = table.set_index("metric").loc["box_AP"]
    assert best["ours"] == bpt.open_run(out).result["scores"]["box_AP"]


def test_a_training_says_what_it_will_take_its_losses_and_its_scores(runs):
    said = runs[2]
    assert "on one H100" in said.stderr
    assert "epoch 1/1  loss" in said.stderr and "objectness" in said.stderr
    assert "4 images by" in said.stdout
    assert "prompts 392" in said.stdout  # 2 x (4 + 192)
    recipe = bpt.open_run(runs[1]).recipe
    assert recipe.origins["lr"].startswith("supplement, Table 8")
    assert recipe.origins["channels"] == "given"


def test_scores_are_a_table_by_size_and_by_class_and_a_file_of_results(runs):
    found = succeeded("evaluate", runs[1], "--device", "cpu")
    for word in ("AP50", "APs", "box", "mask", *SHAPES, "detections.json"):
        assert word in found.stdout
    entries = json.loads((runs[1] / "detections.json").read_text())
    assert all(
        set(one) == {"image_id", "category_id", "bbox", "score", "segmentation"} for one in entries
    )


def test_scores_as_json_have_the_names_that_tools_expect(runs):
    found = json.loads(succeeded("evaluate", runs[1], "--json", "--device", "cpu").stdout)
    assert list(found) == [
        f"{kind}_{name}"
        for kind in ("box", "mask")
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")
    ]
    assert found["box_APl"] is None  # nothing is so large
    assert all(value is None or 0 <= value <= 100 for value in found.values())


def test_a_photo_is_drawn_with_what_is_found_in_it(runs, shapes, tmp_path):
    photo = shapes / "images" / "0001.png"
    scores = [one["score"] for one in bpt.open_run(runs[1]).detections() if one["image_id"] == 1]
    threshold = sorted(scores)[-5:][0]  # of a hundred, each of which takes time to draw
    options = ("--threshold", threshold, "--out", tmp_path / "drawn", "--device", "cpu")
    found = json.loads(succeeded("predict", runs[1], photo, *options, "--json").stdout)
    (answer,) = found
    assert answer["image"] == str(photo)
    with Image.open(answer["picture"]) as drawn:
        assert drawn.width >= 64
    assert {"name", "score", "bbox", "segmentation"} <= set(answer["objects"][0])
    said = succeeded("predict", runs[1], photo, photo, *options)
    assert any(name in said.stdout for name in SHAPES)
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [
        *("0001-2.png", "0001.png")
    ]


@pytest.mark.slow
def test_a_page_compares_two_detectors(runs, tmp_path):
    said = succeeded("report", *runs[:2], "--out", tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Who finds what" in page and "linear" in page
    assert "prompts" in said.stdout and "index.html" in said.stdout
    assert (tmp_path / "page" / "found.csv").exists()


def test_a_detector_is_exported_with_plain_prompts(runs, tmp_path):
    file = tmp_path / "detector.safetensors"
    succeeded("export", runs[1], "--out", file)
    _, names = bpt.load_exported_detector(file)
    assert tuple(names.values()) == SHAPES
    told = refused("export", runs[1], "--out", file, "--program", tmp_path / "x.pt2")
    assert "is a detector; --program is for classifiers" in told


def test_a_study_of_the_poster_is_planned_and_run_in_miniature(shapes, tmp_path):
    options = ("coco_mask_rcnn", "--dataset", f"coco:{shapes}", "--model", "mae_tiny")
    small = ("--schedule", "1", "--image-size", "64", "--channels", "8", "--batch-size", "8")
    plan = succeeded("study", *options, *small, "--dry-run").stdout
    assert "GPU hours" in plan and "?" not in plan


def test_options_of_the_other_kind_of_training_are_refused(shapes, tmp_path):
    for option, value in (("--pooling", "token"), ("--epochs", "3"), ("--protocol", "authors")):
        told = refused("train", f"coco:{shapes}", option, value)
        assert f"{option[2:]} is no option of a training on coco" in told
    told = refused("train", "digits", "--detector", "cascade")
    assert "detector is no option of a training on digits" in told


def test_detectors_and_classifiers_are_reported_apart(runs, tmp_path):
    images = write_colours(tmp_path / "images", {"train": 2, "val": 1, "test": 1})
    options = ("--epochs", "1", "--batch-size", "6", "--method", "linear", "--device", "cpu")
    succeeded("train", f"folder:{images}", *options, "--out", tmp_path / "colours")
    told = refused("report", runs[0], tmp_path / "colours", "--out", tmp_path / "page")
    assert "is a detector" in told and "a classifier" in told


def broken(made, folder, change):
    write_images(folder / "images", made)
    change(made)
    write_json(folder / "annotations.json", made)
    return folder


CHANGES = {
    "category": lambda made: made["categories"][0].pop("name"),
    "ids": lambda made: made["annotations"][0].update(category_id=77),
    "images": lambda made: made.update(images=[]),
    "rle": lambda made: made["annotations"][-1]["segmentation"].update(size=[3, 4]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_annotations_that_are_wrong_end_a_training_before_it_starts(what, tmp_path):
    folder = broken(content(), tmp_path / "set", CHANGES[what])
    refused("train", f"coco:{folder}", *SMALL, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_json_is_named(tmp_path):
    folder = broken(content(), tmp_path / "set", lambda _: None)
    (folder / "annotations.json").write_text("{")
    assert "annotations.json" in refused("train", f"coco:{folder}", *SMALL)
