"""A survey against the same quantities materialised by hand."""

import copy
import json
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from scipy.stats import kurtosis
from support import DEPTH, DIM, HEADS, SIZE, backbone_of, few_at_a_time, vit
from torch.utils.data import DataLoader, TensorDataset

from burst.adapters import OmittedTermWarning
from burst.backbone import load_backbone
from burst.errors import (
    BurstError,
    EmptyResult,
    ImageError,
    ShapeError,
    UnknownName,
    UnsupportedModel,
)
from burst.kernels import PRECISIONS, HistogramAccumulator
from burst.statistics import STATISTICS
from burst.survey import Survey, SurveyOptions, images_for, survey
from burst.survey_table import COLUMNS, PARTS, WITH_INTERVAL


@pytest.fixture(scope="module")
def backbone():
    return backbone_of(vit())


@pytest.fixture
def images(backbone):
    return images_for(backbone, "sample", num_images=7)


def materialised(backbone, images, block):
    """A, X and A X^T of one block, whole, by a forward pass written out."""
    model, rows = backbone.model, []
    for batch in images:
        x = model.norm_pre(model._pos_embed(model.patch_embed(batch)))
        for before in model.blocks[:block]:
            x = before(x)
        rows.append(model.blocks[block].norm1(x))
    x = torch.cat(rows).reshape(-1, DIM)
    weight = model.blocks[block].attn.qkv.weight
    a = weight[:DIM].T @ weight[DIM : 2 * DIM]
    return {"qk": a, "x": x, "qkx": a @ x.T}


def test_every_row_counts_what_the_materialised_quantity_holds(backbone, images):
    found = survey(backbone, images)
    for block in range(DEPTH):
        for quantity, entries in materialised(backbone, images, block).items():
            hist = found.histograms[block, "all", quantity]
            row = found.table.query("block == @block and quantity == @quantity").iloc[0]
            array = entries.double().numpy()
            assert row["count"] == hist.count == array.size
            assert row["mean"] == pytest.approx(array.mean(), abs=1e-6 * array.std())
            assert row["std"] == pytest.approx(array.std(), rel=1e-6)
            assert row["max"] == pytest.approx(array.max(), rel=1e-5)
            regular = hist.rebin(64)
            expected, _ = np.histogram(array, regular.edges)
            # an entry within float32 rounding of an edge may fall on either side of it
            assert np.abs(regular.values() - expected).sum() <= 1 + array.size * 1e-3


def test_the_table_is_tidy(backbone, images):
    found = survey(backbone, images)
    assert tuple(found.table.columns) == COLUMNS
    assert COLUMNS[:5] == ("model", "pretraining", "block", "head", "quantity")
    assert COLUMNS[5 : 5 + len(STATISTICS)] == STATISTICS
    assert COLUMNS[22:26] == PARTS
    assert COLUMNS[26:30] == ("mean_low", "mean_high", "std_low", "std_high")
    assert len(found.table) == DEPTH * 3 == len(found.histograms)
    keys = list(found.table[["block", "head", "quantity"]].itertuples(index=False, name=None))
    assert keys == list(found.histograms)
    assert keys[:3] == [(0, "all", "qk"), (0, "all", "x"), (0, "all", "qkx")]
    assert found.skipped == found.omitted == found.bad_images == ()


def parts_of(y):
    """The columns of a response that say where its kurtosis sits, written out."""
    rows, tokens = y.var(axis=1), y.var(axis=0)
    standardised = (y - y.mean(axis=1, keepdims=True)) / np.sqrt(rows)[:, None]
    pooled = kurtosis(y, axis=None)
    return {
        "kurtosis_null": 3 * ((rows**2).mean() / rows.mean() ** 2 - 1),
        "kurtosis_within_rows": kurtosis(standardised, axis=None),
        "row_scale_share": 3 * rows.var() / y.var() ** 2 / pooled,
        "token_scale_share": 3 * tokens.var() / y.var() ** 2 / pooled,
    }


