"""`bpt search` as a user types it."""

import inspect
import json

import pandas as pd
import pytest
import typer
from colours import write_images
from typer.testing import CliRunner

import bpt
from bpt.search import recipes
from cli import bpt as command
from cli._search import search
from cli._training import train
from cli._training_options import of_recipe

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _a_short_probe(monkeypatch):
    """A hundred epochs of it are tested in tests/bpt/search."""
    monkeypatch.setattr(recipes, "LEAST_OF_PROBE", 1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def run(images, *arguments):
    fixed = ("--model", "timm:test_vit", "--weights", "random", "--epochs", "1")
    if "--image-size" not in arguments:
        fixed += ("--image-size", "32")  # four patches
    more = ("--batch-size", "8", "--devices", "cpu", "--processes", "1")
    return RUNNER.invoke(
        command.app, ["search", f"folder:{images}", *fixed, *more, *map(str, arguments)]
    )


@pytest.mark.slow
def test_every_option_reaches_the_trainings_and_the_page_tells_of_them(images, tmp_path):
    out = tmp_path / "out"
    found = run(
        images, "--methods", "linear, vpt", "--out", out, "--seeds", "3", "--folds", "3",
        "--lrs", "0.01,0.1", "--weight-decays", "0.002", "--max-trials", "2",
        "--num-prompts", "2", "--placement", "last:1", "--precision", "bfloat16",
        "--head-weight-decay", "0.03", "--optimizer", "sgd", "--pooling", "patches",
        "--train-fraction", "0.9", "--augmentation", "flip", "--views", "2", "--image-size", "48",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    record = json.loads((out / "search.json").read_text())
    assert record["validation"]["folds"] == 3 and record["trials_each"] == 2
    [linear, vpt] = record["methods"]
    assert (linear["placement"], vpt["placement"]) == (None, "last:1")
    recipe = bpt.open_run(out / vpt["runs"][0]["folder"]).recipe
    wanted = {"seed": 3, "num_prompts": 2, "precision": "bfloat16", "head_weight_decay": 0.03}
    wanted |= {"optimizer": "sgd", "pooling": "patches", "weight_decay": 0.002, "epochs": 1}
    wanted |= {"augmentation": "flip", "views": 2, "image_size": 48}
    wanted |= {"protocol": "last", "train_fraction": 0.9, "lr": vpt["chosen"]["lr"]}
    assert {name: getattr(recipe, name) for name in wanted} == wanted
    assert [one.rpartition(": ")[2] for one in recipe.provenance() if one.startswith("lr ")] == [
        "tried in a search"
    ]
    assert bpt.open_run(out / linear["runs"][0]["folder"]).recipe.head_weight_decay == 0.002
    lines = found.stdout.splitlines()
    assert lines[0].split()[:3] == ["method", "trials", "lr"]
    assert lines[1].startswith("linear") and lines[2].startswith("vpt")
    assert lines[3:-1] == record["sentences"]
    assert lines[-1] == f"written to {out}; the page: {out}/index.html"
    assert "9 validation images are fewer than 500" in found.stderr
    assert "3-fold cross-validation" in (out / "index.html").read_text()
    tested = [one["test"]["mean"] for one in record["methods"]]
    assert list(pd.read_csv(out / "methods.csv")["test"]) == pytest.approx(tested)
    again = run(
        images, "--methods", "linear,vpt", "--out", out, "--seeds", "3", "--folds", "3",
        "--lrs", "0.01,0.1", "--weight-decays", "0.002", "--max-trials", "2",
        "--num-prompts", "2", "--placement", "last:1", "--precision", "bfloat16",
        "--head-weight-decay", "0.03", "--optimizer", "sgd", "--pooling", "patches",
        "--train-fraction", "0.9", "--augmentation", "flip", "--views", "2", "--image-size", "48",
        "--json",
    )  # fmt: skip
    assert json.loads(again.stdout) | {"created": record["created"]} == record


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--methods", "vtp"), "vpt"),
        (("--methods", "vpt,"), "method ''"),
        (("--methods", "vpt", "--lrs", "a"), "--lrs 'a' is no list of numbers"),
        (("--methods", "vpt", "--lrs", "-1"), "lrs [-1.0]"),
        (("--methods", "vpt", "--seeds", "x"), "--seeds 'x'"),
        (("--methods", "vpt", "--rank", "3"), "rank is for bpt-bilinear"),
        (("--methods", "linear", "--devices", "gpu9"), "gpu9"),
    ],
)
def test_a_mistake_is_one_line(images, tmp_path, arguments, says):
    found = run(images, "--out", tmp_path, *arguments)
    assert found.exit_code == 2 and found.stdout == ""
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
    assert says in found.stderr


