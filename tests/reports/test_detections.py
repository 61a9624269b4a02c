"""Matches of detections and objects, against a plain loop and COCO's own evaluation."""

import contextlib
import io
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scenes import annotation, detection, invented, photographs, some_scenes, truth_of

import reports
from burst.errors import BurstError, ImageError, ShapeError
from reports.detections import mask_of, rle_of

BOXES = st.tuples(*(st.integers(0, 6),) * 2, *(st.integers(1, 6),) * 2)
OBJECTS = st.lists(st.tuples(BOXES, st.sampled_from([1, 7]), st.booleans()), max_size=6)
FOUND = st.lists(st.tuples(BOXES, st.sampled_from([1, 7]), st.integers(3, 9)), max_size=8)


def overlap(one, other, *, crowd):
    (x, y, w, h), (x_, y_, w_, h_) = one, other
    across = max(0, min(x + w, x_ + w_) - max(x, x_))
    down = max(0, min(y + h, y_ + h_) - max(y, y_))
    return across * down / (w * h if crowd else w * h + w_ * h_ - across * down)


def by_loop(objects, found):
    """Object number of each detection that counts, best score first, in plain Python."""
    taken, matched = set(), []
    for box, category, _ in sorted(found, key=lambda one: -one[2]):
        best, largest, on_crowd = None, 0.5, False
        real = -1
        for other, kind, crowd in objects:
            real += not crowd
            if kind != category:
                continue
            value = overlap(box, other, crowd=crowd)
            if crowd:
                on_crowd |= value >= 0.5
            elif real not in taken and value >= 0.5 and (best is None or value > largest):
                best, largest = real, value
        if best is None and on_crowd:
            continue
        taken.add(best)
        matched.append(best)
    return matched


@settings(max_examples=150)
@given(OBJECTS, FOUND, st.sampled_from(["boxes", "masks"]))
def test_matches_are_those_of_a_plain_loop(objects, found, by):
    truth = truth_of([annotation(1, box, kind, crowd=crowd) for box, kind, crowd in objects], [1])
    entries = [detection(1, box, score / 10, kind) for box, kind, score in found]
    (scene,) = reports.match_detections(truth, {"A": entries}, score=0.5, by=by).scenes
    expected = by_loop(objects, [one for one in found if one[2] >= 5])
    assert list(scene.answers["A"].matched) == expected


@pytest.mark.parametrize("by, kind", [("boxes", "bbox"), ("masks", "segm")])
def test_as_many_match_as_in_cocos_own_evaluation(real_data, rng, by, kind):
    truth, _ = photographs(real_data)
    truth |= {"annotations": [one | {"id": i + 1} for i, one in enumerate(truth["annotations"])]}
    entries = invented(truth, 0.8, rng)
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCO()
        official.dataset = truth
        official.createIndex()
        evaluation = COCOeval(official, official.loadRes([dict(one) for one in entries]), kind)
        evaluation.evaluate()
    expected = np.zeros(2, int)  # matched, false
    for one in evaluation.evalImgs:
        if one is not None and one["aRng"] == [0, 1e10]:
            counts = ~one["dtIgnore"][0]
            hit = one["dtMatches"][0] > 0
            expected += [(hit & counts).sum(), (~hit & counts).sum()]
    matching = reports.match_detections(truth, {"A": entries}, score=0.0, by=by)
    answers = [scene.answers["A"] for scene in matching.scenes]
    found = [sum(len(one.found) for one in answers), sum(len(one.false) for one in answers)]
    assert found == expected.tolist() and min(found) > 20


def test_a_mask_of_another_size_than_its_image_is_told():
    truth = truth_of([annotation(1, (0, 0, 10, 10))])
    entry = detection(1, (0, 0, 10, 10))
    entry["segmentation"] |= {"size": [9, 9]}
    with pytest.raises(
        ImageError, match=r"a mask is of \[9, 9\] \(height, width\), and its image of"
    ):
        reports.match_detections(truth, {"A": [entry]})


