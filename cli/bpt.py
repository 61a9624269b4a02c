"""The command `bpt`: parse, call the library, print."""

from typing import NoReturn

import typer

from cli._common import add_version, run

app = typer.Typer(
    name="bpt",
    help="Prompt tuning of Vision Transformers; this version has the analysis (`burst`) only.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
add_version(app)


def main() -> NoReturn:
    """Entry point of the console script."""
    run(app)
