import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer

import burst
from burst.errors import CheckpointError, ImageError, UnknownName
from burst.loading.torchvision import known_weights

NAME = "torchvision:vit_b_16"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Models of 2 blocks and 32 dimensions in the place of torchvision's, images of their size."""

    def build(name, image_size=224):
        patch = int(name.rpartition("_")[2])
        return VisionTransformer(image_size, patch, 2, 2, 32, 48, num_classes=7)

    monkeypatch.setattr(models, "get_model", build)
    return build


@pytest.fixture
def saved(tmp_path, small):
    """A file of random weights with a head, for images of 224 pixels."""
    torch.manual_seed(5)
    model = small("vit_b_16")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    return tmp_path / "vit.pth", model.eval()


def features(model, images):
    """What a model gives before its head."""
    model.heads = torch.nn.Identity()
    with torch.inference_mode():
        return model(images)


def test_a_file_is_read_and_its_head_left_aside(saved):
    path, model = saved
    found = burst.load_backbone(NAME, path)
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(found.model(images), features(model, images))
    assert set(found.report.dropped) == {"heads.head.weight", "heads.head.bias"}
    assert found.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.kind, found.image_size, found.resized_from) == ("image", (224, 224), None)


def test_positions_of_another_size_are_resampled_as_torchvision_does_it(saved):
    path, model = saved
    larger = burst.load_backbone(NAME, path, image_size=256)
    before = model.encoder.pos_embedding.detach()
    grid = before[:, 1:].mT.reshape(1, 32, 14, 14)
    grid = torch.nn.functional.interpolate(grid, 16, mode="bicubic", align_corners=True)
    expected = torch.cat([before[:, :1], grid.flatten(2).mT], dim=1)
    torch.testing.assert_close(larger.model.encoder.pos_embedding.data, expected)
    assert (larger.image_size, larger.resized_from) == ((256, 256), (224, 224))
    assert larger.model(torch.zeros(1, 3, 256, 256)).shape == (1, 32)


def test_a_file_s_own_grid_decides_the_size(tmp_path, small):
    torch.save(small("vit_b_16", image_size=320).state_dict(), tmp_path / "large.pth")
    found = burst.load_backbone(NAME, tmp_path / "large.pth")
    assert (found.image_size, found.resized_from) == ((320, 320), None)


@pytest.mark.parametrize("tag", ["IMAGENET1K_V1", "IMAGENET1K_SWAG_E2E_V1"])
def test_images_are_prepared_as_the_weights_transforms_do_it(tag):
    found = burst.load_backbone(f"{NAME}.{tag}", "random")
    theirs = models.ViT_B_16_Weights[tag].transforms()
    for width, height in ((610, 800), (530, 291), (333, 700)):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(pixels)
        ours = found.preprocess.normalise(found.preprocess.centre(image))
        torch.testing.assert_close(ours, theirs(image), atol=1e-6, rtol=1e-6)


def test_random_weights_follow_the_seed():
    weights = [
        burst.load_backbone(NAME, "random", seed=seed).model.conv_proj.weight for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_file_in_torch_s_cache_needs_no_connection(caches, offline, saved):
    folder = caches / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "vit_b_16-c867db91.pth").write_bytes(saved[0].read_bytes())
    found = burst.load_backbone(NAME)
    assert torch.equal(found.model.class_token, saved[1].class_token)
    assert found.weights_source.endswith("/vit_b_16-c867db91.pth")


def test_without_a_connection_one_line_says_what_to_get(offline):
    expected = f"weights of {NAME} are not on disk .*get https://download.pytorch.org/.*as weights"
    with pytest.raises(CheckpointError, match=expected):
        burst.load_backbone(NAME)


@pytest.mark.parametrize(
    "name, words",
    [
        ("torchvision:vit_b_17", "did you mean vit_b_16"),
        ("torchvision:resnet50", "unknown Vision Transformer of torchvision 'resnet50'"),
        ("torchvision:vit_b_16.IMAGENET1K_V9", "unknown weights of vit_b_16 .* IMAGENET1K_V1"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, words):
    with pytest.raises(UnknownName, match=words):
        burst.load_backbone(name, "random")


@pytest.mark.parametrize("weights", ["random", "file"])
def test_a_size_that_the_patches_do_not_fill_is_one_line(saved, weights):
    weights = saved[0] if weights == "file" else weights
    with pytest.raises(ImageError, match="no multiple of the 16 pixels .* choose 224 or 240"):
        burst.load_backbone(NAME, weights, image_size=225)


def change(state, kind):
    if kind == "another model":
        return {"blocks.0.norm1.weight": torch.zeros(3)}
    if kind == "missing":
        del state["encoder.ln.weight"]
    elif kind == "unknown":
        state["extra"] = torch.zeros(1)
    elif kind == "shape":
        state["encoder.ln.weight"] = torch.zeros(31)
    return state


@pytest.mark.parametrize(
    "kind, words",
    [
        ("another model", "holds no Vision Transformer as torchvision saves them"),
        ("missing", r"1 missing \(encoder.ln.weight\)"),
        ("unknown", r"1 unknown \(extra\)"),
        ("shape", r"encoder.ln.weight has shape \(31,\), expected \(32,\)"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(saved, kind, words):
    path, model = saved
    torch.save(change(model.state_dict(), kind), path)
    with pytest.raises(CheckpointError, match=words):
        burst.load_backbone(NAME, path)


def test_every_vit_of_torchvision_is_known():
    assert {"vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"} <= set(known_weights())
