"""Which backbones are opened for training."""

import pytest
import torch

import bpt
import burst
from bpt.construction import open_backbone
from burst.errors import CheckpointError, UnsupportedModel


@pytest.mark.parametrize(
    "name", ["hf:facebook/dinov2-base", "open_clip:ViT-B-32/openai", "torchvision:vit_b_16"]
)
@pytest.mark.parametrize("call", [bpt.plan_training, open_backbone])
def test_a_model_that_nothing_can_be_put_on_is_refused_before_it_is_downloaded(name, call):
    recipe = bpt.Recipe(dataset="digits", method="vpt", model=name)
    with pytest.raises(UnsupportedModel, match=f"{name} can be measured, not trained"):
        call(recipe)


def test_maes_probe_starts_at_0_01_and_every_other_head_of_its_at_0_02():
    """facebookresearch/mae, main_linprobe.py; the prompt-tuning code starts them all at 0.02."""
    backbone, stds = burst.load_backbone("mae_tiny"), {}
    for given in ({"head_norm": "batch"}, {"head_norm": "none"}, {"method": "vpt"}):
        recipe = bpt.Recipe(dataset="digits", model="mae_tiny", **({"method": "linear"} | given))
        head = bpt.build_model(recipe, backbone, 500).head
        stds[next(iter(given.values()))] = float(head.weight.detach().std())
    assert stds == pytest.approx({"batch": 0.01, "none": 0.02, "vpt": 0.02}, rel=0.02)


@pytest.mark.parametrize(
    "method, name, spoil, says",
    [
        (
            "vpt",
            "prompts.0.values",
            lambda t: torch.cat([t, t]),
            r"\(8, 192\).*expected \(4, 192\)",
        ),
        (
            "vpt",
            "prompts.0.values",
            lambda t: t.int(),
            r"of torch\.int32, expected \(4, 192\) of fl",
        ),
        ("bpt-bilinear", "prompts.0.left", lambda t: t[:, :1], r"\(4, 1\).*expected \(4, 2\)"),
        ("linear", "head.weight", lambda t: t.int(), r"head\.weight is of torch\.int32, expected"),
    ],
)
def test_kept_tensors_that_the_recipe_does_not_make_do_not_fit(method, name, spoil, says):
    given = {"num_prompts": 4, "rank": 2} if method != "linear" else {}
    recipe = bpt.Recipe(dataset="digits", model="mae_tiny", method=method, **given)
    backbone = burst.load_backbone("mae_tiny")
    state = bpt.build_model(recipe, backbone, 10).trained_state()
    bpt.restore_model(recipe, backbone, 10, state)
    with pytest.raises(CheckpointError, match=f"these tensors do not fit the model: .*{says}"):
        bpt.restore_model(recipe, backbone, 10, state | {name: spoil(state[name])})
