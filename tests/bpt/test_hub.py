"""Prompts that are pushed, pulled and loaded, with a hub on this machine that may break."""

import json
import shutil

import numpy as np
import pytest
import torch
from colours import write_images
from hub_server import running_hub
from huggingface_hub import ModelCard, constants
from local_hub import client_of
from own_photos import class_folders, flat
from PIL import Image
from typer.testing import CliRunner

import bpt
from bpt.export import KIND, read_exported, write_exported
from bpt.hub_folder import FILES, without_folders
from bpt.model_card import licence_of
from bpt.transforms import eval_transform
from burst.errors import BurstError, CheckpointError, ShapeError
from burst.files import sha256_of
from cli import _hub
from cli import bpt as command

# What the client itself does when it uploads without xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
RUNNER = CliRunner()
NAME, TOKEN = "org/colours", "hf_test"


def run(*arguments):
    return RUNNER.invoke(command.app, [str(argument) for argument in arguments])


def succeeded(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments) -> str:
    """The last line on stderr of a command that must end with exit code 2."""
    result = run(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    (line,) = [one for one in result.stderr.splitlines() if one.startswith("error: ")]
    assert result.stderr.endswith(line + "\n") and "Traceback" not in result.stderr
    return line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of few steps, and its images."""
    root = tmp_path_factory.mktemp("trained")
    images = write_images(root / "images")
    options = ("--epochs", 1, "--batch-size", 8, "--placement", "last:1", "--num-prompts", 4)
    out = root / "runs" / "colours"
    succeeded("train", f"folder:{images}", "--rank", 2, "--out", out, "--quiet", *options)
    return bpt.open_run(out), images


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub that knows the user, and empty caches."""
    with running_hub() as hub, client_of(hub, tmp_path / "cache", monkeypatch, token=TOKEN):
        hub.token = TOKEN
        monkeypatch.chdir(tmp_path)
        yield hub


@pytest.fixture(scope="module")
def pushed(trained, tmp_path_factory):
    """What a push of the run leaves on the hub."""
    folder = tmp_path_factory.mktemp("pushed")
    bpt.hub_folder.write_hub_folder(trained[0], folder, NAME)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def photo(trained):
    with Image.open(trained[1] / "test" / "red" / "0.png") as image:
        return image.copy()


def test_what_is_pushed_is_shown_and_comes_back_as_the_same_function(hub, trained, photo):
    run, _ = trained
    result = succeeded("push", run.folder, NAME, "--yes")
    stored = hub.repositories[NAME].files
    assert sorted(stored) == sorted(FILES)
    for name in FILES:
        assert name in result.stderr
    assert f"pushed: {hub.url}/{NAME}" in result.stdout
    assert len(hub.repositories[NAME].commits) == 1

    succeeded("pull", NAME)
    pulled = bpt.open_run("colours").folder
    assert {one.name: one.read_bytes() for one in pulled.iterdir()} == stored
    model = bpt.load_prompt("colours")
    assert not any(part.training for part in model.modules())
    own, backbone = run.load_model()
    batch = model.preprocess([photo, photo.rotate(90, expand=True)])
    transform = eval_transform(backbone)
    assert torch.equal(batch[0], transform(photo.convert("RGB")))
    with torch.no_grad():
        torch.testing.assert_close(model(batch), own(batch), rtol=0, atol=1e-5)
    assert model.classes == run.classes == ("blue", "green", "red")


def test_three_lines_are_enough_from_the_hub_alone(hub, pushed, photo):
    hub.add(NAME, pushed)
    model = bpt.load_prompt(NAME)
    logits = model(model.preprocess([photo]))
    assert logits.shape == (1, 3) and not logits.requires_grad
    assert model.classes[logits.argmax()] in ("blue", "green", "red")
    asked = len(hub.asked)
    assert torch.equal(bpt.load_prompt(NAME)(model.preprocess([photo])), logits)
    assert len(hub.asked) == asked  # from the cache, without a connection


def test_a_prompt_is_loaded_from_a_run_and_from_an_exported_file_too(trained, photo, tmp_path):
    run, _ = trained
    succeeded("export", run.folder, "--out", tmp_path / "m.safetensors")
    first, second = bpt.load_prompt(run.folder), bpt.load_prompt(tmp_path / "m.safetensors")
    batch = first.preprocess([photo])
    assert first.transform == second.transform and first.classes == second.classes
    torch.testing.assert_close(first(batch), second(batch), rtol=0, atol=1e-5)
    assert first.preprocess(photo).shape == batch.shape[1:]


def test_images_of_any_mode_are_prepared_alike(pushed, hub, photo):
    hub.add(NAME, pushed)
    model = bpt.load_prompt(NAME)
    with_alpha = photo.convert("RGBA")
    assert torch.equal(model.preprocess(with_alpha), model.preprocess(photo))
    deep = Image.fromarray(np.full((20, 20), 40_000, np.uint16))
    grey = Image.fromarray(np.full((20, 20), 40_000 >> 8, np.uint8))
    assert torch.equal(model.preprocess(deep), model.preprocess(grey))


def test_what_is_no_batch_is_refused(pushed, hub, photo):
    hub.add(NAME, pushed)
    model = bpt.load_prompt(NAME)
    with pytest.raises(ShapeError, match=r"shape \(3, 64, 64\), expected \(B, 3, 64, 64\)"):
        model(model.preprocess(photo))
    with pytest.raises(ShapeError, match="no image"):
        model.preprocess([])


def test_a_pulled_prompt_predicts_and_is_evaluated(hub, pushed, trained):
    run, images = trained
    hub.add(NAME, pushed)
    succeeded("pull", NAME, "--out", "here")
    photo = images / "test" / "red" / "0.png"
    ours, theirs = (
        json.loads(succeeded("predict", one, photo, "--json").stdout)[0]["classes"]
        for one in (run.folder, "here")
    )
    assert [one["name"] for one in ours] == [one["name"] for one in theirs]
    assert [one["probability"] for one in ours] == pytest.approx(
        [one["probability"] for one in theirs], abs=1e-5
    )
    record = json.loads(succeeded("evaluate", "here", "--data", images, "--json").stdout)
    assert record["accuracy"] == pytest.approx(run.result["test_accuracy"])


def test_the_card_says_what_the_run_says(pushed, trained):
    run, _ = trained
    card = ModelCard(pushed["README.md"].decode())
    (score,) = card.data.eval_results
    accuracy = run.result["test_accuracy"]
    assert score.metric_value == pytest.approx(accuracy / 100, abs=1e-6)
    share, images = accuracy / 100, 12
    error = np.sqrt(np.var(np.repeat([1, 0], [round(share * 12), 12 - round(share * 12)])) / images)
    assert f"standard error {error:.4f}; protocol standard" in score.metric_name
    assert f"| test | 12 | {accuracy:.2f} % | {100 * error:.2f} % |" in card.text
    assert card.data.license == "mit"
    assert card.data.model_name == "colours"
    assert run.config["backbone"]["weights_sha256"] in card.text
    assert "24 to train on, 9 to choose the epoch on, 12 to test on" in card.text
    assert 'bpt.load_prompt("org/colours")' in card.text


def test_a_licence_that_is_not_known_is_said_to_be_unknown():
    def of(name, weights=None):
        return licence_of({"backbone": {"name": name}, "recipe": {"weights": weights}})

    assert of("timm:vit_base_patch16_224.mae") == of("mae_vitb") == "CC-BY-NC-4.0"
    assert of("timm:test_vit.r160_in1k") == of("mae_vitb", "mine.pth") == "unknown"


def test_a_dry_run_writes_what_would_be_pushed_and_asks_nobody(hub, trained):
    run, _ = trained
    result = succeeded("push", run.folder, NAME, "--dry-run")
    assert "nothing was pushed" in result.stdout and hub.asked == []
    succeeded("push", run.folder, NAME, "--yes")
    stored = hub.repositories[NAME].files
    for name in ("README.md", "metrics.jsonl", "result.json"):
        assert (bpt.open_run("colours").folder / name).read_bytes() == stored[name]
    told = refused("push", run.folder, NAME, "--dry-run")
    assert "is there already; choose another, such as --out" in told


def test_no_folder_of_this_machine_is_told(pushed, trained):
    secret = str(trained[1].parent).encode()
    assert secret in (trained[0].folder / "config.json").read_bytes()
    for name, data in pushed.items():
        assert secret not in data, name
    assert b"folder:images" in pushed["config.json"]


@pytest.mark.parametrize("table", [False, True])
def test_sentences_on_own_photos_are_shared_whole_and_without_their_folder(table, tmp_path):
    photos = tmp_path / "my photos"
    if table:
        rows = flat(photos, count=5, classes=("red", "blue"))
        (photos / "labels.csv").write_text("".join(f"{name},{one}\n" for name, one in rows))
    else:
        class_folders(photos, count=5, classes=("red", "blue"))
    small = ("--epochs", 1, "--batch-size", 2, "--placement", "last:1", "--num-prompts", 2)
    out = tmp_path / "run"
    succeeded("train", f"folder:{photos}", "--rank", 1, "--out", out, "--quiet", *small)
    (tmp_path / "shared").mkdir()
    bpt.hub_folder.write_hub_folder(bpt.open_run(out), tmp_path / "shared", NAME)
    shared = json.loads((tmp_path / "shared" / "config.json").read_text())
    told = bpt.open_run(out).config["dataset"]["notes"]
    assert len(shared["dataset"]["notes"]) == len(told)
    named = "labels.csv" if table else "my photos"
    assert any(f"{named}: 10 images of 2 classes" in one for one in shared["dataset"]["notes"])
    for file in (tmp_path / "shared").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name


@pytest.mark.parametrize(
    "given, told",
    [
        ("folder:/home/me/my photos/cats", "folder:cats"),
        ("--data=~/photos", "--data=photos"),
        ("https://host/a/b.pth", "https://host/a/b.pth"),
        ("a/b", "a/b"),
        ("1/2", "1/2"),
        ("/", ""),
    ],
)
def test_absolute_paths_are_cut_to_their_last_part(given, told):
    assert without_folders([given]) == [told]


def test_a_new_repository_is_private_if_it_is_asked_for(hub, trained):
    succeeded("push", trained[0].folder, NAME, "--yes", "--private")
    assert hub.repositories[NAME].private
    succeeded("push", trained[0].folder, NAME, "--yes")  # again: it stays what it is
    assert hub.repositories[NAME].private


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_who_is_there_is_shown_the_files_and_asked(quiet, hub, trained, monkeypatch):
    monkeypatch.setattr(_hub, "_on_terminal", lambda: True)
    words = ["push", str(trained[0].folder), NAME, *quiet]
    result = RUNNER.invoke(command.app, words, input="n\n")
    assert result.exit_code == 1 and "Push these files?" in result.stderr
    assert "README.md" in result.stderr and NAME not in hub.repositories
    succeeded(*words, "--yes")
    assert NAME in hub.repositories


def test_where_nobody_can_be_asked_only_yes_publishes(hub, trained):
    told = refused("push", trained[0].folder, NAME)
    assert "nobody is there to be asked" in told and "--yes" in told
    assert hub.asked == []


@pytest.mark.parametrize("token, said", [(None, "wants a login"), ("hf_other", "forbids it (403)")])
def test_who_may_not_write_is_told_so(hub, trained, monkeypatch, token, said):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert said in refused("push", trained[0].folder, NAME, "--yes")
    assert not hub.repositories


@pytest.mark.parametrize(
    "path, method", [("/commit/", "POST"), ("/lfs/", "PUT"), ("/preupload/", "POST")]
)
def test_a_push_that_fails_leaves_the_repository_as_it_was(hub, trained, path, method):
    hub.add(NAME, {"README.md": b"old"})
    hub.break_(path, method=method, status=503)
    assert "503" in refused("push", trained[0].folder, NAME, "--yes")
    assert hub.repositories[NAME].files == {"README.md": b"old"}


def test_without_a_hub_nothing_is_pushed_or_pulled(hub, trained, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "no connection to the hub" in refused("push", trained[0].folder, NAME, "--yes")
    assert "no connection to the hub" in refused("pull", NAME)
    with pytest.raises(CheckpointError, match="no connection to the hub"):
        bpt.load_prompt(NAME)


def test_what_cannot_be_pushed_is_refused_before_anything_is_asked(hub, trained, tmp_path):
    run, _ = trained
    assert "expected ORG/NAME" in refused("push", run.folder, "colours")
    assert "expected ORG/NAME" in refused("pull", "a/b/c")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run.folder, unfinished)
    (unfinished / "result.json").unlink()
    assert "not at its end" in refused("push", unfinished, NAME, "--yes")
    assert "add --dry-run" in refused("push", run.folder, NAME, "--out", "x")
    assert "not the folder of a run" in refused("push", tmp_path, NAME, "--yes")
    assert hub.asked == []


def test_a_download_that_breaks_off_goes_on_where_it_was(hub, pushed, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_000)
    hub.add(NAME, pushed)
    hub.break_("model.safetensors", after=5_000, times=1)
    if run("pull", NAME).exit_code:  # old clients go on at the next call
        succeeded("pull", NAME)
    ranges = [one.get("Range") for one in hub.requests("GET", "model.safetensors")]
    assert ranges == [None, "bytes=5000-"]
    assert bpt.load_prompt("colours").classes


@pytest.mark.parametrize(
    "problem, said",
    [
        ({"path": "model.safetensors", "after": 1_000}, "cannot pull org/colours"),
        ({"path": "model.safetensors", "method": "HEAD", "status": 503}, "answers 503"),
        ({"path": "model.safetensors", "change": lambda data: data[:-1] + b"!"}, "SHA-256"),
        ({"path": "/api/models", "status": 503}, "answers 503"),
    ],
)
def test_a_pull_that_fails_leaves_nothing(hub, pushed, tmp_path, problem, said):
    hub.add(NAME, pushed)
    hub.break_(**problem)
    assert said in refused("pull", NAME)
    assert {one.name for one in tmp_path.iterdir()} <= {"cache"}
    hub.breaks.clear()
    succeeded("pull", NAME)  # what was wrong is not in the way


def test_who_pulls_what_is_not_there_is_told_why(hub, pushed, monkeypatch):
    hub.add(NAME, pushed)
    hub.add("org/secret", pushed, private=True)
    hub.add("org/gated", pushed, gated=True)
    hub.add("org/other", {"config.json": b'{"architecture": "vit"}'})
    hub.add("org/empty", {"README.md": b"x"})
    assert "no such repository" in refused("pull", "org/none")
    assert "no such revision" in refused("pull", NAME, "--revision", "v9")
    assert "no prompt that `bpt push` made" in refused("pull", "org/other")
    assert "no such file" in refused("pull", "org/empty")
    succeeded("pull", "org/secret", "--out", "mine")
    monkeypatch.delenv("HF_TOKEN")
    assert "private and wants a login" in refused("pull", "org/secret", "--out", "theirs")
    assert "terms to be accepted" in refused("pull", "org/gated")


def test_a_pull_takes_the_newest_and_a_revision_what_was_asked_for(hub, pushed):
    repository = hub.add(NAME, pushed)
    first = repository.head
    assert bpt.load_prompt(NAME).classes  # is in the cache now
    repository.commit({"README.md": b"newer"})
    succeeded("pull", NAME, "--out", "new")
    succeeded("pull", NAME, "--out", "old", "--revision", first)
    assert (bpt.open_run("new").folder / "README.md").read_bytes() == b"newer"
    assert (bpt.open_run("old").folder / "README.md").read_bytes() == pushed["README.md"]


def test_a_prompt_that_was_changed_or_belongs_elsewhere_is_refused(pushed, tmp_path):
    folder = tmp_path / "pulled"
    folder.mkdir()
    for name, data in pushed.items():
        (folder / name).write_bytes(data)
    config = json.loads(pushed["config.json"])
    (folder / "model.safetensors").write_bytes(pushed["model.safetensors"][:-4] + bytes(4))
    with pytest.raises(CheckpointError, match="has SHA-256"):
        bpt.load_prompt(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        bpt.load_prompt(folder)
    (folder / "model.safetensors").write_bytes(pushed["model.safetensors"])
    with pytest.raises(CheckpointError, match="not here: absent.pth"):
        bpt.load_prompt(folder, weights="absent.pth")
    del config["sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="is damaged"):
        bpt.load_prompt(folder)
    with pytest.raises(CheckpointError, match="no folder, no file, and no ORG/NAME"):
        bpt.load_prompt(tmp_path / "nowhere")


def test_no_code_is_run_that_a_prompt_of_somebody_else_names(pushed, tmp_path, monkeypatch):
    for name, data in pushed.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "payload.py").write_text("open('executed', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors, about = read_exported(file, KIND)
    about["backbone"]["name"] = "python:payload:make"
    write_exported(file, tensors, about)
    config = json.loads(pushed["config.json"]) | {"sha256": sha256_of(file)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="is not run"):
        bpt.load_prompt(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_what_was_pulled_is_not_pushed_again(pushed, tmp_path):
    for name, data in pushed.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BurstError, match="was pulled"):
        bpt.push_run(bpt.open_run(tmp_path), NAME)
