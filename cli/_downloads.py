"""Downloads of weights on a terminal: a line and a bar on stderr, and nothing with --quiet."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

_quiet: list[bool] = []  # whether the command that runs was told to print nothing


def note_quiet(context: typer.Context, quiet: bool) -> bool:
    """Callback of `--quiet`: as long as its command runs, downloads are silent."""
    if quiet:
        _quiet.append(True)
        context.call_on_close(_quiet.clear)
    return quiet


@contextmanager
def downloads_shown(console: Console) -> Iterator[None]:
    """Say what comes, how much and where to, and draw a bar if this is a terminal."""
    from burst.distributed import is_first_process
    from burst.downloads import downloads_told

    bar = _Bar(console)
    silent = bool(_quiet) or not is_first_process()
    try:
        with downloads_told(
            (lambda _: None) if silent else bar.say, (lambda *_: None) if silent else bar
        ):
            yield
    finally:
        bar.stop()


class _Bar:
    """One bar at a time, in the place of no other: `Steps` begin when the weights are there."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None

    def say(self, line: str) -> None:
        """Print a line, and let the next file have a bar of its own."""
        self.stop()
        self._console.print(line, highlight=False, soft_wrap=True)

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` bytes have come."""
        if not self._console.is_terminal:
            return
        if self._bar is None:
            columns = (BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total or None)
        if done == total:
            self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()
            self._bar = None
