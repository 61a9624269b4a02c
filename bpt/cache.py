"""Folders that are made once and kept, by one process for all: under $BPT_CACHE.

A folder's name tells of what it was made and how, so it is never out of date; it appears whole or
not at all. Nothing removes old ones: all of them may be deleted at any time.
"""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

from burst.archive import reason
from burst.distributed import first_alone, gather
from burst.downloads import in_bytes
from burst.files import cache_folder
from burst.lock import one_at_a_time
from burst.progress import Say

Held = TypeVar("Held")


def cache_root() -> Path:
    """$BPT_CACHE, else bpt in $XDG_CACHE_HOME, else ~/.cache/bpt."""
    return cache_folder("BPT_CACHE", "bpt")


def made_once(
    folder: Path,
    opened: Callable[[], Held],
    make: Callable[[], None],
    *,
    doing: str,
    otherwise: str,
    say: Say,
) -> Held | None:
    """What a folder holds, made now if it is not there yet; by one process.

    Under `torchrun` all processes ask, the first before the others. Machines may have a cache each:
    where one of them cannot keep it, no process has it, so that all go on alike.

    Args:
        folder: in `cache_root()`.
        opened: gives what it holds; OSError and ValueError say that it is not there, or damaged.
        make: the folder, whole or not at all.
        doing: what other processes wait for, such as "decodes images into".
        otherwise: what is done where nothing can be kept, in the plural.
        say: called with a line now and then.

    Returns:
        None where it cannot be kept: the folder cannot be written, or there is no room. One
        line says so.

    Raises:
        Whatever else than OSError `make` raises.
    """
    failure = f"{folder} cannot be read"

    def found() -> Held | None:
        with suppress(OSError, ValueError):
            return opened()
        return None

    def found_or_made() -> Held | None:
        nonlocal failure
        if (held := found()) is not None:
            return held
        try:
            with one_at_a_time(folder, doing, say=say):
                if (held := found()) is not None:
                    return held
                shutil.rmtree(folder, ignore_errors=True)  # what is there is damaged
                make()
        except OSError as error:
            failure = f"{folder.parent} cannot hold them, {reason(error)}"
            return None
        return found()

    held = first_alone(found_or_made)
    failures = gather(None if held is not None else failure)
    for rank, one in enumerate(failures):
        if one is not None:
            where = f"in process {rank} of {len(failures)} " if len(failures) > 1 else ""
            say(f"{otherwise}: {where}{one}")
            return None
    return held


def check_room(size: int, root: Path, what: str) -> None:
    """
    Raises:
        OSError: `size` is more than nine tenths of what is free; the text is `what`, and that.
    """
    free = shutil.disk_usage(root).free
    if size > 0.9 * free:
        raise OSError(errno.ENOSPC, f"{what}, and {in_bytes(free)} are free")


def to_disk(stream: IO[bytes]) -> None:
    """All that was written: after a power cut a file may else have its size and not its content."""
    stream.flush()
    os.fsync(stream.fileno())
