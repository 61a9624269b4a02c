"""The command line as a user types it."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from typed import Typed

import burst
from burst.survey_table import COLUMNS
from cli import burst as command
from cli._common import json_rows, parse_blocks
from cli._common import run as run_command

SHIPPED = Path(burst.__file__).parent / "weights" / "mae_tiny.safetensors"
QUICK = ("--num-images", "2", "--blocks", "0,11")
TYPED = Typed(command.app)
run, refused = TYPED.run, TYPED.refused


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((90, 80), 40 + i).convert("RGB").save(folder / f"{i}.jpg")
    return folder


def test_histogram_alone_prints_a_line_a_block():
    result = run("histogram", "--num-images", "2")
    assert result.exit_code == 0
    rows = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert [row for row in rows if row.isdigit()] == [str(block) for block in range(12)]


def test_histogram_writes_what_python_computes(tmp_path):
    asked = ("--quantity", "x", "--seed", "3", "--out", tmp_path / "out")  # two figures
    result = run("histogram", *QUICK, *asked, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    backbone = burst.load_backbone("mae_tiny")
    images = burst.images_for(backbone, "sample", num_images=2, seed=3)
    options = burst.SurveyOptions(blocks=(0, 11), quantities=("x",))
    expected = burst.survey(backbone, images, options).table
    table = pd.read_csv(tmp_path / "out" / "statistics.csv", dtype={"head": str})
    pd.testing.assert_frame_equal(table, expected)


def test_precisions_are_recorded_and_a_forward_pass_in_bfloat16_is_near(tmp_path):
    asked = ("histogram", "--num-images", "2", "--blocks", "11", "--quantity", "qkx")
    precisions = ("--forward-precision", "bfloat16", "--precision", "bf16", "--device", "cpu")
    result = run(*asked, *precisions, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["options"]["forward_precision"] == "bfloat16"
    assert (record["options"]["precision"], record["precision"]) == ("bf16", ["ieee"])
    fast = pd.read_csv(tmp_path / "statistics.csv").iloc[0]
    (plain,) = json.loads(run(*asked, "--json").stdout)
    assert plain["excess_kurtosis"] != pytest.approx(fast["excess_kurtosis"], rel=1e-9)
    assert fast["std"] == pytest.approx(plain["std"], rel=0.02)
    message = refused("histogram", *QUICK, "--forward-precision", "bf16")
    assert message.startswith("unknown forward precision 'bf16'; ")
    assert "bfloat16" in message


def test_json_is_the_table(tmp_path):
    result = run("histogram", *QUICK, "--json", "--quantity", "qk", "--per-head")
    rows = json.loads(result.stdout)
    assert [row["head"] for row in rows] == ["all", "0", "1", "2"] * 2
    assert set(rows[0]) == set(COLUMNS)


@pytest.mark.parametrize("kind", ["folder", "imagefolder", "zip", "tar"])
def test_images_come_from_anywhere(photos, tmp_path, kind):
    source = photos
    if kind == "imagefolder":
        source = tmp_path / "classes"
        (source / "cat").mkdir(parents=True)
        (photos / "0.jpg").rename(source / "cat" / "0.jpg")
    elif kind == "zip":
        source = tmp_path / "photos.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for photo in photos.iterdir():
                archive.write(photo, photo.name)
    elif kind == "tar":
        import tarfile

        source = tmp_path / "photos.tar"
        with tarfile.open(source, "w") as archive:
            archive.add(photos, "photos")
    result = run("histogram", "--images", source, "--blocks", "0")
    assert result.exit_code == 0, result.output
    count = "1 image was" if kind == "imagefolder" else "3 images were"
    assert f"{count} read: there are no more" in result.stdout


def test_images_without_their_option_are_told_how_to_be_given(capsys):
    with pytest.raises(SystemExit, match="2"):
        run_command(command.app, ["histogram", "photos"])
    assert "histogram --images photos`; see" in capsys.readouterr().err


def test_real_photographs_in_a_zip_are_read(real_data, tmp_path):
    result = run("histogram", "--images", real_data / "imagenet-sample.zip", *QUICK, "--json")
    assert len(json.loads(result.stdout)) == 6


def test_models_lists_every_backbone_also_as_json():
    assert "mae_tiny" in run("models").stdout
    records = json.loads(run("models", "--json").stdout)
    assert [record["name"] for record in records] == [s.name for s in burst.known_backbones()]
    assert json.loads(run("models", "mae_vitb", "--json").stdout) == records[4]


def test_of_a_model_that_is_named_everything_is_told():
    assert "timm:vit_base_patch16_224.mae" in run("models", "mae_vitb").stdout
    assert run("models", "--verbose").stdout.count("licence ") == len(burst.known_backbones())
    assert "did you mean mae_vitb" in refused("models", "mae_vtb")


def test_a_weight_file_is_measured_in_place_of_the_known_one(tmp_path):
    tensors = safetensors.torch.load_file(SHIPPED)
    tensors["blocks.0.attn.qkv.weight"] *= 2
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(tensors, path)
    shipped, mine = (
        json.loads(run("histogram", *QUICK, "--quantity", "qk", "--json", *more).stdout)
        for more in ((), ("--weights", path))
    )
    assert mine[0]["std"] == pytest.approx(4 * shipped[0]["std"])
    assert mine[1]["std"] == pytest.approx(shipped[1]["std"])


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def broken_weights(kind: str, path: Path) -> None:
    tensors = safetensors.torch.load_file(SHIPPED)
    if kind == "truncated":
        path.write_bytes(SHIPPED.read_bytes()[:5_000_000])
    elif kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "code":
        with path.open("wb") as file:
            pickle.dump(Payload(), file)
    elif kind == "nan":
        tensors["blocks.3.attn.qkv.weight"][0, 0] = torch.nan
        safetensors.torch.save_file(tensors, path)
    elif kind == "missing tensor":
        del tensors["blocks.3.attn.qkv.weight"]
        safetensors.torch.save_file(tensors, path)
    elif kind == "wrong size":
        tensors["blocks.3.attn.qkv.weight"] = torch.zeros(30, 10)
        safetensors.torch.save_file(tensors, path)


@pytest.mark.parametrize(
    "kind, name, words",
    [
        ("truncated", "w.safetensors", "truncated"),
        ("text", "w.pth", "is a text file"),
        ("empty", "w.pth", "empty"),
        ("code", "w.pth", "code"),
        ("nan", "w.safetensors", "blocks.3.attn.qkv.weight"),
        ("missing tensor", "w.safetensors", "blocks.3.attn.qkv.weight"),
        ("wrong size", "w.safetensors", "blocks.3.attn.qkv.weight"),
        ("absent", "w.pth", "does not exist"),
    ],
)
def test_each_bad_weight_file_has_its_own_line(kind, name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken_weights(kind, tmp_path / name)
    line = refused("histogram", *QUICK, "--weights", tmp_path / name)
    assert words in line
    assert name in line
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--model", "mae_tinny"), "did you mean mae_tiny"),
        (("--model", "timm:vit_tiny_patch16_225"), "vit_tiny_patch16_224"),
        (("--model", "timm:test_resnet", "--weights", "random"), "choose a transformer"),
        (("--blocks", "12"), "blocks 0 to 11"),
        (("--blocks", "three"), "--blocks 'three'"),
        (("--blocks", "5-3"), "--blocks '5-3'"),
        (("--quantity", "xy"), "unknown quantity"),
        (("--convention", "mine"), "unknown convention"),
        (("--tokens", "cls"), "unknown kind of tokens"),
        (("--precision", "tf64"), "unknown precision 'tf64'"),
        (("--bins", "255"), "even number"),
        (("--num-images", "0"), "num_images"),
        (("--images", "nowhere"), "nowhere"),
        (("--device", "gpu0"), "the device 'gpu0' cannot be used here"),
        (("--seed", "-1"), "seed"),
        (("--per-head", "--convention", "authors"), "no heads"),
    ],
)
def test_each_mistake_has_its_own_line(arguments, words):
    assert words in refused("histogram", "--num-images", "2", *arguments)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["histogram", "--bogus"], "--bogus"),
        (["histogram", "--num-images", "ten"], "'--num-images'"),
        (["histgram"], "histgram"),
        (["histogram", "--model"], "--model"),
    ],
)
def test_a_command_that_is_mistyped_gets_one_line_too(arguments, words, capsys):
    with pytest.raises(SystemExit) as left:
        run_command(command.app, arguments)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert "--help`" in line and ".;" not in line


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("models", "mae_tiny", "--library", "timm"), "ask for one of them"),
        (("report", "--model", "mae_tiny", "--model", "mae_tiny"), "`burst compare` sets two"),
    ],
)
def test_what_would_be_left_out_is_refused(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(*arguments, *(("--out", "r") if "report" in arguments else ()))
    assert list(tmp_path.iterdir()) == []


def test_without_a_command_it_explains_itself():
    result = run()
    assert result.exit_code == 0
    assert "histogram" in result.stdout


def test_an_image_that_cannot_be_read_is_named_and_may_be_left_out(photos):
    (photos / "bad.jpg").write_bytes((photos / "0.jpg").read_bytes()[:400])
    line = refused("histogram", "--images", photos, "--blocks", "0")
    assert "bad.jpg" in line
    assert "(--skip-bad) leaves it out" in line
    result = run("histogram", "--images", photos, "--blocks", "0", "--skip-bad")
    assert result.exit_code == 0
    assert "left out: image bad.jpg" in result.stdout


def test_an_empty_folder_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("histogram", "--images", tmp_path / "empty")


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "taken").write_text("mine")
    line = refused("histogram", *QUICK, "--out", tmp_path / "taken")
    assert "cannot write into" in line
    assert (tmp_path / "taken").read_text() == "mine"


def test_weights_that_must_be_fetched_say_how_to_do_without(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    result = run("histogram", "--model", "mae_vitb")
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]  # huggingface_hub 0.34 begins, and says so
    assert line.startswith("error: the weights of mae_vitb are not on disk")
    assert "give the file as weights" in line


def test_help_does_not_wait_for_the_libraries():
    code = "import sys, cli.burst; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert tuple(command.QUANTITIES) == burst.SurveyOptions().quantities


def test_the_version_is_told():
    assert run("--version").stdout == f"burst {burst.version()}\n"


LONG = """
import signal, sys
from cli.burst import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
sys.argv[1:] = ["histogram", "--num-images", "20000", "--out", f"{place}/out"]
main()
"""


def test_an_interrupted_run_leaves_nothing_half_written(tmp_path, forked):
    out = tmp_path / "out"
    started = forked(LONG, tmp_path)
    deadline = time.monotonic() + 100
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    with suppress(ProcessLookupError):  # what it said tells more
        os.kill(started.process.pid, signal.SIGINT)
    ended = started.end()
    assert ended.returncode == 130
    assert ended.stderr.splitlines()[-1] == "interrupted; nothing was half-written"
    assert os.listdir(out) == []


@pytest.fixture
def deaf():
    """SIGTERM does not end the suite where a command does not listen."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("deaf")
