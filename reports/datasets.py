"""The known datasets, and what a check of one found, as tables for a terminal."""

import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from bpt import CheckedDataset, DatasetInfo, dataset_info, how_to_get, locate
from reports.tables import captioned, facts_table

WIDTH, REST = 80, 38  # of a terminal, and of the columns beside name and title, with gaps


def dataset_record(info: DatasetInfo, data: Path | None = None) -> dict[str, Any]:
    """What is known of a dataset, and where it was found, as plain data."""
    hidden = ("opener", "layout", "downloads")
    record = {one.name: getattr(info, one.name) for one in fields(info) if one.name not in hidden}
    found, looked = locate(info, data)
    return record | {
        "download": [file.url for file in info.downloads],
        "found": str(found) if found else None,
        "looked_in": [str(place) for place in looked],
    }


def datasets_table(known: Sequence[DatasetInfo], data: Path | None = None) -> RenderableType:
    """The known datasets, one line each, in 80 columns."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in ("name", "what", "classes", "train/val/test", "on disk"):
        right = name in ("classes", "train/val/test")
        table.add_column(name, no_wrap=True, justify="right" if right else "left")
    room = WIDTH - max(len(info.name) for info in known) - REST
    for info in known:
        unknown = "by task" if info.members else "yours"
        sizes = "/".join(str(size or "–") for size in info.sizes) if info.sizes else unknown
        classes = str(info.classes) if info.classes else unknown
        title = textwrap.shorten(info.title, room, placeholder="…")
        table.add_row(info.name, title, classes, sizes, _at_hand(info, data))
    return captioned(
        table,
        caption="where it is, or how to get it: bpt datasets NAME, of each: --verbose",
    )


def dataset_details(info: DatasetInfo, data: Path | None = None) -> Table:
    """All that is known of a dataset, a fact a line."""
    found, looked = locate(info, data)
    get = "" if info.layout is None or found else how_to_get(info)
    classes = f"{info.classes} classes, " if info.classes else ""
    facts = {
        "name": info.name,
        "what": info.title,
        "task": info.task,
        "images": classes + _spoken(info.sizes) if info.sizes else "",
        "licence": info.licence,
        "cite": info.citation,
        "source": info.source,
        "copies": f"{' or '.join(info.copies)}; not checked by us" if info.copies else "",
        "members": ", ".join(info.members),
        "files": info.files,
        "on disk": str(found) if found else _at_hand(info, data),
        "looked in": "" if found else ", ".join(map(str, looked)),
        "to get it": get.removeprefix("get it with ").removeprefix("get it "),
    }
    return facts_table(facts)


def _at_hand(info: DatasetInfo, data: Path | None) -> str:
    if info.members:
        found = sum(locate(dataset_info(name), data)[0] is not None for name in info.members)
        return f"{found} of {len(info.members)}"
    if info.layout is None:
        return "yes" if info.embedded else "yours"
    return "yes" if locate(info, data)[0] else "no"


def _spoken(sizes: tuple[int, int, int]) -> str:
    uses = zip(sizes, ("train", "validate", "test"), strict=True)
    return ", ".join(f"{size:,} to {use}" for size, use in uses if size)


def check_table(found: CheckedDataset) -> Table:
    """What a check found, problems first."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for problem in found.mismatches:
        table.add_row("differs", problem)
    for problem in found.unreadable:
        table.add_row("unreadable", problem)
    for note in found.notes:
        table.add_row("note", note)
    used: tuple[int, ...] = found.sizes
    uses = "train, validate and test"
    if not found.sizes[2]:
        used, uses = found.sizes[:2], "train and validate"
    sizes = "/".join(f"{size:,}" for size in used)
    table.add_row("found", f"{sizes} images to {uses}, {found.classes} classes")
    table.add_row("in", found.source)
    if found.good:
        table.add_row("", "complete; every image can be read")
    return table
