"""An image lies in the detector's input where detectron2 would put it, and boxes come back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from bpt.detection.jitter import Draw, Geometry, Jitter, whole

SIZES = [
    (480, 640),
    (640, 480),
    (427, 640),
    (333, 500),
    (1, 1),
    (17, 2048),
    (2048, 2048),
    (367, 333),
]
sides = st.integers(1, 2048)
draws = st.builds(Draw, st.booleans(), st.floats(0.1, 2.0), st.floats(0, 1))


def picture(rng, height, width):
    """Smooth, so that it matters little on which side a value is rounded."""
    small = rng.integers(0, 256, (6, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def by_detectron2(height, width, scale, place, size):
    """Sizes and offsets of ResizeScale and FixedSizeCrop, one axis after the other."""
    ratio = min(size * scale / height, size * scale / width)
    sides = [round(height * ratio), round(width * ratio)]  # Python too rounds halves to even
    offsets = [round(max(side - size, 0) * place) for side in sides]
    return tuple(sides), tuple(offsets)


# What detectron2@02b5c4e gives: scale 2 of 1024, a crop at 0.3; and for evaluation.
LISTED = [
    ((480, 640), (1536, 2048), (154, 307), (768, 1024)),
    ((427, 640), (1366, 2048), (103, 307), (683, 1024)),
    ((640, 425), (2048, 1360), (307, 101), (1024, 680)),
    ((333, 500), (1364, 2048), (102, 307), (682, 1024)),
    ((500, 375), (2048, 1536), (307, 154), (1024, 768)),
]


@pytest.mark.parametrize("original, resized, corner, evaluated", LISTED)
def test_listed_sizes_are_rounded_as_detectron2_rounds_them(original, resized, corner, evaluated):
    found = Jitter(1024).geometry(*original, Draw(False, 2.0, 0.3))
    assert (found.resized, found.corner, found.kept) == (resized, corner, (1024, 1024))
    assert whole(*original, 1024) == Geometry(original, evaluated, (0, 0), evaluated)


def test_the_longest_side_is_always_the_size_in_an_evaluation():
    for longest in range(300, 641):
        for shortest in (longest, longest - 1, 2 * longest // 3, longest // 2):
            for original in ((shortest, longest), (longest, shortest)):
                found = whole(*original, 1024)
                assert max(found.resized) == 1024
                assert abs(min(found.resized) - shortest * 1024 / longest) <= 0.5 + 1e-9


@given(sides, sides, draws)
def test_the_crop_lies_inside_and_on_one_diagonal(height, width, draw):
    found = Jitter(1024).geometry(height, width, draw)
    sides, offsets = by_detectron2(height, width, draw.scale, draw.place, 1024)
    assert found.resized == tuple(max(side, 1) for side in sides)
    assert found.corner == offsets
    assert found.kept == tuple(min(side, 1024) for side in found.resized)
    for corner, kept, resized in zip(found.corner, found.kept, found.resized, strict=True):
        assert corner >= 0 and corner + kept <= resized


def test_what_is_drawn_is_decided_by_the_seed_and_spread_over_the_range():
    jitter = Jitter(1024, smallest=0.5, largest=1.5, flip=0.25)
    first = [jitter.draw(np.random.default_rng(seed)) for seed in range(2000)]
    assert first == [jitter.draw(np.random.default_rng(seed)) for seed in range(2000)]
    flips, scales, places = np.array(first).T
    assert flips.mean() == pytest.approx(0.25, abs=0.05)  # five standard deviations
    for values, lo, hi in ((scales, 0.5, 1.5), (places, 0.0, 1.0)):
        assert lo <= values.min() < lo + 0.01 and hi - 0.01 < values.max() < hi
        assert values.mean() == pytest.approx((lo + hi) / 2, abs=0.033)


@given(sides, sides, draws, st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_what_is_mapped_forward_comes_back(height, width, draw, shares):
    found = Jitter(1024).geometry(height, width, draw)
    scale = np.array([width, height, width, height])
    box = np.sort(np.array(shares).reshape(2, 2), axis=0).reshape(1, 4) * scale
    assert np.allclose(found.boxes_back(found.boxes(box)), box, atol=1e-6)
    points = np.array(shares).reshape(2, 2) * scale[:2]
    assert np.allclose(found.points_back(found.points(points)), points, atol=1e-6)


@given(sides, sides, draws)
def test_a_box_is_the_box_of_its_corners(height, width, draw):
    found = Jitter(1024).geometry(height, width, draw)
    box = np.array([0.2, 0.1, 0.7, 0.6]) * [width, height, width, height]
    corners = found.points(box[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2))
    assert np.allclose(found.boxes(box), [*corners.min(0), *corners.max(0)])


@given(sides, sides, draws)
def test_flipping_twice_is_the_identity(height, width, draw):
    found = Jitter(1024).geometry(height, width, draw._replace(scale=0.5, flip=True))
    again = Geometry(found.resized, found.resized, (0, 0), found.resized, flip=True)
    plain = Jitter(1024).geometry(height, width, draw._replace(scale=0.5, flip=False))
    points = np.array([[0.0, 0.0], [0.3 * width, 0.8 * height]])
    assert np.allclose(again.points(found.points(points)), plain.points(points), atol=1e-6)


def test_flipping_the_pixels_twice_gives_them_back(rng):
    image = picture(rng, 37, 52)
    mirror = Geometry((37, 52), (37, 52), (0, 0), (37, 52), flip=True)
    once = mirror.apply(image)
    assert np.array_equal(once.permute(1, 2, 0), np.array(image)[:, ::-1])
    twice = mirror.apply(Image.fromarray(once.permute(1, 2, 0).numpy()))
    assert np.array_equal(twice.permute(1, 2, 0), np.array(image))


@pytest.mark.parametrize("size", SIZES[:4])
@pytest.mark.parametrize("scale", [0.1, 0.6, 1.0, 1.3, 2.0])
def test_cropping_first_equals_resizing_all_and_cropping_then(rng, size, scale):
    image = picture(rng, *size)
    for flip in (False, True):
        found = Jitter(256).geometry(*size, Draw(flip, scale, 0.37))
        pixels = found.apply(image)
        assert tuple(pixels.shape) == (3, *found.kept) and pixels.is_contiguous()
        all_of_it = (ImageOps.mirror(image) if flip else image).resize(
            found.resized[::-1], Image.Resampling.BILINEAR
        )
        (top, left), (height, width) = found.corner, found.kept
        wanted = np.array(all_of_it)[top : top + height, left : left + width]
        assert np.abs(pixels.permute(1, 2, 0).numpy() - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_any_image_gives_pixels(size):
    image = Image.new("RGB", size[::-1], (10, 20, 30))
    for scale in (0.1, 0.37, 0.77, 2.0):  # 0.37 of the last begins at x = -6e-14
        found = Jitter(64).geometry(*size, Draw(True, scale, 1.0))
        assert (found.apply(image).flatten(1).T.numpy() == (10, 20, 30)).all()
    assert tuple(whole(*size, 64).apply(image).shape[1:]) == whole(*size, 64).kept


def test_a_pixel_and_its_box_go_to_the_same_place():
    """A white square of an image lies in the input where its box does."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[30:60, 20:50] = 255
    box = np.array([[20.0, 30, 50, 60]])
    for draw in (Draw(True, 1.7, 0.4), Draw(False, 1.7, 0.4), Draw(True, 0.6, 0.0)):
        found = Jitter(120).geometry(90, 120, draw)
        white = found.apply(Image.fromarray(image))[0].numpy() > 127
        rows, columns = white.any(1).nonzero()[0], white.any(0).nonzero()[0]
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        limits = [*found.kept[::-1]] * 2
        assert np.abs(found.boxes(box)[0].clip(0, limits) - seen).max() <= 1
