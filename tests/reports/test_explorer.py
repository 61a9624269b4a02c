"""The explorer of the report page: what is in the page, and what a browser shows of it."""

import base64
import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import backbone_of, vit

import burst
from burst.distribution import fit_gaussian, fit_generalised_gaussian, fit_laplace
from reports.explorer import explorer_data, packed, without_intervals
from reports.page import Page

LAWS = {
    "gaussian": fit_gaussian,
    "laplacian": fit_laplace,
    "generalised gaussian": fit_generalised_gaussian,
}


def with_interval(table, column, half):
    """The table with an interval for one statistic of what depends on images."""
    half = np.where(table["quantity"] == "qk", np.nan, half)
    ends = {f"{column}_low": table[column] - half, f"{column}_high": table[column] + half}
    return table.assign(**ends)


@pytest.fixture(scope="module")
def surveys():
    """Two random models; the first has heads and an interval."""
    made = []
    for name in ("one", "two"):
        backbone = dataclasses.replace(backbone_of(vit(depth=2)), name=name)
        images = burst.images_for(backbone, "sample", num_images=4)
        options = burst.SurveyOptions(per_head=name == "one", bins=128)
        made.append(burst.survey(backbone, images, options))
    table = with_interval(made[0].table, "excess_kurtosis", 0.25)
    return [dataclasses.replace(made[0], table=table), made[1]]


@pytest.fixture(scope="module")
def saved(surveys, tmp_path_factory):
    page = Page("t", [])
    page.section("Explorer").explorer(surveys)
    return page.save(tmp_path_factory.mktemp("explorer") / "t.html")


def unpacked(text, bins):
    """Histograms of `bins` bins each, read from the text by the description of `packed`."""
    data, at, found = base64.b64decode(text), 0, []

    def number():
        nonlocal at
        value, shift = 0, 0
        while True:
            at += 1
            value |= (data[at - 1] & 0x7F) << shift
            if data[at - 1] < 0x80:
                return value
            shift += 7

    while at < len(data):
        counts = []
        while len(counts) < bins:
            counts.append(number())
            if counts[-1] == 0:
                counts += [0] * number()
        found.append(counts)
    return found


def counted(hist, width):
    """128 bins about zero, from the histogram's own."""
    index = np.floor(hist.edges[:-1] / width).astype(int) + 64
    inside = (index >= 0) & (index < 128)
    return np.bincount(index[inside], hist.values()[inside], 128).astype(int)


@given(st.lists(st.lists(st.integers(0, 2**53), min_size=6, max_size=6), max_size=4))
def test_packed_counts_are_read_back(histograms):
    text = packed(np.array(counts, np.int64) for counts in histograms)
    assert unpacked(text, 6) == histograms


def test_the_data_has_every_histogram_with_counts_laws_and_statistics(surveys):
    data = json.loads(json.dumps(explorer_data(surveys), allow_nan=False))
    rows, counts = iter(data["rows"]), iter(unpacked(data["counts"], 128))
    names = [name for name, _ in data["statistics"]]
    assert names == list(without_intervals(surveys[1].table).columns[5:])
    for number, survey in enumerate(surveys):
        table = survey.table.set_index(["block", "head", "quantity"])
        for key, hist in survey.histograms.items():
            row, rebinned = next(rows), hist.rebin(128)
            assert (row["model"], row["block"], row["head"], row["quantity"]) == (number, *key)
            assert np.array_equal(next(counts), rebinned.values())
            for level in range(row["finer"]):
                width = row["width"] / 2 ** (level + 1)
                assert np.array_equal(next(counts), counted(hist, width))
            assert key[1] == "all" or row["finer"] == 0
            edges = row["first"] + row["width"] * np.arange(129)
            assert np.array_equal(edges, rebinned.edges)
            values = np.array(row["values"], float)  # None becomes NaN
            assert np.allclose(values, table.loc[key, names].astype(float), 1e-5, equal_nan=True)
            for name, law in row["laws"].items():
                location, scale, shape = law
                fitted = LAWS[name](hist)
                same = burst.GeneralisedGaussian(location, scale, shape)
                assert np.allclose(same.cdf(edges), fitted.cdf(edges), atol=1e-8)
    assert next(rows, None) is next(counts, None) is None


