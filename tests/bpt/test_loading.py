"""Batches do not depend on workers, processes or where the epoch was interrupted."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import SIZE, backbone_of, vit
from torchvision.transforms import v2

from bpt import eval_batches, eval_transform, open_dataset, train_batches, train_transform
from burst import ImageError, images_for


@pytest.fixture(scope="module")
def backbone():
    return backbone_of(vit())


@pytest.fixture
def opened(colours, backbone):
    found = open_dataset("folder", colours)
    return found, train_transform(found, backbone), eval_transform(backbone)


def epoch_of(opened, **options):
    found, transform, _ = opened
    settings = {"batch_size": 8, "seed": 3, "epoch": 1, **options}
    return list(train_batches(found.train, transform, **settings))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True)
    )


def test_an_epoch_has_every_image_once(opened):
    found = opened[0]
    batches = epoch_of(opened)
    assert [tuple(images.shape) for images, _ in batches] == [(8, 3, SIZE, SIZE)] * 3
    labels = torch.cat([labels for _, labels in batches])
    assert sorted(labels.tolist()) == sorted(found.train.labels.tolist())


def test_an_incomplete_batch_is_left_out(opened):
    assert [len(labels) for _, labels in epoch_of(opened, batch_size=7)] == [7, 7, 7]


def test_the_same_seed_and_epoch_give_the_same_bits_and_others_do_not(opened):
    first = epoch_of(opened)
    torch.manual_seed(99)
    assert same(first, epoch_of(opened))
    assert not same(first, epoch_of(opened, epoch=2))
    assert not same(first, epoch_of(opened, seed=4))


def test_workers_change_nothing(opened):
    # Two passes of the loop: workers are started anew for each.
    assert same(epoch_of(opened), epoch_of(opened, workers=2))


def test_an_epoch_goes_on_from_any_batch(opened):
    whole = epoch_of(opened)
    for start in range(4):
        assert same(whole[start:], epoch_of(opened, start=start))


@pytest.mark.parametrize("world", [2, 4])
def test_the_processes_together_see_what_one_would(opened, world):
    whole = epoch_of(opened)
    parts = [epoch_of(opened, rank=rank, world=world) for rank in range(world)]
    for step, (images, _) in enumerate(whole):
        mine = torch.cat([part[step][0] for part in parts])
        order = torch.cat([torch.arange(8)[rank::world] for rank in range(world)])
        assert torch.equal(mine, images[order])


def test_the_global_generator_stays_as_it_was(opened):
    before = torch.get_rng_state()
    epoch_of(opened)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_reads_every_image_once(opened, world):
    found, _, transform = opened
    indices = [
        index
        for rank in range(world)
        for _, _, part in eval_batches(found.test, transform, batch_size=5, rank=rank, world=world)
        for index in part.tolist()
    ]
    assert sorted(indices) == list(range(len(found.test)))


def test_an_image_is_prepared_as_the_backbone_was_pretrained(opened, backbone):
    found, _, transform = opened
    image, _ = found.test[0]
    steps = v2.Compose(
        [
            v2.Resize(int(SIZE / 0.875), v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(SIZE),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(backbone.mean, backbone.std),
        ]
    )
    assert torch.allclose(transform(image), steps(image), atol=1e-6)


def test_burst_and_bpt_read_an_evaluation_image_alike(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 52, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    for crop in ((1.0, "center"), (0.9, "squash"), (0.8, "border")):
        backbone = backbone_of(vit(), crop_fraction=crop[0], crop_mode=crop[1])
        (theirs,) = images_for(backbone, tmp_path)
        ours = eval_transform(backbone)(Image.fromarray(pixels))
        assert torch.equal(ours, theirs[0])


def test_an_image_is_augmented_as_torchvision_does(opened, backbone):
    found, transform, _ = opened
    image, _ = found.train[0]
    steps = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(backbone.mean, backbone.std),
        ]
    )
    for seed in range(20):
        torch.manual_seed(seed)
        ours = transform(image)
        torch.manual_seed(seed)
        assert torch.allclose(ours, steps(image), atol=1e-6)


def test_a_digit_is_never_mirrored_and_a_photograph_is_half_the_time(opened, backbone):
    shares = []
    for benchmark in (opened[0], open_dataset("digits")):
        transform = train_transform(benchmark, backbone)
        shares.append(sum(transform.draw(10, 10).flip for _ in range(1000)) / 1000)
    assert shares[0] == pytest.approx(0.5, abs=0.08)  # five standard deviations
    assert shares[1] == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_by_one_line_from_any_process(tmp_path, colours, backbone, workers):
    import shutil

    root = tmp_path / "images"
    shutil.copytree(colours, root)
    (root / "train" / "red" / "5.png").write_bytes(b"\x89PNG broken")
    found = open_dataset("folder", root)
    with pytest.raises(ImageError, match=r"train/red/5\.png") as caught:
        list(
            train_batches(
                found.train,
                train_transform(found, backbone),
                batch_size=8,
                seed=0,
                epoch=0,
                workers=workers,
            )
        )
    assert "\n" not in str(caught.value)


def test_other_images_are_drawn_for_another_place(opened):
    found, transform, _ = opened
    twice = found.train.subset(np.zeros(8, int))
    (images, _), *_ = train_batches(twice, transform, batch_size=8, seed=0, epoch=0)
    assert len({image.numpy().tobytes() for image in images}) == 8
