"""Files appear whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burst.errors import BurstError, OutputError

if TYPE_CHECKING:
    import pandas as pd

PART = ".part-"  # what begins the name of a file or folder that is being made
_making: set[Path] = set()  # by this process, now
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # how writing on may fail


def all_of(places: str | Path | Iterable[str | Path]) -> list[str | Path]:
    """The places that are named, which may be one alone."""
    return [places] if isinstance(places, str | Path) else list(places)


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place when the block ends well.

    A link stays one: what it leads to is replaced. Missing folders are made. After an error, or an
    interruption, the temporary file is removed and whatever `path` held before is still there;
    after a kill, `remove_leftovers` removes it.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full. An OSError of the
            block that is about another file, such as one that it reads, comes through as it is.
    """
    target, place = Path(path), Path(os.path.realpath(path))
    with _told_as(target):
        place.parent.mkdir(parents=True, exist_ok=True)
        # Its name is left out: it may be as long as the file system takes.
        prefix, suffix = f"{_ours()}{os.getpid()}-", target.suffix
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=prefix, suffix=suffix)
        os.close(handle)
    temporary = Path(name)
    _making.add(temporary)
    try:
        try:
            yield temporary
        except OSError as error:
            if _is_of_writing(error, temporary):
                raise OutputError(f"cannot write {target}: {_reason(error)}") from error
            raise
        with _told_as(target):
            _settle(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)
        _making.discard(temporary)


def save_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write JSON, whole or not at all; gives `path`.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold; give None for it.
        OutputError: see `write_atomically`.
    """
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")
    return path


def save_table(path: Path, table: "pd.DataFrame") -> Path:
    """Write a table as CSV without its index, whole or not at all; gives `path`.

    Raises:
        OutputError: see `write_atomically`.
    """
    with write_atomically(path) as temporary:
        table.to_csv(temporary, index=False)
    return path


@contextlib.contextmanager
def make_folder_atomically(target: Path) -> Iterator[Path]:
    """Give a fresh folder beside `target`, which takes its place when the block ends well.

    Whatever is left of it after an error goes; so does what `remove_leftovers` finds. The block
    may rename the folder, or one within it, itself.

    Raises:
        OSError: it cannot be made or renamed; not if another process made the target meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent)
    part = Path(os.path.realpath(target.parent)) / f"{_ours()}{os.getpid()}"
    _making.add(part)
    try:
        part.mkdir()
        yield part
        try:
            if part.exists():
                part.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _making.discard(part)


def remove_leftovers(folder: Path) -> None:
    """Remove what this machine's processes that were killed had begun to make in a folder.

    What `write_atomically` and `make_folder_atomically` began, that is; nothing of other machines.
    """
    for left in Path(os.path.realpath(folder)).glob(f"{_ours()}*"):
        number = re.match(r"\d+(?=-|$)", left.name.removeprefix(_ours()))
        if number is None or left in _making:
            continue
        # One with our own number is of a process before: in a container they begin anew.
        if int(number[0]) != os.getpid() and _alive(int(number[0])):
            continue
        with contextlib.suppress(OSError):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _ours() -> str:
    """How names of what this machine's processes make begin; no machine's holds an `@`."""
    return f"{PART}{socket.gethostname()}@"


def cache_folder(variable: str, name: str) -> Path:
    """The folder that an environment variable names, else `name` in the user's cache.

    That is $XDG_CACHE_HOME, or ~/.cache. Nothing is made.

    Raises:
        OutputError: no variable names one, and no home directory is known.
    """
    if place := os.environ.get(variable):
        return Path(place)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / name
    except RuntimeError as error:
        raise OutputError(
            f"no home directory is known to keep files in; set {variable} or XDG_CACHE_HOME"
        ) from error


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path that may begin with `~` or `~USER`, for a home directory.

    Raises:
        BurstError: that home directory is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BurstError(f"no home directory is known for {path}; give the whole path") from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make `path` a folder that can be written, before long work starts; gives it as a `Path`.

    Raises:
        OutputError: it is a file, or cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {_reason(error)}") from error
    return folder


def check_name(path: str | os.PathLike[str]) -> None:
    """Refuse a name that is too long for the file system, before long work starts.

    Raises:
        OutputError: it is, or leads where nobody may look.
    """
    with _told_as(Path(path)), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(path)


def safe_name(text: str) -> str:
    """What a file or folder may be called anywhere.

    >>> safe_name("timm:vit_small/14-seed0")
    'timm-vit_small-14-seed0'
    """
    return re.sub(r"[^\w.+-]", "-", text)


def sha256_of(*paths: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of the bytes of a file, or of several, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


@contextlib.contextmanager
def _told_as(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {target}: {_reason(error)}") from error


def _is_of_writing(error: OSError, temporary: Path) -> bool:
    """Whether an error names the temporary file, or tells of no room and names none."""
    if error.errno not in NO_ROOM:
        return str(error.filename) == str(temporary)
    # A stream that is open does not tell its file; a copy tells both.
    return error.filename is None or str(temporary) in (str(error.filename), str(error.filename2))


def _settle(temporary: Path, target: Path) -> None:
    """Rename, with the rights that a plain new file would have (mkstemp gives 0600)."""
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.replace(target)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
