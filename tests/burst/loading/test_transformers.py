import hashlib
import json
import pathlib
import pickle
import sys
import time

import hf_folders
import pytest
import safetensors.torch
import torch
from hub_cache import put_in_hub_cache

import burst
from burst.errors import BurstError, CheckpointError, ImageError, UnsupportedModel

transformers = pytest.importorskip("transformers")

IMAGE = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    return folder, hf_folders.save_vit(folder)


@pytest.fixture
def own_vit(tmp_path):
    """One that a test may damage."""
    hf_folders.save_vit(tmp_path / "vit")
    return tmp_path / "vit"


def hidden(model, *args, **kwargs):
    with torch.inference_mode():
        return model(*args, **kwargs).last_hidden_state


def change_weights(folder, change) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    change(weights)
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


def change_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- a folder --------------------------------------------------------------------------------


def test_a_folder_holds_the_model_that_was_saved_and_its_head_is_left_aside(vit):
    folder, saved = vit
    found = burst.load_backbone(f"hf:{folder}")
    assert torch.equal(hidden(found.model, IMAGE), hidden(saved.vit, IMAGE))
    assert set(found.report.dropped) == {"classifier.weight", "classifier.bias"}
    assert found.notes == ("left aside of the weights: classifier.bias, classifier.weight",)
    assert not hasattr(found.model, "pooler") or found.model.pooler is None


def test_a_model_is_frozen_float32_and_in_eval_mode(tmp_path):
    model = hf_folders.save_vit(tmp_path)
    model.bfloat16().save_pretrained(tmp_path)
    found = burst.load_backbone(f"hf:{tmp_path}")
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert not any(module.training for module in found.model.modules())


def test_a_folder_says_where_its_weights_come_from(vit):
    folder, _ = vit
    found = burst.load_backbone(f"hf:{folder}")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (found.weights_source, found.weights_sha256) == (str(folder), digest)
    assert (found.kind, found.pretraining, found.name) == ("image", "unknown", f"hf:{folder}")


def test_no_connection_is_asked_for_where_a_folder_is_given(vit, no_sockets):
    folder, saved = vit
    found = burst.load_backbone(f"hf:{folder}")
    assert torch.equal(hidden(found.model, IMAGE), hidden(saved.vit, IMAGE))


