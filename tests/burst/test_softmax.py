"""What softmax makes of scores, against SciPy's entropy of weights that are written out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax
from scipy.stats import entropy
from support import float_histogram, vit

from burst.adapters import find_blocks
from burst.score_tiles import Given, Scores, Tile
from burst.softmax import (
    SOFTMAX_COLUMNS,
    WEIGHTS,
    Prefix,
    SoftmaxAccumulator,
    prefixes_of,
    query_weights,
    softmax_table,
)


def scores_of(x, **kwargs):
    return Scores(Given(x, 1), **kwargs)


def accumulated(*scores, prefix=None):
    accumulator = SoftmaxAccumulator(prefix)
    for one in scores:
        accumulator.add(one)
    return accumulator


def test_weights_of_a_query_are_those_of_scipy():
    logits = 5 * torch.randn(7, 11)
    found = query_weights(Tile(logits), Prefix(1, 3)).double().numpy()
    p = softmax(logits.double().numpy(), axis=1)
    h = entropy(p, axis=1)
    keys = np.full(7, 11.0)
    expected = keys, h, h / np.log(11), p.max(1), p[:, 0], p[:, 0], p[:, 1:4].sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32


def test_masked_keys_weigh_nothing_and_do_not_count():
    x = torch.randn(1, 1, 4, 4)
    masked = x.masked_fill(torch.ones(4, 4).triu(1).bool(), torch.finfo(torch.float32).min)
    accumulator = accumulated(scores_of(masked))
    [found] = accumulator.weights()
    p = softmax(masked[0, 0].double().numpy(), axis=1)
    h = entropy(p, axis=1)
    means = found.means()
    assert means["keys"] == 2.5
    np.testing.assert_allclose(means["entropy"], h.mean(), rtol=1e-5)
    relative = h[1:] / np.log([2, 3, 4])  # the first query sees one key: there is no choice
    np.testing.assert_allclose(means["relative_entropy"], relative.mean(), rtol=1e-5)
    np.testing.assert_allclose(means["first_weight"], p[:, 0].mean(), rtol=1e-5)
    [hist] = accumulator.histograms()
    assert hist == float_histogram(x[0, 0][torch.ones(4, 4).tril().bool()])


def test_deviations_are_over_queries():
    logits = torch.randn(3, 2, 5, 6)
    found = accumulated(scores_of(logits)).weights()[1]
    p = softmax(logits[:, 1].double().numpy(), axis=-1).reshape(15, 6)
    assert found.queries == 15
    deviations = found.deviations()
    np.testing.assert_allclose(deviations["entropy"], entropy(p, axis=1).std(), rtol=1e-4)
    np.testing.assert_allclose(deviations["max_weight"], p.max(1).std(), rtol=1e-4)
    assert deviations["keys"] == 0.0


def test_batches_and_heads_add_up_to_the_whole():
    x = torch.randn(4, 2, 5, 5)
    whole = accumulated(scores_of(x))
    halves = accumulated(scores_of(x[:1]), scores_of(x[1:]))
    for one, two in zip(whole.histograms(), halves.histograms(), strict=True):
        assert one.allclose(two)
    for one, two in zip(whole.weights(), halves.weights(), strict=True):
        np.testing.assert_allclose(one.sums, two.sums, rtol=1e-12)
    together = accumulated(scores_of(x.reshape(8, 1, 5, 5))).weights()[0]
    first, second = whole.weights()
    np.testing.assert_allclose((first + second).sums, together.sums, rtol=1e-12)


def test_queries_of_padding_are_left_out_and_the_first_token_is_the_first_that_is_none():
    x = torch.randn(2, 1, 4, 4)
    keep = torch.tensor([[False, False, True, True], [True, True, True, False]])
    seen = x.masked_fill(~keep[:, None, None], float("-inf"))
    [found] = accumulated(scores_of(seen, keep=keep)).weights()
    p = softmax(seen[:, 0].double().numpy(), axis=-1)
    assert found.queries == 5
    first = [*p[0, 2:, 2], *p[1, :3, 0]]
    np.testing.assert_allclose(found.means()["first_weight"], np.mean(first), rtol=1e-5)


def test_prefix_queries_are_left_out_and_stay_keys():
    x = torch.randn(2, 1, 5, 5)
    accumulator = accumulated(scores_of(x, prefix=2), prefix=Prefix(1, 1))
    [found] = accumulator.weights()
    p = softmax(x[:, 0, 2:].double().numpy(), axis=-1)
    assert found.queries == 6
    np.testing.assert_allclose(found.means()["register_weight"], p[..., 1].mean(), rtol=1e-5)
    assert accumulator.histograms()[0].count == 2 * 3 * 5


def test_a_query_that_sees_nothing_is_none():
    x = torch.zeros(1, 1, 2, 3)
    x[0, 0, 1] = float("-inf")
    accumulator = accumulated(scores_of(x))
    [found] = accumulator.weights()
    assert found.queries == 1
    assert found.means()["entropy"] == pytest.approx(np.log(3))
    assert accumulator.histograms()[0].count == 3


def test_scores_that_are_not_numbers_are_in_no_mean():
    x = torch.zeros(1, 1, 2, 3)
    x[0, 0, 1, 1] = float("nan")
    accumulator = accumulated(scores_of(x))
    assert accumulator.weights()[0].means()["max_weight"] == pytest.approx(1 / 3)
    assert accumulator.histograms()[0].nonfinite.nan == 1


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_a_query_whose_scores_are_not_finite_is_not_counted(masked, odd):
    logits = torch.randn(4, 6)
    logits[1, 2] = odd
    found = query_weights(Tile(logits, masked), Prefix()).numpy()
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(found[0, [0, 2, 3]]).all()


def test_fewer_keys_than_queries_are_no_tokens():
    [found] = accumulated(scores_of(torch.randn(1, 1, 6, 2)), prefix=Prefix(1)).weights()
    means = found.means()
    assert np.isnan([means["first_weight"], means["class_weight"]]).all()
    assert means["max_weight"] >= 0.5


@given(st.integers(2, 40), st.floats(0, 80), st.integers(0, 2**31))
def test_entropy_lies_between_none_and_that_of_equal_weights(keys, scale, seed):
    logits = scale * torch.randn(3, keys, generator=torch.Generator().manual_seed(seed))
    rows = query_weights(Tile(logits), Prefix()).numpy()
    found = dict(zip(WEIGHTS, rows, strict=True))
    assert (found["entropy"] >= -1e-6).all()
    assert (found["entropy"] <= np.log(keys) * (1 + 1e-5)).all()
    assert (found["max_weight"] >= np.exp(-found["entropy"]) * (1 - 1e-4)).all()


@given(st.floats(-500, 500))
def test_a_number_added_to_all_scores_of_a_query_changes_no_weight(shift):
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(3)).double()
    one, two = (query_weights(Tile(x), Prefix()) for x in (logits, logits + shift))
    torch.testing.assert_close(one, two, equal_nan=True)


@pytest.mark.parametrize(
    "options, prefix",
    [
        ({}, Prefix(1, 0)),
        ({"reg_tokens": 4}, Prefix(1, 4)),
        ({"class_token": False, "global_pool": "avg"}, Prefix(0, 0)),
        ({"class_token": False, "reg_tokens": 2, "global_pool": "avg"}, Prefix(0, 2)),
    ],
)
def test_the_class_token_is_told_from_registers(options, prefix):
    model = vit(**options)
    assert set(prefixes_of(model, find_blocks(model)).values()) == {prefix}


def test_the_table_has_a_row_for_each_block_and_head():
    one, two = accumulated(scores_of(torch.randn(2, 2, 5, 5)), prefix=Prefix(1)).weights()
    found = {(0, "all"): [one + two], (0, "0"): [one], (0, "1"): [two]}
    table = softmax_table("m", "mae", found)
    assert list(table.columns) == list(SOFTMAX_COLUMNS)
    assert list(table["head"]) == ["all", "0", "1"]
    assert list(table["queries"]) == [20, 10, 10]
    means = table.set_index("head")["entropy"]
    assert means["all"] == pytest.approx((means["0"] + means["1"]) / 2)
    assert table["register_weight"].isna().all()
    assert (table["class_weight"] == table["first_weight"]).all()


def test_means_have_intervals_over_groups_of_images():
    random = torch.Generator().manual_seed(0)
    scores = [torch.randn(1, 1, 8, 8, generator=random) * (1 + i / 10) for i in range(10)]
    groups = [accumulated(scores_of(one), prefix=Prefix(1)).weights()[0] for one in scores]
    row = softmax_table("m", "mae", {(0, "all"): groups}).iloc[0]
    each = np.array([group.means()["entropy"] for group in groups])
    reach = stats.t.ppf(0.975, 9) * each.std(ddof=1) / np.sqrt(10)  # of a mean of equal groups
    assert row["entropy"] == pytest.approx(each.mean())
    assert row["entropy_high"] - row["entropy"] >= reach * (1 - 1e-9)
    assert row["entropy_high"] - row["entropy"] < 1.5 * reach
    assert row["keys_low"] == row["keys"] == row["keys_high"] == 8
    assert np.isnan(row["register_weight_low"])
    few = softmax_table("m", "mae", {(0, "all"): groups[:2]}).iloc[0]
    assert np.isnan(few["entropy_low"])
