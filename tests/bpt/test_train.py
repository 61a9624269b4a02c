"""Whole trainings: what they write, what stops them, and that they go on to the same numbers."""

import json
import math
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from colours import write_images
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import bpt
import burst
from bpt import (
    Interrupted,
    NonFiniteLoss,
    Recipe,
    RunBusy,
    RunExists,
    engine,
    evaluate_run,
    open_run,
    session,
    train,
    train_seeds,
)
from bpt.run_folder import load_checkpoint, save_checkpoint
from bpt.train import ClassificationSession
from burst import BurstError, CheckpointError, OutputError
from burst.lock import if_alone

TIMED = {"seconds", "images_per_second"}


@pytest.fixture(scope="module", autouse=True)
def _single_thread():
    """So that trainings come to the same bits here and in a process of their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recipe(colours):
    """Of timm's own model for tests: 6 blocks of width 64; at 32 pixels it has four patches."""
    return Recipe(
        dataset="folder",
        data=str(colours),
        model="timm:test_vit",
        weights="random",
        image_size=32,
        placement="last:1",
        num_prompts=4,
        rank=2,
        epochs=3,
        batch_size=8,
    )


@pytest.fixture(scope="module")
def packaged(recipe):
    """The same of a pretrained model: 12 blocks of width 192."""
    return replace(recipe, model="mae_tiny", weights=None, image_size=None)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """The run of the recipe, never interrupted; not to be changed."""
    out = tmp_path_factory.mktemp("whole")
    train(recipe, out)
    return out


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A run of one epoch."""
    out = tmp_path_factory.mktemp("finished")
    train(replace(recipe, epochs=1), out)
    return out


@pytest.fixture
def copy(finished, tmp_path):
    """The run of one epoch, to be changed."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def numbers(folder):
    """Metrics without what a clock measured."""
    return [{k: v for k, v in m.items() if k not in TIMED} for m in open_run(folder).metrics]


