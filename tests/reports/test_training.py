"""Runs compared: numbers as in the run folders."""

import io
import json
import math
import shutil
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from ticks import seen_on_x

import reports
from bpt import Recipe, Run
from burst import UnknownName


@pytest.fixture
def runs(tmp_path):
    made = []
    for number, method in enumerate(("vpt", "bpt-bilinear")):
        folder = tmp_path / method
        folder.mkdir()
        lines = [
            {"epoch": epoch, "val_accuracy": 10.0 * epoch + number, "train_loss": 3.0 / epoch}
            for epoch in (1, 2, 3)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        config = {
            "recipe": Recipe(method=method).to_dict(),
            "dataset": {"name": "digits", "classes": ["a", "b"]},
            "parameters": {"prompts": 7 + number},
        }
        if number:
            result = {"best_epoch": 3, "val_accuracy": 31.0, "test_accuracy": 29.5}
            result |= {"test_images": 40, "images_per_second": 80.5}
            (folder / "result.json").write_text(json.dumps(result))
        made.append(Run(folder, config))
    return made


def test_the_table_has_a_row_a_run_and_gaps_where_a_run_has_not_ended(runs):
    table = reports.compare(runs)
    assert list(table.method) == ["vpt", "bpt-bilinear"]
    assert list(table.prompts) == [7, 8]
    assert table.test_accuracy.isna().tolist() == [True, False]
    assert table.test_accuracy[1] == 29.5 and table.test_images[1] == 40


def test_a_row_names_its_folder_from_where_they_part(runs, tmp_path):
    nested = [tmp_path / method / "seed_0" for method in ("vpt", "bpt-bilinear")]
    for folder, run in zip(nested, runs, strict=True):
        folder.mkdir()
        shutil.copytree(run.folder, folder, dirs_exist_ok=True, ignore=lambda *_: ["seed_0"])
    table = reports.compare([Run(nested[0], runs[0].config), Run(nested[1], runs[1].config)])
    assert list(table.run) == ["vpt/seed_0", "bpt-bilinear/seed_0"]
    assert str(reports.comparison_table(table).caption) == "1  vpt/seed_0\n2  bpt-bilinear/seed_0"
    one = reports.compare([Run(nested[0] / ".." / "seed_0", runs[0].config)])
    assert list(one.run) == ["seed_0"] and reports.comparison_table(one).caption is None


def test_a_line_without_an_accuracy_is_a_gap(runs):
    (runs[0].folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    (line,) = reports.draw_curves(Figure().subplots(), runs[:1], "val_accuracy")
    assert math.isnan(line.get_ydata()[0])


@pytest.mark.parametrize("epochs, said", [(3, 30.0), (4, None)])
def test_a_fold_of_a_search_has_what_its_last_epoch_came_to(runs, epochs, said):
    recipe = Recipe(method="vpt", fold="1/2", epochs=epochs).to_dict()
    (row,) = reports.compare([Run(runs[0].folder, runs[0].config | {"recipe": recipe})]).to_dict(
        "records"
    )
    assert (row["val_accuracy"], row["test_accuracy"], row["protocol"]) == (
        said,
        None,
        "fold 1 of 2",
    )


def test_a_probe_has_no_rate_since_its_features_were_kept(runs):
    config = runs[1].config | {"recipe": Recipe(method="linear").to_dict()}
    table = reports.compare([runs[1], Run(runs[1].folder, config)])
    assert table.images_per_second[0] == 80.5 and table.images_per_second.isna()[1]


@pytest.mark.parametrize("quantity", ["val_accuracy", "train_loss"])
def test_a_line_a_run_holds_its_metrics(runs, quantity):
    figure, ax = plt.subplots()
    lines = reports.draw_curves(ax, runs, quantity)
    for line, run in zip(lines, runs, strict=True):
        assert line.get_xdata().tolist() == [1, 2, 3]
        assert line.get_ydata().tolist() == [one[quantity] for one in run.metrics]
    assert ax.get_xlabel() == "epoch" and ax.get_ylabel()
    with pytest.raises(UnknownName, match="val_accuracy"):
        reports.draw_curves(ax, runs, "accuracy")
    plt.close(figure)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_epochs_are_whole_numbers(runs, epochs):
    few = SimpleNamespace(metrics=runs[0].metrics[:epochs])
    figure, ax = plt.subplots()
    reports.draw_curves(ax, [few], "train_loss")
    assert seen_on_x(ax) == list(range(1, epochs + 1))
    plt.close(figure)


def test_labels_are_no_formulas(runs):
    figure = reports.comparison_figure(runs, ["run_$1_$2", "b"])
    (legend,) = figure.legends
    assert legend.get_texts()[0].get_text() == r"run_\$1_\$2"  # drawn without


def test_an_accuracy_of_zero_is_a_point_and_what_was_judged_is_said(tmp_path):
    def run(name, **accuracies):
        folder = tmp_path / name
        folder.mkdir()
        known = dict.fromkeys(("val_accuracy", "test_accuracy"))
        lines = [
            {"epoch": epoch, "train_loss": 1.0, "train_accuracy": 50.0 + epoch, **known}
            | {name: values[epoch - 1] for name, values in accuracies.items()}
            for epoch in (1, 2)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        return Run(folder, {"recipe": Recipe().to_dict()})

    validated, tested = run("a", val_accuracy=[0.0, 4.0]), run("b", test_accuracy=[0.0, 3.0])
    figure, ax = plt.subplots()
    lines = reports.draw_curves(ax, [validated, tested, run("c")], "val_accuracy")
    assert [one.get_ydata().tolist() for one in lines] == [[0, 4], [0, 3], [51, 52]]
    assert ax.get_ylabel() == "validation or test or training accuracy (%)"
    plt.close(figure)


def test_numbers_that_are_not_finite_are_null():
    assert reports.plain({"a": float("nan"), "b": {"c": 1.5}}) == {"a": None, "b": {"c": 1.5}}
    assert reports.plain([{"a": [float("inf"), 1]}, 2]) == [{"a": [None, 1]}, 2]


def test_the_result_of_several_seeds_shows_mean_and_spread():
    from rich.console import Console

    summary = {
        "seeds": [0, 1],
        "label": "x",
        "test_accuracy": {"values": [1.0, 2.0], "mean": 1.5, "std": 0.707},
    }
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(reports.result_table(summary))
    assert "1.50 ± 0.71 %" in console.export_text()
