import hashlib
import json
import logging
import sys

import hf_folders
import numpy as np
import pytest
import torch
from hub_cache import put_in_hub_cache
from PIL import Image

import burst
from burst.errors import BurstError, CheckpointError, ImageError, UnknownName

open_clip = pytest.importorskip("open_clip")

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPARED = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.3], "interpolation": "bilinear"}
WEIGHTS = "open_clip_pytorch_model.bin"


def save(folder, **prepared):
    """A model as OpenCLIP publishes one, its text tower not apart."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG).eval()
    facts = {"model_cfg": CONFIG, "preprocess_cfg": PREPARED | prepared}
    (folder / "open_clip_config.json").write_text(json.dumps(facts))
    torch.save(model.state_dict(), folder / WEIGHTS)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, save(folder)


def test_of_a_folder_the_tower_of_images_is_read(clip, no_sockets):
    folder, model = clip
    found = burst.load_backbone(f"open_clip:local-dir:{folder}")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(found.model(images), model.visual(images), rtol=0, atol=1e-6)
    assert found.weights_sha256 == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert (found.kind, found.image_size) == ("image", (32, 32))
    assert any(name.startswith("text.* (") for name in found.report.dropped)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_images_are_prepared_as_open_clip_prepares_them(tmp_path, mode):
    save(tmp_path / "clip", resize_mode=mode)
    name = f"local-dir:{tmp_path / 'clip'}"
    found = burst.load_backbone(f"open_clip:{name}")
    theirs = open_clip.create_model_and_transforms(name)[2]
    for width, height in ((61, 80), (53, 29), (33, 70)):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(pixels)
        ours = found.preprocess.normalise(found.preprocess.centre(image))
        torch.testing.assert_close(ours, theirs(image), atol=1e-6, rtol=1e-6)


def test_a_way_to_resize_that_is_not_known_is_refused(tmp_path):
    save(tmp_path, resize_mode="longest")
    with pytest.raises(ImageError, match="resizes images by their longest side"):
        burst.load_backbone(f"open_clip:local-dir:{tmp_path}")


def test_the_tower_of_text_reads_a_text(clip, tmp_path, no_sockets):
    folder, model = clip
    found = burst.load_backbone(f"open_clip:local-dir:{folder}", kind="text")
    (tmp_path / "a.txt").write_text("a photo of a cat " * 40)
    stream = burst.text_for(found, tmp_path / "a.txt")
    (batch,) = stream
    assert batch["input_ids"].shape == (3, 77)
    with torch.inference_mode():
        ours, theirs = found.model(**batch), model.encode_text(batch["input_ids"])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    whole = open_clip.SimpleTokenizer().encode("a photo of a cat " * 40)
    read = sum(int(mask.sum()) - 2 for mask in batch["attention_mask"])
    assert read == len(whole)


def test_a_text_is_cleaned_as_open_clip_cleans_it(clip, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    hf_folders.save_tokenizer(tmp_path)
    theirs = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=77, clean="canonicalize")
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: theirs)
    (tmp_path / "a.txt").write_text("The CAT, sat  on a mat!")
    found = burst.load_backbone(f"open_clip:local-dir:{clip[0]}", kind="text")
    (batch,) = burst.text_for(found, tmp_path / "a.txt")
    expected = theirs.tokenizer("the cat sat on a mat")["input_ids"]
    assert batch["input_ids"][0, : len(expected)].tolist() == expected


def test_positions_of_another_size_are_resampled_as_open_clip_does_it(clip):
    folder, _ = clip
    larger = burst.load_backbone(f"open_clip:local-dir:{folder}", image_size=48)
    theirs = open_clip.create_model(f"local-dir:{folder}", force_image_size=48).visual
    assert torch.equal(larger.model.positional_embedding, theirs.positional_embedding)
    assert (larger.image_size, larger.resized_from) == ((48, 48), (32, 32))


def test_a_size_that_the_patches_do_not_fill_is_one_line(clip):
    with pytest.raises(ImageError, match="no multiple of the 8 pixels .* choose 48 or 56"):
        burst.load_backbone(f"open_clip:local-dir:{clip[0]}", image_size=50)


def test_the_root_logger_stays_as_it_was(clip):
    before = (list(logging.root.handlers), logging.root.manager.disable)
    burst.load_backbone(f"open_clip:local-dir:{clip[0]}", "random")
    assert (list(logging.root.handlers), logging.root.manager.disable) == before


def test_random_weights_follow_the_seed(clip):
    name = f"open_clip:local-dir:{clip[0]}"
    first, same, other = (
        burst.load_backbone(name, "random", seed=seed).model.conv1.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_repository_in_the_cache_needs_no_connection(caches, offline, clip):
    for file in clip[0].iterdir():
        put_in_hub_cache(caches, "org/clip", file.name, file.read_bytes())
    found = burst.load_backbone("open_clip:hf-hub:org/clip")
    assert torch.equal(found.model.conv1.weight, clip[1].visual.conv1.weight)
    assert found.weights_source == "https://huggingface.co/org/clip"


@pytest.fixture
def listed(monkeypatch):
    """A small architecture of OpenCLIP's list, and weights that are published for it."""
    known = {"ViT-B-32": CONFIG | {"quick_gelu": False}}
    tags = {"openai": {"hf_hub": "org/vit_b_32.openai/", "quick_gelu": True, **PREPARED}}
    monkeypatch.setattr(open_clip, "list_models", lambda: list(known))
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: dict(known[name]))
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: list(tags))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, tag: tags.get(tag, {}))
    monkeypatch.setattr(open_clip.factory, "get_model_config", lambda name: dict(known[name]))


