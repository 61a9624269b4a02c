"""The backbone of a detector: another grid, shared weights, patches as a map."""

import numpy as np
import pytest
import torch
from support import DEPTH, DIM, backbone_of, vit
from timm.layers.patch_embed import resample_patch_embed
from torch.nn import functional

from bpt.detection.backbone import FineTunedMap, PromptedMap, detection_backbone
from bpt.placement import parse_placement
from bpt.prompt import PlainPrompt
from burst.errors import ShapeError, UnsupportedModel

M = 3


def plain(**changes):
    """A ViT of 4 x 4 patches of 8 pixels."""
    return backbone_of(vit(**{"img_size": 32, "patch_size": 8, **changes}))


def prompts(placement):
    generator = torch.Generator().manual_seed(1)
    blocks = parse_placement(placement, DEPTH)
    return {block: PlainPrompt(torch.randn(M, DIM, generator=generator)) for block in blocks}


def images(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def cubic(values, size):
    """(h, w, d) -> (size, size, d): cubic convolution, a = -0.75, at pixel centres; by loops."""

    def weights(n, out):
        found = np.zeros((out, n))
        for i in range(out):
            centre = (i + 0.5) * n / out - 0.5
            for k in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
                x, a = abs(centre - k), -0.75
                near = (a + 2) * x**3 - (a + 3) * x**2 + 1
                w = near if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)
                found[i, min(max(k, 0), n - 1)] += w if x < 2 else 0.0
        return found

    rows, columns = weights(values.shape[0], size), weights(values.shape[1], size)
    return np.einsum("ih,jw,hwd->ijd", rows, columns, values)


@pytest.mark.parametrize("size", [64, 128])
def test_positions_are_resized_by_cubic_convolution_without_antialiasing(size):
    """As detectron2; timm's own way is antialiased, which changes even an enlargement."""
    backbone = plain()
    before = backbone.model.pos_embed.detach().clone()
    resized = detection_backbone(backbone, size).model.pos_embed[0]
    grid = before[0, 1:].reshape(4, 4, DIM).double().numpy()
    expected = cubic(grid, size // 8).reshape(-1, DIM)
    assert torch.equal(resized[0], before[0, 0])
    np.testing.assert_allclose(resized[1:].numpy(), expected, atol=1e-6)
    antialiased = (
        functional.interpolate(
            torch.from_numpy(grid).permute(2, 0, 1)[None], size // 8, mode="bicubic", antialias=True
        )[0]
        .permute(1, 2, 0)
        .reshape(-1, DIM)
    )
    assert np.abs(antialiased.numpy() - expected).max() > 1e-3


def test_the_users_model_stays_as_it_is_and_its_weights_are_shared():
    backbone = plain()
    batch = images(32)
    before = backbone.model(batch)
    resized = detection_backbone(backbone, 128)
    assert resized.image_size == (128, 128)
    assert torch.equal(backbone.model(batch), before)
    mine, theirs = dict(backbone.model.named_parameters()), resized.model.named_parameters()
    assert [name for name, p in theirs if p is not mine[name]] == ["pos_embed"]


def test_positions_without_a_class_token_among_them_are_resized_too():
    model = vit(img_size=32, patch_size=8, no_embed_class=True, reg_tokens=2)
    resized = detection_backbone(backbone_of(model), 64)
    assert resized.model.pos_embed.shape == (1, 64, DIM)
    assert PromptedMap(resized, prompts("deep"))(images(64)).shape == (2, DIM, 8, 8)


def test_without_prompts_the_map_is_what_timm_gives_of_the_last_block_before_its_norm():
    backbone = plain()
    mine = PromptedMap(detection_backbone(backbone, 64), {})
    (theirs,) = mine.vit.forward_intermediates(
        images(64), indices=[DEPTH - 1], norm=False, intermediates_only=True
    )
    torch.testing.assert_close(mine(images(64)), theirs)


@pytest.mark.parametrize("after", ["carry", "drop"])
@pytest.mark.parametrize("placement", ["shallow", "deep", "last:1", "interval:3"])
def test_the_map_holds_the_patches_alone_whatever_the_prompts(placement, after):
    resized = detection_backbone(plain(), 64)
    found = PromptedMap(resized, prompts(placement), after=after)(images(64))
    assert found.shape == (2, DIM, 8, 8)
    # The same with the prompts' rows cut out by hand, block by block.
    model = PromptedMap(resized, prompts(placement), after=after)
    x = model.vit._pos_embed(model.vit.patch_embed(images(64)))
    held = 0
    for i, block in enumerate(model.vit.blocks):
        if i in model.blocks:
            own = model.prompts[str(i)].values.expand(2, -1, -1)
            x, held = torch.cat([x[:, :1], own, x[:, 1 + held :]], 1), M
        x = block(x)
        if after == "drop" and i == max(model.blocks):
            x, held = torch.cat([x[:, :1], x[:, 1 + held :]], 1), 0
    expected = x[:, -64:].transpose(1, 2).reshape(2, DIM, 8, 8)
    torch.testing.assert_close(found, expected)


def test_only_prompts_have_a_gradient_and_the_backbone_stays_in_eval_mode():
    model = PromptedMap(detection_backbone(plain(), 64), prompts("last:2")).train()
    model(images(64)).square().sum().backward()
    with_gradient = [name for name, p in model.named_parameters() if p.grad is not None]
    assert with_gradient == ["prompts.1.values", "prompts.2.values"]
    assert model.training and not any(part.training for part in model.vit.modules())


def test_nothing_before_the_first_prompted_block_is_kept_for_the_way_back():
    model = PromptedMap(detection_backbone(plain(), 64), prompts("last:1"))
    seen = []
    for block in model.vit.blocks:
        block.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    model(images(64))
    assert seen == [False] * (DEPTH - 1) + [True]


@pytest.mark.parametrize("method", ["prompts", "full"])
def test_blocks_that_are_computed_again_have_the_same_gradients(method):
    resized = detection_backbone(plain(), 64)
    found = []
    for checkpoint_activations in (False, True):
        if method == "full":
            model = FineTunedMap(
                resized, drop_path=0.0, checkpoint_activations=checkpoint_activations
            )
        else:
            model = PromptedMap(
                resized, prompts("deep"), checkpoint_activations=checkpoint_activations
            )
        model(images(64)).square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_stochastic_depth_rises_linearly_to_the_last_block():
    model = FineTunedMap(detection_backbone(plain(), 64), drop_path=0.4)
    rates = [block.drop_path1.drop_prob for block in model.vit.blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4])
    assert torch.equal(model.eval()(images(64)), model(images(64)))
    assert not torch.equal(model.train()(images(64)), model(images(64)))


