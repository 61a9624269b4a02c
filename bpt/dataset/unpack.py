"""Archives -> folders that appear whole or not at all."""

import os
import shutil
import tarfile
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from burst.archive import DAMAGED, reason
from burst.errors import ImageError, OutputError


def unpack(archive: Path, target: Path, *, top: str | None = None) -> Path:
    """A tar, compressed or not, or a zip, unpacked into a folder that was not there.

    Links and names that lead out of the folder are refused. A target that exists is left as it is.

    Args:
        archive: the file.
        target: the folder that its content becomes.
        top: the folder of the archive that becomes the target; the rest is left out.

    Raises:
        ImageError: the archive is damaged, has no `top`, or leads out of its folder.
        OutputError: the folder cannot be written, or the disk is full.
    """
    if target.exists():
        return target
    with _beside(archive, target) as part:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:  # it drops what would lead out of the folder
                file.extractall(part)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(part, filter="data")
                _check_end(tar)
        made = part / top if top else part
        if not made.is_dir():
            raise ImageError(f"{archive} holds no folder {top}; is it another archive?")
        _settle(made, target)
    return target


def unpack_nested(archive: Path, target: Path) -> Path:
    """A tar of tars, each into a folder of its name: n01440764.tar -> n01440764/.

    The inner ones are read in place. Else as `unpack`.
    """
    if target.exists():
        return target
    with _beside(archive, target) as part:
        with tarfile.open(archive) as outer:
            for member in outer:
                name = PurePosixPath(member.name)
                stream = outer.extractfile(member) if name.suffix == ".tar" else None
                if stream is not None:
                    _unpack_inner(stream, part / name.stem)
            _check_end(outer)
        _settle(part, target)
    return target


def _unpack_inner(stream: IO[bytes], folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(fileobj=stream) as inner:
        inner.extractall(folder, filter="data")
        _check_end(inner)


def _check_end(tar: tarfile.TarFile) -> None:
    """Tarfile takes a header cut short or overwritten for the end of the archive."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError("it ends in the middle of a member")


@contextmanager
def _beside(archive: Path, target: Path) -> Iterator[Path]:
    """A fresh folder beside the target, which goes whatever happens."""
    part = target.with_name(f".{target.name}.part-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        _remove_leftovers(target)
        part.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"cannot unpack {archive} to {target}: {reason(error)}") from error
    try:
        yield part
    except ImageError:
        raise
    except tarfile.FilterError as error:
        raise ImageError(f"{archive} is not safe to unpack: {reason(error)}") from error
    except OSError as error:
        if isinstance(error, tarfile.TarError) or error.errno is None:  # a damaged gzip is one too
            raise _damaged(archive, error) from error
        raise OutputError(f"cannot unpack {archive} to {target}: {reason(error)}") from error
    except DAMAGED as error:
        raise _damaged(archive, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _damaged(archive: Path, error: BaseException) -> ImageError:
    return ImageError(f"{archive} is damaged, download it again: {reason(error)}")


def _settle(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():  # another process may have been faster
            raise


def _remove_leftovers(target: Path) -> None:
    """Of processes that were killed."""
    for part in target.parent.glob(f".{target.name}.part-*-*"):
        process = part.name.rpartition(".part-")[2].partition("-")[0]
        if process.isdecimal() and not _runs(int(process)):
            shutil.rmtree(part, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