def test_a_response_says_where_its_kurtosis_sits():
    model = vit()
    with torch.no_grad():  # some dimensions answer louder
        model.blocks[1].attn.qkv.weight[:DIM, :4] *= 5
    backbone = backbone_of(model)
    images = images_for(backbone, "sample", num_images=7)
    found = survey(backbone, images, SurveyOptions(per_head=True))
    y = materialised(backbone, images, 1)["qkx"].double().numpy()
    row = found.table.query("block == 1 and quantity == 'qkx' and head == 'all'").iloc[0]
    assert row[list(PARTS)].to_dict() == pytest.approx(parts_of(y), rel=1e-5)
    assert row["row_scale_share"] > 0.5
    margins = found.margins[1, "all", "qkx"]
    np.testing.assert_allclose(margins.rows.variance, y.var(axis=1), rtol=1e-5)
    assert {key[2] for key in found.margins} == {"qkx"}
    assert len(found.margins) == DEPTH * (1 + HEADS)
    others = found.table.query("quantity != 'qkx'")
    assert others[list(PARTS)].isna().all(axis=None)


def test_what_depends_on_images_has_an_interval_over_them(backbone):
    images = images_for(backbone, "sample", num_images=40)
    table = survey(backbone, images).table
    of_weights, of_images = (table.query(f"quantity {how} 'qk'") for how in ("==", "!="))
    for name in WITH_INTERVAL:
        low, high = of_images[f"{name}_low"], of_images[f"{name}_high"]
        known = of_images[name].notna() & low.notna()
        assert (low[known] <= of_images[name][known]).all(), name
        assert (of_images[name][known] <= high[known]).all(), name
        assert of_weights[[f"{name}_low", f"{name}_high"]].isna().all(axis=None)
    assert of_images["excess_kurtosis_low"].notna().all()
    assert "count_low" not in table and "max_high" not in table


