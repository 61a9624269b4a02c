"""Checkpoints as training codes leave them behind: each written as published, read, and run."""

import random
import re

import pytest
import timm
import torch
from checkpoints import (
    CLASSES,
    DEPTH,
    HEADS,
    LAYOUTS,
    D,
    another,
    assert_same_function,
    openai_clip,
    prefixed,
    refusal,
    resampled_by_hand,
    saved,
    tiny_vit,
)
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from burst.checkpoint import load_checkpoint, read_checkpoint
from burst.errors import CheckpointError


@pytest.fixture(scope="module")
def published():
    return tiny_vit(seed=1)


@pytest.fixture(scope="module")
def state(published):
    return published.state_dict()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_published_model(tmp_path, published, state, images, layout):
    model = tiny_vit()
    report = load_checkpoint(model, saved(tmp_path, LAYOUTS[layout](state)))
    assert_same_function(model, published, images)
    assert report.tensors == len(state)
    assert not report.resampled
    assert not report.kept


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_without_a_model(tmp_path, state, layout):
    read = read_checkpoint(saved(tmp_path, LAYOUTS[layout](state)))
    assert {name: read[name].tolist() for name in state} == {
        k: v.tolist() for k, v in state.items()
    }
    assert all("head" in name for name in read.keys() - state.keys())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_of_a_layout_is_loaded_or_listed(tmp_path, state, layout):
    stored = LAYOUTS[layout](state)
    report = load_checkpoint(tiny_vit(), saved(tmp_path, stored))
    listed = " ".join(report.dropped)
    for name in set(stored) - {"model", "state_dict", "model_ema", "state_dict_ema"}:
        if isinstance(stored[name], torch.Tensor):
            continue
        assert name in listed or re.search(rf"\b{name}\b", report.layout), name


PREFIXES = (
    "model",
    "module",
    "net_2",
    "student",
    "ema",
    "head",
    "blocks.0",
    "norm",
    "text",
    "x" * 9,
)


@pytest.mark.parametrize("seed", range(12))
def test_a_file_with_any_prefix_loads_as_the_plain_one(tmp_path, state, seed):
    draw = random.Random(seed)
    words = draw.choices(PREFIXES, k=draw.randrange(5))
    wrappers = draw.choices(["model", "state_dict", "net", "teacher"], k=draw.randrange(4))
    stored = prefixed("".join(f"{word}." for word in words), state)
    for wrapper in wrappers:
        stored = {wrapper: stored, "epoch": 3}
    model = tiny_vit()
    report = load_checkpoint(model, saved(tmp_path, stored))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert set(report.dropped) <= {"epoch"}


def test_the_report_tells_where_the_weights_were_and_what_else_there_was(tmp_path, state):
    report = load_checkpoint(tiny_vit(), saved(tmp_path, LAYOUTS["DINO"](state)))
    assert "teacher|backbone" in report.layout
    assert report.dropped["student"] == report.dropped["optimizer"] == "stored beside the weights"
    assert "projector" in report.dropped["head.last_layer.weight_g"]


def test_of_a_model_and_its_average_the_average_is_loaded_as_timm_does(tmp_path, state, images):
    from timm.models import load_checkpoint as load_by_timm

    path = saved(tmp_path, LAYOUTS["timm training with an average"](state))
    ours, theirs = tiny_vit(), tiny_vit()
    report = load_checkpoint(ours, path)
    load_by_timm(theirs, str(path))
    assert_same_function(ours, theirs, images)
    assert {"state_dict", "args", "metric"} == set(report.dropped)


def test_a_wider_teacher_is_told_from_the_student_by_its_shapes(tmp_path, published, state, images):
    teacher = tiny_vit(embed_dim=48).state_dict()
    model = tiny_vit()
    load_checkpoint(model, saved(tmp_path, {"student": state, "teacher": teacher}))
    assert_same_function(model, published, images)


def test_two_encoders_that_nothing_tells_apart_are_refused_with_both_names(tmp_path, state):
    path = saved(tmp_path, {"left": state, "right": another(state)})
    text = refusal(tiny_vit(), path)
    assert "several encoders, `left`, `right`" in text
    with pytest.raises(CheckpointError, match="several encoders"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "prefix, name", [("0.", "1.weight"), ("vit.", "train_acc.correct"), ("module.", "extra")]
)
def test_what_stands_outside_a_whole_model_is_left_aside_and_told(tmp_path, state, prefix, name):
    weights = prefixed(prefix, state) | {name: torch.ones(3)}
    report = load_checkpoint(tiny_vit(), saved(tmp_path, weights))
    assert list(report.dropped) == [name]
    assert "outside the model" in report.dropped[name]