def same_end(one, other):
    a, b = load_file(one / "prompt.safetensors"), load_file(other / "prompt.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert numbers(one) == numbers(other)
    first, second = (json.loads((f / "result.json").read_text()) for f in (one, other))
    for name in ("best_epoch", "val_accuracy", "val_loss", "test_accuracy", "test_loss"):
        assert first[name] == second[name]


def test_a_training_that_stops_after_an_epoch_goes_on_to_the_same_bits(recipe, whole, tmp_path):
    last = train(recipe, tmp_path / "run", until=1)
    assert last["epoch"] == 1 and last["val_accuracy"] is not None
    assert open_run(tmp_path / "run").result is None  # the test split was not read
    assert train(recipe, tmp_path / "run", until=1, resume=True)["epoch"] == 1
    assert train(recipe, tmp_path / "run", until=3, resume=True)["epoch"] == 3
    assert open_run(tmp_path / "run").result is None
    train(recipe, tmp_path / "run", resume=True)
    same_end(tmp_path / "run", whole)


@pytest.fixture(scope="module")
def of_21_images(recipe, tmp_path_factory):
    """A recipe with a batch that nobody gave, and fewer images."""
    few = write_images(tmp_path_factory.mktemp("few"), {"train": 7, "val": 3, "test": 4})
    return replace(recipe, data=str(few), batch_size=32, epochs=2)


@pytest.mark.parametrize("before, after, size", [(1, 4, 21), (2, 1, 20)])
def test_a_training_goes_on_with_the_batch_that_was_fitted_or_says_why_not(
    of_21_images, tmp_path, before, after, size
):
    train(replace(of_21_images, accumulation=before), tmp_path, until=1)
    assert open_run(tmp_path).recipe.batch_size == size
    other = replace(of_21_images, accumulation=after)
    if size % after:
        with pytest.raises(BurstError, match=f"batch_size {size} cannot be cut into {after} equal"):
            train(other, tmp_path, resume=True)
        return
    assert train(other, tmp_path, resume=True)["epochs"] == 2
    assert [one["step"] for one in open_run(tmp_path).metrics] == [1, 2]


def test_a_batch_that_was_given_is_not_taken_for_one_that_was_fitted(of_21_images, tmp_path):
    train(replace(of_21_images, batch_size=7), tmp_path, until=1)
    with pytest.raises(RunExists, match="batch_size 7, not 21"):
        train(of_21_images, tmp_path, resume=True)


@pytest.mark.parametrize("processes, told", [(1, False), (2, True)])
def test_dropout_of_prompts_that_other_processes_draw_anew_is_said(
    recipe, tmp_path, processes, told
):
    dropped = replace(recipe, method="vpt", prompt_dropout=0.1)
    train(dropped, tmp_path, until=1)
    state = load_checkpoint(tmp_path)
    state["trainer"]["random"] *= processes  # as if so many had saved theirs
    save_checkpoint(tmp_path, {name: one for name, one in state.items() if name != "kind"})
    said = []
    train(dropped, tmp_path, until=2, resume=True, say=said.append)
    line = "the prompts' dropout is drawn anew: the processes are not as many as before"
    assert (line in said) == told


def test_a_test_loss_that_no_number_holds_is_null(recipe, tmp_path, monkeypatch):
    classified = bpt.train.__globals__["ClassificationSession"]
    classify = classified._classify

    def overflowing(self, split):
        scores, answers = classify(self, split)
        return replace(scores, loss=math.inf if split == "test" else scores.loss), answers

    monkeypatch.setattr(classified, "_classify", overflowing)
    result = train(replace(recipe, epochs=1), tmp_path)
    assert result["test_loss"] is None and result["test_accuracy"] is not None
    assert open_run(tmp_path).result["test_loss"] is None


@pytest.mark.parametrize("until", [0, 4])
def test_there_must_be_such_an_epoch_to_stop_after(recipe, tmp_path, until):
    with pytest.raises(BurstError, match=r"until is .*1\.\.3"):
        train(recipe, tmp_path / "run", until=until)


def test_a_run_keeps_the_class_that_each_test_image_was_given(recipe, whole):
    found = load_file(whole / "predictions.safetensors")
    split = bpt.open_dataset("folder", recipe.data).test
    assert found["labels"].tolist() == split.labels.tolist()
    right = 100 * (found["predicted"] == found["labels"]).double().mean()
    assert float(right) == pytest.approx(open_run(whole).result["test_accuracy"])


@pytest.mark.parametrize(
    "name, change",
    [
        ("predicted", lambda one: one + 3),
        ("labels", lambda one: -one),  # NumPy would count -1 for the last class
        ("labels", lambda one: one[:-1]),
        ("labels", lambda one: one.double()),
        ("predicted", lambda one: one[:, None]),
        ("predicted", None),
        (None, lambda one: one[:-1]),
    ],
)
def test_answers_that_are_no_classes_of_the_test_images_are_told(copy, name, change):
    path = copy / "predictions.safetensors"
    for one in [name] if name else ["predicted", "labels"]:
        answers = load_file(path)
        found = answers.pop(one)
        save_file(answers | ({one: change(found).contiguous()} if change else {}), path)
    with pytest.raises(CheckpointError, match=r"predictions\.safetensors is damaged"):
        bpt.confusion_matrix(open_run(copy))


def test_what_is_confused_is_kept_and_of_an_older_run_read(whole, tmp_path, monkeypatch):
    older = shutil.copytree(whole, tmp_path / "older")
    (older / "predictions.safetensors").unlink()
    read = bpt.confusion_matrix(open_run(older))
    monkeypatch.delattr("bpt.inference.open_benchmark")  # without which no image is found
    assert bpt.confusion_matrix(open_run(whole)).tolist() == read.tolist()


def test_protocol_last_trains_on_all_images_and_keeps_the_last_epoch(recipe, tmp_path):
    said = []
    result = train(replace(recipe, protocol="last"), tmp_path / "run", say=said.append)
    run = open_run(tmp_path / "run")
    assert result["best_epoch"] == 3 and result["val_accuracy"] is None
    assert [line["step"] for line in run.metrics] == [4, 8, 12]  # 33 images in steps of 8
    assert {line["val_accuracy"] for line in run.metrics} == {None}
    state = load_checkpoint(tmp_path / "run")["trainer"]["model"]
    assert all(torch.equal(value, state[name]) for name, value in run.trained_state().items())
    assert any("epoch 3/3  loss" in line and " val " not in line for line in said)


def test_a_fold_is_validated_on_and_the_rest_trained_on(recipe, tmp_path):
    train(replace(recipe, fold="2/3"), tmp_path / "run", until=1)
    about = open_run(tmp_path / "run").config["dataset"]
    assert (about["train"], about["val"], about["test"]) == (22, 11, 12)
    with pytest.raises(RunExists, match="fold 2/3, not 1/3"):
        train(replace(recipe, fold="1/3"), tmp_path / "run", resume=True)
    with pytest.raises(BurstError, match="protocol last trains on all images"):
        replace(recipe, fold="2/3", protocol="last")


def test_a_run_folder_holds_what_was_promised(recipe, tmp_path):
    said = []
    steps = []
    result = train(
        recipe, tmp_path / "run", say=said.append, progress=lambda *done: steps.append(done)
    )
    run = open_run(tmp_path / "run")
    assert result == run.result
    assert run.recipe == recipe
    assert run.classes == ("blue", "green", "red")
    assert run.config["dataset"]["train"] == 24
    assert torch.__version__.startswith(run.config["versions"]["torch"])
    assert run.config["parameters"] == {
        "trained": 2 * (4 + 64) + 3 * 64 + 3,
        "prompts": 2 * (4 + 64),
        "backbone": 0,
        "head": 3 * 64 + 3,
        "total": sum(p.numel() for p in run.load_model()[0].parameters()),
    }
    assert [line["epoch"] for line in run.metrics] == [1, 2, 3]
    assert steps == [(step, 9) for step in range(1, 10)]
    assert sum("epoch" in line for line in said) == 3
    assert set(run.trained_state()) == {
        "prompts.5.left",
        "prompts.5.right",
        "head.weight",
        "head.bias",
    }
    for line in run.metrics:
        assert line["prompt_grad_norm"] > 0 and line["largest_prompt"] > 0
        assert 0 <= line["train_accuracy"] <= 100
    best = max(run.metrics, key=lambda line: line["val_accuracy"])
    assert result["best_epoch"] == best["epoch"]
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    logged = [event.value for event in events.Scalars("val_accuracy")]
    assert logged == pytest.approx([line["val_accuracy"] for line in run.metrics])


@pytest.mark.parametrize(
    "method", ["vpt", "spt", "bpt-fwhiten", "bpt-twhiten", "bpt-dwhiten", "linear", "full"]
)
def test_every_method_trains_and_is_read_back(recipe, tmp_path, method):
    changes = {"method": method, "epochs": 1, "precision": "float32"}
    result = train(replace(recipe, lr=None, **changes), tmp_path)
    found = bpt.evaluate_run(open_run(tmp_path), "test")
    assert found.images == 12
    assert found.accuracy == pytest.approx(result["test_accuracy"])
    assert found.loss == pytest.approx(result["test_loss"], rel=1e-5)


def test_the_head_of_a_linear_probe_is_trained_on_features_of_the_frozen_backbone(
    packaged, tmp_path
):
    train(replace(packaged, method="linear", lr=None, epochs=20), tmp_path)
    run = open_run(tmp_path)
    assert set(run.trained_state()) == {"head.weight", "head.bias"}
    assert run.metrics[-1]["train_loss"] < run.metrics[0]["train_loss"]
    assert run.metrics[-1]["train_accuracy"] == 100  # three colours


def test_the_epoch_is_chosen_on_val_and_test_is_read_once(recipe, tmp_path, monkeypatch):
    read = []
    original = bpt.frozen_batches.PrefixBatches.evaluation

    def watched(self, split):
        read.append(split)
        return original(self, split)

    monkeypatch.setattr(bpt.frozen_batches.PrefixBatches, "evaluation", watched)
    train(recipe, tmp_path)
    assert read == ["val", "val", "val", "test"]


@pytest.mark.parametrize("batch_size, rest", [(7, 3), (8, 0), (23, 1), (9, 6)])
def test_images_that_fill_no_batch_are_left_out_and_said(recipe, tmp_path, batch_size, rest):
    said = []
    one = replace(recipe, batch_size=batch_size, epochs=1)
    train(one, tmp_path / "run", say=said.append)
    images = 24
    (line,) = open_run(tmp_path / "run").metrics
    assert line["step"] == (images - rest) // batch_size
    told = f"each epoch leaves out {rest} of {images} training images, others each time"
    assert any(told in text for text in said) == (rest * 10 >= images)


def test_the_authors_protocol_trains_on_both_and_says_that_it_is_optimistic(recipe, tmp_path):
    result = train(replace(recipe, protocol="authors"), tmp_path)
    metrics = open_run(tmp_path).metrics
    accuracies = [line["test_accuracy"] for line in metrics]
    assert result["last_epoch"] == {"epoch": 3, "test_accuracy": accuracies[-1]}
    assert result["best_on_test"]["test_accuracy"] == max(accuracies) == result["test_accuracy"]
    assert metrics[-1]["step"] == 3 * (33 // 8)  # 24 + 9 images
    assert "optimistic" in result["label"]
    assert result["val_accuracy"] is None


def test_a_moving_average_is_what_is_evaluated_and_kept(recipe, finished, tmp_path):
    train(replace(recipe, ema_decay=0.5, epochs=1), tmp_path)
    with_it = open_run(tmp_path).trained_state()
    last = open_run(finished).trained_state()
    start = bpt.build_model(recipe, burst.load_backbone(recipe.model, recipe.weights), 3)
    moved = {n: p.detach() for n, p in start.named_parameters() if p.requires_grad}
    for name, value in with_it.items():  # between the start and the end
        assert not torch.equal(value, last[name])
        assert (value - moved[name]).norm() < (last[name] - moved[name]).norm() * 1.01


def test_seeds_are_summed_up(recipe, tmp_path):
    summary = train_seeds(replace(recipe, epochs=1), [3, 5], tmp_path)
    results = [open_run(tmp_path / f"seed_{seed}").result for seed in (3, 5)]
    values = [result["test_accuracy"] for result in results]
    assert summary["test_accuracy"]["values"] == values
    assert summary["test_accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    assert summary["test_accuracy"]["std"] == pytest.approx(
        abs(values[0] - values[1]) / math.sqrt(2)
    )
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    again = train_seeds(replace(recipe, epochs=1), [3, 5], tmp_path, resume=True)
    assert again == summary
    with pytest.raises(BurstError, match="no two the same"):
        train_seeds(recipe, [1, 1], tmp_path)


def test_the_global_random_state_does_not_matter(recipe, finished, tmp_path):
    torch.manual_seed(1234)
    train(replace(recipe, epochs=1), tmp_path)
    same_end(finished, tmp_path)


def test_a_run_is_not_overwritten_and_not_gone_on_with_by_another_recipe(recipe, copy):
    result = open_run(copy).result
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(RunExists, match=r"resume it \(--resume, in Python resume=True\)"):
        train(replace(recipe, epochs=1), copy)
    with pytest.raises(RunExists, match=r"lr 0\.05, not 0\.1"):
        train(replace(recipe, epochs=1, lr=0.1), copy, resume=True)
    assert train(replace(recipe, epochs=1, workers=1), copy, resume=True) == result
    assert before == {path.name: path.read_bytes() for path in copy.iterdir()}


def test_a_folder_that_another_process_trains_in_is_refused(recipe, copy):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    told = f"another process trains in {copy} now"
    with if_alone(copy / "config.json"), pytest.raises(RunBusy, match=told):
        train(recipe, copy, resume=True)
    assert before == {path.name: path.read_bytes() for path in copy.iterdir()}


def test_what_cannot_be_trained_leaves_no_folder(recipe, tmp_path):
    with pytest.raises(BurstError, match="does not exist"):
        train(replace(recipe, data="nowhere"), tmp_path / "made" / "for" / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("behind_a_colon", [False, True])
def test_other_images_are_another_run(recipe, colours, copy, tmp_path, behind_a_colon):
    other = tmp_path / "images"
    shutil.copytree(colours, other)
    place = {"dataset": f"folder:{other}", "data": None} if behind_a_colon else {"data": str(other)}
    moved = replace(recipe, epochs=1, **place)
    assert train(moved, copy, resume=True)  # the same images elsewhere
    (other / "train/red/0.png").unlink()
    with pytest.raises(RunExists, match="other images"):
        train(moved, copy, resume=True)


def test_a_run_that_was_begun_with_another_crop_is_not_gone_on_with(recipe, copy):
    """By a version that cropped all images at 0.875 and did not say so; its result stays."""
    one = replace(recipe, epochs=1)
    config = json.loads((copy / "config.json").read_text())
    now = config["backbone"].pop("crop_fraction")
    assert now != 0.875
    (copy / "config.json").write_text(json.dumps(config))
    assert train(one, copy, resume=True) == open_run(copy).result
    (copy / "result.json").unlink()
    with pytest.raises(RunExists, match=rf"cropped at 0\.875 \(center\), and .* at {now} "):
        train(one, copy, resume=True)


def test_a_diverging_training_keeps_the_last_good_state(recipe, whole, tmp_path, monkeypatch):
    original = bpt.engine.Trainer.step

    def step(self, batch):
        images, labels = batch
        diverged = len(list(tmp_path.glob("run/metrics.jsonl"))) > 0
        return original(self, (images * (math.nan if diverged else 1.0), labels))

    monkeypatch.setattr(bpt.engine.Trainer, "step", step)
    with pytest.raises(NonFiniteLoss, match="Lower lr"):
        train(recipe, tmp_path / "run")
    assert [line["epoch"] for line in open_run(tmp_path / "run").metrics] == [1]
    monkeypatch.undo()
    train(recipe, tmp_path / "run", resume=True)
    same_end(tmp_path / "run", whole)


@pytest.mark.parametrize("protocol", ["standard", "last"])
def test_an_epochs_last_step_that_diverges_is_a_divergence_as_any(
    recipe, tmp_path, monkeypatch, protocol
):
    """Its loss was finite still; what it left is not."""
    original = bpt.engine.Trainer.step

    def step(self, batch):
        found = original(self, batch)
        with torch.no_grad():
            next(iter(self.trained.values())).fill_(math.nan)
        return found

    monkeypatch.setattr(bpt.engine.Trainer, "step", step)
    one = replace(recipe, epochs=1, batch_size=24, protocol=protocol)
    with pytest.raises(NonFiniteLoss, match=r"after epoch 1; .*Lower lr"):
        train(one, tmp_path / "run")


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"batch_size": 40}, "24 training images are fewer"),
        ({"placement": "last:13"}, "last:13"),
        ({"model": "mae_tinny"}, "mae_tiny"),
        ({"data": "/nowhere"}, "does not exist"),
        ({"method": "bpt-fwhiten", "whitening": "/nowhere.pt"}, "does not exist"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(recipe, tmp_path, changes, says):
    with pytest.raises(BurstError, match=says) as caught:
        train(replace(recipe, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_run_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "other"}')
    with pytest.raises(CheckpointError, match="not the configuration"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    "name, path, value",
    [
        ("config.json", ("dataset", "classes", 2), 0),
        ("config.json", ("recipe", "model"), 3),
        ("metrics.jsonl", ("val_accuracy",), {}),
        ("metrics.jsonl", ("epoch",), None),
        ("metrics.jsonl", (), {}),
        ("result.json", ("images_per_second",), math.nan),
        ("result.json", (), [1]),
    ],
)
def test_a_value_of_the_wrong_type_in_a_runs_file_is_told(copy, name, path, value):
    inner = content = [json.loads((copy / name).read_text())]
    *above, last = (0, *path)
    for key in above:
        inner = inner[key]
    inner[last] = value
    (copy / name).write_text(json.dumps(content[0]) + "\n")
    with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
        run = open_run(copy)
        _ = run.metrics, run.result


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "result.json"])
def test_bytes_of_a_runs_file_that_are_no_text_are_told(copy, name):
    (copy / name).write_bytes(b'{"epoch": "\xff"}\n')
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: 'utf-8' codec"):
        run = open_run(copy)
        _ = run.metrics, run.result


@pytest.mark.parametrize("name", ["prompt.safetensors", "config.json", "metrics.jsonl"])
def test_a_truncated_file_of_a_run_is_named(copy, name):
    path = copy / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=name):
        run = open_run(copy)
        _ = run.metrics, run.load_model()


