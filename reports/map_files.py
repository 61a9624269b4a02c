"""Maps of photographs -> the files of a run: figures, a gallery, tables, the record."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from burst.extremes_tables import carriers
from burst.files import make_folder, save_json, save_table
from burst.progress import Progress
from burst.provenance import provenance
from burst.token_map import PhotoMaps, TokenMap
from reports.map import map_blocks, map_figure
from reports.names import new_stem, readable
from reports.page import Page, Section
from reports.style import decimals, percent
from reports.tables import named_backbone

MEASURE = "share of the sum of the fourth powers of the entries of W_q W_k^T X^T"
CAPTION = (
    "% of the sum of fourth powers; patch: row,column from 0; ½: how few hold half; "
    "κ: excess kurtosis"
)
ABOUT = (
    "A backbone's attention scores tokens by W_q W_kᵀ. The response W_q W_kᵀ Xᵀ of a block to a "
    "picture has a column for each token and a row for each dimension of a prompt. It is bursty "
    "where a few of its entries are far larger than the rest; the maps show in which patches of "
    "the picture, and in which dimensions, those lie.",
    "Share: the part that a token's column has in the sum of the fourth powers of all entries, "
    "which is what excess kurtosis counts, as a multiple of an equal share. "
    "Norm: the length of a token as the attention reads it, as a multiple of the median length. "
    "Bars: the dimensions with the largest parts. Tokens that are no patch, such as the class "
    "token, stand below the picture.",
)


def save_maps(
    found: PhotoMaps,
    out: str | os.PathLike[str],
    *,
    blocks: Iterable[int] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write what was found of photographs into a folder, each file whole or not at all.

    `map_PHOTO.png` and `.pdf` for each photograph, `index.html` with all of them in one file,
    `map.csv` (image, block, token, kind, row, column, share, norm), `map_dimensions.csv` (image,
    block, dimension, share) and `run.json`. Shares lie in 0..1. Photographs of one name get a
    number.

    Args:
        found: from `burst.map_photos`.
        out: the folder; made if missing, files of the same names are replaced.
        blocks: what to show; as `map_blocks` chooses if not given.
        progress: called with how many photographs are drawn, of how many.

    Returns:
        The files, the page first.

    Raises:
        EmptyResult: no photograph, or a block that was not mapped.
        OutputError: the folder cannot be written.
    """
    chosen = map_blocks(found.maps) if blocks is None else tuple(blocks)
    found = replace(found, maps=tuple(_named(one) for one in found.maps))
    folder, model = make_folder(out), str(found.record["model"])
    record = {**provenance(), **found.record, "measure": MEASURE, "blocks": list(chosen)}
    names = _file_names(found.maps)
    page = Page(f"Where {model} is bursty: {_photographs(found.maps)}", ABOUT)
    figures: list[Path] = []
    for done, (one, name) in enumerate(zip(found.maps, names, strict=True), 1):
        section = page.section(str(one.image))
        figures += _show(section, one, chosen, folder / name, model)
        if progress:
            progress(done, len(found.maps))
    _how(page.section("How it was made"), record)
    record["pictures"] = [
        {
            "image": one.image,
            "figure": f"{name}.png",
            "excess_kurtosis": _tails(one),
        }
        for one, name in zip(found.maps, names, strict=True)
    ]
    record["bad_images"] = [list(one) for one in found.bad_images]
    rest = [
        save_table(folder / "map.csv", _tokens(found.maps, chosen)),
        save_table(folder / "map_dimensions.csv", _dimensions(found.maps, chosen)),
        save_json(folder / "run.json", record),
    ]
    return [page.save(folder / "index.html"), *figures, *rest]


def map_table(maps: Sequence[TokenMap], blocks: Iterable[int] | None = None) -> Table:
    """One line a photograph and block, for a terminal: excess kurtosis, what is largest.

    Args:
        maps: of the photographs.
        blocks: which, of those mapped; as `map_blocks` chooses if not given.

    Raises:
        EmptyResult: no map.
    """
    chosen = map_blocks(maps) if blocks is None else tuple(blocks)
    table = Table(box=None, pad_edge=False, caption=CAPTION)
    table.add_column("image", overflow="fold", min_width=16)
    headings = "block", "κ", "top patch", "½ tokens", "top dimension", "½ dim."
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for one in maps:
        for place, block in enumerate(chosen):
            found = one.blocks[block]
            patches = one.patches(found.share)
            row, column = np.unravel_index(np.argmax(np.nan_to_num(patches)), patches.shape)
            top = int(np.argmax(np.nan_to_num(found.dimensions)))
            table.add_row(
                readable(str(one.image)) if place == 0 else "",
                str(block),
                decimals(found.kurtosis, 1),
                f"{row},{column}: {percent(patches[row, column])}",
                f"{carriers(np.nan_to_num(found.share), 0.5)}/{len(found.share)}",
                f"{top}: {percent(found.dimensions[top])}",
                f"{carriers(np.nan_to_num(found.dimensions), 0.5)}/{len(found.dimensions)}",
            )
    return table