@pytest.mark.parametrize("name", ["extra.weight", "backbone.extra.weight"])
def test_what_nobody_knows_is_unexpected_beside_a_part_of_the_model_and_in_it(
    tmp_path, state, name
):
    weights = prefixed("backbone.", state) | {name: torch.ones(3)}
    if "backbone" not in name:
        del weights["backbone.norm.bias"]
    text = refusal(tiny_vit(), saved(tmp_path, weights))
    assert f"1 unexpected ({name}); nothing was loaded; choose the model that fits" in text


@pytest.mark.parametrize("wrapped", ["base_layer.", ""])
def test_adapters_of_peft_are_refused_with_the_way_to_merge_them(tmp_path, state, wrapped):
    weights = {k.replace("qkv.", f"qkv.{wrapped}"): value for k, value in state.items()}
    weights |= {"blocks.0.attn.qkv.lora_A.default.weight": torch.ones(2, D)}
    text = refusal(tiny_vit(), saved(tmp_path, prefixed("base_model.model.", weights)))
    assert "holds adapters of peft, such as base_model.model.blocks.0.attn.qkv." in text
    assert text.endswith("merge them before saving: model.merge_and_unload().state_dict()")


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.attn.lora_A",
        "blocks.0.attn.q_norm.weight",
        "blocks.0.head.weight",
        "rel_pos_bias.table",
        "norm.running_mean",
        "fc_norm.weight",
        "dist_token",
    ],
)
def test_what_could_change_the_attention_is_never_left_aside(tmp_path, state, name):
    text = refusal(tiny_vit(), saved(tmp_path, state | {name: torch.ones(D)}))
    assert f"1 unexpected ({name})" in text


