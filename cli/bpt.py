"""The command `bpt`: parse, call the library, print."""

import importlib.metadata
from typing import Annotated, NoReturn

import typer

from cli._common import run

app = typer.Typer(
    name="bpt",
    help="Prompt tuning of Vision Transformers; this version has the analysis (`burst`) only.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.")
    ] = False,
) -> None:
    number = importlib.metadata.version("attention-burstiness")
    typer.echo(f"bpt {number}" if version else context.get_help())


def main() -> NoReturn:
    """Entry point of the console script."""
    run(app)
