"""Sentences say what the numbers say."""

import shlex

import pandas as pd
import pytest

import burst
import reports
from reports.words import comparison, law_in_words

INF, NAN = float("inf"), float("nan")


def table_of(kurtoses, *, model="mae_tiny", pretraining="mae", shape=1.0, quantity="qkx"):
    rows = [
        {
            "model": model,
            "pretraining": pretraining,
            "block": block,
            "head": "all",
            "quantity": quantity,
            "excess_kurtosis": kurtosis,
            "ggd_shape": shape,
            "top1_energy": 0.2,
            "ks_gaussian": 0.05,
            "ks_laplace": 0.01,
        }
        for block, kurtosis in enumerate(kurtoses)
    ]
    return pd.DataFrame(rows)


def test_of_scores_alone_nothing_is_said():
    with pytest.raises(burst.EmptyResult, match="none of qk, x and qkx"):
        reports.findings(table_of([1.0], quantity="logits"))


@pytest.mark.parametrize(
    ("kurtoses", "headline"),
    [
        ([9.0, 0.1, 4.0], "is bursty: in 2 of 3 blocks (0, 2)"),
        ([0.1, 2.0, 0.2], "is mildly bursty: no block's response"),
        ([0.1, -0.2, 0.2], "is not bursty: in all 3 blocks"),
        ([0.1, -1.6, 0.2], "is not bursty: in 1 of 3 blocks (1) the response is lighter"),
        ([NAN] * 2, "nothing in it varies"),
        ([0.1, NAN, 0.2, NAN], "in all 2 blocks that vary the response is close to Gaussian."),
        ([0.1, NAN, 9.0, NAN], "in 1 of 2 blocks that vary (2) a few"),
        ([0.1, NAN, 2.0, NAN], "in 1 of 2 blocks that vary (2) it is than a"),
        ([NAN, 0.2], "close to Gaussian. In the other blocks (0) no finite value varies."),
    ],
)
def test_the_headline_follows_the_kurtosis(kurtoses, headline):
    (finding,) = reports.findings(table_of(kurtoses))
    assert headline in finding.headline and finding.headline.startswith("mae_tiny")


@pytest.mark.parametrize(
    ("kurtoses", "low", "high", "ending"),
    [
        ([2.2, 1.4, 0.1], [-0.05, 1.1, 0.0], [INF, 1.9, 0.3], "in 1 of these (1) the whole 95 %"),
        ([2.2, 1.4, 0.1], [-0.05, 0.9, 0.0], [INF, 1.9, 0.3], "in none of these the whole 95 %"),
        ([9.0, 4.0, 2.0], [3.5, 3.1, 1.5], [INF, INF, 2.5], "in all of these the whole 95 %"),
        ([-1.6, -1.2, 0.0], [-2.0] * 3, [-1.1, -0.9, 1.0], "in 1 of these (0) the whole 95 %"),
        ([9.0, 0.1, 0.2], [3.5, 0.0, 0.0], [INF, 1.9, 0.3], "sure by all of its 95 % interval."),
        ([9.0, 0.1, 0.2], [2.5, 0.0, 0.0], [INF, 1.9, 0.3], "but not by all of its 95 % interval."),
        ([2.2, 1.4, 0.1], [NAN] * 3, [NAN] * 3, "by an excess kurtosis above 1."),
    ],
)
def test_only_what_all_of_an_interval_says_is_called_sure(kurtoses, low, high, ending):
    table = table_of(kurtoses).assign(excess_kurtosis_low=low, excess_kurtosis_high=high)
    (finding,) = reports.findings(table)
    assert ending in finding.headline and "clearly" not in finding.headline


def test_how_backbones_differ_is_as_sure_as_their_intervals():
    one = table_of([1.3, 1.2], model="a").assign(
        excess_kurtosis_low=[1.0, 0.1], excess_kurtosis_high=[INF, 1.4]
    )
    other = table_of([0.3, 0.2], model="b").assign(
        excess_kurtosis_low=[0.1, 0.0], excess_kurtosis_high=[0.9, 0.5]
    )
    (sentence,) = comparison(pd.concat([other, one], ignore_index=True))
    assert "heaviest-tailed in a and least so in b" in sentence  # by 1.0, whatever is sure of it
    assert sentence.endswith("with the whole 95 % interval above that of b in 1 of 2 blocks.")
    (alike,) = comparison(pd.concat([one, one.assign(model="c")], ignore_index=True))
    assert alike.endswith("a (mae) 1.25, c (mae) 1.25; they are alike.")


