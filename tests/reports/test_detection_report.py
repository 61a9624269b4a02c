"""The page of trained detectors, its numbers and sentences, and the tables for a terminal."""

import base64
import html
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from scenes import detector, photo, some_scenes, truth_of
from ticks import seen_on_x

import reports
from burst.errors import EmptyResult, ImageError
from reports.page import Section
from reports.style import OBJECT_COLOURS

SECTIONS = (
    "What was found",
    "Curves",
    "Average precision",
    "Class by class",
    "Who finds what",
    "In pictures",
    "Beside the published numbers",
    "Every number",
    "How it was made",
)


def three(**changes):
    _, answers = some_scenes()
    return [
        detector("a", method="linear", box=31.0, mask=29.0, found=answers["A"], **changes),
        detector("b", method="vpt", box=35.0, mask=33.0, **changes),
        detector(
            "c", method="bpt-bilinear", placement="last:4", box=40.0, mask=32.0,
            found=answers["B"], **changes,
        ),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    truth, _ = some_scenes()
    files = reports.save_detection_report(three(), out, truth=truth, opener=photo, each=1)
    return out, files, files[0].read_text()


@pytest.fixture
def without_figures(monkeypatch):
    """A page says what its figures show, and draws none: that takes a second each."""

    def told(section, figure, path, caption, **_):
        section.text(f"{path.name}: {caption}")
        return []

    monkeypatch.setattr(Section, "figure", told)


def test_the_page_has_every_section_and_every_file_is_there(page):
    out, files, text = page
    assert tuple(re.findall(r"<h2>(.*?)</h2>", text)) == SECTIONS
    assert files[0] == out / "index.html" and all(path.stat().st_size for path in files)
    stems = {"losses", "scores", "side_by_side"}
    assert {path.stem for path in out.glob("*.png")} == stems
    assert {path.stem for path in out.glob("*.pdf")} == stems
    tables = {"runs", "classes", "found", "published"}
    assert {path.stem for path in out.glob("*.csv")} == tables
    assert set(files) == set(out.iterdir())


def test_the_page_asks_for_nothing_outside_itself(page):
    found = re.findall(r"""(?:src|href)=["']([^"']*)""", page[2])
    assert found and all(one.startswith(("data:", "#")) for one in found)


def test_the_split_of_the_images_is_held_against_a_toss_up(without_figures, tmp_path):
    truth, answers = some_scenes(images=5)
    runs = [detector("a"), detector("b", method="spt", found=answers["B"])]
    text = reports.save_detection_report(runs, tmp_path, truth=truth, opener=photo)[0].read_text()
    assert "spt, deep finds more objects in 4 images, vpt, deep in 0." in text
    assert "would come with probability 0.12 (sign test)" in text  # 2 / 2^4, 0.125


def test_the_rule_stands_under_the_pictures(page):
    assert "Images chosen by rule: largest difference in the number of objects found" in page[2]
    assert "bpt-bilinear, last:4 finds more in 3 and linear finds more in 2" in page[2]
    assert "In a model&#39;s column what only it finds has a white line around it" in page[2]


def test_the_page_and_its_tables_are_the_same_each_time(without_figures, tmp_path):
    truth, _ = some_scenes()
    written = [
        reports.save_detection_report(three(), tmp_path / name, truth=truth, opener=photo, each=1)
        for name in ("one", "other")
    ]
    one, other = ([path.read_bytes() for path in files] for files in written)
    assert one == other and len(one) == 5


def test_photographs_stand_in_the_page_with_the_colours_that_they_were_drawn_in(page):
    uris = re.findall(r'<img src="data:image/webp;base64,([^"]+)"', page[2])
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uris[-1]))).convert("RGB"), int)
    drawn = Image.open(page[0] / "side_by_side.png").convert("RGB")
    assert shown.shape[1] == 240 * 7  # dots an inch, over the width of a page
    small = np.asarray(drawn.resize(shown.shape[1::-1], Image.Resampling.LANCZOS), int)
    assert np.abs(shown - small).mean() < 6