def test_shards_are_read_and_hashed_in_their_order(tmp_path):
    saved = hf_folders.save_vit(tmp_path, max_shard_size="30KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    found = burst.load_backbone(f"hf:{tmp_path}")
    assert torch.equal(hidden(found.model, IMAGE), hidden(saved.vit, IMAGE))
    whole = b"".join(shard.read_bytes() for shard in shards)
    assert found.weights_sha256 == hashlib.sha256(whole).hexdigest()


def test_weights_that_torch_saved_are_read(own_vit):
    weights = safetensors.torch.load_file(own_vit / "model.safetensors")
    (own_vit / "model.safetensors").unlink()
    torch.save(weights, own_vit / "pytorch_model.bin")
    found = burst.load_backbone(f"hf:{own_vit}")
    expected = weights["vit.layernorm.weight"]
    assert torch.equal(found.model.layernorm.weight, expected)
    digest = hashlib.sha256((own_vit / "pytorch_model.bin").read_bytes()).hexdigest()
    assert found.weights_sha256 == digest


def test_random_weights_follow_the_seed_and_leave_the_global_state(vit):
    before = torch.get_rng_state()
    name = f"hf:{vit[0]}"
    first, same, other = (burst.load_backbone(name, "random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    outputs = [hidden(one.model, IMAGE) for one in (first, same, other)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert (first.weights_source, first.weights_sha256) == ("random", None)


def test_a_file_is_taken_for_the_folder_s_weights(vit, tmp_path):
    folder, saved = vit
    state = {name: value + 1 for name, value in saved.vit.state_dict().items()}
    torch.save(state, tmp_path / "mine.pth")
    found = burst.load_backbone(f"hf:{folder}", tmp_path / "mine.pth")
    assert torch.equal(found.model.layernorm.weight, state["layernorm.weight"])
    assert found.weights_source == str(tmp_path / "mine.pth")


def test_the_folder_s_own_file_is_taken_too_whatever_its_names(vit, tmp_path):
    """transformers 5 renames what files of before hold, and keeps their names on the disk."""
    folder, _ = vit
    whole = burst.load_backbone(f"hf:{folder}")
    file = folder / "model.safetensors"
    found = burst.load_backbone(f"hf:{folder}", file)
    for one, other in zip(*(x.model.state_dict().values() for x in (whole, found)), strict=True):
        assert torch.equal(one, other)
    assert set(found.report.dropped) == set(whole.report.dropped)
    assert (found.weights_source, found.weights_sha256) == (str(file), whole.weights_sha256)
    weights = safetensors.torch.load_file(file)
    del weights["vit.layernorm.weight"]
    torch.save(weights, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match="missing .*nothing was loaded"):
        burst.load_backbone(f"hf:{folder}", tmp_path / "less.pth")


# --- what is strict --------------------------------------------------------------------------


def test_a_weight_that_is_missing_is_named_and_not_made_up(own_vit):
    removed = []

    def remove(weights):
        removed.append(next(name for name in weights if "query.weight" in name or "q_proj" in name))
        del weights[removed[0]]

    change_weights(own_vit, remove)
    with pytest.raises(CheckpointError, match="1 weights of a ViT.* are missing") as caught:
        burst.load_backbone(f"hf:{own_vit}")
    assert "attention" in str(caught.value).partition("(")[2]


def test_a_weight_of_another_shape_is_named(own_vit):
    change_config(own_vit, intermediate_size=49)
    with pytest.raises(CheckpointError, match=r"the shape of \S+ is not what the configuration"):
        burst.load_backbone(f"hf:{own_vit}")


def test_a_weight_that_is_not_finite_is_named(own_vit):
    change_weights(own_vit, lambda weights: weights["vit.layernorm.bias"].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=r"32 of 32 values of layernorm.bias are not finite"):
        burst.load_backbone(f"hf:{own_vit}")


def test_a_truncated_file_is_one_line(own_vit):
    path = own_vit / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="its weights cannot be read") as caught:
        burst.load_backbone(f"hf:{own_vit}")
    assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("executed"),))


def test_code_in_a_weight_file_is_not_run(own_vit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (own_vit / "model.safetensors").unlink()
    with (own_vit / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"vit.layernorm.weight": Payload()}, file)
    with pytest.raises(CheckpointError, match="its weights cannot be read"):
        burst.load_backbone(f"hf:{own_vit}")
    assert not (tmp_path / "executed").exists()


