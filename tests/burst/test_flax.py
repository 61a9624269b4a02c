import checkpoints
import numpy as np
import pytest
import torch
from checkpoints import CLASSES, DEPTH, HEADS, D, tiny_vit
from torch.nn import functional as F

from burst.checkpoint import load_checkpoint, read_checkpoint
from burst.errors import CheckpointError


def refusal(path, model=None):
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model or tiny_vit(), path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def flax():
    return checkpoints.flax()


@pytest.fixture
def npz(tmp_path, flax):
    np.savez(tmp_path / "ViT-B_16.npz", **flax)
    return tmp_path / "ViT-B_16.npz"


def test_an_npz_loads_as_timm_loads_it(npz):
    ours, theirs = tiny_vit(num_classes=CLASSES), tiny_vit(num_classes=CLASSES)
    theirs.load_pretrained(str(npz))
    load_checkpoint(ours, npz)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize("part, name", [(0, "query"), (1, "key"), (2, "value")])
def test_an_npz_s_projections_act_as_flax_applies_them(npz, flax, part, name):
    model = tiny_vit()
    load_checkpoint(model, npz)
    x = torch.randn(7, D, dtype=torch.float64)
    flax_name = f"Transformer/encoderblock_1/MultiHeadDotProductAttention_1/{name}"
    kernel, bias = (torch.from_numpy(flax[f"{flax_name}/{x}"]) for x in ("kernel", "bias"))
    expected = torch.einsum("nd,dhk->nhk", x, kernel.double()) + bias
    projected = model.blocks[1].attn.qkv.double()(x).reshape(7, 3, HEADS, D // HEADS)[:, part]
    torch.testing.assert_close(projected, expected)  # float64: only the order of sums differs


def as_flax_applies_them(arrays, images):
    """The logits, by Flax's own conventions: kernels are (in, out), heads have an axis."""
    w = {name: torch.from_numpy(array).double() for name, array in arrays.items()}

    def norm(x, name):
        return F.layer_norm(x, (D,), w[f"{name}/scale"], w[f"{name}/bias"], eps=1e-6)

    patches = images.double().unfold(2, 8, 8).unfold(3, 8, 8)  # (B, channel, row, column, h, w)
    x = torch.einsum("bcijhw,hwcd->bijd", patches, w["embedding/kernel"]) + w["embedding/bias"]
    x = torch.cat([w["cls"].expand(len(x), 1, D), x.flatten(1, 2)], 1)
    x = x + w["Transformer/posembed_input/pos_embedding"]
    for block in range(DEPTH):
        name = f"Transformer/encoderblock_{block}"
        attention, mlp = f"{name}/MultiHeadDotProductAttention_1", f"{name}/MlpBlock_3"
        y = norm(x, f"{name}/LayerNorm_0")
        q, k, v = (
            torch.einsum("bnd,dhk->bhnk", y, w[f"{attention}/{part}/kernel"])
            + w[f"{attention}/{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        y = torch.softmax(q @ k.mT / (D // HEADS) ** 0.5, -1) @ v
        x = x + torch.einsum("bhnk,hkd->bnd", y, w[f"{attention}/out/kernel"])
        x = x + w[f"{attention}/out/bias"]
        y = norm(x, f"{name}/LayerNorm_2")
        y = F.gelu(y @ w[f"{mlp}/Dense_0/kernel"] + w[f"{mlp}/Dense_0/bias"])
        x = x + y @ w[f"{mlp}/Dense_1/kernel"] + w[f"{mlp}/Dense_1/bias"]
    return norm(x, "Transformer/encoder_norm")[:, 0] @ w["head/kernel"] + w["head/bias"]


def test_an_npz_gives_the_logits_that_flax_would(npz, flax):
    model = tiny_vit(num_classes=CLASSES)
    load_checkpoint(model, npz)
    images = torch.randn(2, 3, 32, 32)
    expected = as_flax_applies_them(flax, images)
    torch.testing.assert_close(model.double()(images.double()), expected)


def test_an_npz_of_another_grid_is_resampled(npz):
    model = tiny_vit(img_size=48)
    report = load_checkpoint(model, npz)
    assert report.resampled == {"pos_embed": "from 17 positions to 37"}
    assert model.pos_embed.shape == (1, 37, D)


def test_reading_an_npz_needs_no_model(npz, flax):
    state = read_checkpoint(npz)
    assert state.keys() == tiny_vit(num_classes=CLASSES).state_dict().keys()
    assert torch.equal(state["pos_embed"], torch.from_numpy(flax[POSITIONS]))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_an_npz_of_other_floats_becomes_float32(tmp_path, flax, dtype):
    np.savez(tmp_path / "vit.npz", **{name: array.astype(dtype) for name, array in flax.items()})
    state = read_checkpoint(tmp_path / "vit.npz")
    assert {value.dtype for value in state.values()} == {torch.float32}
    expected = torch.from_numpy(flax["cls"].astype(dtype)).float()
    assert torch.equal(state["cls_token"], expected)


BLOCK = "Transformer/encoderblock_1"
POSITIONS = "Transformer/posembed_input/pos_embedding"
MISSHAPEN = {
    "a bias that could be broadcast": {f"{BLOCK}/MlpBlock_3/Dense_0/bias": (1,)},
    "a norm that could be broadcast": {f"{BLOCK}/LayerNorm_0/scale": (1,)},
    "keys of other heads": {
        f"{BLOCK}/MultiHeadDotProductAttention_1/key/kernel": (D, 2, D // 2),
        f"{BLOCK}/MultiHeadDotProductAttention_1/key/bias": (2, D // 2),
    },
    "patches that are not square": {"embedding/kernel": (8, 4, 3, D)},
    "a block too wide": {f"{BLOCK}/MlpBlock_3/Dense_1/kernel": (4 * D, 2 * D)},
    "an array of no layer": {"Transformer/encoderblock_1/other/out/bias": (D,)},
}


@pytest.mark.parametrize("what", MISSHAPEN)
def test_an_npz_whose_arrays_do_not_fit_together_is_refused(tmp_path, flax, what):
    shapes = MISSHAPEN[what]
    changed = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "vit.npz", **flax | changed)
    assert "holds no ViT that timm can read" in refusal(tmp_path / "vit.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_npz_with_a_value_that_is_not_finite_is_refused(tmp_path, flax, value):
    flax["Transformer/encoder_norm/bias"][3] = value
    np.savez(tmp_path / "vit.npz", **flax)
    assert "1 of 32 values of norm.bias are not finite" in refusal(tmp_path / "vit.npz")


def test_an_npz_s_head_is_dropped_and_named(npz):
    report = load_checkpoint(tiny_vit(), npz)
    assert set(report.dropped) == {"head.weight", "head.bias"}


def test_pre_logits_of_the_original_npz_are_dropped_and_named(tmp_path, flax):
    extra = {"pre_logits/kernel": np.zeros((D, D)), "pre_logits/bias": np.zeros(D)}
    np.savez(tmp_path / "vit.npz", **flax, **extra)
    report = load_checkpoint(tiny_vit(), tmp_path / "vit.npz")
    assert extra.keys() < report.dropped.keys()


def test_an_npz_without_an_array_of_the_layout_is_refused_by_its_name(tmp_path, flax):
    del flax["Transformer/encoderblock_1/LayerNorm_2/bias"]
    np.savez(tmp_path / "vit.npz", **flax)
    text = refusal(tmp_path / "vit.npz")
    assert "without Transformer/encoderblock_1/LayerNorm_2/bias" in text


def test_an_npz_with_an_array_too_many_is_refused_by_its_name(tmp_path, flax):
    np.savez(tmp_path / "vit.npz", **flax, **{"adapter/kernel": np.zeros(3, np.float32)})
    assert "1 unexpected (adapter/kernel)" in refusal(tmp_path / "vit.npz")


def test_an_npz_with_another_number_of_heads_is_refused(npz):
    text = refusal(npz, tiny_vit(num_heads=2))
    assert "4 heads, but the model has 2" in text


def test_an_npz_with_a_kernel_of_another_rank_is_refused(tmp_path, flax):
    name = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel"
    np.savez(tmp_path / "vit.npz", **flax | {name: np.zeros((D, D), np.float32)})
    assert f"{name} has shape ({D}, {D}), expected 3 axes" in refusal(tmp_path / "vit.npz")


def test_an_npz_of_integers_is_refused(tmp_path, flax):
    np.savez(tmp_path / "vit.npz", **flax | {"cls": np.zeros((1, 1, D), int)})
    assert "cls is of type int64, expected floats" in refusal(tmp_path / "vit.npz")
