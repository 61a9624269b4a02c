"""Regions are read where they are."""

import pytest
import torch
from detectors import kept, maps, random_boxes

from bpt.detection.pooling import Pooler, level_of
from bpt.detection.pyramid import STRIDES

# One region of each map, of which all samples lie between the centres of pixels.
REGIONS = torch.tensor(
    [[40.3, 60.7, 90.1, 100.2], [100, 50, 260.5, 190], [30, 90.5, 400, 333], [25, 20, 490, 489.5]]
)


def ramps(height=512, width=512):
    """Each map says in two channels at which x and y in pixels its values stand."""
    found = []
    for stride in STRIDES:
        y = (torch.arange(-(-height // stride)) + 0.5) * stride
        x = (torch.arange(-(-width // stride)) + 0.5) * stride
        found.append(torch.stack(torch.meshgrid(x, y, indexing="xy"))[None])
    return found


def bin_centres(boxes, size):
    share = (torch.arange(size) + 0.5) / size
    x = boxes[:, None, 0] + share * (boxes[:, None, 2] - boxes[:, None, 0])
    y = boxes[:, None, 1] + share * (boxes[:, None, 3] - boxes[:, None, 1])
    wide = x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)
    return torch.stack(wide, dim=1)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("size", [7, 14])
def test_a_pooled_ramp_is_the_centres_of_the_bins(size, sampling_ratio):
    assert level_of(REGIONS).tolist() == [0, 1, 2, 3]
    pooled = Pooler(ramps(), sampling_ratio=sampling_ratio)([REGIONS], size)
    torch.testing.assert_close(pooled, bin_centres(REGIONS, size), rtol=1e-6, atol=1e-4)


def test_a_region_reads_the_same_however_far_the_padding_goes():
    lower = Pooler(ramps(height=683 // 2))([REGIONS[:3]], 7)  # half of which torchvision would take
    torch.testing.assert_close(lower, Pooler(ramps())([REGIONS[:3]], 7), rtol=0, atol=1e-4)


def test_regions_come_back_in_their_order_each_from_its_image():
    pyramid, boxes = maps(side=512), [REGIONS[[3, 0, 2]], REGIONS[[1, 0]]]
    together = Pooler(pyramid)(boxes, 7)
    alone = [
        Pooler([one[i : i + 1] for one in pyramid])([box[None]], 7)
        for i, of_image in enumerate(boxes)
        for box in of_image
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=0)


def test_a_region_gives_its_gradient_to_its_own_map():
    pyramid = [one.requires_grad_() for one in maps(side=512, images=1)]
    Pooler(pyramid)([REGIONS[[2]]], 7).sum().backward()
    reached = [i for i, one in enumerate(pyramid) if one.grad is not None and one.grad.any()]
    assert reached == [2]


def test_the_map_is_chosen_by_the_side_of_the_region():
    sides = torch.tensor([1.0, 111.9, 112, 223.9, 224, 447.9, 448, 5000])
    boxes = torch.stack([sides * 0, sides * 0, sides / 2, sides * 2], dim=1)
    assert level_of(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_under_autocast_and_from_half_precision_regions_are_read_in_float32():
    pyramid, boxes = [one.bfloat16() for one in maps(side=512)], [random_boxes(9, side=400)] * 2
    with torch.autocast("cpu", torch.bfloat16):
        pooled = Pooler(pyramid)(boxes, 7)
    wanted = Pooler([one.float() for one in pyramid])(boxes, 7)
    torch.testing.assert_close(pooled, wanted, rtol=0, atol=0)


def test_pooling_keeps_no_region_for_the_backward_pass():
    pyramid = [one.requires_grad_() for one in maps(side=512)]
    pool = Pooler(pyramid)
    assert kept(lambda: pool([REGIONS, REGIONS[:2]], 7), 6 * 8 * 7 * 7) == 0


def test_without_regions_there_is_an_empty_result_with_a_gradient():
    pyramid = [one.requires_grad_() for one in maps()]
    pooled = Pooler(pyramid)([torch.zeros(0, 4)] * 2, 14)
    assert pooled.shape == (0, 8, 14, 14)
    pooled.sum().backward()
