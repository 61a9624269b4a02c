"""Figures of prompts and confusions, against NumPy and scikit-learn."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure
from sklearn.metrics.pairwise import cosine_similarity
from ticks import seen_on_x

import reports
from bpt import BlockDiagnosis, PromptDiagnosis
from burst import EmptyResult
from reports.prompts import draw_confusion, draw_cosines, draw_values, most_confused
from reports.style import SAVED_DPI, Line


@given(arrays(np.float64, (5, 3), elements=st.floats(-10, 10).filter(lambda x: abs(x) > 1e-3)))
def test_cosines_are_scikit_learns(prompts):
    assert np.allclose(reports.cosine_matrix(prompts), cosine_similarity(prompts), atol=1e-12)


def test_a_prompt_of_zeros_is_like_no_other():
    prompts = np.eye(3)
    prompts[1] = 0
    assert np.array_equal(reports.cosine_matrix(prompts), np.diag([1.0, 0, 1]))
    image = draw_cosines(plt.figure().add_subplot(), prompts)
    assert np.array_equal(image.get_array(), np.diag([1.0, 0, 1]))
    plt.close("all")


def test_the_density_of_values_integrates_to_one(rng):
    values = rng.normal(size=(20, 30))
    line = draw_values(plt.figure().add_subplot(), values, Line("x", "k"), bins=51)
    at, density = (np.asarray(one, float) for one in (line.get_xdata(), line.get_ydata()))
    assert len(at) == 51 and np.all(np.diff(at) > 0) and np.allclose(at, -at[::-1])
    reach = np.abs(values).max()
    edges = reach / 200 * np.sinh(np.linspace(-1, 1, 52) * np.arcsinh(200))
    assert np.nansum(density * np.diff(edges)) == pytest.approx(1.0)
    plt.close("all")


def test_the_most_confused_classes_are_named_without_those_that_were_right():
    counts = np.array([[9, 1, 0], [5, 2, 3], [0, 0, 8]])
    found = most_confused(counts, ("a", "b", "c"))
    assert found == [("b", "a", 5, 10), ("b", "c", 3, 10), ("a", "b", 1, 10)]
    mesh = draw_confusion(plt.figure().add_subplot(), counts, ("a", "b", "c"))
    assert np.array_equal(mesh.get_array().filled(0).reshape(3, 3), counts)
    plt.close("all")


def test_names_of_classes_are_no_formulas():
    figure = reports.confusion_figure(np.eye(2, dtype=int), ("US$_1$", "A$_^$B"), "run_$1_$2")
    figure.draw_without_rendering()
    (ax, *_) = figure.axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ["US$_1$", "A$_^$B"]


def inches(figure, artist):
    """How far an artist reaches in the figure's files: left, right, bottom, top."""
    figure.dpi = SAVED_DPI
    figure.draw_without_rendering()
    box = artist.get_window_extent()
    return np.array([box.x0, box.x1, box.y0, box.y1]) / SAVED_DPI


@pytest.mark.parametrize("count, letters, words", [(5, 40, 4), (3, 200, 10), (30, 60, 15)])
def test_long_names_leave_a_confusion_its_room_and_its_title(count, letters, words):
    classes = [f"{i} ".ljust(letters - 2, "w") + f"{i:02d}" for i in range(count)]
    counts = np.random.default_rng(0).integers(0, 4, (count, count))
    figure = reports.confusion_figure(counts, classes, words * "fwhiten, ")
    left, right, *_ = inches(figure, figure.axes[0])
    assert right - left > 0.35 * figure.get_figwidth()  # w is the widest letter
    left, right, *_ = inches(figure, figure._suptitle)
    assert 0 <= left < right <= figure.get_figwidth()
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert max(map(len, names)) <= 24 and len(set(names)) == count