def test_a_terminated_run_leaves_nothing_half_written(tmp_path, monkeypatch):
    monkeypatch.setattr(command.Steps, "__call__", lambda *_: signal.raise_signal(signal.SIGTERM))
    result = run("histogram", *QUICK, "--out", tmp_path)
    assert result.exit_code == 143
    assert result.stderr == "interrupted; nothing was half-written\n"
    assert os.listdir(tmp_path) == []


IN_A_GROUP = """
import sys

import torch

torch.set_num_threads(1)
sys.argv = ["burst", *arguments]
from cli.burst import main

main()
"""


@pytest.fixture
def launched(forkserver):
    """Two processes of torchrun's own agent, which are forked and so import little.

    Of `burst` with these arguments: what each printed. The agent takes signals, and keeps them.
    """
    taken = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {one: signal.getsignal(one) for one in taken}

    def launch(logs, *arguments):
        group = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "max_restarts": 0}
        meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "two"}
        config = LaunchConfig(
            **group,
            **meeting,
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
        )
        try:
            elastic_launch(config, exec)(IN_A_GROUP, {"arguments": [str(x) for x in arguments]})
        except ChildFailedError:
            pytest.fail("\n".join(one.read_text() for one in sorted(logs.rglob("stderr.log"))))
        return [file.read_text() for file in sorted(logs.rglob("stdout.log"))]

    yield launch
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_count_what_one_counts(tmp_path, launched):
    """As a user's `torchrun` starts them."""
    measured = ["--num-images", "66", "--blocks", "11", "--quantity", "qkx"]  # 64 and 2 images
    arguments = ["histogram", *measured, "--json", "--quiet"]
    one = run(*arguments)
    out = tmp_path / "out"
    shown, silent = launched(tmp_path / "logs", *arguments, "--out", out)
    assert shown.count("[\n") == 1 and "[\n" not in silent
    # Where torch is older, words of Gloo's stand in front of the table.
    texts = [text[text.index("[\n") :] for text in (one.stdout, shown)]
    whole, shared = (pd.DataFrame(json.JSONDecoder().raw_decode(text)[0]) for text in texts)
    exact = ["block", "quantity", "count", "min", "max", "abs_q50", "gini", "ggd_shape"]
    pd.testing.assert_frame_equal(whole[exact], shared[exact], check_exact=True)
    pd.testing.assert_frame_equal(whole, shared, rtol=1e-9)
    assert json.loads((out / "run.json").read_text())["processes"] == 2


