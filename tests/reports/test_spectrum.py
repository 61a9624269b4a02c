"""The spectrum's figure, tables, sentence and files."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from support import DEPTH, HEADS, backbone_of, vit
from torch import nn

import burst
from burst.errors import EmptyResult, OutputError
from reports.spectrum import (
    MEASURES,
    save_spectrum,
    spectrum_figure,
    spectrum_frame,
    spectrum_notes,
    spectrum_table,
    spectrum_words,
)


@pytest.fixture(scope="module")
def found():
    return burst.spectrum(backbone_of(vit()))


def zeroed(*blocks):
    model = vit()
    for block in blocks:
        nn.init.zeros_(model.blocks[block].attn.qkv.weight)
    return burst.spectrum(model)


def shown(table, width=80):
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(table)
    return console.export_text()


def test_a_line_is_a_block_or_a_head_and_the_dashed_one_random_factors(found):
    figure = spectrum_figure(found)
    whole, heads = figure.axes[:2]
    assert [ax.get_title(loc="left") for ax in (whole, heads)] == ["heads together", "each head"]
    assert len(whole.get_lines()) == DEPTH + 1
    assert len(heads.get_lines()) == DEPTH * HEADS + 1
    first = found.values[0, "all"]
    drawn = np.asarray(whole.get_lines()[0].get_ydata())
    visible = ~np.isnan(drawn)
    np.testing.assert_allclose(drawn[visible], (first / np.linalg.norm(first))[visible])
    random = np.asarray(whole.get_lines()[-1].get_ydata())
    np.testing.assert_allclose(random, found.nulls[0, "all"] / np.linalg.norm(first))
    assert whole.get_yscale() == "log"
    colours = [line.get_color() for line in whole.get_lines()[:DEPTH]]
    assert len(set(colours)) == DEPTH
    assert heads.get_lines()[HEADS].get_color() == colours[1]
    above = np.argsort([line.get_zorder() for line in heads.get_lines()])
    assert above[-1] == DEPTH * HEADS  # random factors; of the others no block is above the rest
    assert not np.array_equal(above, range(len(above)))


def test_statistics_are_drawn_over_depth_beside_their_null(found):
    figure = spectrum_figure(found)
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes}
    table = found.table[found.table["head"] == "all"]
    for name in ("stable_rank", "effective_rank", "symmetric_share", "tail_exponent"):
        lines = panels[MEASURES[name]].get_lines()
        np.testing.assert_array_equal(lines[0].get_ydata(), table[name])
        np.testing.assert_array_equal(lines[2].get_ydata(), table[f"{name}_null"])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["heads together", "one head", "random factors", "random factors, one head"]


def test_one_block_without_heads_is_drawn_too():
    figure = spectrum_figure(burst.spectrum(vit(), (1,), per_head=False))
    assert len(figure.axes) == 5
    null = figure.axes[1].get_lines()[1]
    assert len(null.get_xdata()) == 2  # a point would not be seen


def test_zero_weights_are_left_out_of_the_figure_and_told_in_the_table():
    some = zeroed(1)
    assert len(spectrum_figure(some).axes[0].get_lines()) == DEPTH
    row = next(line.split() for line in shown(spectrum_table(some)).splitlines() if " 1 " in line)
    assert row == ["1", "0", "0.00", "0"]
    with pytest.raises(EmptyResult, match="all are 0"):
        spectrum_figure(zeroed(0, 1, 2))
    assert spectrum_words(zeroed(0, 1, 2)) == "All query or key weights are 0."


def test_the_table_has_a_line_a_block_and_one_of_random_factors(found):
    text = shown(spectrum_table(found))
    rows = [line.split() for line in text.splitlines()]
    table = found.table[found.table["head"] == "all"]
    for block, (_, row) in enumerate(table.iterrows()):
        (line,) = (one for one in rows if one[:1] == [str(block)])
        assert line[3:6] == [
            f"{row['stable_rank']:.1f}",
            f"{row['effective_rank']:.1f}",
            f"{row['symmetric_share']:.1%}",
        ]
    assert sum(one[:1] == ["random"] for one in rows) == 1
    assert "…" not in text


def test_the_frame_is_that_of_whole_blocks(found):
    frame = spectrum_frame(found)
    assert list(frame["block"]) == [0, 1, 2, "random"]
    assert frame["symmetric share"].iloc[-1] == pytest.approx((1 + 1 / 32) / 2)
    assert len(frame.columns) < 12  # fits on paper


def test_the_sentence_names_median_and_extreme(found):
    table = found.table[found.table["head"] == "all"]
    words = spectrum_words(found)
    assert f"{100 * table['symmetric_share'].median():.0f} % of W_q W_kᵀ is symmetric" in words
    assert f"block {table['stable_rank'].to_numpy().argmin()} is nearest" in words


def test_the_files_hold_all_of_it(found, tmp_path):
    files = save_spectrum(found, tmp_path / "new")
    names = ["spectrum.csv", "singular_values.npz", "run.json", "spectrum.png", "spectrum.pdf"]
    assert [file.name for file in files] == names
    assert sorted(os.listdir(tmp_path / "new")) == sorted(names)
    table = pd.read_csv(files[0], dtype={"head": str})
    pd.testing.assert_frame_equal(table, found.table, check_dtype=False)
    with np.load(files[1]) as arrays:
        assert len(arrays) == 2 * len(found.values)
        for (block, head), values in found.values.items():
            np.testing.assert_array_equal(arrays[f"test/{block}/{head}/values"], values)
            np.testing.assert_array_equal(
                arrays[f"test/{block}/{head}/null"], found.nulls[block, head]
            )
    record = json.loads(files[2].read_text())
    assert record["model"] == "test" and record["per_head"] is True
    assert "torch" in record["versions"]


def test_where_files_cannot_be_written_is_told(found, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        save_spectrum(found, tmp_path / "file")


def test_notes_say_where_the_heads_are(found, tmp_path):
    assert spectrum_notes(found, files=[]) == ["each head's numbers: --out DIR or --json"]
    (line,) = spectrum_notes(found, files=[tmp_path / "a.csv", tmp_path / "b.csv"])
    assert line == f"written to {tmp_path}: a.csv, b.csv"
