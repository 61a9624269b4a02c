"""One process at a time makes a file or folder; the others wait for it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from burst.progress import Say

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
NONE = "has no locks; see that no other process"
POLL = 0.2  # seconds between looks at a lock that another process holds


@contextmanager
def if_alone(target: Path, *, say: Say | None = None) -> Iterator[bool]:
    """Whether no other process works on `target` now; if so, none begins while the block runs.

    The lock is that of `one_at_a_time`. Where a file system has no locks, it is always so, and
    that is said.

    Args:
        target: a file or folder; the folder that it lies in is made.
        say: called with one line if there are no locks; it names that folder.

    Raises:
        OSError: the folder cannot be made or written.
    """
    lock = _lock_of(target)
    if not _free(lock, f"{target.parent} {NONE} works in it", say):
        yield False
        return
    with _released(lock):
        yield True


def warn_without_locks(folder: Path, say: Say) -> None:
    """Say once, before processes share a folder by locks, if its file system has none.

    Raises:
        OSError: the folder cannot be made or written.
    """
    with if_alone(folder / "shared", say=say):
        pass


@contextmanager
def one_at_a_time(target: Path, what: str, *, say: Say | None = None) -> Iterator[None]:
    """Keep other processes away while the block makes `target`, which it must look for first.

    The lock is the file .NAME.lock beside the target. The operating system holds it, so it ends
    with the process that has it, however that ends; what a killed one leaves keeps nobody waiting.
    A file system without locks (NFS or Lustre may be) does without one, and says so.

    Args:
        target: a file or folder; the folder that it lies in is made.
        what: others do with it, such as "downloads"; for the line that is said.
        say: called with one line if this process has to wait, or if there are no locks.

    Raises:
        OSError: the folder cannot be made or written.
    """
    lock = _lock_of(target)
    if not _free(lock, f"{target.parent} {NONE} {what} {target}", say):
        if say:
            say(f"waiting for another process that {what} {target}")
        lock.acquire(poll_interval=POLL)
    with _released(lock):
        yield


def _lock_of(target: Path) -> FileLock:
    target.parent.mkdir(parents=True, exist_ok=True)
    place = target.with_name(f".{target.name}.lock")
    return FileLock(place, mode=0o666)  # whoever may write there may wait for it too


def _free(lock: FileLock, warning: str, say: Say | None) -> bool:
    """Whether no other process holds the lock; this one does then, or says that there are none."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
        if say:
            say(warning)
    return True


@contextmanager
def _released(lock: FileLock) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held: who waits for it then looks for a new one
            Path(lock.lock_file).unlink()
        lock.release()
