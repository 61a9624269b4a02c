"""What the pages of trained classifiers and of trained detectors have in common."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence

import pandas as pd

from burst.errors import EmptyResult
from burst.provenance import provenance
from reports.alike import Trained
from reports.beside import shade
from reports.page import Section, cell


def check_begun(runs: Sequence[Trained]) -> None:
    """Refuse runs of which there is nothing to show.

    Raises:
        EmptyResult: no run, or one that has no epoch behind it.
    """
    if not runs:
        raise EmptyResult("no run to report")
    for run in runs:
        if not run.metrics:
            raise EmptyResult(f"{run.folder} has no epoch behind it yet; go on with --resume")


def show_differences(section: Section, table: pd.DataFrame, caption: str) -> None:
    """A table, with the colour of its size behind each difference in points."""
    rows = []
    for line in table.to_dict("records"):
        row = {str(name): cell(value) for name, value in line.items()}
        shades = {name: shade(line[name]) for name in row if "difference" in name}
        rows.append([one._replace(shade=shades.get(name, "")) for name, one in row.items()])
    section.table([str(name) for name in table.columns], rows, caption)


def how_made(section: Section, runs: Mapping[str, Trained]) -> None:
    """The page's command and versions, and by label how each run was trained, and scored."""
    made = provenance()
    section.code(shlex.join(made["command"]))
    for label, run in runs.items():
        section.heading(label)
        recipe, config, result = run.recipe, run.config, run.result or {}
        backbone, dataset = config["backbone"], config["dataset"]
        defaults = {one.name: one.default for one in dataclasses.fields(recipe)}
        chosen = {
            name: value
            for name, value in recipe.to_dict().items()
            if name != "origins" and value != defaults[name]
        }
        lines = [
            f"Command: {shlex.join(config['command'])}",
            f"Hyper-parameters: {json.dumps(chosen)}",
            f"Weights: {backbone['weights_source']}, SHA-256 {backbone['weights_sha256']}",
            f"Dataset: {dataset['source']}, digest {dataset['digest']}",
            f"Parameters: {config['parameters']}",
        ]
        if "evaluator" in result:
            lines.append(f"Evaluated by {result['evaluator']} on {result['images']:,} images")
        section.items([*lines, *backbone.get("notes", []), *recipe.provenance()])
    section.versions(made["versions"])
