"""An exported model: plain tokens, the same function, strictly read."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bpt import Recipe, export_run, load_exported, open_run, train
from burst import CheckpointError, OutputError


@pytest.fixture(scope="module")
def recipe(colours):
    return Recipe(
        dataset="folder",
        data=str(colours),
        placement="last:2",
        num_prompts=4,
        rank=2,
        epochs=1,
        batch_size=8,
    )


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory):
    """Of mae_tiny, and of a small one of random weights, read by the mean of its patches."""
    root = tmp_path_factory.mktemp("runs")
    small = replace(recipe, model="python:support:vit", pooling="patches")
    for method in ("bpt-bilinear", "linear"):
        train(replace(recipe, method=method, lr=None), root / method)
    for method in ("bpt-fwhiten", "bpt-dwhiten", "full"):
        train(replace(small, method=method, lr=None), root / method)
    return root


def images_for(backbone):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, *backbone.image_size, generator=generator)


@pytest.mark.parametrize("method", ["bpt-bilinear", "bpt-fwhiten", "bpt-dwhiten", "linear", "full"])
def test_an_exported_model_is_the_same_function(runs, tmp_path, method):
    run = open_run(runs / method)
    export_run(run, tmp_path / "m.safetensors")
    model, classes = load_exported(tmp_path / "m.safetensors")
    trained, backbone = run.load_model()
    images = images_for(backbone)
    assert classes == run.classes
    assert torch.allclose(model(images), trained(images), atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "full"])
def test_a_model_is_read_without_the_global_random_state(runs, tmp_path, method):
    export_run(open_run(runs / method), tmp_path / "m.safetensors")
    before = torch.get_rng_state()
    load_exported(tmp_path / "m.safetensors", device="auto")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_file_holds_plain_tokens_and_says_what_belongs_to_it(runs, tmp_path):
    run = open_run(runs / "bpt-bilinear")
    export_run(run, tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "prompts.10.values": (4, 192),
        "prompts.11.values": (4, 192),
        "head.weight": (3, 192),
        "head.bias": (3,),
    }
    kept = run.trained_state()
    product = kept["prompts.10.left"].double() @ kept["prompts.10.right"].double().T
    assert torch.allclose(tensors["prompts.10.values"].double(), product, atol=1e-6)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        about = json.loads(file.metadata()["metadata"])
    assert about["backbone"]["weights_sha256"] == run.config["backbone"]["weights_sha256"]
    assert about["classes"] == ["blue", "green", "red"]
    assert about["image_size"] == [64, 64]
    assert (about["crop_fraction"], about["crop_mode"]) == (1.0, "center")


def test_a_run_s_images_are_cropped_as_they_were_when_it_was_trained(runs):
    run = open_run(runs / "linear")
    assert run.load_model()[1].preprocess.crop_fraction == 1.0
    before = deepcopy(run.config)
    del before["backbone"]["crop_fraction"], before["backbone"]["crop_mode"]
    assert replace(run, config=before).load_model()[1].preprocess.crop_fraction == 0.875


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.9's own
def test_the_program_gives_the_same_logits_for_any_batch(runs, tmp_path):
    run = open_run(runs / "bpt-fwhiten")
    export_run(run, tmp_path / "m.safetensors", program=tmp_path / "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2").module()
    model, backbone = run.load_model()
    images = images_for(backbone)
    for count in (1, 3):
        assert torch.allclose(program(images[:count]), model(images[:count]), atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("short_files")
def test_a_full_disk_leaves_no_part_of_a_program(runs, tmp_path):
    model, program = tmp_path / "m.safetensors", tmp_path / "m.pt2"
    with pytest.raises(OutputError, match=r"cannot write .*m\.pt2: File too large"):
        export_run(open_run(runs / "bpt-fwhiten"), model, program=program)
    assert list(tmp_path.iterdir()) == [model]


def test_a_file_that_does_not_fit_is_refused(runs, tmp_path):
    path = tmp_path / "m.safetensors"
    export_run(open_run(runs / "bpt-bilinear"), path)
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["metadata"])

    def write(changed, content=tensors):
        save_file(content, path, {"metadata": json.dumps(changed)})

    write({**about, "kind": "other"})
    with pytest.raises(CheckpointError, match="not an exported model"):
        load_exported(path)
    write({**about, "backbone": {**about["backbone"], "weights_sha256": "0" * 64}})
    with pytest.raises(CheckpointError, match="other weights"):
        load_exported(path)
    write(about, {name: value for name, value in tensors.items() if "10" not in name})
    with pytest.raises(CheckpointError, match=r"prompts\.10\.values is missing"):
        load_exported(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match="not an exported model"):
        load_exported(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_exported(tmp_path / "none.safetensors")


def test_another_suffix_is_refused_before_anything_is_written(runs, tmp_path):
    with pytest.raises(OutputError, match="safetensors"):
        export_run(open_run(runs / "linear"), tmp_path / "m.bin")
    assert not list(tmp_path.iterdir())
