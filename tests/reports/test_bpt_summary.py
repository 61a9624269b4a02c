"""What the page of several trainings says first: who is ahead, of whom, and how sure that is."""

import json
import re
from html import unescape

import numpy as np
import pytest
from safetensors.numpy import save_file

import reports
from bpt import Recipe, Run, paired_difference
from reports.bpt_summary import trainings_frame, write_summary
from reports.page import Page
from reports.paper_tables import latex

CLASSES, IMAGES = 3, 30


@pytest.fixture
def run(tmp_path, rng):
    """A run that has ended, right about so many of its test images; `changes` are of its recipe."""
    labels = rng.integers(0, CLASSES, IMAGES)
    made = []

    def build(right, *, digest="d1", sha="w1", answers=True, **changes):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        recipe = Recipe(**{"placement": "last:1"} | changes)
        wrong = np.arange(IMAGES) >= right
        if answers:
            predicted = np.where(wrong, (labels + 1) % CLASSES, labels)
            save_file(
                {"predicted": predicted, "labels": labels}, folder / "predictions.safetensors"
            )
        result = {"test_accuracy": 100 * right / IMAGES, "test_images": IMAGES}
        (folder / "result.json").write_text(json.dumps(result | {"images_per_second": 1234.5}))
        config = {
            "recipe": recipe.to_dict(),
            "dataset": {"name": recipe.dataset.partition(":")[0], "source": "/x", "digest": digest},
            "parameters": {"prompts": 7},
            "backbone": {"weights_sha256": sha},
        }
        made.append(Run(folder, config))
        return made[-1]

    return build


def said(*runs):
    named = reports.labels(runs)
    table = reports.compare(runs)
    table.insert(0, "label", list(named))
    page = Page("Runs", [])
    write_summary(page.section("What was found"), named, table)
    return unescape(page.html().partition("<main>")[2])


def test_a_lead_over_plain_prompts_has_the_interval_of_images_and_seeds(run):
    best, plain = run(27), run(20, method="vpt")
    text = said(best, run(5, method="vpt", lr=9.0), plain)
    found = paired_difference(*(np.arange(IMAGES)[None] < count for count in (27, 20)))
    assert "That is 23.3 points more than vpt, last:1, lr 0.05, the best plain prompts" in text
    assert f"95 % interval of {found.low:+.1f} to {found.high:+.1f}, by the 30 test images" in text
    assert "bpt-bilinear, last:1, lr 0.05: 90.0 % of 30 images." in text
    assert "may not tell them apart" not in text and "The runs differ" not in text
    assert "One seed says little" in text
    assert "may not tell them apart" in said(best, run(26, method="vpt"))


def test_several_seeds_are_one_training_whose_mean_counts(run):
    """vpt has the best run, and the lower mean."""
    rights = {"bpt-bilinear": (24, 25, 26), "vpt": (28, 10, 11)}
    runs = [run(n, method=m, seed=s) for m, counts in rights.items() for s, n in enumerate(counts)]
    text = said(*runs, run(1, method="vpt", seed=7))
    found = paired_difference(*(np.arange(IMAGES) < np.array(rights[m])[:, None] for m in rights))
    assert "is bpt-bilinear, last:1 (the mean of 3 seeds): 83.3 % of 30 images." in text
    assert "With what seeds both have (0, 1, 2) that is 28.9 points more than vpt, last:1" in text
    assert f"{found.low:+.1f} to {found.high:+.1f}, by the 30 test images and 3 seeds" in text
    assert "One seed" not in text


def test_the_table_for_a_paper_has_means_over_seeds(run, tmp_path):
    runs = [run(n, seed=s, rank=2, lr=0.5) for s, n in enumerate((24, 27, 30))]
    runs += [run(9, method="linear", lr=0.25, head_weight_decay=0.125), run(21, method="vpt")]
    other = {**runs[0].config, "recipe": {**runs[0].config["recipe"], "seed": 9}}
    found = trainings_frame(reports.labels([*runs, Run(tmp_path / "none", other)]))  # not ended
    assert list(found["training"]) == [
        *("bpt-bilinear, last:1", "vpt, last:1, seed 0", "linear, seed 0"),
    ]
    accuracies = 100 * np.array([24, 27, 30]) / 30
    first, _, last = found.to_dict("records")
    assert (first["test"], first["sd"]) == pytest.approx(
        (accuracies.mean(), accuracies.std(ddof=1))
    )
    assert (first["lr"], first["prompt"], first["seeds"]) == (0.5, 7, 3)
    assert (last["lr"], last["weight_decay"], last["seeds"]) == (0.25, 0.125, 1)
    assert np.isnan(last["sd"]) and np.isnan(first["val"])
    assert r"\texttt" not in latex(found) and "& 90.00 & 10.00 & 3 \\" in latex(found)
    assert trainings_frame({}).empty