def test_the_summary_says_who_is_ahead_and_what_prompts_add():
    table = reports.compare_detectors(reports.detector_labels(three()))
    first, *rest = reports.findings_of_detectors(table)
    assert first == (
        "bpt-bilinear, last:4 is ahead in box AP with 40.0, 5.0 points before vpt, deep."
    )
    assert (
        rest[0]
        == "vpt, deep is ahead in mask AP with 33.0, 1.0 points before bpt-bilinear, last:4."
    )
    text = " ".join(rest)
    assert (
        "vpt, deep: box AP 35.0, mask AP 33.0; 76,800 trained numbers in prompts (0.31 %)" in text
    )
    assert "25,000,000 in heads" in text
    assert (
        "linear is the run without prompts; prompts add to its box AP, in points: "
        "bpt-bilinear, last:4 +9.0, vpt, deep +4.0." in text
    )


def test_few_images_and_one_seed_are_warned_of_and_many_are_not():
    def said(runs):
        table = reports.compare_detectors(reports.detector_labels(runs))
        return " ".join(reports.findings_of_detectors(table))

    few = said([detector("a", images=999), detector("b", method="linear")])
    assert "Only 6 images were evaluated" in few and "One seed a setting" in few
    many = [detector("a", images=1000), detector("b", images=5000, seed=1)]
    assert "images were evaluated" not in said(many) and "One seed" not in said(many)
    assert "No run is without prompts" in said(many)
    assert "are even in box AP: 30.0" in said(many)
    other = [detector("a", images=5000), detector("b", images=5000, detector="cascade")]
    assert "The runs differ in detector, class_agnostic: mind what is compared." in said(other)


def test_prompts_are_not_compared_with_another_detectors_heads():
    runs = [detector("a", method="linear"), detector("b", detector="cascade", box=50.0)]
    table = reports.compare_detectors(reports.detector_labels(runs))
    text = " ".join(reports.findings_of_detectors(table))
    assert "no run with prompts has all else as it has" in text and "+20.0" not in text


@pytest.mark.parametrize(
    "changes",
    [{"image_size": 512}, {"train_fraction": 0.1}, {"weights": "random"}, {"smallest_scale": 1.0}],
)
def test_prompts_are_not_credited_with_what_else_differs(changes):
    runs = [detector("a", method="linear", **changes), detector("b", box=50.0)]
    table = reports.compare_detectors(reports.detector_labels(runs))
    text = " ".join(reports.findings_of_detectors(table))
    assert "no run with prompts has all else as it has" in text and "+20.0" not in text
    assert f"The runs differ in {next(iter(changes))}: mind" in text


def test_whatever_is_not_as_published_is_told_beside_the_published_number():
    changes = {"lr": 1e-2, "weights": "random", "channels": 32, "num_prompts": 5, "batch_size": 2}
    runs = {"a": detector("a", placement="shallow", smallest_scale=1.0, **changes)}
    table = reports.beside_published_detectors(runs)
    assert set(table["differs"]) == {
        "num_prompts, batch_size, lr, channels, smallest_scale, weights"
    }


def test_runs_that_have_not_ended_have_curves_and_are_named(without_figures, tmp_path):
    truth, answers = some_scenes()
    runs = [detector("a", found=answers["A"]), detector("b", method="linear", ended=False)]
    files = reports.save_detection_report(runs, tmp_path, truth=truth, opener=photo, each=1)
    text = files[0].read_text()
    assert "linear has no result yet." in text
    assert "of 24 objects" in text and "side_by_side:" in text
    assert pd.read_csv(tmp_path / "found.csv").columns.tolist() == [
        *("size", "found", "missed", "false positives")
    ]
    alone = reports.save_detection_report(runs[1:], tmp_path / "b", truth=truth, opener=photo)
    assert "No run has ended yet" in alone[0].read_text()
    assert "Who finds what" not in alone[0].read_text()


def test_the_page_says_what_was_chosen_whence_the_rest_is_and_what_the_weights_were(
    without_figures, tmp_path
):
    truth, _ = some_scenes()
    run = detector("a", channels=32)
    run.config["backbone"]["notes"] = ["left aside of the weights: decoder"]
    files = reports.save_detection_report([run], tmp_path, truth=truth, opener=photo)
    text = html.unescape(files[0].read_text().rpartition("How it was made")[2])
    (chosen,) = re.findall(r"Hyper-parameters: (\{.*?\})", text)
    assert json.loads(chosen)["channels"] == 32
    assert "warmup_steps" not in chosen  # as every training has it
    assert "left aside of the weights: decoder" in text
    assert run.recipe.provenance() and all(line in text for line in run.recipe.provenance())
    assert "Evaluated by pycocotools 2.0.11 on 6 images" in text


