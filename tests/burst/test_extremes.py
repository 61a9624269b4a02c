"""The extremes of each block's response against the products that NumPy materialises."""

import doctest
import json

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from support import DEPTH, DIM, backbone_of, few_at_a_time, vit

import burst.extremes_tables
from burst.adapters import find_blocks
from burst.errors import BurstError, EmptyResult, UnknownName, UnsupportedModel
from burst.extremes import extremes
from burst.extremes_tables import SOURCES, carriers
from burst.projection import projection
from burst.survey import images_for
from burst.tokens import capture


@pytest.fixture(scope="module")
def backbone():
    return backbone_of(vit(reg_tokens=2))


@pytest.fixture(scope="module")
def images(backbone):
    return few_at_a_time(images_for(backbone, "sample", num_images=30))


@pytest.fixture(scope="module")
def responses(backbone, images):
    """Of each block (image, d, N) float32, multiplied as a whole, and the names of the images."""
    reads = {block: [] for block in range(DEPTH)}
    with torch.inference_mode():
        for batch in images:
            with capture(backbone.model) as read:
                backbone.model(batch)
            for block, parts in reads.items():
                parts.append(read[block].double())
    found = {}
    for block in find_blocks(backbone.model):
        w_q, w_k = (w.double() for w in projection(block.attention).whole())
        found[block.index] = (w_q @ w_k.mT @ torch.cat(reads[block.index]).mT).numpy()
    return found, images.names


@pytest.fixture(scope="module")
def found(backbone, images):
    return extremes(backbone, images, k=12)


def test_they_are_the_largest_of_the_materialised_products(found, responses):
    products, names = responses
    for block, y in products.items():
        rows = found.table[found.table["block"] == block]
        size = np.abs(y)
        at = np.argsort(-size, axis=None)[:12]
        image, dimension, token = np.unravel_index(at, y.shape)
        np.testing.assert_allclose(rows["value"], y.flat[at], rtol=1e-5)
        assert rows["rank"].tolist() == list(range(1, 13))
        assert np.diff(np.sort(size, axis=None)[-13:]).min() > 1e-6 * size.max()  # no near ties
        assert rows["image"].tolist() == [names[i] for i in image]
        assert rows["dimension"].tolist() == dimension.tolist()
        assert rows["token"].tolist() == token.tolist()


def test_places_are_those_of_the_picture(found):
    tokens = found.tokens[found.tokens["source"] == "model"]
    for block in range(DEPTH):
        rows = tokens[tokens["block"] == block].set_index("token")
        kinds = ["class", "register 0", "register 1", *["patch"] * 16]
        assert rows["kind"].tolist() == kinds
        assert rows["row"].isna().tolist() == [True] * 3 + [False] * 16
        assert (rows["row"] * 4 + rows["column"]).dropna().tolist() == list(range(16))
    both = found.table.merge(tokens, on=["block", "token"], suffixes=("", "_of_token"))
    assert len(both) == len(found.table)
    assert both["kind"].equals(both["kind_of_token"])
    assert both["column"].equals(both["column_of_token"])


def test_energies_are_sums_of_squares(found, responses):
    for block, y in responses[0].items():
        square, whole = y**2, (y**2).sum()
        for table, axis, name in (
            (found.dimensions, (0, 2), "dimension"),
            (found.tokens, (0, 1), "token"),
        ):
            rows = table[(table["source"] == "model") & (table["block"] == block)]
            np.testing.assert_allclose(rows["energy"], square.sum(axis), rtol=1e-5)
            np.testing.assert_allclose(rows["share"], square.sum(axis) / whole, rtol=1e-5)
            ours = found.table[found.table["block"] == block][name].value_counts()
            assert rows.set_index(name)["extremes"].to_dict() == {
                one: int(ours.get(one, 0)) for one in rows[name]
            }
        assert (rows["count"] == 30).all()


def test_the_summary_says_what_the_tables_hold(found, responses):
    summary = found.summary[found.summary["source"] == "model"].set_index("block")
    for block, y in responses[0].items():
        row, rows = summary.loc[block], found.table[found.table["block"] == block]
        rms = np.sqrt((y**2).mean())
        assert row["rms"] == pytest.approx(rms, rel=1e-5)
        assert row["times_rms"] == pytest.approx(np.abs(y).max() / rms, rel=1e-5)
        for name, column in (("dimensions", "dimension"), ("tokens", "token"), ("images", "image")):
            assert row[name] == rows[column].nunique()
        assert row["most_in_a_dimension"] == rows["dimension"].value_counts().max()
        by_dimension = np.sort((y**2).sum((0, 2)))[::-1].cumsum()
        for name, part in (("dimensions_third", 3), ("dimensions_half", 2)):
            assert row[name] == 1 + np.argmax(by_dimension >= by_dimension[-1] / part)
        by_token = (y**2).sum((0, 1)) / (y**2).sum()
        assert row["prefix_share"] == pytest.approx(by_token[:3].sum(), rel=1e-5)


def test_a_massive_dimension_is_told_from_chance():
    model = vit()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:DIM, 5] *= 30  # row 5 of W_q = weight_q^T: dimension 5 of A
    batches = [torch.randn(4, 3, 16, 16) for _ in range(2)]
    found = extremes(model, batches)
    rows = found.dimensions[found.dimensions["source"] == "model"]
    assert rows[rows["massive"]]["dimension"].tolist() == [5] * DEPTH
    assert found.dimensions[found.dimensions["source"] != "model"]["massive"].isna().all()
    summary = found.summary.set_index(["source", "block"])
    assert (summary.loc["model"]["dimensions_half"] == 1).all()
    assert (summary.loc["permuted tokens"]["dimensions_half"] == 1).all()  # it is the weights'
    assert (summary.loc["permuted weights"]["dimensions_half"] >= 3).all()


