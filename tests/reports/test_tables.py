"""What tables for a terminal have in common."""

import pytest
from rich.console import Console

from reports.tables import facts_table, named_backbone


@pytest.mark.parametrize(
    "model, kind, written",
    [
        ("mae_vitb", "mae", "mae_vitb (mae)"),
        ("timm:vit_base_patch16_224", "unknown", "timm:vit_base_patch16_224"),
        ("timm:vit_tiny_patch16_224", "random", "timm:vit_tiny_patch16_224 (random)"),
    ],
)
def test_a_pretraining_is_named_where_it_is_known(model, kind, written):
    assert named_backbone(model, kind) == written


def test_a_fact_that_is_empty_has_no_line():
    console = Console(width=40, record=True)
    console.print(facts_table({"images": "12", "memory": "", "disk": "3 GiB"}))
    assert [line.split() for line in console.export_text().splitlines()] == [
        ["images", "12"],
        ["disk", "3", "GiB"],
    ]