@pytest.mark.parametrize("method", ["prompts", "full"])
def test_computing_again_keeps_fewer_activations(method):
    resized = detection_backbone(plain(depth=12), 64)

    def kept(checkpoint_activations):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        if method == "full":
            model = FineTunedMap(resized, checkpoint_activations=checkpoint_activations)
        else:
            model = PromptedMap(
                resized, prompts("shallow"), checkpoint_activations=checkpoint_activations
            )
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(images(64))
        return total

    assert kept(checkpoint_activations=True) < 0.2 * kept(checkpoint_activations=False)


def test_patches_of_14_pixels_become_16():
    backbone = plain(img_size=56, patch_size=14)
    resized = detection_backbone(backbone, 128)
    model = PromptedMap(resized, {})
    weight = resample_patch_embed(backbone.model.patch_embed.proj.weight, [16, 16])
    torch.testing.assert_close(resized.model.patch_embed.proj.weight, weight)
    assert model.stride == 16
    assert model(images(128)).shape == (2, DIM, 8, 8)
    assert backbone.model.patch_embed.proj.weight.shape[-1] == 14


def test_a_resampled_patch_sees_a_linear_picture_as_the_first_did():
    """Beyer et al.: the embedding of a resized patch is that of the patch."""
    backbone = plain(img_size=56, patch_size=14)
    resized = detection_backbone(backbone, 64)
    ramp = torch.linspace(-1, 1, 14).expand(1, 3, 14, 14)
    larger = functional.interpolate(ramp, (16, 16), mode="bicubic", antialias=True)
    before = backbone.model.patch_embed.proj(ramp).flatten()
    after = resized.model.patch_embed.proj(larger).flatten()
    torch.testing.assert_close(after, before, atol=2e-2, rtol=0)


def test_a_fine_tuned_map_trains_a_copy_but_for_the_norm_that_it_does_not_use():
    backbone = plain()
    resized = detection_backbone(backbone, 64)
    model = FineTunedMap(resized).train()
    model(images(64)).square().sum().backward()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert sorted(frozen) == ["vit.norm.bias", "vit.norm.weight"]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_what_no_pyramid_can_be_made_of_is_refused():
    with pytest.raises(UnsupportedModel, match="32 x 32 pixels; .* 8, 14, 16"):
        detection_backbone(plain(patch_size=32), 64)
    for size in (0, 100, 1000):
        with pytest.raises(ShapeError, match=f"image_size is {size}; .* multiple of 64"):
            detection_backbone(plain(), size)
