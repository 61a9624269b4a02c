"""An extension of griffe, which reads the docstrings: "low, high: of the interval" is two names."""

import re
from collections.abc import Iterator
from typing import Any

import griffe

_SECTION = re.compile(r"(?:Args|Attributes|Raises):$")
_GROUP = re.compile(r"    (\w+(?:, \w+)+): ")


def one_name_a_line(docstring: str) -> str:
    """Entries that explain several names at once, once for each name; all else as it was."""
    return "\n".join(_lines(docstring.split("\n")))


def _lines(lines: list[str]) -> Iterator[str]:
    inside = False
    at = 0
    while at < len(lines):
        inside = bool(_SECTION.match(lines[at])) or (inside and lines[at][:1] in ("", " "))
        end = at + 1
        found = _GROUP.match(lines[at]) if inside else None
        if found is None:
            yield lines[at]
        else:
            while end < len(lines) and lines[end].startswith("     "):
                end += 1
            for name in found[1].split(", "):
                yield f"    {name}: {lines[at][found.end() :]}"
                yield from lines[at + 1 : end]
        at = end


class OneNameALine(griffe.Extension):
    """Has griffe see every name that a docstring explains."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Called for each module, class, function and attribute as it is read."""
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = one_name_a_line(obj.docstring.value)
