"""What was found comes back into the image where it was, in COCO's form."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from annotated import coco_folder

from bpt.dataset.coco import open_coco
from bpt.dataset.coco_annotations import coco_masks
from bpt.detection.evaluate import average_precision
from bpt.detection.frames import mask_targets, targets_of
from bpt.detection.jitter import Draw, Geometry, Jitter, whole
from bpt.detection.objects import Detections
from bpt.detection.results import coco_results, paste, save_results
from burst import OutputError


def detections(boxes, masks=None, labels=None, scores=None):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    return Detections(
        boxes,
        torch.linspace(1, 0.5, count) if scores is None else torch.tensor(scores),
        torch.ones(count, dtype=torch.int64) if labels is None else torch.tensor(labels),
        torch.ones(count, 28, 28) if masks is None else masks,
    )


def dense(mask, box, height, width):
    """The mask at each pixel's centre, bilinear between cells' centres, 0 around: a plain loop."""
    padded, m = np.pad(mask.astype(np.float64), 1), len(mask)
    found = np.zeros((height, width))
    x0, y0, x1, y1 = box
    for row in range(height):
        for column in range(width):
            v = (row + 0.5 - y0) / (y1 - y0) * m + 0.5
            u = (column + 0.5 - x0) / (x1 - x0) * m + 0.5
            if 0 <= u < m + 1 and 0 <= v < m + 1:
                top, left = int(v), int(u)
                down, right = v - top, u - left
                part = padded[top : top + 2, left : left + 2]
                found[row, column] = np.array([1 - down, down]) @ part @ [1 - right, right]
    return found


BOXES = [
    (3.3, 2.7, 30.9, 20.2),
    (0.0, 0.0, 40.0, 25.0),
    (-7.5, 10.0, 18.0, 60.0),
    (12.4, 7.1, 13.2, 7.9),
    (60.0, 3.0, 70.0, 9.0),
    (35.0, -80.0, 36.5, 90.0),
]


@pytest.mark.parametrize("box", BOXES)
def test_a_mask_is_pasted_as_a_plain_loop_would(rng, box):
    mask = rng.uniform(0, 1, (28, 28)).astype(np.float32)
    (pasted,) = paste(torch.from_numpy(mask)[None], torch.tensor([box]), 25, 40)
    wanted = dense(mask, np.float32(box), 25, 40)
    clear = np.abs(wanted - 0.5) > 1e-4
    assert pasted.dtype == np.uint8 and pasted.flags.f_contiguous
    assert clear.mean() > 0.99
    assert np.array_equal(pasted[clear], (wanted >= 0.5)[clear])


@pytest.mark.parametrize("draw", [None, Draw(True, 1.4, 0.2), Draw(False, 0.7, 0.0)])
def test_what_is_found_is_told_in_pixels_and_ids_of_the_image(draw):
    geometry = whole(50, 80, 160) if draw is None else Jitter(160).geometry(50, 80, draw)
    box = np.array([[20.0, 10.0, 50.0, 40.0]])
    found = detections(geometry.boxes(box), labels=[2], scores=[0.75])
    (one,) = coco_results(found, geometry, 42, [3, 7, 90])
    assert (one["image_id"], one["category_id"], one["score"]) == (42, 7, 0.75)
    assert np.allclose(one["bbox"], [20, 10, 30, 30], atol=1e-4)
    mask = coco_masks().decode(one["segmentation"])
    assert mask.shape == (50, 80) and mask[10:40, 20:50].all() and mask.sum() == 900


def test_a_box_is_cut_at_the_image_and_what_is_empty_then_is_left_out():
    geometry = Geometry((50, 80), (100, 160), (0, 0), (100, 160))
    boxes = [[-10, 20, 40, 60], [120, 80, 200, 130], [160, 0, 180, 20], [30, 30, 30, 40]]
    found = coco_results(detections(boxes), geometry, 1, [1])
    assert [one["bbox"] for one in found] == [[0, 10, 20, 20], [60, 40, 20, 10]]
    assert [int(coco_masks().area(one["segmentation"])) for one in found] == [400, 200]


def test_nothing_found_gives_no_results():
    assert coco_results(detections([]), whole(50, 80, 64), 1, [1]) == []


def test_results_are_saved_as_one_list_that_is_read_back_alike(tmp_path, rng):
    masks = torch.from_numpy(rng.uniform(0, 1, (3, 28, 28)).astype(np.float32))
    found = coco_results(detections([[1, 2, 30, 40]] * 3, masks), whole(50, 80, 64), 1, [5])
    save_results(tmp_path / "new" / "detections.json", found)
    assert json.loads((tmp_path / "new" / "detections.json").read_text()) == found


def test_a_full_disk_leaves_the_results_of_before(tmp_path, short_files):
    path = tmp_path / "detections.json"
    save_results(path, [])
    with pytest.raises(OutputError, match="cannot write"):
        save_results(path, [{"image_id": number, "score": 0.5} for number in range(10_000)])
    assert path.read_text() == "[]" and list(tmp_path.iterdir()) == [path]


def test_the_masks_of_a_large_picture_take_the_memory_of_a_few():
    found = detections([[3.0, 3.0, 900.0, 1000.0]] * 15)
    geometry = whole(2048, 2048, 1024)
    coco_results(detections([[3.0, 3.0, 9.0, 10.0]]), geometry, 1, [1])  # imports
    tracemalloc.start()
    try:
        results = coco_results(found, geometry, 1, [1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(results) == 15
    assert peak < 5 * 2048**2  # bytes; NumPy's arrays are traced, 15 masks would be 63 MB


def reduced(split, category_ids, size):
    """What a head would give that finds each box and its 28 x 28 cells exactly."""
    results = []
    for place, (height, width) in enumerate(split.sizes.tolist()):
        geometry = whole(height, width, size)
        targets = targets_of(split.objects(place), geometry)
        masks = mask_targets(targets, torch.arange(len(targets)), targets.boxes)
        found = Detections(targets.boxes, torch.ones(len(targets)), targets.labels, masks)
        results += coco_results(found, geometry, int(split.ids[place]), category_ids)
    return results


def oracle(opened, split, size):
    results = reduced(split, opened.categories.ids, size)
    return average_precision(split.ground_truth(), results).values


def test_masks_of_28_cells_come_back_nearly_whole_from_synthetic_objects(tmp_path):
    opened = open_coco(f"coco:{coco_folder(tmp_path / 'set', images=12)}")
    found = oracle(opened, opened.train, 256)
    assert found["box_AP"] == pytest.approx(100, abs=1e-4)
    assert found["mask_AP"] >= 99 and found["mask_APs"] >= 99


def test_masks_of_28_cells_come_back_nearly_whole_from_photographs(real_data):
    """Unaligned targets pasted at whole pixels, as torchvision does, give 86.9, of small 71.0."""
    opened = open_coco(f"coco:{real_data / 'coco-mini'}")
    found = oracle(opened, opened.val, 1024)
    assert found["box_AP"] == pytest.approx(100, abs=1e-4)
    assert found["mask_AP"] >= 99 and found["mask_APs"] >= 99
