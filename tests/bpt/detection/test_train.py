"""Whole trainings of a detector on pictures of shapes: what they leave, resume and refuse."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
from shapes import SHAPES, write_shapes

import bpt
from bpt import engine
from bpt.detection.inference import open_images
from bpt.detection.recipe import DetectionRecipe
from bpt.errors import Interrupted, NonFiniteLoss, RunExists
from burst.errors import BurstError, CheckpointError, ImageError, OutputError

SMALL = {"model": "timm:test_vit", "weights": "random", "image_size": 64, "channels": 8}
SMALL |= {"batch_size": 2, "num_prompts": 4, "rank": 2}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), 4, size=64, count=2)


@pytest.fixture(scope="module")
def two_shapes(tmp_path_factory):
    """A step an epoch."""
    return write_shapes(tmp_path_factory.mktemp("two"), 2, size=64, count=2)


@pytest.fixture(scope="module")
def recipe(shapes):
    return DetectionRecipe(dataset=f"coco:{shapes}", schedule="2", lr=3e-4, **SMALL)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A training that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    bpt.train(recipe, out, device="cpu")
    return bpt.open_run(out)


def losses_of(run):
    return [line["losses"] for line in run.metrics]


def test_the_folder_says_what_was_trained_and_how(whole, recipe):
    assert isinstance(whole, bpt.DetectionRun)
    assert whole.recipe == recipe
    assert whole.classes == SHAPES
    assert whole.category_ids == (1, 8, 15)
    about = whole.config
    assert about["choices"]["class_token"].startswith("attends")
    assert about["dataset"]["train"] == about["dataset"]["val"] == 4
    assert about["backbone"]["notes"] == list(whole.load_backbone().notes)
    assert about["parameters"]["prompts"] == 2 * (4 + 64)
    assert about["parameters"]["heads"] > about["parameters"]["prompts"]
    state = whole.trained_state()
    assert {name.partition(".")[0] for name in state} == {
        *("trunk", "pyramid", "proposals", "boxes", "masks")
    }
    assert [name for name in state if "vit" in name] == []


def test_each_epoch_has_a_line_and_the_end_has_the_scores(whole):
    assert [line["epoch"] for line in whole.metrics] == [1, 2]
    line = whole.metrics[0]
    assert line["loss"] == pytest.approx(sum(line["losses"].values()))
    assert line["box_AP"] is None and line["prompt_grad_norm"] > 0
    result = whole.result
    assert set(result["scores"]) == {
        f"{kind}_{name}"
        for kind in ("box", "mask")
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")
    }
    assert list(result["per_class"]) == list(SHAPES)
    assert (result["images"], result["objects"]) == (4, 8)


def test_what_was_found_is_a_result_list_of_coco(whole):
    found = whole.detections()
    assert found == json.loads((whole.folder / "detections.json").read_text())
    ids = set(whole.category_ids)
    assert all(one["category_id"] in ids and 1 <= one["image_id"] <= 4 for one in found)
    truth = open_images(whole).ground_truth()
    again = bpt.average_precision(truth, found)
    assert again.values["box_AP"] == pytest.approx(whole.result["scores"]["box_AP"])


@pytest.mark.parametrize("at", [1, 3])
def test_a_training_that_a_signal_ends_goes_on_to_the_same_numbers(
    at, recipe, whole, tmp_path, monkeypatch
):
    """Bit for bit: images, regions that are sampled, losses, tensors."""
    original, steps = engine.Trainer.step, []

    def step(self, batch):
        steps.append(1)
        if len(steps) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(engine.Trainer, "step", step)
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        bpt.train(recipe, out, device="cpu")
    monkeypatch.undo()
    bpt.train(recipe, out, device="cpu", resume=True)
    resumed = bpt.open_run(out)
    assert losses_of(resumed) == losses_of(whole)
    for name, value in whole.trained_state().items():
        assert torch.equal(value, resumed.trained_state()[name])
    assert resumed.result["scores"] == whole.result["scores"]


def test_a_run_at_its_end_gives_its_result_again(recipe, whole):
    assert bpt.train(recipe, whole.folder, device="cpu", resume=True) == whole.result
    with pytest.raises(RunExists, match="already holds a run"):
        bpt.train(recipe, whole.folder, device="cpu")


def test_a_run_of_another_kind_or_recipe_is_not_gone_on_with(recipe, whole, colours, tmp_path):
    other = DetectionRecipe.from_dict(recipe.to_dict() | {"detector": "cascade"})
    with pytest.raises(RunExists, match="detector mask-rcnn, not cascade"):
        bpt.train(other, whole.folder, device="cpu", resume=True)
    classifier = bpt.Recipe(dataset=f"folder:{colours}", batch_size=4)
    with pytest.raises(RunExists, match="of another kind"):
        bpt.train(classifier, whole.folder, device="cpu", resume=True)


def test_a_loss_that_is_not_finite_ends_it_in_one_line(recipe, tmp_path, monkeypatch):
    original = engine.Trainer.step

    def step(self, batch):
        return original(self, batch) * math.nan

    monkeypatch.setattr(engine.Trainer, "step", step)
    with pytest.raises(NonFiniteLoss, match="Lower lr"):
        bpt.train(recipe, tmp_path / "run", device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, more",
    [
        ("linear", {}),
        ("full", {"drop_path": 0.5}),
        ("spt", {"placement": "deep"}),
        ("vpt", {"precision": "bfloat16", "sampling_ratio": 2}),
        ("gatevpt", {"gate_init": 1.0, "prompt_dropout": 0.1, "checkpoint_activations": True}),
        ("bpt-fwhiten", {"placement": "last:2"}),
        ("bpt-dwhiten", {"floor": 0.01, "null_gain": 1.0}),
        (
            "bpt-bilinear",
            {"detector": "cascade", "checkpoint_activations": True, "accumulation": 2},
        ),
    ],
)
def test_every_method_trains_and_comes_back(method, more, shapes, two_shapes, tmp_path):
    few = shapes if "whiten" in method else two_shapes  # a whitening needs more tokens
    options = SMALL | {"schedule": "1", "method": method} | more
    recipe = DetectionRecipe(dataset=f"coco:{few}", **options)
    result = bpt.train(recipe, tmp_path / "run", device="cpu")
    run = bpt.open_run(tmp_path / "run")
    found = run.detections()
    scores, path = bpt.evaluate_detector(run)
    assert path == run.folder / "detections.json"
    assert run.detections() == found
    assert scores.values["mask_AP"] == pytest.approx(result["scores"]["mask_AP"])
    bpt.export_detector(run, tmp_path / "d.safetensors")
    exported, _ = bpt.load_exported_detector(tmp_path / "d.safetensors")
    batch = bpt.Batch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), ((64, 64),))
    (mine,), (theirs,) = exported.detect(batch), run.load_detector()[0].detect(batch)
    torch.testing.assert_close(mine.boxes, theirs.boxes)


def test_several_seeds_have_a_mean_and_a_spread(recipe, tmp_path):
    one = DetectionRecipe.from_dict(recipe.to_dict() | {"schedule": "1"})
    summary = bpt.train_seeds(one, (0, 1), tmp_path, device="cpu")
    assert len(summary["box_AP"]["values"]) == 2
    assert summary["box_AP"]["std"] is not None


def test_a_moved_set_is_found_again_and_another_is_refused(whole, shapes, tmp_path):
    moved = shutil.copytree(shapes, tmp_path / "moved")
    before = whole.detections()
    scores, _ = bpt.evaluate_detector(whole, data=moved)
    assert scores.values["box_AP"] == pytest.approx(whole.result["scores"]["box_AP"])
    for name in ("image_id", "category_id", "score"):
        assert [one[name] for one in whole.detections()] == [one[name] for one in before]
    other = write_shapes(tmp_path / "other", 4, size=64, count=2, seed=1)
    with pytest.raises(CheckpointError, match="holds other images"):
        bpt.evaluate_detector(whole, data=other)
    labels = moved / "annotations" / "instances_val.json"
    content = json.loads(labels.read_text())
    content["annotations"][0]["iscrowd"] = 1
    labels.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="has other masks, areas or crowds"):
        bpt.evaluate_detector(whole, data=moved)


def test_the_training_images_can_be_scored_too(whole):
    scores, path = bpt.evaluate_detector(whole, "train")
    assert path.name == "detections-train.json"
    assert scores.images == 4


def test_what_is_seen_in_a_photo_is_named_and_in_its_own_pixels(whole, shapes, tmp_path):
    (found,) = bpt.predict_objects(whole, shapes / "images" / "0001.png", threshold=0.0)
    assert found.place.endswith("0001.png") and found.image.size == (64, 64)
    assert found.objects
    for one in found.objects:
        assert one["name"] in SHAPES
        assert one["segmentation"]["size"] == [64, 64]
        x, y, width, height = one["bbox"]
        assert x >= 0 and y >= 0 and x + width <= 64 + 1e-3 and y + height <= 64 + 1e-3
    scores = [one["score"] for one in found.objects]
    assert scores == sorted(scores, reverse=True)
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"torn")
    told, places = [], [torn, shapes / "images" / "0001.png"]
    (none,) = bpt.predict_objects(whole, places, threshold=1.0, on_bad=told.append)
    assert none.objects == [] and none.place == str(places[1])
    assert len(told) == 1 and "'torn.png'" in told[0]
    with pytest.raises(ImageError, match=r"torn\.png"):
        next(bpt.predict_objects(whole, places))
    with pytest.raises(BurstError, match="threshold is 2"):
        next(bpt.predict_objects(whole, [shapes], threshold=2))


def test_an_exported_detector_finds_the_same_with_plain_prompts(whole, tmp_path):
    file = tmp_path / "detector.safetensors"
    bpt.export_detector(whole, file)
    detector, names = bpt.load_exported_detector(file)
    assert names == dict(zip(whole.category_ids, SHAPES, strict=True))
    assert [name for name in detector.trained_state() if "prompts" in name] == [
        "trunk.prompts.0.values"
    ]
    mine, _ = whole.load_detector()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    batch = bpt.Batch(images, ((64, 64),))
    (one,), (other,) = detector.detect(batch), mine.detect(batch)
    torch.testing.assert_close(one.boxes, other.boxes)
    with pytest.raises(OutputError, match=r"\.safetensors"):
        bpt.export_detector(whole, tmp_path / "detector.pt")
    with pytest.raises(CheckpointError, match="not an exported model"):
        bpt.load_exported(file)


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole.folder, tmp_path / "copy")


def test_detections_that_cannot_be_written_lose_nothing(copy, short_files):
    run = bpt.open_run(copy)
    before = (copy / "detections.json").read_bytes()
    with pytest.raises(OutputError, match="cannot write"):
        bpt.evaluate_detector(run)
    assert (copy / "detections.json").read_bytes() == before
    assert [path.name for path in copy.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "damage",
    [
        *({"score": one} for one in (math.nan, "a", 2)),
        *({"bbox": one} for one in ([1, 2], [math.nan] * 4, None)),
        *({"category_id": 99}, {"image_id": None}, {"segmentation": None}),
        *({"segmentation": {"size": size, "counts": "PP1"}} for size in ([-1, 64], [9, 9])),
        {"segmentation": {"size": [64, 64], "counts": "zzzzz"}},
    ],
)
def test_a_damaged_entry_of_what_was_found_is_named(whole, copy, damage):
    found = whole.detections()[:2]
    (copy / "detections.json").write_text(json.dumps([found[0], found[1] | damage]))
    with pytest.raises(CheckpointError, match=r"detections\.json is damaged: its entry 2 is no"):
        bpt.open_run(copy).detections()


@pytest.mark.parametrize(
    "content, says", [('{"a": 1}', "holds no list"), ("[1]", "its entry 1 is")]
)
def test_what_is_no_list_of_detections_is_told(copy, content, says):
    (copy / "detections.json").write_text(content)
    with pytest.raises(CheckpointError, match=says):
        bpt.open_run(copy).detections()


def test_what_was_found_is_kept_where_it_cannot_be_scored(whole, copy, monkeypatch):
    def refuse(*_):
        raise BurstError("no scores")

    (copy / "detections.json").unlink()
    (copy / "result.json").unlink()
    monkeypatch.setattr("bpt.detection.train.average_precision", refuse)
    with pytest.raises(BurstError, match="no scores"):
        bpt.train(whole.recipe, copy, device="cpu", resume=True)
    assert bpt.open_run(copy).detections() == whole.detections()
    assert not (copy / "result.json").exists()


def test_fewer_images_than_a_batch_are_refused(shapes, tmp_path):
    recipe = DetectionRecipe(dataset=f"coco:{shapes}", **SMALL | {"batch_size": 16})
    with pytest.raises(BurstError, match="4 training images are fewer than a batch of 16"):
        bpt.train(recipe, tmp_path / "run", device="cpu")


@pytest.fixture(scope="module")
def scored(two_shapes, tmp_path_factory):
    """The run of one epoch that is scored, and what it said."""
    out, lines = tmp_path_factory.mktemp("scored") / "run", []
    one = DetectionRecipe(dataset=f"coco:{two_shapes}", schedule="1", eval_every=1, **SMALL)
    bpt.train(one, out, device="cpu", say=lines.append)
    return bpt.open_run(out), lines


def test_before_it_starts_it_says_what_it_will_take(scored):
    (estimate,) = [line for line in scored[1] if "by estimate" in line]
    assert "on one H100" in estimate and "GiB for 2 images at once" in estimate


def test_the_last_epoch_is_scored_once_and_has_the_scores_of_the_result(scored):
    run, lines = scored
    assert len([line for line in lines if line.startswith("scoring ")]) == 1
    again = bpt.average_precision(open_images(run).ground_truth(), run.detections())
    for name in ("box_AP", "mask_AP"):
        assert run.metrics[-1][name] == run.result["scores"][name] == again.values[name]
