"""Names of models as a user types them, to the numbers that come out."""

import json

import hf_folders
import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image
from typer.testing import CliRunner

import burst
from cli import bpt as training
from cli import burst as command
from cli._common import Steps, plain_console

X_OF_BLOCK_0 = ("--blocks", "0", "--quantity", "x", "--json")


def run(*arguments, app=command.app):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments, app=command.app) -> str:
    """The one line on stderr of a command that must end with exit code 2."""
    result = run(*arguments, app=app)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def story(tmp_path):
    """57 words; a sequence of 24 tokens holds 22 of them."""
    path = tmp_path / "story.txt"
    path.write_text(" ".join(hf_folders.WORDS[i % 17] for i in range(57)))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A classifier of images, and a language model, as transformers saves them."""
    pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("folders")
    saved = hf_folders.save_vit(place / "vit"), hf_folders.save_llama(place / "llama")
    return place, *saved


def test_a_language_model_and_a_text_give_the_numbers_of_its_tokens(folders, story):
    """What the first attention reads is told by hand: the words' vectors, and their RMS norm."""
    place, _, llama = folders
    result = run("histogram", "--model", f"hf:{place / 'llama'}", "--text", story, *X_OF_BLOCK_0)
    (row,) = json.loads(result.stdout)
    ids = [3 + i % 17 for i in range(57)] + [1, 2] * 3
    vectors = llama.model.embed_tokens.weight.detach().double()[ids]
    gain = llama.model.layers[0].input_layernorm.weight.detach().double()
    size = (vectors.square().mean(-1, keepdim=True) + llama.config.rms_norm_eps).sqrt()
    x = vectors / size * gain
    assert row["count"] == 63 * 32
    assert row["std"] == pytest.approx(x.std(correction=0).item(), rel=1e-5)
    assert row["max"] == pytest.approx(x.max().item(), rel=1e-5)


def test_the_record_says_which_text_was_read_and_what_was_left_aside(folders, story, tmp_path):
    name = f"hf:{folders[0] / 'llama'}"
    out = tmp_path / "out"
    quick = ("--quantity", "x", "--blocks", "0", "--out", out)
    result = run("histogram", "--model", name, "--text", story, *quick)
    assert "3 sequences were read: there are no more" in result.stdout
    assert "left aside of the weights: lm_head.weight" in result.stdout
    record = json.loads((out / "run.json").read_text())
    assert record["images"]["source"] == str(story)
    assert (record["images"]["kind"], record["images"]["length"]) == ("text", 24)
    assert record["notes"] == ["left aside of the weights: lm_head.weight"]


def test_images_of_another_size_give_more_tokens_and_the_record_says_so(folders, tmp_path):
    name = f"hf:{folders[0] / 'vit'}"
    options = ("--image-size", "48", "--num-images", "2", "--quantity", "x", "--out", tmp_path)
    result = run("histogram", "--model", name, *options)
    assert "images are read at 48 x 48 pixels, not at the 32 x 32" in result.stdout
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["images"]["image_size"] == 48
    assert record["notes"][0].startswith("images are read at 48 x 48 pixels")
    rows = (tmp_path / "statistics.csv").read_text().splitlines()
    assert f",x,{2 * 37 * 32}," in rows[1]


def test_a_folder_s_images_give_the_numbers_of_its_own_processor(folders, tmp_path):
    place, vit, _ = folders
    photos = tmp_path / "photos"
    photos.mkdir()
    sample = burst.open_images(
        "sample", num_images=1, batch_size=1, image_size=60, mean=(0,) * 3, std=(1,) * 3
    )
    photo = to_pil_image(next(iter(sample))[0].mul(255).round().byte())
    photo.save(photos / "0.png")
    name = f"hf:{place / 'vit'}"
    (row,) = json.loads(run("histogram", "--model", name, "--images", photos, *X_OF_BLOCK_0).stdout)
    resized = photo.resize((32, 32), 2)  # Pillow's bilinear
    pixels = torch.tensor(np.array(resized)).permute(2, 0, 1)
    with torch.inference_mode(), burst.capture(vit, blocks=[0]) as tokens:
        vit(pixels[None] / 127.5 - 1)
    assert row["std"] == pytest.approx(tokens[0].std(correction=0).item(), rel=1e-5)
    assert row["max"] == pytest.approx(tokens[0].max().item(), rel=1e-5)