def test_a_plan_is_a_table_of_what_is_searched_and_nothing_is_written(images, tmp_path):
    out = tmp_path / "out"
    found = run(
        images, "--methods", "linear,vpt", "--out", out, "--placement", "last:1", "--dry-run"
    )
    assert found.exit_code == 0, found.output
    head, linear, vpt, *caption = found.stdout.splitlines()
    assert head.split()[:3] == ["method", "placement", "epochs"]
    assert linear.split()[:5] == ["linear", "1", "≤", "12", "+"]
    assert vpt.split()[:6] == ["vpt", "last:1", "1", "≤", "12", "+"]
    assert "A100" in " ".join(caption)
    assert "fewer than 500" in found.stderr and not out.exists()
    found = run(images, "--methods", "linear,vpt", "--out", out, "--dry-run", "--json", "--quiet")
    plan = json.loads(found.stdout)
    assert list(plan) == ["linear", "vpt"] and plan["vpt"]["trials"] == 12 and not out.exists()
    assert plan["vpt"]["recipe"]["method"] == "vpt"
    assert plan["vpt"]["cost"] is None  # of a backbone that is not known


def test_a_plan_refuses_what_the_search_would(images, tmp_path):
    found = run(images, "--methods", "vpt", "--placement", "99", "--out", tmp_path, "--dry-run")
    assert found.exit_code == 2 and found.stderr.count("\n") == 1


def test_whatever_a_training_of_a_classifier_can_be_told_a_search_can():
    train, search = (
        {option.name for option in typer.main.get_command(command.app).commands[name].params}
        for name in ("train", "search")
    )
    chosen = {"method", "lr", "weight_decay", "seed", "protocol"}  # by the search itself
    coco = {"detector", "schedule", "channels", "smallest_scale", "largest_scale"}
    coco |= {"sampling_ratio", "eval_every"}
    alone = {"device", "resume", "config", "save_config"}
    assert train - search == chosen | coco | alone


