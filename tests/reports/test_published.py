"""The numbers beside our runs are the published ones, typed anew from poster and supplement."""

import csv

import pytest

import reports

FGVC = ("cub", "nabirds", "flowers", "dogs", "cars")
# By row: the five datasets, and the mean where one was published. Poster, FGVC with MAE and with
# MoCo v3; supplement, table 11.
ROWS = {
    "fgvc_mae": {
        "full": (80.55, 77.87, 91.71, 80.38, 83.51, 82.80),
        "vpt-shallow": (42.15, 57.43, 69.15, 77.07, 43.38, 57.84),
        "spt-shallow": (71.15, 61.87, 89.47, 80.01, 67.23, 73.95),
        "bpt-shallow": (77.86, 72.03, 90.37, 81.91, 79.77, 80.39),
        "vpt-deep": (68.33, 65.22, 80.05, 78.83, 67.67, 72.02),
        "gatevpt": (70.56, 67.26, 78.55, 78.90, 71.70, 73.39),
        "spt-deep": (80.13, 76.28, 93.07, 82.23, 84.61, 83.26),
        "bpt-deep": (82.00, 78.49, 93.72, 82.67, 86.11, 84.60),
    },
    "fgvc_moco": {
        "full": (81.75, 78.14, 94.52, 81.19, 85.67, 84.25),
        "vpt-shallow": (79.05, 72.92, 90.47, 81.97, 71.91, None),
        "spt-shallow": (83.50, 75.79, 95.03, 84.17, 81.93, None),
        "bpt-shallow": (84.39, 76.71, 95.84, 84.46, 83.84, 85.05),
        "vpt-deep": (82.67, 75.99, 94.41, 83.33, 79.18, None),
        "gatevpt": (82.86, 76.02, 93.71, 83.37, 79.02, None),
        "spt-deep": (84.47, 77.63, 96.10, 85.84, 85.98, None),
        "bpt-deep": (85.28, 78.44, 96.45, 86.17, 86.43, 86.55),
    },
    "table11": {
        "full": (87.3, 82.7, 98.8, 89.4, 84.5),
        "linear": (85.3, 75.9, 97.9, 86.2, 51.3),
        "vpt-shallow": (86.7, 78.8, 98.4, 90.7, 68.7),
        "spt-shallow": (90.2, 85.1, 99.5, 89.3, 86.4),
        "bpt-shallow": (90.1, 86.2, 99.6, 89.4, 87.4),
        "vpt-deep": (88.5, 84.2, 99.0, 90.2, 83.6),
        "spt-deep": (90.6, 87.6, 99.8, 89.8, 89.2),
        "bpt-deep": (90.5, 88.1, 99.9, 90.1, 89.9),
    },
}
# Poster: ImageNet and CUB, by method, by n, by c.
ABLATIONS = {
    ("variants", "vpt-shallow", ""): (63.71, 42.15),
    ("variants", "spt-shallow", ""): (69.98, 71.15),
    ("variants", "bpt-fwhiten", ""): (72.09, 77.48),
    ("variants", "bpt-twhiten", ""): (72.37, 78.54),
    ("variants", "bpt-bilinear", ""): (72.15, 77.86),
    ("prompt_length", "bpt-bilinear", "num_prompts=64"): (71.92, 76.91),
    ("prompt_length", "bpt-bilinear", "num_prompts=81"): (71.94, 77.60),
    ("prompt_length", "bpt-bilinear", "num_prompts=100"): (72.15, 77.86),
    ("prompt_length", "bpt-bilinear", "num_prompts=144"): (72.39, 78.36),
    ("prompt_length", "bpt-bilinear", "num_prompts=196"): (72.48, 78.87),
    ("prompt_width", "bpt-bilinear", "rank=25"): (72.06, 76.54),
    ("prompt_width", "bpt-bilinear", "rank=50"): (72.08, 76.95),
    ("prompt_width", "bpt-bilinear", "rank=75"): (72.15, 77.86),
    ("prompt_width", "bpt-bilinear", "rank=100"): (72.18, 78.59),
}
# Supplement, table 10.
PLACEMENTS = {"4+0": 76.83, "3+1": 78.45, "2+2": 81.66, "1+3": 81.38, "0+4": 82.0}
PLACEMENTS["interval"] = 80.87
# Supplement, table 9: size, share and epochs of the training -> full, SPT, BPT.
SCALES = {
    ("mae_vitb", 0.1, 100): (56.80, 63.64, 64.63),
    ("mae_vitl", 0.1, 100): (69.46, 73.77, 75.23),
    ("mae_vith", 0.1, 100): (74.43, 76.23, 77.97),
    ("mae_vit2b", 0.1, 100): (76.82, 77.61, 79.80),
    ("mae_vitb", 0.01, 100): (27.68, 44.35, 45.43),
    ("mae_vitb", 0.03, 100): (43.46, 55.52, 56.79),
    ("mae_vitb", 0.3, 100): (68.91, 67.17, 68.92),
    ("mae_vitb", 1.0, 100): (76.39, 69.98, 72.15),
    ("mae_vitb", 0.1, 200): (None, 64.37, 64.79),
    ("mae_vitb", 0.1, 300): (None, 64.54, 64.93),
    ("mae_vitb", 0.1, 400): (None, 64.61, 65.05),
}


