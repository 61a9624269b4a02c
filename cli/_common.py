"""What both commands share: one-line errors, parsing of small things, progress, processes."""

import importlib.metadata
import json
import math
import re
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli._downloads import downloads_shown, note_quiet
from cli._panels import MACHINE, OUTPUT, option

if TYPE_CHECKING:
    import pandas as pd

    from burst.progress import Say

Device = Annotated[str, option("`auto`, `cpu`, `cuda`, `cuda:1` ...", MACHINE)]
Devices = Annotated[str, option("One training at a time on each: auto, or cuda:0,cuda:1.", MACHINE)]
Quiet = Annotated[
    bool,
    option("Print nothing but errors and warnings.", OUTPUT, "--quiet", callback=note_quiet),
]
Json = Annotated[bool, option("Print JSON instead of a table.", OUTPUT, "--json")]
Verbose = Annotated[bool, option("All that is known of each.", OUTPUT, "--verbose")]

INTERRUPTED = 130
USER_ERROR = 2

# typer carries its own copy of click or uses the installed one, depending on its version.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints names as they are: in `hf:llama:` is no picture, in `[1]` no style."""
    return Console(stderr=stderr, markup=False, emoji=False)


def completes() -> bool:
    """Whether a shell can complete what was typed: `burst`, and not `python -m burst`."""
    return Path(sys.argv[0]).name != "__main__.py"


def add_version(app: typer.Typer) -> None:
    """Give a command `--version`, and its help where no subcommand is named."""

    def describe(
        context: typer.Context,
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and exit.")
        ] = False,
    ) -> None:
        if version:
            number = importlib.metadata.version("attention-burstiness")
            typer.echo(f"{app.info.name} {number}")
            raise typer.Exit
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    app.callback(invoke_without_command=True)(describe)


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line, even if at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def check_not_typed(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that would change nothing.

    Raises:
        BurstError: the first that was typed, and `why` not.
    """
    from burst.errors import BurstError

    for name in names:
        if was_typed(context, name):
            raise BurstError(f"--{name.replace('_', '-')} {why}")


def run(app: typer.Typer, arguments: list[str] | None = None) -> NoReturn:
    """Run a command and leave; a wrong option or value is one line on stderr, exit code 2."""
    if isinstance(sys.stdout, TextIOWrapper):  # a file's name need not be text: its bytes go out
        sys.stdout.reconfigure(errors="surrogateescape")
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        _check_none_is_empty(typed)
        code = typer.main.get_command(app).main(typed, standalone_mode=False)
    except UsageError as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else app.info.name
        what = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
        if added := _what_is_missing(error):
            what += f"; add it, as `{path} {added}`"
        elif option := _option_for_images(error):
            what += f"; images are given as `{path} {option}`"
        print(f"error: {what}; see `{path} --help`", file=sys.stderr)  # noqa: T201
        code = USER_ERROR
    except typer.Abort:
        code = INTERRUPTED
    raise SystemExit(code or 0)


def _check_none_is_empty(arguments: list[str]) -> None:
    """Refuse an empty word, as of a variable that is not set: a path would be the working folder.

    Raises:
        UsageError: it names the option.
    """
    for before, word in pairwise(["", *arguments]):
        if not word or re.fullmatch("--[^=]+=", word):
            option = word.rstrip("=") or before
            what = option if option.startswith("-") else "an argument"
            raise UsageError(f"{what} is empty; is a variable not set?")


def _option_for_images(error: Exception) -> str:
    """How to type the one word too many, as of a folder, of a command that measures images."""
    context = getattr(error, "ctx", None)
    given = re.search(r"unexpected extra argument\S* \((\S+)\)", str(error))
    takes_images = context and any("--images" in one.opts for one in context.command.params)
    return f"--images {given[1]}" if given and takes_images else ""


def _what_is_missing(error: Exception) -> str:
    """How to type the parameter that was left out; empty where the error is another."""
    missing = getattr(error, "param", None)
    if missing is None or type(error).__name__ != "MissingParameter":
        return ""
    name = str(missing.name).upper()
    options = [one for one in missing.opts if one.startswith("--")]
    return f"{options[0]} {name}" if options else name


@contextmanager
def reported_errors() -> Iterator[None]:
    """A user's mistake becomes one line on stderr and exit code 2; nothing else is caught.

    What a signal ended ends as shells expect it, 128 + signal; a training says how to go on.
    Of several processes the first prints what all have, see `burst.distributed`; what one has
    alone, before they met, it prints itself.
    """
    from burst.distributed import is_first_process
    from burst.errors import BurstError, one_line

    def tell(line: str, *, alone: bool = False) -> None:
        if alone or is_first_process():
            print(line, file=sys.stderr)  # noqa: T201

    try:
        shown = downloads_shown(plain_console(stderr=True))
        with warnings.catch_warnings(), _terminated_as_interrupted(), shown:
            warnings.showwarning = _one_line_warning
            yield
    except BurstError as error:
        # Of `bpt.Interrupted`, which is no mistake; `burst` does without importing bpt.
        if signum := getattr(error, "signum", None):
            tell(str(error))
            raise SystemExit(128 + signum) from None
        tell(f"error: {one_line(error)}", alone=not error.everywhere)
        raise SystemExit(USER_ERROR) from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # of torch, which help does without
            raise
        from burst.device import out_of_memory

        tell(f"error: {out_of_memory(error)}; --device cpu needs none", alone=True)
        raise SystemExit(USER_ERROR) from None
    except KeyboardInterrupt as error:
        tell("interrupted; nothing was half-written")
        signum = next(iter(error.args), signal.SIGINT)  # Python's own does not say it
        raise SystemExit(128 + signum) from None


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that temporary files go."""

    def interrupt(signum: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(signum)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _one_line_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)  # noqa: T201


def parse_blocks(text: str) -> tuple[int, ...] | None:
    """`all` -> None; `0,3-5` -> (0, 3, 4, 5).

    Raises:
        BurstError: anything else.
    """
    if text == "all":
        return None
    from burst.errors import BurstError

    blocks: list[int] = []
    most = 10_000  # more than any model has, and few enough to be listed
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if (
            not first.isdecimal()
            or (dash and not last.isdecimal())
            or not int(first) <= int(last or first) < most
        ):
            raise BurstError(f"--blocks {text!r} is neither `all` nor a list such as 0,3-5")
        blocks += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(blocks))