def test_intervals_are_there_where_the_table_has_them(surveys):
    rows = explorer_data(surveys)["rows"]
    for row in rows:
        depends = row["model"] == 0 and row["quantity"] != "qk"
        assert ("intervals" in row) == depends
        if depends:
            (interval,) = (one for one in row["intervals"] if one)
            assert interval[1] - interval[0] == pytest.approx(
                0.5, abs=1e-3
            )  # ends have four digits


def test_an_interval_that_has_no_bound_on_one_side_keeps_the_other(surveys):
    ends = np.resize(
        [[-0.05, np.inf], [np.nan, np.nan], [-np.inf, 4.5]], (len(surveys[0].table), 2)
    )
    names = ["excess_kurtosis_low", "excess_kurtosis_high"]
    table = surveys[0].table.assign(**dict(zip(names, ends.T, strict=True)))
    survey = dataclasses.replace(surveys[0], table=table)
    data = json.loads(json.dumps(explorer_data([survey]), allow_nan=False))
    place = [name for name, _ in data["statistics"]].index("excess_kurtosis")
    found = {json.dumps(row.get("intervals", [None] * 99)[place]) for row in data["rows"]}
    assert found == {"[-0.05, null]", "null", "[null, 4.5]"}
    section = Page("t", []).section("s")
    section.explorer([survey])
    assert "no bound on that side" in section.parts[0]["text"]


def test_only_the_ends_of_intervals_leave_the_table():
    table = pd.DataFrame({"a": [1], "a_low": [0], "a_high": [2], "b_low": [3]})
    assert list(without_intervals(table)) == ["a", "b_low"]


def test_values_that_do_not_vary_have_no_law(histogram_of, surveys):
    key = (0, "all", "x")
    one = dataclasses.replace(surveys[1], histograms={key: histogram_of([0.5] * 3)})
    (row,) = explorer_data([one])["rows"]
    assert set(row["laws"].values()) == {None}


@pytest.mark.parametrize("values", [[], [0.0] * 3, [1e-40, -1e-41], [1e4, 1e4 + 1]])
def test_odd_values_are_taken_as_they_are(histogram_of, surveys, values):
    one = dataclasses.replace(surveys[1], histograms={(0, "all", "x"): histogram_of(values)})
    data = json.loads(json.dumps(explorer_data([one]), allow_nan=False))
    assert data["rows"][0]["finer"] == 0  # nothing to be seen there
    assert sum(map(sum, unpacked(data["counts"], 128))) == len(values)


@pytest.fixture
def shown(browser, saved):
    """The page at a width, with what it asked for; nothing may have gone wrong at the end."""
    contexts = []

    def show(width=1280, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: page.problems.append(request.url))
        page.goto(saved.as_uri())
        return page

    yield show
    for context in contexts:
        (page,) = context.pages
        assert [one for one in page.problems if not one.startswith("data:")] == [saved.as_uri()]
        context.close()


def state(page, expression):
    return page.evaluate(f"(() => {{ const s = document.querySelector('.explorer').state; "
                         f"return {expression}; }})()")  # fmt: skip


def choose(page, **choices):
    for name, value in choices.items():
        page.select_option(f"select[name={name}]", label=value)


def heights(page):
    """How many entries each visible bin is drawn to have, on the linear scale."""
    path = page.get_attribute(".plot .entries", "d")
    ends = [float(one) for one in re.findall(r"V([\d.e-]+)", path)]
    base = ends.pop()
    ticks = page.evaluate(
        "[...document.querySelectorAll('.plot text[text-anchor=end]')].map(one => "
        "[parseFloat(one.getAttribute('y')) - 4, one.textContent])"
    )
    numbers = [
        (at, float(text.split()[0]) * (1000 if text.endswith("k") else 1)) for at, text in ticks
    ]
    (zero, _), (last, most) = numbers[0], numbers[-1]
    assert base == pytest.approx(zero)
    return [(base - end) / (base - last) * most for end in ends]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_drawn_bins_are_the_counts(shown, surveys, width):
    page = shown(width)
    choose(page, model="one", block="1", quantity="W_q W_kᵀ Xᵀ", head="2")
    page.check("[value=linear]")
    counts = surveys[0].histograms[1, "2", "qkx"].rebin(128).values()
    assert state(page, "s.grid.counts") == counts.tolist()
    occupied = np.flatnonzero(counts)
    seen = counts[max(0, occupied[0] - 1) : occupied[-1] + 2]
    assert np.allclose(heights(page), seen, atol=1e-6 * seen.max())
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("width", [1280, 390])
def test_a_bin_is_read_by_pointer_with_what_the_laws_expect(shown, surveys, width):
    page = shown(width)
    choose(page, model="two", block="0", quantity="X")
    box = page.locator(".plot").bounding_box()
    page.mouse.move(box["x"] + 0.55 * box["width"], box["y"] + 100)
    cursor = state(page, "s.bin")
    hist = surveys[1].histograms[0, "all", "x"]
    rebinned = hist.rebin(128)
    lo, hi = rebinned.edges[cursor : cursor + 2]
    lines = {
        line.get_attribute("data-values"): line.locator("td").all_text_contents()
        for line in page.locator("[data-values]").all()
    }
    number = {name: [float(one.replace(",", "")) for one in of] for name, of in lines.items()}
    count = rebinned.values()[cursor]
    assert number["entries"] == pytest.approx([count, count / hist.count / (hi - lo)], rel=5e-3)
    for name, fit in LAWS.items():
        law = fit(hist)
        expected = [hist.count * (law.cdf(hi) - law.cdf(lo)), law.pdf((lo + hi) / 2)]
        assert number[name] == pytest.approx([float(one) for one in expected], rel=5e-3)