def test_where_the_models_are_even_there_is_no_picture_and_the_rule_says_so(
    without_figures, tmp_path
):
    truth, answers = some_scenes()
    runs = [detector("a", found=answers["A"]), detector("b", method="spt", found=answers["A"])]
    text = reports.save_detection_report(runs, tmp_path, truth=truth, opener=photo)[0].read_text()
    assert "There is no picture to show." in text and "in 6 it is even" in text
    assert "side_by_side:" not in text and "scores:" in text


def test_no_run_no_epoch_and_another_ground_truth_are_told(without_figures, tmp_path):
    truth, answers = some_scenes()
    with pytest.raises(EmptyResult, match="no run"):
        reports.save_detection_report([], tmp_path, truth=truth, opener=photo)
    fresh = detector("fresh")
    fresh.metrics = []
    with pytest.raises(EmptyResult, match="fresh has no epoch"):
        reports.save_detection_report([fresh], tmp_path, truth=truth, opener=photo)
    with pytest.raises(ImageError, match="ground truth"):
        runs = [detector("a", found=answers["A"])]
        reports.save_detection_report(runs, tmp_path, truth=truth_of([], [1]), opener=photo)


def test_classes_that_differ_most_come_first():
    runs = {"A": detector("a", box=30.0), "B": detector("b", box=22.0)}
    runs["B"].result["per_class"]["dog"] = {"box_AP": 13.0, "mask_AP": 1.0}
    table = reports.compare_classes(runs, some_scenes()[0])
    assert list(table["class"]) == ["cat", "dog"] and list(table["objects"]) == [12, 12]
    assert list(table["box difference"]) == [-8.0, 3.0]
    assert np.isnan(table["mask difference"][1])  # A has no mask AP of dogs
    one = reports.compare_classes({"A": detector("a", box=3.0)}, some_scenes()[0])
    assert list(one["class"]) == ["dog", "cat"] and "box difference" not in one


def test_a_run_stands_beside_the_papers_row_of_its_detector_and_method():
    runs = {
        "x": detector("x", method="bpt-bilinear", placement="last:4", box=40.0),
        "y": detector("y", method="bpt-bilinear", placement="last:4", detector="cascade"),
        "z": detector("z", method="vpt", placement="last:1", schedule="1x", image_size=512),
        "w": detector("w", method="bpt-fwhiten", placement="shallow"),
    }
    table = reports.beside_published_detectors(runs).set_index(["label", "metric"])
    best = table.loc["x", "box_AP"]
    assert (best.ours, best.published, best.differs) == (40.0, 39.67, "")
    assert best.difference == pytest.approx(0.33)
    assert table.loc[("x", "mask_APs"), "published"] == 17.87
    assert table.loc[("y", "box_AP"), "published"] == 44.97
    assert table.loc[("y", "mask_AP75"), "published"] == 43.17
    assert table.loc[("z", "box_AP"), "published"] == 34.62
    assert table.loc[("z", "box_AP"), "differs"] == "placement, image_size, schedule"
    shallow = {method: detector(method=method, placement="shallow") for method in ("spt", "linear")}
    shallow["vpt"] = detector(method="vpt", placement="deep")
    others = reports.beside_published_detectors(shallow).set_index(["label", "metric"]).published
    assert [others[one, "box_AP"] for one in shallow] == [36.46, 30.7, 34.62]
    assert table.loc["w"]["row"].tolist() == ["none"] and table.loc["x"].shape[0] == 6


@pytest.mark.parametrize(
    "counts, given, differs",
    [
        ({"val": 79}, {}, "images"),
        ({"train": 80}, {}, "images"),
        ({"train": 11_727}, {"train_fraction": 0.1}, "train_fraction"),
        ({"name": "coco:mine", "train": 80, "val": 79}, {}, "dataset"),
    ],
)
def test_a_part_of_coco_is_not_what_the_paper_trained_on(counts, given, differs):
    run = detector("x", method="bpt-bilinear", placement="last:4", **given)
    run.config["dataset"] |= counts
    assert set(reports.beside_published_detectors({"x": run})["differs"]) == {differs}