SMALL = """
from timm.models.vision_transformer import VisionTransformer

def small():
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
"""


@pytest.mark.slow
def test_a_backbone_is_reported_on_one_page_that_says_why(tmp_path, monkeypatch):
    (tmp_path / "mine_to_report.py").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    model = "python:mine_to_report:small"
    options = ("--num-images", "4", "--no-heads", "--no-whitening", "--style", "slide")
    result = run("report", "--model", model, "--out", "page", *options)
    assert result.exit_code == 0 and "index.html" in result.stdout
    page = Path("page/index.html").read_text()
    assert f"{model} is" in page and "Whitening" not in page
    assert f"burst whiten --model {model} --num-images 4 --out W.pt" in page
    assert len(pd.read_csv("page/statistics.csv")) == 3
    for section in ("Where it sits", "The extremes themselves", "What softmax sees"):
        assert f">{section}<" in page
    assert ">Spectrum of the weights<" in page and "crops of two photographs" in page
    name = "python-mine_to_report-small"
    figures = {f"{what}_{name}" for what in ("where", "softmax", "spectrum")}
    figures |= {f"depth_{quantity}_{name}" for quantity in ("qk", "x", "qkx")}
    assert figures <= {file.stem for file in Path("page").glob("*.png")}


def test_without_a_model_the_small_one_is_reported(tmp_path):
    assert "of mae_tiny" in refused("report", "--image-size", "65", "--out", tmp_path)


