import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from burst.checkpoint import load_checkpoint
from burst.errors import CheckpointError

D, HEADS, DEPTH, CLASSES = 32, 4, 2, 5


def tiny_vit(*, num_heads=HEADS, num_classes=0):
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=D,
        depth=DEPTH,
        num_heads=num_heads,
        num_classes=num_classes,
    )


def refusal(path, model=None):
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model or tiny_vit(), path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def flax():
    generator = np.random.default_rng(0)

    def draw(*shape):
        return generator.standard_normal(shape, dtype=np.float32)

    arrays = {
        "cls": draw(1, 1, D),
        "embedding/kernel": draw(8, 8, 3, D),
        "embedding/bias": draw(D),
        "Transformer/posembed_input/pos_embedding": draw(1, 17, D),
        "Transformer/encoder_norm/scale": draw(D),
        "Transformer/encoder_norm/bias": draw(D),
        "head/kernel": draw(D, CLASSES),
        "head/bias": draw(CLASSES),
    }
    for block in range(DEPTH):
        prefix = f"Transformer/encoderblock_{block}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{prefix}/{norm}/{leaf}": draw(D) for leaf in ("scale", "bias")}
        attention = f"{prefix}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            arrays[f"{attention}/{part}/kernel"] = draw(D, HEADS, D // HEADS)
            arrays[f"{attention}/{part}/bias"] = draw(HEADS, D // HEADS)
        arrays |= {f"{attention}/out/kernel": draw(HEADS, D // HEADS, D)}
        arrays |= {f"{attention}/out/bias": draw(D)}
        for dense, (wide, narrow) in enumerate([(D, 4 * D), (4 * D, D)]):
            arrays[f"{prefix}/MlpBlock_3/Dense_{dense}/kernel"] = draw(wide, narrow)
            arrays[f"{prefix}/MlpBlock_3/Dense_{dense}/bias"] = draw(narrow)
    return arrays


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
