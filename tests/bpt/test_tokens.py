"""The tokens that self-prompts start from."""

import itertools

import numpy as np
import pytest
import timm
import torch
from sklearn.cluster import KMeans
from support import SIZE, backbone_of, vit

from bpt.tokens import prompt_tokens
from burst.errors import BurstError, EmptyResult, ShapeError, UnknownName, UnsupportedModel

PATCHES = 16


@pytest.fixture(scope="module")
def backbone():
    return backbone_of(vit())


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7))


def taken(backbone, batches, blocks=(0,), num_prompts=5, kind="random", seed=0):
    return prompt_tokens(backbone, batches, blocks, num_prompts=num_prompts, kind=kind, seed=seed)


def sources(backbone, images):
    """What each block reads, by timm's own means: (B, n, d) a block."""
    model = backbone.model
    with torch.no_grad():
        outputs = model.forward_intermediates(
            images, output_fmt="NLC", intermediates_only=True, norm=False
        )
        return [model.patch_embed(images), *outputs[:-1]]


def rows_of(values):
    return {tuple(row) for row in np.asarray(values).reshape(-1, values.shape[-1]).round(4)}


def test_random_tokens_are_distinct_tokens_of_the_source(backbone, images):
    for block, tokens in taken(backbone, [images], (0, 1, 2)).items():
        assert tokens.shape == (5, 32)
        assert len(rows_of(tokens)) == 5
        assert rows_of(tokens) <= rows_of(sources(backbone, images)[block])


@pytest.mark.parametrize("kind", ["random", "mean", "max", "kmeans"])
def test_batches_do_not_matter_and_the_seed_does(backbone, images, kind):
    whole = taken(backbone, [images], (1,), kind=kind)[1]
    split = taken(backbone, list(images.split(1)), (1,), kind=kind)[1]
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-5)
    other = taken(backbone, [images], (1,), kind=kind, seed=1)[1]
    assert not torch.allclose(other, whole)


@pytest.mark.parametrize("kind", ["mean", "max"])
@pytest.mark.parametrize("m", [1, 4, 5, 15, 16, 17, 40])
def test_every_patch_is_in_one_window(backbone, images, kind, m):
    one = images[:3]
    lengths = [len(part) for part in np.array_split(np.arange(PATCHES), min(m, PATCHES))]
    source = sources(backbone, one)[0].numpy()
    ends = np.cumsum([0, *lengths])
    pool = np.mean if kind == "mean" else np.max
    windows = [pool(source[:, a:b], axis=1) for a, b in itertools.pairwise(ends)]
    expected = rows_of(np.stack(windows, axis=1))
    assert sum(lengths) == PATCHES
    assert max(lengths) - min(lengths) <= 1
    assert rows_of(taken(backbone, [one], num_prompts=m, kind=kind)[0]) <= expected


def test_kmeans_finds_scikit_learns_centroids(backbone, images):
    rows = sources(backbone, images)[0].flatten(0, 1).numpy()
    expected = KMeans(5, n_init=1, random_state=0).fit(rows).cluster_centers_
    found = taken(backbone, [images], kind="kmeans")[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_every_token_is_equally_likely(backbone, images):
    places = {
        tuple(row): i
        for i, row in enumerate(sources(backbone, images)[0].flatten(0, 1).numpy().round(4))
    }
    counts = np.zeros(len(places))
    for seed in range(300):
        for row in taken(backbone, [images], num_prompts=8, seed=seed)[0].numpy().round(4):
            counts[places[tuple(row)]] += 1
    expected = 300 * 8 / len(places)
    chi = ((counts - expected) ** 2 / expected).sum() / len(places)
    assert 0.6 < chi < 1.5  # about 1 +- 0.14 for a fair draw


def test_registers_and_class_token_are_left_out(images):
    backbone = backbone_of(vit(reg_tokens=2))
    tokens = taken(backbone, [images], (1,), num_prompts=6 * PATCHES)[1]
    with torch.no_grad():
        model = backbone.model
        output = model.blocks[0](model._pos_embed(model.patch_embed(images)))
    assert rows_of(tokens) == rows_of(output[:, 3:])


def test_bad_requests_are_refused(backbone, images):
    with pytest.raises(UnknownName, match="mean"):
        taken(backbone, [images], kind="mode")
    with pytest.raises(BurstError, match="no block 99; there are blocks 0 to"):
        taken(backbone, [images], (99,))
    with pytest.raises(EmptyResult, match="no image"):
        taken(backbone, [])
    with pytest.raises(ShapeError, match="96 tokens, too few for 97"):
        taken(backbone, [images], num_prompts=97)
    mixer = timm.create_model("mixer_s32_224", num_classes=0)
    with pytest.raises(UnsupportedModel, match="not a timm VisionTransformer"):
        taken(backbone_of(mixer), [images])
