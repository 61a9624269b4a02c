"""Surveys beside each other: known numbers, laws of differences, and what does not match."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import float_histogram
from typer.testing import CliRunner

import burst
import reports
from burst.survey import Survey
from cli import burst as command
from reports.comparison import COLUMNS, SurveyRun, read_otherwise, same_images

OPTIONS = {"convention": "paper", "tokens": "all", "bins": 64}
IMAGES = {"source": "photos", "fingerprint": "f", "seed": 0, "count": 4}
KEYS = [(block, "all", quantity) for block in (0, 1) for quantity in ("qk", "x", "qkx")]


def survey(values, half=None, *, keys=KEYS, images=IMAGES, weights="w.pt", **options):
    """A survey with given kurtoses; `half` widths of their intervals, none for `qk`."""
    table = pd.DataFrame(keys, columns=["block", "head", "quantity"])
    table.insert(0, "model", "m")
    table.insert(1, "pretraining", "random")
    table["count"] = 100
    table["excess_kurtosis"] = np.asarray(values, float)
    table["ggd_shape"] = np.arange(len(keys)) + 0.5
    if half is not None:
        half = np.where(table["quantity"] == "qk", np.nan, half)
        table["excess_kurtosis_low"] = table["excess_kurtosis"] - half
        table["excess_kurtosis_high"] = table["excess_kurtosis"] + 2 * half
    hist = float_histogram(np.random.default_rng(0).normal(size=100))
    record = {
        "model": "m",
        "weights": weights,
        "images": images,
        "options": {**OPTIONS, **options},
    }
    return Survey(table, dict.fromkeys(keys, hist), (), (), (), record)


def runs(*surveys, steps=None):
    steps = steps or [None] * len(surveys)
    return [SurveyRun("abcdef"[i], one, steps[i]) for i, one in enumerate(surveys)]


def of(table, statistic, **keys):
    rows = table[table["statistic"] == statistic]
    for name, value in keys.items():
        rows = rows[rows[name] == value]
    (row,) = rows.to_dict("records")
    return row


numbers = st.lists(st.floats(-1e6, 1e6), min_size=len(KEYS), max_size=len(KEYS))


@settings(max_examples=25)
@given(numbers, st.floats(0, 1e3))
def test_a_run_and_itself_do_not_differ(values, half):
    one = survey(values, half)
    table = reports.compare_surveys(runs(one, one))
    assert (table["difference"] == 0).all()
    known = table.dropna(subset=["low"])
    assert (known["low"] <= 0).all() and (known["high"] >= 0).all()


@settings(max_examples=25)
@given(numbers, numbers, st.floats(0, 1e3), st.floats(0, 1e3))
def test_swapping_two_runs_turns_the_signs(first, second, half, other):
    one, two = survey(first, half), survey(second, other)
    forth, back = (reports.compare_surveys(runs(*pair)) for pair in ((one, two), (two, one)))
    turned = back.assign(difference=-back["difference"], low=-back["high"], high=-back["low"])
    columns = ["difference", "low", "high"]
    assert np.array_equal(forth[columns], turned[columns], equal_nan=True)


def test_differences_are_those_of_the_tables_with_half_widths_in_quadrature():
    table = reports.compare_surveys(runs(survey(range(6), 3.0), survey(np.arange(6) + 10, 4.0)))
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 2 * len(KEYS) and "count" not in set(table["statistic"])
    row = of(table, "excess_kurtosis", block=1, quantity="x")
    assert (row["run_a"], row["run_b"], row["head"]) == ("a", "b", "all")
    assert (row["value_a"], row["value_b"], row["difference"]) == (4.0, 14.0, 10.0)
    # ends 3 below and 6 above the first, 4 below and 8 above the second
    assert row["low"] == pytest.approx(10 - np.hypot(4, 6))
    assert row["high"] == pytest.approx(10 + np.hypot(8, 3))
    assert np.isnan(of(table, "excess_kurtosis", block=0, quantity="qk")["low"])


def test_independent_intervals_cover_the_true_difference():
    draw, keys = np.random.default_rng(3), [(block, "all", "x") for block in range(2000)]
    pair = []
    for mean, deviation in ((1.0, 0.5), (4.0, 2.0)):
        one = survey(draw.normal(mean, deviation, 2000), 1.96 * deviation, keys=keys)
        one.table["excess_kurtosis_high"] -= 1.96 * deviation  # as far as the lower end
        pair.append(one)
    rows = reports.compare_surveys(runs(*pair)).dropna(subset=["low"])
    covered = (rows["low"] < 3) & (rows["high"] > 3)
    assert covered.mean() == pytest.approx(0.95, abs=0.015)  # 3 standard errors


def test_old_runs_without_intervals_are_compared_without():
    table = reports.compare_surveys(runs(survey(range(6)), survey(range(1, 7), 1.0)))
    assert (table.loc[table["statistic"] == "excess_kurtosis", "difference"] == 1).all()
    assert table[["low", "high"]].isna().all(axis=None)
    words = reports.comparison_words(runs(survey(range(6)), survey(range(1, 7))), table)
    assert words["b"][0].startswith("b and a have no intervals, so only sizes can be told.")
    assert words["b"][0].endswith("are exact.")  # for it has the weights' product
    pair = runs(survey(range(6), 1.0), survey(range(1, 7)))
    words = reports.comparison_words(pair, reports.compare_surveys(pair))
    assert words["b"][0].startswith("b has no intervals, so")


def test_an_end_without_a_bound_is_no_word():
    one, two = survey(np.zeros(6), 1.0), survey(np.arange(6) + 2.0, 1.0)
    two.table["excess_kurtosis_high"] = np.inf
    words = reports.comparison_words(runs(one, two), reports.compare_surveys(runs(one, two)))
    assert "to ∞." in " ".join(words["b"]) and "inf" not in " ".join(words["b"]).split()


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"seed": 1, "fingerprint": "cd"}, ["files", "seed"]),
        ({"source": "moved"}, []),
        ({"image_size": 32}, ["image_size"]),
        (None, []),  # which read nothing
    ],
)
def test_inputs_that_differ_are_named(changes, names):
    images = {**IMAGES, "fingerprint": "ab", "seed": 0, "image_size": 64}
    other = None if changes is None else images | changes
    pair = runs(survey(range(6), images=images), survey(range(6), images=other))
    assert sorted(read_otherwise(pair)) == names


@pytest.mark.parametrize("seed", [0, 1])
def test_a_page_says_that_runs_read_different_images(seed, tmp_path):
    one, other = (survey([0], keys=KEYS[:1], images={**IMAGES, "seed": i}) for i in (0, seed))
    page = reports.save_comparison(runs(one, other), tmp_path)[0].read_text("utf-8")
    assert ("Not all runs read the same" in page) == (seed != 0)


def test_each_run_is_compared_with_the_first():
    three = runs(*(survey(np.arange(6) * i) for i in (1, 2, 5)))
    table = reports.compare_surveys(three)
    assert list(table["run_b"].unique()) == ["b", "c"] and set(table["run_a"]) == {"a"}
    assert of(table, "excess_kurtosis", run_b="c", block=1, quantity="qkx")["difference"] == 20


def test_of_runs_that_do_not_match_the_common_part_is_compared_and_the_rest_named():
    one = survey(range(6))
    deeper = survey(range(3), keys=[(1, "all", "x"), (2, "all", "x"), (3, "0", "qkx")])
    table = reports.compare_surveys(runs(one, deeper))
    assert set(zip(table["block"], table["quantity"], strict=True)) == {(1, "x")}
    lines = reports.mismatches(runs(one, deeper))
    assert "only a has block 0" in lines and "only b has blocks 2, 3" in lines
    assert "only b has head 0" in lines and "only a has quantity qk" in lines


@pytest.mark.parametrize(
    "options, left",
    [({"convention": "authors"}, {"x", "logits"}), ({"tokens": "patch"}, {"qk"})],
)
def test_what_is_defined_otherwise_is_not_compared(options, left):
    keys = [*KEYS, (0, "all", "logits")]
    pair = runs(survey(range(7), keys=keys), survey(range(7), keys=keys, **options))
    assert set(reports.compare_surveys(pair)["quantity"]) == left
    (line,) = reports.mismatches(pair)
    assert "not compared" in line and next(iter(options.values())) in line


def test_runs_with_nothing_in_common_are_refused():
    other = survey([1.0], keys=[(7, "all", "x")])
    with pytest.raises(burst.EmptyResult, match="b and a have nothing in common: only a has bl"):
        reports.compare_surveys(runs(survey(range(6)), other))
    with pytest.raises(burst.EmptyResult, match="at least two"):
        reports.compare_surveys(runs(survey(range(6))))


def test_words_name_the_blocks_that_differ_beyond_their_intervals():
    keys = [(block, "all", "x") for block in range(6)]
    one = survey(np.zeros(6), 1.0, keys=keys)
    two = survey([5, 6, 9, 0.5, 0, -8], 1.0, keys=keys)
    table = reports.compare_surveys(runs(one, two))
    head, kurtosis, *rest = reports.comparison_words(runs(one, two), table)["b"]
    assert head.startswith("4 of 6 differences")
    assert kurtosis.startswith(
        "Excess kurtosis of the tokens X: higher in blocks 0-2, lower in block 5, not told apart "
        "in 2. Most in block 2, from 0 to 9"
    )
    assert rest == ["No block differs in: fitted shape of the tokens X."]
    near = survey(np.full(6, 0.5), 1.0, keys=keys)
    words = reports.comparison_words(runs(one, near), reports.compare_surveys(runs(one, near)))
    assert words["b"][1:] == [
        "No block differs in: fitted shape of the tokens X.",
        "No block is told apart in: excess kurtosis of the tokens X.",
    ]


def test_words_on_weights_alone_are_of_exact_numbers():
    keys = [(block, "all", "qk") for block in range(2)]
    one, two = survey([1, 2], keys=keys), survey([1, 3], keys=keys)
    for each in (one, two):
        each.table["kurtosis_null"] = np.nan  # weights have none
    table = reports.compare_surveys(runs(one, one))
    assert table["difference"].isna().any()
    (head, same) = reports.comparison_words(runs(one, one), table)["b"]
    assert head == "b and a have the same numbers." and same.startswith("No block differs in: ")
    table = reports.compare_surveys(runs(one, two))
    head, found, *_ = reports.comparison_words(runs(one, two), table)["b"]
    assert head == "Differences of the weights' product, which reads no input, are exact."
    assert found.startswith("Excess kurtosis of the weights' product")
    assert "higher in block 1, equal in 1" in found
    lacking = table.assign(value_b=np.nan, difference=np.nan).iloc[:1]
    (head, *_) = reports.comparison_words(
        runs(one, one), pd.concat([reports.compare_surveys(runs(one, one)), lacking])
    )["b"]
    assert "the same numbers" not in head


@pytest.fixture
def folders(tmp_path):
    """Three checkpoints of one training."""
    keys = [(block, "all", "x") for block in (0, 1)]
    made = []
    for step in (0, 10, 100):
        folder = tmp_path / f"epoch_{step:03}"
        folder.mkdir()
        survey([step, step + 1], 1.0, keys=keys).save(folder / "survey.npz")
        made.append(folder)
    return made


def test_what_was_made_of_the_sample_says_so(tmp_path):
    keys = [(block, "all", "x") for block in (0, 1)]
    given, sample = survey(range(2), keys=keys), survey(range(2), keys=keys)
    sample.record["images"] = {"count": 2, "source": "sample"}
    assert reports.caveats(given, given) == []
    assert len(reports.caveats(sample, given, sample)) == 1
    runs = [reports.SurveyRun("one", given), reports.SurveyRun("two", sample)]
    page = reports.save_comparison(runs, tmp_path)[0].read_text()
    assert "crops of two photographs" in page


def test_steps_are_read_from_names(folders):
    assert [run.step for run in reports.open_survey_runs(folders)] == [0, 10, 100]
    assert [run.label for run in reports.open_survey_runs(folders)][1] == "epoch_010"
    files = [folder / "survey.npz" for folder in folders]
    assert [run.label for run in reports.open_survey_runs(files)][1] == "epoch_010"
    given = reports.open_survey_runs(folders, steps=[3, 2, 1])
    assert [run.step for run in given] == [3, 2, 1]


def test_steps_are_read_from_weight_files_where_names_have_none(tmp_path):
    for name, weights in {"one": "/x/ckpt-5.pth", "two": "/x/ckpt-7.pth"}.items():
        survey(range(6), weights=weights).save(tmp_path / f"{name}.npz")
    opened = reports.open_survey_runs([tmp_path / "one.npz", tmp_path / "two.npz"])
    assert [(run.label, run.step) for run in opened] == [("one", 5), ("two", 7)]


def test_runs_without_a_step_each_have_none(folders):
    twice = reports.open_survey_runs([folders[0], folders[0]])
    assert [run.step for run in twice] == [None, None]
    assert len({run.label for run in twice}) == 2


def test_steps_that_do_not_fit_and_folders_without_a_survey_are_refused(folders, tmp_path):
    for steps in ([1, 2], [1, 2, 2], [1, 2, np.nan]):
        with pytest.raises(burst.BurstError, match="for 3 runs"):
            reports.open_survey_runs(folders, steps=steps)
    with pytest.raises(burst.CheckpointError, match=r"no survey\.npz in"):
        reports.open_survey_runs([folders[0], tmp_path])


def test_the_command_prints_words_and_writes_page_table_and_record(folders, tmp_path):
    out = tmp_path / "out"
    arguments = ["compare", *map(str, folders), "--steps", "0,1,2", "--out", str(out)]
    result = CliRunner().invoke(command.app, arguments)
    assert result.exit_code == 0, result.output
    assert "epoch_100 against epoch_000" in result.output
    assert result.output.endswith(f"written: {out / 'index.html'}\n")
    table = pd.read_csv(out / "comparison.csv")
    assert list(table.columns) == list(COLUMNS) and len(table) == 2 * 2 * 2
    record = json.loads((out / "run.json").read_text())
    assert [run["step"] for run in record["runs"]] == [0, 1, 2] and record["same_images"]
    page = (out / "index.html").read_text()
    assert "conservative" in page and 'class="explorer"' in page
    figures = {"steps_x.png", "steps_x.pdf", "differences_x.png", "differences_x.pdf"}
    files = {"index.html", "comparison.csv", "run.json"}
    assert {path.name for path in out.iterdir()} == figures | files


@pytest.mark.parametrize(
    "more, text",
    [
        ([], "1 run given"),
        (["missing.npz"], "missing.npz"),
        (["{0}", "--steps", "a"], "--steps 'a' is no list of numbers"),
        (["{0}", "--steps", "nan,1"], "--steps 'nan,1' is no list of numbers"),
    ],
)
def test_a_mistake_is_one_line(folders, more, text):
    arguments = ["compare", str(folders[0]), *(one.format(folders[1]) for one in more)]
    result = CliRunner().invoke(command.app, arguments)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and text in line


def test_lines_of_blocks_lie_at_their_steps():
    three = runs(*(survey(np.arange(6) * i, 1.0) for i in (1, 2, 5)), steps=[0, 10, 100])
    figure = reports.step_figure(three, quantity="x")
    lines = figure.axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[0, 10, 100]] * 2
    assert list(lines[1].get_ydata()) == [4, 8, 20]
    assert len(figure.axes[0].collections) == 2  # the bands
    unnumbered = reports.step_figure(runs(*(run.survey for run in three)), quantity="x")
    labels = [one.get_text() for one in unnumbered.axes[0].get_xticklabels()]
    assert labels == ["a", "b", "c"]


def test_a_quantity_that_nobody_measured_is_not_drawn():
    keys = [(0, "all", "x")]
    pair = runs(*(survey([1.0], keys=keys) for _ in range(2)))
    with pytest.raises(burst.EmptyResult):
        reports.step_figure(pair, quantity="qkx")
    with pytest.raises(burst.EmptyResult):
        reports.difference_figure(reports.compare_surveys(pair), quantity="qkx")


def test_of_many_runs_the_last_is_spoken_of():
    five = runs(*(survey(np.arange(6) * i) for i in range(5)))
    assert list(reports.comparison_words(five, reports.compare_surveys(five))) == ["e"]


def test_other_images_are_not_called_the_same():
    one, other = survey(range(6)), survey(range(6), images={**IMAGES, "seed": 1})
    none = survey(range(6), images=None)
    assert same_images(runs(one, one))
    assert not same_images(runs(one, other)) and not same_images(runs(none, none))
