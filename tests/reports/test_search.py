"""The page of a search: every number of search.json in it, intervals as they are, flat or not."""

import copy
import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import searches
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats
from ticks import seen_on_x
from typer.testing import CliRunner

import burst
import reports
from cli import bpt as command
from reports.page import Section
from reports.paper_tables import latex, markdown
from reports.search import BETTER
from reports.search_figures import curves_figure, draw_forest, draw_rates, rates_figure
from reports.search_tables import (
    Curve,
    Search,
    flatness,
    flatness_words,
    open_search,
)
from reports.style import model_lines


class Tables(HTMLParser):
    """The rows of all tables of a page, as text."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "td"
        if tag == "tr":
            self.rows.append([])
        if self.inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "td"

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A search made up by hand: its folder, its content, its page, and what `bpt report` prints."""
    folder = tmp_path_factory.mktemp("search")
    record = searches.write_search(folder)
    arguments = ["report", str(folder), "--out", str(folder), "--json"]
    result = CliRunner().invoke(command.app, arguments)
    assert result.exit_code == 0, result.output
    return folder, record, (folder / "index.html").read_text(), result.stdout


def test_every_number_of_a_method_stands_in_the_page_and_in_the_table(made):
    folder, record, html, _ = made
    rows = Tables(html).rows
    table = pd.read_csv(folder / "methods.csv", keep_default_na=False)
    for entry, line in zip(record["methods"], table.to_dict("records"), strict=True):
        assert line["method"] == entry["method"] and line["trials"] == len(entry["trials"])
        assert line["trained"] == entry["trained_parameters"]
        assert (line["lr"], line["val"]) == (entry["chosen"]["lr"], entry["chosen"]["score"])
        assert line["inside"] == ("yes" if entry["inside"] else "no")
        values = entry["test"]["values"]
        assert line["test"] == pytest.approx(np.mean(values))
        assert line["sd"] == pytest.approx(np.std(values, ddof=1))
        shown = next(row for row in rows if row[:1] == [entry["method"]] and len(row) == 11)
        assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" in shown
        assert f"{entry['trained_parameters']:,}" in shown
    trials = pd.read_csv(folder / "trials.csv")
    assert len(trials) == 24 and (trials["stopped"] == "yes").sum() == 5  # one more diverged
    assert trials["score"].isna().sum() == (trials["diverged"] == "yes").sum() == 1
    assert (trials["chosen"] == "yes").sum() == 3


def test_the_sentence_comes_first(made):
    html = made[2]
    found = html.index(made[1]["sentences"][0])
    assert found < html.index("<table")
    assert "not at its end yet" not in html and "folds together" not in html


def test_the_page_asks_for_nothing_and_every_figure_and_table_lies_beside_it(made):
    folder, _, html, _ = made
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    figures = ("differences", "rates", "epochs")
    assert all((folder / f"{one}.{kind}").exists() for one in figures for kind in ("png", "pdf"))
    for name in ("methods", "differences", "trials", "flatness"):
        for kind in ("csv", "md", "tex"):
            assert (folder / f"{name}.{kind}").stat().st_size
    for name in ("methods", "differences", "trials"):
        about, *lines = (folder / f"{name}.tex").read_text().splitlines()
        assert about == "% digits, mae_tiny, seeds 0, 1, 2; accuracies in percent"
        assert "trials/" not in "".join(lines) + (folder / f"{name}.md").read_text()


def test_every_trial_has_the_digits_of_the_methods(made):
    rows = Tables(made[2]).rows
    for entry in made[1]["methods"]:
        score = f"{entry['chosen']['score']:.2f}"
        of_method = [row for row in rows if row[:1] == [entry["method"]]]
        assert sum(score in row for row in of_method) == 2  # its own row, and the trial's


def test_a_search_that_goes_on_and_one_across_folds_say_so(tmp_path):
    record = searches.write_search(tmp_path / "one", complete=False, kind="cross")
    record["methods"][2] |= {"chosen": None, "inside": None, "runs": [], "test": None}
    record |= {"differences": [], "sentences": []}
    (tmp_path / "one" / "search.json").write_text(json.dumps(record))
    out = tmp_path / "elsewhere"
    html = reports.save_search_report(tmp_path / "one", out)[0].read_text()
    assert "not at its end yet" in html and "5-fold cross-validation" in html
    assert "click a heading to sort. Epochs are those of the 5 folds together<" in html
    assert "No epochs are known of bpt-fwhiten" in html
    table = pd.read_csv(out / "methods.csv", keep_default_na=False)
    assert list(table["inside"]) == ["yes", "yes", ""]
    stopped = pd.read_csv(out / "trials.csv").query("stopped == 'yes'")["method"]
    assert set(stopped) == {"linear", "vpt"}  # of the third none is known to be
    assert (out / "index.html").exists() and not (tmp_path / "one" / "index.html").exists()
    assert "after a quarter and a half of their training too" in html


