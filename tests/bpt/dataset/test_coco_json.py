"""A JSON in COCO's format: what is taken of it, what is left out, and what is an error."""

import copy
import io
import json
import sys
from contextlib import contextmanager

import numpy as np
import pycocotools.mask
import pytest
from coco_sets import annotation, content, decoded, runs, square
from hypothesis import given, settings
from hypothesis import strategies as st

from bpt.dataset import CocoSplit, coco_json, open_coco
from bpt.dataset.coco_annotations import mask_runs
from bpt.dataset.coco_json import parse_annotations, read_annotations
from burst import BurstError, ImageError


def parsed(made):
    return parse_annotations("set.json", copy.deepcopy(made))


def split_of(made):
    found = parsed(made)
    places = np.arange(len(found.image_ids))
    names = tuple(found.file_names)
    return CocoSplit(found.image_ids, names, found.image_sizes, found, places, opener=None)


def with_annotations(*annotations, images=None):
    made = content()
    return made | {"annotations": list(annotations), "images": images or made["images"]}


@st.composite
def masks(draw, height, width):
    pixels = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    listed = runs(np.array(pixels).reshape(height, width))
    packed = pycocotools.mask.frPyObjects(listed, height, width)
    return draw(st.sampled_from([listed, packed | {"counts": packed["counts"].decode()}]))


@st.composite
def polygons(draw):
    decimals = draw(st.sampled_from([0, 2, 2, 2, 5]))  # more than two in some files
    number = st.floats(-5, 700).map(lambda value: round(value, decimals))
    corners = st.integers(3, 6).flatmap(lambda n: st.lists(number, min_size=2 * n, max_size=2 * n))
    return draw(st.lists(corners, min_size=1, max_size=3))


@st.composite
def contents(draw):
    ids = draw(st.lists(st.integers(0, 10**12), min_size=1, max_size=4, unique=True))
    side = st.integers(1, 8)
    images = [
        {"id": one, "file_name": f"{one} ü.png", "height": draw(side), "width": draw(side)}
        for one in ids
    ]
    kinds = draw(st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True))
    annotations = []
    count = draw(st.integers(1, 6))
    numbers = draw(st.lists(st.integers(1, 2**40), min_size=count, max_size=count, unique=True))
    for number in numbers:
        image = draw(st.sampled_from(images))
        mask = draw(st.one_of(polygons(), masks(image["height"], image["width"])))
        more = {"iscrowd": draw(st.integers(0, 1)), "area": draw(st.floats(0, 1e6))}
        box = draw(st.lists(st.floats(0, 700), min_size=4, max_size=4))
        annotations.append(
            annotation(
                number, image["id"], mask, category=draw(st.sampled_from(kinds)), bbox=box, **more
            )
        )
    categories = [{"id": kind, "name": f"kind {kind}"} for kind in kinds]
    return {"images": images, "annotations": annotations, "categories": categories}


@given(contents())
@settings(max_examples=60)
def test_the_ground_truth_is_what_the_file_says(made):
    truth = split_of(made).ground_truth()
    for name in ("images", "categories"):
        assert truth[name] == sorted(made[name], key=lambda one: one["id"])
    found = {one["id"]: one for one in truth["annotations"]}
    assert len(found) == len(truth["annotations"]) == len(made["annotations"])
    for one in made["annotations"]:
        mine = found[one["id"]]
        for name in ("image_id", "category_id", "bbox", "area", "iscrowd"):
            assert mine[name] == one[name]
        if isinstance(one["segmentation"], list):
            assert mine["segmentation"] == one["segmentation"]
        else:
            assert np.array_equal(decoded(mine["segmentation"]), decoded(one["segmentation"]))


@given(contents())
@settings(max_examples=30)
def test_an_image_has_its_own_objects_in_the_order_of_the_file(made):
    split = split_of(made)
    labels = {
        kind: label for label, kind in enumerate(sorted(c["id"] for c in made["categories"]), 1)
    }
    for index, image in enumerate(sorted(made["images"], key=lambda one: one["id"])):
        own = [one for one in made["annotations"] if one["image_id"] == image["id"]]
        found = split.objects(index)
        assert found.ids.tolist() == [one["id"] for one in own]
        assert found.labels.tolist() == [labels[one["category_id"]] for one in own]
        assert found.crowds.tolist() == [bool(one["iscrowd"]) for one in own]
        for box, mask, one in zip(found.boxes, found.segmentations, own, strict=True):
            x, y, width, height = one["bbox"]
            assert np.allclose(box, [x, y, x + width, y + height], rtol=1e-6)
            assert isinstance(mask, dict) == isinstance(one["segmentation"], dict)
        assert found.boxes.shape == (len(own), 4) and found.boxes.dtype == np.float32


def test_categories_of_one_name_are_told_apart_by_their_ids():
    made = with_annotations(annotation(1, 1, [square(1, 1, 3)]))
    made["categories"] = [
        {"id": 90, "name": "cat"},
        {"id": 7, "name": "cat"},
        {"id": 8, "name": "dog"},
    ]
    made["annotations"][0]["category_id"] = 7
    listed = [(one["id"], one["name"]) for one in split_of(made).ground_truth()["categories"]]
    assert listed == [(7, "cat (id 7)"), (8, "dog"), (90, "cat (id 90)")]