@pytest.mark.parametrize(
    "name",
    [
        "blocks.1.attn.qkv.weight",
        "blocks.0.attn.qkv.bias",
        "blocks.0.norm1.weight",
        "patch_embed.proj.bias",
        "pos_embed",
        "cls_token",
        "norm.bias",
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_is_measured_must_be_there(tmp_path, state, name, prefix):
    weights = prefixed(prefix, {key: value for key, value in state.items() if key != name})
    model = tiny_vit()
    assert f"1 missing ({name})" in refusal(model, saved(tmp_path, weights))
    for key, value in tiny_vit().state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def fine_tuned_mae():
    """What MAE's fine-tuning saves: the norm is behind the pooling, and there is a head."""
    return tiny_vit(seed=2, global_pool="avg", num_classes=CLASSES)


def test_a_fine_tuned_mae_is_read_whole_by_its_own_kind_of_model(tmp_path, images):
    published = fine_tuned_mae()
    path = saved(tmp_path, {"model": published.state_dict(), "epoch": 99})
    model = tiny_vit(global_pool="avg", num_classes=CLASSES)
    assert set(load_checkpoint(model, path).dropped) == {"epoch"}
    assert_same_function(model, published, images)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_fine_tuned_mae_gives_its_blocks_to_a_model_with_another_last_norm(
    tmp_path, images, device
):
    published = fine_tuned_mae()
    path = saved(tmp_path, {"model": published.state_dict()})
    with torch.device(device):
        model = VisionTransformer(32, 8, embed_dim=D, depth=DEPTH, num_heads=HEADS, num_classes=0)
    report = load_checkpoint(model.eval(), path)
    assert {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"} == set(report.dropped)
    assert {"norm.weight", "norm.bias"} == set(report.kept)
    assert "fc_norm" in report.dropped["fc_norm.weight"]
    assert report.tensors == len(model.state_dict()) - 2
    with torch.no_grad():
        tokens = published.forward_features(images)  # its `norm` does nothing
        assert torch.equal(model(images), torch.layer_norm(tokens, (D,), eps=1e-6)[:, 0])


def test_a_pretrained_mae_gives_its_blocks_to_a_model_that_pools(
    tmp_path, state, images, published
):
    model = tiny_vit(global_pool="avg")
    report = load_checkpoint(model, saved(tmp_path, {"model": state}))
    assert {"norm.weight", "norm.bias"} == set(report.dropped)
    with torch.no_grad():
        tokens = published.forward_features(images)
        assert torch.equal(published.norm(model.forward_features(images)), tokens)


@pytest.mark.parametrize(
    "changes, prefix",
    [
        ({}, 1),
        ({"class_token": False, "global_pool": "avg"}, 0),
        ({"reg_tokens": 4}, 5),
        ({"reg_tokens": 4, "no_embed_class": True}, 0),
    ],
)
@pytest.mark.parametrize("size", [(24, 24), (64, 64), (32, 48)])
def test_positions_of_another_grid_are_resampled_and_reported(tmp_path, changes, prefix, size):
    published = tiny_vit(seed=1, **changes)
    path = saved(tmp_path, {"model": prefixed("module.", published.state_dict())})
    model = tiny_vit(img_size=size, **changes)
    report = load_checkpoint(model, path)
    theirs, ours = published.pos_embed, model.pos_embed
    grid = (size[0] // 8, size[1] // 8)
    assert torch.equal(ours, resampled_by_hand(theirs, prefix, grid))
    assert torch.equal(model.blocks[1].attn.qkv.weight, published.blocks[1].attn.qkv.weight)
    assert set(report.resampled) == {"pos_embed"}
    said = report.resampled["pos_embed"]
    assert said == f"from {theirs.shape[1]} positions to {ours.shape[1]}"
    assert report.trained_at == 32


def test_positions_that_are_no_square_grid_are_refused(tmp_path, state):
    weights = state | {"pos_embed": torch.ones(1, 21, D)}
    text = refusal(tiny_vit(), saved(tmp_path, weights))
    assert "pos_embed has shape (1, 21, 32), but the model expects (1, 17, 32)" in text


def test_patches_of_another_size_are_never_resampled(tmp_path):
    path = saved(tmp_path, tiny_vit(patch_size=16).state_dict())
    assert "patch 16, but the model is of width 32, depth 2, patch 8" in refusal(tiny_vit(), path)


def test_openai_s_clip_is_read_by_timm_s_filter(tmp_path, images):
    changes = {"pre_norm": True, "norm_layer": nn.LayerNorm}
    published = tiny_vit(seed=1, **changes)
    model = tiny_vit(**changes)
    report = load_checkpoint(model, saved(tmp_path, openai_clip(published.state_dict())))
    assert_same_function(model, published, images)
    assert {"logit_scale", "token_embedding.weight"} <= set(report.dropped)
    assert "classification head" in report.dropped["head.weight"]


def test_openai_s_clip_of_other_patches_is_refused(tmp_path):
    changes = {"pre_norm": True, "norm_layer": nn.LayerNorm}
    weights = tiny_vit(seed=1, patch_size=16, img_size=64, **changes).state_dict()
    path = saved(tmp_path, openai_clip(weights))
    assert "patches of another size" in refusal(tiny_vit(**changes), path)


def test_dinov2_s_registers_are_read_by_timm_s_filter(tmp_path):
    published = tiny_vit(seed=1, reg_tokens=4)
    theirs = published.state_dict()
    cls_position = torch.ones(1, 1, D)
    weights = theirs | {
        "register_tokens": theirs["reg_token"],
        "pos_embed": torch.cat([cls_position, theirs["pos_embed"][:, 5:]], 1),
        "mask_token": torch.zeros(1, D),
    }
    del weights["reg_token"]
    model = tiny_vit(reg_tokens=4, no_embed_class=True)
    report = load_checkpoint(model, saved(tmp_path, weights))
    assert torch.equal(model.pos_embed, theirs["pos_embed"][:, 5:])
    assert torch.equal(model.cls_token, theirs["cls_token"] + cls_position)
    assert torch.equal(model.reg_token, theirs["reg_token"])
    assert "mask_token" in report.dropped
    assert not report.resampled


def test_a_tensor_that_is_there_compiled_and_not_is_refused(tmp_path, state):
    path = saved(tmp_path, state | {"_orig_mod.norm.bias": torch.ones(D)})
    assert "holds a tensor twice" in refusal(tiny_vit(), path)


def test_names_that_are_not_timm_s_are_read_as_they_are(tmp_path):
    weights = {"text_model.layers.0.weight": torch.ones(3), "decoder.layers.0.bias": torch.ones(2)}
    path = saved(
        tmp_path, {"state_dict": weights, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    )
    assert read_checkpoint(path).keys() == weights.keys()


def test_i_jepa_s_target_encoder_is_read_as_its_evaluation_does(tmp_path, published, state, images):
    stored = {"encoder": prefixed("module.", another(state)), "opt": {"state": {}}}
    stored |= {"target_encoder": prefixed("module.", state), "predictor": {"w": torch.ones(3)}}
    model = tiny_vit()
    report = load_checkpoint(model, saved(tmp_path, stored))
    assert_same_function(model, published, images)
    assert {"predictor", "encoder"} <= set(report.dropped)
    assert report.copies == ("target_encoder|module", "encoder|module")


@pytest.mark.parametrize(
    "layout, copies",
    [
        ("DINO", ("teacher|backbone", "student|module.backbone")),
        ("BYOL", ("online_network", "target_network")),
        ("an average beside flat names", ("", "ema")),
        ("DDP", ()),
    ],
)
def test_the_report_names_the_copies_of_the_model_the_loaded_one_first(
    tmp_path, state, layout, copies
):
    report = load_checkpoint(tiny_vit(), saved(tmp_path, LAYOUTS[layout](state)))
    assert report.copies == copies


def test_a_compiled_model_is_loaded_as_the_model_itself(tmp_path, published, state, images):
    model = tiny_vit()
    load_checkpoint(torch.compile(model), saved(tmp_path, prefixed("_orig_mod.", state)))
    assert_same_function(model, published, images)


def test_a_file_that_vanishes_while_it_is_read_leaves_the_model_as_it_was(
    tmp_path, state, monkeypatch
):
    def vanished(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr("burst.checkpoint.sha256_of_stored", vanished)
    model = tiny_vit()
    with pytest.raises(FileNotFoundError):
        load_checkpoint(model, saved(tmp_path, state))
    for name, value in tiny_vit().state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_a_model_saved_as_a_folder_is_read_from_it(tmp_path, published, state, images):
    save_file(prefixed("vit.", state), tmp_path / "model.safetensors")
    model = tiny_vit()
    assert "safetensors" in load_checkpoint(model, tmp_path).layout
    assert_same_function(model, published, images)


@pytest.mark.parametrize("arch", ["vit_small", "vit_conv_small"])
def test_mocos_small_vit_has_twelve_heads_which_its_tensors_do_not_tell(tmp_path, arch):
    """facebookresearch/moco-v3, vits.py; timm's have 6, and take the file for theirs."""
    model = tiny_vit(embed_dim=24)
    held = {"state_dict": prefixed("module.base_encoder.", model.state_dict())}
    load_checkpoint(model, saved(tmp_path, {"arch": "vit_base", **held}))
    path = saved(tmp_path, {"arch": arch, **held})
    assert "holds a ViT of 12 heads, but the model has 4" in refusal(model, path)
    load_checkpoint(tiny_vit(embed_dim=24, num_heads=12), path)


def test_a_remedy_for_other_heads_can_be_typed(tmp_path):
    named = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    tensors = prefixed("module.base_encoder.", named.state_dict())
    told = refusal(named, saved(tmp_path, {"arch": "vit_small", "state_dict": tensors}))
    assert "timm.create_model('vit_tiny_patch16_224', num_heads=12), in Python" in told


@pytest.mark.parametrize("of_zeros", [True, False])
def test_a_bias_that_timms_filter_drops_is_refused_unless_it_is_zero(tmp_path, of_zeros, capsys):
    """DINOv3 in its own names: q and v may have biases, of which timm's plain model knows none."""
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 0}
    model = timm.create_model("vit_small_patch16_dinov3", **sizes)
    state = {
        re.sub(r"gamma_(\d)", r"ls\1.gamma", name).replace("reg_token", "storage_tokens"): value + 1
        for name, value in model.state_dict().items()
    }
    state["blocks.0.attn.qkv.bias"] = torch.zeros(72) if of_zeros else torch.ones(72)
    state["blocks.0.attn.qkv.bias_mask"] = torch.ones(72)
    path = saved(tmp_path, state)
    if of_zeros:
        report = load_checkpoint(model, path)
        assert list(report.dropped)[:2] == ["blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.bias_mask"]
    else:
        assert "holds blocks.0.attn.qkv.bias, which is not zero, and" in refusal(model, path)
    assert capsys.readouterr().out == ""
