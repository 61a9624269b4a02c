"""Published numbers of a real ViT-S/14, measured once more by the library itself."""

import zipfile
from itertools import islice

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed

from burst.survey import SurveyOptions, survey

BLOCKS = (0, 1, 2, 3)
POOLED = [10.28, 9.84, 13.22, 17.13]
WITHIN_ROWS = [0.68, -0.26, -0.29, -0.21]
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photographs(archive, count):
    """Batches of the first photographs by name, squeezed to 224 x 224."""
    with zipfile.ZipFile(archive) as files:
        names = sorted(
            name for name in files.namelist() if name.lower().endswith((".jpg", ".jpeg"))
        )
        for name in islice(names, count):
            with files.open(name) as file, Image.open(file) as picture:
                small = picture.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
            pixels = (np.asarray(small, np.float32) / 255 - MEAN) / DEVIATION
            yield torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]


def vit_s14(weights):
    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, img_size=224)
    state = {name: value.float() for name, value in load_file(weights).items()}
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], (16, 16))
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.slow
def test_a_real_vit_is_bursty_because_its_rows_differ_in_scale(real_data):
    weights = real_data.parent / "weights" / "dinov2_vits14_saliency.safetensors"
    archive = real_data / "imagenet-sample.zip"
    for needed in (weights, archive):
        if not needed.is_file():
            pytest.skip(f"{needed.name} is not here")
    options = SurveyOptions(blocks=BLOCKS, quantities=("qkx",))
    table = survey(vit_s14(weights), photographs(archive, 24), options).table
    np.testing.assert_allclose(table["excess_kurtosis"], POOLED, atol=0.011)
    np.testing.assert_allclose(table["kurtosis_within_rows"], WITHIN_ROWS, atol=0.011)
    for name in ("excess_kurtosis", "kurtosis_within_rows"):
        assert (table[f"{name}_low"] < table[name]).all()
        assert (table[name] < table[f"{name}_high"]).all()
