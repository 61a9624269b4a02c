"""A survey and the registry of backbones, as tables for a terminal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from burst.backbone_spec import BackboneSpec
from burst.gauge import WHOLE
from burst.histogram import Histogram
from burst.survey import Survey
from reports.style import percent
from reports.tables import captioned, facts_table, named_backbone
from reports.where import where_it_sits
from reports.words import caveats

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_MOST_BURSTY = (
    "qkx",
    "qk",
    "x",
    "logits",
)  # whose histogram is drawn: the first of them that was measured


def survey_table(survey: Survey) -> RenderableType:
    """One line a block: excess kurtosis κ and fitted shape β of each quantity, and a histogram.

    The histogram is that of A X^T if it was measured, in log counts over one symmetric range for
    all blocks; its share of energy in the largest 1 % of |values| stands before it.
    """
    quantities = list(dict.fromkeys(survey.table["quantity"]))
    drawn = next(name for name in _MOST_BURSTY if name in quantities)
    whole = survey.whole(drawn)
    reach = _reach(whole.values())
    caption = "κ excess kurtosis: Laplacian 3; β shape: Laplacian 1, Gaussian 2"
    title = (
        f"{named_backbone(survey.record['model'], survey.record['pretraining'])}, block by block"
    )
    many = len(quantities) == len(_MOST_BURSTY)  # which must fit 80 columns as well
    table = Table(box=None, pad_edge=False, collapse_padding=many)
    gap, width = ("\n", 13) if many else (" ", 17)
    for heading in ("block", *(f"{name}{gap}{letter}" for name in quantities for letter in "κβ")):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("top 1 %", justify="right", no_wrap=True)
    table.add_column(f"{drawn}, ±{reach:.3g}", no_wrap=True)
    rows = {(row["block"], row["quantity"]): row for row in _whole_rows(survey)}
    for block, hist in whole.items():
        cells = [
            f"{rows[block, name][column]:.2f}"
            for name in quantities
            for column in ("excess_kurtosis", "ggd_shape")
        ]
        share = percent(rows[block, drawn]["top1_energy"])
        table.add_row(str(block), *cells, share, sparkline(hist, reach, width=width))
    return captioned(table, title, caption)


def sparkline(hist: Histogram, reach: float, *, width: int = 17) -> str:
    """A histogram in one line of text: log counts in `width` equal bins from -reach to reach."""
    centres = (hist.edges[:-1] + hist.edges[1:]) / 2
    counts, _ = np.histogram(centres, width, (-reach, reach), weights=hist.values())
    heights = np.log1p(counts) / max(np.log1p(counts.max()), 1e-9) * (len(_EIGHTHS) - 1)
    return "".join(_EIGHTHS[math.ceil(height)] for height in heights)


def survey_notes(survey: Survey, *, num_images: int, files: Sequence[Path]) -> list[str]:
    """What a reader of the table must also know, one line each."""
    notes = where_it_sits(survey)[:1]
    notes += survey.record.get("notes", [])
    images = survey.record["images"]
    notes += caveats(survey)
    if images and images["count"] + len(survey.bad_images) < num_images:
        what = "sequence" if images.get("kind") == "text" else "image"
        what += " was" if images["count"] == 1 else "s were"
        notes.append(f"{images['count']} {what} read: there are no more")
    notes += [f"left out: image {name}: {reason}" for name, reason in survey.bad_images]
    notes += [f"left out: {one.name}: {one.reason}" for one in survey.skipped]
    if survey.record["nonfinite"]:
        notes.append(f"{survey.record['nonfinite']} values were NaN or infinite and are left out")
    return notes + where_written(files, per_head=survey.record["options"]["per_head"])


def where_written(files: Sequence[Path], *, per_head: bool) -> list[str]:
    """Where the numbers are, or how those of each head are had; nothing where the table has all."""
    if files:
        return [f"written to {files[0].parent}: {', '.join(file.name for file in files)}"]
    return ["each head's numbers: --out DIR or --json"] if per_head else []


def library_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """The rows of `burst.library_models`, one line each."""
    table = Table(box=None, pad_edge=False)
    headings = list(rows[0]) if rows else []
    for heading in headings:  # a name that is broken can be neither searched for nor copied
        table.add_column(heading, overflow="fold", no_wrap=heading == headings[0])
    for row in rows:
        table.add_row(*row.values())
    return table


def models_table(specs: Iterable[BackboneSpec]) -> RenderableType:
    """The known backbones, one line each, in 80 columns."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading in ("name", "pretraining", "blocks × d", "pixels", "size", "on disk", "licence"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "size" else "left")
    for spec in specs:
        table.add_row(
            spec.name,
            spec.pretraining,
            f"{spec.depth} × {spec.width}",
            f"{spec.image_size}/{spec.patch_size}",
            f"{spec.parameters / 1e6:,.0f} M",
            "yes" if spec.on_disk() else "no",
            spec.licence,
        )
    return captioned(
        table,
        caption="pixels: of image / patch; all of one: burst models NAME, of each: --verbose",
    )


def model_details(spec: BackboneSpec) -> Table:
    """All that is known of a backbone, a fact a line."""
    path = spec.on_disk()
    facts = {
        "name": spec.name,
        "pretraining": spec.pretraining,
        "shape": f"{spec.depth} blocks, width {spec.width}, {spec.heads} heads",
        "parameters": f"{spec.parameters:,}",
        "images": f"{spec.image_size} pixels, patches of {spec.patch_size}",
        "normalised by": f"mean {_triple(spec.mean)}, deviation {_triple(spec.std)}",
        "resized": f"{spec.interpolation}, crop {spec.crop_fraction:g} ({spec.crop_mode})",
        "a head reads": {"avg": "the mean of patches", "token": "the class token"}[spec.pooling],
        "licence": spec.licence,
        "weights": spec.source,
        "on disk": str(path) if path else "no; they are downloaded when first used",
        "by hand": f"{spec.link} as --weights" if spec.link and not path else "",
        "notes": spec.notes,
    }
    return facts_table(facts)


def _triple(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def model_record(spec: BackboneSpec) -> dict[str, Any]:
    """All that is known of a backbone, as plain JSON-able data."""
    path = spec.on_disk()
    return {**asdict(spec), "source": spec.source, "on_disk": str(path) if path else None}


def _whole_rows(survey: Survey) -> list[dict[str, Any]]:
    rows = survey.table[survey.table["head"] == WHOLE].to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def _reach(histograms: Iterable[Histogram]) -> float:
    return max(max(-hist.moments.minimum, hist.moments.maximum) for hist in histograms) or 1.0
