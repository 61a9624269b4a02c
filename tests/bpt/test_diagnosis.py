"""Scale and rank of prompts, and the share of the head's input that depends on the image."""

import numpy as np
import pytest
import torch

import bpt
import burst
from bpt import PlainPrompt, PromptedViT, diagnose_prompts, prompt_diagnosis
from bpt.detection.backbone import PromptedMap
from bpt.diagnosis import effective_rank
from burst import BurstError, EmptyResult

M, D = 3, 64


@pytest.fixture(scope="module")
def backbone():
    return burst.load_backbone("timm:test_vit", "random")


@pytest.fixture(scope="module")
def images(backbone):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, *backbone.image_size, generator=generator)


def prompted(backbone, *, scale=1.0, blocks=(0,), pooling="prompts+patches"):
    generator = torch.Generator().manual_seed(1)
    prompts = {
        block: PlainPrompt(scale * torch.randn(M, D, generator=generator)) for block in blocks
    }
    return PromptedViT(backbone, prompts, 4, pooling=pooling).eval()


@pytest.mark.parametrize("pooling", ["prompts+patches", "patches", "prompts", "token"])
def test_the_share_of_the_image_is_what_numpy_says_of_the_last_tokens(backbone, images, pooling):
    model = prompted(backbone, pooling=pooling)
    found = diagnose_prompts(model, images.split(4))
    with torch.no_grad():
        x = model.tokens(images)[0].double().numpy()
    patches = x[:, model.prefix + M :]
    parts = {
        "prompts+patches": x[:, model.prefix :].mean(1),
        "patches": patches.mean(1),
        "prompts": x[:, model.prefix : model.prefix + M].mean(1),
        "token": x[:, 0],
    }

    def share(z):
        return np.square(z - z.mean(0)).sum() / np.square(z).sum()

    assert found.image_share == pytest.approx(share(parts[pooling]), rel=1e-5)
    assert found.patches_share == pytest.approx(share(parts["patches"]), rel=1e-5)
    assert found.images == 6 and found.num_prompts == M


def test_the_scale_is_that_of_the_patches_in_front_of_the_block(backbone, images):
    model = prompted(backbone, blocks=(0, 2))
    seen = {}
    handle = model.vit.blocks[1].register_forward_hook(lambda *one: seen.update(x=one[-1]))
    found = diagnose_prompts(model, [images])
    handle.remove()
    patches = seen["x"][:, model.prefix + M :].double().numpy()
    one = found.blocks[1]
    assert [block.block for block in found.blocks] == [0, 2]
    assert one.patch_rms == pytest.approx(np.sqrt(np.mean(patches**2)), rel=1e-6)
    values = model.prompts["2"].values.detach().double().numpy()
    assert one.prompt_rms == pytest.approx(np.sqrt(np.mean(values**2)), rel=1e-6)
    assert one.scale == pytest.approx(one.prompt_rms / one.patch_rms)
    assert all(not block._forward_pre_hooks for block in model.vit.blocks)


def test_large_prompts_drown_the_image_in_the_mean_and_not_in_that_of_the_patches(backbone, images):
    small, large = (
        diagnose_prompts(prompted(backbone, scale=scale), [images]) for scale in (0.1, 1e3)
    )
    assert large.image_share < 0.01 * small.image_share
    assert large.patches_share > 0.1 * small.patches_share


def test_the_effective_rank_is_that_of_shares_of_the_energy():
    assert effective_rank(torch.eye(4, 9)) == pytest.approx(4)
    assert effective_rank(torch.outer(torch.arange(1.0, 5), torch.ones(7))) == pytest.approx(1)
    assert effective_rank(torch.zeros(3, 5)) == 0
    values = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    gram = np.linalg.eigvalsh(values.double().numpy() @ values.double().numpy().T)
    shares = gram / gram.sum()
    expected = np.exp(-np.sum(shares * np.log(shares)))
    assert effective_rank(values) == pytest.approx(expected, rel=1e-9)
    assert effective_rank(2.0**-20 * values) == pytest.approx(expected, rel=1e-9)


def test_a_map_has_no_vector_that_a_head_reads(backbone, images):
    model = PromptedMap(backbone, {0: PlainPrompt(torch.randn(M, D))}).eval()
    found = diagnose_prompts(model, [images])
    assert found.image_share is None and 0 < found.patches_share < 1


def test_without_prompts_or_images_there_is_nothing_to_diagnose(backbone, images):
    with pytest.raises(BurstError, match="no prompts"):
        diagnose_prompts(PromptedViT(backbone, {}, 4), [images])
    with pytest.raises(EmptyResult, match="no image"):
        diagnose_prompts(prompted(backbone), [])


def recipe_of(colours, **changes):
    shared = {"model": "timm:test_vit", "weights": "random", "epochs": 1, "batch_size": 8}
    return bpt.Recipe(dataset="folder", data=str(colours), num_prompts=4, **shared, **changes)


def test_a_run_ends_with_the_diagnosis_that_it_can_be_given_again(colours, tmp_path):
    recipe = recipe_of(colours, method="bpt-dwhiten", placement="first:2")
    result = bpt.train(recipe, tmp_path / "run", device="cpu")
    run = bpt.open_run(tmp_path / "run")
    found = prompt_diagnosis(run)
    assert found.images == 9 and [one.block for one in found.blocks] == [0, 1]
    kept = bpt.PromptDiagnosis.from_dict(run.result["prompt_diagnosis"])
    assert kept == bpt.PromptDiagnosis.from_dict(result["prompt_diagnosis"])
    for one, other in zip(found.blocks, kept.blocks, strict=True):
        assert vars(one) == pytest.approx(vars(other), rel=1e-5)
    assert found.image_share == pytest.approx(kept.image_share, rel=1e-4)
    least = min(one.effective_rank for one in found.blocks)
    assert run.metrics[-1]["prompt_effective_rank"] == pytest.approx(least, rel=1e-5)


def test_a_run_that_kept_its_last_epoch_is_diagnosed_on_what_its_result_says(colours, tmp_path):
    recipe = recipe_of(colours, method="vpt", protocol="last")
    kept = bpt.train(recipe, tmp_path / "run", device="cpu")["prompt_diagnosis"]
    found = prompt_diagnosis(bpt.open_run(tmp_path / "run"))
    assert found.images == kept["images"] == 24  # those to train on
    assert found.image_share == pytest.approx(kept["image_share"], rel=1e-4)


def test_a_linear_probe_has_no_prompts(colours, tmp_path):
    recipe = recipe_of(colours, method="linear")
    result = bpt.train(recipe, tmp_path / "run", device="cpu")
    assert result["prompt_diagnosis"] is None
    with pytest.raises(BurstError, match="has no prompts"):
        prompt_diagnosis(bpt.open_run(tmp_path / "run"))
