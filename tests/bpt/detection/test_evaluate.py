"""COCO's numbers, by either evaluator, as they would give them themselves."""

import contextlib
import copy
import io
import math
import sys
from importlib.metadata import version

import numpy as np
import pytest
from annotated import coco_folder, handed_back, rectangle, shaken

from bpt.dataset.coco import open_coco
from bpt.dataset.coco_annotations import encode_mask
from bpt.detection.evaluate import average_precision
from burst import BurstError, UnknownName

EVALUATORS = ["pycocotools", "faster-coco-eval"]


def truth_of(*objects, crowds=(), classes=2):
    """One image of 200 x 200 pixels; objects and crowds are (category, x0, y0, x1, y1)."""
    annotations = []
    for crowd, listed in ((0, objects), (1, crowds)):
        for category, x0, y0, x1, y1 in listed:
            mask = encode_mask([rectangle(x0, y0, x1, y1)], 200, 200)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 5,
                    "category_id": category,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": crowd,
                    "segmentation": {**mask, "counts": mask["counts"].decode()},
                }
            )
    categories = [{"id": 10 * k, "name": f"class {k}"} for k in range(1, classes + 1)]
    images = [{"id": 5, "file_name": "5.png", "height": 200, "width": 200}]
    return {"images": images, "annotations": annotations, "categories": categories}


