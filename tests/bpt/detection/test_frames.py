"""A mask in the frame of its box says what a dense mask would, for any region."""

import tracemalloc

import numpy as np
import pytest
import torch
from annotated import objects, rectangle, star
from matplotlib.path import Path

from bpt.dataset.coco_annotations import coco_masks, encode_mask
from bpt.detection.frames import mask_targets, targets_of
from bpt.detection.jitter import Geometry, Jitter
from bpt.detection.objects import FRAME, Targets


def targets(boxes, masks):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Targets(boxes, torch.ones(len(boxes), dtype=torch.int64), torch.as_tensor(masks))


def blob(rng):
    """A frame of soft edges: an ellipse with a hole."""
    y, x = (np.indices((FRAME, FRAME)) + 0.5) / FRAME - 0.5
    radius = np.hypot(x / rng.uniform(0.3, 0.6), y / rng.uniform(0.3, 0.6))
    return np.rint(255 * np.clip(8 * (1 - radius) * (radius - 0.3) * 4, 0, 1)).astype(np.uint8)


def bilinear(dense, y, x):
    """The value between the centres of four pixels; nothing lies outside."""
    padded = np.pad(dense, 1)
    y, x = np.clip(y + 0.5, 0, len(padded) - 1.001), np.clip(x + 0.5, 0, len(padded[0]) - 1.001)
    top, left = int(y), int(x)
    part, v, u = padded[top : top + 2, left : left + 2], y - top, x - left
    return (1 - v) * ((1 - u) * part[0, 0] + u * part[0, 1]) + v * (
        (1 - u) * part[1, 0] + u * part[1, 1]
    )


def cells(dense, region, size):
    """The mean of 4 x 4 samples in each cell of a region of a dense mask."""
    x0, y0, x1, y1 = region
    points = (np.arange(4 * size) + 0.5) / (4 * size)
    values = [[bilinear(dense, y0 + v * (y1 - y0), x0 + u * (x1 - x0)) for u in points]
              for v in points]  # fmt: skip
    return np.array(values).reshape(size, 4, size, 4).mean((1, 3))


REGIONS = [
    (0.3, 0.1, 100.2, 115.7),
    (30.25, -20.5, 150.0, 60.0),
    (50, 50, 58, 90),
    (90, 90, 200, 130),
]


@pytest.mark.parametrize("region", REGIONS)
def test_the_target_of_a_region_is_that_of_the_dense_mask(rng, region):
    frame, size = blob(rng), 7
    # A frame pixel is 2 pixels wide and 1/2 high, so the dense mask is in frame pixels.
    scale = np.array([2.0, 0.5, 2.0, 0.5])
    place = targets(np.array([0, 0, FRAME, FRAME]) * scale + 5, frame[None])
    wanted = cells(frame / 255.0, region, size)
    regions = torch.tensor(np.array([region]) * scale + 5, dtype=torch.float32)
    found = mask_targets(place, torch.tensor([0]), regions, size=size)[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_the_target_of_the_box_itself_is_how_much_of_each_cell_is_covered(rng):
    frames = np.stack([blob(rng) for _ in range(3)])
    boxes = [[3, 4, 50, 90], [0, 0, 1, 1], [10.5, 7.25, 900, 60]]
    found = mask_targets(targets(boxes, frames), torch.arange(3), torch.tensor(boxes))
    covered = frames.reshape(3, 28, 4, 28, 4).mean((2, 4)) / 255
    np.testing.assert_allclose(found.numpy(), covered, atol=2e-4)


def test_nothing_is_outside_the_box_of_a_full_mask():
    full = targets([[10, 20, 30, 60]], np.full((1, FRAME, FRAME), 255, np.uint8))
    regions = torch.tensor([[10.0, 20, 30, 60], [-10, -20, 50, 100], [30, 20, 50, 60]])
    found = mask_targets(full, torch.zeros(3, dtype=torch.int64), regions)
    # 20 of 60 px is the middle third, 9 1/3 to 18 2/3; 40 of 120 the same.
    assert (found[0] == 1).all() and not found[2].any()
    assert (found[1, 10:18, 10:18] == 1).all()
    outside = torch.ones(28, 28, dtype=torch.bool)
    outside[9:19, 9:19] = False
    assert not found[1][outside].any()
    assert float(found[1].sum()) == pytest.approx((28 / 3) ** 2, rel=0.06)


def test_the_first_half_pixel_outside_the_box_is_less_than_half_and_falls_to_nothing():
    full = targets([[0, 0, FRAME, FRAME]], np.full((1, FRAME, FRAME), 255, np.uint8))
    regions = torch.tensor([[-0.4, 10.0, -0.1, 20.0], [10.0, 112.1, 20.0, 112.4]])
    found = mask_targets(full, torch.zeros(2, dtype=torch.int64), regions)
    assert found.max() < 0.5 and found.min() > 0
    beyond = torch.tensor([[-0.9, 10.0, -0.51, 20.0]])
    assert not mask_targets(full, torch.zeros(1, dtype=torch.int64), beyond).any()


def test_half_precision_around_changes_no_target(rng):
    frames = targets([[700, 4, 950, 90]], blob(rng)[None])
    regions = torch.tensor([[701.3, 3.2, 948.1, 88.0]])
    plain = mask_targets(frames, torch.tensor([0]), regions)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mask_targets(frames, torch.tensor([0]), regions), plain)