def test_code_of_a_repository_is_not_run(own_vit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (own_vit / "mine.py").write_text("import pathlib; pathlib.Path('executed').touch()")
    mapped = {"AutoConfig": "mine.MyConfig", "AutoModel": "mine.MyModel"}
    change_config(own_vit, model_type="mine", auto_map=mapped)
    with pytest.raises(CheckpointError, match="without code of its repository, which is not run"):
        burst.load_backbone(f"hf:{own_vit}")
    assert not (tmp_path / "executed").exists()


def damage(kind, folder):
    if kind == "no configuration":
        (folder / "config.json").unlink()
    elif kind == "broken configuration":
        (folder / "config.json").write_text("{")
    elif kind == "no weights":
        (folder / "model.safetensors").unlink()
    elif kind == "quantised":
        change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    elif kind == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif kind == "missing shard":
        hf_folders.save_vit(folder, max_shard_size="30KB")
        (folder / "model.safetensors").unlink(missing_ok=True)
        next(folder.glob("model-*.safetensors")).unlink()
    elif kind == "index elsewhere":
        (folder / "model.safetensors").unlink()
        index = {"weight_map": {"vit.layernorm.weight": "../secret.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "kind, words",
    [
        ("no configuration", "holds no config.json; expected a folder that `save_pretrained`"),
        ("broken configuration", "does not know this model"),
        ("no weights", "holds no weights, expected model.safetensors or pytorch_model.bin"),
        ("missing shard", r"model-0000\d-of-0000\d.safetensors is missing, one of the"),
        ("index elsewhere", "names files outside of its folder"),
        ("quantised", "has quantised weights; expected plain ones"),
        ("adapter", "holds an adapter of another model; merge it"),
    ],
)
def test_each_bad_folder_has_its_own_line(own_vit, kind, words):
    damage(kind, own_vit)
    with pytest.raises(BurstError, match=words) as caught:
        burst.load_backbone(f"hf:{own_vit}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["./nowhere", "/nowhere/at/all", "~nobody/model", "a/b/c"])
def test_a_path_that_leads_nowhere_is_no_repository(place, no_sockets):
    with pytest.raises(CheckpointError, match="no folder .* expected one that `save_pretrained`"):
        burst.load_backbone(f"hf:{place}")


def test_a_file_in_the_place_of_a_folder_is_told(vit):
    with pytest.raises(CheckpointError, match="is a file; expected a folder"):
        burst.load_backbone(f"hf:{vit[0] / 'model.safetensors'}")


def test_without_the_library_one_line_says_what_to_install(vit, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    expected = r"transformers is not installed; pip install 'attention-burstiness\[hf\]'"
    with pytest.raises(BurstError, match=expected):
        burst.load_backbone(f"hf:{vit[0]}")


def test_an_encoder_with_a_decoder_is_refused(tmp_path):
    sizes = {"vocab_size": 40, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    transformers.T5Model(transformers.T5Config(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"is an encoder with a decoder; .*get_encoder"):
        burst.load_backbone(f"hf:{tmp_path}")


def test_an_encoder_alone_is_measured_whole(tmp_path):
    sizes = {"vocab_size": 40, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(**sizes, is_encoder_decoder=False)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    found = burst.load_backbone(f"hf:{tmp_path}")
    assert not found.report.dropped


# --- towers and other kinds ------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, hf_folders.save_clip(folder)


def test_of_two_towers_that_of_images_is_read(clip):
    folder, saved = clip
    found = burst.load_backbone(f"hf:{folder}")
    assert found.kind == "image"
    with torch.inference_mode():
        expected = saved.vision_model(IMAGE).last_hidden_state
    assert torch.equal(hidden(found.model, IMAGE), expected)
    assert not any("text" in name for name in found.model.state_dict())
    assert any(name.startswith("text_model.* (") for name in found.report.dropped)


def test_or_that_of_text_where_text_is_asked_for(clip):
    folder, saved = clip
    found = burst.load_backbone(f"hf:{folder}", kind="text")
    assert found.kind == "text"
    ids = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 2]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}
    with torch.inference_mode():
        expected = saved.text_model(**batch).last_hidden_state
    assert torch.equal(hidden(found.model, **batch), expected)


def test_a_tower_whose_names_do_not_tell_is_found_in_the_whole(tmp_path):
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**hf_folders.IMAGES),
        text_config=transformers.LlamaConfig(**hf_folders.TEXT),
        image_token_index=39,
    )
    saved = hf_folders.randomise(transformers.LlavaForConditionalGeneration(config))
    saved.save_pretrained(tmp_path)
    hf_folders.save_processor(tmp_path)
    found = burst.load_backbone(f"hf:{tmp_path}")
    assert type(found.model).__name__ == "CLIPVisionModel"
    inside = [m for m in saved.modules() if type(m).__name__ == "CLIPVisionModel"]
    assert torch.equal(hidden(found.model, IMAGE), hidden(inside[0], IMAGE))
    assert found.report.dropped


def test_all_patches_of_a_masked_autoencoder_are_read_in_their_order(tmp_path):
    decoder = {f"decoder_{name}": value for name, value in hf_folders.SIZES.items()}
    config = transformers.ViTMAEConfig(**hf_folders.IMAGES, **decoder)
    saved = hf_folders.randomise(transformers.ViTMAEForPreTraining(config))
    saved.save_pretrained(tmp_path)
    found = burst.load_backbone(f"hf:{tmp_path}")
    saved.config.mask_ratio = saved.vit.embeddings.config.mask_ratio = 0.0
    expected = hidden(saved.vit, IMAGE, noise=torch.arange(16.0).expand(2, -1))
    assert torch.equal(hidden(found.model, IMAGE), expected)
    assert torch.equal(hidden(found.model, pixel_values=IMAGE), expected)
    assert expected.shape[1] == 17
    assert any(name.startswith("decoder.* (") for name in found.report.dropped)


def test_an_image_size_of_a_text_is_refused(clip):
    with pytest.raises(ImageError, match="reads text, not images; give no image size"):
        burst.load_backbone(f"hf:{clip[0]}", kind="text", image_size=48)


def test_a_model_of_videos_says_so_where_images_are_given(tmp_path):
    config = transformers.VideoMAEConfig(num_frames=2, **hf_folders.IMAGES)
    transformers.VideoMAEModel(config).save_pretrained(tmp_path)
    found = burst.load_backbone(f"hf:{tmp_path}")
    assert found.kind == "video"
    with pytest.raises(ImageError, match="reads videos, not images; give `burst.survey` batches"):
        burst.images_for(found, "sample")


def test_a_model_of_cut_out_patches_says_what_it_reads(tmp_path):
    vision = {"patch_size": 8, "num_patches": 16, **hf_folders.SIZES}
    config = transformers.Siglip2Config(text_config=hf_folders.TEXT, vision_config=vision)
    transformers.Siglip2Model(config).save_pretrained(tmp_path)
    found = burst.load_backbone(f"hf:{tmp_path}")
    with pytest.raises(ImageError, match="reads pixel_values and .*spatial_shapes, not images"):
        burst.images_for(found, "sample")


# --- images of another size ------------------------------------------------------------------


def test_another_size_is_read_as_the_library_resamples_it(vit):
    folder, saved = vit
    larger = burst.load_backbone(f"hf:{folder}", image_size=48)
    images = torch.randn(2, 3, 48, 48)
    expected = hidden(saved.vit, images, interpolate_pos_encoding=True)
    assert torch.equal(hidden(larger.model, images), expected)
    assert (larger.image_size, larger.resized_from) == ((48, 48), (32, 32))
    assert larger.notes[0].startswith("images are read at 48 x 48 pixels, not at the 32 x 32 of")
    assert larger.preprocess.image_size == 48


def test_a_size_that_the_patches_do_not_fill_is_one_line(vit):
    with pytest.raises(ImageError, match="image size 50 is no multiple of the 8 .* choose 48 or 5"):
        burst.load_backbone(f"hf:{vit[0]}", image_size=50)


def test_the_processor_decides_where_it_differs_from_the_pretraining(own_vit):
    hf_folders.save_processor(own_vit, size={"height": 24, "width": 24})
    found = burst.load_backbone(f"hf:{own_vit}")
    assert (found.image_size, found.resized_from) == ((24, 24), (32, 32))
    assert hidden(found.model, torch.zeros(1, 3, 24, 24)).shape == (1, 10, 32)


def test_a_model_without_a_processor_is_assumed_to_read_what_imagenet_has(own_vit):
    (own_vit / "preprocessor_config.json").unlink()
    found = burst.load_backbone(f"hf:{own_vit}")
    assert found.assumed
    assert (found.mean, found.image_size) == ((0.485, 0.456, 0.406), (32, 32))
    assert "does not say how its images are prepared; ImageNet's mean" in found.notes[0]


# --- the hub ---------------------------------------------------------------------------------


def test_a_repository_in_the_cache_needs_no_connection(caches, offline, vit):
    folder, saved = vit
    for file in folder.iterdir():
        put_in_hub_cache(caches, "org/name", file.name, file.read_bytes())
    found = burst.load_backbone("hf:org/name")
    assert torch.equal(hidden(found.model, IMAGE), hidden(saved.vit, IMAGE))
    assert found.weights_source == "https://huggingface.co/org/name/tree/0123abc"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert found.weights_sha256 == digest


@pytest.mark.parametrize("cached", [[], ["config.json"]])
def test_without_a_connection_one_line_says_what_to_get(caches, offline, vit, cached):
    for name in cached:
        put_in_hub_cache(caches, "org/name", name, (vit[0] / name).read_bytes())
    start = time.monotonic()
    expected = r"weights of hf:org/name are not on disk .*no connection .*get the files of http"
    with pytest.raises(CheckpointError, match=expected):
        burst.load_backbone("hf:org/name")
    assert time.monotonic() - start < 10
