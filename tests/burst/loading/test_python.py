from types import SimpleNamespace

import pytest
import torch

import burst
from burst.errors import BurstError, CheckpointError, ImageError
from burst.loading.python import _built_for

SOURCE = """
import torch
from timm.models.vision_transformer import VisionTransformer

SHAPE = dict(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=0)

def plain():
    return VisionTransformer(**SHAPE | {"img_size": 224, "patch_size": 32})

def small():
    return VisionTransformer(**SHAPE)

def configured():
    model = VisionTransformer(**SHAPE)
    model.pretrained_cfg = {"mean": (0.1,) * 3, "std": (0.2,) * 3, "input_size": (3, 16, 16)}
    return model

def rebuilt():  # as timm.create_model(NAME, img_size=16) leaves it
    model = configured()
    model.pretrained_cfg["input_size"] = (3, 224, 224)
    return model

def grey():
    model = VisionTransformer(**SHAPE, in_chans=1)
    model.pretrained_cfg = {"mean": (0.1,), "std": (0.2,), "input_size": (1, 16, 16)}
    return model

def silent():
    return torch.nn.Sequential(VisionTransformer(**SHAPE))

def sized():
    return VisionTransformer(**SHAPE, dynamic_img_size=True)

class Reader(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(5, 4)

    def forward(self, input_ids, attention_mask=None):
        return self.table(input_ids)

def fails():
    raise KeyError("weights")

def number():
    return 3

def empty():
    return torch.nn.Identity()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch, request):
    """A module in the working directory, of a name that no other test imports."""
    name = f"mine_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return f"python:{name}"


def test_what_a_function_gives_is_loaded(mine):
    found = burst.load_backbone(f"{mine}:plain")
    assert type(found.model).__name__ == "VisionTransformer"
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert (found.name, found.weights_source) == (f"{mine}:plain", f"{mine}:plain")
    assert (found.weights_sha256, found.pretraining) == (None, "unknown")


def test_without_a_configuration_imagenet_s_is_assumed_and_said(mine):
    found = burst.load_backbone(f"{mine}:plain")
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert found.image_size == (224, 224)
    (note,) = found.notes
    assert note.endswith("ImageNet's mean and deviation are assumed, at 224 pixels")


def test_a_configuration_as_timm_s_is_believed(mine):
    found = burst.load_backbone(f"{mine}:configured")
    assert (found.mean, found.image_size, found.notes) == ((0.1,) * 3, (16, 16), ())


def test_a_size_that_is_asked_for_is_read(mine):
    found = burst.load_backbone(f"{mine}:sized", image_size=24)
    assert found.image_size == (24, 24)
    assert found.notes[0].endswith("are assumed, at 24 pixels")
    stream = burst.images_for(found, "sample", num_images=2)
    (row,) = burst.survey(
        found, stream, burst.SurveyOptions(blocks=(1,), quantities=("x",))
    ).table.to_dict("records")
    assert row["count"] == 2 * (36 + 1) * 32


@pytest.mark.parametrize("function", ["small", "rebuilt"])
def test_a_model_is_read_at_the_size_that_it_was_built_for(mine, function):
    found = burst.load_backbone(f"{mine}:{function}")
    assert (found.image_size, found.resized_from) == ((16, 16), None)
    burst.survey(found, burst.images_for(found, "sample", num_images=1))


@pytest.mark.parametrize(
    "attribute, value, size",
    [
        ("image_size", 96, (96, 96)),  # torchvision
        ("config", SimpleNamespace(image_size=[32, 48]), (32, 48)),  # transformers
        ("config", SimpleNamespace(image_size=None), None),
        ("patch_embed", SimpleNamespace(img_size=None), None),  # timm's that read any size
    ],
)
def test_other_libraries_keep_the_size_elsewhere(attribute, value, size):
    model = torch.nn.Linear(2, 2)
    setattr(model, attribute, value)
    assert _built_for(model) == size


def test_a_size_that_was_assumed_wrongly_says_what_to_give(mine):
    with pytest.raises(ImageError, match=r"images of 224 x 224 .*give an image_size \(--image"):
        burst.load_backbone(f"{mine}:silent")
    assert burst.load_backbone(f"{mine}:silent", image_size=16).image_size == (16, 16)


def test_a_size_that_the_model_does_not_read_is_one_line(mine):
    with pytest.raises(ImageError, match="cannot read RGB images of 32 x 32 pixels"):
        burst.load_backbone(f"{mine}:configured", image_size=32)


def test_a_model_of_one_channel_is_told_that_photographs_have_three(mine):
    with pytest.raises(ImageError, match="cannot read RGB images .*1 channels, but got 3"):
        burst.load_backbone(f"{mine}:grey")


def test_a_file_is_loaded_into_it(mine, tmp_path):
    state = burst.load_backbone(f"{mine}:configured").model.state_dict()
    torch.save({name: value + 1 for name, value in state.items()}, tmp_path / "w.pth")
    found = burst.load_backbone(f"{mine}:configured", tmp_path / "w.pth")
    assert torch.equal(found.model.norm.weight, state["norm.weight"] + 1)
    assert found.weights_source == str(tmp_path / "w.pth")


def test_the_seed_decides_what_the_function_draws(mine):
    before = torch.get_rng_state()
    weights = [
        burst.load_backbone(f"{mine}:plain", seed=seed).model.blocks[0].attn.qkv.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_model_whose_call_names_ids_reads_text(mine):
    found = burst.load_backbone(f"{mine}:Reader")
    assert found.kind == "text"
    with pytest.raises(burst.ImageError, match="reads text, not images"):
        burst.images_for(found, "sample")


@pytest.mark.parametrize(
    "function, words",
    [
        ("", "expected python:package.module:factory"),
        (":no name", "names no function"),
        (":plane", "unknown function of mine_.* 'plane'; did you mean plain"),
        (":fails", r"fails \(KeyError: 'weights'\); it gets no argument"),
        (":number", "gives a int, expected a torch.nn.Module"),
        (":empty", "gives a Identity without any parameter"),
    ],
)
def test_each_mistake_has_its_own_line(mine, function, words):
    with pytest.raises(BurstError, match=words) as caught:
        burst.load_backbone(f"{mine}{function}")
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(BurstError, match=r"cannot be imported \(ModuleNotFoundError: .*nowhere"):
        burst.load_backbone("python:nowhere.at.all:factory")


def test_random_weights_are_the_function_s_affair(mine):
    with pytest.raises(CheckpointError, match="its factory decides"):
        burst.load_backbone(f"{mine}:plain", "random")
