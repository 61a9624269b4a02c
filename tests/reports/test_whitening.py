import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from support import DIM, backbone_of, vit

import burst
from burst.errors import EmptyResult, OutputError
from reports.whitening import (
    chosen_blocks,
    save_whitening_run,
    whiteness_warning,
    whiteness_words,
    whitening_figure,
    whitening_record,
    whitening_table,
    whitening_words,
)


@pytest.fixture(scope="module")
def made():
    backbone = backbone_of(vit(depth=6))
    images = burst.images_for(backbone, "sample", num_images=20)
    options = burst.WhiteningOptions(blocks=(0, 2, 5))
    whitening = burst.whiten(backbone, images, options)
    return whitening, burst.whitened_histograms(backbone, images, whitening, options)


def test_a_row_shows_before_after_and_the_spectrum(made):
    whitening, pairs = made
    figure = whitening_figure(whitening, pairs, title="test")
    assert len(figure.axes) == 12
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[0].startswith("block 0, $Y$")
    assert titles[5].startswith("block 2, $V^{-1/2} Y$")
    assert titles[6].startswith("block 2, $W Y$")
    one = whitening.blocks[2]
    assert titles[11] == (
        f"{one.kept} of {DIM} directions\nkept, held-out error {one.whiteness_error:.2f}"
    )
    assert len(figure.legends) == 1


def test_the_spectrum_is_relative_and_the_floor_is_drawn(made):
    whitening, pairs = made
    figure = whitening_figure(whitening, {2: pairs[2]})
    spectrum, floor = figure.axes[3].get_lines()
    eigenvalues = whitening.eigenvalues[1].numpy()
    shown = np.asarray(spectrum.get_ydata())
    positive = eigenvalues > 0
    assert np.allclose(shown[positive], eigenvalues[positive] / eigenvalues[0])
    assert set(floor.get_ydata()) == {1e-6}


def test_the_entries_drawn_are_those_counted(made):
    whitening, pairs = made
    figure = whitening_figure(whitening, {0: pairs[0]})
    one = pairs[0]
    for ax, hist in zip(figure.axes[:3], (one.before, one.diagonal, one.after), strict=True):
        (steps,) = ax.patches
        assert steps.get_data()[0].sum() == hist.count


def test_blocks_that_were_not_whitened_cannot_be_drawn(made):
    whitening, pairs = made
    with pytest.raises(EmptyResult, match=r"blocks \[3\]"):
        whitening_figure(whitening, {3: pairs[0]})
    with pytest.raises(EmptyResult):
        whitening_figure(whitening, {})


def shown(table):
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(table)
    return console.export_text()


def test_the_table_fits_eighty_columns(made):
    text = shown(whitening_table(*made))
    rows = [line.split() for line in text.splitlines() if line.split()[:1] in (["0"], ["5"])]
    assert len(rows) == 2
    assert rows[0][3] == str(made[0].blocks[0].kept)
    kurtosis = (one.moments.excess_kurtosis for one in (made[1][0][i] for i in (0, 2, 1)))
    share = made[0].blocks[0].kept_variance
    assert rows[0][4:6] == [f"{100 * share:.3f}", "%"]
    assert rows[0][7] == "→".join(f"{value:.2f}" for value in kurtosis)
    assert "…" not in text


def test_the_plain_form_has_before_and_after(made):
    whitening, pairs = made
    first = whitening_record(whitening, pairs)[0]
    assert first["block"] == 0
    assert first["kept"] == whitening.blocks[0].kept
    for name in ("before", "diagonal", "after"):
        found = getattr(pairs[0], name).moments.excess_kurtosis
        assert first[f"excess_kurtosis_{name}"] == found
    assert len({first[f"excess_kurtosis_{name}"] for name in ("before", "diagonal", "after")}) == 3


@pytest.fixture(scope="module")
def diagonal():
    backbone = backbone_of(vit(depth=6))
    images = burst.images_for(backbone, "sample", num_images=20)
    options = burst.WhiteningOptions(blocks=(0, 2), method="diagonal")
    whitening = burst.whiten(backbone, images, options)
    return whitening, burst.whitened_histograms(backbone, images, whitening, options)


