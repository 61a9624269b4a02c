"""The page of a validation: a sentence a benchmark, all numbers, what was not there."""

import json

import pandas as pd
import pytest

import burst
import reports


def method(name, mean, *, rates="searched", failed=None):
    test = None if failed else {"mean": mean, "std": 0.4, "values": [mean - 0.4, mean + 0.4]}
    return {
        "method": name,
        "placement": None if name == "linear" else "shallow",
        "rates": rates,
        "source": "the best of 8 trials on folds" if rates == "searched" else "a script",
        "lr": None if failed else 0.01,
        "weight_decay": None if failed else 0.005,
        "trained_parameters": None if failed else 1930,
        "runs": [] if failed else [{"seed": seed, "folder": f"{name}/{seed}"} for seed in (0, 1)],
        "test": test,
        "failed": failed,
    }


def difference(name, against, value, low, high, images=597):
    p = None if low is None else 0.01 if low > 0 else 0.5
    values = {"difference": value, "low": low, "high": high, "adjusted_p": p}
    return {"method": name, "against": against, **values, "seeds": 2, "images": images}


RECORD = {
    "kind": "bpt validate 1",
    "whitening": {
        "path": "work/W.pt",
        "sha256": "ab" * 32,
        "weights_sha256": "cd" * 32,
        "method": "zca",
        "floor": 1e-6,
        "images": {"count": 80, "sources": [{"source": "sample"}]},
    },
    "model": "mae_tiny",
    "weights": None,
    "complete": True,
    "pending": {},
    "recipes": {},
    "benchmarks": [
        {
            "dataset": "digits",
            "place": "scikit-learn",
            "placement": "shallow",
            "seeds": [0, 1],
            "command": ["bpt", "validate", "W.pt", "--datasets", "digits"],
            "metric": "test_accuracy",
            "search": None,
            "methods": [
                method("linear", 90.5),
                method("vpt", 93.25),
                method("bpt-fwhiten", 94.75, rates="published"),
                method("bpt-dwhiten", 0.0, failed="every trial of it diverged"),
            ],
            "differences": [
                difference("bpt-fwhiten", "vpt", 1.5, 0.3, 2.7),
                difference("vpt", "linear", 2.75, 1.5, 4.0),
            ],
            "sentence": "digits: prompts whitened with W are better than vpt by 1.5 points.",
        },
        {
            "dataset": "coco",
            "place": "/data/coco",
            "placement": "deep",
            "seeds": [0],
            "command": ["bpt", "validate", "W.pt"],
            "metric": "box_AP",
            "search": None,
            "methods": [method("vpt", 40.0), method("bpt-fwhiten", 40.6)],
            "differences": [difference("bpt-fwhiten", "vpt", 0.6, None, None, None)],
            "sentence": "coco: prompts whitened with W are 0.6 points of box AP above vpt.",
        },
    ],
    "missing": {"dogs": "get it with `bpt datasets --download dogs`"},
    "notes": ["The whitening has matrices for 1 of 12 blocks (0)."],
    "sentences": ["digits: prompts whitened with W are better than vpt by 1.5 points."],
    "command": ["bpt", "validate", "W.pt"],
    "versions": {"torch": "2.11"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validate")
    (folder / "validate.json").write_text(json.dumps(RECORD))
    files = reports.save_validation(folder)
    return folder, files, files[0].read_text()


def test_the_sentences_come_first_and_every_number_is_there(made):
    folder, files, html = made
    assert html.index(RECORD["sentences"][0]) < html.index("<table")
    assert "94.75 ± 0.40" in html and "every trial of it diverged" in html
    assert "1 of 12 blocks" in html and "get it with `bpt datasets --download dogs`" in html
    assert "Some rates were searched here and others published" in html
    assert "not at their end yet" not in html
    assert "bpt validate W.pt --datasets digits\nbpt validate W.pt<" in html
    assert "Prompts stand shallow. Seeds 0, 1, the" in html
    assert "Prompts stand deep. Seeds 0, the" in html
    table = pd.read_csv(folder / "benchmarks.csv", keep_default_na=False)
    assert list(table["dataset"]) == ["digits"] * 4 + ["coco"] * 2
    assert table["test"][2] == "94.75" and table["test"][3] == ""
    assert all(file.exists() for file in files)


def test_accuracies_and_average_precisions_have_a_figure_each(made):
    folder, _, _ = made
    for metric, count in (("test_accuracy", 2), ("box_AP", 1)):
        table = pd.read_csv(folder / f"differences_{metric}.csv")
        assert len(table) == count and (folder / f"differences_{metric}.png").exists()
    assert pd.read_csv(folder / "differences_box_AP.csv")["low"].isna().all()


def test_a_validation_that_has_just_begun_has_a_page_that_says_so(tmp_path):
    pending = {"cub": ["bpt", "validate", "W.pt", "--datasets", "cub"], "dogs": ["bpt", "v"]}
    begun = RECORD | {"complete": False, "pending": pending, "benchmarks": [], "sentences": []}
    (tmp_path / "validate.json").write_text(json.dumps(begun))
    html = reports.save_validation(tmp_path)[0].read_text()
    assert "not at their end yet: cub, dogs." in html and "Nothing has ended yet" in html
    assert "bpt validate W.pt --datasets cub\nbpt v<" in html


def test_what_is_no_validation_is_refused(tmp_path):
    with pytest.raises(burst.CheckpointError, match="no readable"):
        reports.open_validation(tmp_path)
    (tmp_path / "validate.json").write_text("[]")
    with pytest.raises(burst.CheckpointError, match="holds no object"):
        reports.open_validation(tmp_path)
    (tmp_path / "validate.json").write_text(json.dumps(RECORD | {"kind": "bpt search 1"}))
    with pytest.raises(burst.CheckpointError, match="not what `bpt validate` of this"):
        reports.open_validation(tmp_path)