def test_the_burstiest_block_and_the_law_are_named():
    (finding,) = reports.findings(table_of([0.5, 7.25, 1.0], shape=0.6))
    text = " ".join([finding.burstiest, *finding.laws])
    assert "Where: most in block 1. Its largest 1 % of entries hold 20 % of the energy" in text
    assert "excess kurtosis 7.2 (Gaussian 0, Laplacian 3)" in text
    assert "hyper-Laplacian in 3 of 3 blocks" in text
    assert "best Laplacian is closer than the best Gaussian in 3" in text
    assert any("--whitening W.pt" in one for one in finding.commands)


def test_a_block_without_a_shape_is_not_said_to_be_constant():
    table = table_of([0.5, 7.25, 1.0], shape=0.6)
    table.loc[0, "ggd_shape"] = float("nan")
    (finding,) = reports.findings(table)
    assert "hyper-Laplacian in 2, none in 1 of 3 blocks" in " ".join(finding.laws)
    assert law_in_words(float("nan"), float("nan")) == "does not vary"


def test_rows_of_heads_are_left_out():
    table = table_of([9.0, 9.0])
    table.loc[0, "head"] = "3"
    (finding,) = reports.findings(table)
    assert "1 of 1 blocks (1)" in finding.headline


def test_backbones_are_ordered_by_their_tails():
    one = table_of([5.0, 7.0], model="a", pretraining="mae")
    other = table_of([0.0, 1.0], model="b", pretraining="supervised")
    (sentence,) = comparison(pd.concat([other, one], ignore_index=True))
    assert "a (mae) 6.00, b (supervised) 0.50" in sentence
    assert "heaviest-tailed in a and least so in b" in sentence
    assert comparison(one) == []


@pytest.mark.parametrize(
    ("shape", "law"),
    [
        (0.5, "hyper-Laplacian"),
        (1.0, "Laplacian"),
        (1.5, "between Laplacian and Gaussian"),
        (2.0, "Gaussian"),
        (4.0, "lighter-tailed than a Gaussian"),
    ],
)
def test_a_shape_has_a_name(shape, law):
    assert law_in_words(0.0, shape) == law


def test_nothing_is_advised_that_would_be_refused():
    def commands(model):
        return reports.findings(table_of([5.0], model=model))[0].commands

    assert commands("mae_tiny") and commands("timm:vit_tiny_patch16_224")
    assert not commands("hf:llama") and not commands("torchvision:vit_b_16")
    assert not commands("VisionTransformer")  # a module, whose class no command loads


def test_commands_go_on_with_what_was_measured(tmp_path):
    """Not with the packaged images, the model's own weights and size."""
    weights = tmp_path / "my weights.pt"
    weights.touch()
    images = {"source": "my photos", "count": 38, "bad": [["a.jpg", "cut"]] * 2, "seed": 3}
    options = {"tokens": "patch", "convention": "paper"}
    record = {"weights": str(weights), "images": images | {"image_size": 96}, "options": options}

    def commands(record):
        (found,) = reports.findings(table_of([5.0]), {"mae_tiny": record})
        return found.commands

    whiten, *trainings = commands(record)
    backbone = ["--model", "mae_tiny", "--weights", str(weights), "--image-size", "96"]
    drawn = ["--images", "my photos", "--num-images", "40", "--seed", "3", "--skip-bad"]
    command = ["burst", "whiten", *backbone, "--tokens", "patch", *drawn, "--out", "W.pt"]
    assert sorted(shlex.split(whiten)) == sorted(command)
    assert all(one.startswith("bpt train DATASET ") for one in trainings)
    assert all(shlex.split(one)[3:-2][:6] == backbone for one in trainings)
    record["images"] |= {"source": "cub", "split": "train"}
    whiten, *trainings = commands(record | {"weights": "random"})
    assert "--weights random" in whiten and "--images cub" in whiten
    assert all(one.startswith("bpt train cub ") for one in trainings)
    record["images"]["source"] = "folder:my photos"
    assert all(one.startswith("bpt train 'folder:my photos' ") for one in commands(record)[1:])
    own = {"weights": "package:mae_tiny.safetensors", "images": {"source": "sample"}}
    own["images"] |= {"count": 100, "bad": [], "seed": 0, "image_size": 64}
    fewer = own | {"images": own["images"] | {"count": 8, "seed": 3}}
    assert "whiten --model mae_tiny --num-images 8 --seed 3 --out" in commands(fewer)[0]
    assert commands(own) == commands({}) == reports.findings(table_of([5.0]))[0].commands
