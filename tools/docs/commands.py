"""Pages of the command lines, from the programs themselves: usage, help, tables of options."""

import enum
import html
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

# Whatever Markdown would read as more than a letter, of what `html.escape` leaves as it is.
_SPECIAL = str.maketrans({one: f"&#{ord(one)};" for one in "*_[]|\\~^$#!{}"})
_PLAIN_PANEL = "Options"
_TYPES = {bool: "flag", int: "integer", float: "number", str: "text", Path: "path"}


def command_page(app: typer.Typer) -> str:
    """A page in Markdown: a section a command, a table a group of options."""
    program = typer.main.get_command(app)
    context = program.context_class(program, info_name=program.name)
    lines = [f"# {program.name}", inline(program.help or ""), *_options(program)]
    for name in program.list_commands(context):  # type: ignore[attr-defined]
        command = program.get_command(context, name)  # type: ignore[attr-defined]
        if not command.hidden:
            lines += _section(command, command.context_class(command, context, name))
    return "\n\n".join(lines) + "\n"


def inline(text: str) -> str:
    """A program's text as Markdown that shows it as it is; what stands in backticks is code."""
    parts = re.split(r"`([^`]*)`", text)
    pieces = [html.escape(one, quote=False).translate(_SPECIAL) for one in parts]
    pieces[1::2] = [f"<code>{one}</code>" for one in pieces[1::2]]
    return "".join(pieces)


def _section(command: Any, context: Any) -> Iterator[str]:
    yield f"## {context.command_path}"
    yield f"```text\n{' '.join([context.command_path, *_usage(command)])}\n```"
    for paragraph in re.split(r"\n\s*\n", command.help or ""):
        yield inline(" ".join(paragraph.split()))
    yield from _arguments(command)
    yield from _options(command)


def _usage(command: Any) -> Iterator[str]:
    for one in command.params:
        if one.param_type_name == "argument":
            name = one.name.upper() + ("..." if one.nargs != 1 else "")
            yield name if one.required else f"[{name}]"
    required = [one for one in command.params if one.param_type_name == "option" and one.required]
    yield from (f"{one.opts[0]} ..." for one in required)
    yield "[OPTIONS]"


def _arguments(command: Any) -> Iterator[str]:
    types = _types(command)
    found = [one for one in command.params if one.param_type_name == "argument" and not one.hidden]
    rows = [(code(one.name.upper()), types[one.name], _text(one)) for one in found]
    if rows:
        yield _table(("argument", "type", "meaning"), rows)


def _options(command: Any) -> Iterator[str]:
    """A table a panel, in the order of the help; `--help`, which all have, is left out."""
    types = _types(command)
    panels: dict[str, list[tuple[str, ...]]] = {}
    for one in command.params:
        if one.param_type_name == "option" and one.name in types and not one.hidden:
            panel = getattr(one, "rich_help_panel", None) or _PLAIN_PANEL
            row = _names(one), types[one.name], _default(one), _text(one)
            panels.setdefault(panel, []).append(row)
    for panel, rows in panels.items():
        yield f'<p class="panel">{inline(panel)}</p>'
        yield _table(("option", "type", "default", "meaning"), rows)


def _names(option: Any) -> str:
    return " ".join(code(name) for name in [*option.opts, *option.secondary_opts])


def _types(command: Any) -> dict[str, str]:
    """What each parameter's value looks like, from the annotations of the command's function.

    Typer's own description of types changes from version to version.
    """
    hints = typing.get_type_hints(command.callback, include_extras=True)
    return {name: _type(hint) for name, hint in hints.items() if name != "return"}


def _type(hint: Any) -> str:
    info: Any = None
    several = False
    while inner := typing.get_args(hint):
        if typing.get_origin(hint) is typing.Annotated:
            hint, info = inner[:2]
        elif typing.get_origin(hint) is typing.Literal:
            return ", ".join(code(str(one)) for one in inner)
        else:  # X | None, list[X], tuple[X, X]
            several |= typing.get_origin(hint) in (list, tuple)
            hint = inner[0]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ", ".join(code(str(one.value)) for one in hint)
    words = [_TYPES.get(hint, getattr(hint, "__name__", str(hint))), _bounds(info)]
    return ", ".join([word for word in words if word] + ["repeatable"] * several)


def _bounds(info: Any) -> str:
    low, high = getattr(info, "min", None), getattr(info, "max", None)
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"at least {low}" if low is not None else f"at most {high}" if high is not None else ""


def _default(option: Any) -> str:
    if option.required:
        return "required"
    value = option.default() if callable(option.default) else option.default
    values = value if isinstance(value, list | tuple) else [value]
    given = [getattr(one, "value", one) for one in values]  # of an Enum
    return ", ".join(code(str(one)) for one in given if one not in (None, "", True, False))


def _text(parameter: Any) -> str:
    return inline(" ".join((parameter.help or "").split()))


def code(text: str) -> str:
    """Text in a fixed-width face, on one line."""
    return f"<code>{html.escape(text, quote=False).translate(_SPECIAL)}</code>"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    rule = "|".join("---" for _ in head)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, (rule,), *rows])
