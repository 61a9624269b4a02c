"""A survey's file: everything comes back, it adds as before, and what is no survey is refused."""

import json
import math
import os

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import backbone_of, float_histogram, regular_histogram, vit

from burst.adapters import SkippedBlock
from burst.axis import RegularAxis
from burst.errors import CheckpointError, OutputError
from burst.histogram import Histogram, NonFinite
from burst.moments import Moments
from burst.survey import Survey, SurveyOptions, images_for, survey

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def survey_of(histograms, table=None, **changes):
    """A survey of given histograms, with something in every field."""
    count = range(len(histograms))
    columns = {
        "model": ["a/b" for _ in count],
        "block": list(count),
        "gini": [math.nan for _ in count],
    }
    parts = {
        "table": pd.DataFrame(columns) if table is None else table,
        "histograms": {(block, "all", "x"): hist for block, hist in enumerate(histograms)},
        "skipped": (SkippedBlock(3, "blocks.3", "Attention: it ünderstands"),),
        "omitted": ("rotary position", "soft cap"),
        "bad_images": (("torn\udcff.png", 'it is "torn"'),),
        "record": {"model": "a/b", "images": None, "options": {"bins": 256, "blocks": [0, 1]}},
    }
    return Survey(**parts | changes)


def counted(values, **beside):
    hist = float_histogram(values)
    flow = hist.values(flow=True)
    return Histogram(hist.axis, flow, moments=hist.moments, **beside)


def same(one: Histogram, two: Histogram) -> bool:
    """To the last bit, with all that == leaves out."""
    parts = ("axis", "moments", "nonfinite", "backend", "precision", "kernel")
    return np.array_equal(one.values(flow=True), two.values(flow=True)) and all(
        getattr(one, part) == getattr(two, part) for part in parts
    )


def check_equal(found, expected):
    pd.testing.assert_frame_equal(found.table, expected.table, check_exact=True)
    assert list(found.histograms) == list(expected.histograms)
    assert list(found.margins) == list(expected.margins)
    for key, margins in expected.margins.items():
        for part in ("rows", "columns"):
            one, two = (getattr(each, part).arrays() for each in (found.margins[key], margins))
            assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert all(same(found.histograms[key], hist) for key, hist in expected.histograms.items())
    for name in ("skipped", "omitted", "bad_images", "record"):
        assert getattr(found, name) == getattr(expected, name)


@pytest.fixture(scope="module")
def measured():
    options = SurveyOptions(blocks=(0, 2), per_head=True)
    backbone = backbone_of(vit())
    return survey(backbone, images_for(backbone, "sample", num_images=3), options)


@pytest.fixture
def stored(measured, tmp_path):
    measured.save(tmp_path / "survey.npz")
    return tmp_path / "survey.npz"


def test_a_measured_survey_comes_back_as_it_was(measured, stored):
    found = Survey.load(str(stored))
    assert {hist.backend for hist in found.histograms.values()} == {"torch"}
    plain = json.loads(json.dumps(measured.record))
    check_equal(found, Survey(**vars(measured) | {"record": plain}))
    assert os.listdir(stored.parent) == [stored.name]


@pytest.mark.parametrize("blocks", [range(1), np.arange(1), iter([0])], ids=type)
def test_blocks_may_be_given_as_any_numbers(blocks, tmp_path):
    found = survey(vit(), [torch.zeros(1, 3, 16, 16)], SurveyOptions(blocks=blocks))
    found.save(tmp_path / "survey.npz")
    assert Survey.load(tmp_path / "survey.npz").record["options"]["blocks"] == [0]


def test_what_is_read_is_written_alike(stored, tmp_path):
    Survey.load(stored).save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == stored.read_bytes()