def test_the_diagonal_alone_is_drawn_once(diagonal):
    whitening, pairs = diagonal
    figure = whitening_figure(whitening, pairs)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert len(titles) == 6
    assert titles[1].startswith("block 0, $V^{-1/2} Y$")
    one = whitening.blocks[0]
    assert titles[2] == f"{one.kept} of {DIM} rows\nkept, held-out error {one.variance_error:.2f}"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "variances of the rows of $Y$" in labels


def test_the_table_of_the_diagonal_says_how_much_of_its_error_is_of_variances(diagonal):
    whitening, pairs = diagonal
    text = shown(whitening_table(whitening, pairs))
    (row,) = (line.split() for line in text.splitlines() if line.split()[:1] == ["2"])
    one = whitening.blocks[1]
    assert row[6:8] == [f"{one.whiteness_error:.3f}", f"{one.variance_error:.3f}"]
    assert row[8].count("→") == 1
    assert "…" not in text
    record = whitening_record(whitening, pairs)[0]
    assert record["excess_kurtosis_diagonal"] == record["excess_kurtosis_after"]


def test_where_the_deviations_are_not_known_the_diagonal_is_left_out(made):
    whitening, pairs = made
    known = {block: one._replace(diagonal=None) for block, one in pairs.items()}
    assert len(whitening_figure(whitening, {0: known[0]}).axes) == 3
    assert "excess_kurtosis_diagonal" not in whitening_record(whitening, known)[0]
    text = shown(whitening_table(whitening, known))
    assert text.count("→") == 1 + 2 * 3
    assert "V^" not in text
    assert "diagonal" not in whitening_words(known)


def test_the_sentence_has_the_median_and_the_largest(made):
    _, pairs = made
    values = [one.diagonal.moments.excess_kurtosis for one in pairs.values()]
    words = f"{np.median(values):.2f} after the diagonal alone (at most {max(values):.2f})"
    assert words.replace("-", "−") in whitening_words(pairs)
    assert whitening_words({}) == ""


def of_errors(whitening, *errors, **record):
    blocks = zip(whitening.blocks, errors, strict=True)
    blocks = tuple(replace(one, whiteness_error=error) for one, error in blocks)
    return replace(whitening, blocks=blocks, record=whitening.record | record)


def test_a_whitening_that_failed_on_held_out_images_is_warned_of(made):
    whitening, _ = made
    failed = of_errors(whitening, 0.4, 1.08, 9.51)
    assert whiteness_words(failed).startswith("on held-out images the error is 1.08 (at most 9.51)")
    assert "in 2 of 3 blocks: the error is up to 9.51" in whiteness_warning(failed)
    assert whiteness_warning(failed).endswith("more images or a higher floor help")
    assert "floor" not in whiteness_warning(of_errors(failed, 0.4, 1.08, 9.51, recipe="authors"))
    assert whiteness_warning(of_errors(whitening, 0.4, 0.5, 1.0)) == ""


def test_without_held_out_images_nothing_is_said_of_them(made):
    whitening, pairs = made
    unknown = of_errors(whitening, *[math.nan] * 3)
    assert whiteness_words(unknown) == whiteness_warning(unknown) == ""
    titles = [ax.get_title(loc="left") for ax in whitening_figure(unknown, {0: pairs[0]}).axes]
    assert titles[3] == f"{whitening.blocks[0].kept} of {DIM} directions\nkept"


def test_few_blocks_are_chosen_evenly(made):
    assert chosen_blocks(made[0]) == (0, 2, 5)


def test_the_figure_stands_beside_the_matrices(made, tmp_path):
    whitening, pairs = made
    files = save_whitening_run(whitening, {2: pairs[2]}, tmp_path / "W.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["W.pdf", "W.png", "W.safetensors"]
    assert [file.name for file in files] == ["W.safetensors", "W.png", "W.pdf"]
    back = burst.load_whitening(tmp_path / "W.safetensors", backbone_of(vit(depth=6)))
    assert torch.equal(back.W, whitening.W)
    assert back.record["seed"] == 0
    assert "torch" in back.record["made"]["versions"]


def test_another_suffix_is_refused(made, tmp_path):
    with pytest.raises(OutputError, match=r"\.pt or \.safetensors"):
        save_whitening_run(*made, tmp_path / "W.npy", seed=0)
    assert os.listdir(tmp_path) == []