def test_how_trials_were_compared_is_said(tmp_path):
    record = searches.write_search(tmp_path, kind="cross")
    record["options"]["halving"] = False
    text = unescape(page_of_trials(tmp_path, record))
    assert "trained to the end of its training and compared there; between folds" in text
    del record["options"]  # as of a search of version 0.2.0, which always did
    assert "after a quarter and a half" in unescape(page_of_trials(tmp_path, record))


def test_a_search_that_has_just_begun_has_a_page(tmp_path):
    record = searches.write_search(tmp_path / "one", complete=False)
    for entry in record["methods"]:
        entry |= {"trials": [], "chosen": None, "inside": None, "runs": [], "test": None}
    record |= {"differences": [], "sentences": []}
    (tmp_path / "one" / "search.json").write_text(json.dumps(record))
    page, *_ = reports.save_search_report(tmp_path / "one", tmp_path / "page")
    assert "No trial has come to its first comparison yet" in page.read_text()


def page_of_trials(folder, record):
    """The page of a search that has just begun: without a figure, each of which takes a second."""
    record["differences"] = []
    for one in record["methods"]:
        one |= {"trials": [], "runs": []}
    (folder / "search.json").write_text(json.dumps(record))
    return reports.save_search_report(folder)[0].read_text()


def test_what_methods_do_not_share_is_told_of_each(tmp_path):
    record = searches.write_search(tmp_path)
    given = {"linear": {"batch_size": 1024, "optimizer": "sgd"}, "vpt": {"batch_size": 64}}
    for one in record["methods"]:
        plain = record["base"] | {"batch_size": 32, "epochs": 50, "optimizer": "adamw"}
        one["recipe"] = plain | given.get(one["method"], {})
    text = unescape(page_of_trials(tmp_path, record))
    (shared,) = re.findall("What all trainings share: ({.*?})", text)
    own = dict(re.findall("Of ([a-z-]+) alone: ({.*?})", text))
    assert json.loads(shared)["epochs"] == 50 and "batch_size" not in shared
    assert json.loads(own["linear"]) == {"batch_size": 1024, "optimizer": "sgd"}
    assert json.loads(own["vpt"]) == {"batch_size": 64, "optimizer": "adamw"}


@pytest.mark.parametrize(
    "augmentation, probe, told",
    [("flip", "none", True), ("flip", "flip", False), ("none", "none", False)],
)
def test_a_probe_without_augmentation_among_others_with_it_is_told(
    tmp_path, augmentation, probe, told
):
    record = searches.write_search(tmp_path)
    record["base"]["augmentation"] = augmentation
    for one in record["methods"]:
        if one["method"] == "linear":
            one["recipe"] = record["base"] | {"augmentation": probe}
    page = page_of_trials(tmp_path, record)
    assert ("centre crops, always the same; the others on images" in page) == told


def test_what_is_coloured_is_what_the_sentences_call_better(made):
    """By the corrected p-value: vpt's interval leaves 0 out, but not among three differences."""
    page = (made[0] / "index.html").read_text()
    cells = re.findall(r"<td[^>]*>[+][0-9.]+</td>", page)
    assert [one for one in cells if BETTER in one] == [one for one in cells if "+6.20" in one] != []
    table = pd.read_csv(made[0] / "differences.csv")
    assert list(table["adjusted_p"]) == [0.08, 1e-4, 0.14]


def test_the_forest_has_the_intervals_of_the_file(made):
    rows = pd.DataFrame(made[1]["differences"])
    part = rows[rows["against"] == "linear"]
    drawn = draw_forest(Figure().subplots(), part, model_lines(part["method"]))
    for one, line in zip(drawn, part.to_dict("records"), strict=True):
        assert one.lines[0].get_xdata()[0] == line["difference"]
        ends = one.lines[2][0].get_segments()[0][:, 0]
        np.testing.assert_allclose(ends, [line["low"], line["high"]])


