"""An error of one of two processes that train, in one run of both that no launcher watches."""

import json
from dataclasses import replace

import pytest
from colours import write_images

from bpt import open_run, train

PROGRAM = """
import json
import os
import sys
from pathlib import Path

from bpt import NonFiniteLoss, Recipe, train
from bpt.engine import Trainer
from burst import BurstError, process_group

PLAIN = {"method": "vpt", "placement": "last:1", "cache": False, "epochs": 1, "batch_size": 8}
found, said = {}, []


def note(name, images, **changes):
    recipe = Recipe(
        dataset="folder", data=f"{place}/{images}", model="timm:test_vit", weights="random",
        num_prompts=2, **{**PLAIN, **changes},
    )
    try:
        found[name] = train(recipe, f"{place}/{name}", say=said.append)["test_images"]
    except BurstError as error:
        found[name] = [type(error).__name__, str(error)]


with process_group() as (rank, _):
    note("train", "bad_train")
    note("kept", "bad_train", cache=True, epochs=2)
    note("val", "bad_val")
    note("test", "bad_test")
    note("linear", "bad_train", method="linear", placement="shallow")
    check = Trainer.check

    def diverged(*_):
        raise NonFiniteLoss("the loss is nan")

    if rank == 1:
        Trainer.check = diverged
    note("loss", "good")
    Trainer.check = check
    note("good", "good")
    note("fitted", "few", batch_size=32)
    note("others", "few" if rank == 1 else "good")
    own = "copy" if rank == 1 else "good"
    note("probe", own, method="linear", placement="shallow")
    if rank == 1:
        os.utime(f"{place}/copy/train/red/0.png")
    note("again", own, method="linear", placement="shallow")
    note("plain", "good", augmentation="none", epochs=2)
    os.environ["BPT_CACHE"] = "/proc/nowhere" if rank == 1 else f"{place}/cache"
    note("half", "good", augmentation="none", epochs=2, cache=True)
Path(f"{place}/said{rank}.json").write_text(json.dumps(said))
Path(f"{place}/found{rank}.json").write_text(json.dumps(found))
from cli.bpt import main
sys.argv[1:] = [
    "evaluate", f"{place}/good", "--data", f"{place}/moved", "--device", "cpu", "--split", "val"
]
main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def runs(place, in_two_processes):
    """How both processes ended, and what they printed."""
    write_images(place / "good")
    write_images(place / "copy")
    write_images(place / "few", {"train": 7, "val": 3, "test": 4})
    for split in ("train", "val", "test"):
        write_images(place / f"bad_{split}")
        (place / f"bad_{split}" / split / "green" / "1.png").write_bytes(b"torn")
    return in_two_processes(PROGRAM, place)


@pytest.fixture(scope="module")
def found(place, runs):
    """What each of the two found, by name."""
    return [json.loads((place / f"found{rank}.json").read_text()) for rank in range(len(runs))]


def read_losses(folder):
    """Of each epoch, on training and validation images."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(one["train_loss"], one["val_loss"]) for one in lines]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "kept", "val", "test", "linear"])
def test_an_image_that_one_process_cannot_read_ends_both(found, name):
    outcomes = [one[name] for one in found]
    assert outcomes[0] == outcomes[1]
    kind, text = outcomes[0]
    assert kind == "ImageError" and "green/1.png" in text


def test_a_loss_that_is_infinite_for_one_process_ends_both(found):
    assert [one["loss"] for one in found] == [["NonFiniteLoss", "the loss is nan"]] * 2


def test_after_an_error_the_processes_train_on(found):
    assert [one["good"] for one in found] == [12, 12]


def test_one_process_goes_on_with_the_batch_that_was_fitted_for_two(place, found):
    assert [one["fitted"] for one in found] == [12, 12]
    run = open_run(place / "fitted")
    assert run.recipe.batch_size == 20  # of 21 images
    (place / "fitted" / "result.json").unlink()
    again = train(replace(run.recipe, batch_size=32, origins={}), place / "fitted", resume=True)
    assert again["epochs"] == 1


def test_processes_that_read_other_images_are_told(found):
    text = "process 1 has other images than process 0; give all processes the same files"
    assert [one["others"] for one in found] == [["BurstError", text]] * 2


def test_features_that_one_process_alone_remembers_are_read_by_both(place, found):
    assert [(one["probe"], one["again"]) for one in found] == [(12, 12)] * 2
    assert read_losses(place / "probe") == read_losses(place / "again")


def test_where_one_process_cannot_keep_tokens_both_train_from_images(place, found):
    assert [one["half"] for one in found] == [12, 12]
    plain, half = (read_losses(place / name) for name in ("plain", "half"))
    assert half == plain
    lines = [one for one in json.loads((place / "said0.json").read_text()) if "each time" in one]
    kept = ["tokens in front of block 5 are computed"] * 3 + ["images are decoded"] * 2
    where = "again each time: in process 1 of 2 /proc/nowhere cannot hold them, "
    assert sorted(one.partition(where)[0].rstrip() for one in lines) == sorted(kept)


def test_the_first_process_prints_the_error_and_both_end_with_its_code(runs):
    first, second = runs
    assert first.returncode == second.returncode == 2
    (line,) = first.stderr.splitlines()
    assert line.startswith("error: ") and "moved" in line
    assert second.stderr == ""