def test_laws_are_right_far_out_in_the_tails(shown):
    page = shown()
    for law in ([0.5, 1.3, 2.0], [-1.0, 0.2, 1.0], [0.0, 0.01, 0.4], [0.0, 1.0, 7.5]):
        for lo, hi in ((-0.1, 0.4), (2.0, 2.5), (-3.0, -2.9), (0.5, 0.50001)):
            exact = burst.GeneralisedGaussian(*law)
            mass = float(exact.cdf(-lo + 2 * law[0]) - exact.cdf(-hi + 2 * law[0]))  # no 1 - 1
            found = page.evaluate(f"probability({law}, {lo}, {hi})")
            assert found == pytest.approx(mass, rel=1e-9, abs=1e-15)


def test_keys_move_the_cursor_and_zoom_and_it_is_said(shown, surveys):
    page = shown()
    choose(page, model="one", block="0", quantity="W_q W_kᵀ", head="all together")
    counts = surveys[0].histograms[0, "all", "qk"].rebin(128).values()
    page.focus("[data-zoom=in]")
    for _ in range(2):  # past the buttons that are off
        if not page.evaluate("document.activeElement.matches('.plot')"):
            page.keyboard.press("Tab")
    fullest = int(counts.argmax())
    assert state(page, "s.bin") == fullest
    for key, bin_ in {
        "ArrowRight": fullest + 1, "ArrowLeft": fullest, "PageUp": fullest + 10,
        "PageDown": fullest,
    }.items():  # fmt: skip
        page.keyboard.press(key)
        assert state(page, "s.bin") == bin_
        assert f"{counts[bin_]:,} entries" in page.text_content("[aria-live]")
    whole = state(page, "s.view")
    page.keyboard.press("+")
    lo, hi = state(page, "s.view")
    assert hi - lo == pytest.approx((whole[1] - whole[0]) / 2)
    page.keyboard.press("End")  # the view follows
    assert state(page, "s.view")[1] == pytest.approx(whole[1])
    for key in ("-", "0"):
        page.keyboard.press(key)
        assert state(page, "s.view") == pytest.approx(whole)


def test_a_range_is_zoomed_to_by_dragging_and_the_wheel_waits_for_a_click(shown):
    page = shown()
    whole = state(page, "s.view")
    page.locator(".plot").scroll_into_view_if_needed()
    box = page.locator(".plot").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 150
    page.mouse.move(x, y)
    page.mouse.wheel(0, -100)  # the page's
    page.wait_for_timeout(50)
    assert state(page, "s.view") == whole
    page.locator(".plot").scroll_into_view_if_needed()
    box = page.locator(".plot").bounding_box()
    y = box["y"] + 150
    ends = [state(page, f"s.valueAt({at})") for at in (200, 300)]
    page.mouse.move(box["x"] + 200, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, y)
    page.mouse.up()
    assert state(page, "s.view") == pytest.approx(ends, rel=1e-6)
    page.mouse.wheel(0, 100)
    page.wait_for_function(
        "w => document.querySelector('.explorer').state.view[0] < w", arg=ends[0]
    )
    page.mouse.dblclick(box["x"] + 250, y)
    assert state(page, "s.view") == pytest.approx(whole)
    page.click("[data-zoom=in]")
    lo, hi = state(page, "s.view")
    assert hi - lo == pytest.approx((whole[1] - whole[0]) / 2)


