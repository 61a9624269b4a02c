from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.table import Table

import burst
from reports.tables import captioned
from reports.terminal import (
    library_table,
    model_details,
    model_record,
    models_table,
    sparkline,
    survey_notes,
    survey_table,
)
from reports.where import where_it_sits
from reports.words import caveats


def printed(table, width=80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(table)
    return console.export_text()


@pytest.fixture(scope="module")
def survey():
    backbone = burst.load_backbone("mae_tiny")
    return burst.survey(backbone, burst.images_for(backbone, "sample", num_images=3))


def test_the_survey_fits_eighty_columns_with_one_line_a_block(survey):
    lines = printed(survey_table(survey)).splitlines()
    rows = [line for line in lines if line.split()[:1] and line.split()[0].isdigit()]
    assert len(rows) == 12
    assert "…" not in "".join(lines)
    first = survey.table.query("block == 0 and quantity == 'qk'").iloc[0]
    assert rows[0].split()[1] == f"{first['excess_kurtosis']:.2f}"
    assert rows[0].split()[2] == f"{first['ggd_shape']:.2f}"


def test_four_quantities_fit_eighty_columns_too():
    backbone = burst.load_backbone("mae_tiny")
    images = burst.images_for(backbone, "sample", num_images=2)
    quantities = ("qk", "x", "qkx", "logits")
    found = burst.survey(backbone, images, burst.SurveyOptions(quantities=quantities, blocks=(0,)))
    text = printed(survey_table(found))
    assert "…" not in text
    for quantity in quantities:
        row = found.table[found.table["quantity"] == quantity].iloc[0]
        assert f"{row['excess_kurtosis']:.2f}" in text.split()


def test_a_survey_without_responses_draws_what_there_is():
    backbone = burst.load_backbone("mae_tiny")
    images = burst.images_for(backbone, "sample", num_images=1)
    only = burst.survey(backbone, images, burst.SurveyOptions(quantities=("x",), blocks=(4,)))
    text = printed(survey_table(only))
    assert "x κ" in text
    assert "█" in text
    assert "qk" not in text


def test_the_drawn_histogram_is_in_log_counts():
    values = torch.cat([torch.zeros(1000), torch.full((10,), 1.9), torch.full((1,), -1.9)])
    assert sparkline(burst.histogram(values), 2.0, width=5) == "▁ █ ▃"


def test_a_drawn_histogram_may_be_empty_or_constant():
    assert sparkline(burst.histogram(torch.zeros(4)), 1.0, width=3) == " █ "
    assert sparkline(burst.histogram(torch.empty(0)), 1.0, width=3) == "   "


@pytest.mark.parametrize("most", [2, 47, 219, 758])  # whose logarithms math and NumPy round apart
def test_the_highest_bar_is_full_whatever_it_counts(most):
    assert sparkline(burst.histogram(torch.zeros(most)), 1.0, width=3) == " █ "


def test_names_of_a_library_are_not_broken():
    name = "timm:" + "a_long_architecture_" * 3
    rows = [{"name": name, "weights": ", ".join(["some_weights"] * 20)}]
    assert name in printed(library_table(rows))


def test_the_notes_say_what_is_missing(survey):
    changed = replace(
        survey,
        skipped=(burst.SkippedBlock(3, "blocks.3", "a reason"),),
        bad_images=(("cat.jpg", "truncated"),),
        record={**survey.record, "nonfinite": 7},
    )
    notes = survey_notes(changed, num_images=9, files=[Path("out/a.csv"), Path("out/b.png")])
    first = [*where_it_sits(survey)[:1], *caveats(survey)]
    assert notes == [
        *first,
        "3 images were read: there are no more",
        "left out: image cat.jpg: truncated",
        "left out: blocks.3: a reason",
        "7 values were NaN or infinite and are left out",
        "written to out: a.csv, b.png",
    ]
    assert survey_notes(survey, num_images=3, files=[]) == first
    torn = replace(survey, bad_images=(("cat.jpg", "truncated"),))  # there are others
    notes = survey_notes(torn, num_images=4, files=[])
    assert notes == [*first, "left out: image cat.jpg: truncated"]


def test_every_backbone_has_one_whole_line_in_eighty_columns():
    lines = printed(models_table(burst.known_backbones())).splitlines()
    known = burst.known_backbones()
    assert [line.split()[0] for line in lines[1 : len(known) + 1]] == [spec.name for spec in known]
    assert len(lines) == len(known) + 2
    assert "…" not in "".join(lines) and any("1,890 M" in line for line in lines)
    assert all(spec.licence in line for spec, line in zip(known, lines[1:], strict=False))


def test_the_details_of_a_backbone_say_what_its_record_holds():
    for spec in burst.known_backbones():
        text = "".join(printed(model_details(spec)).split())
        for fact in (spec.source, spec.licence, f"{spec.parameters:,}", spec.on_disk(), spec.notes):
            assert "".join(str(fact or "").split()) in text


def test_a_title_is_as_wide_as_the_terminal_not_as_the_columns():
    table = Table(box=None, pad_edge=False)
    table.add_column("a")
    table.add_row("1")
    title = "far wider than the one column of this table"
    lines = printed(captioned(table, title, f"below: {title}")).splitlines()
    assert [line.rstrip() for line in lines] == [title, "a", "1", f"below: {title}"]


def test_the_plain_form_of_a_backbone_holds_what_is_known():
    record = model_record(burst.find_backbone("mae_tiny"))
    assert record["on_disk"].endswith("mae_tiny.safetensors")
    assert record["sha256"] == burst.find_backbone("mae_tiny").sha256
    assert np.isclose(record["mean"][0], 0.485)
