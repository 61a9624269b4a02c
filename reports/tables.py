"""What tables for a terminal have in common."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def captioned(table: Table, title: str = "", caption: str = "") -> RenderableType:
    """A table below its title and above what explains it, both as wide as the terminal.

    Those of rich are wrapped to the width of the columns.
    """
    parts: list[RenderableType] = [Text(title, style="italic")] if title else []
    return Group(*parts, table, *([Text(caption, style="dim italic")] if caption else []))


def facts_table(facts: Mapping[str, str]) -> Table:
    """A fact a line; those that are empty are left out."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        if fact:
            table.add_row(name, fact)
    return table


def named_backbone(model: str, pretraining: str) -> str:
    """A backbone, with its pretraining where that is known.

    >>> named_backbone("mae_vitb", "mae"), named_backbone("timm:vit_base_patch16_224", "unknown")
    ('mae_vitb (mae)', 'timm:vit_base_patch16_224')
    """
    return model if pretraining == "unknown" else f"{model} ({pretraining})"
