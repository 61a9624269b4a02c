"""RandAugment, erasing, mixup and CutMix: timm's, but drawn from the training's seed."""

import random

import numpy as np
import pytest
import torch
from support import SIZE, backbone_of, vit
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms.v2 import functional

from bpt import open_dataset, train_batches, train_transform
from bpt.augmentation import Erasing, Mixing, RandAugment
from bpt.pixels import Kept, stored_pixels
from burst import BurstError

TEXT = "rand-m9-mstd0.5-inc1"


@pytest.fixture(scope="module")
def backbone():
    return backbone_of(vit())


def crops(count=12):
    shape = (count, 3, SIZE, SIZE)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def states():
    return random.getstate(), str(np.random.get_state())


def test_operations_on_a_crop_are_timms(backbone):
    preprocess = backbone.preprocess
    mean = tuple(round(255 * value) for value in preprocess.mean)
    theirs = rand_augment_transform(
        TEXT, {"translate_const": int(0.45 * preprocess.image_size), "img_mean": mean}
    )
    ours, changed = RandAugment(TEXT, preprocess), 0
    for number, pixels in enumerate(crops()):
        torch.manual_seed(number)
        found = ours(pixels)
        torch.manual_seed(number)
        seed, before = int(torch.randint(2**32, ())), states()
        random.seed(seed)
        np.random.seed(seed)
        expected = functional.pil_to_tensor(theirs(functional.to_pil_image(pixels)))
        random.setstate(before[0])
        assert torch.equal(found, expected)
        changed += not torch.equal(found, pixels)
    assert changed >= 6


def test_a_share_of_crops_loses_a_rectangle_to_noise():
    torch.manual_seed(0)
    erasing, erased, noise = Erasing(0.25), 0, []
    for _ in range(1000):
        pixels = erasing(torch.full((3, 64, 64), 9.0))
        changed = (pixels != 9).all(0)
        if changed.any():
            erased += 1
            rows, columns = changed.any(1), changed.any(0)
            rectangle = pixels[:, rows][:, :, columns]
            height, width = rectangle.shape[1:]
            assert (rectangle != 9).all()
            assert 0.015 < height * width / 64**2 < 0.35 and 0.27 < height / width < 3.7
            noise.append(rectangle.flatten())
    assert abs(erased / 1000 - 0.25) < 0.04  # three standard errors
    assert torch.cat(noise).mean().abs() < 0.01 and abs(torch.cat(noise).std() - 1) < 0.01


def test_crops_that_nothing_is_erased_of_stay(backbone):
    pixels = torch.rand(3, 16, 16)
    assert torch.equal(Erasing(1e-9)(pixels.clone()), pixels)


def test_the_global_generators_of_python_and_numpy_stay_as_they_were(backbone):
    before = states()
    RandAugment(TEXT, backbone.preprocess)(crops()[0])
    Erasing(1.0)(torch.zeros(3, 8, 8))
    mixing = Mixing(mixup=0.8, cutmix=1.0, classes=3, seed=0)
    list(mixing.batches([(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))], epoch=0, start=0))
    assert states() == before


@pytest.mark.parametrize("text", ["", "augmix-m5", "rand-x3", "rand-mx9", "rand-m9.5"])
def test_words_that_timm_does_not_know_are_refused_with_some_that_it_does(backbone, text):
    with pytest.raises(BurstError, match="rand-m9-mstd0.5-inc1"):
        RandAugment(text, backbone.preprocess)


def epoch(split, transform, **options):
    batches = train_batches(split, transform, **{"batch_size": 8, "seed": 3, "epoch": 1, **options})
    return torch.cat([images for images, _ in batches])


def test_what_is_drawn_of_an_image_depends_on_no_worker_process_or_cache(
    colours, backbone, tmp_path, monkeypatch
):
    monkeypatch.setenv("BPT_CACHE", str(tmp_path))
    found = open_dataset("folder", colours)
    transform = train_transform(found, backbone, randaugment=TEXT, random_erasing=0.5)
    alone = epoch(found.train, transform)
    assert not torch.equal(alone, epoch(found.train, train_transform(found, backbone)))
    assert torch.equal(alone, epoch(found.train, transform, workers=2))
    assert torch.equal(alone[8:], epoch(found.train, transform, start=1))
    shares = [epoch(found.train, transform, rank=rank, world=2) for rank in (0, 1)]
    assert torch.equal(alone[0::2], shares[0]) and torch.equal(alone[1::2], shares[1])
    kept = Kept(preprocess=backbone.preprocess, smallest_crop=found.smallest_crop)
    pixels = stored_pixels(found.train, kept, say=lambda _: None)
    cached = type(found.train)(found.train.names, found.train.labels, pixels)
    assert torch.equal(alone, epoch(cached, transform))


def batches(count, size=4):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, 3, 8, 8, generator=generator),
            torch.randint(5, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def test_mixup_is_a_mean_of_two_images_and_of_their_answers():
    mixing = Mixing(mixup=0.8, cutmix=0.0, classes=5, seed=7)
    plain = [(images.clone(), labels) for images, labels in batches(6)]
    mixed = list(mixing.batches(batches(6), epoch=2, start=0))
    shares = []
    for (images, labels), (found, answers) in zip(plain, mixed, strict=True):
        difference = (images - images.flip(0)).double()
        share = float((difference * (found - images.flip(0))).sum() / difference.square().sum())
        one = np.eye(5)[labels]
        expected = share * one + (1 - share) * one[::-1]
        assert torch.allclose(found, share * images + (1 - share) * images.flip(0), atol=1e-5)
        assert np.allclose(answers, expected, atol=1e-5)
        shares.append(round(share, 6))
    assert len(set(shares)) == 6


def test_cutmix_pastes_a_box_and_shares_the_answer_by_its_area():
    mixing = Mixing(mixup=0.0, cutmix=1.0, classes=5, seed=7)
    plain = [(images.clone(), labels) for images, labels in batches(8)]
    for (images, labels), (found, answers) in zip(
        plain, mixing.batches(batches(8), epoch=0, start=0), strict=True
    ):
        own, other = (found == images).all(1), (found == images.flip(0)).all(1)
        assert (own | other).all()
        share = own.double().mean((1, 2))
        one = torch.eye(5, dtype=torch.float64)[labels]
        expected = share[:, None] * one + (1 - share[:, None]) * one.flip(0)
        assert torch.allclose(answers.double(), expected, atol=1e-6)


def test_the_proportion_depends_on_seed_epoch_and_step_alone():
    def answers(seed=7, epoch=2, start=0, given=None):
        mixing = Mixing(mixup=0.8, cutmix=1.0, classes=5, seed=seed)
        return [found for _, found in mixing.batches(given or batches(5), epoch=epoch, start=start)]

    whole = answers()
    for one, other in zip(whole[3:], answers(start=3, given=batches(5)[3:]), strict=True):
        assert torch.equal(one, other)
    for changed in ({"seed": 8}, {"epoch": 3}, {"start": 1}):
        assert not torch.equal(torch.cat(whole), torch.cat(answers(**changed)))