def test_no_regions_have_no_targets():
    none = targets(np.empty((0, 4)), np.empty((0, FRAME, FRAME), np.uint8))
    found = mask_targets(none, torch.empty(0, dtype=torch.int64), torch.empty(0, 4))
    assert found.shape == (0, 28, 28) and found.dtype == torch.float32


def placed(seed, size=(300, 400), canvas=256):
    """A draw of the jitter for an image of this size."""
    jitter = Jitter(canvas)
    return jitter.geometry(*size, jitter.draw(np.random.default_rng(seed)))


def canvas_mask(polygon, geometry):
    """What the input shows of a polygon, dense: drawn on the whole image resized, then cropped."""
    resized = Geometry(geometry.original, geometry.resized, (0, 0), geometry.resized, geometry.flip)
    whole = coco_masks().decode(encode_mask([resized.points(polygon)], *geometry.resized))
    (top, left), (height, width) = geometry.corner, geometry.kept
    return whole[top : top + height, left : left + width]


@pytest.mark.parametrize("seed", range(12))
def test_a_cropped_object_has_the_box_of_its_mask_on_the_canvas(rng, seed):
    geometry, cut = placed(seed), 0
    stars = [star(rng, rng.uniform((0, 0), (400, 300)), 60) for _ in range(8)]
    found = targets_of(objects([[one] for one in stars]), geometry)
    boxes = dict(zip(found.labels.tolist(), found.boxes.numpy(), strict=True))
    for label, polygon in enumerate(stars, 1):
        mask = canvas_mask(polygon, geometry)
        x, y, w, h = coco_masks().toBbox(coco_masks().encode(np.asfortranarray(mask)))
        if label in boxes:
            assert np.abs(boxes[label] - [x, y, x + w, y + h]).max() <= 1
        else:
            assert w <= 1 or h <= 1
        cut += mask.any() and np.abs(geometry.points(polygon) - 128).max() > 128
    assert cut or max(geometry.resized) < 256


def test_the_box_of_an_object_that_is_not_cut_is_exact(rng):
    geometry = placed(3)
    spike = [[80.2, 20.1], [80.4, 10.3], [80.6, 20.1]]  # no pixel's centre is in it
    polygon = geometry.points_back(np.concatenate([star(rng, (50.3, 60.7), 20), spike]))
    found = targets_of(objects([[polygon]]), geometry)
    bounds = geometry.points(polygon)
    assert np.allclose(found.boxes[0], [*bounds.min(0), *bounds.max(0)], atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_frame_shows_what_is_inside_the_polygons(rng, seed):
    geometry = placed(seed)
    parts = [star(rng, (200, 150), 90), star(rng, (90, 90), 30)]  # one object
    found = targets_of(objects([parts]), geometry)
    x0, y0, x1, y1 = found.boxes[0].double().tolist()
    centres = (np.indices((FRAME, FRAME))[::-1] + 0.5).reshape(2, -1).T / FRAME
    points = geometry.points_back(centres * [x1 - x0, y1 - y0] + [x0, y0])
    inside = np.any([Path(part).contains_points(points) for part in parts], axis=0)
    frame = found.masks[0].numpy() > 127
    assert (frame.ravel() != inside).mean() < 0.01  # corners are rounded to a fifth of a pixel


@pytest.mark.parametrize("flip", [False, True])
def test_the_frame_of_a_mask_is_its_pixels(rng, flip):
    pixels = np.zeros((60, 50), np.uint8)
    pixels[11:25, 6:34] = rng.integers(0, 2, (14, 28))
    pixels[11, 6] = pixels[24, 33] = 1  # the box is 28 x 14 pixels, so cells are whole parts
    mask = coco_masks().encode(np.asfortranarray(pixels))
    geometry = Geometry((60, 50), (120, 150), (0, 0), (120, 150), flip)
    found = targets_of(objects([mask]), geometry)
    columns = (50 - 34, 50 - 6) if flip else (6, 34)
    assert found.boxes.tolist() == [[3.0 * columns[0], 22.0, 3.0 * columns[1], 50.0]]
    wanted = pixels[11:25, 6:34]
    wanted = np.kron(wanted[:, ::-1] if flip else wanted, np.full((8, 4), 255))
    assert np.array_equal(found.masks[0], wanted)


@pytest.mark.parametrize("seed", range(12))
def test_a_cropped_mask_keeps_the_area_that_is_seen(rng, seed):
    geometry = placed(seed)
    pixels = coco_masks().decode(encode_mask([star(rng, (200, 150), 120)], 300, 400))
    found = targets_of(objects([coco_masks().encode(pixels)]), geometry)
    edges = [np.arange(side + 1) * new / side - corner
             for side, new, corner in zip((300, 400), geometry.resized, geometry.corner,
                                          strict=True)]  # fmt: skip
    high, wide = (
        np.diff(one.clip(0, kept)) for one, kept in zip(edges, geometry.kept, strict=True)
    )
    seen = high @ (pixels[:, ::-1] if geometry.flip else pixels) @ wide
    extent = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1)
    area = (found.masks.double().mean((1, 2)) / 255 * extent).sum()
    assert float(area) == pytest.approx(seen, rel=2e-3)
    dense = (high > 0)[:, None] & (wide > 0) & (pixels[:, ::-1] if geometry.flip else pixels) > 0
    (rows,), (columns,) = dense.any(1).nonzero(), dense.any(0).nonzero()
    if len(rows):
        y, x = (one.clip(0, kept) for one, kept in zip(edges, geometry.kept, strict=True))
        bounds = [x[columns[0]], y[rows[0]], x[columns[-1] + 1], y[rows[-1] + 1]]
        assert np.allclose(found.boxes[0], bounds, atol=1e-4)


