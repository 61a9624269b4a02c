"""SIGINT and SIGTERM are noted, so that a step can end before the training does."""

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from burst.distributed import highest
from burst.provenance import command_line

WATCHED = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT and SIGTERM are; outside the main thread Python allows no handlers."""
    main = threading.current_thread() is threading.main_thread()
    before = {one: signal.signal(one, handler) for one in WATCHED if main}
    try:
        yield
    finally:
        for one, was in before.items():
            signal.signal(one, was)


class Signals:
    """While entered, the first signal is noted; a second one of its kind interrupts at once.

    Ctrl-C reaches every process of a terminal, and the one that started the others then sends them
    SIGTERM: together that is one wish to end.

    Outside the main thread Python allows no handlers, and nothing is noted.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "Signals":
        self._handled = handled_by(self._note)
        self._handled.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handled.__exit__(None, None, None)

    def _note(self, signum: int, _: FrameType | None) -> None:
        if signum == self.received:
            raise KeyboardInterrupt(signum)
        self.received = self.received or signum

    def agreed(self, otherwise: int = 0) -> int | None:
        """The signal that any process has noted: all leave after the same step.

        If none has, the highest number that one brings `otherwise`, which is below all signals'.
        """
        return highest(self.received or otherwise) or None


def resume_command() -> str:
    """How to go on with a training: what was typed, with --resume; or what to call."""
    if typed := _typed():
        return typed + ("" if "--resume" in sys.argv else " --resume")
    return "call the same function again with resume=True"


def this_command() -> str:
    """How to go on with what needs no word for it: what was typed, or what to call."""
    return _typed() or "call the same function again"


def _typed() -> str | None:
    """What was typed to start this process, if that was `bpt`."""
    started = command_line()
    is_ours = started[0] == "bpt" or started[:3] == ["python", "-m", "bpt"]
    return shlex.join(started) if is_ours else None