def test_weights_are_given_for_each_model_or_for_none(tmp_path):
    models = ("--model", "mae_tiny", "--model", "sup_tiny", "--weights", "random")
    assert "1 --weights for 2 --model" in refused("report", *models, "--out", str(tmp_path))
    assert "paper" in refused("report", "--style", "poster", "--out", str(tmp_path))


@pytest.mark.parametrize(
    "text, blocks",
    [("all", None), ("0", (0,)), ("0,3-5", (0, 3, 4, 5)), ("2,1,2", (2, 1)), (" 1 , 2 ", (1, 2))],
)
def test_blocks_are_parsed(text, blocks):
    assert parse_blocks(text) == blocks


def test_a_foreign_models_own_crop_is_what_its_blocks_read(tmp_path, pictures):
    """From the name that is typed to the counts: timm's own transform gives the same tokens."""
    folder, model = pictures, "timm:test_vit"
    command = ("histogram", "--model", model, "--weights", "random", "--images", folder)
    found = json.loads(run(*command, "--blocks", "0", "--quantity", "x", "--json").stdout)
    network = timm.create_model("test_vit", num_classes=0).eval()
    config = timm.data.resolve_model_data_config(network)
    assert config["crop_pct"] != 0.875
    transform = timm.data.create_transform(**config, is_training=False)
    backbone = burst.load_backbone(model, "random")
    read = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    batch = torch.stack([transform(picture) for picture in read])
    with burst.capture(backbone.model, blocks=[0]) as tokens, torch.inference_mode():
        backbone.model(batch)
    (row,) = found
    assert row["count"] == tokens[0].numel()
    assert row["std"] == pytest.approx(tokens[0].double().std(correction=0).item(), rel=1e-5)
    assert row["max"] == pytest.approx(tokens[0].max().item(), rel=1e-5)


@pytest.fixture
def pictures(tmp_path):
    """Two pictures of noise, neither of the model's size nor square."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate([(200, 260, 3), (310, 190, 3)]):
        pixels = rng.integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "5-3", "0-10000000000"])
def test_other_lists_of_blocks_are_refused(text):
    with pytest.raises(burst.BurstError, match="--blocks"):
        parse_blocks(text)


def test_json_has_every_digit_and_null_where_there_is_no_number():
    table = pd.DataFrame(
        {"name": ["a", "b"], "block": [0, 1], "x": [1.2345678901234567e-13, math.inf]}
        | {"y": [math.nan, 2.0], "seeds": pd.array([None, 3], dtype="Int64")}
    )
    assert json.loads(json_rows(table)) == [
        {"name": "a", "block": 0, "x": 1.2345678901234567e-13, "y": None, "seeds": None},
        {"name": "b", "block": 1, "x": None, "y": 2.0, "seeds": 3},
    ]
