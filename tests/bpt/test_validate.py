"""A whitening on benchmarks: what is tried, where prompts may stand, and what is said of it."""

import dataclasses
import json
import shutil

import intervals
import layouts
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy import stats

import bpt
import bpt.search.recipes
import bpt.validate
import burst
import reports
from bpt.run_folder import PREDICTIONS
from bpt.search import SearchOptions
from bpt.search.recipes import LOOP, method_recipes
from bpt.validate_record import KIND, read_validation
from bpt.validate_results import _differences, _of_seeds, benchmark_record, sentence

SMALL = {"epochs": 1, "batch_size": 6, "num_prompts": 4}


def whitening_file(place, blocks=None, image_size=None, name="W.pt"):
    """A whitening of a small random ViT whose weights lie in a file."""
    weights = place / "weights.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    backbone = burst.load_backbone("timm:test_vit", str(weights), image_size=image_size)
    images = burst.images_for(backbone, "sample", num_images=4)
    options = burst.WhiteningOptions(blocks=blocks)
    burst.save_whitening(burst.whiten(backbone, images, options), place / name)
    return place / name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with W.pt, the weights it was made of, and a small copy of CUB."""
    place = tmp_path_factory.mktemp("validate")
    whitening_file(place)
    layouts.cub(place / "data" / "cub", train=5, test=4)
    return place


def test_what_lies_on_disk_is_planned_and_the_rest_is_listed_with_how_to_get_it(place):
    plan = bpt.plan_validation(place / "W.pt", data=place / "data", epochs=1)
    assert [one.dataset for one in plan.benchmarks] == ["digits", "cub"]
    assert set(plan.missing) == {"nabirds", "flowers", "dogs", "cars", "imagenet", "coco"}
    assert plan.missing["dogs"] == bpt.how_to_get(bpt.dataset_info("dogs"))
    assert plan.placement == "shallow" and plan.notes == ()
    digits = [one.recipe.image_size for one in plan.benchmarks[0].methods.values()]
    assert digits == [160] * 4  # of what the matrices were made of, not a search's small one
    recipes = {name: one.recipe for name, one in plan.benchmarks[1].methods.items()}
    assert list(recipes) == ["linear", "vpt", "bpt-fwhiten", "bpt-dwhiten"]
    assert recipes["vpt"].whitening is None and recipes["linear"].whitening is None
    assert recipes["bpt-dwhiten"].whitening == str(place / "W.pt")
    assert {one.weights for one in recipes.values()} == {str(place / "weights.safetensors")}
    epochs = {name: one.epochs for name, one in recipes.items()}
    assert epochs.pop("linear") == 100 and set(epochs.values()) == {1}


def test_what_is_planned_of_a_search_is_what_the_search_tells_of_itself(tmp_path):
    backbone = burst.load_backbone("mae_tiny")
    images = burst.images_for(backbone, "sample", num_images=4)
    whitening = burst.whiten(backbone, images, burst.WhiteningOptions(blocks=(0,)))
    burst.save_whitening(whitening, tmp_path / "W.pt")
    plan = bpt.plan_validation(tmp_path / "W.pt", datasets=["digits"], seeds=(0, 1))
    (one,) = plan.benchmarks
    assert one.cross_validates  # 200 images are too few
    planned = one.search_costs(plan.seeds)
    options = SearchOptions(seeds=(0, 1))
    told = bpt.search_costs(one.base, one.searched, tmp_path / "x", options=options)
    assert list(planned) == list(told) == ["linear", "vpt", "bpt-fwhiten", "bpt-dwhiten"]
    for name, cost in planned.items():
        assert one.methods[name].recipe == cost.recipe == told[name].recipe
        assert (cost.trials, cost.seeds) == (told[name].trials, 2)
        assert cost.cost.images == pytest.approx(told[name].cost.images, rel=0.01)
    assert planned["vpt"].recipe.num_prompts == 10  # as few as a search on digits takes

    layouts.cub(tmp_path / "data" / "cub", train=5, test=4)
    methods = ("linear", "vpt", "bpt-fwhiten")
    place = {"data": tmp_path / "data", "datasets": ["cub"]}
    plan = bpt.plan_validation(tmp_path / "W.pt", **place, methods=methods, prompt_scale="paper")
    (one,) = plan.benchmarks
    assert not one.cross_validates  # 600
    assert one.searched == ("linear", "vpt")  # which make no use of a whitening or its scale
    searched = method_recipes(one.base, one.searched)
    assert searched == {name: one.methods[name].recipe for name in one.searched}


@pytest.mark.parametrize(
    "model, dataset, method, placement, known",
    [
        ("mae_vitb", "cub", "bpt-bilinear", "shallow", True),
        ("mae_vitb", "cub", "bpt-fwhiten", "shallow", False),  # at unit scale
        ("mae_vitb", "cub", "bpt-dwhiten", "shallow", False),  # nobody's but ours
        ("mae_vitb", "cub", "vpt", "shallow", False),  # one of a grid
        ("mae_vitb", "flowers", "bpt-fwhiten", "deep", False),  # no script
        ("mae_vitb", "imagenet", "linear", "shallow", True),
        ("mae_vitb", "cub", "bitfit", "shallow", False),  # of adapters
        ("timm:test_vit", "cub", "bpt-fwhiten", "shallow", False),  # of which pretraining?
        ("mae_tiny", "digits", "vpt", "shallow", False),
        ("sup_vitb", "vtab:cifar", "lora", "shallow", True),  # of all its tasks
    ],
)
def test_a_rate_counts_as_published_for_just_this_benchmark_method_and_placement(
    model, dataset, method, placement, known
):
    given = {} if method in ("linear", "bitfit", "lora") else {"placement": placement}
    recipe = bpt.recipe_for(dataset, model=model, method=method, **given)
    assert (bpt.published_rate(recipe) is not None) == known


def test_a_rate_of_w_as_it_is_counts_for_that_scale_alone():
    known = [
        bpt.published_rate(bpt.recipe_for("cub", model="mae_vitb", **given)) is not None
        for given in (
            {"method": "bpt-fwhiten", "prompt_scale": "paper"},
            {"method": "bpt-twhiten"},
            {"method": "bpt-bilinear", "bilinear_init": "whitening"},
            {"method": "bpt-bilinear", "bilinear_init": "whitening", "prompt_scale": "paper"},
            {"method": "bpt-bilinear", "bilinear_init": "balanced"},
        )
    ]
    assert known == [True, False, False, True, False]
    probe = {"model": "mae_vitb", "method": "linear"}
    assert bpt.published_rate(bpt.recipe_for("imagenet", **probe))
    assert not bpt.published_rate(bpt.recipe_for("imagenet", batch_size=256, **probe))


@pytest.mark.parametrize("given", [{"batch_size": 128}, {"optimizer": "sgd"}])
def test_a_rate_that_was_published_for_other_steps_does_not_count_and_its_origin_says_so(given):
    """The paper's of CUB, whose entry leaves both to the defaults: AdamW, 32 images."""
    asked = {"model": "mae_vitb", "method": "bpt-twhiten", "prompt_scale": "paper"}
    known = bpt.recipe_for("cub", **asked)
    assert bpt.published_rate(known)
    assert known.origins["lr"] == known.origins["weight_decay"]
    other = bpt.recipe_for("cub", **asked, **given)
    assert bpt.published_rate(other) is None
    assert other.lr == known.lr
    (name,) = given
    words = f", with {name} {getattr(known, name)}, not {given[name]}"
    assert other.origins["lr"] == known.origins["lr"] + words
    own = bpt.recipe_for("folder:photos", model="mae_tiny", **given)
    assert own.origins["head_weight_decay"].endswith(words)


