"""Two processes that train one detector, and score it."""

import json

import pytest
import torch
from shapes import write_shapes

import bpt

PROGRAM = """
import json
import sys
from pathlib import Path

import torch

import bpt
from bpt.detection.recipe import DetectionRecipe
from burst import BurstError, process_group

found = {}


def note(name, images, **changes):
    recipe = DetectionRecipe(
        dataset=f"coco:{place}/{images}", image_size=64, channels=8, batch_size=4, num_prompts=4,
        rank=2, schedule="1", **changes,
    )
    try:
        found[name] = bpt.train(recipe, f"{place}/{name}", device="cpu")["scores"]["box_AP"]
    except BurstError as error:
        found[name] = [type(error).__name__, str(error)]


with process_group() as (rank, _):
    note("good", "shapes")
    note("cut", "shapes", accumulation=2, detector="cascade")
    note("bad", "torn")
    scores, _ = bpt.evaluate_detector(bpt.open_run(f"{place}/good"))
    found["seed"] = torch.initial_seed()
    found["again"] = scores.values["box_AP"]
    found["state"] = float(sum(x.double().sum() for x in
        bpt.open_run(f"{place}/good").trained_state().values()))
Path(f"{place}/found{rank}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("two")
    write_shapes(place / "shapes", 9, size=64, count=2)
    write_shapes(place / "torn", 8, size=64, count=2)
    (place / "torn" / "images" / "0003.png").write_bytes(b"torn")
    return place


@pytest.fixture(scope="module")
def found(place, in_two_processes):
    """What each of the two says."""
    runs = in_two_processes(PROGRAM, place)
    assert [one.returncode for one in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    return [json.loads((place / f"found{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_both_come_to_the_same_end_but_draw_regions_of_their_own(found):
    seeds = [one.pop("seed") for one in found]
    assert found[0] == found[1]
    assert seeds[0] != seeds[1]


def test_each_image_is_scored_once_as_in_one_process(found, place, one_thread):
    run = bpt.open_run(place / "good")
    assert run.result["images"] == 9
    scores, _ = bpt.evaluate_detector(run)
    assert scores.values["box_AP"] == pytest.approx(found[0]["again"])
    assert found[0]["good"] == pytest.approx(found[0]["again"])


def test_an_image_that_one_of_them_cannot_read_ends_both(found):
    kind, text = found[0]["bad"]
    assert kind == "ImageError" and "0003.png" in text


def test_a_cascade_with_parts_of_a_step_trains_every_tensor(found, place):
    """DistributedDataParallel ends in an error where a parameter is left without a gradient."""
    assert isinstance(found[0]["cut"], float | None)
    state = bpt.open_run(place / "cut").trained_state()
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