def test_a_tie_has_no_winner(run):
    runs = [run(20, method="vpt"), run(20, seed=0), run(20, method="spt"), run(3, method="linear")]
    for order in (runs, runs[::-1]):
        text = said(*order)
        (named,) = re.findall("Best on the test split are (.*): 66.7 % of 30 images.", text)
        first, second, last = re.split("; and |; ", named)
        assert {first, second} == {"bpt-bilinear, last:1", "spt, last:1"} and last == "vpt, last:1"
        assert "That is level with vpt, last:1, the best plain prompts (vpt) here" in text
    more = [run(count, seed=seed) for seed, count in enumerate((19, 20, 21))]
    text = said(runs[0], *more)
    assert "are bpt-bilinear, last:1 (the mean of 3 seeds); and vpt, last:1, seed 0: 66.7 %" in text


def test_seeds_that_one_alone_has_are_not_compared(run):
    """The three have the better mean, and with the seed that both have the worse one."""
    plain, *three = run(25, method="vpt"), *(run(n, seed=s) for s, n in enumerate((20, 29, 29)))
    text = said(plain, *three)
    assert "is bpt-bilinear, last:1 (the mean of 3 seeds): 86.7 % of 30 images." in text
    assert "With what seeds both have (0) that is 16.7 points less than vpt" in text
    text = said(run(25, method="vpt", seed=7), *three)
    assert "With seed 0 against seed 7 that is 16.7 points less than vpt" in text
    assert "One seed says little" in text


def test_the_best_of_many_needs_a_clearer_lead(run):
    plain = run(20, method="vpt")
    better = [run(26, lr=0.1 * rate) for rate in range(1, 5)]
    assert paired_difference(*(np.arange(IMAGES)[None] < n for n in (26, 20))).p_value > 0.05 / 4
    assert "may not tell them apart" not in said(better[0], plain)
    assert "the best of 4, chosen on these images" in said(*better, plain)


def test_without_the_answers_of_each_image_there_is_a_standard_error(run):
    text = said(run(27, answers=False), run(20, method="vpt"))
    variances = [share * (1 - share) for share in (27 / IMAGES, 20 / IMAGES)]
    error = 100 * np.sqrt(sum(variances) / IMAGES)
    assert f"with a standard error of {error:.1f}, by the 30 test images" in text


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"digest": "d2"}, "images"),
        ({"sha": "w2"}, "weights"),
        ({"protocol": "authors", "epochs": 7, "batch_size": 8}, "batch_size, epochs, protocol"),
        ({"digest": "d2", "train_fraction": 0.1}, "images, train_fraction"),
        ({"image_size": 96}, "image_size"),
        ({"augmentation": "none"}, "augmentation"),
        ({"model": "mae_vitb"}, "model"),
    ],
)
def test_nothing_is_credited_to_prompts_that_something_else_may_have_done(run, changes, named):
    text = said(run(27), run(20, method="vpt", **changes))
    assert "points more" not in text
    assert f"the nearest here, differs in {named} too." in text
    assert f"The runs differ in {named}: mind what is compared." in text


def test_what_is_the_methods_own_may_differ(run):
    own = {"lr": 0.3, "weight_decay": 0.1, "num_prompts": 5, "placement": "last:2", "seed": 3}
    text = said(run(27), run(20, method="vpt", workers=2, **own))
    assert "points more than vpt" in text and "The runs differ" not in text


def test_each_set_of_images_has_its_best_and_its_name(run):
    birds = run(20, method="vpt", dataset="folder:two/birds")
    text = said(birds, run(27, digest="d2", dataset="folder:two/cars"))
    assert "of folder:birds is vpt, last:1, folder:birds: 66.7 % of 30 images." in text
    assert "of folder:cars is bpt-bilinear, last:1, folder:cars: 90.0 % of 30 images." in text
    assert "points more" not in text


def test_a_probe_has_no_speed_and_others_have(run):
    text = said(run(20, method="linear"), run(15))
    assert "linear: 66.7 % of 30 images with 7 trained numbers in its prompts." in text
    assert "prompts, at 1,234 images a second." in text


def test_folders_that_end_alike_are_called_by_all_of_their_place(run):
    runs = [run(9, dataset=f"folder:{place}") for place in ("a/photos", "b/photos", "c")]
    runs.append(run(9))
    names = list(reports.compare(runs)["dataset"])
    assert names == ["folder:a/photos", "folder:b/photos", "folder:c", "digits"]