def test_an_interval_of_one_seed_says_so(made):
    rows = pd.DataFrame(made[1]["differences"]).assign(dataset="digits", seeds=[1, 3, 3])
    ax = Figure().subplots()
    draw_forest(ax, rows, model_lines(["vpt", "bpt-fwhiten"]))
    names = [one.get_text() for one in ax.get_yticklabels()]
    assert names == ["digits: vpt (1 seed)", "digits: bpt-fwhiten", "digits: bpt-fwhiten"]


def test_a_method_looks_alike_in_all_figures_of_a_page(made, tmp_path, monkeypatch):
    drawn = {}

    def kept(section, figure, path, caption, **_):
        drawn[path.name] = figure
        return []

    monkeypatch.setattr(Section, "figure", kept)
    reports.save_search_report(made[0], tmp_path)
    (legend,) = drawn["epochs"].legends
    found = zip(legend.get_texts(), legend.get_lines(), strict=True)
    over_epochs = {text.get_text(): (line.get_color(), line.get_marker()) for text, line in found}
    assert list(over_epochs) == ["linear", "vpt", "bpt-fwhiten"]
    for ax in drawn["differences"].axes:
        methods = [text.get_text() for text in ax.get_yticklabels()]
        for method, bars in zip(methods, ax.containers, strict=True):
            point = bars.lines[0]
            assert (point.get_color(), point.get_marker()) == over_epochs[method]


def test_a_trial_that_was_stopped_is_hollow_and_one_that_diverged_a_cross(made):
    entry = made[1]["methods"][1]
    styles = dict(zip((0.0, 0.005), model_lines("ab").values(), strict=True))
    ax = Figure().subplots()
    handles = draw_rates(ax, entry, styles)
    assert {"chosen", "part of its epochs or folds", "diverged"} <= set(handles)
    hollow = [one for one in ax.lines if one.get_mfc() == "white"]
    assert sum(len(one.get_xdata()) for one in hollow) == 2  # of each decay the largest rate
    low, high = ax.get_xlim()
    assert low < 0.003 and high > 0.1