@pytest.mark.parametrize("part", ["prompts.5.left", "head.bias"])
def test_the_state_of_another_training_is_not_gone_on_with(recipe, copy, part):
    state = load_checkpoint(copy)
    tensors = state["trainer"]["model"]
    state["trainer"]["model"] = {name: one for name, one in tensors.items() if name != part}
    save_checkpoint(copy, state)
    (copy / "result.json").unlink()
    says = rf"checkpoint\.pt is of another training, or damaged: .*{part} is missing; .* delete it"
    with pytest.raises(CheckpointError, match=says):
        train(replace(recipe, epochs=1), copy, resume=True)
    (copy / "checkpoint.pt").unlink()
    assert train(replace(recipe, epochs=1), copy, resume=True)["epochs"] == 1


def test_a_full_disk_loses_nothing_that_was_saved(recipe, whole, tmp_path, monkeypatch):
    from burst import files

    original = files._settle

    def settle(temporary, target):
        if target.name == "checkpoint.pt" and target.exists():
            raise OSError(28, "No space left on device")
        original(temporary, target)

    monkeypatch.setattr(files, "_settle", settle)
    with pytest.raises(OutputError, match="No space left"):
        train(recipe, tmp_path / "run")
    monkeypatch.undo()
    train(recipe, tmp_path / "run", resume=True)
    same_end(tmp_path / "run", whole)


