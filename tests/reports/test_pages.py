"""The pages: every number in them, nothing asked of a network, and right in a real browser."""

import base64
import copy
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from colours import write_images
from matplotlib.figure import Figure
from PIL import Image
from support import backbone_of, vit

import bpt
import burst
import reports
from reports.beside import shade
from reports.page import Page, Section, cell, image_uri


@pytest.fixture(scope="module")
def burst_page(tmp_path_factory):
    """Two small random backbones, compared; the first is whitened. Each figure takes a second."""
    out = tmp_path_factory.mktemp("burst")
    options, shown = burst.SurveyOptions(per_head=True, quantities=("qk", "qkx")), []
    for name in ("mae_x", "sup_x"):
        backbone = dataclasses.replace(backbone_of(vit(depth=2)), name=name)
        images = burst.images_for(backbone, "sample", num_images=12)
        survey = burst.survey(backbone, images, options)
        whitened = reports.measured_whitening(backbone, images) if not shown else ()
        shown.append(reports.BackboneReport(survey, *whitened))
    files = reports.save_burst_report(shown, out, seed=0)
    return out, files, shown


def survey_of_one_block():
    backbone = backbone_of(vit(depth=1))
    images = burst.images_for(backbone, "sample", num_images=1)
    return burst.survey(backbone, images, burst.SurveyOptions(blocks=(0,), quantities=("x",)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    images = write_images(place / "images")
    made = []
    for method in ("vpt", "bpt-bilinear", "linear"):
        recipe = bpt.Recipe(
            dataset=f"folder:{images}",
            method=method,
            placement="last:1",
            num_prompts=4,
            rank=3,
            epochs=2,
            batch_size=8,
        )
        bpt.train(recipe, place / method)
        made.append(bpt.open_run(place / method))
    return made


@pytest.fixture(scope="module")
def bpt_page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("bpt")
    return out, reports.save_bpt_report(runs, out)


class Links(HTMLParser):
    """Everything that a page could fetch."""

    def __init__(self, text):
        super().__init__()
        self.found, self.images = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.found.append(value)
                if tag == "img":
                    self.images.append(value)


@pytest.mark.slow
def test_every_figure_is_in_the_page_and_beside_it(burst_page):
    out, files, _ = burst_page
    links = Links(files[0].read_text())
    pngs = sorted(path for path in out.glob("*.png"))
    assert len(links.images) == len(pngs) == len(list(out.glob("*.pdf")))
    assert {path.stem for path in pngs} == {
        *("depth_lines", "laws", "heads_qk", "heads_qkx"),
        *("overlay_qk", "overlay_qkx", "whitening_mae_x"),
        *(f"depth_{q}_{model}" for q in ("qk", "qkx") for model in ("mae_x", "sup_x")),
        *("where_mae_x", "where_sup_x"),
    }
    for uri in links.images:
        data = base64.b64decode(uri.partition("base64,")[2])
        assert Image.open(io.BytesIO(data)).width > 600


@pytest.mark.slow
@pytest.mark.parametrize("which", ["burst_page", "bpt_page"])
def test_a_page_asks_for_nothing_outside_itself(which, request):
    page = request.getfixturevalue(which)[1][0].read_text()
    assert all(one.startswith(("data:", "#")) for one in Links(page).found)
    assert "@import" not in page and not re.search(r"url\((?!data:)", page)


@pytest.mark.slow
def test_every_number_of_the_survey_is_in_the_page(burst_page):
    out, files, shown = burst_page
    table = pd.concat([one.survey.table for one in shown])
    page = files[0].read_text()
    values = set(re.findall(r'data-value="([^"]+)"', page))
    for column in ("excess_kurtosis", "ggd_shape", "ks_laplace", "max"):
        finite = table[column].dropna()
        assert all(str(float(value)) in values for value in finite)
    assert pd.read_csv(out / "statistics.csv").shape == table.shape
    assert set(json.loads((out / "run.json").read_text())) == {"mae_x", "sup_x"}
    for text in (
        "What was found",
        "mae_x",
        "after the diagonal alone",
        "κ diagonal",
        "Versions:",
        "How it was",
    ):
        assert text in page


@pytest.mark.slow
def test_without_what_says_why_the_page_still_says_where_it_sits(burst_page):
    page = burst_page[1][0].read_text()
    assert ">Where it sits<" in page and ">Spectrum of the weights<" not in page


def test_a_page_of_a_language_model_speaks_of_sequences(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["burst", "report"])  # the page shows the command
    survey = survey_of_one_block()
    read = {"count": 3, "source": "book.txt", "kind": "text"}
    one = reports.BackboneReport(
        dataclasses.replace(survey, record=survey.record | {"images": read})
    )
    page = reports.save_burst_report([one], tmp_path, seed=0)[0].read_text()
    assert "Sequences: 3 of book.txt" in page
    assert "image" not in re.sub(
        r"<(style|script).*?</\1>|data:image|<[^>]*>", "", page, flags=re.S
    )


def test_no_backbone_or_one_twice_is_refused(tmp_path):
    one = reports.BackboneReport(survey_of_one_block())
    for backbones in ([], [one, one]):
        with pytest.raises(burst.EmptyResult, match="at least one"):
            reports.save_burst_report(backbones, tmp_path, seed=0)


@pytest.mark.slow
def test_runs_are_compared_with_all_that_was_promised(bpt_page, runs):
    out, files = bpt_page
    page = files[0].read_text()
    stems = {path.stem for path in out.glob("*.png")}
    expected = {"curves", "prompt_traces", "prompt_values", "prompt_cosines"}
    assert stems == expected | {f"confusion_{number}" for number in range(3)}
    table = pd.read_csv(out / "runs.csv")
    assert list(table["label"]) == ["vpt, last:1", "bpt-bilinear, last:1", "linear"]
    for run in runs:
        assert f"{run.result['test_accuracy']:.1f} %" in page
    assert "most often confused" in page
    for run in runs[:2]:
        kept = run.result["prompt_diagnosis"]["blocks"][0]
        assert f"{kept['effective_rank']:.4g}" in page and f"{kept['prompt_rms']:.4g}" in page


@pytest.mark.slow
def test_a_run_whose_weights_are_gone_costs_the_page_its_prompts_alone(runs, tmp_path):
    lost, here = (dataclasses.replace(run, config=copy.deepcopy(run.config)) for run in runs[:2])
    lost.config["recipe"]["weights"] = "/gone/weights.pth"
    for kept, figures in (([lost, here], {"prompt_values", "prompt_cosines"}), ([lost], set())):
        reports.save_bpt_report(kept, out := tmp_path / str(len(kept)), confusion=False)
        assert "trained on the weights /gone/weights.pth, which are not" in (
            out / "index.html"
        ).read_text().replace("\n", " ")
        assert {path.stem for path in out.glob("*.png")} == {"curves", "prompt_traces"} | figures


def test_a_run_looks_alike_in_all_figures_of_a_page(runs, tmp_path, monkeypatch):
    found = {}

    def kept(section, figure, path, caption, **_):
        for legend in figure.legends:
            for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True):
                found.setdefault(text.get_text(), set()).add((line.get_color(), line.get_ls()))
        return []

    monkeypatch.setattr(Section, "figure", kept)
    reports.save_bpt_report(runs[::-1], tmp_path, confusion=False)
    assert set(found) == {"linear", "bpt-bilinear, last:1", "vpt, last:1"}
    assert [len(looks) for looks in found.values()] == [1, 1, 1]


def test_confusions_add_up_to_the_accuracy(runs):
    for run in runs:
        counts = bpt.confusion_matrix(run)
        found = bpt.evaluate_run(run)
        assert counts.sum() == found.images == 12
        assert 100 * np.trace(counts) / counts.sum() == pytest.approx(found.accuracy)
        assert np.allclose(100 * counts.diagonal() / counts.sum(1), list(found.per_class.values()))


def test_prompts_are_what_the_model_sees(runs):
    for run in runs[:2]:
        values = reports.prompt_values(run)
        model, _ = run.load_model()
        assert {block: one.shape for block, one in values.items()} == {11: (4, 192)}
        assert np.allclose(values[11], model.prompts["11"]().detach().numpy())


def test_labels_tell_runs_apart(runs):
    other = dataclasses.replace(runs[0], config=json.loads(json.dumps(runs[0].config)))
    other.config["recipe"]["lr"] = 0.5
    assert list(reports.labels([runs[0], other])) == ["vpt, last:1, lr 0.05", "vpt, last:1, lr 0.5"]
    assert len(reports.labels([runs[0], runs[0]])) == 2


def test_labels_tell_scales_of_prompts_apart(runs):
    made = []
    for scale in ("unit", "paper"):
        config = json.loads(json.dumps(runs[0].config))
        config["recipe"] |= {"method": "bpt-fwhiten", "prompt_scale": scale}
        made.append(dataclasses.replace(runs[0], config=config))
    named = list(reports.labels(made))
    assert named == [f"bpt-fwhiten, last:1, prompt_scale {scale}" for scale in ("unit", "paper")]


def with_recipe(run, **changes):
    config = json.loads(json.dumps(run.config))
    config["recipe"] |= changes
    return dataclasses.replace(run, config=config)


def test_what_else_differs_is_told_before_the_seed(runs):
    made = [
        with_recipe(runs[0], method=method, seed=seed, rank=rank, lr=lr)
        for method, seed, rank, lr in (
            *(("bpt-bilinear", 0, 1, 0.1), ("bpt-bilinear", 1, 2, 0.1)),
            *(("vpt", 0, 1, 0.2), ("vpt", 1, 2, 0.2)),
        )
    ]
    assert list(reports.labels(made)) == [
        *("bpt-bilinear, last:1, rank 1, seed 0", "bpt-bilinear, last:1, rank 2, seed 1"),
        *("vpt, last:1, seed 0", "vpt, last:1, seed 1"),  # which has no rank
    ]
    scales = [
        with_recipe(runs[0], method="bpt-fwhiten", seed=seed, prompt_scale=scale)
        for seed, scale in enumerate(("unit", "paper"))
    ]
    assert [one.rpartition(", ")[2] for one in reports.labels(scales)] == [
        *("prompt_scale unit", "prompt_scale paper"),
    ]


def test_sections_of_alike_names_have_places_of_their_own():
    page = Page("t", [])
    for title in ("photo 1.jpg", "photo-1.jpg", "PHOTO 1.JPG", "How it was made", "???"):
        page.section(title)
    anchors = [one.anchor for one in page.sections]
    assert anchors == [
        "photo-1-jpg",
        "photo-1-jpg-2",
        "photo-1-jpg-3",
        "how-it-was-made",
        "section",
    ]
    assert all(page.html().count(f'id="{one}"') == 1 for one in anchors)


def test_a_run_without_an_epoch_is_named(runs, tmp_path):
    empty = dataclasses.replace(runs[0], folder=tmp_path / "empty")
    with pytest.raises(burst.EmptyResult, match=r"empty has no epoch"):
        reports.save_bpt_report([empty], tmp_path / "out")


def test_a_difference_has_the_colour_of_its_size():
    colours = [shade(value) for value in (-20.0, -3.0, 0.2, 3.0, 20.0)]
    assert len(set(colours)) == 5 and shade(float("nan")) == ""


def test_cells_keep_the_number_behind_their_text():
    assert cell(1234567.0) == ("1,234,567", 1234567.0, "")
    assert cell(0.123456) == ("0.1235", 0.123456, "")
    assert cell(13534.2) == ("13,534", 13534.2, "")  # no power of ten
    assert cell(float("nan")).text == cell(None).text == ""


def test_an_end_without_a_bound_is_shown_sorted_and_explained():
    ends = pd.DataFrame({"from": [-np.inf, 0.5, np.nan], "to": [2.0, np.inf, np.nan]})
    section = Page("t", []).section("s")
    section.frame(ends, "Intervals.")
    (table,) = section.parts
    assert [one.text for row in table["rows"] for one in row] == ["-∞", "2", "0.5", "∞", "", ""]
    low, *_, high = (one.number for row in table["rows"][:2] for one in row)
    assert low < -1e300 and high > 1e300
    assert high - high == 0  # as the page's script compares
    assert table["caption"].endswith("Where an interval ends at ∞ it has no bound on that side.")
    section.frame(ends.dropna().iloc[:0], "Intervals.")
    assert section.parts[1]["caption"] == "Intervals."


def test_text_is_escaped(tmp_path):
    page = Page("<script>alert(1)</script>", ["a & b"])
    page.section("x").frame(pd.DataFrame({"n": ["<b>"]}), "caption")
    assert "<script>alert" not in page.html() and "a &amp; b" in page.html()
    assert "&lt;b&gt;" in page.html()


def test_names_that_are_no_text_are_written_as_far_as_they_are(runs, tmp_path):
    page = Page("caf\udce9", [])
    page.section("s").frame(pd.DataFrame({"caf\udce9": ["caf\udce9"]}), "c")
    assert page.save(tmp_path / "t.html").read_text("utf-8").count("caf\ufffd") >= 3
    other = dataclasses.replace(runs[0], folder=tmp_path / "r\udce9")
    labels = list(reports.labels([runs[0], other]))
    assert labels == ["vpt, last:1, vpt", "vpt, last:1, r\ufffd"]
    classes = ("caf\udce9", "b")
    reports.confusion_figure(np.eye(2, dtype=int), classes, "r\udce9")  # draws it


def opened(browser, path, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.problems, page.requests = [], []
    page.on("console", lambda message: page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(path.as_uri())
    return page


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["burst_page", "bpt_page"])
def test_a_browser_shows_it_without_error_or_request(browser, which, width, request):
    path = request.getfixturevalue(which)[1][0]
    page = opened(browser, path, width)
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    sizes = page.evaluate(
        "[...document.querySelectorAll('p, li, td, th button, figcaption')]"
        ".map(one => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(sizes) >= 12
    broken = page.evaluate(
        "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    )
    assert broken == 0
    page.close()


def test_on_a_phone_captions_stay_in_sight_and_keys_scroll_what_is_wide(browser, tmp_path):
    table = pd.DataFrame({f"a_long_name_{i}": [1.5] for i in range(12)})
    made = Page("t", [])
    made.section("s").frame(table, "A caption that is longer than a phone is wide. " * 4)
    made.sections[0].figure(Figure(figsize=(6, 3)), tmp_path / "f", "figure")
    page = opened(browser, made.save(tmp_path / "t.html"), 390)
    for scrolled in (0, 10_000):
        page.evaluate(f"document.querySelector('.table').scrollLeft = {scrolled}")
        box = page.locator("caption span").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.evaluate("document.querySelector('figure').onscroll = () => console.log('scrolled')")
    page.focus("figure")
    with page.expect_console_message():
        page.keyboard.press("ArrowRight")
    page.close()


def test_a_table_sorts_both_ways_by_number_with_gaps_last(browser, tmp_path):
    table = pd.DataFrame({"name": ["b", "c", "a", "d"], "value": [10.0, 9.5, float("nan"), -200.0]})
    made = Page("t", [])
    made.section("s").frame(table, "c")
    page = opened(browser, made.save(tmp_path / "t.html"), 800)

    def column(number):
        return page.evaluate(
            f"[...document.querySelectorAll('tbody tr')].map(r => r.cells[{number}].textContent)"
        )

    page.click("th:nth-child(2) button")
    assert column(0) == ["d", "c", "b", "a"]
    page.click("th:nth-child(2) button")
    assert column(0) == ["b", "c", "d", "a"]
    page.click("th:nth-child(1) button")
    assert column(0) == ["a", "b", "c", "d"]
    assert page.get_attribute("th:nth-child(1)", "aria-sort") == "ascending"
    assert page.get_attribute("th:nth-child(2)", "aria-sort") == "none"
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["burst_page", "bpt_page"])
def test_it_prints_on_paper_without_losing_columns(browser, which, request, tmp_path):
    page = opened(browser, request.getfixturevalue(which)[1][0], 800)
    page.emulate_media(media="print")
    margins = {"": 794 - 106, ".wide": 1123 - 76}  # A4 upright and lying, 96 dots an inch
    for kind, room in margins.items():
        page.set_viewport_size({"width": room, "height": 900})
        chosen = f".table{kind or ':not(.wide)'} table"
        widths = page.evaluate(
            f"[...document.querySelectorAll('{chosen}')].map(table => table.scrollWidth)"
        )
        assert max(widths, default=0) <= room
    page.pdf(path=str(tmp_path / "page.pdf"), prefer_css_page_size=True)
    assert (tmp_path / "page.pdf").stat().st_size > 50_000
    page.close()


def test_a_figure_is_shown_at_the_size_that_it_was_made_for(tmp_path):
    figure = Figure(figsize=(4, 3))
    page = Page("t", [])
    page.section("s").figure(figure, tmp_path / "f", "caption")
    part = page.sections[0].parts[0]
    assert (part["width"], part["height"]) == (520, 390)


def test_a_figure_in_the_page_keeps_its_white_and_its_colours_to_2_of_255(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pixels[:10] = 255
    Image.fromarray(pixels).save(tmp_path / "f.png", dpi=(160, 160))
    coded = image_uri(tmp_path / "f.png").partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(coded))) as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(shown - pixels).max() <= 2 and (shown[:10] == 255).all()
