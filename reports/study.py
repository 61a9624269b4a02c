"""A table of the paper -> the trainings that it takes, and our numbers beside it."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from bpt import DetectionRecipe, Recipe, make_recipe, study_search
from bpt.dataset import without_place
from bpt.published import SIZES
from bpt.recipe import PROTOCOLS
from burst.backbone_spec import known_backbone
from burst.errors import UnknownName, check_known
from reports.paper_tables import markdown, save_paper_table
from reports.plan import Planned, cost_table, planned
from reports.published import (
    METRICS,
    asked_of,
    of_other_weights,
    protocol_of,
    published_numbers,
    settings,
)

PUBLISHED = "published"  # each number's own protocol
WORDS = ("dataset", "backbone", "method", "setting", "metric")
# Said to differ where they were overridden.
SHOWN = ("epochs", "schedule", "batch_size", "train_fraction", "image_size", "channels")


@dataclass(frozen=True)
class StudyCell:
    """A number of the paper, and how to come to it.

    Attributes:
        study: the table.
        dataset, backbone, method, setting: as the table says.
        metric: "top1", or of a detector "box_ap" and the like.
        value: in percent.
        recipe: its training.
        differs: what of the table was overridden, such as "dataset".
    """

    study: str
    dataset: str
    backbone: str
    method: str
    setting: str
    metric: str
    value: float
    recipe: Recipe | DetectionRecipe
    differs: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the folder of its runs: the same for two numbers of one training."""
        recipe = self.recipe
        dataset = re.sub(r"[^\w.-]+", "-", without_place(recipe.dataset))
        parts = [dataset, recipe.model, self.method]
        asked = settings(self.setting)
        parts += [
            f"{'' if key == 'detector' else key}{getattr(recipe, key)}".replace(":", "")
            for key in asked
            if key != "epochs" or "epochs" not in self.differs
        ]
        return "-".join(parts)