@pytest.mark.parametrize("study", ROWS)
def test_the_numbers_of_the_fine_grained_datasets(study):
    found = {(cell.method, cell.dataset): cell.value for cell in reports.study_cells(study)}
    rows = {name: row[:5] for name, row in ROWS[study].items()}
    assert found == {(m, d): v for m, row in rows.items() for d, v in zip(FGVC, row, strict=True)}


@pytest.mark.parametrize("study", ["fgvc_mae", "fgvc_moco"])
def test_the_means_over_the_five_are_the_published_ones(study):
    for *values, mean in ROWS[study].values():
        assert mean is None or sum(values) / 5 == pytest.approx(mean, abs=0.0051)


@pytest.mark.parametrize("study", ["variants", "prompt_length", "prompt_width"])
def test_the_numbers_of_the_ablations(study):
    cells = reports.study_cells(study)
    found = {(study, c.method, c.setting, c.dataset): c.value for c in cells}
    typed = {key: pair for key, pair in ABLATIONS.items() if key[0] == study}
    assert found == {
        (*key, dataset): value
        for key, pair in typed.items()
        for dataset, value in zip(("imagenet", "cub"), pair, strict=True)
    }


def test_the_numbers_of_the_placements():
    cells = reports.study_cells("table10")
    assert {cell.setting.removeprefix("placement="): cell.value for cell in cells} == PLACEMENTS
    assert {(cell.dataset, cell.backbone, cell.method) for cell in cells} == {
        ("cub", "mae_vitb", "bpt-deep")
    }


def test_the_numbers_of_sizes_shares_and_epochs():
    found = {
        (c.backbone, c.recipe.train_fraction, c.recipe.epochs, c.method): c.value
        for c in reports.study_cells("table9")
    }
    methods = ("full", "spt-shallow", "bpt-shallow")
    typed = {
        (*key, method): value
        for key, row in SCALES.items()
        for method, value in zip(methods, row, strict=True)
        if value is not None
    }
    for model, epochs in (("mae_vitl", 50), ("mae_vith", 50), ("mae_vit2b", 35)):  # table 8
        typed[model, 0.1, epochs, "full"] = typed.pop((model, 0.1, 100, "full"))
    assert found == typed


def test_published_csv_is_the_transcription_but_for_the_epochs_of_table_8(real_data):
    transcript = (real_data / "published.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(transcript.splitlines()))
    ours = reports.published().astype(str).to_dict("records")
    assert len(ours) == len(rows)
    other = {}
    for mine, row in zip(ours, rows, strict=True):
        assert mine | {"setting": ""} == row | {"setting": "", "value": str(float(row["value"]))}
        if mine["setting"] != row["setting"]:
            other[row["backbone"], row["method"], row["setting"]] = mine["setting"]
    assert other == {
        (model, "full", "train_fraction=0.1 epochs=100"): f"train_fraction=0.1 epochs={epochs}"
        for model, epochs in (
            ("vit_large_patch16", 50),
            ("vit_huge_patch14", 50),
            ("vit_2b_patch14", 35),
        )
    }
