"""What was measured of one or several backbones, as one page with all figures and tables."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from burst.backbone import Backbone
from burst.errors import EmptyResult
from burst.files import make_folder, save_json, save_table
from burst.gauge import WHOLE
from burst.histogram import Histogram
from burst.progress import Progress
from burst.stream import NamedStream
from burst.survey import Survey
from burst.whitened import whitened_histograms
from burst.whitening import Whitening, whiten
from burst.whitening_options import WhiteningOptions
from reports.backbones import head_maps, law_lines, overlay_grid
from reports.depth import depth_grid, depth_lines
from reports.explorer import without_intervals
from reports.origins import (
    Origins,
    extremes_section,
    plain_name,
    softmax_section,
    spectrum_section,
    where_section,
)
from reports.page import Page, Section
from reports.style import QUANTITIES, model_lines, quantity_style
from reports.survey_files import run_record
from reports.where import where_it_sits
from reports.whitening import (
    Pairs,
    chosen_blocks,
    whiteness_warning,
    whiteness_words,
    whitening_figure,
    whitening_record,
    whitening_words,
)
from reports.words import caveats, comparison, findings

LEAD = (
    "Attention scores a prompt against every token of its input. It is bursty where a few scores "
    "are huge and most are small; prompts then learn slowly (arXiv 2506.22908).",
)
HOW_TO_READ = (
    "In self-attention a prompt P meets the tokens X through P · W_q W_kᵀ · Xᵀ, so the response "
    "W_q W_kᵀ Xᵀ holds what each dimension of a prompt would score against each token. The paper "
    "(arXiv 2506.22908, ICCV 2025) calls it bursty where a few entries have very large absolute "
    "values, far more than a Gaussian allows; whitening it first, or learning the prompt as a "
    "product of two matrices, can help.",
    "Excess kurtosis is 0 for a Gaussian and 3 for a Laplacian; the shape of the fitted "
    "generalised Gaussian is 2 and 1, and below 1 for what the paper calls hyper-Laplacian.",
)
NAMES = {"qk": "Weights", "x": "Tokens", "qkx": "Response", "logits": "Softmax"}


@dataclass(frozen=True)
class BackboneReport:
    """What the page shows of one backbone.

    Attributes:
        survey: all blocks, with heads if the page shall have them.
        whitening: of its blocks; None leaves that part out.
        pairs: histograms of Y, V^(-1/2) Y and W Y, for the blocks that were whitened.
        origins: nulls, extremes and spectra; None leaves these parts out.
    """

    survey: Survey
    whitening: Whitening | None = None
    pairs: Pairs | None = None
    origins: Origins | None = None

    @property
    def model(self) -> str:
        """Its name."""
        return str(self.survey.record["model"])


def measured_whitening(
    backbone: Backbone, images: NamedStream, *, progress: Progress | None = None
) -> tuple[Whitening, Pairs]:
    """The default whitening of all blocks, and their entries before and after.

    Args:
        backbone, images, progress: see `burst.whiten`.

    Raises:
        BurstError: see `burst.whiten` and `burst.whitened_histograms`.
    """
    whitening = whiten(backbone, images, progress=progress)
    return whitening, whitened_histograms(backbone, images, whitening, WhiteningOptions())


def save_burst_report(
    backbones: Sequence[BackboneReport], out: str | os.PathLike[str], *, seed: int | None = None
) -> list[Path]:
    """Write index.html, its figures as PNG and PDF, statistics.csv and run.json.

    The page is one file that asks for nothing else: it can be sent by mail.

    Args:
        backbones: what to show, in this order.
        out: the folder; made if missing.
        seed: of the choice of images, where the records do not say it.

    Returns:
        The files, the page first.

    Raises:
        EmptyResult: no backbone, or one twice; or none of qk, x and qkx was measured of one.
        OutputError: the folder cannot be written.
        BurstError: a record says another seed.
    """
    models = [one.model for one in backbones]
    if not models or len(set(models)) < len(models):
        raise EmptyResult(f"backbones {models} must be at least one, and no two the same")
    records = {one.model: run_record(one.survey, seed=seed) for one in backbones}
    folder = make_folder(out)
    table = pd.concat([one.survey.table for one in backbones], ignore_index=True)
    page = Page(f"Attention burstiness: {', '.join(models)}", LEAD)
    files: list[Path] = []
    origins = {one.model: one.origins for one in backbones if one.origins}
    _summary(page.section("What was found"), table, [one.survey for one in backbones])
    files += _over_depth(page.section("Over depth"), table, folder)
    files += where_section(page, [one.survey for one in backbones], origins, folder)
    _explore(page.section("Explorer"), backbones)
    for quantity in QUANTITIES:
        measured = {one.model: whole for one in backbones if (whole := one.survey.whole(quantity))}
        if measured:
            section = page.section(f"{NAMES[quantity]}: {quantity_style(quantity).plain}")
            files += _quantity(section, quantity, measured, records, folder)
    files += _heads(page, table, folder)
    if origins:
        extremes_section(page, origins)
        files += softmax_section(page, origins, folder)
        files += spectrum_section(page, origins, folder)
    files += _whitenings(page, backbones, folder)
    _every_number(page.section("Every number"), table)
    _how(page.section("How it was made"), records)
    files.append(save_table(folder / "statistics.csv", table))
    files.append(save_json(folder / "run.json", records))
    return [page.save(folder / "index.html"), *files]


def _summary(section: Section, table: pd.DataFrame, surveys: Sequence[Survey]) -> None:
    records = {str(one.record["model"]): one.record for one in surveys}
    where = {str(one.record["model"]): where_it_sits(one) for one in surveys}
    for finding in findings(table, records):
        if len(surveys) > 1:
            section.heading(finding.model)
        section.text(finding.headline, strong=True)
        if finding.burstiest:
            section.items([finding.burstiest, *where[finding.model][:1], finding.advice])
        if finding.commands:
            section.code("\n".join(finding.commands))
    for caveat in caveats(*surveys):
        section.text(caveat)
    if sentences := comparison(table):
        section.heading("How they differ")
        section.items(sentences)


def _over_depth(section: Section, table: pd.DataFrame, folder: Path) -> list[Path]:
    for paragraph in HOW_TO_READ:
        section.text(paragraph)
    files = section.figure(
        depth_lines(table),
        folder / "depth_lines",
        "Excess kurtosis, share of the energy in the largest 1 % of entries, and fitted shape, "
        "block by block. Grey: what a Gaussian and a Laplacian would have.",
    )
    for finding in findings(table):
        section.heading(finding.model)
        section.items(finding.laws)
    return files + section.figure(
        law_lines(table),
        folder / "laws",
        "How far the entries are from the best Gaussian and from the best Laplacian (largest "
        "difference of the distribution functions): the lower line fits better.",
    )


def _explore(section: Section, backbones: Sequence[BackboneReport]) -> None:
    section.text(
        "Every histogram behind this page, with the best Gaussian, Laplacian and generalised "
        "Gaussian. It opens at the burstiest block. Look at the sides, in log counts: the entries "
        "that lie above the Gaussian there, few but large, are the bursts."
    )
    section.explorer([one.survey for one in backbones])


def _every_number(section: Section, table: pd.DataFrame) -> None:
    shown = without_intervals(table)
    more = "" if shown.shape == table.shape else " Intervals are in the explorer and the CSV file."
    section.frame(shown, f"Click a heading to sort. Blocks count from 0.{more}")


def _quantity(
    section: Section,
    quantity: str,
    measured: dict[str, dict[int, Histogram]],
    records: dict[str, dict[str, Any]],
    folder: Path,
) -> list[Path]:
    files: list[Path] = []
    if len(measured) > 1:
        files += section.figure(
            overlay_grid(measured, quantity=quantity, lines=model_lines(records)),
            folder / f"overlay_{quantity}",
            "The backbones laid over each other, each in units of its own standard deviation. What "
            "lies above the grey curves at the sides has heavier tails than they.",
        )
    for model, histograms in measured.items():
        bins = records[model]["options"]["bins"]
        figure = depth_grid(histograms, quantity=quantity, title=model, bins=bins)
        files += section.figure(
            figure,
            folder / f"depth_{quantity}_{plain_name(model)}",
            f"{model}: entries of each block, in log counts, with the fitted laws.",
        )
    return files


def _heads(page: Page, table: pd.DataFrame, folder: Path) -> list[Path]:
    files: list[Path] = []
    heads = table[table["head"].astype(str) != WHOLE]
    for quantity in ("qk", "qkx"):
        if (heads["quantity"] == quantity).any():
            section = page.sections[-1] if files else page.section("Head by head")
            files += section.figure(
                head_maps(table, quantity=quantity),
                folder / f"heads_{quantity}",
                f"Excess kurtosis of each head's part of {quantity_style(quantity).plain}: a few "
                "heads may carry what the sum over heads shows.",
            )
    return files


def _whitenings(page: Page, backbones: Sequence[BackboneReport], folder: Path) -> list[Path]:
    every = [(one.model, one.whitening, one.pairs) for one in backbones]
    whitened = [(model, w, pairs) for model, w, pairs in every if w is not None and pairs]
    if not whitened:
        return []
    section = page.section("Whitening")
    section.text(
        "W = Σ^(-1/2), Σ being the covariance of the response's columns, makes W · W_q W_kᵀ Xᵀ "
        "white. Eigenvalues below the floor were raised to it. A whitening that works turns the "
        "entries in the left column into those of W Y, which follow the best Gaussian."
    )
    section.text(
        "Between them stands V^(-1/2) · Y, V being the diagonal of Σ: every row divided by its own "
        "deviation, d numbers in place of d × d. Tails that are gone there already were only a "
        "spread of variances between rows; a full whitening has to be better than this."
    )
    files: list[Path] = []
    for model, whitening, pairs in whitened:
        drawn = {block: pairs[block] for block in chosen_blocks(whitening) if block in pairs}
        figure = whitening_figure(whitening, drawn, title=model)
        told = "; ".join(filter(None, (whitening_words(pairs), whiteness_words(whitening))))
        if warning := whiteness_warning(whitening):
            section.text(f"{model}: {warning}.", strong=True)
        files += section.figure(
            figure,
            folder / f"whitening_{plain_name(model)}",
            f"{model}: entries before and after whitening, on inputs that it was not made of, and "
            f"the spectrum with its floor; {told}.",
        )
        diagnostics = pd.DataFrame([vars(one) for one in whitening.blocks])
        section.frame(
            diagnostics.drop(columns="variance_error"),
            f"{model}: the whitening of each block; the effective rank is that of the variance",
        )
        section.frame(
            _entries(whitening, pairs),
            f"{model}: entries before whitening, after the diagonal alone and after all of W; "
            "κ: excess kurtosis, β: shape",
        )
    return files


def _entries(whitening: Whitening, pairs: Pairs) -> pd.DataFrame:
    """Kurtosis and shape of each block's entries, under names that fit on paper."""
    columns = {
        f"{name}_{when}": f"{letter} {when}"
        for name, letter in (("excess_kurtosis", "κ"), ("ggd_shape", "β"))
        for when in ("before", "diagonal", "after")
    }
    rows = [row for row in whitening_record(whitening, pairs) if row["block"] in pairs]
    return pd.DataFrame(rows).rename(columns=columns).filter(["block", *columns.values()])


def _how(section: Section, records: dict[str, dict[str, Any]]) -> None:
    first = next(iter(records.values()))
    section.code(shlex.join(first["command"]))
    for model, record in records.items():
        images = record["images"] or {"count": 0, "source": "none"}
        what = "Sequences" if images.get("kind") == "text" else "Images"
        of_split = f"the {images['split']} split of " if "split" in images else ""
        seed = "" if record["seed"] is None else f", seed {record['seed']}"
        section.heading(model)
        lines = [
            f"Weights: {record['weights']}, SHA-256 {record['weights_sha256']}",
            f"{what}: {images['count']} of {of_split}{images['source']}{seed}",
            f"Convention: {record['options']['convention']}, tokens: {record['options']['tokens']}",
            f"Left out: {len(record['skipped_blocks'])} blocks; {record['nonfinite']} values that "
            "were not finite",
        ]
        section.items(lines)
    section.versions(first["versions"])
