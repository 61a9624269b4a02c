"""Studies: finished trainings stay, failures do not stop the rest, devices share the work."""

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from filelock import FileLock

import bpt
from bpt import Interrupted, Recipe, dataset_sizes, run_study
from burst import BurstError


@pytest.fixture(scope="module")
def recipes(colours):
    base = Recipe(
        dataset="folder",
        data=str(colours),
        model="timm:test_vit",
        weights="random",
        method="linear",
        epochs=2,
        batch_size=8,
    )
    return {"one": base, "two": replace(base, lr=0.1), "lost": replace(base, data="nowhere")}


@pytest.fixture(scope="module")
def finished(recipes, tmp_path_factory):
    """The folder of a study of all three, what it gave, and what it said."""
    out, said = tmp_path_factory.mktemp("study"), []
    return out, run_study(recipes, out, seeds=(0, 1), devices=("cpu",), say=said.append), said


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}


def test_a_study_goes_past_a_failure_and_finished_runs_stay(recipes, finished):
    out, found, said = finished
    assert list(found) == ["one", "two", "lost"]
    assert "'nowhere' does not exist" in found["lost"]
    for name in ("one", "two"):
        accuracy = found[name]["test_accuracy"]
        values = [
            json.loads((out / name / f"seed_{seed}" / "result.json").read_text())["test_accuracy"]
            for seed in (0, 1)
        ]
        assert accuracy["values"] == values and accuracy["mean"] == sum(values) / 2
    assert any(line.startswith("2/3 two: test accuracy") for line in said)
    before = stamps(out)
    assert run_study(recipes, out, seeds=(0, 1), devices=("cpu",))["one"] == found["one"]
    assert stamps(out) == before and len(before) == 4


def test_a_study_goes_past_a_training_that_a_gpu_has_no_room_for(recipes, tmp_path, monkeypatch):
    trained = bpt.study.train_seed

    def full(recipe, *rest, **options):
        if recipe.lr == 0.1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")
        return trained(recipe, *rest, **options)

    monkeypatch.setattr("bpt.study.train_seed", full)
    two = {name: recipes[name] for name in ("two", "one")}
    found = run_study(two, tmp_path, devices=("cpu",))
    assert found["two"] == "the GPU has no room left (tried to allocate 2.00 GiB)"
    assert "test_accuracy" in found["one"]


def test_several_devices_share_the_runs(recipes, finished, tmp_path, monkeypatch, forkserver):
    monkeypatch.setattr(multiprocessing, "get_context", {"spawn": forkserver}.get)
    shared = run_study(recipes, tmp_path, seeds=(0, 1), devices=("cpu", "cpu"))
    assert shared == finished[1]


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")], ids=len)
def test_what_another_process_trains_is_passed_over_and_then_waited_for(
    devices, recipes, finished, tmp_path, monkeypatch, forkserver
):
    monkeypatch.setattr(multiprocessing, "get_context", {"spawn": forkserver}.get)
    for name in ("study", "side_by_side"):
        monkeypatch.setattr(f"bpt.{name}.POLL", 0.01)
    shutil.copytree(finished[0] / "one", tmp_path / "one")
    (tmp_path / "one" / "seed_0" / "result.json").unlink()
    lock = FileLock(tmp_path / "one" / "seed_0" / ".config.json.lock", thread_local=False)
    lock.acquire()
    told = []

    def say(line):
        told.append(line)
        if line.startswith("1/2 two: test accuracy"):
            lock.release()

    two = {name: recipes[name] for name in ("one", "two")}
    found = run_study(two, tmp_path, seeds=(0, 1), devices=devices, say=say)
    assert found == {name: finished[1][name] for name in two}
    assert told.count("one: another process trains seed 0") == 1
    assert told[-1].startswith("2/2 one: test accuracy")
    assert list(tmp_path.rglob("*.lock")) == []


def test_a_study_needs_a_device(recipes, tmp_path):
    with pytest.raises(BurstError, match="at least one device"):
        run_study(recipes, tmp_path, devices=())


def test_an_interrupted_study_goes_on(recipes, tmp_path):
    prompts = replace(recipes["one"], method="vpt", num_prompts=2, epochs=1, placement="last:1")
    recipes = {"one": recipes["one"], "two": prompts}

    def interrupt(done, _):
        if (tmp_path / "one" / "summary.json").exists() and done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        run_study(recipes, tmp_path, devices=("cpu",), progress=interrupt)
    assert caught.value.signum == signal.SIGINT and "--resume" not in caught.value.command
    assert (tmp_path / "two" / "seed_0" / "checkpoint.pt").exists()
    before = stamps(tmp_path)
    found = run_study(recipes, tmp_path, devices=("cpu",))
    assert len(found) == 2 and before.items() <= stamps(tmp_path).items()


def test_ones_own_images_are_counted(colours):
    assert dataset_sizes(Recipe(dataset=f"folder:{colours}")) == (24, 9, 12)
    assert dataset_sizes(Recipe(dataset="imagenet", train_fraction=0.1)) == (118117, 10000, 50000)


@pytest.mark.parametrize("fraction", [0.3, 0.5])
def test_a_fraction_of_a_dataset_with_a_validation_split_leaves_that_whole(fraction):
    train, val, test = dataset_sizes(Recipe(dataset="digits", train_fraction=fraction))
    found = bpt.open_dataset("digits", train_fraction=fraction).sizes
    assert (val, test) == found[1:] and abs(train - found[0]) <= 10  # rounded class by class
