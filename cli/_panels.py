"""The panels that options and commands stand in: the same names in every command's help."""

from typing import Any

import typer

DATA, BACKBONE = "Data and images", "Backbone"
MEASURED, WHITENING = "What is measured", "Whitening"
PROMPTS, STEPS = "Prompts and other methods", "Optimisation"
COCO, TRIALS = "Detectors, for coco", "Seeds, trials and cost"
MACHINE, OUTPUT = "Machine", "Output"


def option(text: str, panel: str, *names: str, **more: Any) -> Any:  # noqa: ANN401  as typer.Option
    """An option, its help, and its panel."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)
