"""`bpt train --config` and `--save-config`, and what a training ends with, as a user types them."""

import json
import shlex
import shutil
import tomllib

import layouts
import pytest
import typer
from colours import write_images
from typed import Typed

import bpt
from bpt.recipe import PROTOCOLS
from cli import bpt as command

ONCE = ("--epochs", "2", "--batch-size", "8", "--placement", "last:1", "--num-prompts", "4")
TYPED = Typed(command.app)
run, succeeded, refused = TYPED.run, TYPED.succeeded, TYPED.refused


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    counts = {"train": 3, "val": 1, "test": 1}
    return write_images(tmp_path_factory.mktemp("my photos"), counts)


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    options = (*ONCE, "--rank", "2", "--lr", "0.02", "--seed", "3", "--device", "cpu")
    saved = ("--save-config", place / "run.toml", "--out", place / "a run")
    return place, succeeded("train", f"folder:{images}", *options, *saved)


def science(folder):
    """What a run's files say, but for time and place."""
    run = bpt.open_run(folder)
    timed = ("seconds", "images_per_second")
    metrics = [{k: v for k, v in line.items() if k not in timed} for line in run.metrics]
    result = {k: v for k, v in run.result.items() if k not in (*timed, "created", "command")}
    config = {k: v for k, v in run.config.items() if k not in ("created", "command")}
    return config, metrics, result


def test_a_saved_file_trains_the_same_to_the_same_numbers(trained, tmp_path):
    place, _ = trained
    succeeded("train", "--config", place / "run.toml", "--device", "cpu", "--out", tmp_path / "b")
    again = science(tmp_path / "b")
    for one, other in zip(science(place / "a run"), again, strict=True):
        assert one == other
    first, second = (bpt.open_run(one) for one in (place / "a run", tmp_path / "b"))
    assert all((second.trained_state()[n] == t).all() for n, t in first.trained_state().items())


def test_what_is_typed_beside_a_file_wins(trained, images, tmp_path):
    """Also where it is the option's own default; and the dataset."""
    place, _ = trained
    config = ("train", "--config", place / "run.toml")
    typed = ("--seed", "0", "--epochs", "1", "--out", tmp_path / "c", "--quiet")
    assert succeeded(*config, *typed).output == ""
    recipe = bpt.open_run(tmp_path / "c").recipe
    assert (recipe.seed, recipe.epochs, recipe.lr) == (0, 1, 0.02)
    assert recipe.dataset == f"folder:{images}"
    told = refused("train", "digits", *config[1:], "--method", "linear")
    assert "method linear makes no use of" in told


def test_a_mistake_in_a_file_names_file_and_key(tmp_path):
    (tmp_path / "a.toml").write_text('placment = "deep"\n')
    told = refused("train", "--config", tmp_path / "a.toml", "--out", tmp_path / "x")
    assert "a.toml" in told and "'placment'; did you mean placement" in told
    assert not (tmp_path / "x").exists()


def test_a_saved_file_is_plain_toml(trained):
    place, _ = trained
    content = tomllib.loads((place / "run.toml").read_text())
    assert content["method"] == "bpt-bilinear" and content["lr"] == 0.02
    assert content["seed"] == 3 and not {"lr", "seed"} & set(content["origins"])


@pytest.mark.slow
def test_a_training_on_ones_own_photos_ends_with_commands_that_work(trained, images, monkeypatch):
    place, result = trained
    lines = [line.partition(": bpt ")[2] for line in result.stdout.splitlines() if ": bpt " in line]
    predict, report = (shlex.split(line) for line in lines)
    assert json.loads(succeeded(*predict, "--json").stdout)[0]["image"].startswith(str(images))
    assert "index.html" in succeeded(*report, "--no-confusion").stdout
    assert (place / "a run" / "report" / "index.html").exists()


