"""What a survey's numbers say, in plain sentences; every number in them is computed."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from bpt.construction import is_trainable
from burst.backbone_spec import known_backbone
from burst.errors import EmptyResult
from burst.images import SAMPLE
from burst.loading.common import CODE, RANDOM
from burst.survey import Survey
from reports.depth import MEASURES, whole_blocks
from reports.style import percent, quantity_style
from reports.tables import named_backbone
from reports.where import PEAKED_KURTOSIS, diagonal_is_enough

_BY_COLUMN = {one.column: one for one in MEASURES}
LAPLACIAN_KURTOSIS = _BY_COLUMN["excess_kurtosis"].laplacian
GAUSSIAN_ENERGY = _BY_COLUMN["top1_energy"].gaussian
SPOKEN = {
    name: f"{noun} {quantity_style(name).plain}"
    for name, noun in {
        "qk": "the weights' product",
        "x": "the tokens",
        "qkx": "the response",
        "logits": "the",
    }.items()
}


@dataclass(frozen=True)
class Finding:
    """What is said of one backbone.

    Attributes:
        model: its name.
        headline: whether it is bursty, in one sentence.
        burstiest: its burstiest block, in short; empty where nothing varies.
        laws: the law that each quantity follows, a sentence each.
        advice: what to do next.
        commands: to do it with; none for a model that no prompts can be put on, or that no name
            of a command's stands for.
    """

    model: str
    headline: str
    burstiest: str
    laws: tuple[str, ...]
    advice: str
    commands: tuple[str, ...]


def findings(
    table: pd.DataFrame, records: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Finding]:
    """One `Finding` a backbone.

    A block is called bursty if its response has an excess kurtosis above 3, which is that of a
    Laplacian; peaked above 1; close to Gaussian within 1 of 0.

    Args:
        table: rows of surveys; those of whole blocks count.
        records: of each backbone its `Survey.record`. With them the commands are of the weights,
            images and tokens that were measured; without, of the defaults.

    Raises:
        EmptyResult: neither response, nor tokens, nor weights of a backbone were measured.
    """
    whole = whole_blocks(table)
    return [
        _finding(str(model), part, (records or {}).get(str(model), {}))
        for model, part in whole.groupby("model", sort=False)
    ]


def comparison(table: pd.DataFrame) -> list[str]:
    """How backbones, and so their pretrainings, differ; nothing for one backbone."""
    whole = whole_blocks(table)
    if whole["model"].nunique() < 2:
        return []
    sentences = []
    for quantity, name in SPOKEN.items():
        part = whole[whole["quantity"] == quantity]
        if part.empty:
            continue
        kinds = dict(zip(part["model"], part["pretraining"], strict=True))
        medians = part.groupby("model", sort=False)["excess_kurtosis"].median()
        ordered = medians.sort_values(ascending=False)
        listed = ", ".join(
            f"{named_backbone(str(one), kinds[one])} {value:.2f}" for one, value in ordered.items()
        )
        first, last = (str(ordered.index[end]) for end in (0, -1))
        alike = f"{ordered.iloc[0]:.2f}" == f"{ordered.iloc[-1]:.2f}"
        verdict = "they are alike" if alike else _compared(part, first, last)
        sentences.append(f"Median excess kurtosis over the blocks of {name}: {listed}; {verdict}.")
    return sentences


def _compared(part: pd.DataFrame, first: str, last: str) -> str:
    """Who has the heaviest tails, and in how many of the blocks that both have that is sure."""
    verdict = f"it is heaviest-tailed in {first} and least so in {last}"
    if "excess_kurtosis_low" not in part:
        return verdict
    one, other = (part[part["model"] == model].set_index("block") for model in (first, last))
    apart = (one["excess_kurtosis_low"] - other["excess_kurtosis_high"]).dropna()
    if apart.empty:
        return verdict
    return (
        f"{verdict}, with the whole 95 % interval above that of {last} in "
        f"{int((apart > 0).sum())} of {len(apart)} blocks"
    )


def caveats(*surveys: Survey) -> list[str]:
    """What a reader must know of the images before the numbers are believed, each thing once."""
    if all((one.record["images"] or {}).get("source") != SAMPLE for one in surveys):
        return []
    return [
        "The images are crops of two photographs, so intervals say how crops differ, not how "
        "photographs do: give --images for numbers to rely on."
    ]


def law_in_words(kurtosis: float, shape: float) -> str:
    """The family that a fitted generalised Gaussian's shape stands for, in words.

    "does not vary" without a kurtosis, and "none" where no shape fits.
    """
    if not math.isfinite(kurtosis):
        return "does not vary"
    if not math.isfinite(shape):
        return "none"
    bounds = (
        (0.85, "hyper-Laplacian"),
        (1.2, "Laplacian"),
        (1.7, "between Laplacian and Gaussian"),
        (2.4, "Gaussian"),
    )
    for bound, name in bounds:
        if shape < bound:
            return name
    return "lighter-tailed than a Gaussian"


def _finding(model: str, part: pd.DataFrame, record: Mapping[str, Any]) -> Finding:
    spoken_of = (name for name in ("qkx", "qk", "x") if name in set(part["quantity"]))
    quantity = next(spoken_of, None)
    if quantity is None:
        raise EmptyResult(f"{model}: none of qk, x and qkx was measured, of which a report speaks")
    every = part[part["quantity"] == quantity]
    rows = every.dropna(subset=["excess_kurtosis"])
    if rows.empty:
        return Finding(model, f"{model}: nothing in it varies.", "", (), "", ())
    bursty = rows[rows["excess_kurtosis"] > LAPLACIAN_KURTOSIS]
    peaked = rows[rows["excess_kurtosis"] > PEAKED_KURTOSIS]
    worst = rows.iloc[int(rows["excess_kurtosis"].argmax())]
    headline = _headline(model, every, bursty, peaked)
    scales = len(peaked) > 0 and diagonal_is_enough(part)
    advice = _advice(bursty, peaked, scales=scales)
    commands = _commands(model, record, scales=scales)
    return Finding(model, headline, _worst_block(worst), tuple(_laws(part)), advice, commands)


def _headline(model: str, every: pd.DataFrame, bursty: pd.DataFrame, peaked: pd.DataFrame) -> str:
    left = every[every["excess_kurtosis"].isna()]
    among = f"{len(every) - len(left)} blocks{' that vary' if len(left) else ''}"
    light = every[every["excess_kurtosis"] < -PEAKED_KURTOSIS]
    if len(bursty):
        said = (
            f"{model} is bursty: in {len(bursty)} of {among} ({_numbers(bursty)}) a few "
            "scores are far larger than the rest, with heavier tails than a Laplacian"
            f"{_sure(bursty, beyond=LAPLACIAN_KURTOSIS)}."
        )
    elif len(peaked):
        said = (
            f"{model} is mildly bursty: no block's response is heavier-tailed than a Laplacian, "
            f"but in {len(peaked)} of {among} ({_numbers(peaked)}) it is than a Gaussian, by "
            f"an excess kurtosis above {PEAKED_KURTOSIS:g}{_sure(peaked, beyond=PEAKED_KURTOSIS)}."
        )
    elif len(light):
        said = (
            f"{model} is not bursty: in {len(light)} of {among} ({_numbers(light)}) the "
            "response is lighter-tailed than a Gaussian, in no other heavier"
            f"{_sure(light, beyond=-PEAKED_KURTOSIS)}."
        )
    else:
        said = f"{model} is not bursty: in all {among} the response is close to Gaussian."
    others = f" In the other blocks ({_numbers(left)}) no finite value varies."
    return said + others if len(left) else said


def _sure(rows: pd.DataFrame, *, beyond: float) -> str:
    """In how many of these blocks all of the interval is beyond a bound; nothing without any."""
    end = f"excess_kurtosis_{'low' if beyond > 0 else 'high'}"
    if end not in rows or rows[end].isna().all():
        return ""
    sure = rows[rows[end] > beyond] if beyond > 0 else rows[rows[end] < beyond]
    if len(rows) == 1:
        return f", {'sure by' if len(sure) else 'but not by'} all of its 95 % interval"
    if 0 < len(sure) < len(rows):
        how_many = f"{len(sure)} of these ({_numbers(sure)})"
    else:
        how_many = f"{'all' if len(sure) else 'none'} of these"
    return f"; in {how_many} the whole 95 % interval is on that side"


def _worst_block(row: pd.Series) -> str:
    times = row["top1_energy"] / GAUSSIAN_ENERGY
    return (
        f"Where: most in block {int(row['block'])}. Its largest 1 % of entries hold "
        f"{percent(row['top1_energy'], 0)} of the energy, {times:.1f} times as much as in a "
        f"Gaussian; excess kurtosis {row['excess_kurtosis']:.1f} (Gaussian 0, Laplacian 3)."
    )


def _laws(part: pd.DataFrame) -> list[str]:
    """Per quantity, how many blocks follow which law."""
    sentences = []
    for quantity, name in SPOKEN.items():
        rows = part[part["quantity"] == quantity]
        if rows.empty:
            continue
        laws = [
            law_in_words(kurtosis, shape)
            for kurtosis, shape in zip(rows["excess_kurtosis"], rows["ggd_shape"], strict=True)
        ]
        counted = pd.Series(laws).value_counts()
        listed = ", ".join(f"{law} in {count}" for law, count in counted.items())
        closer = int((rows["ks_laplace"] < rows["ks_gaussian"]).sum())
        sentences.append(
            f"Fitted shape of {name}: {listed} of {len(rows)} blocks. The best Laplacian is closer "
            f"than the best Gaussian in {closer}."
        )
    return sentences


def _advice(bursty: pd.DataFrame, peaked: pd.DataFrame, *, scales: bool) -> str:
    if len(bursty):
        what = "try whitened or bilinear prompts, for plain ones meet very uneven values here."
    elif len(peaked):
        what = "there is a little for a whitening to mend; whether prompts gain must be tried."
    else:
        what = "there is little for a whitening to mend; plain prompts are the baseline to beat."
    if scales:
        what += " Begin with the diagonal whitening, one number a dimension: a full one has to be "
        what += "better."
    return f"What to do: {what}"


def _commands(model: str, record: Mapping[str, Any], *, scales: bool) -> tuple[str, ...]:
    spec, images = known_backbone(model), record.get("images") or {}
    if not is_trainable(model) or not (spec or ":" in model):  # such as a module of one's own
        return ()
    weights, size = record.get("weights"), images.get("image_size")
    given = weights and (weights == RANDOM or Path(weights).is_file())
    own_size = size == spec.image_size if spec else model.startswith(CODE)
    options = {"--model": model, "--weights": weights if given else None}
    options["--image-size"] = None if own_size else size
    backbone = _words(options)
    dataset = shlex.quote(images["source"]) if "split" in images else "DATASET"
    train = f"bpt train {dataset} {backbone} --method"
    whiten = f"burst whiten {backbone}{_of_the_same(record)}"
    return (
        *(
            [f"{whiten} --method diagonal --out V.pt", f"{train} bpt-fwhiten --whitening V.pt"]
            if scales
            else []
        ),
        f"{whiten} --out W.pt",
        f"{train} bpt-fwhiten --whitening W.pt",
        f"{train} bpt-bilinear",
        f"{train} vpt",
    )


def _of_the_same(record: Mapping[str, Any]) -> str:
    """The options of images, tokens and convention that a survey did not leave as they are."""
    images, measured = record.get("images") or {}, record.get("options") or {}
    usual: dict[str, Any] = {"--images": SAMPLE, "--num-images": 100, "--seed": 0}
    usual |= {"--convention": "paper", "--tokens": "all"}
    given = {name: measured.get(name[2:]) for name in ("--convention", "--tokens")}
    if "image_size" in images:  # and not sequences of a text
        count = images["count"] + len(images["bad"])
        given |= {"--images": images["source"], "--num-images": count, "--seed": images["seed"]}
    others = {name: value for name, value in given.items() if value not in (None, usual[name])}
    words = " ".join(filter(None, [_words(others), "--skip-bad" if images.get("bad") else ""]))
    return f" {words}" if words else ""


def _words(options: Mapping[str, object]) -> str:
    """As a shell takes them; those that are None are left out."""
    known = ((name, str(value)) for name, value in options.items() if value is not None)
    return shlex.join(chain.from_iterable(known))


def _numbers(rows: pd.DataFrame) -> str:
    return ", ".join(str(int(block)) for block in sorted(rows["block"]))
