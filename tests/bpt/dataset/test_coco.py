"""Images with annotated objects: read, counted, turned, and given back as ground truth."""

import json
import pickle

import numpy as np
import pycocotools.mask
import pytest
from coco_sets import (
    annotation,
    as_results,
    average_precision,
    content,
    decoded,
    square,
    write_images,
    write_json,
    zipped,
)
from PIL import Image

from bpt import check_dataset, dataset_info, known_datasets, locate, open_coco, open_dataset
from bpt.dataset import encode_mask
from burst import BurstError, ImageError


@pytest.fixture
def place(tmp_path):
    for kind, made in (("train", content(count=6)), ("val", content(first=101))):
        write_json(tmp_path / f"set/annotations/instances_{kind}.json", made)
        write_images(tmp_path / "set/images" / kind, made)
    return tmp_path / "set"


@pytest.fixture
def found(place):
    return open_coco(f"coco:{place}")


@pytest.fixture
def mini(real_data):
    folder = real_data / "coco-mini"
    if not folder.is_dir():
        pytest.skip("the photographs of COCO are not here")
    return open_coco("coco", folder)


def test_crowds_and_images_without_objects_are_kept_and_never_learned(found):
    last = found.train.objects(5)
    assert last.crowds.tolist() == [True] and len(found.train) == 6
    assert found.train.for_training().ids.tolist() == [1, 2, 3, 4, 5]
    assert not any(found.train.for_training().objects(index).crowds.any() for index in range(5))
    assert found.notes == (
        "train: crowds, for evaluation only: 1",
        "val: crowds, for evaluation only: 1",
        "train: images without an object to learn: 1 of 6",
    )


def test_what_the_rules_leave_out_is_counted_in_the_notes(place):
    made = content(first=101)
    made["annotations"] += [
        annotation(1, 101, []),
        annotation(2, 101, [[1, 2, 3, 4]]),
        annotation(3, 102, [square(1, 2, 3), [1, 2, 3, 4]], area=-9),
    ]
    write_json(place / "annotations/instances_val.json", made)
    found = open_coco(f"coco:{place}")
    assert "val: annotations left out, also of box AP, for want of a mask: 2" in found.notes
    assert "val: polygons dropped, of fewer than 3 corners or of odd length: 2" in found.notes
    assert "val: areas below 0 or beyond 1e10, taken from the masks: 1" in found.notes
    assert found.val.objects(0).ids.tolist() == [1010, 1011]


def test_a_subset_has_the_images_it_names_with_their_objects(found):
    part = found.val.subset([2, 0])
    assert part.ids.tolist() == [103, 101] and len(part) == 2
    assert part.objects(0).ids.tolist() == found.val.objects(2).ids.tolist()
    assert part.image(1).tobytes() == found.val.image(0).tobytes()
    truth = part.ground_truth()
    assert [one["id"] for one in truth["images"]] == [103, 101]
    assert {one["image_id"] for one in truth["annotations"]} == {103, 101}
    assert part.subset([1]).ids.tolist() == [101]


def test_a_split_opens_its_files_anew_in_another_process(place):
    split = open_coco(f"coco:{zipped(place, place.with_suffix('.zip'))}").train
    assert split.image(3).getpixel((0, 0)) == (4, 60, 200)
    other = pickle.loads(pickle.dumps(split))
    assert other.image(3).tobytes() == split.image(3).tobytes()
    assert other.ground_truth() == split.ground_truth()


def test_what_is_handed_out_can_be_written_to(found):
    first = found.train.objects(0)
    for values in (first.boxes, first.labels, first.crowds, first.areas, first.ids):
        values[...] = 0
    for polygon in first.segmentations[0]:
        polygon[...] = 0
    again = found.train.objects(0)
    assert again.boxes.all() and again.labels.all() and again.segmentations[0][0].all()


def test_the_digest_tells_categories_images_boxes_and_labels_and_not_the_place(place, found):
    archive = open_coco(f"coco:{zipped(place, place.with_suffix('.zip'))}")
    assert archive.digest == found.digest
    digests = {found.digest}
    for table, values in (
        ("annotations", {"bbox": [2.0, 3.0, 6.5, 5.0]}),
        ("annotations", {"category_id": 90}),
        ("images", {"file_name": "./000101.png"}),
    ):
        made = content(first=101)
        made[table][0] |= values
        write_json(place / "annotations/instances_val.json", made)
        digests.add(open_coco(f"coco:{place}").digest)
    assert len(digests) == 4


def test_the_digest_of_objects_tells_masks_areas_crowds_and_ids_of_images(place, found):
    archive = open_coco(f"coco:{zipped(place, place.with_suffix('.zip'))}")
    assert archive.objects_digest == found.objects_digest
    digests = {found.objects_digest}
    for values in (
        {"segmentation": [[1.0, 1.0, 5.0, 1.0, 5.0, 6.0]]},
        {"iscrowd": 1},
        {"area": 3.0},
    ):
        made = content(first=101)
        made["annotations"][0] |= values
        write_json(place / "annotations/instances_val.json", made)
        other = open_coco(f"coco:{place}")
        assert other.digest == found.digest
        digests.add(other.objects_digest)
    assert len(digests) == 4


