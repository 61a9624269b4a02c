"""Training images of a dataset as a stream."""

import shutil

import pytest
import torch
from coco_sets import content, write_images, write_json

import burst
from bpt import dataset_images, eval_transform, open_dataset
from bpt.dataset_images import image_stream
from burst import BurstError, ImageError


@pytest.fixture(scope="module")
def backbone():
    return burst.load_backbone("mae_tiny")


@pytest.fixture(scope="module")
def found(colours):
    return open_dataset("folder", colours)


@pytest.fixture
def broken(colours, tmp_path):
    """The same images, one of which cannot be read."""
    shutil.copytree(colours, tmp_path / "images")
    (tmp_path / "images/train/red/2.png").write_bytes(b"broken")
    return tmp_path / "images"


@pytest.mark.parametrize("count", [5, None])
def test_they_are_those_of_the_folder_that_the_training_split_lies_in(count, colours, backbone):
    mine = dataset_images(backbone, f"folder:{colours}", num_images=count, seed=3)
    theirs = burst.images_for(backbone, colours / "train", num_images=count, seed=3)
    assert mine.count == theirs.count == (count or 24)
    assert all(map(torch.equal, mine, theirs))
    assert [len(batch) for batch in mine.batch_names] == [len(x) for x in theirs.batch_names]


def test_the_record_names_dataset_and_split(colours, backbone):
    record = dataset_images(backbone, "folder", colours, seed=3).record
    assert (record["source"], record.pop("split")) == (f"folder:{colours}", "train")
    assert record["fingerprint"] == open_dataset("folder", colours).digest
    theirs = burst.images_for(backbone, colours, seed=3).record
    assert record.keys() == theirs.keys()
    assert {name for name in record if record[name] != theirs[name]} == {"source", "fingerprint"}


def test_what_is_for_detection_has_training_images_too(tmp_path, backbone):
    write_images(tmp_path, write_json(tmp_path / "train.json", content(count=11)))
    stream = dataset_images(backbone, f"coco:{tmp_path}")  # two of eleven are held out
    assert stream.count == 9 and torch.cat(list(stream)).shape == (9, 3, 64, 64)


def test_a_broken_image_is_left_out_where_that_is_asked_for(broken, backbone):
    stream = dataset_images(backbone, f"folder:{broken}", skip_bad=True)
    assert sum(len(batch) for batch in stream) == 23
    ((_, why),) = stream.skipped
    assert "train/red/2.png" in why
    with pytest.raises(ImageError, match=r"train/red/2\.png.*--skip-bad") as caught:
        list(dataset_images(backbone, f"folder:{broken}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("numbers", [{"num_images": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused_before_anything_is_opened(numbers, backbone, tmp_path):
    with pytest.raises(ImageError, match="must"):
        dataset_images(backbone, f"folder:{tmp_path / 'gone'}", **numbers)


def test_the_stream_holds_each_training_image_once_in_centre_crops(found, backbone):
    stream = image_stream(found.train, backbone, seed=3, digest="x")
    read = torch.cat(list(stream))
    transform = eval_transform(backbone)
    expected = torch.stack([transform(found.train[i][0]) for i in range(len(found.train))])
    order = [int(name) for name in stream.names]
    assert sorted(order) == list(range(len(found.train)))
    assert torch.equal(read, expected[order])


def test_a_broken_image_is_named_without_advice_that_bpt_does_not_have(broken, backbone):
    found = open_dataset("folder", broken)
    with pytest.raises(BurstError, match=r"train/red/2\.png") as caught:
        list(image_stream(found.train, backbone, seed=0, digest="x"))
    assert "skip_bad" not in str(caught.value)