@given(
    st.integers(3, 60).flatmap(
        lambda n: st.lists(st.floats(0, 100, width=32), min_size=n, max_size=n)
    )
)
def test_the_slope_at_the_end_is_that_of_least_squares(values):
    found = flatness(values)
    last = np.array(values[-found.epochs :])
    assert found.epochs == max(3, -(-len(values) // 4))
    if np.ptp(last) < 1e-3:  # scipy knows no error where nothing varies
        assert found.slope == pytest.approx(0, abs=1e-3) and found.error < 1e-3
        return
    line = stats.linregress(np.arange(found.epochs), last)
    assert found.slope == pytest.approx(line.slope, abs=1e-9)
    if found.epochs < 5:
        assert found.error == pytest.approx(line.stderr, abs=1e-5)
    assert line.stderr * 0.999 - 1e-5 <= found.error <= line.stderr * 1.001 * 19**0.5 + 1e-5
    reach = stats.t(found.epochs - 2).interval(0.95)[1] * found.error
    assert found.high - found.slope == pytest.approx(reach)
    assert found.low <= found.slope <= found.high


def test_epochs_that_are_like_their_neighbours_tell_less_of_a_slope(rng):
    """Stationary curves, x' = 0.5 x + noise: 5 % should be said to rise or fall."""
    curves = rng.normal(size=(400, 150))
    for epoch in range(1, 150):
        curves[:, epoch] += 0.5 * curves[:, epoch - 1]
    said = [flatness(curve).verdict in ("still rising", "falling") for curve in curves[:, 50:]]
    assert np.mean(said) < 0.13  # 0.25 with errors of independent epochs


def test_a_curve_is_flat_rising_falling_or_too_noisy():
    assert flatness([50.0, 50.1]) is None
    assert "too few epochs" in flatness_words("vpt", None)
    rising = [2.0 * epoch for epoch in range(20)]
    assert flatness(rising).verdict == "still rising"
    assert "another" not in flatness_words("vpt", flatness([50.0] * 20))
    assert "would gain 10.0 points" in flatness_words("vpt", flatness(rising))
    assert flatness(rising[::-1]).verdict == "falling"
    assert flatness([50.0] * 20).verdict == "flat"
    slowly = [50 + 0.001 * epoch for epoch in range(100)]  # 0.025 points in as many again
    assert flatness(slowly).low > 0 and flatness(slowly).verdict == "flat"
    assert "would gain" not in flatness_words("linear", flatness(slowly))
    assert flatness([10.0, 50.0, 5.0, 40.0]).verdict == "too noisy to tell"


def test_an_epoch_alone_has_a_whole_number():
    (ax,) = curves_figure({"vpt": Curve("val_accuracy", np.array([[50.0], [51.0]]))}).axes
    assert seen_on_x(ax) == [1]


@pytest.mark.parametrize(("lowest", "floor", "marks"), [(40.0, None, 0), (0.0, 36.7, 1)])
def test_all_rates_have_one_range_in_which_the_best_are_told(made, lowest, floor, marks):
    record = copy.deepcopy(made[1])
    record["methods"][0]["trials"][0]["score"] = lowest
    axes = rates_figure(Search(made[0], record)).axes
    ends = {ax.get_ylim() for ax in axes}
    assert len(ends) == 1
    (low, high), best = ends.pop(), [one["chosen"]["score"] for one in record["methods"]]
    assert high > max(best) and low < min(best)
    assert floor is None or low == pytest.approx(floor)
    below = [line for ax in axes for line in ax.lines if line.get_marker() == "v"]
    assert [list(one.get_xdata()) for one in below] == [[0.003]] * marks


def test_methods_of_different_lengths_are_drawn_over_the_share_of_their_epochs():
    curve = {n: Curve("val_accuracy", np.ones((2, n))) for n in (4, 10)}
    figure = curves_figure({"vpt": curve[4], "linear": curve[10]})
    (ax,) = figure.axes
    assert [line.get_xdata()[-1] for line in ax.lines] == [1.0, 1.0]
    assert "share" in ax.get_xlabel()
    same = curves_figure({"vpt": curve[4], "spt": curve[4]}).axes[0]
    assert list(same.lines[0].get_xdata()) == [1, 2, 3, 4] and same.get_xlabel() == "epoch"


def test_the_words_of_each_curve_are_on_the_page(made):
    folder, _, html, _ = made
    assert "linear: still rising at the end" in html
    table = pd.read_csv(folder / "flatness.csv")
    mean = np.mean([searches.curve("linear", seed) for seed in searches.SEEDS], axis=0)
    slope = np.polyfit(np.arange(3), mean[-3:], 1)[0]
    assert table.set_index("method").loc["linear", "slope"] == pytest.approx(slope)
    assert f"| {slope:.3f} |" in (folder / "flatness.md").read_text()


def test_tables_are_escaped_for_documents():
    frame = pd.DataFrame({"weight_decay": [0.00001, None], "method": ["a|b", "50 % & more_"]})
    assert markdown(frame).splitlines()[::2] == ["| weight decay | method |", r"| 1e-05 | a\|b |"]
    assert r"– & 50 \% \& more\_ \\" in latex(frame)
    path = latex(pd.DataFrame({"dataset": [r"a\b^c~d"]}))
    assert r"a\textbackslash{}b\textasciicircum{}c\textasciitilde{}d \\" in path


@pytest.mark.parametrize(
    ("column", "value", "math", "plain"),
    [
        ("difference", -2.0, "$-2.00$", "−2.00"),
        ("low", -np.inf, r"$-\infty$", "−∞"),
        ("high", np.inf, r"$+\infty$", "+∞"),
        ("lr", 1e-5, "$10^{-5}$", "1e-05"),
        ("lr", 2.5e-5, r"$2.5\times 10^{-5}$", "2.5e-05"),
        ("adjusted_p", 6e-12, "$<10^{-10}$", "<1e-10"),
        ("trained", 12_345, "12,345", "12,345"),
    ],
)
def test_numbers_are_math_in_latex_and_have_a_minus_sign_elsewhere(column, value, math, plain):
    frame = pd.DataFrame({column: [value]})
    assert latex(frame).splitlines()[4] == rf"{math} \\"
    assert markdown(frame).splitlines()[2] == f"| {plain} |"


def test_what_is_no_search_is_refused(tmp_path):
    with pytest.raises(burst.CheckpointError, match="no readable search.json"):
        open_search(tmp_path)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(burst.CheckpointError, match="damaged"):
        open_search(tmp_path)
    (tmp_path / "search.json").write_text('{"kind": "bpt run 1"}')
    with pytest.raises(burst.CheckpointError, match="not what `bpt search` of this"):
        open_search(tmp_path)


def test_bpt_report_prints_the_methods_of_one_search(made):
    folder, record, _, printed = made
    for line, entry in zip(json.loads(printed), record["methods"], strict=True):
        assert line["test"] == pytest.approx(entry["test"]["mean"])
    arguments = ["report", str(folder), str(folder.parent), "--out", str(folder)]
    mixed = CliRunner().invoke(command.app, arguments)
    assert mixed.exit_code == 2 and "one search at a time" in mixed.stderr
