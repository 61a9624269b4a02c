"""What the norm before an attention does to a token, by its class."""

import numpy as np
import pytest
import timm
import torch
from support import DIM, vit

from burst.adapters import find_blocks
from burst.adapters.norms import first_norm
from burst.errors import UnsupportedModel
from burst.interaction import response_matrix


@pytest.mark.parametrize(
    "norm, centres",
    [
        (torch.nn.LayerNorm, True),
        (timm.layers.LayerNorm, True),
        (timm.layers.LayerNormFp32, True),
        (torch.nn.RMSNorm, False),
        (timm.layers.RmsNorm, False),
        (timm.layers.SimpleNorm, False),
    ],
)
def test_what_a_norm_does_to_prompts_goes_by_its_class(norm, centres):
    model = vit()
    model.blocks[1].norm1 = norm(DIM)
    model.blocks[1].norm1.weight.data = gain = 0.5 + torch.rand(DIM)
    block = find_blocks(model)[1]
    found = first_norm(block, DIM)
    assert found.centres is centres
    assert torch.equal(found.gain, gain.double())
    # Prompts of one scale: what the norm makes of them has the rows of the response, up to scale.
    prompts = 1e3 * torch.eye(DIM)
    with torch.inference_mode():
        met = block.module.norm1(prompts).double()
        met = (met - getattr(block.module.norm1, "bias", None) if centres else met).numpy()
    expected = met @ response_matrix(block).numpy()
    theirs = response_matrix(block, through_norm=True).numpy()
    scale = (expected * theirs).sum() / (theirs**2).sum()
    np.testing.assert_allclose(expected, scale * theirs, atol=1e-5 * abs(expected).max())


class Unknown(torch.nn.LayerNorm):
    def forward(self, x):
        return x * self.weight


@pytest.mark.parametrize("norm", [Unknown(DIM), torch.nn.BatchNorm1d(DIM), torch.nn.Identity()])
def test_a_norm_of_which_nothing_is_known_is_refused(norm):
    model = vit()
    model.blocks[1].norm1 = norm
    with pytest.raises(UnsupportedModel, match=r"blocks\.1\.norm1 .*not known whether it centres"):
        first_norm(find_blocks(model)[1], DIM)


def test_a_norm_that_does_not_come_first_is_refused():
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=DIM, depth=1, num_heads=4,
        block_fn=timm.models.vision_transformer.ResPostBlock,
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="no norm of its own before its attention"):
        first_norm(find_blocks(model)[0], DIM)
    model = vit()
    model.blocks[1].norm1 = torch.nn.LayerNorm(DIM, elementwise_affine=False)
    with pytest.raises(UnsupportedModel, match=r"blocks\.1\.norm1 \(LayerNorm\) has no gain"):
        first_norm(find_blocks(model)[1], DIM)
