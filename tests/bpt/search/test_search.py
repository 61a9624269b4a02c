"""Whole searches: what they find, that they go on after a kill, and that processes share them."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from dataclasses import replace

import intervals
import pandas as pd
import pytest
import torch
from filelock import FileLock
from safetensors.numpy import load_file
from safetensors.torch import save_file

import bpt
import bpt.search.options as module
import burst
from bpt import Interrupted, Recipe, RunExists, SearchOptions, search_base, search_methods
from bpt.search.recipes import method_recipes
from burst import BurstError, CheckpointError, UnknownName

METHODS = ("spt", "vpt")
LRS = (2e-4, 6e-4)  # where trials, seeds and methods differ; colours are learned by heart at 0.01
OPTIONS = SearchOptions(lrs=LRS, weight_decays=(0.005,), seeds=(0, 1), max_trials=3)


@pytest.fixture(scope="module", autouse=True)
def _single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(colours):
    """At 32 pixels the backbone has four patches, not the hundred of its own size."""
    given = {"model": "timm:test_vit", "weights": "random", "image_size": 32}
    given |= {"epochs": 2, "batch_size": 8, "num_prompts": 2, "placement": "last:1"}
    return search_base("folder", data=str(colours), **given)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The folder of an undisturbed search, what it gave, and what it said."""
    out, said = tmp_path_factory.mktemp("search"), []
    record = search_methods(base, METHODS, out, options=OPTIONS, devices=("cpu",), say=said.append)
    return out, record, said


def found_in(record):
    """All but when and by which command it was written."""
    return {name: value for name, value in record.items() if name not in ("created", "command")}


def sessions(out):
    """By run folder how many times it was trained on: each time leaves a file of events."""
    return {
        str(folder.parent.relative_to(out)): len(list(folder.parent.glob("events.*")))
        for folder in out.rglob("config.json")
    }


def test_a_search_with_few_validation_images_cross_validates_and_says_so(whole):
    out, record, said = whole
    assert record["validation"] == {"kind": "cross", "images": 33, "folds": 2}
    assert "9 validation images are fewer than 500: 2-fold cross-validation" in said[0]
    assert record["complete"] and record["test_images"] == 12 and record["seeds"] == [0, 1]
    assert json.loads((out / "search.json").read_text()) == record
    assert [one["method"] for one in record["methods"]] == list(METHODS)
    assert {len(one["trials"]) for one in record["methods"]} == {record["trials_each"]}


def test_a_score_is_that_of_the_last_epoch_over_the_images_of_all_folds(whole):
    out, record, _ = whole
    for one in record["methods"]:
        assert one["chosen"]["score"] == max(trial["score"] for trial in one["trials"])
        for trial in one["trials"]:
            folder = out / trial["folder"]
            assert folder.name.endswith("fold2of2")
            assert trial["epochs"] == 4
            right = images = 0
            for place in (folder, folder.with_name(folder.name.replace("fold2", "fold1"))):
                run = bpt.open_run(place)
                count = run.config["dataset"]["val"]
                right += run.metrics[-1]["val_accuracy"] / 100 * count
                images += count
                assert run.result is None  # its test images were not read
            assert images == 33 and trial["score"] == pytest.approx(100 * right / images)


def test_the_best_is_trained_on_all_images_with_every_seed(whole):
    out, record, _ = whole
    for one in record["methods"]:
        assert [run["seed"] for run in one["runs"]] == [0, 1]
        for run in one["runs"]:
            found = bpt.open_run(out / run["folder"])
            assert found.recipe.protocol == "last" and found.recipe.lr == one["chosen"]["lr"]
            assert run["best_epoch"] == found.recipe.epochs and run["val_accuracy"] is None
            answers = load_file(out / run["folder"] / "predictions.safetensors")
            right = (answers["predicted"] == answers["labels"]).mean()
            assert 100 * right == pytest.approx(run["test_accuracy"])
        values = [run["test_accuracy"] for run in one["runs"]]
        assert one["test"]["values"] == values and one["test"]["mean"] == sum(values) / 2


def test_differences_are_those_of_the_means_and_are_put_into_words(whole):
    out, record, _ = whole
    means = {one["method"]: one["test"]["mean"] for one in record["methods"]}
    [found] = record["differences"]
    assert (found["method"], found["against"]) == ("spt", "vpt")
    assert found["difference"] == pytest.approx(means["spt"] - means["vpt"])
    numbers = [found[name] for name in ("difference", "low", "high")]
    assert numbers == pytest.approx(intervals.of_methods(record, found, out))
    assert record["sentences"][0].startswith(f"spt {means['spt']:.1f} % is ")