@settings(max_examples=30)
@given(
    parts=st.lists(st.tuples(*2 * [st.lists(FLOATS, max_size=40)]), min_size=1, max_size=3),
    rare=st.tuples(*3 * [st.integers(0, 2**60)]),
    text=st.text(max_size=9),
)
def test_saved_surveys_add_as_those_in_memory(parts, rare, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("surveys")
    beside = {"nonfinite": NonFinite(*rare), "backend": "torch", "precision": text, "kernel": text}
    pairs = zip(*[[counted(values, **beside) for values in pair] for pair in parts], strict=True)
    expected = [survey_of(histograms) for histograms in pairs]
    found = []
    for number, one in enumerate(expected):
        one.save(folder / f"{number}.npz")
        found.append(Survey.load(folder / f"{number}.npz"))
        check_equal(found[-1], one)
    for key, hist in expected[0].histograms.items():
        whole = hist + expected[1].histograms[key]
        assert same(found[0].histograms[key] + found[1].histograms[key], whole)


def test_flow_extremes_and_a_regular_axis_are_kept(tmp_path):
    outside = regular_histogram(np.array([-9.0, 0.1, 0.2, 7.0]), RegularAxis(3, -0.3, 1 / 3))
    huge = Histogram(outside.axis, [2**61, 0, 0, 1, 0], moments=Moments(2**61 + 1, m4=math.inf))
    expected = survey_of([outside, huge, counted([])])
    expected.save(tmp_path / "x.npz")
    check_equal(Survey.load(tmp_path / "x.npz"), expected)


@pytest.mark.parametrize("texts", [["a", "b"], ["a", None], [None, None], [True, False]])
def test_columns_keep_their_values_and_kinds(texts, tmp_path):
    numbers = {"i": np.array([-1, 2**60]), "f": [math.inf, 0.1], "u": np.array([0, 1], np.uint8)}
    table = pd.DataFrame({"text": texts, **numbers, "file": ["", "é"]})
    expected = survey_of([counted([1.0])] * 2, table=table)
    expected.save(tmp_path / "x.npz")
    found = Survey.load(tmp_path / "x.npz").table
    pd.testing.assert_frame_equal(found, table, check_exact=True)
    assert list(found.dtypes) == list(table.dtypes)


def test_the_file_can_be_read_without_this_library(measured, stored):
    with np.load(stored, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        hist = measured.histograms[0, "all", "qkx"]
        assert np.array_equal(arrays["0/all/qkx/counts"], hist.values(flow=True))
        assert arrays["0/all/qkx/moments"][0] == hist.moments.mean
        assert np.array_equal(arrays["table/gini"], measured.table["gini"])
    assert about["record"]["model"] == "test"
    assert about["columns"] == list(measured.table.columns)


def rewritten(path, **changes):
    """The file with some arrays changed or, if None, left out."""
    with np.load(path) as arrays:
        kept = dict(arrays) | changes
    np.savez(path, **{name: value for name, value in kept.items() if value is not None})


def about_with(path, **changes):
    with np.load(path) as arrays:
        return np.array(json.dumps(json.loads(str(arrays["about"])) | changes))


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        Survey.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path} cannot be read as a survey: ") and "\n" not in text
    assert text.endswith("; expected what `burst histogram --out` or `Survey.save` wrote")
    return text


def test_what_is_no_survey_is_told_apart_in_one_line(stored, tmp_path):
    assert "No such file" in refusal(tmp_path / "none.npz")
    assert "directory" in refusal(tmp_path)
    (tmp_path / "text.npz").write_text("hello")
    assert "not a whole .npz" in refusal(tmp_path / "text.npz")
    torch.save({"a": torch.ones(1)}, tmp_path / "w.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    for name in ("w.npz", "other.npz"):
        assert "no item named 'about.npy'" in refusal(tmp_path / name)
    np.savez(tmp_path / "object.npz", about=np.array({}, dtype=object))
    assert "allow_pickle=False" in refusal(tmp_path / "object.npz")
    rewritten(stored, about=about_with(stored, kind="burst survey 2"))
    assert "of another kind, 'burst survey 2'" in refusal(stored)


@pytest.mark.parametrize("part", ["0/all/x/counts", "2/3/qk/moments", "table/gini", "about"])
def test_a_part_that_is_missing_or_of_another_kind_is_refused(part, stored):
    with np.load(stored) as arrays:
        value = arrays[part]
    for other in (None, value[..., None][:0], value.astype("U9")):
        rewritten(stored, **{part: other})
        if part != "table/gini" or other is None or not other.size:
            refusal(stored)


def test_counts_that_do_not_fit_are_refused(stored):
    with np.load(stored) as arrays:
        counts = arrays["0/all/x/counts"]
    shifted = counts.copy()
    shifted[1:3] += [-counts[1] - 1, counts[1] + 1]  # the same sum, one bin below 0
    for other in (shifted, counts * 2, counts.astype(float)):
        rewritten(stored, **{"0/all/x/counts": other})
        refusal(stored)


def test_a_damaged_file_is_an_error_in_one_line_or_reads_as_it_was(tmp_path, rng):
    expected = survey_of([counted([1.0, -2.0, 3.0]), counted([0.5])])
    expected.save(tmp_path / "x.npz")
    content = (tmp_path / "x.npz").read_bytes()
    damaged = tmp_path / "damaged.npz"
    for cut in rng.integers(0, len(content), 20):
        damaged.write_bytes(content[:cut])
        assert "not a whole .npz" in refusal(damaged)
    for place in rng.integers(0, len(content), 80):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        damaged.write_bytes(changed)
        try:
            found = Survey.load(damaged)
        except CheckpointError:
            refusal(damaged)
        else:  # where the zip has a date, say
            check_equal(found, expected)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of NumPy 2.0
@pytest.mark.usefixtures("short_files")
def test_a_full_disk_is_told(tmp_path):
    large = survey_of([], record={"noise": np.random.default_rng(0).bytes(99_999).hex()})
    with pytest.raises(OutputError, match=r"cannot write .*x\.npz: File too large"):
        large.save(tmp_path / "x.npz")
    assert os.listdir(tmp_path) == []


def test_another_suffix_and_a_place_that_cannot_be_written_are_one_line(measured, tmp_path):
    with pytest.raises(OutputError, match=r"a survey is saved as \.npz"):
        measured.save(tmp_path / "survey.pt")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write") as caught:
        measured.save(tmp_path / "file" / "x.npz")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


def test_an_interruption_leaves_what_was_there(measured, stored, monkeypatch):
    before = stored.read_bytes()

    def interrupt(stream, **_):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measured.save(stored)
    assert stored.read_bytes() == before
    assert os.listdir(stored.parent) == [stored.name]