def test_an_origin_says_nothing_of_steps_where_the_rate_was_given_or_both_are_as_published():
    for given in ({"batch_size": 32}, {"optimizer": "adamw"}):
        assert ", with" not in bpt.recipe_for("cub", **given).origins["lr"]
    assert bpt.recipe_for("cub", batch_size=64, lr=0.1).origins["lr"] == "given"


def test_a_detectors_rate_is_published():
    recipe = bpt.detection_recipe_for("coco", method="bpt-fwhiten")
    assert "Table 8" in bpt.published_rate(recipe)
    elsewhere = bpt.detection_recipe_for("coco:/photos", method="linear")
    assert "Table 8" in bpt.published_rate(elsewhere)


def test_two_folders_of_one_name_would_share_a_folder(place, tmp_path):
    for part in ("a", "b"):
        shutil.copytree(place / "data/cub/CUB_200_2011/images", tmp_path / part / "birds")
    names = [f"folder:{tmp_path}/{part}/birds" for part in ("a", "b")]
    with pytest.raises(burst.BurstError, match="would share the folder folder-birds"):
        bpt.plan_validation(place / "W.pt", datasets=names)
    assert bpt.plan_validation(place / "W.pt", datasets=[names[0]] * 2).benchmarks


def test_seeds_of_a_detector_that_agree_to_the_digit_say_nothing_of_others():
    def tried(*values):
        return {"test": {"values": list(values)}}

    for values, others in [((10.0,) * 2, (9.5,) * 2), ((3.42,) * 3, (1.98,) * 3), ((2.0,), (1.0,))]:
        found = _of_seeds(tried(*values), tried(*others))
        assert found["difference"] == pytest.approx(values[0] - others[0])
        assert found["low"] is found["high"] is found["p_value"] is None
    alike = _of_seeds(tried(0.0, 0.0), tried(0.0, 0.0))
    assert alike["difference"] == 0 and alike["low"] is alike["p_value"] is None