def test_the_dataset_is_opened_once_for_all_trainings(base, tmp_path, monkeypatch):
    opened, really = [], bpt.configuration.open_dataset

    def open_dataset(*arguments, **options):
        opened.append(arguments)
        return really(*arguments, **options)

    monkeypatch.setattr(bpt.configuration, "open_dataset", open_dataset)
    once = replace(OPTIONS, lrs=(0.01,), seeds=(0,), max_trials=1)
    search_methods(base, ("vpt",), tmp_path, options=once, devices=("cpu",))
    assert len(sessions(tmp_path)) == 3 and len(opened) == 1  # two folds, and all images


def test_a_folder_without_locks_is_said_once(base, whole, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    out, record, _ = whole
    said = []
    again = search_methods(base, METHODS, out, options=OPTIONS, devices=("cpu",), say=said.append)
    assert again["methods"] == record["methods"]
    warning = f"{out} has no locks; see that no other process works in it"
    assert said.count(warning) == 1


def test_a_probe_trains_on_its_features_longer_than_prompts_and_it_is_said(
    base, tmp_path, monkeypatch
):
    methods = ("linear", "vpt")
    decays = {"weight_decays": (0.0, 0.005), "max_trials": 2, "halving": True}
    once = replace(OPTIONS, lrs=(0.01,), seeds=(0,), **decays)
    epochs = {name: one.epochs for name, one in method_recipes(base, methods).items()}
    assert epochs == {"linear": 100, "vpt": 2}
    monkeypatch.setattr(bpt.search.recipes, "LEAST_OF_PROBE", 5)
    said = []
    record = search_methods(
        base, methods, tmp_path, options=once, devices=("cpu",), say=said.append
    )
    assert "linear trains 5 epochs, not 2, on features computed once" in said[0]
    linear, vpt = record["methods"]
    assert [one["recipe"]["epochs"] for one in (linear, vpt)] == [5, 2]
    assert [[one["epochs"] for one in each["trials"]] for each in (linear, vpt)] == [
        [10, 10],  # two folds: of a probe nothing is stopped
        [4, 1],
    ]
    assert {one["of_epochs"] for one in linear["trials"]} == {10}
    assert len(bpt.open_run(tmp_path / linear["runs"][0]["folder"]).metrics) == 5
    monkeypatch.undo()
    longer = method_recipes(search_base("digits", epochs=150), methods)
    assert {name: one.epochs for name, one in longer.items()} == dict.fromkeys(methods, 150)
    assert longer["linear"].warmup_epochs == 15


def test_the_table_of_trials_has_a_row_each(whole):
    out, record, _ = whole
    table = pd.read_csv(out / "search.csv")
    assert len(table) == sum(len(one["trials"]) for one in record["methods"])
    assert set(table.method) == set(METHODS) and table.score.notna().all()


def test_more_seeds_and_methods_use_what_is_there(base, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(bpt.search.recipes, "LEAST_OF_PROBE", 1)
    shutil.copytree(whole[0], tmp_path / "more")
    before = sessions(whole[0])
    options = replace(OPTIONS, seeds=(2, 1, 0))  # the trials stay those of 0
    methods = (*METHODS, "linear")
    record = search_methods(base, methods, tmp_path / "more", options=options, devices=("cpu",))
    assert before.items() <= sessions(tmp_path / "more").items()
    trials = {one["folder"] for entry in whole[1]["methods"] for one in entry["trials"]}
    assert trials < {one["folder"] for entry in record["methods"] for one in entry["trials"]}
    assert [run["seed"] for run in record["methods"][0]["runs"]] == [2, 1, 0]
    assert [len(one["runs"]) for one in record["methods"]] == [3, 3, 3]
    pairs = {(one["method"], one["against"]) for one in record["differences"]}
    assert pairs == {("spt", "vpt"), ("linear", "vpt"), ("spt", "linear")}


def test_without_halving_what_was_stopped_goes_on_and_comes_to_the_same(base, tmp_path):
    longer = search_base(
        "folder", **{one: getattr(base, one) for one in base.origins} | {"epochs": 4}
    )
    grid = {"lrs": (6e-4,), "weight_decays": (0.0, 0.5), "seeds": (0,), "max_trials": 2}
    found = {}
    for name, halving in (("stopped", True), ("stopped", False), ("direct", False)):
        options = SearchOptions(**grid, halving=halving)
        out = tmp_path / name
        record = search_methods(longer, ("vpt",), out, options=options, devices=("cpu",))
        [found[name, halving]] = record["methods"]
    epochs = {key: sorted(trial["epochs"] for trial in one["trials"]) for key, one in found.items()}
    assert epochs["stopped", True] == [1, 8]  # of the first fold; of both
    assert epochs["stopped", False] == [8, 8]
    assert found["stopped", False] == found["direct", False]
    with pytest.raises(RunExists, match="halving False, not True"):
        options = SearchOptions(**grid, halving=True)
        search_methods(longer, ("vpt",), tmp_path / "direct", options=options, devices=("cpu",))


@pytest.mark.parametrize(
    "changes, says", [({"epochs": 3}, "epochs 2, not 3"), ({"num_prompts": 3}, "num_prompts 2")]
)
def test_the_folder_of_another_search_is_refused(base, whole, changes, says):
    other = search_base("folder", **{name: getattr(base, name) for name in base.origins} | changes)
    with pytest.raises(RunExists, match=f"holds a search with .*{says}"):
        search_methods(other, ("vpt",), whole[0], options=OPTIONS, devices=("cpu",))


def test_seeds_without_that_of_the_trials_are_refused(base, whole):
    options = replace(OPTIONS, seeds=(3, 1))
    with pytest.raises(RunExists, match="holds a search with trials of seed 0, which is not asked"):
        search_methods(base, METHODS, whole[0], options=options, devices=("cpu",))


def test_without_its_record_the_trials_keep_their_seed_and_nothing_is_trained_anew(
    base, whole, tmp_path
):
    out = tmp_path / "search"
    shutil.copytree(whole[0], out)
    before = sessions(out)
    (out / "search.json").unlink()  # as the error of a damaged one says
    options = replace(OPTIONS, seeds=(1, 0))
    record = search_methods(base, METHODS, out, options=options, devices=("cpu",))
    assert record["trial_seed"] == 0 and sessions(out) == before
    assert [one["trials"] for one in record["methods"]] == [
        one["trials"] for one in whole[1]["methods"]
    ]


def test_a_training_whose_answers_are_lost_is_tested_again_as_the_error_says(base, whole, tmp_path):
    out = tmp_path / "search"
    shutil.copytree(whole[0], out)
    run = out / whole[1]["methods"][0]["runs"][1]["folder"]
    (run / "predictions.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"{run} holds no .*: delete its result\.json, and"):
        search_methods(base, METHODS, out, options=OPTIONS, devices=("cpu",))
    (run / "result.json").unlink()
    record = search_methods(base, METHODS, out, options=OPTIONS, devices=("cpu",))
    assert found_in(record) == found_in(whole[1])


@pytest.fixture(scope="module")
def whitened(base, tmp_path_factory):
    """The folder of a search of whitened prompts, by one rate, after which vpt alone was asked."""
    out = tmp_path_factory.mktemp("whitened")
    options = SearchOptions(lrs=(0.01,), weight_decays=(0.005,), seeds=(0,), max_trials=1)
    for method in ("bpt-dwhiten", "vpt"):
        search_methods(base, (method,), out, options=options, devices=("cpu",))
    return out, options


@pytest.mark.parametrize(
    "methods, changes, says",
    [
        (("vpt", "bpt-dwhiten"), {"floor": 1e-6}, "floor 0.001, not 1e-06"),
        (("bpt-dwhiten",), {"null_gain": 0.5}, "null_gain 1.0, not 0.5"),
        (("bpt-dwhiten",), {"whitening": "W.pt"}, "matrices of the training images, not of a file"),
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_runs_of_another_recipe_are_not_taken_for_those_of_now(
    base, whitened, tmp_path, methods, changes, says, recorded
):
    """Not even where search.json, which holds what was asked last, says nothing of them."""
    out = shutil.copytree(whitened[0], tmp_path / "search")
    if not recorded:
        (out / "search.json").unlink()
    given = {name: getattr(base, name) for name in base.origins}
    other = search_base("folder", **given | changes)
    with pytest.raises(RunExists, match=f"holds a search with .*{says}"):
        search_methods(other, methods, out, options=whitened[1], devices=("cpu",))


def test_a_method_that_has_another_loop_of_its_own_can_be_added(base, whitened, tmp_path):
    out = shutil.copytree(whitened[0], tmp_path / "search")
    given = {name: getattr(base, name) for name in base.origins}
    options, rank = whitened[1], {"rank": 2}  # which is for the new one alone
    methods = ("vpt", "bpt-bilinear")
    record = search_methods(
        search_base("folder", **given | rank), methods, out, options=options, devices=("cpu",)
    )
    assert [one["method"] for one in record["methods"]] == list(methods) and record["complete"]


def test_trials_on_other_images_or_weights_are_not_taken_for_those_of_now(
    base, whole, colours, tmp_path
):
    given = {name: getattr(base, name) for name in base.origins}
    backbone = burst.load_backbone("timm:test_vit", "random", seed=1)
    save_file(backbone.model.state_dict(), tmp_path / "vit.safetensors")
    shutil.copytree(colours, tmp_path / "fewer")
    next((tmp_path / "fewer").rglob("*.png")).unlink()
    for other, says in (
        ({"weights": str(tmp_path / "vit.safetensors")}, "a search with other weights;"),
        ({"data": str(tmp_path / "fewer")}, "a search with other images;"),
    ):
        changed = search_base("folder", **given | other)
        with pytest.raises(RunExists, match=says):
            search_methods(changed, METHODS, whole[0], options=OPTIONS, devices=("cpu",))
    shutil.copytree(colours, tmp_path / "moved")
    moved = search_base("folder", **given | {"data": str(tmp_path / "moved")})
    shutil.copytree(whole[0], tmp_path / "search")
    assert search_methods(moved, METHODS, tmp_path / "search", options=OPTIONS)["complete"]


def searched(base, out):
    """In a process of its own."""
    torch.set_num_threads(1)
    search_methods(base, METHODS, out, options=OPTIONS, devices=("cpu",))


def until_there(condition, process=None):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.is_alive())
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same(base, whole, tmp_path, forkserver):
    for count in (1, 4, 7):  # run folders that have begun
        process = forkserver.Process(target=searched, args=(base, tmp_path))
        process.start()
        until_there(lambda n=count: len(list(tmp_path.rglob("config.json"))) >= n, process)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    again = search_methods(base, METHODS, tmp_path, options=OPTIONS, devices=("cpu",))
    assert found_in(again) == found_in(whole[1])


@pytest.mark.slow
def test_two_processes_train_each_trial_once(base, whole, tmp_path, forkserver):
    processes = [forkserver.Process(target=searched, args=(base, tmp_path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    found = json.loads((tmp_path / "search.json").read_text())
    assert found_in(found) == found_in(whole[1])
    assert sessions(tmp_path) == sessions(whole[0])


@pytest.mark.slow
def test_several_devices_share_a_search(base, whole, tmp_path, monkeypatch, forkserver):
    monkeypatch.setattr(multiprocessing, "get_context", {"spawn": forkserver}.get)
    said = []
    found = search_methods(
        base, METHODS, tmp_path, options=OPTIONS, devices=("cpu", "cpu"), say=said.append
    )
    assert found_in(found) == found_in(whole[1]) and sessions(tmp_path) == sessions(whole[0])
    assert sum(line.startswith("vpt seed 1: test") for line in said) == 1


@pytest.mark.slow
def test_what_a_killed_process_leaves_the_others_take(
    base, whole, tmp_path, monkeypatch, forkserver
):
    monkeypatch.setattr(multiprocessing, "get_context", {"spawn": forkserver}.get)
    others, said = set(multiprocessing.active_children()), []

    def kill():
        until_there(lambda: any(tmp_path.rglob("config.json")))
        (set(multiprocessing.active_children()) - others).pop().kill()

    killer = threading.Thread(target=kill)
    killer.start()
    found = search_methods(
        base, METHODS, tmp_path, options=OPTIONS, devices=("cpu", "cpu"), say=said.append
    )
    killer.join()
    assert any("its process ended" in line for line in said)
    assert found_in(found) == found_in(whole[1])


def test_interrupted_it_says_how_to_go_on(base, whole, tmp_path):
    def interrupt(done, _):
        os.kill(os.getpid(), signal.SIGINT)

    out = shutil.copytree(whole[0], tmp_path / "search")
    shutil.rmtree(out / whole[1]["methods"][0]["trials"][0]["folder"])  # the last fold of one
    (out / "search.json").unlink()
    with pytest.raises(Interrupted) as caught:
        search_methods(base, METHODS, out, options=OPTIONS, devices=("cpu",), progress=interrupt)
    assert caught.value.signum == signal.SIGINT and "--resume" not in caught.value.command
    assert not json.loads((out / "search.json").read_text())["complete"]
    again = search_methods(base, METHODS, out, options=OPTIONS, devices=("cpu",))
    assert found_in(again) == found_in(whole[1])


def test_with_enough_validation_images_the_first_seeds_trial_becomes_its_run(
    base, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "LEAST_VALIDATION", 9)
    record = search_methods(base, ("vpt",), tmp_path, options=OPTIONS, devices=("cpu",))
    assert record["validation"] == {"kind": "split", "images": 9, "folds": None}
    [vpt] = record["methods"]
    chosen = vpt["chosen"]
    [trial] = [one for one in vpt["trials"] if one["lr"] == chosen["lr"]]
    assert vpt["runs"][0]["folder"] == trial["folder"]
    assert vpt["runs"][0]["val_accuracy"] == chosen["score"] == trial["score"]
    names = [path.parent.name for path in tmp_path.rglob("result.json")]
    assert sorted(names) == sorted(f"lr{chosen['lr']:g}-wd0.005-seed{seed}" for seed in (0, 1))


def test_what_diverges_has_no_score_and_loses(base, tmp_path):
    options = SearchOptions(lrs=(0.1, 1e25), weight_decays=(0.0,), seeds=(0,), max_trials=2)
    record = search_methods(base, ("vpt",), tmp_path, options=options, devices=("cpu",))
    [vpt] = record["methods"]
    scores = {one["lr"]: one["score"] for one in vpt["trials"]}
    assert scores[1e25] is None and vpt["chosen"]["lr"] == 0.1
    assert (tmp_path / "runs" / "vpt" / "lr1e+25-wd0-seed0-fold1of2" / "diverged.json").exists()


def test_where_all_diverge_it_says_so(base, tmp_path):
    options = SearchOptions(lrs=(1e25,), weight_decays=(0.0,), seeds=(0,))
    record = search_methods(base, ("vpt",), tmp_path, options=options, devices=("cpu",))
    assert record["complete"] and record["methods"][0]["chosen"] is None
    assert record["sentences"] == ["vpt: every trial diverged."]


def test_a_seed_that_diverges_at_the_end_is_told(base, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "search")
    place = tmp_path / "search" / whole[1]["methods"][0]["runs"][1]["folder"]
    (place / "result.json").unlink()
    (place / "diverged.json").write_text('{"diverged": "the loss is nan"}')
    record = search_methods(base, METHODS, tmp_path / "search", options=OPTIONS, devices=("cpu",))
    assert record["complete"] and record["differences"] == []
    assert record["sentences"][0].startswith("spt: 1 of 2 seeds diverged")


@pytest.mark.parametrize(
    "methods, error, says",
    [
        ((), BurstError, "at least one, and no two the same"),
        (("vpt", "vpt"), BurstError, "at least one, and no two the same"),
        (("vtp",), UnknownName, "vpt"),
        (("linear",), BurstError, "num_prompts is for"),
    ],
)
def test_methods_that_make_no_sense_are_refused(base, tmp_path, methods, error, says):
    with pytest.raises(error, match=says):
        search_methods(base, methods, tmp_path, devices=("cpu",))


def test_options_that_make_no_sense_are_refused():
    for changes, says in (
        ({"seeds": ()}, "at least one whole number"),
        ({"seeds": (1, 1)}, "no two the same"),
        ({"folds": 1}, "at least 2"),
        ({"max_trials": 3}, "the grid has 8 points"),
        ({"lrs": ()}, "at least one number"),
    ):
        with pytest.raises(BurstError, match=says):
            SearchOptions(**changes)
    with pytest.raises(BurstError, match="coco is for detection; a search compares classifiers"):
        search_base("coco")
    with pytest.raises(BurstError, match="lr is what a search chooses"):
        search_base("digits", lr=0.1)


def test_the_defaults_of_digits_leave_each_method_the_placement_that_it_can_have():
    recipes = method_recipes(search_base("digits"), ("vpt", "gatevpt"))
    assert [one.placement for one in recipes.values()] == ["last:4", "shallow"]
    asked = method_recipes(search_base("digits", placement="last:2"), ("vpt", "gatevpt"))
    assert [one.placement for one in asked.values()] == ["last:2", "shallow"]


def test_a_plain_recipe_is_a_base_as_well(base):
    plain = Recipe(dataset="folder", **{name: getattr(base, name) for name in base.origins})
    assert bpt.search.recipes.given_of(plain) == bpt.search.recipes.given_of(base)