def test_two_decimals_are_kept_in_half_the_memory_and_more_of_them_in_full():
    made = with_annotations(annotation(1, 1, [[0.07, 612.33, 0.7, 0.29, 9, 639.99]]))
    assert parsed(made).numbers.dtype == np.float32
    made["annotations"].append(annotation(2, 1, [square(0.123456789, 1, 2)]))
    assert parsed(made).numbers.dtype == np.float64


def test_broken_polygons_are_dropped_and_counted():
    good = square(1, 1, 3)
    made = with_annotations(annotation(1, 1, [[1, 1, 2, 2], good, [1, 2, 3, 4, 5, 6, 7]]))
    found = parsed(made)
    assert int(found.broken_polygons) == 2 and int(found.without_mask) == 0
    (mask,) = found.objects(0).segmentations
    assert [polygon.ravel().tolist() for polygon in mask] == [good]


@pytest.mark.parametrize("nothing", [[], None, [[]], [[1, 2, 3, 4]], {}])
def test_an_annotation_without_a_mask_is_left_out_and_counted(nothing):
    made = with_annotations(annotation(1, 1, nothing), annotation(2, 1, [square(1, 1, 3)]))
    found = parsed(made)
    assert found.ids.tolist() == [2] and int(found.without_mask) == 1
    del made["annotations"][0]["segmentation"]
    assert parsed(made).ids.tolist() == [2]


def test_a_missing_box_and_area_are_those_of_the_mask_and_a_missing_iscrowd_is_no():
    one = annotation(1, 1, [square(4, 5, 3)])
    del one["bbox"], one["area"], one["iscrowd"]
    mask = np.zeros((20, 30), bool)
    mask[2:12, 3:8] = True
    other = annotation(2, 1, runs(mask), bbox=None, area=None)
    found = parsed(with_annotations(one, other))
    assert found.bounds.tolist() == [[4, 5, 3, 3], [3, 2, 5, 10]]
    assert found.areas.tolist() == [9, 50] and not found.crowds.any()


@pytest.mark.parametrize("area", [-9.0, 1e11])
def test_an_area_that_evaluators_leave_out_is_that_of_the_mask_and_counted(area):
    made = with_annotations(
        annotation(1, 1, [square(4, 5, 3)], area=area), annotation(2, 1, [square(4, 5, 3)], area=8)
    )
    found = parsed(made)
    assert found.areas.tolist() == [9, 8] and int(found.odd_areas) == 1


def test_ids_may_be_all_that_64_bits_hold():
    made = with_annotations(annotation(-(2**63), 2**63 - 1, [square(1, 1, 3)]))
    made["images"][0]["id"] = 2**63 - 1
    found = parsed(made)
    assert found.ids.tolist() == [-(2**63)] and found.image_ids[-1] == 2**63 - 1


def test_boxes_of_one_pixel_and_of_none_are_kept():
    shape = [square(1, 1, 1)]
    made = with_annotations(
        annotation(1, 1, shape, bbox=[1, 1, 1, 1]), annotation(2, 1, shape, bbox=[1.5, 1, 1.03, 0])
    )
    assert parsed(made).bounds.tolist() == [[1, 1, 1, 1], [1.5, 1, 1.03, 0]]


def change(table, place, **values):
    def changed(made):
        made[table][place] |= values

    return changed


def without(table, place, key):
    return lambda made: made[table][place].pop(key)


