"""Downloads of weights tell what comes, how much of it and where it is kept, where one listens."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from burst.progress import Progress, Say

SMALL = 1 << 20  # bytes; of what is smaller, such as a configuration, nothing is told


@dataclass(frozen=True)
class Listener:
    """Who is told of downloads.

    Attributes:
        say: called with a line before a file comes.
        progress: called as progress(bytes done, bytes in all) while it comes; 0 in all where the
            server does not say how many. Called with both alike at its end.
    """

    say: Say
    progress: Progress


_listening: list[Listener] = []  # one for the whole process: threads and libraries download


@contextmanager
def downloads_told(say: Say, progress: Progress) -> Iterator[None]:
    """Let every download of weights while the block runs tell of itself.

    Args:
        say: see `Listener`.
        progress: see `Listener`.
    """
    _listening.append(Listener(say, progress))
    try:
        yield
    finally:
        _listening.pop()


def listener() -> Listener | None:
    """Who is told now; None: nobody asked."""
    return _listening[-1] if _listening else None


class Told:
    """One download, told of as it goes on."""

    def __init__(self, what: str, total: int, place: Path, *, done: int = 0) -> None:
        self.total, self.done = total, done
        self._listener = listener() if not total or total >= SMALL else None
        if self._listener:
            size = in_bytes(total) if total else "of unknown size"
            self._listener.say(f"downloading {what} ({size}) to {place}")

    def add(self, count: int) -> None:
        """So many more bytes have come."""
        self.done += count
        if self._listener:
            self._listener.progress(self.done, max(self.total, self.done) if self.total else 0)


def bar_class(what: str, place: Path) -> type[object]:
    """What the hub's client takes for a class of tqdm's, and tells the listener instead."""
    begun: list[object] = []

    class _Bar:
        """As much of tqdm's interface as the client uses."""

        def __init__(
            self, *_: object, total: int | None = None, initial: int = 0, **__: object
        ) -> None:
            self.total, self.n = total, initial
            # Of two bars, of what is received and what is written, the first counts.
            self._told = None if begun else Told(what, total or 0, place, done=initial)
            begun.append(self)

        def update(self, count: float = 1) -> None:
            self.n += int(count)
            if self._told:
                self._told.add(int(count))

        def _ignore(self, *_: object, **__: object) -> None:
            """What only a bar on a screen needs."""

        set_postfix_str = set_description = refresh = close = reset = clear = _ignore

        def __enter__(self) -> Self:
            return self

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
        ) -> None:
            self.close()

    return _Bar


def in_bytes(size: int) -> str:
    """A size for people.

    >>> [in_bytes(one) for one in (17, 2048, 3 << 20, 1400 << 20)]
    ['17 bytes', '2.0 KiB', '3.0 MiB', '1.4 GiB']
    """
    if size < 1 << 10:
        return f"{size} bytes"
    if size < 1 << 20:
        return f"{size / (1 << 10):.1f} KiB"
    return f"{size / (1 << 20):.1f} MiB" if size < 1 << 30 else f"{size / (1 << 30):.1f} GiB"
