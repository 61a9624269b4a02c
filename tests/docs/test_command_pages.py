"""The pages of the commands say what the programs say."""

import enum
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer

import cli.bpt
import cli.burst
from tools.docs.commands import command_page, inline


class Shape(enum.Enum):
    ROUND = "round"
    SQUARE = "square"


@pytest.fixture
def app():
    app = typer.Typer(name="tool", help="What it is for.")

    @app.callback()
    def main() -> None:
        """Nothing."""

    @app.command()
    def draw(
        photo: Annotated[list[Path], typer.Argument(help="What to draw.")],
        out: Annotated[Path, typer.Option(help="Where | to.")],
        size: Annotated[
            int, typer.Option(min=1, max=9, help="In <cm>.", rich_help_panel="Big")
        ] = 3,
        shape: Annotated[Shape, typer.Option(help="Of `W_q`, or *.")] = Shape.ROUND,
        kind: Annotated[Literal["a", "b"] | None, typer.Option(rich_help_panel="Big")] = None,
        fast: Annotated[bool, typer.Option("--fast/--slow", help="Soon.")] = True,
        names: Annotated[list[str], typer.Option("--name", "-n")] = ["x", "z"],  # noqa: B006
        secret: Annotated[str, typer.Option(hidden=True)] = "",
    ) -> None:
        """Draw a photograph.

        In any size.
        """

    return app


def test_a_page_has_usage_help_and_a_table_for_each_group(app):
    page = command_page(app)
    assert "## tool draw\n\n```text\ntool draw PHOTO... --out ... [OPTIONS]\n```" in page
    assert "Draw a photograph.\n\nIn any size." in page
    rows = re.findall(r"^\| (<code>.*) \|$", page, re.MULTILINE)
    assert rows == [
        "<code>PHOTO</code> | path, repeatable | What to draw.",
        "<code>--out</code> | path | required | Where &#124; to.",
        "<code>--shape</code> | <code>round</code>, <code>square</code> | <code>round</code> "
        "| Of <code>W&#95;q</code>, or &#42;.",
        "<code>--fast</code> <code>--slow</code> | flag |  | Soon.",
        "<code>--name</code> <code>-n</code> | text, repeatable | <code>x</code>, <code>z</code> "
        "| ",
        "<code>--size</code> | integer, 1 to 9 | <code>3</code> | In &lt;cm&gt;.",
        "<code>--kind</code> | <code>a</code>, <code>b</code> |  | ",
    ]
    assert re.findall(r'<p class="panel">(.*)</p>', page) == ["Options", "Big"]


def test_what_a_program_says_is_shown_as_it_is():
    assert inline("<b> `a_b` $X") == "&lt;b&gt; <code>a&#95;b</code> &#36;X"


@pytest.mark.parametrize("app", [cli.burst.app, cli.bpt.app], ids=["burst", "bpt"])
def test_every_command_and_option_of_the_programs_is_on_their_page(app):
    page = command_page(app)
    command = typer.main.get_command(app)
    for name, one in command.commands.items():
        section = page.split(f"## {app.info.name} {name}\n")[1].split("\n## ")[0]
        options = [option for option in one.params if option.param_type_name == "option"]
        for option in options:
            assert option.hidden or f"<code>{option.opts[0]}</code>" in section, (name, option)