def test_every_object_and_every_false_positive_is_counted_once():
    truth, answers = some_scenes(images=9)
    matching = reports.match_detections(truth, answers)
    table = reports.who_finds_what(matching)
    kinds = ["both", "only A", "only B", "none"]
    false = ["false positives of A", "false positives of B"]
    assert list(table.columns) == kinds + false
    assert table.loc["all", kinds].sum() == len(truth["annotations"])
    assert (table.drop("all").sum() == table.loc["all"]).all()
    found = {"A": table.loc["all", ["both", "only A"]].sum()}
    found["B"] = table.loc["all", ["both", "only B"]].sum()
    for label, entries in answers.items():
        assert found[label] + table.loc["all", f"false positives of {label}"] == len(entries)


def test_the_counts_are_those_that_were_built():
    truth = truth_of(
        [
            annotation(1, (0, 0, 31, 33)),  # 1,023 square pixels: small
            annotation(1, (0, 34, 32, 32)),  # 1,024: medium
            annotation(2, (0, 0, 10, 10)),
            annotation(2, (20, 20, 10, 10), 7),
        ]
    )
    first = [detection(1, (0, 0, 31, 33)), detection(2, (0, 0, 10, 10), 0.4)]
    second = [detection(1, (0, 0, 31, 33)), detection(1, (0, 34, 32, 26))]
    second += [detection(2, (20, 20, 10, 10), category=1)]  # of another class: false
    table = reports.who_finds_what(reports.match_detections(truth, {"A": first, "B": second}))
    expected = {"small": [1, 0, 0, 2, 0, 1], "medium": [0, 0, 1, 0, 0, 0], "large": [0] * 6}
    expected["all"] = [1, 0, 1, 2, 0, 1]
    assert {size: list(row) for size, row in table.iterrows()} == expected


def test_one_model_has_its_finds_its_misses_and_its_false_positives():
    truth, answers = some_scenes(images=3)
    table = reports.who_finds_what(reports.match_detections(truth, {"B": answers["B"]}))
    assert table.loc["all"].to_dict() == {"found": 6, "missed": 6, "false positives": 3}


def test_what_lies_on_a_crowd_counts_neither_way():
    truth = truth_of([annotation(1, (0, 0, 40, 40), crowd=True), annotation(1, (50, 50, 8, 8))])
    entries = [detection(1, (4 * i, 4, 8, 8)) for i in range(5)]
    (scene,) = reports.match_detections(truth, {"A": entries}).scenes
    assert scene.answers["A"].detections == () and len(scene.objects) == 1


def test_masks_decide_where_every_object_and_detection_has_one():
    truth = truth_of([annotation(1, (0, 0, 20, 20))])
    entry = detection(1, (0, 0, 20, 20)) | {
        "segmentation": detection(1, (0, 0, 5, 5))["segmentation"]
    }
    by_masks = reports.match_detections(truth, {"A": [entry]})
    by_boxes = reports.match_detections(truth, {"A": [entry]}, by="boxes")
    assert (by_masks.by, by_boxes.by) == ("masks", "boxes")
    assert not by_masks.scenes[0].answers["A"].found and by_boxes.scenes[0].answers["A"].found
    plain = [detection(1, (0, 0, 20, 20), masks=False)]
    assert reports.match_detections(truth, {"A": plain}).by == "boxes"
    with pytest.raises(BurstError, match="match by boxes"):
        reports.match_detections(truth, {"A": plain}, by="masks")


def test_the_choice_is_the_same_whichever_model_comes_first():
    truth, answers = some_scenes(images=20)
    one = reports.choose_scenes(reports.match_detections(truth, answers), each=3)
    swapped = {label: answers[label] for label in ("B", "A")}
    other = reports.choose_scenes(reports.match_detections(truth, swapped), each=3)
    ids = [scene.image["id"] for scene in one.scenes]
    assert [scene.image["id"] for scene in other.scenes] == ids[3:] + ids[:3]


