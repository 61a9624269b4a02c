"""What a linear probe reads: features of centre crops, mirrored where the recipe says so."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import burst
from bpt import PromptedViT, Recipe, open_dataset
from bpt.frozen_batches import FeatureBatches
from bpt.image_batches import ImageBatches
from burst import EmptyResult


@pytest.fixture
def benchmark(colours):
    return open_dataset("folder", colours)


@pytest.fixture
def backbone():
    return burst.load_backbone("timm:test_vit", "random")


def batches_of(benchmark, backbone, **changes):
    recipe = Recipe(dataset="folder", method="linear", epochs=2, batch_size=8, **changes)
    images = ImageBatches(recipe, benchmark, backbone, benchmark.train)
    model = PromptedViT(backbone, {}, len(benchmark.classes)).eval()
    return FeatureBatches(recipe, images, model), model, images


def features_of(model, images, *, flip):
    """Of the training images, in their order."""
    crops = torch.cat([batch for batch, _, _ in images.centre_crops(images.split)])
    with torch.no_grad():
        return model.features(crops.flip(-1) if flip else crops)


def places_in(found, rows):
    """Of each row, the place of the nearest one, and how near it is."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(rows, found, compute_mode=exact).min(dim=1)


def test_flipped_features_are_those_of_mirrored_images_and_each_epoch_draws_anew(
    benchmark, backbone
):
    batches, model, images = batches_of(benchmark, backbone, augmentation="flip")
    plain, mirrored = (features_of(model, images, flip=flip) for flip in (False, True))
    both, drawn = torch.cat([plain, mirrored]), []
    for epoch in range(4):
        found = list(batches.train(epoch, 0))
        distance, place = places_in(both, torch.cat([rows for rows, _ in found]))
        assert_close(distance, torch.zeros_like(distance), atol=1e-4, rtol=0)
        image, flips = place % len(plain), place >= len(plain)
        assert len(set(image.tolist())) == len(image), "an image once an epoch"
        labels = torch.from_numpy(benchmark.train.labels)[image]
        assert torch.equal(labels, torch.cat([answers for _, answers in found]))
        drawn.append(dict(zip(image.tolist(), flips.tolist(), strict=True)))
    share = sum(sum(one.values()) for one in drawn) / sum(map(len, drawn))
    assert 0.3 < share < 0.7
    common = drawn[0].keys() & drawn[1].keys()
    assert any(drawn[0][one] != drawn[1][one] for one in common)


@pytest.mark.parametrize("augmentation", ["crop", "none"])
def test_without_it_they_are_those_of_the_images(benchmark, backbone, augmentation):
    batches, model, images = batches_of(benchmark, backbone, augmentation=augmentation)
    plain = features_of(model, images, flip=False)
    for rows, _ in batches.train(0, 0):
        distance, _ = places_in(plain, rows)
        assert_close(distance, torch.zeros_like(distance), atol=1e-4, rtol=0)


def test_evaluation_never_mirrors(benchmark, backbone):
    one, other = (
        list(batches_of(benchmark, backbone, augmentation=name)[0].evaluation("test"))
        for name in ("flip", "none")
    )
    assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))


def test_features_of_no_image_are_none(benchmark, backbone):
    batches, _, _ = batches_of(replace(benchmark, val=benchmark.val.subset([])), backbone)
    with pytest.raises(EmptyResult, match="no image"):
        batches.evaluation("val")
