"""Weights that come from a hub on this machine: named on the command line, kept, told of."""

import io
import json
import subprocess
import sys

import pytest
import timm
import torch
from hf_folders import save_vit
from hub_server import running_hub
from huggingface_hub import constants
from local_hub import client_of, environment_of
from rich.console import Console
from safetensors.torch import save
from typer.testing import CliRunner

from burst import downloads
from burst.hub import client_options
from cli import burst as command
from cli._downloads import _Bar

RUNNER = CliRunner()
TIMM, TIMM_REPOSITORY = "timm:test_vit.r160_in1k", "timm/test_vit.r160_in1k"
QUICK = ("--quantity", "qk", "--blocks", "0", "--num-images", "2", "--device", "cpu")


def histogram(model, *arguments):
    typed = ["histogram", "--model", model, *QUICK, *arguments]
    return RUNNER.invoke(command.app, [str(one) for one in typed])


def succeeded(model, *arguments):
    result = histogram(model, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(model) -> str:
    """The one line of an error, with which a command must end; the client may warn before it."""
    result = histogram(model)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == "" and "Traceback" not in result.stderr
    (line,) = [one for one in result.stderr.splitlines() if one.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def hf_files(tmp_path_factory):
    """What `save_pretrained` writes of a tiny ViT."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vit")
    save_vit(folder)
    return folder, {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def timm_file():
    torch.manual_seed(3)
    return save(timm.create_model("test_vit").state_dict())


@pytest.fixture
def hub(tmp_path, monkeypatch, hf_files, timm_file):
    """A hub with a model of transformers and one of timm; every file is large enough to be told."""
    monkeypatch.setattr(downloads, "SMALL", 10_000)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    with running_hub() as hub, client_of(hub, tmp_path / "cache", monkeypatch):
        hub.add("org/tiny", hf_files[1])
        hub.add(TIMM_REPOSITORY, {"model.safetensors": timm_file, "config.json": b"{}"})
        yield hub


def numbers(model, *arguments):
    found = json.loads(succeeded(model, "--json", *arguments).stdout)
    return [{name: one[name] for name in one if name != "model"} for one in found]


def test_a_model_of_transformers_comes_from_the_hub_and_is_the_one_of_the_folder(hub, hf_files):
    ours = numbers("hf:org/tiny")
    assert ours and ours == numbers(f"hf:{hf_files[0]}")
    asked = len(hub.asked)
    assert numbers("hf:org/tiny") == ours
    assert len(hub.asked) == asked  # it is in the cache


def test_a_model_of_timm_comes_from_its_own_repository(hub, timm_file, tmp_path):
    (tmp_path / "given.safetensors").write_bytes(timm_file)
    ours = numbers(TIMM)
    assert ours and ours == numbers(TIMM, "--weights", tmp_path / "given.safetensors")
    assert len(hub.requests("GET", "model.safetensors")) == 1


@pytest.mark.parametrize("model", ["hf:org/tiny", TIMM])
def test_a_first_download_says_its_size_and_place_and_a_second_does_not_happen(hub, model):
    name = model.partition(":")[2] if model.startswith("hf") else TIMM_REPOSITORY
    size = downloads.in_bytes(len(hub.repositories[name].files["model.safetensors"]))
    told = succeeded(model).stderr
    if "tqdm_class" in client_options():
        line = f"downloading {name} model.safetensors ({size}) to {constants.HF_HUB_CACHE}"
    else:
        line = f"downloading {name} model.safetensors to {constants.HF_HUB_CACHE}"
    assert told.count(line) == 1
    assert "downloading" not in succeeded(model).stderr


@pytest.mark.parametrize("model", ["hf:org/tiny", TIMM])
def test_a_quiet_download_says_nothing(hub, model):
    assert succeeded(model, "--quiet").output == ""
    assert hub.requests("GET", "model.safetensors")


@pytest.mark.parametrize("model", ["hf:org/tiny", TIMM])
def test_a_download_that_is_cut_goes_on_where_it_was(hub, model):
    hub.break_("model.safetensors", after=20_000, times=1)
    if histogram(model).exit_code:  # old clients go on at the next call
        succeeded(model)
    ranges = [one.get("Range") for one in hub.requests("GET", "model.safetensors")]
    assert ranges == [None, "bytes=20000-"]


BREAKS = {
    "cut for good": ({"path": "model.safetensors", "after": 0}, "cannot be downloaded"),
    "down": ({"path": "model.safetensors", "method": "HEAD", "status": 503}, "answers 503"),
    "other bytes": (
        {"path": "model.safetensors", "change": lambda data: data[:-1] + b"!"},
        "and the hub says",
    ),
    "gone": (
        {"path": "model.safetensors", "method": "HEAD", "status": 404, "code": "RepoNotFound"},
        "no such repository",
    ),
    "login": ({"path": "model.safetensors", "method": "HEAD", "status": 401}, "a login"),
    "gated": (
        {"path": "model.safetensors", "method": "HEAD", "status": 403, "code": "GatedRepo"},
        "terms to be accepted",
    ),
    "no weights": (
        {"path": "/resolve/", "method": "HEAD", "status": 404, "code": "EntryNotFound"},
        "no such file",
    ),
}


@pytest.mark.parametrize("model", ["hf:org/tiny", TIMM])
@pytest.mark.parametrize("problem", BREAKS)
def test_a_download_that_fails_is_one_line_and_in_nobody_s_way(hub, model, problem):
    broken, said = BREAKS[problem]
    hub.break_(**broken)
    line = refused(model)
    assert said in line
    hub.breaks.clear()
    succeeded(model)


@pytest.mark.slow  # a process that imports torch
def test_another_process_is_pointed_to_a_hub_by_its_environment(hub, tmp_path):
    program = f"import burst; print(burst.load_backbone({TIMM!r}).name)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment_of(hub, tmp_path / "home") | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{TIMM}\n"
    assert hub.requests("GET", f"{TIMM_REPOSITORY}/resolve")


def test_a_terminal_gets_a_bar_with_the_size_that_goes_at_the_end():
    stream = io.StringIO()
    bar = _Bar(Console(file=stream, force_terminal=True, width=80))
    bar.say("downloading a file (2.0 MiB) to a folder")
    bar(1 << 20, 2 << 20)
    bar._bar.refresh()
    assert "1.0/2.0 MiB" in stream.getvalue()
    bar(2 << 20, 2 << 20)
    assert bar._bar is None


def test_elsewhere_there_is_the_line_alone():
    stream = io.StringIO()
    bar = _Bar(Console(file=stream, width=80))
    bar.say("downloading a file")
    bar(1, 2)
    assert stream.getvalue() == "downloading a file\n"