def test_the_largest_differences_are_chosen_with_ties_by_image():
    truth, answers = some_scenes(images=12)  # B - A in image k: 4 - 2 (k mod 5)
    choice = reports.choose_scenes(reports.match_detections(truth, answers), each=3)
    assert [scene.lead for scene in choice.scenes] == [4, 4, 2, -4, -4, -2]
    assert [scene.image["id"] for scene in choice.scenes] == [5, 10, 1, 4, 9, 3]
    assert "ties by the smaller image id" in choice.rule
    assert "Of 12 images, B finds more in 5 and A finds more in 4; in 3 it is even." in choice.rule
    shuffled = truth | {"images": truth["images"][::-1]}
    again = reports.choose_scenes(reports.match_detections(shuffled, answers), each=3)
    assert again.rule == choice.rule and again.scenes == choice.scenes


def test_a_side_with_too_few_images_is_not_filled_from_the_other():
    truth, answers = some_scenes(images=5)
    matching = reports.match_detections(truth, answers)
    choice = reports.choose_scenes(matching, each=2)
    assert [scene.lead > 0 for scene in choice.scenes] == [True, True, False, False]
    for labels, leads in (("AB", [4, 3]), ("BA", [-4, -3])):
        few = {label: answers["B"] if label == "B" else [] for label in labels}
        choice = reports.choose_scenes(reports.match_detections(truth, few), each=2)
        assert [scene.lead for scene in choice.scenes] == leads
        assert "None where A finds more: the other side does not fill the gap." in choice.rule
    assert reports.choose_scenes(reports.match_detections(truth, {"A": [], "B": []})).scenes == ()


def test_one_model_shows_what_it_finds_and_what_it_misses():
    truth, answers = some_scenes(images=5)
    choice = reports.choose_scenes(reports.match_detections(truth, {"B": answers["B"]}), each=1)
    assert [scene.image["id"] for scene in choice.scenes] == [5, 4]  # all four, and none
    assert "more are missed than found in 2" in choice.rule


def test_a_mask_is_the_same_from_polygons_counts_and_their_code():
    polygon = [[3, 4, 13, 4, 13, 20, 3, 20]]
    code = rle_of(polygon, 30, 40)
    mask = np.zeros((30, 40), np.uint8)
    mask[4:20, 3:13] = 1
    flat = np.concatenate([[0], mask.ravel(order="F"), [1 - mask.ravel(order="F")[-1]]])
    edges = np.flatnonzero(np.diff(flat)).tolist()
    counts = np.diff([0, *edges]).tolist()
    text = {"size": [30, 40], "counts": code["counts"].decode("ascii")}
    for segmentation in (polygon, {"size": [30, 40], "counts": counts}, text, code):
        assert np.array_equal(mask_of({"segmentation": segmentation}, 30, 40), mask == 1)
    assert mask_of({}, 30, 40) is None


def test_a_polygon_of_two_corners_is_nothing():
    assert mask_of({"segmentation": [[1, 2, 3, 4]]}, 5, 6).sum() == 0


def test_what_cannot_be_matched_is_told():
    truth, _ = some_scenes(images=1)
    for wrong in ({}, {"A": [], "B": [], "C": []}):
        with pytest.raises(ShapeError, match="one or two"):
            reports.match_detections(truth, wrong)
    with pytest.raises(ImageError, match=r"detection of image 99, which is not among the 1 images"):
        reports.match_detections(truth, {"A": [detection(99, (0, 0, 5, 5))]})


def test_without_pycocotools_it_is_told_what_to_install(monkeypatch):
    truth, answers = some_scenes(images=1)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(BurstError, match=r"attention-burstiness\[detection\]"):
        reports.match_detections(truth, answers)


def test_the_table_is_a_plain_frame():
    truth, answers = some_scenes(images=2)
    table = reports.who_finds_what(reports.match_detections(truth, answers))
    assert isinstance(table, pd.DataFrame) and table.index.name == "size"
    assert list(table.index) == ["small", "medium", "large", "all"]
