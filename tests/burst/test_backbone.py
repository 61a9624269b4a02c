import dataclasses
import hashlib
import io
import json
import pathlib
import pickle
import time

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from hub_cache import put_in_hub_cache
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from support import SIZE, backbone_of, vit

from burst import _hub, backbone
from burst.backbone import load_backbone
from burst.backbone_spec import find_backbone, known_backbones
from burst.errors import BurstError, CheckpointError, ImageError, UnknownName

SHIPPED = ["mae_tiny", "moco_tiny", "sup_tiny"]
NAMES = [spec.name for spec in known_backbones()]
TAGGED = [spec.name for spec in known_backbones() if spec.timm_tag]
TINY = "timm:test_vit.r160_in1k"  # timm's own model for tests: width 64, depth 6, 160 x 160


class Payload:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("executed"),))


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    """Random weights of timm's test model with its head, as timm publishes them."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


# --- the registry ---------------------------------------------------------------------------


def test_the_registry_holds_the_published_backbones_and_three_that_come_with_the_package():
    maes = ["mae_vitb", "mae_vitl", "mae_vith", "mae_vit2b"]
    assert [*SHIPPED, *maes, "moco_vitb", "sup_vitb", "sup_vitl", "sup_vith"] == NAMES


@pytest.mark.parametrize("name", SHIPPED)
def test_a_backbone_of_the_package_is_float16_and_has_a_card(name):
    spec = find_backbone(name)
    file = spec.on_disk()
    assert {value.dtype for value in load_file(file).values()} == {torch.float16}
    assert hashlib.sha256(file.read_bytes()).hexdigest() == spec.sha256
    card = file.with_suffix(".md").read_text()
    assert spec.sha256 in card
    assert "same architecture at random weights" in card


def test_the_three_of_the_package_differ_in_pretraining_alone():
    specs = [find_backbone(name) for name in SHIPPED]
    assert [spec.pretraining for spec in specs] == ["mae", "moco_v3", "supervised"]
    assert [spec.pooling for spec in specs] == ["avg", "token", "token"]
    assert len({load_file(spec.on_disk())["norm.weight"].sum().item() for spec in specs}) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_s_parameter_count_is_that_of_the_model_it_builds(name):
    spec = find_backbone(name)
    with torch.device("meta"):
        model = spec.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters


@pytest.mark.parametrize("name", TAGGED)
def test_a_spec_builds_what_timm_builds_for_its_tag(name):
    spec = find_backbone(name)
    with torch.device("meta"):
        ours, theirs = spec.build(), timm.create_model(spec.timm_tag, num_classes=0)
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert ours.blocks[0].attn.num_heads == theirs.blocks[0].attn.num_heads


@pytest.mark.parametrize("name", TAGGED)
def test_a_spec_s_normalisation_and_size_are_those_of_its_timm_tag(name):
    spec, config = find_backbone(name), timm.models.get_pretrained_cfg(find_backbone(name).timm_tag)
    assert config.has_weights
    assert (spec.mean, spec.std) == (config.mean, config.std)
    assert (3, spec.image_size, spec.image_size) == config.input_size
    assert spec.interpolation == config.interpolation


def test_the_two_billion_model_has_maws_s_shape():
    with torch.device("meta"):
        model = find_backbone("mae_vit2b").build()
    assert model.pos_embed.shape == (1, 257, 2560)
    assert len(model.blocks) == 24
    assert model.blocks[0].attn.num_heads == 32
    assert model.blocks[0].mlp.fc1.weight.shape == (10240, 2560)
    assert isinstance(model.norm, torch.nn.LayerNorm)


def test_mae_pools_the_patches_and_the_others_the_class_token():
    assert {(spec.pretraining, spec.pooling) for spec in known_backbones()} == {
        ("mae", "avg"),
        ("moco_v3", "token"),
        ("supervised", "token"),
    }


def test_a_name_that_is_not_registered_gets_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown backbone 'mae_vit'; did you mean mae_vit\w+,"):
        find_backbone("mae_vit")


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"pretraining": "dino"}, "unknown pretraining 'dino'"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
        ({"heads": 5}, "heads must divide width"),
        ({"patch_size": 7}, "patch_size must divide image_size"),
        ({"depth": 0}, "sizes must be positive"),
        ({"std": (1.0, 1.0, 0.0)}, "std must be positive"),
        ({"mean": (0.5,)}, "three values"),
        ({"package_file": None}, "package_file, timm_tag or url is needed"),
        ({"sha256": "xyz"}, "hexadecimal"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(change, expected):
    with pytest.raises(BurstError, match=expected):
        dataclasses.replace(find_backbone("mae_tiny"), **change)


# --- the backbone that comes with the package -----------------------------------------------


@pytest.fixture(scope="module")
def mae_tiny():
    return load_backbone("mae_tiny")


def test_mae_tiny_is_frozen_float32_and_in_eval_mode(mae_tiny):
    parameters = list(mae_tiny.model.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not mae_tiny.model.training


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


# --- weights that are given -----------------------------------------------------------------


def test_a_registered_name_takes_a_file(tmp_path, mae_tiny):
    state = {k: v + 1 for k, v in mae_tiny.model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "mine.pth")
    mine = load_backbone("mae_tiny", tmp_path / "mine.pth")
    assert torch.equal(mine.model.norm.weight, state["norm.weight"])
    assert mine.weights_source == str(tmp_path / "mine.pth")
    assert mine.report.layout.startswith("timm names under `model`")


def test_a_timm_model_takes_a_file(tiny_file):
    tiny = load_backbone(TINY, tiny_file)
    assert torch.equal(tiny.model.pos_embed, load_file(tiny_file)["pos_embed"])
    assert tiny.weights_sha256 == hashlib.sha256(tiny_file.read_bytes()).hexdigest()
    assert tiny.pretraining == "unknown"
    assert set(tiny.report.dropped) == {"head.weight", "head.bias"}


def test_a_timm_model_has_timm_s_normalisation_and_size(tiny_file):
    tiny, config = load_backbone(TINY, tiny_file), timm.models.get_pretrained_cfg("test_vit")
    assert (tiny.mean, tiny.std) == (config.mean, config.std)
    assert tiny.image_size == (160, 160)


@pytest.mark.parametrize(
    "name, fraction, mode",
    [
        ("vit_small_patch14_dinov2.lvd142m", 1.0, "center"),
        ("vit_tiny_patch16_224.augreg_in21k", 0.9, "center"),
        ("vit_base_patch16_siglip_224.webli", 0.9, "center"),
        ("vit_base_patch16_clip_384.openai_ft_in1k", 1.0, "squash"),
        ("vit_base_patch16_clip_224.openai", 0.9, "center"),
        ("deit3_small_patch16_224.fb_in1k", 0.9, "center"),
    ],
)
def test_a_timm_model_s_images_are_prepared_as_timm_prepares_them(
    name, fraction, mode, monkeypatch
):
    """The configuration is the named model's, the model a small one in its place."""
    config = timm.models.get_pretrained_cfg(name).to_dict()

    def small(_, **__):
        model = vit()
        model.pretrained_cfg = config
        return model

    monkeypatch.setattr(timm, "create_model", small)
    found = load_backbone(f"timm:{name}", weights="random")
    assert (found.crop_fraction, found.crop_mode) == (fraction, mode)
    theirs = timm.data.create_transform(
        **timm.data.resolve_model_data_config(found.model) | {"input_size": (3, SIZE, SIZE)}
    )
    for width, height in ((61, 80), (53, 29), (16, 16)):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(pixels)
        ours = found.preprocess.normalise(found.preprocess.centre(image))
        torch.testing.assert_close(ours, theirs(image), atol=1e-6, rtol=1e-6)