def test_narrower_bins_appear_where_one_zooms_in(shown, surveys):
    page = shown()
    choose(page, model="two", block="1", quantity="W_q W_kᵀ Xᵀ")
    hist = surveys[1].histograms[1, "all", "qkx"]
    widths = []
    for _ in range(8):
        width = state(page, "s.grid.width")
        assert state(page, "s.grid.counts") == counted(hist, width).tolist()
        widths.append(width)
        if page.is_enabled("[data-zoom=in]"):
            page.click("[data-zoom=in]")
    assert widths[0] == hist.rebin(128).axis.hi / 64
    assert min(widths) <= hist.moments.std / 16 < 2 * min(widths)
    page.focus(".plot")
    page.keyboard.press("End")  # where only the widest bins are
    assert state(page, "s.grid.width") == widths[0]


def test_two_fingers_zoom(shown):
    page = shown(390, has_touch=True)
    whole = state(page, "s.view")
    page.evaluate("document.querySelector('.plot').scrollIntoView({behavior: 'instant'})")
    box = page.locator(".plot").bounding_box()
    client = page.context.new_cdp_session(page)

    def touch(kind, *fingers):
        points = [{"x": box["x"] + at, "y": box["y"] + 100, "id": i} for i, at in fingers]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (0, 160))
    touch("touchStart", (0, 160), (1, 240))
    held = [state(page, f"s.valueAt({at})") for at in (160, 240)]
    for apart in (20, 40):
        touch("touchMove", (0, 160 - apart), (1, 240 + apart))
    page.wait_for_function(
        "w => { const [lo, hi] = document.querySelector('.explorer').state.view; "
        "return hi - lo < w; }",
        arg=0.6 * (whole[1] - whole[0]),
    )
    assert [state(page, f"s.valueAt({at})") for at in (120, 280)] == pytest.approx(held, abs=1e-6)
    touch("touchEnd")


def test_lists_offer_what_was_measured(shown, surveys):
    page = shown()
    choose(page, model="one", quantity="W_q W_kᵀ Xᵀ", head="3")
    assert "95 % interval" in page.inner_text(".statistics")
    choose(page, quantity="X")  # has no heads
    assert page.is_disabled("select[name=head]")
    choose(page, model="two", block="0")
    assert page.text_content(".statistics caption") == "two, block 0: X"
    assert "95 % interval" not in page.inner_text(".statistics")
    kurtosis = surveys[1].table.query("block == 0 and quantity == 'x'")["excess_kurtosis"].item()
    text = page.inner_text(".statistics").replace("−", "-")
    assert f"excess kurtosis\t{kurtosis:.3f}"[:20] in text


def test_it_opens_at_the_burstiest_block(shown, surveys):
    page = shown()
    rows = surveys[0].table.query("head == 'all' and quantity == 'qkx'")
    worst = rows.loc[rows["excess_kurtosis"].idxmax(), "block"]
    assert state(page, "[s.row.model, s.row.block, s.row.head]") == [0, worst, "all"]


def test_a_law_can_be_hidden(shown):
    page = shown()
    laws = ".plot .law"
    assert page.locator(laws).count() == 3
    page.uncheck("[name=law][value=gaussian]")
    assert page.locator(laws).count() == 2


def test_without_javascript_or_on_paper_a_note_stands_for_it(shown):
    page = shown(java_script_enabled=False)
    assert page.is_visible(".explorer-note") and not page.is_visible(".explorer")
    page = shown()
    assert page.is_visible(".explorer") and not page.is_visible(".explorer-note")
    page.emulate_media(media="print")
    assert page.is_visible(".explorer-note") and not page.is_visible(".explorer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_paper(shown, scheme):
    """Contrast of at least 4.5, as WCAG 2.2 asks of text, of 3 for what is drawn."""
    page = shown(color_scheme=scheme)

    def luminance(colour):
        parts = np.array([float(one) for one in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    def contrast(selector, what):
        chosen = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}")
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        low, high = sorted((luminance(chosen), luminance(paper)))
        return (high + 0.05) / (low + 0.05)

    for selector, what in {"body": "color", ".keys": "color", ".plot text": "fill"}.items():
        assert contrast(selector, what) >= 4.5
    for number in (1, 2, 3):
        assert contrast(f".values tr:nth-child({number + 1}) .law", "stroke") >= 3