def in_words(token_map: TokenMap, blocks: Iterable[int]) -> list[str]:
    """What the map of a photograph shows, a sentence a block."""
    sentences = []
    for block in blocks:
        one = token_map.blocks[block]
        if not np.isfinite(one.share).all():
            sentences.append(f"Block {block}: its response is zero.")
            continue
        tokens, dimensions = (carriers(part, 0.5) for part in (one.share, one.dimensions))
        patches = token_map.patches(one.share)
        row, column = np.unravel_index(np.argmax(patches), patches.shape)
        top = int(np.argmax(one.dimensions))
        sentences.append(
            f"Block {block} (excess kurtosis {decimals(one.kurtosis, 1)}): half of the fourth "
            f"powers lie in {tokens} of {len(one.share)} tokens and in {dimensions} of "
            f"{len(one.dimensions)} dimensions. Largest are the patch in row {row}, column "
            f"{column} ({percent(patches[row, column])}), and dimension {top} "
            f"({percent(one.dimensions[top])})."
        )
    return sentences


def _show(
    section: Section, token_map: TokenMap, blocks: Sequence[int], path: Path, model: str
) -> list[Path]:
    figure = map_figure(token_map, blocks, title=f"{token_map.image}, {model}")
    caption = (
        f"{token_map.image}: {token_map.grid.rows} × {token_map.grid.columns} patches of "
        f"{token_map.grid.height} × {token_map.grid.width} pixels."
    )
    files = section.figure(figure, path, caption, photographs=True)
    section.items(in_words(token_map, blocks))
    return files


def _how(section: Section, record: dict[str, Any]) -> None:
    section.code(shlex.join(record["command"]))
    backbone = named_backbone(record["model"], record["pretraining"])
    section.items(
        [
            f"Model: {backbone}, weights: {record['weights']}, SHA-256 {record['weights_sha256']}",
            *record["notes"],
            "Blocks, dimensions, rows and columns count from 0: row 0 is the top one, column 0 the "
            "left one.",
        ]
    )
    section.versions(record["versions"])


def _named(one: TokenMap) -> TokenMap:
    """By a name that figures and tables can hold, whatever its file is called."""
    return replace(one, image=readable(str(one.image)))


def _photographs(maps: Sequence[TokenMap]) -> str:
    return str(maps[0].image) if len(maps) == 1 else f"{len(maps)} photographs"


def _file_names(maps: Sequence[TokenMap]) -> list[str]:
    """map_PHOTO, of letters that every file system takes, and not of too many; no two alike."""
    taken = set[str]()
    stems = (PurePath(str(one.image)).stem for one in maps)
    plain = (re.sub(r"[^\w.-]+", "-", stem).strip("-") or "photo" for stem in stems)
    return [new_stem(f"map_{stem}", taken) for stem in plain]


def _tails(token_map: TokenMap) -> dict[str, float | None]:
    return {
        str(block): one.kurtosis if np.isfinite(one.kurtosis) else None
        for block, one in token_map.blocks.items()
    }


def _tokens(maps: Sequence[TokenMap], blocks: Sequence[int]) -> pd.DataFrame:
    table = pd.concat([one.table() for one in maps], ignore_index=True)
    return table[table["block"].isin(blocks)]


def _dimensions(maps: Sequence[TokenMap], blocks: Sequence[int]) -> pd.DataFrame:
    parts = []
    for one in maps:
        for block in sorted(blocks):
            shares = one.blocks[block].dimensions
            place = {"image": one.image, "block": block, "dimension": np.arange(len(shares))}
            parts.append(pd.DataFrame({**place, "share": shares}))
    return pd.concat(parts, ignore_index=True)