def study_cells(
    study: str,
    *,
    only: Sequence[str] = (),
    **overrides: Any,  # noqa: ANN401
) -> list[StudyCell]:
    """The cells of a table of the paper.

    Args:
        study: one of `STUDIES`.
        only: those alone whose `StudyCell.name` is one of these, or of a pattern such as `cub-*`;
            all of them if empty.
        **overrides: hyper-parameters that replace the table's: a miniature takes another dataset,
            backbone and number of epochs. Numbers of the table that then have the same training
            are left out, but for the first, by whose protocol it is done. A `protocol` of
            "published" is each number's own.

    Raises:
        UnknownName: no such table, no such protocol, or no run of a name.
        BurstError: see `recipe_for`.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    check_known("protocol", given.get("protocol", PUBLISHED), (*PROTOCOLS, PUBLISHED))
    cells: list[StudyCell] = []
    seen: set[str] = set()
    for row in published_numbers(study).to_dict("records"):
        cell = _cell(study, {str(name): value for name, value in row.items()}, given)
        key = f"{cell.name} {cell.metric}"
        if key not in seen:
            seen.add(key)
            cells.append(cell)
    return _named(cells, only) if only else cells


def _named(cells: Sequence[StudyCell], patterns: Sequence[str]) -> list[StudyCell]:
    """Those whose names fit one of the patterns, each of which has to fit one."""
    names = {cell.name for cell in cells}
    found = {pattern: fnmatch.filter(names, pattern) for pattern in patterns}
    for pattern, fitting in found.items():
        if not fitting:
            raise UnknownName("run", pattern, names)
    chosen = set(chain.from_iterable(found.values()))
    return [cell for cell in cells if cell.name in chosen]


def study_recipes(cells: Sequence[StudyCell]) -> dict[str, Recipe | DetectionRecipe]:
    """What `bpt.run_study` takes."""
    return {cell.name: cell.recipe for cell in cells}


def plan_table(cells: Sequence[StudyCell], seeds: Sequence[int], *, search: bool = False) -> Table:
    """What a study would run with all seeds, with its estimated cost, for a terminal.

    Args:
        cells: from `study_cells`.
        seeds, search: as for `bpt.run_study`; a search costs the most that it can.

    Raises:
        BurstError: one's own images cannot be opened; or a placement does not fit a backbone.
    """
    table = cost_table(("run", "placement"), ("epochs",))
    plans: list[Planned] = []
    names: set[str] = set()
    for cell in cells:
        if cell.name in names:  # another number of the same training
            continue
        names.add(cell.name)
        recipe = cell.recipe
        place = recipe.placement if recipe.prompted else ""
        one = planned(recipe, study_search(recipe, seeds) if search else None, len(seeds))
        plans.append(one)
        table.add_row(cell.name, place, str(recipe.total_epochs), one.trainings, *one.figures)
    known = [(one.times, one.cost) for one in plans if one.cost]
    unknown = len(plans) - len(known)
    seen = f"{sum(times * cost.images for times, cost in known):,}"
    seen += f" + {unknown} unknown" if unknown else ""
    operations = sum(times * cost.operations for times, cost in known) / 1e15
    hours = sum(times * cost.hours for times, cost in known)
    table.add_row("all", "", "", "", seen, f"{operations:,.2f}", f"{hours:,.2f}")
    return table


def study_frame(
    cells: Sequence[StudyCell], results: Mapping[str, dict[str, Any] | str]
) -> pd.DataFrame:
    """Our numbers beside the published ones: a row a cell.

    Columns: study, dataset, backbone, method, setting, metric, published, ours and std (percent;
    mean and sample deviation over seeds), seeds, difference (ours - published, points), differs
    (what of the table was overridden; protocol, normalisation or weights, where the published
    number has others; rates that were searched), run, note (why there is no number).

    Args:
        cells: from `study_cells`.
        results: what `bpt.run_study` returned.
    """
    return pd.DataFrame([_row(cell, results) for cell in cells])


def study_markdown(frame: pd.DataFrame) -> str:
    """The table of `study_frame`, for a document."""
    return markdown(_printed(frame))


def save_study(frame: pd.DataFrame, out: Path, study: str) -> list[Path]:
    """Write OUT/STUDY.csv, and for a document OUT/STUDY.md and OUT/STUDY.tex, each whole or not.

    Returns:
        The files.

    Raises:
        OutputError: they cannot be written.
    """
    about = f"{study} of the paper, and our numbers beside it"
    return save_paper_table(frame, out / study, about, printed=_printed(frame))


def _printed(frame: pd.DataFrame) -> pd.DataFrame:
    """With spread or note beside our number, for a document."""
    table = frame[[*WORDS, "published"]].copy()
    table["ours"] = [_ours(line) for line in frame.to_dict("records")]
    return table.assign(difference=frame["difference"], differs_by=frame["differs"])


def _ours(line: Mapping[Any, Any]) -> str:
    if line["note"]:
        return str(line["note"])
    return f"{line['ours']:.2f}" + (f" ± {line['std']:.2f}" if line["seeds"] > 1 else "")


def study_table(frame: pd.DataFrame) -> Table:
    """The same for a terminal; what all differ by is said once, below."""
    shared = frame["differs"].nunique() == 1
    common = frame["differs"].iloc[0] if shared else ""
    caption = f"all differ by {common}" if common else None
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    columns = [*WORDS, "published", "ours", "difference"]
    for name in columns if shared else [*columns, "differs by"]:
        number = name in ("published", "difference")
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for line in frame.to_dict("records"):
        row = [line[name] for name in WORDS]
        row += [
            f"{line['published']:.2f}",
            _ours(line),
            f"{line['difference']:+.2f}" if line["note"] == "" else "",
        ]
        table.add_row(*row, *([] if shared else [line["differs"]]))
    return table


def _cell(study: str, row: Mapping[str, Any], given: Mapping[str, Any]) -> StudyCell:
    asked = asked_of(row)
    words = (study, row["dataset"], asked["model"], row["method"], row["setting"], row["metric"])
    recipe = make_recipe(**asked)
    if given.get("protocol") == PUBLISHED:
        own = {"protocol": protocol_of(row)} if isinstance(recipe, Recipe) else {}
        given = {name: value for name, value in given.items() if name != "protocol"} | own
    differs = tuple(
        name
        for name, value in given.items()
        if name in (*asked, *SHOWN) and value != getattr(recipe, name, None)
    )
    if "dataset" in differs:  # of one's own images nothing was published: the prompt stays
        asked = {name: getattr(recipe, name) for name in SIZES if name in recipe.origins} | asked
    if given:
        recipe = make_recipe(**asked | dict(given))
    return StudyCell(*words, float(row["value"]), recipe, differs)


def _unasked(cell: StudyCell, recipe: Recipe | DetectionRecipe) -> list[str]:
    """What our defaults do otherwise than the published number, and weights that were given."""
    row = {"table": cell.study, "dataset": cell.dataset, "method": cell.method}
    differs = []
    if isinstance(recipe, Recipe) and recipe.protocol != protocol_of(row):
        differs.append("protocol")
    if isinstance(recipe, Recipe) and recipe.normalisation != "reference":
        spec = known_backbone(recipe.model)  # for other backbones than these the two are the same
        differs += ["normalisation"] if spec and spec.pretraining == "supervised" else []
    of_vpt = of_other_weights(row)
    if recipe.weights and (not of_vpt or recipe.weights == "random"):
        differs.append(f"weights {Path(recipe.weights).name}")  # only a reader can judge which
    elif of_vpt and not recipe.weights and "model" not in cell.differs:
        differs.append("weights")
    return differs


def _row(cell: StudyCell, results: Mapping[str, dict[str, Any] | str]) -> dict[str, Any]:
    line: dict[str, Any] = {
        "study": cell.study,
        "dataset": cell.dataset,
        "backbone": cell.backbone,
        "method": cell.method,
        "setting": cell.setting,
        "metric": cell.metric,
        "published": cell.value,
        "ours": nan,
        "std": nan,
        "seeds": 0,
        "difference": nan,
        "differs": ", ".join([*cell.differs, *_unasked(cell, cell.recipe)]),
        "run": cell.name,
    }
    outcome = results.get(cell.name, "not run")
    if isinstance(outcome, str):
        return line | {"note": outcome}
    if found := outcome.get("searched"):
        rates = f"rates searched (lr {found['lr']:g}, weight decay {found['weight_decay']:g})"
        images = "trained on train and val" if found["protocol"] == "last" else ""
        line |= {"differs": ", ".join(filter(None, [line["differs"], images, rates]))}
    number = outcome.get(METRICS[cell.metric])
    if number is None:
        return line | {"note": "nothing of it to score"}
    return line | {
        "ours": number["mean"],
        "std": number["std"] if number["std"] is not None else nan,
        "seeds": len(outcome["seeds"]),
        "difference": number["mean"] - cell.value,
        "note": "",
    }
