"""What a search says: each step once, and at the start how many there are already."""

import json

import pytest

from bpt import Recipe
from bpt.search.grid import Point
from bpt.search.halving import rungs
from bpt.search.news import News
from bpt.search.plan import Course
from bpt.search.trials import FAILED, Trials

POINTS = [Point(0.1, 0.0), Point(0.2, 0.0)]
EPOCHS = 4


@pytest.fixture
def trials(tmp_path):
    recipe = Recipe(dataset="digits", model="mae_tiny", method="vpt")
    marks = rungs(EPOCHS, None, halving=True)
    return Trials(tmp_path, {"vpt": recipe}, {"vpt": marks}, None, (500,), (0, 1), 0)


def trained(trials, point, epochs):
    """Writes what a training of so many epochs leaves."""
    place = trials.out / trials.name("vpt", point, None)
    place.mkdir(parents=True, exist_ok=True)
    lines = [
        {"epoch": epoch, "val_accuracy": 10.0 * epoch, "val_loss": 1.0}
        for epoch in range(1, epochs + 1)
    ]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


def course(finalists=None):
    return {"vpt": Course([POINTS], [], finalists or {})}


def test_each_rung_is_said_once_and_what_was_there_is_counted(trials):
    said = []
    news = News(trials, said.append)
    trained(trials, POINTS[0], 2)
    news.begin(course(), "1 methods")
    news.tell(course())
    assert said == ["1 methods; 2 steps of it are done"]
    trained(trials, POINTS[0], 3)  # between two rungs
    trained(trials, POINTS[1], 1)
    news.tell(course())
    news.tell(course())
    (line,) = said[1:]
    assert line.startswith("vpt lr 0.2 weight decay 0: epoch 1 of 4, val 10.0 %")


def test_a_trial_that_diverged_is_said_once(trials):
    said = []
    news = News(trials, said.append)
    news.begin(course(), "1 methods")
    place = trained(trials, POINTS[1], 1)
    (place / FAILED).write_text('{"diverged": "the loss is nan"}')
    news.tell(course())
    lines = [line.partition("  (")[0] for line in said[1:]]
    name = "vpt lr 0.2 weight decay 0"
    assert lines == [f"{name}: epoch 1 of 4, val 10.0 %", f"{name}: epoch 2 of 4, diverged"]


def test_seeds_are_said_when_their_results_are_there(trials):
    said = []
    news = News(trials, said.append)
    trained(trials, POINTS[0], EPOCHS)
    found = course({POINTS[0]: trials.score("vpt", POINTS[0], 2)})
    news.begin(found, "1 methods")
    place = trials.out / trials.final_job("vpt", POINTS[0], 1).name
    place.mkdir(parents=True)
    result = {"parameters": {}, "val_accuracy": 40.0, "test_accuracy": 41.25, "best_epoch": 1}
    (place / "result.json").write_text(json.dumps(result))
    news.tell(found)
    assert [line.partition("  (")[0] for line in said[1:]] == ["vpt seed 1: test 41.2 %"]