def test_a_dry_run_says_what_the_training_then_does_and_leaves_nothing(
    images, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BPT_CACHE", str(tmp_path / "cache"))
    words = ("train", f"folder:{images}", *ONCE, "--rank", "2", "--device", "cpu")
    plan = json.loads(succeeded(*words, "--dry-run", "--json").stdout)
    told = succeeded(*words, "--dry-run").stdout
    assert list(tmp_path.iterdir()) == []
    assert told.rstrip().endswith("nothing was trained, written or downloaded")
    succeeded(*words, "--quiet")
    run = bpt.open_run(tmp_path / plan["folder"])
    assert plan["parameters"] == run.config["parameters"]
    assert plan["images"] == [run.config["dataset"][name] for name in ("train", "val", "test")]
    assert plan["steps"] * 2 == run.metrics[-1]["step"]
    assert f"{run.config['parameters']['trained']:,} of" in told
    rows = sum(one.stat().st_size for one in (tmp_path / "cache").rglob("rows.npy"))
    assert plan["kept"] == pytest.approx(rows, rel=0.01)


def test_a_dry_run_of_what_is_not_here_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BPT_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    told = succeeded("train", "cub", "--dry-run", "--device", "cpu").stdout
    assert "5,394 to train" in told and "bpt datasets --download cub" in told
    assert "as published: none was read" in told
    error = refused("train", "cub", "--device", "cpu")
    assert "".join(error.split()) in "".join(told.split())  # however long its path, and so wrapped
    assert "weights of mae_vitb are not on disk" in told or "yes" in told
    assert list(tmp_path.iterdir()) == []
    assert "mask-rcnn on" in succeeded("train", "coco", "--dry-run").stdout
    assert "did you mean vpt" in refused("train", "--dry-run", "--method", "vtp")


def test_a_published_batch_that_the_images_do_not_fill_is_lowered_on_the_way(tmp_path):
    root, out = layouts.flowers(tmp_path / "flowers"), tmp_path / "run"
    words = ("train", "flowers", "--data", root, "--model", "mae_tiny", "--method", "linear")
    words += ("--epochs", "1", "--device", "cpu", "--out", out)
    plan = json.loads(succeeded(*words, "--dry-run", "--json").stdout)
    said = succeeded(*words).stderr
    run = bpt.open_run(out)  # three images to train on, of 1,024 a step
    assert plan["recipe"]["batch_size"] == run.recipe.batch_size == 3
    assert "batch_size 3: there are 3 training images, too few for 1024" in said
    assert run.metrics[-1]["step"] == plan["steps"] == 1


def test_a_dry_run_unpacks_nothing_of_what_is_half_unpacked(tmp_path, monkeypatch):
    root = layouts.flowers(tmp_path / "flowers")
    layouts.pack(root, root / "102flowers.tgz", names=["jpg"])
    shutil.rmtree(root / "jpg")
    before = sorted(root.iterdir())
    monkeypatch.chdir(tmp_path)
    words = ("train", "flowers", "--data", root, "--model", "mae_tiny", "--device", "cpu")
    told = succeeded(*words, "--dry-run").stdout
    assert "102flowers.tgz would be unpacked" in told and sorted(root.iterdir()) == before


def test_a_dry_run_of_a_detector_says_it_in_json_and_where_it_would_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("train", "coco", "--schedule", "3", "--out", "mine", "--dry-run")
    plan = json.loads(succeeded(*words, "--json").stdout)
    assert plan["folder"] == "mine" and plan["recipe"]["dataset"] == "coco"
    assert "mine" in succeeded(*words).stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_that_saves_its_recipe_says_so(images, tmp_path):
    saved = tmp_path / "run.toml"
    words = ("train", f"folder:{images}", *ONCE, "--rank", "2", "--device", "cpu")
    told = succeeded(*words, "--dry-run", "--save-config", saved).stdout
    assert f"nothing but {saved} was written" in told and saved.is_file()


def test_a_dry_run_of_a_fold_counts_the_images_of_the_fold(images, tmp_path):
    recipe = bpt.make_recipe(f"folder:{images}", fold="1/3", batch_size=8)
    plan = bpt.plan_training(recipe, device="cpu")
    whole = bpt.open_dataset(f"folder:{images}")
    one = bpt.dataset.fold_of(whole, "1/3")
    assert plan.images == (len(one.train), len(one.val), len(one.test))
    assert plan.images[0] != len(whole.train)


@pytest.mark.parametrize("name", ["train", "study"])
def test_every_protocol_is_named_where_one_is_asked_for(name):
    options = typer.main.get_command(command.app).commands[name].params
    (told,) = (one.help for one in options if one.name == "protocol")
    assert all(protocol in told for protocol in PROTOCOLS)