def test_a_massive_token_is_told_from_chance():
    model = vit()
    with torch.no_grad():
        model.pos_embed.zero_()
        model.patch_embed.proj.bias.zero_()
        for block in model.blocks:
            block.norm1 = torch.nn.Identity()
        model.blocks[0].attn.proj.weight.zero_()
        model.cls_token.fill_(50.0)
    found = extremes(model, [torch.randn(6, 3, 16, 16)], blocks=[0])
    rows = found.tokens[found.tokens["source"] == "model"]
    assert rows[rows["massive"]]["kind"].tolist() == ["class"]
    assert found.summary.iloc[0]["prefix_share"] > 0.9
    assert found.table["kind"].eq("class").all()


def test_without_nulls_there_is_the_model_alone():
    found = extremes(vit(), [torch.zeros(2, 3, 16, 16)], nulls=False, blocks=[2])
    assert set(found.summary["source"]) == {"model"} and set(found.summary["block"]) == {2}
    assert found.dimensions["massive"].isna().all()
    assert found.record["options"]["nulls"] is False
    json.dumps(found.record)


def test_images_without_names_have_numbers_and_patches_alone_keep_their_places():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 3, 16, 16, generator=generator) for n in (2, 1, 3)]
    whole, patches = (
        extremes(vit(), batches, k=10**6, nulls=False, blocks=[0], tokens=kind)
        for kind in ("all", "patch")
    )
    assert sorted(whole.table["image"].unique()) == list(range(6))
    assert len(whole.table) == 6 * 17 * DIM
    rest = whole.table[whole.table["kind"] == "patch"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest.drop(columns="rank"), patches.table.drop(columns="rank"))


def test_bad_calls_are_refused(backbone, images):
    with pytest.raises(BurstError, match="k is 0"):
        extremes(backbone, images, k=0)
    with pytest.raises(UnknownName, match="did you mean patch"):
        extremes(backbone, images, tokens="patches")
    with pytest.raises(BurstError, match="blocks 0 to 2"):
        extremes(backbone, images, blocks=[3])
    with pytest.raises(EmptyResult, match="no token was read from list"):
        extremes(vit(), [])
    with pytest.raises(UnsupportedModel):
        extremes(timm.create_model("resnet18", num_classes=0), [torch.zeros(1, 3, 64, 64)])
    broken = vit().requires_grad_(False)
    broken.blocks[0].mlp.fc2.bias[3] = torch.nan
    with pytest.raises(BurstError, match=r"blocks\.1: the tokens of .* are not finite"):
        extremes(broken, [torch.zeros(1, 3, 16, 16)])


def test_few_shares_carry_a_part():
    assert carriers([0.25] * 4, 0.5) == 2  # reached, not passed
    assert carriers([0.0, 0.0], 0.5) == 0
    assert carriers([1.0], 1.0) == 1
    assert doctest.testmod(burst.extremes_tables).failed == 0


PROGRAM = """
from burst import extremes, images_for, process_group
from support import backbone_of, few_at_a_time, vit

with process_group() as (rank, _):
    backbone = backbone_of(vit(reg_tokens=2))
    images = few_at_a_time(images_for(backbone, "sample", num_images=10))
    found = extremes(backbone, images, blocks=(1,), k=30)
    for name in ("table", "dimensions", "tokens", "summary"):
        getattr(found, name).to_csv(f"{place}/{name}-{rank}.csv", index=False)
    given = list(images)[rank::2]
    numbered = extremes(backbone, given, blocks=(1,), k=30, nulls=False)
    numbered.table.to_csv(f"{place}/numbered-{rank}.csv", index=False)
"""


@pytest.mark.usefixtures("one_thread")
def test_two_processes_find_what_one_finds(backbone, tmp_path, in_two_processes):
    both = in_two_processes(PROGRAM, tmp_path)
    assert [one.returncode for one in both] == [0, 0], both[0].stderr + both[1].stderr
    images = few_at_a_time(images_for(backbone, "sample", num_images=10))
    one = extremes(backbone, images, blocks=(1,), k=30)
    for name in ("table", "dimensions", "tokens", "summary"):
        for rank in range(2):
            read = pd.read_csv(tmp_path / f"{name}-{rank}.csv")
            expected = getattr(one, name)
            expected.to_csv(tmp_path / "expected.csv", index=False)
            pd.testing.assert_frame_equal(read, pd.read_csv(tmp_path / "expected.csv"), rtol=1e-12)
    batches = list(images)
    order = [i for rank in range(2) for batch in images.batch_names[rank::2] for i in batch]
    assert len(order) == 10 and len(batches) == len(images.batch_names) == 3
    numbered = pd.read_csv(tmp_path / "numbered-1.csv")
    own = one.table[one.table["block"] == 1]  # in block 0 registers are alike in all images: ties
    assert [order[i] for i in numbered["image"]] == own["image"].tolist()


def test_sources_are_in_one_order(found):
    assert found.summary["source"].unique().tolist() == list(SOURCES)
    for table in (found.dimensions, found.tokens):
        assert table["source"].unique().tolist() == list(SOURCES)
        shares = table.groupby(["source", "block"])["share"].sum()
        np.testing.assert_allclose(shares, 1.0)