@pytest.mark.usefixtures("listed")
def test_published_weights_bring_their_images_and_their_activation(caches, offline, clip):
    data = (clip[0] / WEIGHTS).read_bytes()
    put_in_hub_cache(caches, "org/vit_b_32.openai", WEIGHTS, data)
    found = burst.load_backbone("open_clip:ViT-B-32/openai")
    assert (found.mean, found.interpolation) == ((0.1, 0.2, 0.3), "bilinear")
    activation = type(found.model.transformer.resblocks[0].mlp.gelu).__name__
    assert activation == "QuickGELU"  # whose weights were trained with it, whatever the list says
    assert found.weights_sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize(
    "name, error, words",
    [
        ("ViT-B-33", UnknownName, "unknown model of OpenCLIP 'ViT-B-33'; did you mean ViT-B-32"),
        ("ViT-B-32/openia", UnknownName, "unknown weights of ViT-B-32 .* did you mean openai"),
        ("ViT-B-32", CheckpointError, r"which weights of .*\(openai\), give a file, or the word"),
        ("ViT-B/32", CheckpointError, "which weights of open_clip:ViT-B/32"),
        ("ViT-B-32/openai", CheckpointError, "not on disk .*get https://huggingface.co/org/vit_b"),
        ("local-dir:/nowhere", CheckpointError, "holds no open_clip_config.json"),
        ("hf-hub:org/none", CheckpointError, "not on disk .*get https://huggingface.co/org/none"),
    ],
)
def test_each_mistake_has_its_own_line(offline, name, error, words):
    with pytest.raises(error, match=words) as caught:
        burst.load_backbone(f"open_clip:{name}")
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_one_line(clip, tmp_path):
    torch.save({"positional_embedding": torch.zeros(77, 32)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="cannot be loaded from .*w.pt") as caught:
        burst.load_backbone(f"open_clip:local-dir:{clip[0]}", tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_a_weight_file_that_is_not_there_is_told(clip, tmp_path):
    with pytest.raises(CheckpointError, match="w.pt does not exist"):
        burst.load_backbone(f"open_clip:local-dir:{clip[0]}", tmp_path / "w.pt")


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    expected = r"open_clip is not installed; pip install 'attention-burstiness\[open-clip\]'"
    with pytest.raises(BurstError, match=expected):
        burst.load_backbone("open_clip:ViT-B-32/openai")
