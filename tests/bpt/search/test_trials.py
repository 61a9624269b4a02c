"""Trials as run folders: what they say, and what is said of damaged ones."""

from itertools import product

import pytest

from bpt import Recipe
from bpt.search.grid import Point
from bpt.search.halving import rungs
from bpt.search.trials import Trials, trial_seed_of
from burst import CheckpointError

POINT = Point(0.1, 0.0)


DAMAGED = (b"", b'{"epoch": 1,', b"[]", b'{"epoch": "\xff"}')
FOREIGN = (("metrics.jsonl", b'{"epoch": 1}'), ("result.json", b'{"test_images": 12}'))


@pytest.mark.parametrize(
    "name, content",
    [*product(("metrics.jsonl", "result.json", "diverged.json"), DAMAGED), *FOREIGN],
)
def test_a_damaged_file_of_a_trial_is_named(tmp_path, name, content):
    recipe = Recipe(dataset="digits", model="mae_tiny", method="vpt")
    marks = rungs(4, None, halving=True)
    trials = Trials(tmp_path, {"vpt": recipe}, {"vpt": marks}, None, (500,), (0,), 0)
    job = trials.final_job("vpt", POINT, 0)
    file = tmp_path / job.name / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content + b"\n")
    with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
        _ = trials.score("vpt", POINT, 0), trials.result(job)


@pytest.mark.parametrize(
    "runs, seed",
    [
        ((), None),
        (("lr0.1-wd0-seed3-fold1of2", "lr0.1-wd0-seed0", "lr0.1-wd0-seed1"), 3),
        (("lr0.1-wd0-seed1", "lr0.1-wd0-seed12", "lr0.4-wd0-seed12"), 12),
    ],
)
def test_the_seed_of_trials_is_told_by_what_lies_there(tmp_path, runs, seed):
    for name in runs:
        (tmp_path / "runs/vpt" / name).mkdir(parents=True)
        (tmp_path / "runs/vpt" / name / "config.json").touch()
    assert trial_seed_of(tmp_path) == seed
