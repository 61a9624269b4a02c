"""Checkpoints for modules that are not timm's: names and shapes alone tell."""

import re

import pytest
import torch
import torchvision
from checkpoints import (
    CLASSES,
    DEPTH,
    HEADS,
    D,
    assert_same_function,
    drawn,
    prefixed,
    refusal,
    resampled_by_hand,
    saved,
)
from torch import nn

from burst.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def torchvision_vit(image_size=32):
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(
        image_size=image_size,
        patch_size=8,
        num_layers=DEPTH,
        num_heads=HEADS,
        hidden_dim=D,
        mlp_dim=64,
        num_classes=CLASSES,
    )
    return drawn(model)


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_torchvision_s_vit_is_loaded_by_its_names(tmp_path, images, prefix):
    published = torchvision_vit()
    torch.manual_seed(7)
    model = drawn(torchvision_vit())
    load_checkpoint(model, saved(tmp_path, prefixed(prefix, published.state_dict())))
    assert_same_function(model, published, images)


def test_torchvision_s_vit_may_lack_its_head(tmp_path):
    published, model = torchvision_vit(), torchvision_vit()
    model.heads = nn.Identity()
    report = load_checkpoint(model, saved(tmp_path, published.state_dict()))
    assert set(report.dropped) == {"heads.head.weight", "heads.head.bias"}


def test_torchvision_s_positions_are_resampled(tmp_path):
    published, model = torchvision_vit(), torchvision_vit(image_size=64)
    report = load_checkpoint(model, saved(tmp_path, published.state_dict()))
    expected = resampled_by_hand(published.encoder.pos_embedding, 1, (8, 8))
    assert torch.equal(model.encoder.pos_embedding, expected)
    assert set(report.resampled) == {"encoder.pos_embedding"}


def test_names_that_only_torchvision_s_own_hooks_know_are_read(tmp_path, images):
    published = torchvision_vit()
    old = {
        re.sub(r"mlp\.([03])\.", lambda x: f"mlp.linear_{1 + int(x[1]) // 3}.", name): value
        for name, value in published.state_dict().items()
    }
    assert any("linear_2" in name for name in old)
    model = drawn(torchvision_vit())
    load_checkpoint(model, saved(tmp_path, old))
    assert_same_function(model, published, images)


class OwnViT(nn.Module):
    """Somebody's own: no name is timm's."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, D, 8, 8)
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(D, HEADS, 64, batch_first=True, norm_first=True),
            DEPTH,
            enable_nested_tensor=False,
        )

    def forward(self, x):
        return self.layers(self.embed(x).flatten(2).mT)


def test_a_module_of_one_s_own_is_loaded_by_its_names(tmp_path, images):
    torch.manual_seed(1)
    published = drawn(OwnViT())
    model = drawn(OwnViT())
    stored = {"state_dict": prefixed("net.encoder.", published.state_dict()) | {"net.head.b": D}}
    load_checkpoint(model, saved(tmp_path, stored))
    assert_same_function(model, published, images)
    assert "1 missing (embed.bias)" in refusal(
        model,
        saved(tmp_path, {k: v for k, v in published.state_dict().items() if k != "embed.bias"}),
    )