def test_a_registered_backbone_s_images_are_cropped_as_its_publishers_evaluated_it():
    crops = {spec.name: (spec.crop_fraction, spec.crop_mode) for spec in known_backbones()}
    small = {"mae_tiny", "moco_tiny", "sup_tiny"}
    assert {crops.pop(name) for name in small} == {(1.0, "center")}
    assert set(crops.values()) == {(0.875, "center")}


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


def test_random_weights_are_recorded_as_such():
    random = load_backbone("timm:test_vit", weights="random")
    assert (random.weights_source, random.weights_sha256) == ("random", None)
    assert random.pretraining == "random"


def test_random_weights_follow_the_seed_and_leave_the_global_state():
    before = torch.get_rng_state()
    first, same, other = (load_backbone(TINY, "random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [x.model.blocks[0].attn.qkv.weight for x in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_model_that_is_no_vit_loads():
    resnet = load_backbone("timm:test_resnet", weights="random")
    assert resnet.model(torch.zeros(1, 3, *resnet.image_size)).ndim == 2


# --- names ----------------------------------------------------------------------------------


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
        ("qqqq", "known: mae_tiny"),
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


def test_a_timm_model_without_pretrained_weights_asks_for_a_file():
    with pytest.raises(CheckpointError, match=r"no pretrained weights for timm:davit_giant; give"):
        load_backbone("timm:davit_giant")


# --- caches and downloads -------------------------------------------------------------------


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


def test_the_hub_client_s_constants_stay_as_they_are(offline, monkeypatch):
    seen = []

    def note(*arguments, **options):
        seen.append((constants.HF_HUB_OFFLINE, options["local_files_only"]))
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", note)
    with pytest.raises(CheckpointError, match="no connection"):
        load_backbone(TINY)
    assert seen == [(False, True)]


def test_in_offline_mode_nobody_is_asked(caches, monkeypatch, no_sockets):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="no connection to the hub, or offline mode"):
        load_backbone(TINY)


def test_a_hub_file_that_would_run_code_is_not_read(caches, offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"cls_token": Payload()})
    put_in_hub_cache(caches, "timm/test_vit.r160_in1k", "pytorch_model.bin", data)
    with pytest.raises(CheckpointError, match="code"):
        load_backbone(TINY)
    assert not (tmp_path / "executed").exists()


