import argparse
import hashlib
import re
from collections import OrderedDict

import pytest
import torch
from checkpoints import CLASSES, DEPTH, HEADS, D, prefixed, tiny_vit
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from burst.checkpoint import load_checkpoint, read_checkpoint
from burst.errors import CheckpointError


def assert_same(model, other):
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0, msg=name)


def refusal(path, model=None):
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model or tiny_vit(), path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.fixture
def published():
    """The model whose weights the files of these tests hold."""
    return tiny_vit(seed=1)


@pytest.fixture
def state(published):
    return published.state_dict()


def mae(state):
    return {"model": OrderedDict(state)}


def mae_with_decoder(state):
    decoder = {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_pos_embed": torch.zeros(1, 17, 16),
        "decoder_embed.weight": torch.zeros(16, D),
        "decoder_blocks.0.norm1.weight": torch.zeros(16),
        "decoder_norm.bias": torch.zeros(16),
        "decoder_pred.weight": torch.zeros(192, 16),
    }
    return {"model": state | decoder}


def moco_pretraining(state):
    projector = {"head.0.weight": torch.zeros(64, D), "head.1.running_mean": torch.zeros(64)}
    teacher = {name: torch.full_like(value, 9.0) for name, value in state.items()}
    weights = prefixed("module.base_encoder.", state | projector)
    weights |= prefixed("module.momentum_encoder.", teacher | projector)
    weights |= {"module.predictor.1.num_batches_tracked": torch.tensor(7)}
    return {
        "epoch": 300,
        "arch": "vit_base",
        "state_dict": weights,
        "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]},
        "scaler": {"scale": 65536.0},
    }


def moco_linear(state):
    head = {"head.weight": torch.zeros(1000, D), "head.bias": torch.zeros(1000)}
    return {"epoch": 90, "best_acc1": torch.tensor(76.7), "arch": "vit_base"} | {
        "state_dict": prefixed("module.", state | head)
    }


def flat(state):
    return dict(state)


def training_script(state):
    return {"state_dict": state, "args": argparse.Namespace(lr=0.1, name="tiny"), "epoch": 3}


LAYOUTS = {
    "MAE encoder": mae,
    "MAE with decoder": mae_with_decoder,
    "MoCo v3 pretraining": moco_pretraining,
    "MoCo v3 linear probe": moco_linear,
    "flat": flat,
    "under `state_dict`": training_script,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_torch_layout_gives_the_published_weights(tmp_path, published, state, layout, zipped):
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](state), path, _use_new_zipfile_serialization=zipped)
    model = tiny_vit()
    report = load_checkpoint(model, path)
    assert_same(model, published)
    assert layout in report.layout
    assert report.tensors == len(state)


def test_a_safetensors_file_gives_the_published_weights(tmp_path, published, state):
    save_file(state, tmp_path / "model.safetensors")
    model = tiny_vit()
    assert "safetensors" in load_checkpoint(model, tmp_path / "model.safetensors").layout
    assert_same(model, published)


def test_the_kind_of_a_file_is_told_by_its_content_not_by_its_name(tmp_path, published, state):
    save_file(state, tmp_path / "weights.npz")
    model = tiny_vit()
    load_checkpoint(model, tmp_path / "weights.npz")
    assert_same(model, published)


def test_the_report_carries_the_sha256_of_the_file(tmp_path, state):
    torch.save(state, tmp_path / "vit_2b14.pt")
    report = load_checkpoint(tiny_vit(), tmp_path / "vit_2b14.pt")
    assert report.sha256 == hashlib.sha256((tmp_path / "vit_2b14.pt").read_bytes()).hexdigest()


def dropped_by(tmp_path, stored):
    torch.save(stored, tmp_path / "weights.pth")
    return load_checkpoint(tiny_vit(), tmp_path / "weights.pth").dropped


def test_the_report_names_mae_s_decoder(tmp_path, state):
    dropped = dropped_by(tmp_path, mae_with_decoder(state))
    assert len(dropped) == 6
    assert all("decoder" in reason for reason in dropped.values())


def test_the_report_names_moco_s_projector_predictor_and_momentum_encoder(tmp_path, state):
    dropped = dropped_by(tmp_path, moco_pretraining(state))
    assert "projector" in dropped["module.base_encoder.head.1.running_mean"]
    assert "predictor" in dropped["module.predictor.1.num_batches_tracked"]
    assert "momentum" in dropped["module.momentum_encoder.norm.weight"]
    assert "beside" in dropped["optimizer"]


def test_the_report_names_a_head_that_the_model_has_not(tmp_path, state):
    dropped = dropped_by(tmp_path, moco_linear(state))
    assert "classification head" in dropped["head.weight"]


def test_a_head_is_loaded_into_a_model_that_has_one(tmp_path):
    published = tiny_vit(seed=1, num_classes=CLASSES)
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    model = tiny_vit(num_classes=CLASSES)
    assert not load_checkpoint(model, tmp_path / "weights.pth").dropped
    assert_same(model, published)