def test_polygons_and_the_mask_of_the_same_object_give_nearly_the_same(rng):
    polygon, geometry = star(rng, (180, 150), 100), placed(5)
    drawn = targets_of(objects([[polygon], encode_mask([polygon], 300, 400)]), geometry)
    assert (drawn.boxes[0] - drawn.boxes[1]).abs().max() < 1.5
    assert (drawn.masks[0].float() - drawn.masks[1]).abs().mean() < 0.02 * 255


def test_a_sliver_of_something_large_is_drawn_fast_and_whole():
    geometry = Geometry((2048, 2048), (2048, 2048), (1022, 0), (1024, 1024))
    polygon = rectangle(0, 0, 2048, 1024)  # 2 of its rows are left
    found = targets_of(objects([[polygon]]), geometry)
    assert found.boxes.tolist() == [[0, 0, 1024, 2]]
    assert (found.masks == 255).all()


def test_less_than_a_pixel_and_what_lies_outside_is_left_out():
    geometry = Geometry((100, 100), (50, 50), (10, 0), (40, 50))
    one_pixel = rectangle(40, 40, 42, 42)
    left_out = [
        rectangle(60, 60, 61.9, 70),  # 0.95 px wide
        rectangle(60, 60, 70, 61.9),
        rectangle(10, 0, 30, 20),  # its lower side is the border
        rectangle(10, 0, 30, 21),  # half a row is left
        rectangle(200, 200, 230, 230),
        np.array([[90.0, 8], [120, 8], [120, 40]]),  # outside, and its box is not
    ]
    dense = np.zeros((100, 100), np.uint8, order="F")
    dense[40:42, 40:41] = 1
    thin = coco_masks().encode(dense)
    dense[40:42, 40:42] = 1
    found = targets_of(
        objects([[one] for one in left_out] + [thin, [one_pixel], coco_masks().encode(dense)]),
        geometry,
    )
    assert found.labels.tolist() == [8, 9]
    assert found.boxes.tolist() == [[20, 10, 21, 11]] * 2
    assert (found.masks == 255).all()


def test_crowds_are_not_learned():
    geometry = Geometry((100, 100), (100, 100), (0, 0), (100, 100))
    parts = [[rectangle(10, 10, 30, 40)], encode_mask([rectangle(10, 10, 90, 90)], 100, 100)]
    assert targets_of(objects(parts, labels=[5, 6], crowds=[0, 1]), geometry).labels.tolist() == [5]


def test_an_image_without_objects_has_empty_targets():
    found = targets_of(objects([]), placed(0))
    assert found.boxes.shape == (0, 4) and found.boxes.dtype == torch.float32
    assert found.labels.shape == (0,) and found.labels.dtype == torch.int64
    assert found.masks.shape == (0, FRAME, FRAME) and found.masks.dtype == torch.uint8


def test_the_objects_of_a_large_picture_take_the_memory_of_one(rng):
    geometry = placed(4, size=(2048, 2048), canvas=1024)
    mask = encode_mask([star(rng, (1024, 1024), 1000)], 2048, 2048)
    stars = [[star(rng, (1024, 1024), 900)] for _ in range(20)]
    tracemalloc.start()
    try:
        found = targets_of(objects([*stars, *[mask] * 20]), geometry)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 40
    assert peak < 40e6  # 40 dense masks would be 168 MB
