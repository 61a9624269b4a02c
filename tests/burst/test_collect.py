"""A model run over batches: moments against the same tokens materialised, and what is held out."""

import numpy as np
import pytest
import torch
from support import DEPTH, backbone_of, few_at_a_time, vit

from burst.collect import collect_moments, collect_split, split_images
from burst.errors import BurstError, EmptyResult, UnknownName
from burst.second_moments import SecondMoments, TokenMoments
from burst.survey import images_for
from burst.tokens import capture


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


@pytest.mark.parametrize("tokens, prefix", [("all", 0), ("patch", 1)])
def test_streamed_moments_are_those_of_the_materialised_tokens(backbone, tokens, prefix):
    images = few_at_a_time(images_for(backbone, "sample", num_images=30))
    assert images.batches > 1
    found = collect_moments(backbone, images, tokens=tokens)
    rows = {block: [] for block in range(DEPTH)}
    with torch.inference_mode():
        for batch in images:
            with capture(backbone.model) as read:
                backbone.model(batch)
            for block, parts in rows.items():
                parts.append(read[block][:, prefix:].double())
    assert list(found.blocks) == [0, 1, 2]
    assert (found.images, found.tokens) == (30, tokens)
    for block, parts in rows.items():
        x = torch.cat(parts)
        flat = x.flatten(0, 1).numpy()
        moments = found.blocks[block]
        assert moments.count == len(flat) == 30 * (17 - prefix)
        np.testing.assert_allclose(moments.mean, flat.mean(0), atol=1e-13)
        np.testing.assert_allclose(moments.covariance(), np.cov(flat.T, bias=True), atol=1e-12)
        np.testing.assert_allclose(moments.positions, x.mean(0), atol=1e-13)


def test_bad_calls_are_refused(backbone):
    images = images_for(backbone, "sample", num_images=2)
    with pytest.raises(UnknownName, match="did you mean patch"):
        collect_moments(backbone, images, tokens="patches")
    with pytest.raises(BurstError, match="blocks 0 to 2"):
        collect_moments(backbone, images, blocks=(3,))


def test_tokens_that_are_not_finite_name_their_block():
    model = vit().requires_grad_(False)
    model.blocks[0].mlp.fc2.bias[3] = torch.inf
    images = images_for(backbone_of(model), "sample", num_images=2)
    with pytest.raises(BurstError, match=r"blocks\.1: the tokens of test are not finite"):
        collect_moments(backbone_of(model), images)
    assert list(collect_moments(backbone_of(model), images, blocks=(0,)).blocks) == [0]


@pytest.mark.parametrize(
    "count, share, held", [(100, 0.2, 20), (4, 0.2, 0), (5, 0.2, 1), (9, 0.5, 4), (7, 0, 0)]
)
def test_every_kth_image_is_held_out(backbone, count, share, held):
    images = images_for(backbone, "sample", num_images=count)
    fitting, out = split_images(images, share)
    assert (fitting.count, out.count) == (count - held, held)
    assert set(fitting.names) | set(out.names) == set(images.names)
    assert not set(fitting.names) & set(out.names)
    assert sum(len(batch) for batch in out) == held if held else not out.batches
    assert images.count == count


def test_a_held_out_share_above_one_half_is_refused(backbone):
    with pytest.raises(BurstError, match="hold out"):
        split_images(images_for(backbone, "sample", num_images=2), 0.6)


def batches_of(count, size=3):
    torch.manual_seed(1)
    return [torch.randn(size, 3, 16, 16) for _ in range(count)]


def test_of_batches_without_names_every_kth_is_held_out_in_one_pass():
    model, batches = vit(), batches_of(7)
    passes = []

    def once():
        passes.append(1)
        yield from batches

    fitted, held = collect_split(model, once(), 0.4)  # every second or third: round(2.5) is 2
    assert len(passes) == 1
    expected = [collect_moments(model, batches[start::2]) for start in (0, 1)]
    for found, one in zip((fitted, held), expected, strict=True):
        assert found.images == one.images
        assert found.sources == ({"source": "generator"},)
        for block in range(DEPTH):
            assert_same(found.blocks[block], one.blocks[block])
    assert (fitted.images, held.images) == (12, 9)


def test_nothing_is_held_out_of_few_batches_or_if_nothing_shall_be():
    for share, count in ((0.2, 4), (0, 7)):
        fitted, held = collect_split(vit(), batches_of(count), share)
        assert held is None
        assert fitted.images == 3 * count


def test_progress_over_images_and_those_held_out_is_one(backbone):
    told = []
    images = images_for(backbone, "sample", num_images=10)
    collect_split(backbone, images, 0.2, progress=lambda *step: told.append(step))
    assert told == [(1, 2), (2, 2)]


def test_moments_of_nothing_are_refused():
    with pytest.raises(EmptyResult, match="nothing was read from list"):
        collect_moments(vit(), [])


PROGRAM = """
from burst.collect import collect_moments
from burst.distributed import process_group
from burst.survey import images_for
from support import backbone_of, few_at_a_time, vit

with process_group() as (rank, _):
    backbone = backbone_of(vit())
    images = few_at_a_time(images_for(backbone, "sample", num_images=10))
    collect_moments(backbone, images, blocks=(0, 2)).save(f"{place}/{rank}.safetensors")
"""


def test_two_processes_find_what_one_finds(backbone, one_thread, tmp_path, in_two_processes):
    runs = in_two_processes(PROGRAM, tmp_path)
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    images = few_at_a_time(images_for(backbone, "sample", num_images=10))
    assert images.batches == 3  # one process has more than the other
    one = collect_moments(backbone, images, blocks=(0, 2))
    for rank in range(2):
        found = TokenMoments.load(tmp_path / f"{rank}.safetensors")
        assert found.images == one.images == 10
        assert found.sources == one.sources
        for block in (0, 2):
            assert_same(found.blocks[block], one.blocks[block])
