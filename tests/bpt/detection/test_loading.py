"""Batches of annotated images do not depend on workers, processes or where the epoch began."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from annotated import coco_folder

from bpt.dataset.coco import open_coco
from bpt.detection.frames import targets_of
from bpt.detection.jitter import Jitter, whole
from bpt.detection.loading import eval_batches, train_batches
from bpt.detection.objects import FRAME
from burst import ImageError

JITTER = Jitter(64)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return open_coco(f"coco:{coco_folder(tmp_path_factory.mktemp('coco') / 'set', images=16)}")


@pytest.fixture
def split(opened):
    return opened.train  # 14 images, some without objects


def epoch_of(split, **options):
    settings = {"batch_size": 4, "seed": 3, "epoch": 1, **options}
    return list(train_batches(split, JITTER, **settings))


def tensors(batch):
    parts = [x for one in batch.targets for x in (one.boxes, one.labels, one.masks)]
    return [batch.images, torch.tensor(batch.sizes), *parts]


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(tensors(left), tensors(right), strict=True)
    )


def test_an_image_lies_at_the_upper_left_and_the_rest_is_zero(split):
    small = 0
    for batch in epoch_of(split):
        assert batch.images.shape == (4, 3, 64, 64) and batch.images.dtype == torch.uint8
        for image, (height, width), one in zip(
            batch.images, batch.sizes, batch.targets, strict=True
        ):
            assert image[:, :height, :width].any(0).float().mean() > 0.95  # random pixels
            assert not image[:, height:].any() and not image[:, :, width:].any()
            assert (one.boxes >= 0).all()
            assert (one.boxes <= torch.tensor([width, height, width, height])).all()
            small += height < 64 or width < 64
    assert small


def test_an_image_without_objects_stays_in_the_batch_with_empty_targets(split):
    targets = [one for batch in epoch_of(split) for one in batch.targets]
    assert len(targets) == 12
    empty = [one for one in targets if not len(one)]
    assert empty and len(empty) < len(targets)
    for one in empty:
        assert one.boxes.shape == (0, 4) and one.masks.shape == (0, FRAME, FRAME)
        assert one.boxes.dtype == torch.float32 and one.labels.dtype == torch.int64


def test_seed_and_epoch_and_place_decide_what_is_drawn(split):
    places = np.random.default_rng([3, 1]).permutation(len(split))[:4]
    batch = epoch_of(split)[0]
    for place, image, size, found in zip(
        places.tolist(), batch.images, batch.sizes, batch.targets, strict=True
    ):
        key = np.random.SeedSequence((3, 1), spawn_key=(place,))
        draw = JITTER.draw(np.random.default_rng(key))
        geometry = JITTER.geometry(*split.sizes[place].tolist(), draw)
        assert size == geometry.kept
        assert torch.equal(image[:, : size[0], : size[1]], geometry.apply(split.image(place)))
        assert torch.equal(found.boxes, targets_of(split.objects(place), geometry).boxes)


def test_the_same_seed_and_epoch_give_the_same_bits_and_others_do_not(split):
    first = epoch_of(split)
    torch.manual_seed(99)
    assert same(first, epoch_of(split))
    assert not same(first, epoch_of(split, epoch=2))
    assert not same(first, epoch_of(split, seed=4))


def test_workers_change_nothing(split):
    assert same(epoch_of(split), epoch_of(split, workers=2))


def test_an_epoch_goes_on_from_any_batch_and_leaves_out_the_incomplete_one(split):
    whole_epoch = epoch_of(split)
    assert len(split) == 14 and len(whole_epoch) == 3
    for start in range(4):
        assert same(whole_epoch[start:], epoch_of(split, start=start))


def test_two_processes_together_see_what_one_would(split):
    parts = [epoch_of(split, rank=rank, world=2) for rank in range(2)]
    for alone, *shared in zip(epoch_of(split), *parts, strict=True):
        for rank, one in enumerate(shared):
            assert torch.equal(one.images, alone.images[rank::2])
            assert one.sizes == alone.sizes[rank::2]
            for mine, wanted in zip(one.targets, alone.targets[rank::2], strict=True):
                assert torch.equal(mine.boxes, wanted.boxes)
                assert torch.equal(mine.masks, wanted.masks)


def test_the_global_generator_stays_as_it_was(split):
    before = torch.get_rng_state()
    epoch_of(split)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_reads_every_image_once_and_whole(split, world):
    read = {}
    for rank in range(world):
        for batch, places, geometries in eval_batches(
            split, size=64, batch_size=3, rank=rank, world=world
        ):
            assert not batch.targets and batch.images.shape[1:] == (3, 64, 64)
            for place, image, size, geometry in zip(
                places.tolist(), batch.images, batch.sizes, geometries, strict=True
            ):
                assert place not in read
                assert geometry == whole(*split.sizes[place].tolist(), 64)
                assert size == geometry.kept and max(size) == 64
                read[place] = image[:, : size[0], : size[1]]
    assert sorted(read) == list(range(len(split)))
    assert all(
        torch.equal(image, whole(*split.sizes[place].tolist(), 64).apply(split.image(place)))
        for place, image in read.items()
    )


def test_workers_change_nothing_in_an_evaluation(split):
    for one, other in zip(
        eval_batches(split, size=64, batch_size=5),
        eval_batches(split, size=64, batch_size=5, workers=2),
        strict=True,
    ):
        assert torch.equal(one.batch.images, other.batch.images)
        assert np.array_equal(one.places, other.places) and one.geometries == other.geometries


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_image_is_named_by_one_line_from_any_process(split, workers):
    broken = replace(split, names=("gone.png", *split.names[1:]))
    with pytest.raises(ImageError, match="gone.png") as caught:
        list(eval_batches(broken, size=64, batch_size=5, workers=workers))
    assert "\n" not in str(caught.value)