def test_a_hub_file_of_torch_s_is_read_where_there_is_no_safetensors(caches, offline, tiny_file):
    stored = io.BytesIO()
    torch.save(load_file(tiny_file), stored)
    put_in_hub_cache(caches, "timm/test_vit.r160_in1k", "pytorch_model.bin", stored.getvalue())
    tiny = load_backbone(TINY)
    assert torch.equal(tiny.model.pos_embed, load_file(tiny_file)["pos_embed"])
    assert tiny.weights_sha256 == hashlib.sha256(stored.getvalue()).hexdigest()
    assert "state_dict" not in tiny.model.pretrained_cfg


# --- images of another size -----------------------------------------------------------------


def test_a_timm_model_reads_another_size_as_timm_resamples_it(caches, offline, tiny_file):
    put_in_hub_cache(caches, "timm/test_vit.r160_in1k", "model.safetensors", tiny_file.read_bytes())
    larger = load_backbone(TINY, image_size=224)
    theirs = timm.create_model(
        "test_vit", pretrained=True, num_classes=0, img_size=224,
        pretrained_cfg_overlay={"file": str(tiny_file)},
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(larger.model(images), theirs(images))
    assert (larger.image_size, larger.resized_from) == ((224, 224), (160, 160))
    (note,) = larger.notes
    assert note.startswith("images are read at 224 x 224 pixels, not at the 160 x 160 of the")


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


def test_a_model_that_knows_no_positions_reads_any_size():
    resnet = load_backbone("timm:test_resnet", "random", image_size=50)
    assert resnet.image_size == (50, 50)


@pytest.mark.parametrize(
    "name, size, words",
    [
        ("mae_tiny", 100, "image size 100 is no multiple of the 8 pixels .* choose 96 or 104"),
        ("timm:test_vit", 7, "choose 16"),
        ("timm:test_vit", 0, "image_size 0 must be at least 1"),
        ("timm:levit_128s", 64, "cannot read images of 64 x 64 pixels"),
    ],
)
def test_a_size_that_cannot_be_read_is_one_line(name, size, words):
    with pytest.raises(ImageError, match=words) as caught:
        load_backbone(name, "random", image_size=size)
    assert "\n" not in str(caught.value)


def test_a_timm_model_in_the_hub_s_cache_needs_no_connection(caches, offline, tiny_file):
    put_in_hub_cache(caches, "timm/test_vit.r160_in1k", "model.safetensors", tiny_file.read_bytes())
    tiny = load_backbone(TINY)
    assert torch.equal(tiny.model.pos_embed, load_file(tiny_file)["pos_embed"])
    assert tiny.weights_sha256 == hashlib.sha256(tiny_file.read_bytes()).hexdigest()
    assert tiny.weights_source.startswith("https://huggingface.co/timm/test_vit.r160_in1k/")


def test_a_hub_name_in_the_cache_needs_no_connection(caches, offline, tiny_file):
    config = {"architecture": "test_vit", "num_classes": 1000}
    config["pretrained_cfg"] = {"mean": [0.1] * 3, "std": [0.2] * 3, "input_size": [3, 160, 160]}
    config["pretrained_cfg"] |= {"fixed_input_size": True, "classifier": "head"}
    put_in_hub_cache(caches, "org/name", "config.json", json.dumps(config).encode())
    put_in_hub_cache(caches, "org/name", "model.safetensors", tiny_file.read_bytes())
    tiny = load_backbone("hf-hub:org/name")
    assert torch.equal(tiny.model.pos_embed, load_file(tiny_file)["pos_embed"])
    assert tiny.mean == (0.1, 0.1, 0.1)
    assert tiny.weights_sha256 == hashlib.sha256(tiny_file.read_bytes()).hexdigest()


def test_a_hub_repository_that_is_not_timm_s_is_refused(caches, offline):
    put_in_hub_cache(caches, "org/bert", "config.json", b'{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"hf-hub:org/bert .*is it a timm model\?"):
        load_backbone("hf-hub:org/bert")


def test_a_registered_backbone_is_found_in_the_hub_s_cache(caches):
    spec = find_backbone("mae_vitb")
    assert spec.on_disk() is None
    file = put_in_hub_cache(caches, f"timm/{spec.timm_tag}", "model.safetensors", b"...")
    assert spec.on_disk() == file


def test_a_registered_backbone_is_found_in_torch_s_cache(caches):
    file = caches / "torch" / "hub" / "checkpoints" / "vit-b-300ep.pth.tar"
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_backbone("moco_vitb").on_disk() == file


def test_a_file_name_that_several_publications_share_is_not_trusted(caches):
    file = caches / "torch" / "hub" / "checkpoints" / "vit_2b14.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    spec = find_backbone("mae_vit2b")
    assert spec.on_disk() is None
    _hub.url_cache(spec.url).touch()
    assert spec.on_disk() == _hub.url_cache(spec.url)
