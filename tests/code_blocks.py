"""Code in Markdown: its blocks, and what stands before them in comments that no reader sees.

<!-- not run: needs a GPU -->          the block below is shown, and not run
<!-- before: model = backbone.model --> what the block is given, run before it
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = re.compile(
    r"(?P<comments>(?:^[ \t]*<!--(?:[^-]|-(?!->))*-->\s*\n)*)"
    r"^(?P<indent>[ \t]*)```[ \t]*(?P<language>[\w-]*)[^\n`]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_COMMENT = re.compile(r"<!--\s*([a-z ]+):\s*(.*?)\s*-->", re.DOTALL)
_SHELL = "", "bash", "sh", "shell", "console"
_LAUNCHERS = re.compile(  # an environment variable, a launcher, a path
    r"^(?:\$ )?(?:[A-Z_]+=\S* )*(?:torchrun (?:--?\S+(?: \d+)? )*?)?"
    r"(?:python -m |-m )?(?:\S+/)?(?=(?:burst|bpt) )"
)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        line: of its first line in the file, counted from 1.
        language: after the backticks, perhaps empty.
        code: without the indent that it has in a list.
        notes: what the comments before it say, by their first words.
    """

    line: int
    language: str
    code: str
    notes: dict[str, str]

    @property
    def is_shell(self) -> bool:
        """Whether it holds commands."""
        return self.language in _SHELL


def blocks(markdown: str) -> list[Block]:
    """The blocks of a page, in order."""
    return [
        Block(
            line=markdown[: found.start("code")].count("\n") + 1,
            language=found["language"],
            code=re.sub(f"^{found['indent']}", "", found["code"], flags=re.MULTILINE),
            notes=dict(_COMMENT.findall(found["comments"])),
        )
        for found in _BLOCK.finditer(markdown)
    ]


def command_lines(shell: str) -> Iterator[list[str]]:
    """Words of each line that runs `burst` or `bpt`, however it is launched; comments are gone."""
    for line in re.sub(r"\\\n", " ", shell).splitlines():
        for command in re.split(r"\s(?:&&|\|\||[|;])\s", line.strip()):
            if found := _LAUNCHERS.match(command):
                yield shlex.split(command[found.end() :], comments=True)


def commands_in_text(markdown: str) -> Iterator[list[str]]:
    """Words of each command that stands in the text, in backticks."""
    text = _BLOCK.sub("", markdown)
    for code in re.findall(r"(?<!`)`((?:burst|bpt) [a-z][^`]*)`(?!`)", text):
        yield shlex.split(" ".join(code.split()))