def test_what_a_killed_training_began_to_write_goes_when_it_goes_on(recipe, whole, tmp_path):
    shutil.copytree(whole, run := tmp_path / "run")
    with subprocess.Popen(["true"]) as process:
        process.wait()
    left = run / f".part-{socket.gethostname()}@{process.pid}-x1_y2.pt"
    left.write_bytes(b"half a checkpoint")
    train(recipe, run, resume=True)
    assert not left.exists()


@pytest.mark.parametrize("of", ["_get_file_writer", "add_scalar", "close"])
def test_no_room_for_curves_is_one_line(recipe, tmp_path, monkeypatch, of):
    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, of, full)
    with pytest.raises(OutputError, match=r"^cannot write to .*/run: .*No space left on device$"):
        train(recipe, tmp_path / "run")


MEGABYTE = 2**20


def test_a_checkpoint_goes_to_the_disk_without_a_copy_in_memory(tmp_path):
    state = {"weights": torch.zeros(16 * MEGABYTE // 4)}
    tracemalloc.start()
    save_checkpoint(tmp_path, state)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEGABYTE
    before = resident()
    found = load_checkpoint(tmp_path)
    assert resident() - before < 4 * MEGABYTE
    assert torch.equal(found["weights"], state["weights"])


def resident():
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_last_one(tmp_path):
    save_checkpoint(tmp_path, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*checkpoint\.pt: File too large"):
            save_checkpoint(tmp_path, {"weights": torch.zeros(MEGABYTE)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(tmp_path)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_signal_during_an_evaluation_loses_nothing(recipe, whole, tmp_path, monkeypatch, split):
    original = bpt.frozen_batches.PrefixBatches.evaluation

    def interrupted(self, name):
        if name == split:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, name)

    monkeypatch.setattr(bpt.frozen_batches.PrefixBatches, "evaluation", interrupted)
    with pytest.raises(Interrupted) as caught:
        train(recipe, tmp_path / "run")
    assert caught.value.signum == signal.SIGTERM
    assert caught.value.command == "call the same function again with resume=True"
    monkeypatch.undo()
    said = []
    train(recipe, tmp_path / "run", resume=True, say=said.append)
    assert any("resumed" in line for line in said)
    same_end(tmp_path / "run", whole)


# --- from the outside: killed, interrupted, in several processes ---

PROGRAM = """
import signal
import sys

import torch

from bpt import Interrupted, train

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
torch.set_num_threads(1)


def step(done, total):
    pipe.send(total - done)
    if total - done == 1:
        pipe.recv()  # so that it is not at its end before it is stopped


try:
    train(recipe, out, resume=True, progress=step)
except Interrupted as error:
    sys.exit(128 + error.signum)
"""


@pytest.fixture
def start(forkserver):
    """Start a training in a process of its own, and come back after some steps.

    Before its last step it waits for a word.
    """

    def start(recipe, out, *, steps):
        pipe, far = forkserver.Pipe()
        names = {"recipe": recipe, "out": out, "pipe": far}
        process = forkserver.Process(target=exec, args=(PROGRAM, names))
        process.start()
        far.close()
        for _ in range(steps):
            if pipe.recv() == 1:
                break
        return process, pipe

    return start


@pytest.mark.slow
def test_killed_at_random_steps_it_comes_to_the_same_numbers(recipe, start, tmp_path):
    recipe = replace(recipe, method="full", lr=None, drop_path=0.2, ema_decay=0.9)
    train(recipe, tmp_path / "whole")
    rng = random.Random(4)
    for _ in range(3):
        process, _pipe = start(recipe, tmp_path / "run", steps=rng.randint(1, 6))
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "run" / "result.json").exists()
    train(recipe, tmp_path / "run", resume=True)
    same_end(tmp_path / "run", tmp_path / "whole")


def test_an_evaluation_that_fails_costs_no_epoch_that_took_long(
    recipe, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(session, "LONG", -1.0)
    evaluated, step = ClassificationSession._evaluated, engine.Trainer.step
    steps = []

    def damaged(self, done):
        if self.epoch == 1:
            raise BurstError("an image is damaged")
        return evaluated(self, done)

    def counted(self, batch):
        steps.append(batch)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationSession, "_evaluated", damaged)
        with pytest.raises(BurstError, match="damaged"):
            train(recipe, tmp_path / "run")
    monkeypatch.setattr(engine.Trainer, "step", counted)
    train(recipe, tmp_path / "run", resume=True)
    same_end(tmp_path / "run", whole)
    per_epoch = open_run(whole).metrics[0]["step"]
    assert len(steps) == per_epoch * (recipe.epochs - 2)


def test_a_state_that_is_not_finite_does_not_replace_the_last_good_one(
    recipe, tmp_path, monkeypatch
):
    """A gradient that overflows leaves it so, with a loss that was finite."""
    monkeypatch.setattr(session, "SAVE_EVERY", -1.0)
    step, count = engine.Trainer.step, []

    def overflowing(self, batch):
        found = step(self, batch)
        count.append(batch)
        if len(count) == 3:
            with torch.no_grad():
                next(iter(self.trained.values())).fill_(math.nan)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(engine.Trainer, "step", overflowing)
        with pytest.raises(NonFiniteLoss, match="the last good state is kept"):
            train(recipe, tmp_path / "run")
    kept = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert all(value.isfinite().all() for value in kept["trainer"]["model"].values())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_it_and_the_rest_comes_to_the_same(
    recipe, whole, start, tmp_path, signum
):
    process, pipe = start(recipe, tmp_path / "run", steps=4)  # into the second epoch
    os.kill(process.pid, signum)
    with suppress(BrokenPipeError):  # it may have ended already
        pipe.send("go on")
    process.join()
    assert process.exitcode == 128 + signum
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["within"] or state["epoch"] >= 2
    train(recipe, tmp_path / "run", resume=True)
    same_end(tmp_path / "run", whole)


SEVERAL = """
import json, os, signal
from pathlib import Path
import torch
from bpt import Interrupted, Recipe, session, train
from burst import process_group
with process_group():
    for name, values in json.loads(Path(place, "recipes.json").read_text()).items():
        def stop(done, total):
            if name == "resumed" and done == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            if name == "kept" and done == total:
                kept = torch.load(out / "checkpoint.pt", weights_only=True)["within"]["step"]
                Path(place, "steps.json").write_text(json.dumps([kept, done]))
        session.SAVE_EVERY = -1.0 if name == "kept" and rank == 1 else 600.0
        recipe, out = Recipe.from_dict(values), Path(place) / name
        try:
            train(recipe, out, progress=stop)
        except Interrupted:
            train(recipe, out, resume=True)
"""


@pytest.fixture(scope="module")
def of_two(recipe, tmp_path_factory, in_two_processes):
    """A folder of runs: "vpt", "linear", and "whole" and "resumed" of one full fine-tuning."""
    out = tmp_path_factory.mktemp("two")
    tuned = replace(recipe, method="full", lr=1e-3, drop_path=0.5, epochs=2)
    probed = replace(recipe, method="linear", lr=None, epochs=2)
    prompted = replace(recipe, method="vpt", lr=None, epochs=2)
    recipes = {"vpt": prompted, "linear": probed, "whole": tuned, "resumed": tuned}
    recipes["kept"] = replace(probed, epochs=1)
    recipes["normed"] = replace(probed, head_norm="batch", ema_decay=0.9)
    content = json.dumps({name: one.to_dict() for name, one in recipes.items()})
    (out / "recipes.json").write_text(content)
    for one in in_two_processes(SEVERAL, out):
        assert one.returncode == 0, one.stderr[-2000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vpt", "linear"])
def test_two_processes_come_to_the_loss_of_one(recipe, tmp_path, of_two, method):
    train(replace(recipe, method=method, lr=None, epochs=2), tmp_path)
    run = open_run(of_two / method)
    for one, two in zip(numbers(tmp_path), numbers(run.folder), strict=True):
        for name in ("train_loss", "val_loss"):
            assert two[name] == pytest.approx(one[name], rel=1e-3)
        if method == "vpt":
            assert two["prompt_grad_norm"] == pytest.approx(one["prompt_grad_norm"], rel=1e-3)
        assert two["train_accuracy"] == pytest.approx(one["train_accuracy"], abs=5)
    assert run.config["processes"] == 2
    assert run.result["test_images"] == 12


@pytest.mark.parametrize("method", ["vpt", "linear"])
def test_two_processes_count_each_image_once(of_two, method):
    for line in open_run(of_two / method).metrics:
        assert line["images_per_second"] * line["seconds"] == pytest.approx(24)


def test_two_processes_keep_a_state_within_an_epoch_when_it_is_time_for_one(of_two):
    kept, done = json.loads((of_two / "steps.json").read_text())
    assert kept == done - 1 > 0


def test_two_processes_keep_the_mean_of_what_their_norms_have_counted(of_two):
    """So that all evaluate one function, and one alone finds the same later."""
    run = open_run(of_two / "normed")
    best = run.metrics[run.result["best_epoch"] - 1]
    found = evaluate_run(run, "val")
    assert found.loss == pytest.approx(best["val_loss"], rel=1e-5)
    assert evaluate_run(run, "test").loss == pytest.approx(run.result["test_loss"], rel=1e-5)
    assert "head.norm.running_var" in run.trained_state()


def test_two_processes_go_on_to_the_same_numbers(of_two):
    whole, resumed = (load_checkpoint(of_two / one) for one in ("whole", "resumed"))
    for name, value in whole["trainer"]["model"].items():
        assert torch.equal(value, resumed["trainer"]["model"][name]), name
    losses = [[line["train_loss"] for line in one["metrics"]] for one in (whole, resumed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)  # summed up in another order


def test_another_number_of_processes_goes_on_and_says_that_it_draws_anew(recipe, tmp_path, of_two):
    shutil.copytree(of_two / "resumed", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    said = []
    tuned = replace(recipe, method="full", lr=1e-3, drop_path=0.5, epochs=2)
    train(tuned, tmp_path / "run", resume=True, say=said.append)
    assert any("drawn anew" in line for line in said)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_a_compiled_training_comes_to_the_same_loss(recipe, tmp_path, monkeypatch):
    options = torch._inductor.config.cpp
    if hasattr(options, "vec_isa_ok"):  # else six programs are compiled to learn what the CPU has
        monkeypatch.setattr(options, "vec_isa_ok", False)
    linear = replace(recipe, method="linear", placement="shallow", epochs=2)
    train(linear, tmp_path / "plain")
    train(replace(linear, compile=True), tmp_path / "compiled")
    for one, other in zip(numbers(tmp_path / "plain"), numbers(tmp_path / "compiled"), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert one["val_accuracy"] == other["val_accuracy"]
