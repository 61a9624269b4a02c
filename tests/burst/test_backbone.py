import dataclasses
import hashlib
import time

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import backbone_of, vit

from burst import backbone
from burst.backbone import load_backbone
from burst.backbone_spec import find_backbone
from burst.errors import BurstError, CheckpointError, ImageError, UnknownName

TINY = "timm:test_vit.r160_in1k"  # timm's own model for tests: width 64, depth 6, 160 x 160


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    """Random weights of timm's test model with its head, as timm publishes them."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def mae_tiny():
    return load_backbone("mae_tiny")


def test_mae_tiny_is_frozen_float32_and_in_eval_mode(mae_tiny):
    parameters = list(mae_tiny.model.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not mae_tiny.model.training


def test_the_device_may_be_whatever_there_is_or_is_refused_in_a_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = load_backbone("timm:test_vit", "random", device="auto").model
    assert next(model.parameters()).device == torch.device("cpu")
    for device in ("cuda", torch.device("cuda:0"), "gpu"):
        with pytest.raises(BurstError, match=rf"the device '{device}' cannot be used here: .*auto"):
            load_backbone("timm:test_vit", "random", device=device)


def test_mae_tiny_is_the_file_of_the_package(mae_tiny):
    file = find_backbone("mae_tiny").on_disk()
    assert mae_tiny.weights_source == "package:mae_tiny.safetensors"
    assert mae_tiny.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    for name, value in load_file(file).items():
        assert torch.equal(mae_tiny.model.state_dict()[name], value.float())


def test_the_pretrained_norm_is_applied_after_the_blocks(mae_tiny):
    stored = load_file(find_backbone("mae_tiny").on_disk())
    seen = {}
    mae_tiny.model.blocks.register_forward_hook(lambda *call: seen.update(out=call[2]))
    tokens = mae_tiny.model.forward_features(torch.randn(2, 3, 64, 64))
    gain, bias = stored["norm.weight"].float(), stored["norm.bias"].float()
    expected = torch.nn.functional.layer_norm(seen["out"], (192,), gain, bias, eps=1e-6)
    torch.testing.assert_close(tokens, expected)  # the same float32 operation
    assert tokens.shape == (2, 65, 192)


def test_mae_tiny_says_what_its_pretraining_fixes(mae_tiny):
    assert (mae_tiny.pretraining, mae_tiny.pooling) == ("mae", "avg")
    assert (mae_tiny.image_size, mae_tiny.interpolation) == ((64, 64), "bicubic")
    assert mae_tiny.mean == (0.485, 0.456, 0.406)
    assert mae_tiny.std == (0.229, 0.224, 0.225)


def test_a_package_file_that_was_changed_is_refused(monkeypatch):
    spec = dataclasses.replace(find_backbone("mae_tiny"), sha256="0" * 64)
    monkeypatch.setattr(backbone, "known_backbones", lambda: (spec,))
    with pytest.raises(
        CheckpointError, match=r"SHA-256 [0-9a-f]{64}, expected 0{64}; install the package anew"
    ):
        load_backbone("mae_tiny")


def test_a_package_file_that_is_missing_is_named(monkeypatch):
    spec = dataclasses.replace(find_backbone("mae_tiny"), package_file="gone.safetensors")
    monkeypatch.setattr(backbone, "known_backbones", lambda: (spec,))
    with pytest.raises(CheckpointError, match=r"gone\.safetensors.*missing from the package"):
        load_backbone("mae_tiny")


def test_a_registered_name_takes_a_file(tmp_path, mae_tiny):
    state = {k: v + 1 for k, v in mae_tiny.model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "mine.pth")
    mine = load_backbone("mae_tiny", tmp_path / "mine.pth")
    assert torch.equal(mine.model.norm.weight, state["norm.weight"])
    assert mine.weights_source == str(tmp_path / "mine.pth")
    assert mine.report.layout.startswith("timm names under `model`")


def test_of_several_copies_in_a_file_a_note_names_the_loaded_one(tmp_path, mae_tiny):
    state = {f"net.{name}": value for name, value in mae_tiny.model.state_dict().items()}
    torch.save({"student": state, "teacher": state}, tmp_path / "mine.pth")
    notes = load_backbone("mae_tiny", tmp_path / "mine.pth").notes
    words = "the file holds the model as `teacher|net`, `student|net`; the first is loaded"
    assert notes == (words, "left aside of the weights: student")


@pytest.mark.parametrize("name, pixels", [("mae_tiny", 96), ("timm:test_vit", 64)])
def test_a_file_of_another_image_size_is_read_as_it_is_where_that_is_asked_for(
    tmp_path, name, pixels
):
    published = load_backbone(name, "random", image_size=pixels).model
    torch.save(published.state_dict(), tmp_path / "mine.pth")
    asked = load_backbone(name, tmp_path / "mine.pth", image_size=pixels)
    images = torch.randn(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(asked.model(images), published(images))
    assert (asked.notes, asked.resized_from) == ((), None)

    said = f"the file was trained at {pixels} x {pixels} pixels: --image-size {pixels} measures it"
    assert load_backbone(name, tmp_path / "mine.pth").notes[0].startswith(said)
    other = load_backbone(name, tmp_path / "mine.pth", image_size=128)
    assert f"at 128 x 128 pixels, not at the {pixels} x {pixels} of" in other.notes[0]


@pytest.mark.parametrize("name", ["mae_tiny", "moco_tiny", "sup_tiny"])
def test_the_small_backbones_read_an_image_of_their_size_whole(name):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = load_backbone(name).preprocess.centre(Image.fromarray(pixels))
    np.testing.assert_array_equal(whole.numpy(), pixels.transpose(2, 0, 1))


def test_a_model_of_oblong_images_cannot_be_given_any():
    oblong = dataclasses.replace(backbone_of(vit()), image_size=(16, 32))
    with pytest.raises(ImageError, match="test reads 16 x 32 images; only squares"):
        _ = oblong.preprocess


def test_a_file_of_another_model_is_refused():
    weights = find_backbone("mae_tiny").on_disk()
    with pytest.raises(CheckpointError, match=r"width 192, depth 12, patch 8.*width 768"):
        load_backbone("moco_vitb", weights)


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("mae_vitx", "mae_vit"),
        ("mea_tiny", "mae_tiny"),
        ("timm:vit_bse_patch16_224", "timm:vit_base_patch16_224"),
        ("timm:vit_base_patch16_224.nope", "timm:vit_base_patch16_224"),
        ("vit_base_patch16_224", "timm:vit_base_patch16_224"),
        ("timm:", "timm:"),
        ("hf-hub:", "timm:"),
        ("qqqq", "known: dinov2_vits_saliency"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(UnknownName) as caught:
        load_backbone(name)
    assert nearest in str(caught.value).partition(";")[2]
    assert len(str(caught.value)) < 300


def test_a_file_in_the_place_of_a_name_is_told_where_to_go(tiny_file):
    with pytest.raises(CheckpointError, match=r"is a file, .* give the file as weights"):
        load_backbone(str(tiny_file))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("mae_vitb", "mae_vitb .*get https://dl.fbaipublicfiles.com/mae/.*vit_base.pth"),
        ("moco_vitb", "moco_vitb .*get https://dl.fbaipublicfiles.com/moco-v3/.*pth.tar"),
        ("sup_vith", "sup_vith .*get https://huggingface.co/timm/.*/model.safetensors"),
        ("timm:vit_base_patch16_224_in21k", "sup_vitb .*get https://.*B_16-i21k.*npz"),
        (TINY, f"{TINY} .*get https://huggingface.co/timm/test_vit.r160_in1k/resolve/main/mod"),
        ("hf-hub:org/name", "hf-hub:org/name .*get https://huggingface.co/org/name"),
        ("hf-hub:a/b/c", "hf-hub:a/b/c .*expected ORG/NAME"),
    ],
)
def test_without_a_connection_one_line_says_what_to_get(offline, name, expected):
    start = time.monotonic()
    with pytest.raises(
        CheckpointError, match=f"the weights of {expected}.*give the file as weights"
    ) as e:
        load_backbone(name)
    assert "\n" not in str(e.value)
    assert time.monotonic() - start < 10  # the hub client's own retries take 23 seconds a file


def test_a_registered_backbone_reads_another_size(mae_tiny):
    larger = load_backbone("mae_tiny", image_size=96)
    before = mae_tiny.model.pos_embed
    grid = before[:, 1:].reshape(1, 8, 8, 192).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (12, 12), mode="bicubic", antialias=True)
    expected = torch.cat([before[:, :1], grid.flatten(2).mT], dim=1)
    torch.testing.assert_close(larger.model.pos_embed, expected, rtol=0, atol=1e-6)
    assert larger.preprocess.image_size == 96
    assert larger.model(torch.zeros(1, 3, 96, 96)).shape == (1, 192)


def test_its_own_size_asked_for_changes_nothing(mae_tiny):
    same = load_backbone("mae_tiny", image_size=64)
    assert same.resized_from is None
    assert same.notes == ()
    assert torch.equal(same.model.pos_embed, mae_tiny.model.pos_embed)


@pytest.mark.parametrize(
    "name, size, words",
    [
        ("mae_tiny", 100, "image size 100 is no multiple of the 8 pixels .* choose 96 or 104"),
        ("timm:test_vit", 7, "choose 16"),
        ("timm:test_vit", 0, "image_size 0 must be at least 1"),
        ("timm:levit_128s", 64, "cannot read RGB images of 64 x 64 pixels"),
    ],
)
def test_a_size_that_cannot_be_read_is_one_line(name, size, words):
    with pytest.raises(ImageError, match=words) as caught:
        load_backbone(name, "random", image_size=size)
    assert "\n" not in str(caught.value)
