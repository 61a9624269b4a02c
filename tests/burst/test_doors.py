"""The same weights through two doors, timm's and transformers', give the same numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from burst.backbone import load_backbone
from burst.survey import SurveyOptions, survey
from burst.tokens import capture

REAL = Path(__file__).parents[3] / "shared/weights/dinov2_vits14_saliency.safetensors"
NAMES = {
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}


def as_transformers(state):
    """timm's names of a DINOv2 backbone -> those of the files published for transformers."""
    found = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": torch.zeros(1, state["cls_token"].shape[-1]),
        "embeddings.position_embeddings": state["pos_embed"],
    }
    for name, value in state.items():
        for kind in ("weight", "bias"):
            if name == f"patch_embed.proj.{kind}":
                found[f"embeddings.patch_embeddings.projection.{kind}"] = value
            if name == f"norm.{kind}":
                found[f"layernorm.{kind}"] = value
        if name.startswith("blocks."):
            _, block, rest = name.split(".", 2)
            part, _, kind = rest.rpartition(".")
            if part == "attn.qkv":
                for one, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    found[f"encoder.layer.{block}.attention.attention.{one}.{kind}"] = piece
            else:
                new = NAMES.get(rest) or f"{NAMES.get(part, part)}.{kind}"
                found[f"encoder.layer.{block}.{new}"] = value
    return {name: value.clone().contiguous() for name, value in found.items()}


def write_for_transformers(folder, state, *, heads, image_size):
    width = state["cls_token"].shape[-1]
    config = {
        "model_type": "dinov2", "architectures": ["Dinov2Model"], "hidden_size": width,
        "num_attention_heads": heads, "image_size": image_size, "patch_size": 14,
        "num_hidden_layers": sum(name.endswith("norm1.weight") for name in state),
        "torch_dtype": "float32",
    }  # fmt: skip
    processor = {
        "image_processor_type": "BitImageProcessor", "do_resize": True,
        "size": {"shortest_edge": image_size}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    save_file(as_transformers(state), folder / "model.safetensors", {"format": "pt"})


def check_same_numbers(one, other, batches, blocks):
    """Equal counts where the tokens are equal bit for bit; else the statistics to 1e-5."""
    found, read = [], []
    for model in (one, other):
        with capture(model.model, blocks) as tokens:  # in the end those of the last batch
            found.append(survey(model, batches, SurveyOptions(blocks=blocks)))
        read.append(tokens)
    for block in blocks:
        qk, theirs = (result.histograms[block, "all", "qk"] for result in found)
        assert qk == theirs
        exact = torch.equal(read[0][block], read[1][block])
        for quantity in ("x", "qkx"):
            ours, theirs = (result.histograms[block, "all", quantity] for result in found)
            assert ours.count == theirs.count
            if exact:
                assert ours == theirs
            for name in ("std", "skewness", "excess_kurtosis", "minimum", "maximum"):
                pair = (getattr(hist.moments, name) for hist in (ours, theirs))
                torch.testing.assert_close(*map(torch.tensor, pair), rtol=1e-5, atol=1e-5)


def test_a_small_dinov2_gives_the_same_numbers_through_both_doors(tmp_path):
    pytest.importorskip("transformers", reason="the extra [hf] is not installed")
    torch.manual_seed(0)
    options = {"img_size": 42, "depth": 3, "embed_dim": 48, "num_heads": 3}
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    write_for_transformers(tmp_path, model.state_dict(), heads=3, image_size=42)
    found = load_backbone(f"hf:{tmp_path}")
    assert found.image_size == (42, 42)
    batches = [torch.randn(2, 3, 42, 42) for _ in range(2)]
    mine = load_backbone("timm:vit_small_patch14_dinov2", "random")
    check_same_numbers(replace(mine, model=model.eval()), found, batches, range(3))


@pytest.mark.slow
def test_the_real_vit_s_gives_the_same_numbers_through_both_doors(tmp_path):
    pytest.importorskip("transformers", reason="the extra [hf] is not installed")
    if not REAL.is_file():
        pytest.skip(f"{REAL.name} is not on this machine")
    state = {name: value.float() for name, value in load_file(REAL).items()}
    write_for_transformers(tmp_path, state, heads=6, image_size=518)
    mine = load_backbone("timm:vit_small_patch14_dinov2", REAL)
    found = load_backbone(f"hf:{tmp_path}")
    # They cut the middle of an image of odd size one pixel apart.
    assert mine.preprocess == replace(found.preprocess, crop_mode=mine.crop_mode)
    generator = torch.Generator().manual_seed(0)
    check_same_numbers(mine, found, [torch.randn(1, 3, 518, 518, generator=generator)], (0, 11))