@pytest.mark.slow
def test_options_of_single_methods_reach_them_and_are_left_out_of_the_others(images, tmp_path):
    found = run(
        images, "--methods", "gatevpt,bpt-bilinear,bpt-fwhiten", "--out", tmp_path / "out",
        "--seeds", "0", "--lrs", "0.01", "--weight-decays", "0", "--num-prompts", "2",
        "--gate-init", "4", "--prompt-dropout", "0.1", "--mixup", "0.2", "--cutmix", "0.3",
        "--min-lr", "1e-5", "--randaugment", "rand-m5", "--random-erasing", "0.25",
        "--shrinkage", "0.1", "--floor", "0.01", "--through-norm", "--null-gain", "0.2",
        "--label-smoothing", "0.1", "--quiet",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    record = json.loads((tmp_path / "out/search.json").read_text())
    gated, bilinear, whitened = (one["recipe"] for one in record["methods"])
    both = {"mixup": 0.2, "cutmix": 0.3, "min_lr": 1e-5, "randaugment": "rand-m5"}
    both |= {"label_smoothing": 0.1, "random_erasing": 0.25}
    gates = {"gate_init": 4, "prompt_dropout": 0.1}
    matrices = {"shrinkage": 0.1, "floor": 0.01, "through_norm": True, "null_gain": 0.2}
    plain = bpt.Recipe(dataset="digits").to_dict()
    for recipe, own in ((gated, gates), (bilinear, {}), (whitened, matrices)):
        left_out = {name: plain[name] for name in gates | matrices if name not in own}
        assert (both | own | left_out).items() <= recipe.items()
    alone = run(images, "--methods", "bpt-bilinear,vpt", "--null-gain", "0.2", "--out", tmp_path)
    assert alone.exit_code == 2 and "bilinear_init whitening" in alone.stderr


def test_a_mistake_does_not_take_the_folder(images, tmp_path):
    once = ("--seeds", "0", "--lrs", "0.01", "--weight-decays", "0", "--num-prompts", "2")
    methods = ("--methods", "linear,bpt-fwhiten", "--out", tmp_path / "out", *once)
    for wrong, says in (
        (("--image-size", "100"), "100 is no multiple of"),
        (("--whitening", "none.pt"), "none.pt does not exist"),
    ):
        found = run(images, *methods, *wrong)
        assert found.exit_code == 2 and says in found.stderr and found.stderr.count("\n") == 1
        assert not list(tmp_path.rglob("config.json"))
    found = run(images, *methods)
    assert found.exit_code == 0, found.output


def test_interrupted_it_ends_as_shells_expect_it(images, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise bpt.Interrupted(2, "bpt search")

    monkeypatch.setattr(bpt, "search_methods", interrupted)
    found = run(images, "--methods", "vpt", "--out", tmp_path)
    assert found.exit_code == 130 and "to go on: bpt search" in found.stderr


def test_every_option_is_one_of_the_recipe_or_of_the_command_itself():
    """One whose name no recipe has would be dropped without a word."""
    of_train = {"context", "config", "save_config", "dry_run", "seeds", "device", "out", "resume"}
    of_search = {"methods", "lrs", "weight_decays", "seeds", "folds", "max_trials", "halving"}
    of_search |= {"dry_run", "devices", "processes", "out"}
    told = {"quiet", "as_json", "use_compile"}
    for function, own in ((train, of_train), (search, of_search)):
        named = inspect.signature(function).parameters.keys()
        assert named - of_recipe(dict.fromkeys(named)).keys() == own | told


def test_of_options_a_recipe_takes_its_fields_as_they_were_typed():
    typed = {"lr": 0.1, "shrinkage": "0.2", "use_compile": True, "out": "x", "views": None}
    wanted = {"lr": 0.1, "shrinkage": 0.2, "compile": True, "views": None}
    assert of_recipe(typed) == wanted
    assert of_recipe({"shrinkage": "oas", "use_compile": False}) == {
        "shrinkage": "oas",
        "compile": None,
    }


def test_what_is_smaller_for_digits_is_said_before_anything_is_trained(tmp_path):
    words = ["search", "digits", "--methods", "linear,vpt", "--devices", "cpu", "--dry-run"]
    found = RUNNER.invoke(command.app, [*words, "--num-prompts", "3", "--out", str(tmp_path / "x")])
    assert found.exit_code == 0, found.output
    smaller = recipes.SMALL["digits"].items() - {("num_prompts", 10)}
    assert all(f"{name} {value}" in found.stderr for name, value in smaller)
    assert "num_prompts 10" not in found.stderr


def test_halving_trains_fewer_epochs(tmp_path):
    words = ["search", "digits", "--methods", "vpt", "--devices", "cpu", "--dry-run", "--json"]
    words += ["--quiet", "--out", str(tmp_path / "x")]
    found = [RUNNER.invoke(command.app, [*words, *more]) for more in ((), ("--halving",))]
    whole, halved = (json.loads(one.stdout)["vpt"] for one in found)
    assert whole["trials"] == halved["trials"]
    assert 0.7 < halved["cost"]["images"] / whole["cost"]["images"] < 0.9
