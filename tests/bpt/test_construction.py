"""Which backbones are opened for training."""

import pytest

import bpt
from bpt.construction import open_backbone
from burst.errors import UnsupportedModel


@pytest.mark.parametrize(
    "name", ["hf:facebook/dinov2-base", "open_clip:ViT-B-32/openai", "torchvision:vit_b_16"]
)
@pytest.mark.parametrize("call", [bpt.plan_training, open_backbone])
def test_a_model_that_nothing_can_be_put_on_is_refused_before_it_is_downloaded(name, call):
    recipe = bpt.Recipe(dataset="digits", method="vpt", model=name)
    with pytest.raises(UnsupportedModel, match=f"{name} can be measured, not trained"):
        call(recipe)
