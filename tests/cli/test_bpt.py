"""`bpt` as a user types it."""

import csv
import io
import json
import os
import shlex
import shutil
import signal
import sys

import layouts
import pandas as pd
import pytest
import torch
from coco_sets import content as coco_content
from coco_sets import write_images as write_coco_images
from coco_sets import write_json
from colours import write_images
from typed import Typed

import bpt
import burst
from cli import _common
from cli import bpt as command
from cli import burst as burst_command
from cli._common import parse_seeds
from cli._common import run as run_command

QUICK = ("--epochs", "2", "--batch-size", "8", "--placement", "last:1", "--num-prompts", "4")
SMALL = (*QUICK, "--rank", "2", "--device", "cpu")
ONCE = (*SMALL, "--epochs", "1")
TYPED = Typed(command.app)
run, succeeded, refused = TYPED.run, TYPED.succeeded, TYPED.refused


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A step of eight, one image of each class to validate and one to test."""
    return write_images(tmp_path_factory.mktemp("few"), {"train": 3, "val": 1, "test": 1})


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "bilinear"
    result = succeeded("train", f"folder:{images}", "--out", out, *SMALL)
    return out, result


def test_a_training_says_each_epoch_and_ends_with_a_table(trained):
    out, result = trained
    assert result.stderr.count("loss") == 2
    assert "test accuracy" in result.stdout
    assert "epoch chosen on the validation split" in result.stdout
    assert f"written to {out}" in result.stdout.replace("\n", "")


def test_quiet_prints_nothing_and_json_the_result(few, tmp_path):
    quiet = succeeded("train", f"folder:{few}", "--out", tmp_path / "q", *ONCE, "--quiet")
    assert quiet.output == ""
    result = succeeded("train", f"folder:{few}", "--out", tmp_path / "j", *ONCE, "--json")
    assert json.loads(result.stdout) == bpt.open_run(tmp_path / "j").result


def test_a_balanced_start_is_in_the_file_of_a_training_that_moved_nothing(few, tmp_path):
    options = (*ONCE, "--bilinear-init", "balanced", "--lr", "1e-7", "--out", tmp_path / "run")
    succeeded("train", f"folder:{few}", *options)
    run = bpt.open_run(tmp_path / "run")
    left, right = (run.trained_state()[f"prompts.11.{name}"] for name in ("left", "right"))
    values = torch.linalg.svdvals(left @ right.mT)[:2]
    vpt = torch.tensor(2 / (3 * 8**2 + 192)).sqrt()  # deviation of the entries
    torch.testing.assert_close(values, (vpt * (4 * 192 / 2) ** 0.5).expand(2), rtol=1e-3, atol=0)
    assert run.config["recipe"]["bilinear_init"] == "balanced"


def test_several_seeds_end_with_mean_and_spread(few, tmp_path):
    result = succeeded(
        "train", f"folder:{few}", "--out", tmp_path, *ONCE, "--seeds", "0,1", "--json"
    )
    assert json.loads(result.stdout)["seeds"] == [0, 1]
    assert (tmp_path / "seed_1" / "result.json").exists()


def test_without_out_the_folder_is_named_after_the_recipe(few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    linear = ("train", f"folder:{few}", "--method", "linear", "--epochs", "1", "--batch-size", 8)
    succeeded(*linear, "--quiet")
    assert (tmp_path / f"runs/folder-{few.name}-mae_tiny-linear-seed0/result.json").exists()
    assert "already holds a run" in refused(*linear)
    succeeded(*linear, "--resume", "--quiet")


def test_a_run_is_evaluated_class_by_class(trained):
    out, _ = trained
    record = json.loads(succeeded("evaluate", out, "--json").stdout)
    result = bpt.open_run(out).result
    assert record["accuracy"] == pytest.approx(result["test_accuracy"])
    assert list(record["per_class"]) == ["blue", "green", "red"]
    line, *table = succeeded("evaluate", out, "--split", "val").stdout.splitlines()
    assert line.startswith("val: 9 images, accuracy") and "loss" in line
    assert any(row.startswith("green") for row in table)


def test_under_torchrun_each_process_evaluates_on_its_own_gpu(trained, monkeypatch):
    class Asked(Exception):
        """Carries the device out of the command."""

    def load_model(_, device):
        raise Asked(device)

    current = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr("burst.device._compute_on", lambda _: None)
    monkeypatch.setattr(bpt.Run, "load_model", load_model)
    result = run("evaluate", trained[0])
    assert isinstance(result.exception, Asked)
    assert list(result.exception.args) == current == [torch.device("cuda", 1)]


@pytest.fixture
def steps(monkeypatch):
    """Of each step of a training, by parameter: the rate and the decay that the optimiser took."""
    seen = []
    step = bpt.engine.Trainer.step

    def watched(self, *batch):
        names = {id(p): name for name, p in self.trained.items()}
        groups = self.optimizer.param_groups
        seen.append(
            {
                names[id(p)]: (group["lr"], group["weight_decay"])
                for group in groups
                for p in group["params"]
            }
        )
        return step(self, *batch)

    monkeypatch.setattr(bpt.engine.Trainer, "step", watched)
    return seen


def test_a_layer_decay_that_is_typed_is_the_share_that_each_step_takes(images, tmp_path, steps):
    """From the option to the optimiser: groups, schedule and trainer scale it once together."""
    command = ("train", f"folder:{images}", "--model", "timm:test_vit", "--weights", "random")
    options = ("--method", "full", "--layer-decay", "0.5", "--lr", "0.01", "--warmup-epochs", "1")
    succeeded(*command, *options, "--epochs", "2", "--batch-size", "8", "--out", tmp_path / "full")
    rates = [{name: rate for name, (rate, _) in step.items()} for step in steps]
    peak = max(rates, key=lambda rates: rates["head.weight"])
    assert peak["head.weight"] == peak["vit.norm.weight"] == pytest.approx(0.01, rel=1e-12)
    for block in range(6):
        share = peak[f"vit.blocks.{block}.attn.qkv.weight"] / 0.01
        assert share == pytest.approx(0.5 ** (6 - block), rel=1e-12)
    assert peak["vit.patch_embed.proj.weight"] == pytest.approx(0.01 * 0.5**7, rel=1e-12)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (("timm:test_vit", "--weights", "random"), (0.005, 0.1, 10)),
        (("mae_tiny",), (0.05, 0.005, 0.5)),
    ],
)
def test_prompts_of_ones_own_images_are_trained_by_the_rates_of_the_pretraining(
    model, wanted, images, tmp_path, steps
):
    """Nothing typed: a net that nothing was published for has the supervised net's, not MAE's."""
    command = ("train", f"folder:{images}", "--method", "vpt", "--placement", "last:1")
    small = ("--num-prompts", "2", "--epochs", "1", "--batch-size", "8", "--device", "cpu")
    succeeded(*command, "--model", *model, *small, "--out", tmp_path / "run")
    decays = {name: decay for name, (_, decay) in steps[0].items()}
    (prompt,) = (name for name in decays if "prompt" in name)
    assert (decays[prompt], decays["head.weight"]) == wanted[1:]
    rates = [max(step[name][0] for step in steps) for name in (prompt, "head.weight")]
    assert rates == pytest.approx([wanted[0]] * 2, rel=1e-12)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["lr"] == wanted[0]


def test_images_are_classified_by_name(trained, images):
    out, _ = trained
    answers = json.loads(succeeded("predict", out, images / "test", "--top", "2", "--json").stdout)
    assert len(answers) == 12
    assert answers[0]["image"].endswith("test/blue/0.png")
    for answer in answers:
        first, second = answer["classes"]
        assert 1 >= first["probability"] >= second["probability"] >= 0
    right = [answer["classes"][0]["name"] in answer["image"] for answer in answers]
    result = bpt.open_run(out).result
    assert 100 * sum(right) / 12 == pytest.approx(result["test_accuracy"])
    assert "%" in succeeded("predict", out, images / "test/red/0.png").stdout


def test_probabilities_that_are_no_numbers_are_null_in_json(trained, images, monkeypatch):
    def predicted(*_, **__):
        return [{"image": "a.png", "classes": [{"name": "red", "probability": float("nan")}]}]

    monkeypatch.setattr(bpt, "predict", predicted)
    answers = json.loads(succeeded("predict", trained[0], images, "--json").stdout)
    assert answers[0]["classes"] == [{"name": "red", "probability": None}]


def test_an_export_is_written_and_gives_the_runs_answers(trained, tmp_path):
    out, _ = trained
    succeeded("export", out, "--out", tmp_path / "m.safetensors")
    model, classes = bpt.load_exported(tmp_path / "m.safetensors")
    theirs, _ = bpt.open_run(out).load_model()
    images = torch.randn(3, 3, 64, 64)
    assert classes == ("blue", "green", "red")
    assert torch.allclose(model(images), theirs(images), atol=1e-5)


def test_weights_of_ones_own_are_found_from_any_folder_or_where_they_are_now(
    few, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(burst.find_backbone("mae_tiny").on_disk(), "own.safetensors")
    options = ("--weights", "own.safetensors", "--out", "run", "--quiet", *ONCE)
    succeeded("train", f"folder:{few}", *options)
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    uses = (("predict", few), ("evaluate",), ("export", "--out", "m.safetensors"))
    for command_name, *words in uses:
        succeeded(command_name, tmp_path / "run", *words)
    (tmp_path / "own.safetensors").rename("moved.safetensors")
    for command_name, *words in uses:
        assert f"weights {tmp_path}/own.safetensors, which are not there" in refused(
            command_name, tmp_path / "run", *words
        )
        succeeded(command_name, tmp_path / "run", *words, "--weights", "moved.safetensors")
    assert "nowhere does not exist" in refused("evaluate", tmp_path / "run", "--weights", "nowhere")
    monkeypatch.chdir(tmp_path)
    assert bpt.load_exported("away/m.safetensors")


@pytest.mark.slow
def test_runs_are_compared_in_a_table_and_a_page(trained, tmp_path):
    out, _ = trained
    other, link = shutil.copytree(out, tmp_path / "other"), tmp_path / "link"
    link.symlink_to(out)
    options = ("--no-confusion", "--style", "slide", "--out", tmp_path / "report")
    result = succeeded("report", out, link, other, f"{other}/../other", *options)  # two runs
    assert result.stdout.count("bpt-bilinear") == 2 and "index.html" in result.stdout
    written = {path.stem for path in (tmp_path / "report").iterdir()}
    figures = {"curves", "prompt_traces", "prompt_values", "prompt_cosines"}
    assert written == {"index", "runs", "published", "trainings"} | figures
    table = pd.read_csv(tmp_path / "report" / "trainings.csv")  # the other is of the same seed
    assert list(table["test"]) == pytest.approx([bpt.open_run(out).result["test_accuracy"]])


def test_the_datasets_are_listed_a_whole_line_each(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = [one["name"] for one in json.loads(succeeded("datasets", "--json").stdout)]
    assert " ".join(names).startswith("digits folder cub nabirds flowers dogs cars imagenet")
    lines = succeeded("datasets").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == names
    assert max(map(len, lines)) <= 80 and "1271167/10000/50000" in "".join(lines)
    verbose = succeeded("datasets", "--verbose").stdout
    assert verbose.count("licence ") == len(names) and "scikit-learn" in verbose


def test_of_a_dataset_that_is_named_everything_is_told(tmp_path):
    told = succeeded("datasets", "cub", "--data", tmp_path).stdout
    for fact in ("5,394 to train", "photographers", "bpt datasets --download cub", "looked in"):
        assert fact in told
    base = layouts.cub(tmp_path)
    told = succeeded("datasets", "cub", "--data", tmp_path).stdout
    assert str(base) in "".join(told.split()) and "to get it" not in told
    record = json.loads(succeeded("datasets", "cub", "--data", tmp_path, "--json").stdout)
    assert record["name"] == "cub" and record["found"] == str(base)
    assert "did you mean cub" in refused("datasets", "cup")


def test_a_dataset_is_found_checked_and_what_is_missing_named(tmp_path):
    base = layouts.cub(tmp_path)
    records = json.loads(succeeded("datasets", "--json", "--data", str(tmp_path)).stdout)
    found = {one["name"]: one["found"] for one in records}
    assert found["cub"] == str(base) and found["dogs"] is None
    broken = sorted(base.rglob("*.jpg"))[0]
    broken.write_bytes(b"")
    result = run("datasets", "--check", "cub", "--data", str(tmp_path), "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 2 and broken.name in report["unreadable"][0]
    assert "3 classes instead of 200" in report["mismatches"]
    text = run("datasets", "--check", "cub", "--data", str(tmp_path)).stdout
    assert "unreadable" in text and "10/2/6 images" in text


def test_a_set_to_detect_is_checked_with_what_its_rules_leave_out(tmp_path):
    made = write_coco_images(tmp_path / "images", coco_content(count=11))
    write_json(tmp_path / "result.json", made)
    text = succeeded("datasets", "--check", f"coco:{tmp_path}").stdout
    assert "9/2 images to train and validate, 2 classes" in text and "complete" in text
    assert "val: 2 of 11 images, held out" in text and "crowds, for evaluation only: 1" in text
    (tmp_path / "images/000003.png").write_bytes(b"")
    found = run("datasets", "--check", f"coco:{tmp_path}", "--json")
    assert found.exit_code == 2 and "000003.png" in json.loads(found.stdout)["unreadable"][0]


def test_what_may_not_be_downloaded_says_where_to_get_it():
    assert "https://dl.allaboutbirds.org/nabirds" in refused("datasets", "--download", "nabirds")


def test_a_benchmark_is_trained_from_its_archive_alone(tmp_path):
    layouts.cub(tmp_path / "made", train=12, test=3)
    place = tmp_path / "data"
    place.mkdir()
    layouts.pack(tmp_path / "made", place / "CUB_200_2011.tgz", names=("CUB_200_2011",))
    out = tmp_path / "run"
    options = (
        "--model",
        "mae_tiny",
        "--epochs",
        "1",
        "--placement",
        "last:1",
        "--num-prompts",
        "2",
    )
    result = succeeded("train", "cub", "--data", str(place), "--out", str(out), *options)
    assert "deep script for MAE on CUB" in result.stderr and "unpacking" in result.stderr
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"]["head_weight_decay"] == 0.5
    assert config["recipe"]["origins"]["num_prompts"] == "given"
    assert "MAE on CUB" in config["recipe"]["origins"]["lr"]
    assert config["dataset"]["classes"][0] == "Black footed Albatross"


@pytest.mark.slow
def test_a_miniature_study_ends_with_a_table(tmp_path):
    images = write_images(tmp_path / "images", counts={"train": 2, "val": 1, "test": 2})
    out = tmp_path / "study"
    command = ("study", "prompt_width", "--dataset", f"folder:{images}", "--model", "mae_tiny")
    command += ("--epochs", "1", "--batch-size", "3", "--out", str(out))
    plan = succeeded(*command, "--dry-run").stdout
    assert plan.count("shallow") == 4 and "hours" in plan and not out.exists()
    result = succeeded(*command)
    table = list(csv.DictReader((out / "prompt_width.csv").read_text().splitlines()))
    assert [line["setting"] for line in table] == [f"rank={rank}" for rank in (25, 50, 75, 100)]
    for line in table:
        run = out / line["run"] / "seed_0" / "result.json"
        assert float(line["ours"]) == json.loads(run.read_text())["test_accuracy"]
        assert line["differs"] == "dataset, model, epochs, batch_size, protocol"
        ours = float(line["published"]) + float(line["difference"])
        assert ours == pytest.approx(float(line["ours"]))
    assert "72.18" in result.stdout
    before = (out / "prompt_width.csv").read_text()
    succeeded(*command)
    assert (out / "prompt_width.csv").read_text() == before
    part = *command, "--only", "*-rank25,*-rank100"
    assert succeeded(*part, "--dry-run").stdout.count("shallow") == 2
    succeeded(*part)
    heading, *lines = before.splitlines()
    assert (out / "prompt_width.csv").read_text().splitlines() == [heading, lines[0], lines[3]]
    assert "unknown run '*-rank2'; known: folder-mae_tiny" in refused(*command, "--only", "*-rank2")


def test_a_study_that_lacks_its_dataset_says_so(tmp_path):
    told = run(
        "study", "prompt_width", "--data", str(tmp_path / "no"), "--out", str(tmp_path / "x")
    )
    assert told.exit_code == 2 and "trainings failed" in told.stderr.splitlines()[-1]
    assert "table11" in refused("study", "table12")


def test_each_numbers_own_protocol_is_taken_and_leaves_a_search_nothing_to_choose_on():
    own = ("study", "fgvc_mae", "--protocol", "published", "--dry-run")
    assert "cub-mae_vitb-full" in succeeded(*own).stdout
    assert "leave --search or --protocol published out" in refused(*own, "--search")
    assert "did you mean published" in refused(*own[:3], "publishd")


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("train", "digit"), "did you mean digits"),
        (("train", "digits", "--method", "vtp"), "did you mean vpt"),
        (("train", "digits", "--model", "mae_tinny"), "mae_tiny"),
        (("train", "digits", "--placement", "last"), "last"),
        (("train", "digits", "--precision", "fp16"), "float16"),
        (("train", "digits", "--epochs", "0"), "epochs is 0"),
        (("train", "digits", "--seed", str(2**32)), "at most 4294967295"),
        (
            ("train", "digits", "--method", "linear", "--placement", "shallow"),
            "no use of placement",
        ),
        (("train", "digits", "--image-size", "70"), "choose 64 or 72"),
        (("train", "digits", "--method", "linear", "--mixup", "0.8"), "no use of mixup"),
        (("train", "digits", "--head-norm", "batch"), "no use of head_norm"),
        (("train", "digits", "--randaugment", "m9"), "rand-m9-mstd0.5-inc1"),
        (("train", "digits", "--label-smoothing", "1"), "label_smoothing is 1.0"),
        (("train", "digits", "--mixup", "-1"), "mixup is -1.0"),
        (("train", "digits", "--random-erasing", "2"), "random_erasing is 2.0"),
        (("train", "digits", "--mixup", "1", "--batch-size", "7"), "7 are odd"),
        (
            ("train", "digits", "--method", "linear", "--head-norm", "batch", "--batch-size", "1"),
            "two images at once",
        ),
        (("train", "digits", "--image-size", "0"), "image_size is 0"),
        (("train", "digits", "--seeds", "0;1"), "0,1,2"),
        (("train", "digits", "--seed", "1", "--seeds", "0,1"), "leave one of them out"),
        (("datasets", "cub", "--check", "digits"), "cub and --check digits: name one"),
        (("train", "digits", "--device", "cuda:99"), "cuda:99"),
        (("train", "digits", "--whitening", "missing.pt"), "missing.pt does not exist"),
        (("train", "folder"), "as data or as folder:PATH"),
        (("evaluate", "nothing"), "not the folder of a run"),
        (("predict", "nothing", "a.jpg"), "not the folder of a run"),
        (("export", "nothing", "--out", "m.safetensors"), "not the folder of a run"),
        (("report", "nothing", "--out", "report"), "not the folder of a run"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refused(*arguments)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == []


def test_mistakes_about_a_run_are_one_line(trained, tmp_path, images):
    out, _ = trained
    assert "did you mean test" in refused("evaluate", out, "--split", "tset")
    assert "does not exist" in refused("predict", out, tmp_path / "no.jpg")
    assert "top is 0" in refused("predict", out, images, "--top", "0")
    for name in ("--threshold", "--out"):
        assert f"{name} is for detectors" in refused("predict", out, images, name, "0.5")
    assert ".safetensors" in refused("export", out, "--out", tmp_path / "m.pt")
    assert ".pt2" in refused(
        "export", out, "--out", tmp_path / "m.safetensors", "--program", tmp_path / "m.onnx"
    )
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    assert "bad.png" in refused("predict", out, tmp_path / "bad.png")


def test_an_image_that_cannot_be_read_costs_no_other_its_answer(trained, images, tmp_path):
    out, _ = trained
    photos = shutil.copytree(images / "test" / "red", tmp_path / "photos")
    whole = json.loads(succeeded("predict", out, photos, "--json").stdout)
    for name in ("0.png", "2.png"):
        (photos / name).write_bytes(b"torn")
    found = run("predict", out, photos, "--json")
    kept = [one for one in whole if one["image"].endswith(("1.png", "3.png"))]
    assert found.exit_code == 2
    for one, other in zip(json.loads(found.stdout), kept, strict=True):
        assert one["image"] == other["image"]
        assert [each["name"] for each in one["classes"]] == [e["name"] for e in other["classes"]]
    shown = run("predict", out, photos)
    assert shown.exit_code == 2 and shown.stdout.count("%") == 6
    for result in (found, shown):
        first, second = result.stderr.splitlines()
        assert first.startswith("error: cannot read image '0.png'") and "'2.png'" in second
    with pytest.raises(burst.ImageError, match=r"0\.png"):
        bpt.predict(bpt.open_run(out), photos)  # one place needs no list


def test_a_value_that_ends_in_an_equals_sign_is_not_empty(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_command(command.app, ["report", f"{tmp_path}/missing", f"--out={tmp_path}/tag="])
    assert "is empty" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, named",
    [(["--out", ""], "--out"), (["--out="], "--out"), ([""], "an argument")],
)
def test_an_empty_word_is_no_path(words, named, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(command.app, ["report", "run", *words])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(
        f"error: {named} is empty; is a variable not set?; see"
    )


def test_an_unknown_option_is_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(command.app, ["train", "digits", "--rnak", "3"])
    assert caught.value.code == 2
    assert "--rank" in capsys.readouterr().err


def test_a_file_whose_name_is_not_utf_8_is_printed_as_it_is_called(few, tmp_path, monkeypatch):
    photos = shutil.copytree(few, tmp_path / "photos")
    shutil.copy(photos / "train/red/0.png", photos / "test/red" / os.fsdecode(b"\xe4.png"))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8", write_through=True))
    with pytest.raises(SystemExit) as caught:
        run_command(command.app, ["datasets", "--check", f"folder:{photos}"])
    assert caught.value.code == 0
    assert b"test/red/\xe4.png and train/red/0.png" in b" ".join(written.getvalue().split())


@pytest.mark.parametrize(
    "words, says",
    [
        ("search digits", "search --methods METHODS`; see"),
        ("predict", "predict FOLDER`; see"),
        ("export nothing", "export --out OUT`; see"),
    ],
)
def test_what_is_left_out_is_shown_as_it_is_typed(words, says, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(command.app, words.split())
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, ends",
    [
        (("train", "photos"), "vtab (your own images are folder:photos)"),
        (("train", "digits", "--batch-size", "5000"), "lower batch_size, such as --batch-size 512"),
        (("train", "--placement", "last:99"), "give 1 to 12"),
        (("train", "--device", "gpu"), "or cpu (--device cpu)"),
        (("validate", "w.pt"), "`burst whiten --out w.pt` makes one"),
        (("evaluate", "nothing"), "as `bpt train --out FOLDER` does"),
        (("train", "--model", "mae.pth"), "(--model NAME --weights mae.pth)"),
    ],
)
def test_an_error_ends_with_what_would_work(arguments, ends, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith(ends)


def test_seeds_are_parsed():
    assert parse_seeds("0, 1,12") == (0, 1, 12)


def test_an_interrupted_training_says_how_to_go_on(few, tmp_path, monkeypatch):
    arguments = ["train", f"folder:{few}", "--out", str(tmp_path / "run"), *SMALL]
    monkeypatch.setattr(sys, "argv", ["bpt", *arguments])
    monkeypatch.setattr(_common.Steps, "__call__", lambda *_: signal.raise_signal(signal.SIGINT))
    result = run(*arguments)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].endswith(shlex.join(["bpt", *arguments, "--resume"]))
    assert (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_size_that_is_typed_is_that_of_every_image_from_training_to_export(few, tmp_path):
    """mae_tiny was pretrained at 64 pixels, in patches of 8."""
    out, file = tmp_path / "run", tmp_path / "m.safetensors"
    said = succeeded("train", f"folder:{few}", "--image-size", "40", "--out", out, *ONCE).stderr
    assert "images are read at 40 x 40 pixels, not at the 64 x 64 of the pretraining" in said
    run = bpt.open_run(out)
    assert run.config["recipe"]["image_size"] == 40
    assert run.config["backbone"]["image_size"] == [40, 40]
    assert run.config["backbone"]["resized_from"] == [64, 64]
    assert "resampled" in run.config["backbone"]["notes"][0]

    model, backbone = run.load_model()
    assert backbone.preprocess.image_size == 40
    scores = json.loads(succeeded("evaluate", out, "--json").stdout)
    assert scores["accuracy"] == pytest.approx(run.result["test_accuracy"])
    assert scores["loss"] == pytest.approx(run.result["test_loss"], rel=1e-5)
    likely = json.loads(succeeded("predict", out, few / "train" / "red", "--json").stdout)
    assert len(likely) == 3

    succeeded("export", out, "--out", file)
    exported, _ = bpt.load_exported(file)
    batch = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(exported(batch), model(batch), atol=1e-5)
    with pytest.raises(AssertionError, match="64"):
        exported(torch.zeros(1, 3, 64, 64))

    succeeded("report", out, "--out", tmp_path / "page")
    assert "resampled" in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "image_size" in (tmp_path / "page" / "runs.csv").read_text()
    resumed = refused("train", f"folder:{few}", "--resume", "--out", out, *ONCE)
    assert "image_size 40, not None" in resumed


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spt", "bpt-fwhiten", "full", "linear"])
def test_every_method_is_trained_at_a_size_that_is_typed(few, tmp_path, method):
    size = ("--image-size", "48", "--epochs", "1", "--batch-size", "8", "--device", "cpu")
    prompts = () if method in ("full", "linear") else ("--placement", "last:2", "--num-prompts", 4)
    out = tmp_path / "run"
    succeeded("train", f"folder:{few}", "--method", method, *prompts, *size, "--out", out)
    scores = json.loads(succeeded("evaluate", out, "--json").stdout)
    result = bpt.open_run(out).result
    assert scores["accuracy"] == pytest.approx(result["test_accuracy"])
    assert scores["loss"] == pytest.approx(result["test_loss"], rel=1e-5)
    succeeded("export", out, "--out", tmp_path / "m.safetensors")
    bpt.load_exported(tmp_path / "m.safetensors")[0](torch.zeros(1, 3, 48, 48))


@pytest.mark.slow
def test_matrices_of_images_of_another_size_are_used_with_a_warning(few, tmp_path):
    sample = ("--images", few, "--num-images", "12", "--image-size", "40", "--blocks", "11")
    Typed(burst_command.app).succeeded("whiten", *sample, "--out", tmp_path / "40.pt")
    backbone = burst.load_backbone("mae_tiny")
    images = burst.images_for(backbone, few, num_images=12)
    whitening = burst.whiten(backbone, images, burst.WhiteningOptions(blocks=(11,)))
    burst.save_whitening(whitening, tmp_path / "64.pt")
    train = ("train", f"folder:{few}", "--method", "bpt-fwhiten", "--image-size", "40")
    options = (*QUICK, "--epochs", "1", "--device", "cpu", "--whitening")
    said = succeeded(*train, *options, tmp_path / "64.pt", "--out", tmp_path / "a").stderr
    assert "made of images of 64 pixels, but mae_tiny reads 40 here" in said
    said = succeeded(*train, *options, tmp_path / "40.pt", "--out", tmp_path / "b").stderr
    assert "made of images" not in said


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vpt", "full"])
def test_activations_that_are_computed_again_are_not_kept_and_change_nothing(few, tmp_path, method):
    """From the option to the numbers of the run, and what autograd holds on the way."""
    prompts = ("--placement", "shallow", "--num-prompts", 4) if method == "vpt" else ()
    options = ("--epochs", "1", "--batch-size", "4", "--device", "cpu")
    train = ("train", f"folder:{few}", "--method", method, *options, *prompts)

    def trained(name, *more):
        held = 0

        def count(tensor):
            nonlocal held
            held += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            succeeded(*train, *more, "--out", tmp_path / name)
        return held, bpt.open_run(tmp_path / name)

    more, plain = trained("plain")
    less, again = trained("again", "--checkpoint-activations")
    assert less < 0.2 * more
    assert again.config["recipe"]["checkpoint_activations"]
    assert again.metrics[0]["train_loss"] == pytest.approx(plain.metrics[0]["train_loss"], rel=1e-6)
    for one, other in zip(*(run.trained_state().values() for run in (plain, again)), strict=True):
        torch.testing.assert_close(one, other)
    succeeded(*train, "--out", tmp_path / "again", "--resume")  # a machine's choice, free to change


def test_the_augmentation_that_is_typed_is_that_of_the_training(images, tmp_path, monkeypatch):
    """From the options to the batches, the loss and the record of the run."""
    seen = []
    loss = bpt.engine.ClassifierTrainer.loss

    def watched(self, part):
        found = loss(self, part)
        seen.append((part[1], self.label_smoothing))
        return found

    monkeypatch.setattr(bpt.engine.ClassifierTrainer, "loss", watched)
    small = ("--model", "timm:test_vit", "--weights", "random", "--image-size", "64")
    train = ("train", f"folder:{images}", "--method", "full", *small, "--batch-size", "8")
    mixed = ("--mixup", "0.8", "--cutmix", "1", "--label-smoothing", "0.1")
    mixed += ("--random-erasing", "0.5")
    words = ("--randaugment", "rand-m9-mstd0.5-inc1", "--device", "cpu", "--epochs", "2")
    succeeded(*train, *mixed, *words, "--out", tmp_path / "run")
    assert len(seen) == 6
    for shares, smoothing in seen:
        assert shares.shape == (8, 3) and smoothing == 0.1
        assert torch.allclose(shares.sum(1), torch.ones(8))
    run = bpt.open_run(tmp_path / "run")
    recipe = run.config["recipe"]
    assert (recipe["mixup"], recipe["cutmix"], recipe["label_smoothing"]) == (0.8, 1.0, 0.1)
    assert (recipe["randaugment"], recipe["random_erasing"]) == ("rand-m9-mstd0.5-inc1", 0.5)
    again = tmp_path / "again"
    succeeded(*train, *mixed, *words, "--no-cache", "--out", again)
    for one, other in zip(run.metrics, bpt.open_run(again).metrics, strict=True):
        assert one["train_loss"] == other["train_loss"]


def test_the_share_that_is_typed_is_erased_of_what_the_model_sees(images, tmp_path, monkeypatch):
    """Of the same crops: a rectangle of each, of 2 % to a third of it."""
    seen = []
    loss = bpt.engine.ClassifierTrainer.loss

    def watched(self, part):
        seen.append(part[0].clone())
        return loss(self, part)

    monkeypatch.setattr(bpt.engine.ClassifierTrainer, "loss", watched)
    small = ("--model", "timm:test_vit", "--weights", "random", "--image-size", "64")
    train = ("train", f"folder:{images}", "--method", "bpt-bilinear", *small, *ONCE)
    succeeded(*train, "--out", tmp_path / "whole", "--no-cache")  # resized by Pillow too
    whole = torch.cat(seen)
    seen.clear()
    succeeded(*train, "--random-erasing", "1", "--out", tmp_path / "erased")
    changed = (torch.cat(seen) != whole).any(1).float().mean((1, 2))
    assert len(changed) == len(whole) > 16
    assert changed.min() > 0.015 and changed.max() < 0.36


def test_a_probe_with_a_normed_head_is_trained_resumed_evaluated_and_exported(images, tmp_path):
    train = ("train", f"folder:{images}", "--method", "linear", "--batch-size", "8", "--lr", "6.4")
    options = ("--optimizer", "lars", "--head-norm", "batch", "--epochs", "3", "--device", "cpu")
    whole, part, file = tmp_path / "whole", tmp_path / "part", tmp_path / "m.safetensors"
    succeeded(*train, *options, "--out", whole)
    run = bpt.open_run(whole)
    state = run.trained_state()
    assert state["head.norm.running_mean"].abs().sum() > 0

    def stop(done, _):
        if done == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(bpt.Interrupted):
        bpt.train(run.recipe, part, device="cpu", progress=stop)
    succeeded(*train, *options, "--out", part, "--resume")
    for name, value in bpt.open_run(part).trained_state().items():
        assert torch.equal(value, state[name]), name
    scores = json.loads(succeeded("evaluate", whole, "--json").stdout)
    assert scores["loss"] == pytest.approx(run.result["test_loss"], rel=1e-5)
    succeeded("export", whole, "--out", file)
    exported, _ = bpt.load_exported(file)
    assert set(exported.trained_state()) == {"head.weight", "head.bias"}
    model, backbone = run.load_model()
    batch = torch.randn(4, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(exported(batch), model(batch), atol=1e-4)