def test_intervals_do_not_depend_on_how_batches_were_cut(backbone):
    given = torch.randn(60, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    columns = ["excess_kurtosis_low", "row_scale_share_high"]
    options = SurveyOptions(quantities=("qkx",))
    one, many = (
        survey(backbone.model, list(given.split(size)), options).table[columns] for size in (60, 20)
    )
    np.testing.assert_allclose(one, many, rtol=1e-4)


def test_heads_are_measured_beside_the_whole(backbone, images):
    found = survey(backbone, images, SurveyOptions(per_head=True, blocks=(1,)))
    whole = survey(backbone, images, SurveyOptions(blocks=(1,)))
    assert list(found.table["head"]) == ["all"] * 3 + [str(h) for h in range(4) for _ in "qk"]
    for key, hist in whole.histograms.items():
        assert found.histograms[key] == hist
    entries = materialised(backbone, images, 1)
    weight = backbone.model.blocks[1].attn.qkv.weight
    size = DIM // HEADS
    for head in range(HEADS):
        rows = slice(head * size, (head + 1) * size)
        a = weight[:DIM][rows].T @ weight[DIM : 2 * DIM][rows]
        y = (a @ entries["x"].T).double().numpy()
        assert found.histograms[1, str(head), "qk"].moments.std == pytest.approx(
            a.double().std(correction=0).item(), rel=1e-6
        )
        hist = found.histograms[1, str(head), "qkx"]
        assert hist.count == y.size
        assert hist.moments.std == pytest.approx(y.std(), rel=1e-5)


def test_the_groups_of_many_heads_are_not_all_kept_in_full(images):
    heads, options = 16, SurveyOptions((0,), ("qkx",), per_head=True)
    tracemalloc.start()
    found = survey(backbone_of(vit(num_heads=heads)), images, options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    full = found.histograms[0, "all", "qkx"].values(flow=True).nbytes
    groups = 7 * len(found.table)
    assert peak < full * groups / 3


def test_blocks_quantities_and_patch_tokens_can_be_chosen(backbone, images):
    options = SurveyOptions(blocks=(2, 0), quantities=("x",), tokens="patch")
    found = survey(backbone, images, options)
    assert list(found.histograms) == [(0, "all", "x"), (2, "all", "x")]
    assert found.histograms[0, "all", "x"].count == 7 * 16 * DIM  # 17 tokens, one of them no patch


def test_weights_alone_need_no_image(backbone, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    images = images_for(backbone, tmp_path)
    (tmp_path / "one.png").unlink()
    found = survey(backbone, images, SurveyOptions(quantities=("qk",)))
    assert set(found.table["quantity"]) == {"qk"}
    assert found.record["images"] is None


def test_the_authors_convention_measures_their_product(backbone, images):
    options = SurveyOptions(convention="authors", blocks=(0,), quantities=("qk",))
    found = survey(backbone, images, options)
    weight = backbone.model.blocks[0].attn.qkv.weight
    theirs = (weight[:DIM] @ weight[DIM : 2 * DIM].T).double()
    moments = found.histograms[0, "all", "qk"].moments
    assert moments.std == pytest.approx(theirs.std(correction=0).item(), rel=1e-6)


def test_the_result_does_not_depend_on_how_the_images_are_shared_out(backbone):
    images = few_at_a_time(images_for(backbone, "sample", num_images=14))
    assert images.batches > 3  # one part has more of them than the others
    whole = survey(backbone, images)
    parts = [survey(backbone, images.shard(rank, 3)) for rank in range(3)]
    for key in ((0, "all", "x"), (2, "all", "qkx")):
        assert sum(part.histograms[key] for part in parts) == whole.histograms[key]


def test_logits_are_not_touched(backbone, images):
    batch = next(iter(images))
    before = backbone.model(batch)
    survey(backbone, images)
    assert torch.equal(backbone.model(batch), before)
    assert not any(module._forward_pre_hooks for module in backbone.model.modules())


def test_progress_counts_batches(backbone):
    images = few_at_a_time(images_for(backbone, "sample", num_images=10))
    calls = []
    survey(backbone, images, progress=lambda *numbers: calls.append(numbers))
    assert calls == [(i + 1, images.batches) for i in range(images.batches)]


def test_a_block_that_cannot_be_measured_is_listed_with_its_reason(images):
    mixed = vit()
    mixed.blocks[1].attn.q_norm = torch.nn.LayerNorm(DIM // HEADS)
    found = survey(backbone_of(mixed), images)
    assert sorted(set(found.table["block"])) == [0, 2]
    (skipped,) = found.skipped
    assert (skipped.block, skipped.name) == (1, "blocks.1")
    assert "query-key norm" in skipped.reason


def test_a_block_asked_for_by_index_must_be_measurable(images):
    mixed = vit()
    mixed.blocks[1].attn.q_norm = torch.nn.LayerNorm(DIM // HEADS)
    with pytest.raises(UnsupportedModel, match=r"blocks\.1 cannot be measured"):
        survey(backbone_of(mixed), images, SurveyOptions(blocks=(0, 1)))


def test_a_model_without_a_measurable_block_is_refused(images):
    with pytest.raises(UnsupportedModel, match=r"blocks\.0 \(and 2 more\) cannot be measured"):
        survey(backbone_of(vit(qk_norm=True)), images)
    with pytest.raises(UnsupportedModel, match="choose a transformer"):
        survey(backbone_of(timm.create_model("test_resnet")), images)


def test_what_is_left_out_of_the_scores_is_said_once():
    torch.manual_seed(0)
    model = timm.create_model("beit_base_patch16_224", embed_dim=48, depth=2, num_heads=2,
                              img_size=32, num_classes=0)  # fmt: skip
    backbone = backbone_of(model, image_size=(32, 32))
    images = images_for(backbone, "sample", num_images=2)
    with pytest.warns(OmittedTermWarning, match="relative position bias") as seen:
        found = survey(backbone, images)
    assert len(seen) == 1
    assert found.omitted == ("relative position bias",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        survey(backbone, images, SurveyOptions(quantities=("x",)))  # no score, nothing left out


def test_a_windowed_model_is_measured_stage_by_stage():
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=16, depths=(1, 1, 1, 1),
                              num_heads=(1, 2, 2, 2), img_size=64, window_size=2,
                              num_classes=0)  # fmt: skip
    backbone = backbone_of(model, image_size=(64, 64))
    with pytest.warns(OmittedTermWarning, match="shifted-window mask"):
        found = survey(backbone, images_for(backbone, "sample", num_images=2))
    counts = found.table.query("quantity == 'qk'")["count"]
    assert list(counts) == [16**2, 32**2, 64**2, 128**2]


def test_values_that_are_not_finite_are_counted_apart(images):
    spoiled = vit().requires_grad_(False)
    spoiled.pos_embed[:, 3] = torch.nan  # one token in block 0, all of them after
    found = survey(backbone_of(spoiled), images)
    first, second = (found.histograms[block, "all", "x"] for block in (0, 1))
    assert (first.count, first.nonfinite.nan) == (7 * 16 * DIM, 7 * DIM)
    assert (second.count, second.nonfinite.nan) == (0, 7 * 17 * DIM)
    assert found.record["nonfinite"] > 0
    spoiled.pos_embed[:] = torch.nan
    with pytest.raises(EmptyResult, match="no finite value of x or qkx"):
        survey(backbone_of(spoiled), images)


def test_options_of_another_class_are_refused_and_surveys_can_be_compared(backbone, images):
    with pytest.raises(BurstError, match="options are a dict, expected SurveyOptions"):
        survey(backbone, images, {"blocks": (0,)})
    found = survey(backbone, images, SurveyOptions(blocks=(0,), quantities=("qk",)))
    assert found == found and found != copy.copy(found)


def test_bad_images_are_named(backbone, tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match="bad.png"):
        survey(backbone, images_for(backbone, tmp_path))
    found = survey(backbone, images_for(backbone, tmp_path, skip_bad=True))
    assert [name for name, _ in found.bad_images] == ["bad.png"]
    assert found.record["images"]["count"] == 1


def test_the_record_says_how_it_was_made(backbone, images):
    record = survey(backbone, images).record
    assert record["model"] == "test"
    assert record["images"]["count"] == 7
    assert record["images"]["fingerprint"] == images.fingerprint
    assert record["images"]["seed"] == 0
    how = {"image_size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    how |= {"crop_fraction": 0.875, "crop_mode": "center"}
    assert record["images"].items() >= how.items()
    json.dumps(record)  # plain data
    assert record["options"]["quantities"] == ("qk", "x", "qkx")
    assert record["backend"] == ["torch"]
    assert (record["options"]["precision"], record["precision"]) == ("tf32x3", ["ieee"])
    assert record["processes"] == 1


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"quantities": ("kq",)}, UnknownName, "did you mean qk"),
        ({"quantities": ()}, BurstError, "no quantity"),
        ({"convention": "papers"}, UnknownName, "did you mean paper"),
        ({"tokens": "patches"}, UnknownName, "did you mean patch"),
        ({"precision": "tf23"}, UnknownName, "did you mean tf32"),
        ({"bins": 7}, ShapeError, "even number"),
        ({"per_head": True, "convention": "authors"}, BurstError, "no heads"),
    ],
)
def test_options_check_themselves(options, error, words):
    with pytest.raises(error, match=words):
        SurveyOptions(**options)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_product_is_asked_for_in_the_chosen_precision(
    precision, backbone, images, monkeypatch
):
    asked = []
    plain = HistogramAccumulator.add_product

    def spy(self, a, b, *, precision):
        asked.append(precision)
        return plain(self, a, b, precision=precision)

    monkeypatch.setattr(HistogramAccumulator, "add_product", spy)
    options = SurveyOptions(blocks=(0,), per_head=True, precision=precision)
    record = survey(backbone, images, options).record
    assert asked == [precision] * (1 + HEADS) * 7  # a product for each image: groups of one
    assert record["options"]["precision"] == precision
    assert record["precision"] == ["ieee"]  # what the processor does, whatever was asked for


def test_a_survey_without_products_has_no_precision(backbone, images):
    assert survey(backbone, images, SurveyOptions(quantities=("qk",))).record["precision"] == []


def test_a_block_out_of_range_is_refused(backbone, images):
    with pytest.raises(BurstError, match="blocks 0 to 2"):
        survey(backbone, images, SurveyOptions(blocks=(3,)))


def test_an_unknown_backend_is_refused(backbone, images):
    with pytest.raises(UnknownName, match="unknown backend"):
        survey(backbone, images, SurveyOptions(backend="cuda"))


def test_the_batch_is_chosen_by_tokens_not_images():
    small = images_for(load_backbone("mae_tiny"), "sample", num_images=640)
    assert small.batches == 10  # 64 images of 64 patches
    assert images_for(backbone_of(vit()), "sample", num_images=640).batches == 3  # 16 patches


def test_the_shipped_backbone_gives_the_same_numbers_anywhere():
    backbone = load_backbone("mae_tiny")
    table = survey(backbone, images_for(backbone, "sample", num_images=8)).table
    assert len(table) == 36
    assert isinstance(table, pd.DataFrame)
    numbers = table[list(STATISTICS)]
    assert numbers.notna().all(axis=None)
    assert table.query("quantity == 'qkx'")[list(PARTS)].notna().all(axis=None)
    weights = table.query("quantity == 'qk'").set_index("block")
    weight = backbone.model.blocks[5].attn.qkv.weight.double()
    a = (weight[:192].T @ weight[192:384]).numpy()
    deviation = a - a.mean()
    kurtosis = (deviation**4).mean() / (deviation**2).mean() ** 2 - 3
    assert weights.loc[5, "excess_kurtosis"] == pytest.approx(kurtosis, rel=1e-4)


def test_any_module_and_any_batches_give_the_numbers_of_a_backbone_and_its_images():
    model = vit()
    backbone = backbone_of(model)
    images = images_for(backbone, "sample", num_images=6, seed=1)
    expected = survey(backbone, images)
    loader = DataLoader(TensorDataset(torch.cat(list(images)), torch.zeros(6)), batch_size=6)
    found = survey(model, loader, name="mine")
    assert found.histograms == expected.histograms
    assert set(found.table["model"]) == {"mine"}
    assert found.record["images"] == {
        "source": "DataLoader of TensorDataset", "count": 6, "bad": []
    }  # fmt: skip
    assert found.record["qk_sha256"] == expected.record["qk_sha256"]


def test_weights_alone_need_no_batches():
    found = survey(vit(), options=SurveyOptions(quantities=("qk",)))
    assert set(found.table["model"]) == {"VisionTransformer"}
    assert found.record["images"] is None
    with pytest.raises(EmptyResult, match="x or qkx was read from VisionTransformer on tuple"):
        survey(vit())


def test_a_model_that_is_none_is_told():
    with pytest.raises(BurstError, match="the model is a str, expected an nn.Module"):
        survey("mae_tiny")


SHARED_OUT = """
import torch
from support import vit
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from burst import Survey, process_group, survey

with process_group() as (rank, size):
    images = TensorDataset(torch.load(f"{place}/images.pt"))
    sampler = DistributedSampler(images, size, rank, shuffle=False)
    found = survey(vit(), DataLoader(images, batch_size=2, sampler=sampler))
    found.save(f"{place}/{rank}.npz")
"""


def test_batches_that_a_sampler_shares_out_are_counted_once(one_thread, tmp_path, in_two_processes):
    images = torch.randn(8, 3, SIZE, SIZE)
    torch.save(images, tmp_path / "images.pt")
    for one in in_two_processes(SHARED_OUT, tmp_path):
        assert one.returncode == 0, one.stderr
    order = [0, 2, 4, 6], [1, 3, 5, 7]  # as the sampler deals them out, in batches of two
    batches = [images[part[i : i + 2]] for part in order for i in (0, 2)]
    expected = survey(vit(), batches)
    for rank in range(2):
        found = Survey.load(tmp_path / f"{rank}.npz")
        assert found.histograms == expected.histograms
        assert found.record["images"]["count"] == 8
        assert found.record["processes"] == 2


def test_permuted_tokens_keep_what_is_said_of_x_and_lose_what_is_said_of_the_product():
    model, batches = vit(), [torch.randn(8, 3, 16, 16)]
    options = SurveyOptions(blocks=(1,)), SurveyOptions(blocks=(1,), tokens="permuted")
    own, shuffled = (survey(model, batches, one) for one in options)
    assert shuffled.record["options"]["tokens"] == "permuted"
    for quantity, same in (("qk", True), ("x", True), ("qkx", False)):
        one, other = (found.histograms[1, "all", quantity] for found in (own, shuffled))
        assert (one == other) == same, quantity
