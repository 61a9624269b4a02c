"""The sections of `burst report` that say why: where a kurtosis sits, nulls, extremes, spectra."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from burst.backbone import Backbone
from burst.errors import UnsupportedModel
from burst.extremes import Extremes, extremes
from burst.extremes_tables import MODEL, carriers
from burst.gauge import WHOLE
from burst.nulls import random_weights
from burst.progress import Progress, part_of
from burst.spectrum import Spectrum, spectrum
from burst.stream import NamedStream
from burst.survey import Survey, SurveyOptions, survey
from reports.depth import whole_blocks
from reports.page import Page
from reports.softmax import shown_measures, softmax_figure, softmax_words
from reports.spectrum import spectrum_figure, spectrum_frame, spectrum_words
from reports.style import percent
from reports.where import PEAKED_KURTOSIS, kurtosis_parts, where_it_sits

NULLS = {"random": "random weights", "permuted": "permuted tokens"}
LARGEST = 3  # extremes of each block that the page shows


@dataclass(frozen=True)
class Origins:
    """What explains a survey.

    Attributes:
        nulls: surveys of the same images: "random", of weights whose entries are in random order;
            "permuted", of tokens of which each dimension's values are.
        extremes: the largest entries.
        spectrum: of W_q W_k^T.
        scores: a survey of the `logits` of each head; None where they cannot be read.
    """

    nulls: Mapping[str, Survey]
    extremes: Extremes
    spectrum: Spectrum
    scores: Survey | None = None


def measured_origins(
    backbone: Backbone, images: NamedStream, *, progress: Progress | None = None
) -> Origins:
    """Nulls, extremes, spectra and scores of all blocks, in four passes over the images.

    Args:
        backbone, images: see `burst.survey`.
        progress: called as progress(batches done, batches in all), of the four passes.

    Raises:
        BurstError: see `burst.survey`, `burst.extremes` and `burst.spectrum`.
    """
    first, second, third, last = (part_of(progress, place, 4) for place in range(4))
    response = SurveyOptions(quantities=("qkx",))
    permuted = replace(response, tokens="permuted")
    nulls = {"permuted": survey(backbone, images, permuted, progress=first)}
    with suppress(UnsupportedModel):  # queries and keys that cannot be set one by one
        nulls["random"] = survey(random_weights(backbone), images, response, progress=second)
    scores = None
    with suppress(UnsupportedModel):  # an attention whose softmax is inside a kernel of its own
        logits = SurveyOptions(quantities=("logits",), per_head=True)
        scores = survey(backbone, images, logits, progress=third)
    largest = extremes(backbone, images, progress=last)
    return Origins(nulls, largest, spectrum(backbone), scores)


def where_section(
    page: Page, surveys: Sequence[Survey], origins: Mapping[str, Origins], folder: Path
) -> list[Path]:
    """Where the kurtosis of the response sits, of every model that has margins."""
    shown = [one for one in surveys if one.margins]
    if not shown:
        return []
    section = page.section("Where it sits")
    section.text(
        "The response has a row for each dimension of a prompt. If rows differ in variance, all "
        "entries together look heavy-tailed even if no row is. So the excess kurtosis of all "
        "entries is split, exactly, into a part of the rows' variances, a part of their means and "
        "a part within rows, which is below 0 where rows are lighter-tailed than a Gaussian. "
        "Shares of the whole may so be above 1. Beside it: what remains once each row is centred "
        "and divided by its own deviation; and what chance would give, by tokens that are Gaussian "
        "with the same covariance, by tokens of which each dimension's values are in random order, "
        "and by weights whose entries are."
    )
    files: list[Path] = []
    for one in shown:
        model = str(one.record["model"])
        files += section.figure(
            kurtosis_parts(one),
            folder / f"where_{plain_name(model)}",
            f"{model}: excess kurtosis of W_q W_kᵀ Xᵀ and where it sits; bands are 95 % intervals "
            "over images.",
        )
        section.items(where_it_sits(one)[1:])  # the first stands in front of the page
        nulls = origins[model].nulls if model in origins else {}
        section.frame(where_frame(one, nulls), f"{model}: block by block")
    return files


def where_frame(one: Survey, nulls: Mapping[str, Survey]) -> pd.DataFrame:
    """A row a block: its kurtosis, what remains, what chance gives, and shares of scales."""
    table = whole_blocks(one.table).query("quantity == 'qkx'").set_index("block")
    columns = {
        "excess_kurtosis": "κ",
        "excess_kurtosis_low": "from",
        "excess_kurtosis_high": "to",
        "kurtosis_within_rows": "κ, rows standardised",
        "kurtosis_null": "κ, Gaussian tokens",
    }
    found = table.reindex(columns=list(columns)).rename(columns=columns)
    for name, null in nulls.items():
        of_null = whole_blocks(null.table).query("quantity == 'qkx'").set_index("block")
        found[f"κ, {NULLS[name]}"] = of_null["excess_kurtosis"]
    much = table["excess_kurtosis"] > PEAKED_KURTOSIS  # of next to nothing any share is large
    found["share of rows' scales"] = table["row_scale_share"].where(much)
    found["share of tokens' scales"] = table["token_scale_share"].where(much)
    found["rows with ⅓ of energy"] = pd.Series(
        {
            block: carriers(margins.rows.energy, 1 / 3)
            for (block, head, _), margins in one.margins.items()
            if head == WHOLE
        }
    )
    return found.reset_index()


def extremes_section(page: Page, origins: Mapping[str, Origins]) -> None:
    """The largest entries themselves, and whether it is the same dimensions and tokens again."""
    section = page.section("The extremes themselves")
    section.text(
        "The largest entries of the response, with the image, the token and the dimension that "
        "they belong to. A dimension, or a place in the sequence, is massive if it holds more of "
        "the energy than any does by chance: with weights, or tokens, in random order. "
        "burst map PHOTO shows them over a photograph."
    )
    for model, one in origins.items():
        section.heading(model)
        section.items(extremes_words(one.extremes))
        shown = one.extremes.table.query("rank <= @LARGEST")
        section.frame(shown, f"{model}: the {LARGEST} largest entries of each block")
        section.frame(one.extremes.summary, f"{model}: all blocks, beside both nulls")


def extremes_words(found: Extremes) -> list[str]:
    """Which dimensions and tokens hold the energy, as sentences."""
    sentences = []
    for what, table in (("dimension", found.dimensions), ("token", found.tokens)):
        of_model = table[table["source"] == MODEL]
        massive = of_model[of_model["massive"].astype(bool)]
        if massive.empty:
            sentences.append(f"No {what} holds more of a block's energy than chance would give.")
            continue
        top = massive.iloc[int(massive["share"].argmax())]
        often = massive.groupby(what)["block"].nunique()
        recurring = often.index[int(often.argmax())]
        sentences.append(
            f"Massive {what}s: in {massive['block'].nunique()} blocks. The largest, "
            f"{_named(what, top)} of block {top['block']}, holds {percent(top['share'])} of its "
            f"energy, {top['share'] * _how_many(of_model, top):.1f} times an even share; {what} "
            f"{recurring} is massive in {often.max()}."
        )
    return sentences


def spectrum_section(page: Page, origins: Mapping[str, Origins], folder: Path) -> list[Path]:
    """Singular values of W_q W_k^T, beside those of random factors."""
    section = page.section("Spectrum of the weights")
    section.text(
        "Singular values of W_q W_kᵀ. Its stable rank, ‖A‖²_F / ‖A‖²₂, and its effective rank, by "
        "singular values, say over how many directions it spreads; the symmetric share is ½ "
        "where queries and keys have nothing to do with each other. Dashed: random factors of the "
        "same shape."
    )
    files: list[Path] = []
    for model, one in origins.items():
        section.text(f"{model}. {spectrum_words(one.spectrum)}")
        path = folder / f"spectrum_{plain_name(model)}"
        files += section.figure(spectrum_figure(one.spectrum), path, f"{model}: its spectrum.")
        section.frame(spectrum_frame(one.spectrum), f"{model}: heads together")
    return files


def softmax_section(page: Page, origins: Mapping[str, Origins], folder: Path) -> list[Path]:
    """What softmax is given and what it makes of it, of models whose scores can be read."""
    tables = {model: one.scores.softmax for model, one in origins.items() if one.scores}
    if not tables:
        return []
    section = page.section("What softmax sees")
    section.text(
        "The scores that softmax is given, q kᵀ times its scale, with biases, positions, norms and "
        "masks, and what it makes of them: 100 % of an even softmax's entropy is attention to all "
        "tokens alike; a token that gets much of the weight everywhere is a sink. Means over "
        "queries."
    )
    files: list[Path] = []
    for model, table in tables.items():
        section.text(f"{model}. {softmax_words(table)}")
        path = folder / f"softmax_{plain_name(model)}"
        figure = softmax_figure(table, title=f"{model}: softmax")
        files += section.figure(figure, path, f"{model}: what softmax makes of the scores.")
        names = ["block", "keys", "entropy", *shown_measures(table)]
        section.frame(whole_blocks(table)[names], f"{model}: heads together, means over queries")
    return files


def plain_name(model: str) -> str:
    """A model's name for a file."""
    return "".join(one if one.isalnum() or one in "-_." else "-" for one in model)


def _how_many(table: pd.DataFrame, row: pd.Series) -> int:
    return int((table["block"] == row["block"]).sum())


def _named(what: str, row: pd.Series) -> str:
    kind = str(row.get("kind", ""))
    return kind if kind not in ("", "patch", "token") else f"{what} {int(row[what])}"
