"""The paper's tables expand to trainings, and come back with our numbers beside theirs."""

import math

import pytest

import bpt
import reports
from burst import UnknownName

SIZES = {  # numbers in each table of the paper, counted by hand
    "table11": 40,
    "fgvc_mae": 40,
    "fgvc_moco": 40,
    "variants": 10,
    "prompt_length": 10,
    "prompt_width": 8,
    "table9": 30,
    "table10": 6,
    "coco_mask_rcnn": 42,
    "coco_cascade": 42,
}
OF_A_TRAINING = {"coco_mask_rcnn": 6, "coco_cascade": 6}  # numbers; else 1


@pytest.mark.parametrize("study", reports.STUDIES)
def test_every_number_of_a_table_is_a_cell_with_a_training_of_its_own(study):
    cells = reports.study_cells(study)
    assert len(cells) == SIZES[study]
    trainings = len({cell.name for cell in cells})
    assert trainings * OF_A_TRAINING.get(study, 1) == len(cells)
    assert not any(cell.differs for cell in cells)


def test_a_part_of_a_table_is_named_by_its_runs():
    cells = reports.study_cells("table11", only=("cub-*-bpt-*", "dogs-sup_vitb-full"))
    assert [(cell.dataset, cell.method) for cell in cells] == [
        ("dogs", "full"),
        ("cub", "bpt-shallow"),
        ("cub", "bpt-deep"),
    ]
    with pytest.raises(UnknownName, match="unknown run 'cub-sup_vitb-bpt'; did you mean cub-sup_"):
        reports.study_cells("table11", only=("cub-sup_vitb-bpt",))


def test_a_cell_has_the_tables_hyper_parameters():
    cells = {(c.backbone, c.method, c.setting): c for c in reports.study_cells("table9")}
    cell = cells["mae_vitb", "bpt-shallow", "train_fraction=0.1 epochs=400"]
    assert cell.value == 65.05
    recipe = cell.recipe
    assert (recipe.dataset, recipe.train_fraction, recipe.epochs) == ("imagenet", 0.1, 400)
    assert (recipe.method, recipe.placement, recipe.lr) == ("bpt-bilinear", "shallow", 0.1)
    assert cells["mae_vit2b", "full", "train_fraction=0.1 epochs=35"].recipe.lr == 1e-2


def test_cells_of_a_poster_table_have_its_detector_and_the_numbers_of_each_training():
    cells = reports.study_cells("coco_cascade")
    found = {(cell.method, cell.metric): cell for cell in cells}
    assert found["bpt-shallow", "box_ap"].value == 43.01
    assert found["linear", "mask_ap_small"].value == 16.02
    recipes = {cell.method: cell.recipe for cell in cells}
    assert {recipe.detector for recipe in recipes.values()} == {"cascade"}
    assert all(recipe.schedule == "3x" and recipe.size == 1024 for recipe in recipes.values())
    assert {method: recipe.placement for method, recipe in recipes.items()} == {
        **dict.fromkeys(("linear", "vpt-shallow", "spt-shallow", "bpt-shallow"), "shallow"),
        **{"vpt-deep": "deep", "spt-deep": "deep", "bpt-deep": "last:4"},
    }
    score = {"mean": 40.0, "std": None}
    results = {cell.name: {"seeds": [0], "box_AP": score} for cell in cells}
    frame = reports.study_frame(cells, results).set_index(["method", "metric"])
    line = frame.loc["bpt-shallow", "box_ap"]
    assert (line["ours"], line["difference"]) == (40.0, pytest.approx(40.0 - 43.01))
    assert frame.loc["bpt-shallow", "mask_ap"]["note"] == "nothing of it to score"


def test_a_miniature_of_a_poster_table_is_trained_on_ones_own_images():
    changes = {"dataset": "coco:x", "model": "mae_tiny", "schedule": "2", "image_size": 128}
    cells = reports.study_cells("coco_mask_rcnn", **changes)
    assert len({cell.name for cell in cells}) == 7
    assert all(cell.differs == tuple(changes) for cell in cells)
    assert {cell.recipe.size for cell in cells} == {128}