def json_rows(table: "pd.DataFrame") -> str:
    """A list of records, floats in full, and null for what is missing or not finite.

    pandas' own JSON rounds to ten decimal places, which is nothing where weights are small.
    """
    finite = table.notna() & ~table.isin([math.inf, -math.inf])
    rows = table.astype(object).where(finite, None).to_dict("records")
    return json.dumps(rows, indent=2, default=lambda value: value.item())


def parse_shrinkage(text: str) -> str | float:
    """A number where it is one; else the name of a way to choose it."""
    try:
        return float(text)
    except ValueError:
        return text


class Steps:
    """Progress over steps: a bar on a terminal, a plain line each tenth of the way elsewhere."""

    def __init__(self, console: Console, what: str, *, quiet: bool = False) -> None:
        self._console, self._what, self._quiet = console, what, quiet
        self._tenth = 0
        self._bar: Progress | None = None

    def __enter__(self) -> "Steps":
        return self

    def _begin(self) -> None:
        """Draw the bar: not before the first step, for weights that come have one of their own."""
        what = TextColumn("{task.description}", markup=False)
        columns = (what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task(self._what, total=None)
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` steps are behind us."""
        if self._bar is None and self._console.is_terminal and not self._quiet:
            self._begin()
        if self._bar:
            self._bar.update(self._task, completed=done, total=total)
        elif not self._quiet and (tenth := 10 * done // total) > self._tenth:
            self._tenth = tenth
            self._console.print(f"{self._what} {done}/{total}", highlight=False)


def said_on_stderr(*, quiet: bool) -> "Say | None":
    """What prints a line on stderr, for the `say` of the libraries; None if quiet."""
    log = plain_console(stderr=True)
    return None if quiet else partial(log.print, highlight=False, soft_wrap=True)


@contextmanager
def training_told(*, quiet: bool) -> Iterator[dict[str, Any]]:
    """`progress` and `say` of trainings, on stderr: a bar on a terminal, and lines unless quiet.

    Raises:
        BurstError: a GPU is full; it says what takes less.
    """
    import torch

    from burst.device import out_of_memory
    from burst.errors import BurstError

    log = plain_console(stderr=True)
    try:
        with Steps(log, "steps", quiet=quiet or not log.is_terminal) as progress:
            yield {"progress": progress, "say": said_on_stderr(quiet=quiet)}
    except torch.OutOfMemoryError as error:
        raise BurstError(
            f"{out_of_memory(error)}; `bpt train` takes less with --accumulation 2 or more, "
            "--checkpoint-activations or --precision bfloat16, and what was saved is there"
        ) from error


def parse_names(text: str) -> list[str]:
    """`linear, vpt` -> ["linear", "vpt"]."""
    return [name.strip() for name in text.split(",")]


def parse_devices(text: str, processes: int | None = None) -> list[str]:
    """`auto` or `cuda:0,cuda:1` -> devices that are there.

    Each of several, or of several `processes` on one, is for a process of its own: this one takes
    no memory of a GPU that is named, nor the whole of one that serves one process only.

    Raises:
        BurstError: one is not, see `burst.choose_device`.
    """
    from burst.device import check_device, choose_device

    names = text.split(",")
    device = choose_device if len(names) == 1 and (processes or 1) == 1 else check_device
    return [str(device(name)) for name in names]


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` -> (0, 1, 2).

    Raises:
        BurstError: anything else.
    """
    from burst.errors import BurstError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise BurstError(f"--seeds {text!r} is no list of whole numbers such as 0,1,2")
    return tuple(int(part) for part in parts)


def parse_numbers(
    text: str | None, option: str, *, example: str = "0.01,0.1"
) -> tuple[float, ...] | None:
    """`0,0.01` -> (0.0, 0.01); None stays None.

    Raises:
        BurstError: anything else; it names the option, and gives the example.
    """
    if text is None:
        return None
    from burst.errors import BurstError

    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        raise BurstError(f"{option} {text!r} is no list of numbers such as {example}")
    return numbers
