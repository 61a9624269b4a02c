"""What is said and drawn of where a kurtosis sits follows from the rows that were made."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kurtosis

from burst.decomposition import Decomposition, GroupMoments, Margins
from burst.errors import EmptyResult
from burst.histogram import Histogram
from burst.survey import Survey
from reports.where import (
    PARTS,
    decompositions,
    diagonal_is_enough,
    kurtosis_parts,
    where_it_sits,
)
from reports.words import findings

GAUSSIAN = np.random.default_rng(0).normal(size=(60, 800))
SCALES = np.repeat([1.0, 0.1], [6, 54])[:, None] * GAUSSIAN  # six dimensions carry it all
TAILS = np.random.default_rng(1).standard_t(3, size=(60, 800))  # every dimension is heavy-tailed


def survey_of(*responses, model="made"):
    """A survey of responses that exist, one a block."""
    rows, margins = [], {}
    for block, y in enumerate(responses):
        one = Decomposition.of(GroupMoments.of(y))
        margins[block, "all", "qkx"] = Margins(GroupMoments.of(y), GroupMoments.of(y.T).sums())
        rows.append(
            {"model": model, "pretraining": "mae", "block": block, "head": "all"}
            | {"quantity": "qkx", "excess_kurtosis": float(one.kurtosis), "ggd_shape": 1.0}
            | {"top1_energy": 0.2, "ks_gaussian": 0.05, "ks_laplace": 0.01}
            | {"kurtosis_null": float(one.null), "kurtosis_within_rows": float(one.standardised)}
        )
    histograms: dict[tuple[int, str, str], Histogram] = {}
    table = pd.DataFrame(rows)
    return Survey(table, histograms, (), (), (), {"model": model}, margins)


def test_a_spread_of_scales_is_told_from_heavy_tails():
    scales = " ".join(where_it_sits(survey_of(GAUSSIAN, SCALES)))
    assert "3 of 60 dimensions carry a third of block 1's energy" in scales
    assert "nearly all of it is that dimensions differ" in scales
    assert "are not needed for it" in scales
    tails = " ".join(where_it_sits(survey_of(TAILS)))
    assert "most of it is within dimensions" in tails
    assert "add to it" in tails


def test_tails_of_the_one_dimension_that_carries_all_are_not_called_a_spread_of_scales():
    loud = 0.1 * GAUSSIAN
    loud[0] = np.random.default_rng(2).logistic(size=800)
    said = " ".join(where_it_sits(survey_of(loud)))
    parts = Decomposition.of(GroupMoments.of(loud))
    share = 100 * (parts.scale + parts.means) / parts.kurtosis
    assert 50 < share < 85
    assert f", not {parts.kurtosis:.1f}, of which {parts.within:.1f} lies within dimensions" in said
    assert f": {share:.0f} % of it is that dimensions differ in scale and mean" in said


def test_gaussian_tokens_that_give_a_part_of_it_are_not_said_to_give_it_all():
    tokens = np.random.default_rng(3).standard_t(10, size=(60, 800))
    both = np.repeat([1.0, 0.1], [6, 54])[:, None] * tokens
    said = " ".join(where_it_sits(survey_of(both)))
    parts = Decomposition.of(GroupMoments.of(both))
    share = float(parts.null / parts.kurtosis)
    assert 0.5 < share < 0.9 and "not needed" not in said
    assert f"kurtosis of {parts.null:.1f}, {100 * share:.0f} % of it, so tails of" in said


def test_means_that_differ_are_not_called_tails_of_the_tokens():
    apart = GAUSSIAN + 40 * (np.arange(60) == 0)[:, None]
    said = " ".join(where_it_sits(survey_of(apart)))
    assert "nearly all of it is that dimensions differ in scale and mean" in said
    assert "it is the dimensions' means that make the tails" in said


def test_what_means_add_to_gaussian_tokens_is_not_laid_to_their_tails():
    wide = SCALES + 6 * (np.arange(60) == 59)[:, None]
    said = " ".join(where_it_sits(survey_of(wide)))
    parts = Decomposition.of(GroupMoments.of(wide))
    share = float(parts.null / parts.kurtosis)
    assert 0.5 < share < 0.9 and parts.means > parts.within
    assert f"{100 * share:.0f} % of it, so it is the dimensions' means that make the rest." in said


def test_blocks_that_are_heavy_tailed_for_their_scales_alone_are_counted():
    found = where_it_sits(survey_of(SCALES, TAILS, GAUSSIAN, SCALES))[-1]
    assert found.startswith("Of the 3 blocks with an excess kurtosis above 1, 2 are below it once")
    assert "above 1, all are below" in where_it_sits(survey_of(SCALES, SCALES))[-1]


def test_a_null_that_is_not_defined_is_not_spoken_of():
    survey = survey_of(SCALES)
    survey.table["kurtosis_null"] = float("nan")
    (sentence,) = where_it_sits(survey)
    assert sentence.startswith("Why: ")


def test_nothing_is_said_where_nothing_is_heavy_tailed():
    assert where_it_sits(survey_of(GAUSSIAN)) == []


@pytest.mark.parametrize(("response", "is_enough"), [(SCALES, True), (TAILS, False)])
def test_a_diagonal_whitening_is_proposed_where_scales_differ(response, is_enough):
    table = survey_of(response).table.assign(model="mae_tiny")
    assert diagonal_is_enough(table) is is_enough
    (finding,) = findings(table)
    assert ("--method diagonal" in "\n".join(finding.commands)) is is_enough
    assert ("one number a dimension" in finding.advice) is is_enough


def test_a_table_that_was_made_before_is_read_as_before():
    table = survey_of(SCALES).table.assign(model="mae_tiny")
    table = table.drop(columns=["kurtosis_within_rows", "kurtosis_null"])
    assert not diagonal_is_enough(table)
    assert findings(table)[0].commands


def test_the_figure_draws_the_parts_that_add_up_to_the_kurtosis():
    survey = survey_of(SCALES, TAILS)
    left, right = kurtosis_parts(survey).axes
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in right.containers}
    total = np.sum(list(heights.values()), axis=0)
    np.testing.assert_allclose(total, [kurtosis(y, axis=None) for y in (SCALES, TAILS)], rtol=1e-9)
    assert set(heights) == {label for label, _ in PARTS.values()}
    lines = {line.get_label(): line.get_ydata() for line in left.lines}
    np.testing.assert_allclose(
        lines["each dimension standardised"], survey.table["kurtosis_within_rows"]
    )


@pytest.mark.parametrize("response", [GAUSSIAN, SCALES, np.zeros((60, 800))])
def test_each_model_is_drawn_on_the_same_kind_of_axes_and_they_are_named(response):
    left, right = kurtosis_parts(survey_of(response)).axes
    assert (left.get_yscale(), right.get_yscale()) == ("symlog", "linear")
    assert left.get_ylabel() == f"{right.get_ylabel()}\n(symmetric log axis)"


def test_bands_are_drawn_where_there_are_intervals():
    survey = survey_of(SCALES, TAILS)
    assert not kurtosis_parts(survey).axes[0].collections
    for end, step in (("low", -1), ("high", 1)):
        survey.table[f"excess_kurtosis_{end}"] = survey.table["excess_kurtosis"] + step
    (band,) = kurtosis_parts(survey).axes[0].collections
    low, high = band.get_paths()[0].get_extents().intervaly
    assert low == pytest.approx(survey.table["excess_kurtosis"].min() - 1)
    assert high == pytest.approx(survey.table["excess_kurtosis"].max() + 1)


def test_a_survey_without_margins_has_nothing_to_draw():
    survey = survey_of(SCALES)
    survey.margins.clear()
    assert decompositions(survey) == {}
    assert where_it_sits(survey) == []
    with pytest.raises(EmptyResult, match="no margins"):
        kurtosis_parts(survey)