def test_placements_of_table_10_are_ours():
    found = {c.setting: c.recipe for c in reports.study_cells("table10")}
    assert found["placement=0+4"].placement == "0+4"
    assert found["placement=interval"].placement == "interval:4"
    assert all((r.num_prompts, r.rank) == (50, 50) for r in found.values())
    default = {
        c.dataset: c.recipe for c in reports.study_cells("fgvc_mae") if c.method == "bpt-deep"
    }
    assert bpt.parse_placement(default["cub"].placement, 12) == bpt.parse_placement("0+4", 12)


def test_a_miniature_has_each_training_once_and_says_what_differs():
    cells = reports.study_cells("variants", dataset="folder:x", model="mae_tiny", epochs=2)
    assert [cell.recipe.method for cell in cells] == [
        *("vpt", "spt", "bpt-fwhiten", "bpt-twhiten", "bpt-bilinear")
    ]
    assert all(cell.differs == ("dataset", "model", "epochs") for cell in cells)
    assert {cell.recipe.epochs for cell in cells} == {2}


def test_a_miniature_keeps_the_prompts_of_the_table():
    deep = reports.study_cells("table10", dataset="folder:x", model="mae_tiny")
    assert {(c.recipe.num_prompts, c.recipe.rank) for c in deep} == {(50, 50)}
    plain = reports.study_cells("variants", dataset="folder:x")[0].recipe
    assert (plain.method, plain.num_prompts) == ("vpt", 100) and "rank" not in plain.origins
    cells = reports.study_cells("fgvc_mae", dataset="folder:x", model="mae_tiny")
    (gated,) = (cell.recipe for cell in cells if cell.method == "gatevpt")
    assert (gated.num_prompts, gated.gate_init) == (100, 5.0)


def test_only_what_was_changed_differs():
    given = {"epochs": 100, "batch_size": 64, "normalisation": "native"}
    cells = {c.method: c for c in reports.study_cells("fgvc_mae", **given) if c.dataset == "cub"}
    assert cells["bpt-shallow"].differs == ("batch_size",)
    assert cells["vpt-deep"].differs == ()
    assert cells["full"].recipe.warmup_epochs == 5
    assert reports.study_cells("fgvc_mae", epochs=50)[0].recipe.warmup_epochs == 5


def test_whitened_prompts_have_the_scale_that_their_numbers_were_published_with():
    cells = [cell for cell in reports.study_cells("variants") if cell.dataset == "cub"]
    scales = {cell.recipe.method: cell.recipe.prompt_scale for cell in cells}
    assert scales["bpt-fwhiten"] == scales["bpt-twhiten"] == "paper"
    assert all(cell.differs == () for cell in cells)


def test_each_numbers_own_protocol_is_none_of_a_detector_and_no_other_word_is_taken():
    assert reports.study_cells("coco_cascade", protocol="published")
    with pytest.raises(UnknownName, match="published"):
        reports.study_cells("variants", protocol="publishd")


def test_an_unknown_table_is_refused():
    with pytest.raises(UnknownName, match="table11"):
        reports.study_cells("table12")


def test_what_the_published_number_has_by_default_and_ours_has_not_is_said():
    frame = reports.study_frame(reports.study_cells("table11"), {})
    differs = frame[frame.dataset == "cub"].set_index("method").differs
    assert differs["bpt-shallow"] == differs["spt-deep"] == "protocol, normalisation"
    assert differs["vpt-deep"] == differs["full"] == "normalisation, weights"
    asked = {"protocol": "published", "normalisation": "reference"}
    frame = reports.study_frame(reports.study_cells("table11", **asked), {})
    assert set(frame.differs) == {"", "weights"}


@pytest.mark.parametrize("study", ["fgvc_moco", "variants"])
def test_rows_of_other_papers_were_trained_by_another_protocol(study):
    def differing(protocol):
        cells = reports.study_cells(study, protocol=protocol)
        frame = reports.study_frame(cells, {})
        found = frame[frame.differs == "protocol"]
        assert set(frame.differs) <= {"", "protocol"}
        return {tuple(pair) for pair in found[["dataset", "method"]].to_numpy()}

    all_of_it = {(cell.dataset, cell.method) for cell in reports.study_cells(study)}
    theirs = {
        (dataset, method)
        for dataset, method in all_of_it
        if method in {"full", "linear", "vpt-shallow", "vpt-deep", "gatevpt"}
        and dataset != "imagenet"
    }
    assert differing("standard") == differing(None) == all_of_it - theirs
    assert differing("authors") == theirs
    assert differing("published") == set()


