"""What is drawn and said of softmax is in the table."""

import numpy as np
import pandas as pd
import pytest

from burst.errors import EmptyResult
from reports.softmax import shown_measures, softmax_figure, softmax_words


def table_of(**columns):
    """Two blocks of two heads, and the heads together."""
    rows = []
    for block in (0, 1):
        for head in ("all", "0", "1"):
            row = {"model": "made", "block": block, "head": head, "relative_entropy": 0.9}
            row |= {"max_weight": 0.2, "class_weight": np.nan, "register_weight": np.nan}
            row |= {"first_weight": 0.1 + block / 2}
            rows.append(row | {name: values[block] for name, values in columns.items()})
    return pd.DataFrame(rows)


def test_a_line_is_the_whole_and_a_dot_a_head():
    figure = softmax_figure(table_of(relative_entropy=(0.9, 0.4)), title="made")
    assert [ax.get_title("left") for ax in figure.axes] == [
        "entropy, of an even softmax's",
        "largest weight",
        "weight on the first token",
    ]
    line, dots = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [0.9, 0.4])
    assert len(dots.get_xdata()) == 4


def test_no_marker_is_cut_off_where_attention_is_even():
    entropy, *_ = softmax_figure(table_of(relative_entropy=(0.9999, 0.9998)), title="made").axes
    low, high = entropy.get_ylim()
    assert low == 0
    assert high > 1.03


def test_the_first_token_stands_for_models_without_a_class_token():
    assert "first_weight" in shown_measures(table_of())
    assert "first_weight" not in shown_measures(table_of(class_weight=(0.3, 0.2)))


def test_the_sentence_names_the_most_peaked_block_and_the_sink():
    said = softmax_words(table_of(relative_entropy=(0.9, 0.4)))
    assert "most peaked in block 1, with 40 % of the entropy" in said
    assert "the first token gets most in block 1, 60 % of all weight" in said


def test_no_softmax_is_not_drawn():
    with pytest.raises(EmptyResult, match="logits"):
        softmax_figure(table_of().iloc[:0], title="made")