def test_prompts_stand_where_the_whitening_has_blocks(place):
    path = whitening_file(place, (4, 5), 192, "last.pt")
    plan = bpt.plan_validation(path, data=place / "data", datasets=["cub"])
    assert plan.placement == "last:2"
    recipe = plan.benchmarks[0].methods["vpt"].recipe
    assert (recipe.placement, recipe.image_size) == ("last:2", 192)
    assert plan.benchmarks[0].base.image_size == 192
    assert "2 of 6 blocks (4, 5)" in plan.notes[0] and "192 pixels" in plan.notes[1]
    assert bpt.plan_validation(path, datasets=["digits"], placement="last:1").placement == "last:1"
    with pytest.raises(burst.BurstError, match="blocks 4, 5 alone, which shallow does not"):
        bpt.plan_validation(path, placement="shallow")
    with pytest.raises(burst.BurstError, match="give a placement that keeps to"):
        bpt.plan_validation(whitening_file(place, (2, 3), name="mid.pt"))


def test_another_backbone_missing_weights_and_missing_data_are_refused(place, tmp_path):
    with pytest.raises(burst.CheckpointError, match="does not fit mae_tiny"):
        bpt.plan_validation(place / "W.pt", model="mae_tiny")
    with pytest.raises(burst.EmptyResult, match="bpt datasets --download dogs"):
        bpt.plan_validation(place / "W.pt", data=tmp_path, datasets=["dogs"])
    with pytest.raises(burst.UnknownName, match="did you mean cub"):
        bpt.plan_validation(place / "W.pt", datasets=["cubs"])
    with pytest.raises(burst.EmptyResult, match="folder:nothere: there is no such folder"):
        bpt.plan_validation(place / "W.pt", datasets=["digits", "folder:nothere"])
    with pytest.raises(burst.BurstError, match="linear, vpt make no use of a whitening; add bpt"):
        bpt.plan_validation(place / "W.pt", datasets=["digits"], methods=("linear", "vpt"))
    moved = whitening_file(tmp_path)
    (tmp_path / "weights.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(burst.CheckpointError, match="not there; give their file as weights"):
        bpt.plan_validation(moved)
    found = bpt.plan_validation(moved, weights=str(tmp_path / "moved.safetensors"))
    assert found.weights == str(tmp_path / "moved.safetensors")


@pytest.mark.slow
def test_a_validation_comes_to_the_numbers_of_its_runs_and_goes_on(place, tmp_path, monkeypatch):
    few = SearchOptions(seeds=(0, 1), lrs=(0.01,), weight_decays=(0.0,), folds=2)
    monkeypatch.setattr(bpt.search.recipes, "LEAST_OF_PROBE", 1)  # epochs
    monkeypatch.setattr(bpt.validate, "SearchOptions", lambda seeds: few)
    methods = ("linear", "vpt", "bpt-dwhiten")
    options = {"data": place / "data", "datasets": ["cub"], "methods": methods, "seeds": (0, 1)}
    plan = bpt.plan_validation(place / "W.pt", **options, **SMALL)
    record = bpt.validate_whitening(plan, tmp_path, devices=("cpu",))
    assert record["complete"] and record == json.loads((tmp_path / "validate.json").read_text())
    (entry,) = record["benchmarks"]
    right, recipes = {}, {}
    for one in entry["methods"]:
        results = [bpt.open_run(tmp_path / run["folder"]).result for run in one["runs"]]
        accuracies = [result["test_accuracy"] for result in results]
        assert one["test"]["values"] == accuracies and one["rates"] == "searched"
        right[one["method"]] = np.mean(accuracies)
        recipes[one["method"]] = bpt.open_run(tmp_path / one["runs"][0]["folder"]).recipe
    plain, whitened = recipes["vpt"], recipes["bpt-dwhiten"]
    for name in {*LOOP} - {"lr", "weight_decay", "head_weight_decay"}:  # which are searched
        assert getattr(plain, name) == getattr(whitened, name)
    assert plain.optimizer == "adamw"  # VPT's published loop is SGD
    for row in entry["differences"]:
        expected = right[row["method"]] - right[row["against"]]
        assert row["difference"] == pytest.approx(expected)
        numbers = [row[name] for name in ("difference", "low", "high")]
        assert numbers == pytest.approx(intervals.of_methods(entry, row, tmp_path))
    pairs = {(row["method"], row["against"]) for row in entry["differences"]}
    assert pairs == {("bpt-dwhiten", "vpt"), ("bpt-dwhiten", "linear"), ("linear", "vpt")}
    assert record["sentences"][0].startswith("cub: prompts with its diagonal alone are")

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    again = bpt.validate_whitening(plan, tmp_path, devices=("cpu",))
    assert again["benchmarks"] == record["benchmarks"]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    made = burst.load_whitening(place / "W.pt")
    anew = dataclasses.replace(made, record=made.record | {"created": "another day"})
    burst.save_whitening(anew, place / "anew.pt")
    bpt.validate_whitening(dataclasses.replace(plan, whitening=place / "anew.pt"), tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    longer = bpt.plan_validation(place / "W.pt", **options, **SMALL | {"num_prompts": 5})
    with pytest.raises(bpt.RunExists, match="on cub with num_prompts 4, not 5"):
        bpt.validate_whitening(longer, tmp_path)
    assert json.loads((tmp_path / "validate.json").read_text())["benchmarks"] == again["benchmarks"]
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "validate.json").write_text("{")
    with pytest.raises(burst.CheckpointError, match="damaged"):
        bpt.validate_whitening(plan, tmp_path / "damaged")
    other = bpt.plan_validation(whitening_file(place, (0,), name="other.pt"), **options)
    with pytest.raises(bpt.RunExists, match="another whitening"):
        bpt.validate_whitening(other, tmp_path)


def test_calls_of_other_benchmarks_and_seeds_share_a_folder(place, tmp_path, monkeypatch):
    """One runs from start to end while the other trains, as in two terminals."""
    shutil.copytree(place / "data/cub/CUB_200_2011/images", tmp_path / "birds")
    own, out = f"folder:{tmp_path / 'birds'}", tmp_path / "out"
    asked = {"data": place / "data", "methods": ("vpt", "bpt-fwhiten")}
    cub = bpt.plan_validation(place / "W.pt", datasets=["cub", "dogs"], seeds=(0,), **asked)
    birds = bpt.plan_validation(
        place / "W.pt", datasets=[own], seeds=(0, 1), placement="last:1", **asked
    )

    def train(plan, one, *_):
        if one.dataset == "cub":
            assert set(read_validation(out)["pending"]) == {"cub"}
            there = bpt.validate_whitening(birds, out)
            assert (set(there["pending"]), there["complete"]) == ({"cub"}, False)
        return {}, "nothing was trained"

    monkeypatch.setattr(bpt.validate, "_train", train)
    record = bpt.validate_whitening(cub, out)
    assert record == read_validation(out)
    assert (record["pending"], record["complete"]) == ({}, True)
    found = [(one["dataset"], one["seeds"], one["placement"]) for one in record["benchmarks"]]
    assert found == [(own, [0, 1], "last:1"), ("cub", [0], "shallow")]
    assert len(record["sentences"]) == 2 and set(record["missing"]) == {"dogs"}
    shown = reports.save_validation(out)[0].read_text()
    assert "last:1. Seeds 0, 1, the same" in shown and "shallow. Seeds 0, the same" in shown


def test_what_was_begun_and_not_gone_on_with_stays_pending(place, tmp_path, monkeypatch):
    plans = {
        name: bpt.plan_validation(
            place / "W.pt", data=place / "data", datasets=names, methods=("vpt", "bpt-fwhiten")
        )
        for name, names in {"both": ["cub", "digits"], "cub": ["cub", "dogs"]}.items()
    }
    ends = {"cub"}

    def train(plan, one, *_):
        if one.dataset not in ends:
            raise KeyboardInterrupt
        return {}, "nothing was trained"

    monkeypatch.setattr(bpt.validate, "_train", train)
    for _ in range(2):  # what has ended is not pending again
        with pytest.raises(KeyboardInterrupt):
            bpt.validate_whitening(plans["both"], tmp_path)
        assert set(read_validation(tmp_path)["pending"]) == {"digits"}
    again = bpt.validate_whitening(plans["cub"], tmp_path)
    assert (set(again["pending"]), again["complete"]) == ({"digits"}, False)
    ends.add("digits")
    shutil.copy(place / "W.pt", tmp_path / "W.pt")
    both = dataclasses.replace(plans["both"], whitening=tmp_path / "W.pt")

    def gone(*arguments):
        (tmp_path / "W.pt").unlink(missing_ok=True)
        return train(*arguments)

    monkeypatch.setattr(bpt.validate, "_train", gone)  # each training has its own copy of it
    assert bpt.validate_whitening(both, tmp_path)["complete"]
    lost = {"cub": "get it again", "dogs": "get it"}
    later = dataclasses.replace(plans["cub"], benchmarks=plans["both"].benchmarks[1:], missing=lost)
    assert set(bpt.validate_whitening(later, tmp_path)["missing"]) == {"dogs"}  # cub has numbers


def test_a_record_that_says_seeds_once_for_all_is_read(tmp_path):
    said = {"seeds": [0], "placement": "deep", "command": ["bpt", "validate", "W.pt"]}
    runs = [{"seed": seed, "folder": f"cub/{seed}"} for seed in (0, 1)]
    methods = [{"method": "linear", "placement": None, "runs": runs}]
    entry = {"dataset": "cub", "methods": methods, "sentence": "cub: nothing to compare."}
    there = {"benchmarks": [entry], "recipes": {"cub": {}, "dogs": {}}, **said}
    record = {"kind": KIND, "whitening": {}, **there}
    (tmp_path / "validate.json").write_text(json.dumps(record))
    found = read_validation(tmp_path)
    assert found["benchmarks"] == [entry | said | {"seeds": [0, 1]}]
    assert found["pending"] == {"dogs": said["command"]}


def test_a_method_that_lost_a_seed_is_shown_and_compared_with_nothing(place, tmp_path):
    """The seeds that are left are those that went well: a mean of them flatters."""
    rng = np.random.default_rng(0)
    runs = {"vpt": (0, 1), "bpt-fwhiten": (1,), "bpt-dwhiten": (0, 1)}
    for one, seed in ((name, seed) for name in runs for seed in runs[name]):
        folder = tmp_path / "cub" / "search" / one / str(seed)
        folder.mkdir(parents=True)
        predicted = torch.from_numpy(rng.integers(0, 2, 40))
        answers = {"predicted": predicted, "labels": torch.zeros(40, dtype=torch.int64)}
        save_file(answers, folder / PREDICTIONS)
    found = [
        {
            "method": name,
            "trials": [{}],
            "inside": True,
            "chosen": {"lr": 0.1, "weight_decay": 0.0},
            "trained_parameters": 1,
            "runs": [{"seed": seed, "folder": f"{name}/{seed}"} for seed in seeds],
            "test": {"values": [50.0] * len(seeds)},
        }
        for name, seeds in runs.items()
    ]
    search = {"seeds": [0, 1], "validation": {"kind": "split"}, "methods": found}
    options = {"data": place / "data", "datasets": ["cub"], "methods": tuple(runs)}
    plan = bpt.plan_validation(place / "W.pt", seeds=(0, 1), **options)
    entry = benchmark_record(plan, plan.benchmarks[0], tmp_path, {}, search)
    pairs = {(row["method"], row["against"], row["seeds"]) for row in entry["differences"]}
    assert pairs == {("bpt-dwhiten", "vpt", 2)}
    assert entry["methods"][1]["test"] and "1 of 2 seeds diverged" in entry["methods"][1]["failed"]
    assert "; bpt-fwhiten: 1 of 2 seeds diverged" in entry["sentence"]


def test_better_and_worse_are_said_after_holms_correction_for_all_of_a_benchmark(tmp_path):
    values = {"vpt": [40.0, 40.2, 40.4], "bpt-fwhiten": [41.0, 41.1, 41.6], "linear": [30, 31, 32]}
    found = [
        {"method": name, "failed": None, "test": {"values": numbers}, "runs": [{"seed": 0}]}
        for name, numbers in values.items()
    ]
    rows = _differences(found, tmp_path, "box_AP")
    p = [stats.ttest_rel(values[row["method"]], values[row["against"]]).pvalue for row in rows]
    assert [row["p_value"] for row in rows] == pytest.approx(p)
    order = sorted(range(3), key=p.__getitem__)
    running = np.maximum.accumulate([min(1, (3 - k) * p[i]) for k, i in enumerate(order)])
    assert [rows[i]["adjusted_p"] for i in order] == pytest.approx(list(running))
    assert "not told apart from vpt among so many comparisons (+1.2 points, +0.3 to +2.1)" in (
        sentence(entry_of(difference(0.3, 2.1, adjusted_p=0.06)))
    )


def difference(low, high, **changes):
    sure = None if low is None else 1.0 if low <= 0 <= high else 0.01
    values = {"difference": 1.2, "low": low, "high": high, "seeds": 3, "images": 100}
    values["adjusted_p"] = sure
    return {"method": "bpt-fwhiten", "against": "vpt", **values, **changes}


def entry_of(*differences, metric="test_accuracy"):
    return {"dataset": "cub", "metric": metric, "methods": [], "differences": [*differences]}


def test_the_sentence_says_better_worse_or_not_told_apart():
    assert sentence(entry_of(difference(0.3, 2.1))) == (
        "cub: prompts whitened with W are better than vpt by 1.2 points (0.3 to 2.1); three seeds."
    )
    worse = difference(-2.1, -0.3, difference=-1.2)
    assert "worse than vpt by 1.2 points (0.3 to 2.1)" in sentence(entry_of(worse))
    assert "not told apart from vpt (+1.2 points, -0.3 to +2.1)" in sentence(
        entry_of(difference(-0.3, 2.1))
    )
    alone = difference(None, None, seeds=1, images=None)
    text = sentence(entry_of(alone, metric="box_AP"))
    assert "1.2 points of box AP above vpt, which one seed does not tell" in text
    assert text.endswith("one seed.")
    alike = sentence(entry_of(difference(None, None, images=None), metric="box_AP"))
    assert "vpt, which seeds that agree to the digit do not tell from chance; three" in alike
    one = sentence(entry_of(difference(0.3, 2.1, seeds=1)))
    assert one.endswith("one seed, whose interval is that of other images alone.")
    bilinear = difference(0.3, 2.1, method="bpt-bilinear")
    probe = difference(-4.0, -2.0, method="linear", difference=-3.0)
    assert sentence(entry_of(probe, bilinear)) == (
        "cub: bpt-bilinear is better than vpt by 1.2 points (0.3 to 2.1); three seeds."
    )
    assert sentence(entry_of(probe)) == "cub: nothing to compare."  # of what uses a whitening
    failed = entry_of()
    failed["methods"] = [{"method": "vpt", "failed": "it diverged"}]
    assert sentence(failed) == "cub: nothing to compare (vpt: it diverged)."