def test_reading_keeps_the_head_and_leaves_the_projector_out(tmp_path, state):
    torch.save(moco_linear(state), tmp_path / "linear.pth.tar")
    torch.save(moco_pretraining(state), tmp_path / "pretraining.pth.tar")
    assert read_checkpoint(tmp_path / "linear.pth.tar").keys() == state.keys() | {
        "head.weight",
        "head.bias",
    }
    assert read_checkpoint(tmp_path / "pretraining.pth.tar").keys() == state.keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(tmp_path, state, dtype):
    torch.save({name: value.to(dtype) for name, value in state.items()}, tmp_path / "half.pt")
    read = read_checkpoint(tmp_path / "half.pt")
    assert {value.dtype for value in read.values()} == {torch.float32}
    assert torch.equal(read["cls_token"], state["cls_token"].to(dtype).float())


def test_a_model_on_the_meta_device_gets_real_weights(tmp_path, published, state):
    torch.save(state, tmp_path / "weights.pt")
    with torch.device("meta"):
        model = VisionTransformer(32, 8, embed_dim=D, depth=DEPTH, num_heads=HEADS, num_classes=0)
    load_checkpoint(model, tmp_path / "weights.pt")
    assert_same(model, published)


def saved(tmp_path, stored):
    torch.save(stored, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_missing_and_unexpected_names_are_named_and_counted(tmp_path, state):
    for name in ("norm.weight", "norm.bias"):
        state[f"other_{name}"] = state.pop(name)
    text = refusal(saved(tmp_path, state))
    assert "2 missing (norm.weight, norm.bias)" in text
    assert "2 unexpected (other_norm.weight, other_norm.bias)" in text


def test_of_many_missing_names_the_first_are_named(tmp_path, state):
    kept = {name: value for name, value in state.items() if "mlp" not in name}
    text = refusal(saved(tmp_path, kept))
    assert re.search(r"8 missing \(blocks.0.mlp.fc1.weight, .* and 5 more\), 0 unexp", text)


def test_a_refused_file_leaves_the_model_as_it_was(tmp_path, state):
    state["norm.extra"] = torch.zeros(1)
    model = tiny_vit()
    refusal(saved(tmp_path, state), model)
    assert_same(model, tiny_vit())


def test_a_file_of_another_size_is_refused_with_both_sizes(tmp_path):
    path = saved(tmp_path, tiny_vit(embed_dim=48, depth=3).state_dict())
    text = refusal(path)
    assert "width 48, depth 3, patch 8" in text
    assert "the model is of width 32, depth 2, patch 8" in text


@pytest.mark.parametrize(
    "width, depth, patch, more, name",
    [
        (768, 12, 16, (), "vit_base_patch16_224"),
        (384, 12, 14, ("blocks.0.ls1.gamma",), "vit_small_patch14_dinov2"),
        (1024, 24, 14, ("blocks.0.ls1.gamma",), "vit_large_patch14_dinov2"),
        (1024, 24, 14, (), "vit_large_patch14_224"),
        (768, 12, 14, ("blocks.0.ls1.gamma", "reg_token"), "vit_base_patch14_reg4_dinov2"),
        (192, 6, 16, (), None),  # the rest have sizes, or parts, that no name of timm's has
        (2560, 24, 14, (), None),
        (768, 12, 16, ("blocks.0.ls1.gamma",), None),
    ],
)
def test_a_file_of_another_size_names_the_model_that_it_fits(
    width, depth, patch, more, name, tmp_path
):
    state = {f"blocks.{block}.norm1.weight": torch.zeros(width) for block in range(depth)}
    state["patch_embed.proj.weight"] = torch.zeros(width, 3, patch, patch)
    torch.save(state | dict.fromkeys(more, torch.zeros(width)), tmp_path / "file.pth")
    with torch.device("meta"):
        other = VisionTransformer(embed_dim=192, depth=12, num_heads=3)  # whose size has a name
    text = refusal(tmp_path / "file.pth", other)
    such = (
        f"such as timm:{name}" if name else "or build it in Python: --model python:MODULE:FUNCTION"
    )
    assert text.endswith(f"choose the model that fits the file, {such}")


def test_a_wrong_shape_is_refused_with_both_shapes(tmp_path, state):
    state["blocks.1.attn.qkv.weight"] = torch.zeros(D, D)
    text = refusal(saved(tmp_path, state))
    assert "(32, 32), but the model expects (96, 32); choose the model that fits the file" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, state, value):
    state["blocks.1.norm2.bias"][3] = value
    text = refusal(saved(tmp_path, state))
    assert "1 of 32 values of blocks.1.norm2.bias are not finite" in text


def test_large_weights_are_finite_even_if_their_sum_is_not(tmp_path, state):
    state["norm.weight"].fill_(3e38)
    assert torch.equal(read_checkpoint(saved(tmp_path, state))["norm.weight"], state["norm.weight"])


@pytest.mark.parametrize(
    "stored, expected",
    [
        (torch.zeros(3), "holds a Tensor, expected a state dict"),
        ([torch.zeros(3)], "holds a list"),
        ({}, "holds nothing"),
        ({"epoch": 3, "lr": 0.1}, "holds epoch, lr, but no state dict"),
        ({"cls_token": torch.zeros(3), "lr": 0.1}, "lr is a float, expected a tensor"),
        (
            {"cls_token": torch.zeros(3, dtype=torch.complex64)},
            "cls_token is sparse, quantised or complex",
        ),
    ],
)
def test_a_torch_file_without_a_state_dict_is_refused(tmp_path, stored, expected):
    assert expected in refusal(saved(tmp_path, stored))