@pytest.mark.parametrize(
    "largest, ticks", [(1, [1]), (3, [1, 2, 3]), (6, [1, 2, 6]), (40, [1, 2, 5, 10, 20, 40])]
)
def test_images_are_counted_in_whole_numbers_up_to_the_largest(largest, ticks):
    figure = reports.confusion_figure(np.diag([largest, 1, 0]), ("a", "b", "c"), "x")
    bar = figure.axes[1]
    low, high = bar.get_ylim()
    shown = zip(bar.get_yticks(), bar.get_yticklabels(), strict=True)
    assert [int(text.get_text()) for at, text in shown if low <= at <= high] == ticks
    assert not [text for text in bar.get_yticklabels(minor=True) if text.get_text()]


@pytest.mark.parametrize("typical", [0.0104, 0.03, 0.07, 2.0])
def test_labels_of_prompt_values_do_not_cover_each_other(typical):
    drawn = typical * np.random.default_rng(0).laplace(size=4000)
    figure = reports.values_figure({"vpt": drawn, "bpt-twhiten": 60 * drawn})
    (ax,) = figure.axes
    figure.draw_without_rendering()
    low, high = ax.get_xlim()
    shown = [text for text in ax.get_xticklabels() if low <= text.get_position()[0] <= high]
    boxes = sorted((text.get_window_extent() for text in shown), key=lambda box: box.x0)
    assert len(boxes) >= 3
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_a_prompt_of_one_token_is_counted_in_whole_numbers():
    ax = Figure().subplots()
    draw_cosines(ax, np.ones((1, 4)))
    assert seen_on_x(ax) == [0]


def test_titles_of_cosines_keep_out_of_each_other(rng):
    prompts = {f"bpt-fwhiten, last:4, lr 0.05, seed {i}": rng.normal(size=(5, 9)) for i in range(4)}
    figure = reports.cosine_figure(prompts)
    *panels, bar = figure.axes
    titles = [inches(figure, ax._left_title) for ax in panels]
    starts = [*(title[0] for title in titles[1:]), inches(figure, bar)[0]]
    assert all(title[1] < start for title, start in zip(titles, starts, strict=True))


def test_nothing_to_draw_is_told():
    for draw in (reports.values_figure, reports.cosine_figure, reports.trace_figure):
        with pytest.raises(EmptyResult, match="no run has prompts"):
            draw({})


def diagnosed(*, prompt=1.0, rank=6.5, share=0.08):
    blocks = (BlockDiagnosis(0, prompt, 0.5, rank), BlockDiagnosis(3, 0.6, 0.5, 7.0))
    return PromptDiagnosis(128, 8, share, 0.1, blocks)


def test_a_diagnosis_has_a_row_a_block_with_its_scale_and_shares_in_percent():
    frame = reports.diagnosis_frame({"one": diagnosed(), "map": diagnosed(share=None)})
    assert list(frame["label"]) == ["one", "one", "map", "map"]
    assert list(frame["block"]) == [0, 3, 0, 3]
    assert list(frame["times larger"]) == pytest.approx([2.0, 1.2, 2.0, 1.2])
    shares = frame["image in the head's input (%)"]
    assert list(shares[:2]) == pytest.approx([8.0, 8.0]) and shares[2:].isna().all()


def test_prompts_that_hide_the_image_or_are_nearly_one_are_spoken_of_and_no_others():
    found = {
        "vpt": diagnosed(),
        "large": diagnosed(prompt=65.0, share=0.001),
        "bilinear": diagnosed(rank=1.3),
    }
    assert reports.diagnosis_sentences(found) == [
        "large: the head hardly sees the image. The prompts of block 0 are 130 times as large "
        "as the patches there; of what the head reads 0.1 % depends on the image, of the patches' "
        "mean 10 %.",
        "bilinear: the 8 prompts of block 0 are nearly one. Their effective rank by energy is 1.3.",
    ]
    flat = {"bilinear": diagnosed(rank=1.3)}
    assert reports.diagnosis_sentences(flat, {"bilinear": 2}) == []  # as its rank has it
    assert "nearly one" in reports.diagnosis_sentences(flat, {"bilinear": 3})[0]