def by_pycocotools(ground_truth, results, kind):
    """The evaluator's own first six numbers, in percent."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth) | {"info": {}}
        truth.createIndex()
        found = copy.deepcopy(results)
        for one in found:
            one.pop("bbox" if kind == "segm" else "segmentation")
        evaluation = COCOeval(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[:6]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return open_coco(f"coco:{coco_folder(tmp_path_factory.mktemp('coco') / 'set', images=20)}")


@pytest.fixture
def synthetic(opened):
    return opened.train.ground_truth()


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_annotations_handed_back_are_worth_100(synthetic, evaluator):
    found = average_precision(synthetic, handed_back(synthetic), evaluator=evaluator)
    present = [one for one in found.values.values() if not math.isnan(one)]
    assert present == pytest.approx([100] * len(present)) and len(present) >= 8
    assert list(found.per_class) == ["star", "moon"]  # by id, not as listed
    for values in found.per_class.values():
        assert values == pytest.approx({"box_AP": 100, "mask_AP": 100})
    assert (found.evaluator, found.version) == (evaluator, version(evaluator))
    assert found.images == len(synthetic["images"])
    assert found.objects == len(synthetic["annotations"])


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_numbers_are_those_of_the_official_evaluator(synthetic, rng, evaluator):
    results = shaken(synthetic, rng)
    found = average_precision(synthetic, results, evaluator=evaluator).values
    assert 5 < found["mask_AP"] < 95
    for kind, own in (("box", "bbox"), ("mask", "segm")):
        wanted = by_pycocotools(synthetic, results, own)
        wanted[wanted < 0] = math.nan
        ours = [found[f"{kind}_{name}"] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
        assert np.allclose(ours, wanted, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_half_of_the_objects_found_is_worth_half(evaluator):
    truth = truth_of((10, 0, 0, 20, 20), (10, 50, 50, 90, 90), (20, 100, 0, 190, 180))
    found = average_precision(truth, handed_back(truth)[:1], evaluator=evaluator)
    # 51 of the 101 recalls from 0 to 1 are reached, with precision 1.
    half = 100 * 51 / 101
    assert found.per_class["class 1"] == pytest.approx({"box_AP": half, "mask_AP": half})
    assert found.per_class["class 2"] == {"box_AP": 0, "mask_AP": 0}
    assert found.values["box_AP"] == pytest.approx(half / 2)
    sizes = {"APs": 100, "APm": 0, "APl": 0}
    for name, value in sizes.items():
        assert found.values[f"mask_{name}"] == pytest.approx(value)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_ids_of_annotations_do_not_matter(evaluator):
    truth = truth_of((10, 0, 0, 20, 20), (10, 50, 50, 90, 90), (20, 100, 0, 190, 180))
    for number, one in enumerate(truth["annotations"]):
        one["id"] = number  # from 0
    found = average_precision(truth, handed_back(truth), evaluator=evaluator)
    assert found.values["box_AP"] == found.values["mask_AP"] == pytest.approx(100)


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("shift", [-3, 2**53, 2**63 - 200])
def test_the_ids_of_images_and_categories_do_not_matter(synthetic, rng, evaluator, shift):
    def shifted(one, *names):
        return one | {name: one[name] + shift for name in names}

    results = shaken(synthetic, rng)
    truth = {
        "images": [shifted(one, "id") for one in synthetic["images"]],
        "categories": [shifted(one, "id") for one in synthetic["categories"]],
        "annotations": [
            shifted(one, "image_id", "category_id") for one in synthetic["annotations"]
        ],
    }
    moved = [shifted(one, "image_id", "category_id") for one in results]
    found = average_precision(truth, moved, evaluator=evaluator)
    wanted = average_precision(synthetic, results, evaluator="pycocotools")
    assert found.values == pytest.approx(wanted.values, abs=1e-9, nan_ok=True)
    assert list(found.per_class) == list(wanted.per_class)


def test_annotations_of_what_is_not_listed_count_as_none():
    truth = truth_of((10, 0, 0, 20, 20), (10, 50, 50, 90, 90), (20, 100, 0, 190, 180))
    results = handed_back(truth)[:1]
    truth["annotations"][1]["image_id"] = 6
    truth["annotations"][2]["category_id"] = 30
    for evaluator in EVALUATORS:
        found = average_precision(truth, results, evaluator=evaluator)
        assert found.values["box_AP"] == found.values["mask_AP"] == pytest.approx(100)


def test_classes_of_one_name_are_told_apart_by_their_ids():
    truth = truth_of((10, 0, 0, 20, 20), (20, 50, 50, 90, 90), (30, 100, 0, 190, 180), classes=3)
    for one in truth["categories"][:2]:
        one["name"] = "cat"
    found = average_precision(truth, handed_back(truth)[:1])
    boxes = {name: one["box_AP"] for name, one in found.per_class.items()}
    assert boxes == pytest.approx({"cat (id 10)": 100, "cat (id 20)": 0, "class 3": 0})


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_what_is_found_in_a_crowd_counts_as_nothing(evaluator):
    truth = truth_of((10, 0, 0, 20, 20), crowds=[(10, 50, 50, 150, 150)])
    inside = truth_of((10, 60, 60, 90, 90), (10, 0, 0, 20, 20), (10, 100, 100, 120, 130))
    found = average_precision(truth, handed_back(inside), evaluator=evaluator)
    assert found.values["box_AP"] == found.values["mask_AP"] == pytest.approx(100)
    assert found.objects == 1


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_nothing_found_is_worth_nothing(evaluator):
    found = average_precision(truth_of((10, 0, 0, 20, 20)), [], evaluator=evaluator)
    assert found.values["box_AP"] == found.values["mask_APs"] == 0
    assert found.per_class["class 1"] == {"box_AP": 0, "mask_AP": 0}


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("results", [0, 1])
def test_where_nothing_is_annotated_the_value_is_missing(evaluator, results):
    truth = truth_of((10, 0, 0, 20, 20))
    found = average_precision(truth, handed_back(truth)[:results], evaluator=evaluator)
    for name in ("box_APm", "box_APl", "mask_APm", "mask_APl"):
        assert math.isnan(found.values[name])
    assert all(math.isnan(one) for one in found.per_class["class 2"].values())


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_nothing_is_printed_and_nothing_that_is_given_changes(synthetic, rng, evaluator, capfd):
    results = shaken(synthetic, rng)
    before = copy.deepcopy((synthetic, results))
    average_precision(synthetic, results, evaluator=evaluator)
    assert (synthetic, results) == before
    assert tuple(capfd.readouterr()) == ("", "")


def test_what_is_installed_is_taken_and_its_absence_told_in_one_line(monkeypatch):
    truth = truth_of((10, 0, 0, 20, 20))
    results = handed_back(truth)
    assert average_precision(truth, results).evaluator == "faster-coco-eval"
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert average_precision(truth, results).evaluator == "pycocotools"
    with pytest.raises(BurstError, match=r"needs faster-coco-eval; pip install faster-coco-eval$"):
        average_precision(truth, results, evaluator="faster-coco-eval")
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(BurstError, match=r"pip install 'attention-burstiness\[detection\]'$"):
        average_precision(truth, results)
    with pytest.raises(UnknownName, match="did you mean pycocotools"):
        average_precision(truth, results, evaluator="pycoctools")


@pytest.mark.parametrize("changed, told", [("image_id", "image 6"), ("category_id", "category 6")])
def test_results_of_other_images_or_categories_are_refused(changed, told):
    truth = truth_of((10, 0, 0, 20, 20))
    results = [one | {changed: 6} for one in handed_back(truth)]
    with pytest.raises(BurstError, match=f"a result names {told}, ") as caught:
        average_precision(truth, results)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "val"])
def test_real_annotations_handed_back_are_worth_100_crowds_included(real_data, part):
    truth = getattr(open_coco(f"coco:{real_data / 'coco-mini'}"), part).ground_truth()
    assert any(one["iscrowd"] for one in truth["annotations"])
    results = handed_back(truth)
    for evaluator in EVALUATORS:
        found = average_precision(truth, results, evaluator=evaluator)
        assert list(found.values.values()) == pytest.approx([100] * 12, abs=1e-3)


@pytest.mark.slow
def test_both_evaluators_agree_on_real_annotations(real_data, rng):
    truth = open_coco(f"coco:{real_data / 'coco-mini'}").val.ground_truth()
    results = shaken(truth, rng)
    one, other = (average_precision(truth, results, evaluator=name) for name in EVALUATORS)
    assert 10 < one.values["mask_AP"] < 90
    assert one.values == pytest.approx(other.values, abs=1e-9)
    for name, values in one.per_class.items():
        assert values == pytest.approx(other.per_class[name], abs=1e-9, nan_ok=True)
