"""One process at a time makes a file or folder; the others wait for it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from burst.progress import Say

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
POLL = 0.2  # seconds between looks at a lock that another process holds


@contextmanager
def if_alone(target: Path) -> Iterator[bool]:
    """Whether no other process works on `target` now; if so, none begins while the block runs.

    The lock is that of `one_at_a_time`. Where a file system has no locks, it is always so.

    Raises:
        OSError: the folder that the target lies in cannot be made or written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    place = target.with_name(f".{target.name}.lock")
    lock = FileLock(place, mode=0o666)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
    try:
        yield True
    finally:
        with suppress(OSError):
            place.unlink()
        lock.release()


@contextmanager
def one_at_a_time(target: Path, what: str, *, say: Say | None = None) -> Iterator[None]:
    """Keep other processes away while the block makes `target`, which it must look for first.

    The lock is the file .NAME.lock beside the target. The operating system holds it, so it ends
    with the process that has it, however that ends; what a killed one leaves keeps nobody waiting.
    A file system without locks (NFS or Lustre may be) does without one, and says so.

    Args:
        target: a file or folder; the folder that it lies in is made.
        what: others do with it, such as "downloads"; for the line that is said.
        say: called with one line if this process has to wait.

    Raises:
        OSError: the folder cannot be made or written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    place = target.with_name(f".{target.name}.lock")
    lock = FileLock(place, mode=0o666)  # whoever may write there may wait for it too
    tell = say or (lambda _: None)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        tell(f"waiting for another process that {what} {target}")
        lock.acquire(poll_interval=POLL)
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
        tell(f"{target.parent} has no locks; see that no other process {what} {target}")
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held: who waits for it then looks for a new one
            place.unlink()
        lock.release()