def test_a_module_of_one_s_own_is_measured_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(
        "from timm import create_model\n"
        "def tiny():\n"
        "    return create_model('test_vit', num_classes=0)\n"
    )
    monkeypatch.chdir(tmp_path)
    result = run("histogram", "--model", "python:own_models:tiny", "--num-images", 1, *X_OF_BLOCK_0)
    (row,) = json.loads(result.stdout)
    assert row["model"] == "python:own_models:tiny"
    assert row["count"] == 101 * 64


@pytest.mark.parametrize(
    "model, options, words",
    [
        ("llama", (), "reads text, not images; give a text file (--text FILE)"),
        ("vit", ("--text", "STORY"), "reads images, not text; give no text (--text)"),
        ("llama", ("--text", "STORY", "--images", "here"), "--images here and --text"),
        ("llama", ("--text", "nowhere.txt"), "cannot read nowhere.txt: No such file"),
        ("vit", ("--image-size", "50"), "no multiple of the 8 pixels"),
        ("llama", ("--text", "STORY", "--image-size", "48"), "give no image size"),
        ("nothing", (), "no folder"),
    ],
)
@pytest.mark.parametrize("what", ["histogram", "report"])
def test_each_mistake_has_its_own_line(folders, story, tmp_path, what, model, options, words):
    given = [str(story) if option == "STORY" else option for option in options]
    out = ("--out", tmp_path / "out")
    assert words in refused(what, "--model", f"hf:{folders[0] / model}", *given, *out)


@pytest.mark.filterwarnings("default::burst.OmittedTermWarning")  # of its rotary positions
def test_a_text_has_no_patches(folders, story):
    name = f"hf:{folders[0] / 'llama'}"
    words = "reads text, which has no patches; measure all of its tokens"
    assert words in refused("histogram", "--model", name, "--text", story, "--tokens", "patch")


@pytest.mark.filterwarnings("default::burst.OmittedTermWarning")  # of its rotary positions
def test_the_weights_of_a_language_model_need_no_text(folders):
    result = run("histogram", "--model", f"hf:{folders[0] / 'llama'}", "--quantity", "qk", "--json")
    assert result.exit_code == 0, result.output
    assert {row["quantity"] for row in json.loads(result.stdout)} == {"qk"}


@pytest.mark.filterwarnings("default::burst.OmittedTermWarning")  # of its rotary positions
def test_a_language_model_is_whitened(folders, story, tmp_path):
    name = f"hf:{folders[0] / 'llama'}"
    result = run(
        "whiten", "--model", name, "--text", story, "--out", tmp_path / "W.pt", "--blocks", "0"
    )
    assert result.exit_code == 0, result.output
    whitening = burst.load_whitening(tmp_path / "W.pt", burst.load_backbone(name))
    assert whitening.W.shape == (1, 32, 32)


def test_prompts_are_not_put_on_a_model_of_another_library(folders, tmp_path):
    name = f"hf:{folders[0] / 'vit'}"
    arguments = ("train", "digits", "--model", name, "--out", tmp_path / "run")
    line = refused(*arguments, app=training.app)
    assert f"{name} can be measured, not trained: prompts need a timm VisionTransformer" in line


@pytest.mark.parametrize(
    "words",
    [
        ("train", "digits"),
        ("train", "coco"),
        ("train", "coco", "--json"),
        ("study", "fgvc_mae"),
        ("study", "coco_mask_rcnn"),
    ],
)
def test_no_plan_promises_to_train_a_model_of_another_library(words):
    line = refused(*words, "--model", "hf:facebook/dinov2-base", "--dry-run", app=training.app)
    assert "hf:facebook/dinov2-base can be measured, not trained" in line


@pytest.mark.parametrize("library", ["timm", "torchvision", "hf"])
def test_what_is_known_of_a_library_is_listed(library):
    rows = json.loads(run("models", "--library", library, "--json").stdout)
    assert rows == burst.library_models(library)
    printed = run("models", "--library", library).stdout
    assert all(heading in printed for heading in rows[0])


def test_an_unknown_library_is_told():
    assert "unknown library 'tim'; did you mean timm?" in refused("models", "--library", "tim")


def test_names_are_printed_as_they_are(capsys):
    with Steps(plain_console(stderr=True), "hf:llama: batches [1]") as progress:
        progress(1, 1)
    assert capsys.readouterr().err == "hf:llama: batches [1] 1/1\n"