def test_other_weights_than_published_are_said():
    def differs(study, **given):
        frame = reports.study_frame(reports.study_cells(study, **given), {})
        return frame[frame.dataset == "cub"].set_index("method").differs

    google = differs("table11", weights="place/ViT-B_16.npz")
    assert google["vpt-deep"] == "normalisation"  # these are VPT's own
    assert google["bpt-shallow"] == "protocol, normalisation, weights ViT-B_16.npz"
    nothing = differs("table11", weights="random")
    assert nothing["vpt-deep"] == "normalisation, weights random"
    assert nothing["bpt-shallow"] == "protocol, normalisation, weights random"
    asked = {"protocol": "published", "weights": "random"}
    assert set(differs("fgvc_mae", **asked)) == {"weights random"}
    small = differs("fgvc_mae", model="mae_tiny", **asked)
    assert set(small) == {"model, weights random"}
    cells = reports.study_cells("coco_mask_rcnn", weights="random")
    assert set(reports.study_frame(cells, {}).differs) == {"weights random"}


def test_a_plan_counts_searches_where_rates_are_searched():
    cells = reports.study_cells("variants", dataset="digits", model="mae_tiny", epochs=2)
    found = bpt.study_search(cells[0].recipe, (0, 1))
    assert found.trials == 12 and found.seeds == 2
    one = bpt.training_cost(cells[0].recipe, bpt.dataset_sizes(cells[0].recipe))
    assert 2 * one.images < found.cost.images < (12 + 2) * 1.5 * one.images

    def images(**more):
        table = reports.plan_table(cells, (0, 1), **more)
        return list(table.columns[3].cells), [
            int(cell.replace(",", "")) for cell in table.columns[4].cells
        ]

    assert images() == (["2"] * 5 + [""], [2 * one.images] * 5 + [10 * one.images])
    trainings, seen = images(search=True)
    assert trainings == ["≤ 12 + 2"] * 5 + [""]
    assert seen[0] == found.cost.images and seen[-1] == sum(seen[:-1])
    shown = next(one for one in reports.study_cells("fgvc_mae") if one.method == "bpt-shallow")
    assert bpt.study_search(shown.recipe, (0, 1)) is None


def test_what_all_differ_by_is_said_once_and_nothing_if_it_is_nothing():
    frame = reports.study_frame(reports.study_cells("table10"), {})
    assert reports.study_table(frame).caption == "all differ by protocol"
    assert reports.study_table(frame.assign(differs="")).caption is None


def test_results_stand_beside_the_published_numbers(tmp_path):
    cells = reports.study_cells("fgvc_mae")
    done = {
        "seeds": [0, 1],
        "test_accuracy": {"values": [76.0, 78.0], "mean": 77.0, "std": math.sqrt(2)},
    }
    results = {"cub-mae_vitb-bpt-shallow": done, "cub-mae_vitb-full": "no such place"}
    frame = reports.study_frame(cells, results).set_index(["dataset", "method"])
    ours = frame.loc["cub", "bpt-shallow"]
    assert (ours.published, ours.ours, ours.seeds) == (77.86, 77.0, 2)
    assert ours.difference == pytest.approx(-0.86) and ours.differs == "protocol"
    assert frame.loc["cub", "full"].note == "no such place"
    assert frame.loc["cub", "gatevpt"].published == 70.56
    assert frame.loc["cars", "full"].note == "not run"
    files = reports.save_study(frame.reset_index(), tmp_path, "fgvc_mae")
    assert [file.name for file in files] == [f"fgvc_mae.{kind}" for kind in ("csv", "md", "tex")]
    assert "| 77.86 | 77.00 ± 1.41 | −0.86 | protocol |" in files[1].read_text("utf-8")
    assert r"77.86 & 77.00 $\pm$ 1.41 & $-0.86$ & protocol \\" in files[2].read_text("utf-8")