@pytest.mark.parametrize("orientation, turned", [(1, False), (3, False), (6, True), (8, True)])
def test_an_image_is_turned_as_its_exif_says_if_it_was_annotated_so(
    place, found, orientation, turned
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    size = (20, 30) if turned else (30, 20)
    stored = Image.new("RGB", size)
    stored.paste((255, 255, 255), (0, 0, 5, 5))  # a mark at the upper left
    stored.save(place / "images/train/000001.png", exif=exif)
    image = found.train.image(0)
    assert image.size == (30, 20)
    corner = {6: (29, 0), 8: (0, 19)}.get(orientation, (0, 0))
    assert image.getpixel(corner) == (255, 255, 255)


def test_an_image_of_another_size_is_told_with_both(place, found):
    Image.new("RGB", (31, 20)).save(place / "images/train/000002.png")
    with pytest.raises(ImageError, match=r"000002.png.* 20 pixels high and 31 wide.* 20 and 30"):
        found.train.image(1)
    (place / "images/train/000003.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"000003\.png"):
        found.train.image(2)


@pytest.mark.parametrize("module", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ids_of_annotations_that_start_at_0_do_not_cost_precision(tmp_path, kind, module):
    made = content(count=3)
    for number, one in enumerate(made["annotations"]):
        one["id"] = number
    write_images(tmp_path, write_json(tmp_path / "train.json", made))
    write_json(tmp_path / "val.json", made)
    truth = open_coco(f"coco:{tmp_path}").val.ground_truth()
    assert average_precision(truth, as_results(truth, kind), kind, module) == 1
    if module == "pycocotools":  # without it, this is what it would say
        assert average_precision(made, as_results(truth, kind), kind, module) < 1


def test_polygons_become_one_mask_as_coco_joins_them():
    shapes = [square(1, 1, 4), square(3, 3, 4)]
    joined = decoded(encode_mask([np.array(one).reshape(-1, 2) for one in shapes], 12, 12))
    apart = [
        decoded(pycocotools.mask.frPyObjects([one], 12, 12)[0] | {"size": [12, 12]})
        for one in shapes
    ]
    assert np.array_equal(joined, apart[0] | apart[1])


def test_a_check_counts_reads_and_says_what_was_left_out(place, found):
    (place / "images/val/000102.png").write_bytes(b"")
    Image.new("RGB", (9, 9)).save(place / "images/train/000004.png")
    steps = []
    info = dataset_info(f"coco:{place}")
    checked = check_dataset(info, found, progress=lambda *step: steps.append(step))
    assert checked.sizes == (6, 4, 0) and checked.classes == 2 and checked.mismatches == ()
    assert len(checked.unreadable) == 2 and not checked.good
    assert "000004.png" in checked.unreadable[0] and "000102.png" in checked.unreadable[1]
    assert checked.notes == found.notes and steps[-1] == (10, 10)


def test_cocos_own_numbers_are_those_published(place, found):
    checked = check_dataset(dataset_info("coco"), found)
    assert checked.mismatches == (
        "6 train images instead of 118,287",
        "4 val images instead of 5,000",
        "2 classes instead of 80",
    )


def test_coco_is_known_for_detection_and_refused_for_classification(tmp_path):
    (info,) = (one for one in known_datasets() if one.task == "detection")
    assert info is dataset_info("coco") and info.classes == 80
    assert locate(info, tmp_path)[0] is None
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/annotations_trainval2017.zip").write_bytes(b"")
    assert locate(info, tmp_path)[0] == tmp_path / "coco"
    for name in ("coco", "coco:mine"):
        with pytest.raises(BurstError, match="for detection.*open_coco"):
            open_dataset(name)


def test_the_photographs_of_coco_are_counted(mini):
    assert (len(mini.train), len(mini.val), len(mini.categories)) == (80, 79, 80)
    assert mini.categories.ids[0] == 1 and mini.categories.ids[-1] == 90
    for split, objects, crowds in ((mini.train, 739, 8), (mini.val, 624, 5)):
        every = [split.objects(index) for index in range(len(split))]
        assert sum(map(len, every)) == objects
        assert sum(int(one.crowds.sum()) for one in every) == crowds
        assert split.image(7).size == tuple(split.sizes[7][::-1])


@pytest.mark.parametrize("module", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_ground_truth_of_photographs_found_again_has_a_precision_of_1(mini, kind, module):
    truth = mini.val.ground_truth()
    assert average_precision(truth, as_results(truth, kind), kind, module) == 1


def test_the_ground_truth_of_photographs_is_that_of_the_file_to_the_last_bit(mini, real_data):
    file = real_data / "coco-mini/annotations/instances_val2017.json"
    theirs = {one["id"]: one for one in json.loads(file.read_text())["annotations"]}
    for mine in mini.val.ground_truth()["annotations"]:
        one = theirs.pop(mine["id"])
        if isinstance(one["segmentation"], dict):
            height, width = one["segmentation"]["size"]
            packed = pycocotools.mask.frPyObjects(one["segmentation"], height, width)
            one["segmentation"] = packed | {"counts": packed["counts"].decode()}
        assert mine == {name: one[name] for name in mine}
    assert not theirs
