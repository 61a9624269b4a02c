"""Streamed moments against the same tokens materialised."""

import dataclasses
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import backbone_of, few_at_a_time, vit

from burst.collect import collect_moments
from burst.errors import BurstError, CheckpointError, OutputError, ShapeError
from burst.second_moments import SecondMoments, TokenMoments
from burst.survey import images_for


@pytest.fixture(scope="module")
def backbone():
    return backbone_of(vit())


def tokens_of(seed, images=4, positions=5, dim=3, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, positions, dim, generator=generator) + offset


def assert_same(one: SecondMoments, other: SecondMoments):
    assert one.count == other.count
    for name in ("mean", "scatter", "positions"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-12)


def test_moments_are_those_of_numpy_however_far_the_mean(rng):
    x = torch.from_numpy(rng.normal(size=(6, 50, 4)) + 1e6)
    moments = SecondMoments.of(x[:2]) + SecondMoments.of(x[2:])
    flat = x.flatten(0, 1).numpy()
    assert moments.count == 300
    np.testing.assert_allclose(moments.mean, flat.mean(0), rtol=1e-14)
    expected = np.cov((flat - 1e6).T, bias=True)
    np.testing.assert_allclose(moments.covariance(), expected, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(moments.positions, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance(centred=False), flat.T @ flat / 300, rtol=1e-12)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    seed=st.integers(0, 10**6),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
)
def test_parts_add_up_to_the_whole_in_any_order(sizes, seed, offset):
    x = tokens_of(seed, sum(sizes), offset=offset).double()
    a, b, c = (SecondMoments.of(part) for part in x.split(sizes))
    whole = SecondMoments.of(x)
    assert_same(a + b + c, whole)
    assert_same(a + (b + c), whole)
    assert_same(c + a + b, whole)


def test_equal_tokens_have_no_scatter():
    tokens = torch.tensor([0.1, -3.3, 1e5]).expand(7, 11, 3)
    assert SecondMoments.of(tokens).scatter.abs().max() < 1e-18 * 1e10
    assert (SecondMoments.of(tokens) + SecondMoments.of(tokens)).scatter.abs().max() < 1e-8


def test_positions_are_given_up_where_images_differ_in_size():
    one, other = SecondMoments.of(tokens_of(0)), SecondMoments.of(tokens_of(1, positions=6))
    assert (one + other).positions is None
    assert (one + other + one).positions is None
    assert (one + other).count == 44


def test_tokens_without_positions_have_the_same_moments():
    x = torch.randn(6, 5)
    alone, placed = SecondMoments.of(x), SecondMoments.of(x.reshape(2, 3, 5))
    assert alone.positions is None
    assert torch.equal(alone.mean, placed.mean)
    assert torch.equal(alone.scatter, placed.scatter)
    assert (alone + placed).positions is None


@pytest.mark.parametrize("shape", [(4,), (0, 3), (0, 4, 3), (2, 0, 3), (2, 3, 4, 5)])
def test_what_is_not_tokens_is_refused(shape):
    with pytest.raises(ShapeError, match="tokens"):
        SecondMoments.of(torch.zeros(shape))


def test_other_widths_do_not_add():
    with pytest.raises(ShapeError, match="3 and in 4"):
        SecondMoments.of(tokens_of(0)) + SecondMoments.of(tokens_of(0, dim=4))


def test_shares_of_the_images_add_up(backbone):
    images = few_at_a_time(images_for(backbone, "sample", num_images=10))
    whole = collect_moments(backbone, images, blocks=(2, 0))
    first, second = (
        collect_moments(backbone, images.shard(rank, 2), blocks=(2, 0)) for rank in range(2)
    )
    both = first + second
    assert list(both.blocks) == [0, 2]
    assert both.images == 10
    assert both.sources == whole.sources
    for block in both.blocks:
        assert_same(both.blocks[block], whole.blocks[block])


def test_moments_of_other_models_or_tokens_do_not_add(backbone):
    images = images_for(backbone, "sample", num_images=2)
    all_tokens = collect_moments(backbone, images)
    with pytest.raises(BurstError, match="tokens"):
        all_tokens + collect_moments(backbone, images, tokens="patch")
    with pytest.raises(BurstError, match=r"blocks \[0, 1, 2\]"):
        all_tokens + collect_moments(backbone, images, blocks=(1,))
    with pytest.raises(BurstError, match="query and key weights .*, not"):
        all_tokens + collect_moments(backbone_of(vit(num_heads=2)), images)


def test_moments_come_back_from_their_file(backbone, tmp_path):
    images = images_for(backbone, "sample", num_images=3)
    moments = collect_moments(backbone, images)
    path = tmp_path / "moments.safetensors"
    moments.save(path)
    found = TokenMoments.load(path)
    about = {**vars(found), "blocks": None}
    assert about == {**vars(moments), "blocks": None}
    for block, one in moments.blocks.items():
        assert found.blocks[block].count == one.count
        for name in ("mean", "scatter", "positions"):
            assert torch.equal(getattr(found.blocks[block], name), getattr(one, name))
    assert (found + moments).images == 6
    assert (found + moments).sources == (images.record,)


def test_moments_of_before_keep_their_sources(backbone, tmp_path):
    moments = collect_moments(backbone, images_for(backbone, "sample", num_images=3))
    path = tmp_path / "old.safetensors"
    replace(moments, sources=(["sample", "a" * 64],)).save(path)  # pairs, as they were
    found = TokenMoments.load(path)
    assert found.sources == ({"source": "sample", "fingerprint": "a" * 64},)
    assert len((found + moments).sources) == 2


@pytest.mark.usefixtures("short_files")
def test_a_full_disk_is_told(backbone, tmp_path):
    moments = collect_moments(backbone, images_for(backbone, "sample", num_images=1))
    large = SecondMoments(1, torch.zeros(100), torch.zeros(100, 100).double(), None)
    with pytest.raises(OutputError, match="cannot write .*File too large"):
        dataclasses.replace(moments, blocks={0: large}).save(tmp_path / "moments.safetensors")
    assert os.listdir(tmp_path) == []


def test_files_that_are_not_moments_are_refused(backbone, tmp_path):
    moments = collect_moments(backbone, images_for(backbone, "sample", num_images=2))
    with pytest.raises(OutputError, match="safetensors"):
        moments.save(tmp_path / "moments.pt")
    other = tmp_path / "other.safetensors"
    save_file({"W": torch.zeros(2)}, other)
    with pytest.raises(CheckpointError, match="does not hold second moments"):
        TokenMoments.load(other)
    with pytest.raises(CheckpointError, match="does not exist"):
        TokenMoments.load(tmp_path / "none.safetensors")
    moments.blocks[1].scatter[0, 0] = torch.nan
    moments.save(other)
    with pytest.raises(CheckpointError, match="block 1 is not finite"):
        TokenMoments.load(other)