WRONG = {
    "image_twice": (change("images", 1, id=1), "image id 1 occurs twice"),
    "annotation_twice": (change("annotations", 1, id=10), "annotation id 10 occurs twice"),
    "category_twice": (change("categories", 1, id=90), "category id 90 occurs twice"),
    "no_image": (change("annotations", 0, image_id=77), "annotation 10 is of image 77, which is"),
    "no_category": (
        change("annotations", 0, category_id=4),
        "annotation 10 is of category 4, which",
    ),
    "text_id": (change("annotations", 0, id="10"), "has '10' as id; expected a whole number"),
    "no_id": (without("annotations", 0, "id"), "has no id"),
    "huge_id": (
        change("annotations", 0, id=2**63),
        "as id; expected a whole number from -9223372036854775808 to 9223372036854775807$",
    ),
    "no_image_id": (without("annotations", 0, "image_id"), "annotation 10 has no image_id"),
    "no_name": (without("categories", 0, "name"), "category 90 has no name"),
    "no_file_name": (without("images", 0, "file_name"), "image 1 has no file_name"),
    "no_height": (without("images", 0, "height"), "image 1 has no height"),
    "no_width": (change("images", 0, width=0), "image 1 has 0 as width; .* from 1 to 4294967296"),
    "too_wide": (
        change("images", 0, height=2**16, width=2**16),
        "image 1 has 65536 x 65536 pixels; expected fewer than 4294967296",
    ),
    "bad_box": (change("annotations", 0, bbox=[1, 2, 3]), "annotation 10: bbox is"),
    "text_box": (change("annotations", 0, bbox=["a"] * 4), "annotation 10: bbox is"),
    "negative": (change("annotations", 0, bbox=[1, 2, -3, 4]), "negative width or height"),
    "nan_area": (change("annotations", 0, area=float("nan")), "annotation 10: area is"),
    "text_crowd": (change("annotations", 0, iscrowd="0"), "10: iscrowd is '0'; expected 0 or 1"),
    "far": (change("annotations", 0, segmentation=[square(1, 2, 1e9)]), "numbers of pixels"),
    "text": (change("annotations", 0, segmentation="x"), "expected polygons or an RLE"),
    "flat": (change("annotations", 0, segmentation=square(1, 2, 3)), "expected polygons or an RLE"),
    "other_size": (
        change("annotations", 0, segmentation={"size": [30, 20], "counts": "0"}),
        r"mask is of \[30, 20\] .*, and its image of \[20, 30\]",
    ),
    "short_runs": (
        change("annotations", 0, segmentation={"size": [20, 30], "counts": [3, 4]}),
        "do not add up",
    ),
    "damaged_runs": (
        change("annotations", 0, segmentation={"size": [20, 30], "counts": "zz~"}),
        "damaged, or do not add up",
    ),
    "no_runs": (change("annotations", 0, segmentation={"size": [20, 30]}), "damaged, or do not"),
    "no_images": (lambda made: made["images"].clear(), "has no images"),
    "no_table": (lambda made: made.pop("categories"), "no list of categories"),
    "no_mask": (
        lambda made: [one.pop("segmentation") for one in made["annotations"]],
        "no annotation has a segmentation, and these detectors learn masks",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_contradicts_itself_is_one_line(name):
    made = content()
    spoil, says = WRONG[name]
    spoil(made)
    with pytest.raises(ImageError, match=says) as caught:
        parse_annotations("set.json", made)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("set.json")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "no JSON"),
        ("\x00\xff", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('[{"image_id": 1, "score": 0.5}]', "a list, as of results; expected an object with"),
        ("3", "holds no object"),
        ('{"annotations": []}', "no list of images; is it of object instances"),
    ],
)
def test_a_file_of_another_kind_is_told(text, says):
    with pytest.raises(ImageError, match=says):
        read_annotations("set.json", opener(text.encode("latin-1")))


def opener(data):
    @contextmanager
    def opened():
        yield io.BytesIO(data)

    return opened


@given(masks(5, 7))
def test_the_runs_of_a_compressed_mask_are_those_that_were_packed(mask):
    listed = mask if isinstance(mask["counts"], list) else runs(decoded(mask))
    packed = pycocotools.mask.frPyObjects(listed, 5, 7)["counts"]
    assert mask_runs(packed) == listed["counts"]


@pytest.fixture
def data():
    return json.dumps(content()).encode()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "coco"


def arrays(found):
    return {name: getattr(found, name) for name in found.__dataclass_fields__}


def alike(one, other):
    one, other = arrays(one), arrays(other)
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_a_json_is_parsed_once(data, cache, monkeypatch):
    said = []
    monkeypatch.setattr(coco_json, "LONG", 10)  # bytes, beyond which it is said
    first = read_annotations("set.json", opener(data), say=said.append)
    assert said == ["reading set.json"]
    monkeypatch.setattr(coco_json, "parse_annotations", None)
    again = read_annotations("other.json", opener(data), say=said.append)
    assert alike(first, again) and len(said) == 1
    assert {path.suffix for path in cache.iterdir()} == {".npz"}


@pytest.mark.parametrize("damage", [lambda old: old[:-300], lambda old: b"", lambda old: b"x" * 99])
def test_a_damaged_cache_is_made_anew(data, cache, damage):
    first = read_annotations("set.json", opener(data))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert alike(first, read_annotations("set.json", opener(data)))
    assert file.stat().st_size == len(whole)


def test_another_json_is_never_read_from_the_cache(data, cache):
    read_annotations("set.json", opener(data))
    other = content() | {"annotations": content()["annotations"][2:]}
    found = read_annotations("set.json", opener(json.dumps(other).encode()))
    assert len(found.ids) == len(other["annotations"]) and len(list(cache.iterdir())) == 2


def test_without_a_place_for_the_cache_it_is_read_all_the_same(data, cache):
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file")
    said = []
    found = read_annotations("set.json", opener(data), say=said.append)
    assert len(found.ids) == 7 and "anew each time" in said[-1]


def test_without_a_home_it_is_read_all_the_same(data, no_home):
    said = []
    assert len(read_annotations("set.json", opener(data), say=said.append).ids) == 7
    assert "anew each time" in said[-1] and "set BPT_CACHE" in said[-1]


def test_without_pycocotools_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(BurstError, match=r"pip install 'attention-burstiness\[detection\]'"):
        open_coco(f"coco:{tmp_path}")
