"""The README's Python runs as it stands."""

import re
from pathlib import Path

import burst

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole, own, parts, why, tuning = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(whole, names)
    assert "excess_kurtosis" in capsys.readouterr().out
    assert names["counts"].sum() == names["hist"].count
    assert (tmp_path / "out" / "statistics.csv").exists()
    exec(own, own_names := {})
    assert len(own_names["table"]) == 3 * 12
    assert "excess_kurtosis" in capsys.readouterr().out
    names["model"], names["batch"] = names["backbone"].model, next(iter(names["images"]))
    exec(parts, names)
    assert isinstance(names["hist"], burst.Histogram)
    assert names["hist"].count == 192 * 64 * 65
    names["images"] = burst.images_for(names["backbone"], "sample", num_images=3)
    exec(why, names)
    assert set(names["found"].summary["source"]) == {
        "model",
        "permuted weights",
        "permuted tokens",
    }
    exec(tuning, names)
    model = names["model"]
    assert model(names["batch"][:2]).shape == (2, 10)
    trained = 4 * 8 * (16 + 192) + 10 * 193
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


def test_every_file_that_the_readme_names_is_there():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / link).exists(), link
