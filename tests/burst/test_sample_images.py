import numpy as np
import pytest
import torch
from PIL import Image

from burst.errors import ImageError
from burst.images import open_images
from burst.sample_images import draw_crop, load_photos


def sample(num_images, *, batch_size=4, seed=0):
    return open_images(
        "sample",
        num_images=num_images,
        batch_size=batch_size,
        seed=seed,
        image_size=16,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


@pytest.fixture(scope="module")
def photos():
    return load_photos()


def test_sample_is_deterministic_and_crop_i_depends_on_the_seed_and_i_only():
    few, many = sample(5), sample(8, batch_size=3)
    assert few.source == "sample"
    assert few.names == many.names[:5]
    assert torch.equal(torch.cat(list(few)), torch.cat(list(many))[:5])
    assert torch.equal(torch.cat(list(few)), torch.cat(list(sample(5))))
    assert sample(5).fingerprint == few.fingerprint


def test_sample_with_another_seed_is_another_sample():
    first, second = (sample(4, seed=seed) for seed in (0, 1))
    assert first.fingerprint != second.fingerprint
    assert not torch.equal(torch.cat(list(first)), torch.cat(list(second)))


def test_each_sample_is_the_crop_that_its_name_says(photos):
    stream = sample(6)
    crops = [draw_crop(photos, seed=0, i=i) for i in range(6)]
    assert stream.names == [f"{i}:{crop}" for i, crop in enumerate(crops)]
    assert {crop.flip for crop in crops} == {True, False}
    for crop, ours in zip(crops, torch.cat(list(stream)), strict=True):
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        cut = photos[crop.photo].crop(box).resize((16, 16), Image.Resampling.BICUBIC)
        pixels = np.asarray(cut)[:, :: -1 if crop.flip else 1].transpose(2, 0, 1)
        np.testing.assert_allclose(ours.numpy(), pixels / 255, atol=1e-7)  # one float32 rounding


def test_crops_use_both_photographs_and_both_directions(photos):
    crops = [draw_crop(photos, seed=0, i=i) for i in range(100)]
    assert 30 < sum(crop.flip for crop in crops) < 70  # 4 standard deviations
    assert 30 < sum(crop.photo == "china.jpg" for crop in crops) < 70


def test_crops_lie_within_the_photograph_and_have_the_usual_share_and_aspect(photos):
    crops = [draw_crop(photos, seed=1, i=i) for i in range(300)]
    for crop in crops:
        width, height = photos[crop.photo].size
        assert 0 <= crop.left <= width - crop.width
        assert 0 <= crop.top <= height - crop.height
    share = np.array([crop.width * crop.height for crop in crops]) / (640 * 427)
    aspect = np.array([crop.width / crop.height for crop in crops])
    # sides are rounded to whole pixels, which at 130 pixels is below 1 %
    assert 0.079 < share.min() < 0.1
    assert 0.8 < share.max() <= 1
    assert 0.74 < aspect.min() < 0.8
    assert 1.28 < aspect.max() < 1.35


def test_sample_needs_a_number_of_images():
    with pytest.raises(ImageError, match="no end"):
        sample(None)
