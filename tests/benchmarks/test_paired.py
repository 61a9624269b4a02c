"""`benchmarks/paired.py`: which runs of which seeds are compared, and what is said of them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from bpt import Recipe
from bpt.search.paired import holm, paired_difference

LABELS = np.random.default_rng(0).integers(5, size=200)


def write_run(folder, seed, share, *, ended=True):
    """A run that was right about this share of the test images; which ones were."""
    folder.mkdir(parents=True)
    config = {
        "kind": "bpt run 1",
        "recipe": Recipe(method="vpt", seed=seed).to_dict(),
        "dataset": {"classes": []},
        "backbone": {"weights_sha256": None},
    }
    (folder / "config.json").write_text(json.dumps(config))
    right = np.random.default_rng(seed).random(len(LABELS)) < share
    save_file(
        {"predicted": np.where(right, LABELS, LABELS + 1), "labels": LABELS},
        folder / "predictions.safetensors",
    )
    if ended:
        (folder / "result.json").write_text("{}")
    return right


def test_each_pair_is_compared_over_the_seeds_that_both_have(
    benchmark, tmp_path, monkeypatch, capsys
):
    right = {
        name: {seed: write_run(tmp_path / name / f"lr1-seed{seed}", seed, share) for seed in seeds}
        for name, share, seeds in (("a", 0.5, (0, 1)), ("b", 0.8, (0, 1, 2)), ("c", 0.6, (1,)))
    }
    write_run(tmp_path / "a" / "lr1-seed2", 2, 0.9, ended=False)
    words = [f"{name}={tmp_path / name / 'lr1-seed?'}" for name in right]
    monkeypatch.setattr("sys.argv", ["paired.py", *words])
    benchmark.main()
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert lines[2][0] == "| a" and lines[2][1].count(",") == 1
    pairs = {("b", "a"): (0, 1), ("c", "a"): (1,), ("c", "b"): (1,)}
    wanted = [
        paired_difference(*(np.stack([right[name][seed] for seed in seeds]) for name in pair))
        for pair, seeds in pairs.items()
    ]
    adjusted = holm([one.p_value for one in wanted])
    for line, pair, one, p in zip(lines[-3:], pairs, wanted, adjusted, strict=True):
        interval = f"{one.difference:+.1f} ({one.low:+.1f} to {one.high:+.1f})"
        assert line == [f"| {pair[0]} - {pair[1]}", str(one.seeds), interval, f"{p:.2g} |"]


@pytest.mark.parametrize(
    "words, says",
    [
        (["nothing"], "give NAME=FOLDERS, not 'nothing'"),
        (["=x"], "give NAME=FOLDERS, not '=x'"),
        (["a="], "give NAME=FOLDERS, not 'a='"),
        (["a=x", "a=y"], "a is given twice"),
    ],
)
def test_a_group_without_a_name_of_its_own_is_refused(benchmark, words, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.parse(words)
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_path_may_hold_an_equals_sign(benchmark):
    assert benchmark.parse(["a=x=y/*"]) == {"a": "x=y/*"}


def test_two_runs_of_one_seed_are_refused_and_named(benchmark, tmp_path):
    for rate in (1, 2):
        write_run(tmp_path / f"lr{rate}-seed0", 0, 0.5)
    first, second = tmp_path / "lr1-seed0", tmp_path / "lr2-seed0"
    with pytest.raises(SystemExit, match=f"{first} and {second} are of one seed"):
        benchmark.runs_of(str(tmp_path / "*-seed?"))
    assert benchmark.runs_of(str(tmp_path / "lr2-seed?")) == {0: second}


def test_where_no_run_has_ended_there_is_nothing_to_compare(benchmark, tmp_path):
    write_run(tmp_path / "a-seed0", 0, 0.5, ended=False)
    with pytest.raises(SystemExit, match="no finished run"):
        benchmark.runs_of(str(tmp_path / "*"))
