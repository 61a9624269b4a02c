"""What explains a distribution, from the option that is typed to the number that comes out."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kurtosis
from typer.testing import CliRunner

import burst
from cli.burst import app

FEW = ("--model", "mae_tiny", "--num-images", "12", "--quiet")


def run(*arguments):
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.fixture(scope="module")
def tokens():
    """What block 3 reads of the images that the commands draw, and its weights, in float64."""
    backbone = burst.load_backbone("mae_tiny")
    batches = burst.images_for(backbone, "sample", num_images=12)
    with torch.inference_mode(), burst.capture(backbone.model, blocks=[3]) as read:
        parts = []
        for batch in batches:
            backbone.model(batch)
            parts.append(read[3])
    attention = backbone.model.blocks[3].attn
    return torch.cat(parts).double(), attention.qkv.weight.detach().double(), attention


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    asked = ("--quantity", "qkx", "--quantity", "logits", "--blocks", "3", "--out", out)
    run("histogram", *FEW, *asked)
    return out


@pytest.mark.slow
def test_statistics_csv_says_what_standardised_rows_have(folder, tokens):
    x, weight, _ = tokens
    d = x.shape[-1]
    y = (weight[:d].mT @ weight[d : 2 * d] @ x.reshape(-1, d).mT).numpy()
    table = pd.read_csv(folder / "statistics.csv")
    row = table[(table["head"] == "all") & (table["quantity"] == "qkx")].iloc[0]
    rows = (y - y.mean(axis=1, keepdims=True)) / y.std(axis=1, keepdims=True)
    assert row["excess_kurtosis"] == pytest.approx(kurtosis(y, axis=None), rel=1e-4)
    assert row["kurtosis_within_rows"] == pytest.approx(kurtosis(rows, axis=None), rel=1e-4)
    assert row["excess_kurtosis_low"] < row["excess_kurtosis"] < row["excess_kurtosis_high"]


def test_softmax_csv_says_the_entropy_of_the_attention(folder, tokens):
    x, weight, attention = tokens
    qkv = x @ weight.mT + attention.qkv.bias.double()
    q, k, _ = qkv.reshape(*x.shape[:2], 3, 3, -1).unbind(2)
    p = torch.einsum("bqhd,bkhd->bhqk", q, k).mul(attention.scale).softmax(dim=-1)
    entropy = -(p * p.log()).sum(dim=-1).mean(dim=(0, 2))
    table = pd.read_csv(folder / "softmax.csv").set_index("head")["entropy"]
    np.testing.assert_allclose(table[["0", "1", "2"]], entropy.detach().numpy(), rtol=1e-4)
    assert table["all"] == pytest.approx(float(entropy.mean()), rel=1e-4)


@pytest.mark.slow
def test_a_diagonal_whitening_divides_each_row_by_its_deviation(tmp_path):
    path = tmp_path / "V.pt"
    printed = json.loads(
        run("whiten", *FEW[:4], "--method", "diagonal", "--blocks", "3", "--out", path, "--json")
    )
    stored = torch.load(path, weights_only=True)
    v = stored["W"][0].double()
    assert torch.equal(v, v.diag().diag())
    floor = stored["variances"][0].max() * 1e-6
    expected = stored["variances"][0].clamp(min=float(floor)).rsqrt()
    torch.testing.assert_close(v.diag(), expected.double(), rtol=1e-5, atol=0)
    assert printed[0]["excess_kurtosis_after"] == printed[0]["excess_kurtosis_diagonal"]


@pytest.mark.slow
def test_a_run_does_not_differ_from_itself(folder, tmp_path):
    run("compare", folder, folder, "--out", tmp_path, "--quiet")
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert len(table)
    assert (table["difference"].dropna() == 0).all()
