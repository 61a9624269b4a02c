"""The quantity `logits` of a survey, and the table of what softmax makes of them."""

import numpy as np
import pytest
import torch
from hf_models import MODELS, REFUSED
from scipy.special import softmax
from scipy.stats import entropy
from support import float_histogram, vit

from burst.errors import BurstError, UnsupportedModel
from burst.scores import capture_scores
from burst.softmax import SOFTMAX_COLUMNS
from burst.survey import Survey, SurveyOptions, survey

LOGITS = SurveyOptions(quantities=("logits",), per_head=True)


@pytest.fixture
def batches():
    return [torch.randn(2, 3, 16, 16), torch.randn(3, 3, 16, 16)]


def scores(model, batches):
    """block -> (images, h, n, n)"""
    found = {}
    with torch.no_grad():
        for batch in batches:
            with capture_scores(
                model, on_scores=lambda i, one: found.setdefault(i, []).append(one.whole())
            ):
                model(batch)
    return {block: torch.cat(parts) for block, parts in found.items()}


def test_logits_are_counted_by_block_and_head(batches):
    model = vit(reg_tokens=2).eval()
    found = survey(model, batches, LOGITS)
    for block, x in scores(model, batches).items():
        for head, part in [("all", x), *((str(i), x[:, i]) for i in range(4))]:
            counted = found.histograms[block, head, "logits"]
            expected = float_histogram(part.ravel())
            moved = (counted.rebin(64).values() != expected.rebin(64).values()).sum()
            assert counted.count == expected.count
            assert moved <= 4  # a product may round otherwise with other batches
            assert counted.moments.std == pytest.approx(expected.moments.std, rel=1e-6)
    assert set(found.table["quantity"]) == {"logits"}
    assert found.table["excess_kurtosis_low"].notna().all()


def test_the_softmax_table_is_that_of_the_weights(batches):
    model = vit(reg_tokens=2).eval()
    found = survey(model, batches, LOGITS).softmax
    assert list(found.columns) == list(SOFTMAX_COLUMNS)
    assert (found["entropy_low"] <= found["entropy"]).all()
    assert (found["entropy"] <= found["entropy_high"]).all()
    table = found.set_index(["block", "head"])
    for block, x in scores(model, batches).items():
        p = softmax(x.double().numpy(), axis=-1)
        for head, part in [("all", p), *((str(i), p[:, i]) for i in range(4))]:
            row = table.loc[(block, head)]
            h = entropy(part, axis=-1)
            expected = {
                "queries": part[..., 0].size,
                "keys": 19,
                "entropy": h.mean(),
                "entropy_std": h.std(),
                "relative_entropy": h.mean() / np.log(19),
                "max_weight": part.max(-1).mean(),
                "first_weight": part[..., 0].mean(),
                "class_weight": part[..., 0].mean(),
                "register_weight": part[..., 1:3].sum(-1).mean(),
            }
            for name, value in expected.items():
                assert row[name] == pytest.approx(value, rel=1e-3 if "std" in name else 1e-5)


def test_tokens_and_logits_are_measured_in_one_pass_and_change_each_other_in_nothing(batches):
    model = vit()
    both = survey(model, batches, SurveyOptions(quantities=("qk", "x", "qkx", "logits")))
    tokens = survey(model, batches)
    logits = survey(model, batches, SurveyOptions(quantities=("logits",)))
    for key, hist in (tokens.histograms | logits.histograms).items():
        assert hist == both.histograms[key]
    assert both.softmax.equals(logits.softmax)
    assert not len(tokens.softmax)
    assert list(tokens.softmax.columns) == list(SOFTMAX_COLUMNS)


def test_patch_tokens_leave_the_prefix_out_as_queries(batches):
    found = survey(vit(), batches, SurveyOptions(quantities=("logits",), tokens="patch"))
    whole = found.softmax[found.softmax["head"] == "all"]
    assert list(whole["queries"]) == 3 * [5 * 4 * 16]
    assert list(whole["keys"]) == 3 * [17]
    assert found.histograms[0, "all", "logits"].count == 5 * 4 * 16 * 17


def test_blocks_of_which_w_q_w_k_is_not_defined_are_measured_for_logits_alone():
    [known] = [one for one, _ in REFUSED if one.name == "Qwen3Model"]
    model, batches = known.build(), [known.inputs()]
    found = survey(model, batches, LOGITS)
    assert set(found.table["block"]) == {0, 1}
    with pytest.raises(UnsupportedModel, match="normalises queries and keys"):
        survey(model, batches, SurveyOptions(quantities=("x", "logits")))


def test_a_bias_that_w_q_w_k_leaves_out_is_no_warning_where_logits_alone_are_read():
    [known] = [one for one in MODELS if one.name == "SwinModel"]
    model, inputs = known.build(), known.inputs()
    found = survey(model, [inputs], SurveyOptions(quantities=("logits",)))
    assert found.omitted == ()
    with torch.no_grad():
        maps = []
        with capture_scores(model, [1], on_scores=lambda _, one: maps.append(one.whole())):
            model(**inputs)
    seen = maps[0] != -np.inf
    assert not seen.all()  # the mask of shifted windows
    assert found.histograms[1, "all", "logits"].count == seen.sum()


def test_logits_of_permuted_tokens_are_none():
    with pytest.raises(BurstError, match="logits are of the model's own tokens"):
        SurveyOptions(quantities=("logits",), tokens="permuted")


def test_a_saved_survey_has_its_softmax_table(batches, tmp_path):
    found = survey(vit(), batches, LOGITS)
    found.save(tmp_path / "survey.npz")
    again = Survey.load(tmp_path / "survey.npz")
    assert again.softmax.equals(found.softmax)
    assert again.histograms == found.histograms
    survey(vit(), batches).save(tmp_path / "plain.npz")
    assert not len(Survey.load(tmp_path / "plain.npz").softmax)