def test_every_run_has_a_bar_of_its_height_and_none_where_there_is_no_object():
    runs = {"A": detector("a", box=30.0, mask=20.0), "B": detector("b", box=40.0, mask=30.0)}
    figure = reports.scores_figure(runs)
    for ax, kind in zip(figure.axes, ("box", "mask"), strict=True):
        assert [one.get_label() for one in ax.containers] == ["A", "B"]
        for bars, run in zip(ax.containers, runs.values(), strict=True):
            scores = [run.result["scores"][f"{kind}_{one}"] for one in
                      ("AP", "AP50", "AP75", "APs", "APm", "APl")]  # fmt: skip
            heights = [bar.get_height() for bar in bars]
            assert np.allclose(heights, np.array(scores, float), equal_nan=True)
    assert np.isnan(figure.axes[0].containers[0][5].get_height())
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_bars_that_differ_by_less_than_one_are_told_apart_and_no_number_is_cut_off():
    runs = {"A": detector("a", box=32.6, mask=29.0), "B": detector("b", box=33.4, mask=31.0)}
    figure = reports.scores_figure(runs)
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts[::6]] == ["32.6", "33.4"]
    top = max(text.get_window_extent().y1 for text in ax.texts if text.get_text())
    assert top <= ax.get_window_extent().y1


def test_losses_and_precisions_are_those_of_the_epochs():
    runs = {"A": detector("a", box=30.0), "B": detector("b", box=40.0)}
    runs["B"].metrics[0]["losses"]["stage_2_box"] = 9.0
    runs["B"].metrics[2]["box_AP"] = 24.0
    figure = reports.losses_figure(runs)
    panels = {ax.get_title(): ax for ax in figure.axes}
    parts = ["rpn box loss", "mask loss", "stage 2 box loss"]
    assert list(panels) == ["loss", *parts, "box AP (%)"]  # masks were evaluated once
    first, second = panels["loss"].get_lines()
    assert first.get_xdata().tolist() == [1, 2, 3]
    assert np.allclose(second.get_ydata(), [5, 2.5, 5 / 3])
    assert panels["box AP (%)"].get_lines()[1].get_xydata().tolist() == [[2, 20.0], [3, 24.0]]
    assert len(panels["stage 2 box loss"].get_lines()) == 1


def test_the_losses_of_an_epoch_alone_stand_at_a_whole_number():
    run = detector("a")
    del run.metrics[1:]
    for ax in reports.losses_figure({"A": run}).axes:
        assert seen_on_x(ax) == [1]


def test_labels_tell_detectors_apart():
    runs = [detector("a"), detector("b", detector="cascade"), detector("c", lr=0.1)]
    assert list(reports.detector_labels(runs)) == [
        "vpt, deep, mask-rcnn, lr 0.0005",
        "vpt, deep, cascade, lr 0.0005",
        "vpt, deep, mask-rcnn, lr 0.1",
    ]
    assert len(reports.detector_labels([detector("a"), detector("a")])) == 2


def printed(table):
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(table)
    return [line.split() for line in console.export_text().splitlines()]


def test_the_terminal_shows_a_row_for_boxes_and_one_for_masks():
    lines = printed(reports.detection_table(detector(box=30.0, mask=20.0).result["scores"]))
    assert lines[0] == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert lines[1] == ["box", "30.0", "31.0", "32.0", "33.0", "34.0", "-"]
    assert lines[2] == ["mask", "20.0", "21.0", "22.0", "23.0", "24.0", "25.0"]
    only = printed(reports.detection_table({"box_AP": 1.0, "box_AP50": float("nan")}))
    assert only[1] == ["box", "1.0", "-", "-", "-", "-", "-"] and only[2][0] != "mask"


def test_the_terminal_shows_the_best_classes_first():
    scores = {"b": {"box_AP": 1.0}, "c": {"box_AP": None}, "a": {"box_AP": 9.0, "mask_AP": 8.0}}
    lines = printed(reports.detection_classes_table(scores))
    assert lines[1:] == [["a", "9.0", "8.0"], ["b", "1.0", "-"], ["c", "-", "-"]]


def test_the_colours_of_objects_are_all_different():
    assert len(set(OBJECT_COLOURS)) == len(OBJECT_COLOURS)
