import hashlib
import io
import json
import pathlib
import pickle

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from hub_cache import put_in_hub_cache
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save, save_file
from support import SIZE, vit

from burst.backbone import load_backbone
from burst.errors import CheckpointError

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


def test_a_timm_model_without_pretrained_weights_asks_for_a_file():
    with pytest.raises(CheckpointError, match=r"no pretrained weights for timm:davit_giant; give"):
        load_backbone("timm:davit_giant")


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


def test_code_in_a_repository_of_a_timm_model_is_not_run(caches, offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"architecture": "test_vit", "num_classes": 1000, "pretrained_cfg": {}}
    put_in_hub_cache(caches, "org/name", "config.json", json.dumps(config).encode())
    data = pickle.dumps({"cls_token": Payload()})
    put_in_hub_cache(caches, "org/name", "pytorch_model.bin", data)
    with pytest.raises(CheckpointError, match="code"):
        load_backbone("hf-hub:org/name")
    assert not (tmp_path / "executed").exists()


def test_a_hub_file_of_torch_s_is_read_where_there_is_no_safetensors(caches, offline, tiny_file):
    stored = io.BytesIO()
    torch.save(load_file(tiny_file), stored)
    put_in_hub_cache(caches, "timm/test_vit.r160_in1k", "pytorch_model.bin", stored.getvalue())
    tiny = load_backbone(TINY)
    assert torch.equal(tiny.model.pos_embed, load_file(tiny_file)["pos_embed"])
    assert tiny.weights_sha256 == hashlib.sha256(stored.getvalue()).hexdigest()
    assert "state_dict" not in tiny.model.pretrained_cfg


def test_a_model_that_came_from_jax_is_read_from_the_safetensors_of_its_repository(caches, offline):
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"  # by its URL it would be an .npz
    assert timm.models.get_pretrained_cfg(name).custom_load
    model = timm.create_model(name.partition(".")[0])
    put_in_hub_cache(caches, f"timm/{name}", "model.safetensors", save(model.state_dict()))
    assert torch.equal(load_backbone(f"timm:{name}").model.pos_embed, model.pos_embed)


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


def test_a_model_that_knows_no_positions_reads_any_size():
    resnet = load_backbone("timm:test_resnet", "random", image_size=50)
    assert resnet.image_size == (50, 50)


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
