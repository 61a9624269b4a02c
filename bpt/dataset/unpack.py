"""Archives -> folders that appear whole or not at all."""

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from burst.archive import DAMAGED, check_end, reason
from burst.errors import ImageError, OutputError
from burst.files import make_folder_atomically
from burst.lock import one_at_a_time
from burst.progress import Say


def is_archive(path: Path) -> bool:
    """Whether a file is what `unpack` reads, whatever its name."""
    try:
        return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))
    except (OSError, EOFError, zlib.error):  # it cannot be read; of a damaged one tarfile may tell
        return False


def unpack(archive: Path, target: Path, *, top: str | None = None, say: Say | None = None) -> Path:
    """A tar, compressed or not, or a zip, unpacked into a folder that was not there.

    Links and names that lead out of the folder are refused. A target that exists is left as it is.
    Of several processes one unpacks, and the others wait for it.

    Args:
        archive: the file.
        target: the folder that its content becomes.
        top: the folder of the archive that becomes the target; the rest is left out.
        say: called with a line before waiting for another process.

    Raises:
        ImageError: the archive is damaged, has no `top`, or leads out of its folder.
        OutputError: the folder cannot be written, or the disk is full.
    """

    def fill(part: Path) -> Path:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:  # it drops what would lead out of the folder
                file.extractall(part)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(part, filter="data")
                check_end(tar)
        made = part / top if top else part
        if not made.is_dir():
            raise ImageError(f"{archive} holds no folder {top}; is it another archive?")
        return made

    return _make(archive, target, fill, say)


def unpack_nested(archive: Path, target: Path, *, say: Say | None = None) -> Path:
    """A tar of tars, each into a folder of its name: n01440764.tar -> n01440764/.

    The inner ones are read in place. Else as `unpack`.
    """

    def fill(part: Path) -> Path:
        with tarfile.open(archive) as outer:
            for member in outer:
                name = PurePosixPath(member.name)
                stream = outer.extractfile(member) if name.suffix == ".tar" else None
                if stream is not None:
                    _unpack_inner(stream, part / name.stem)
            check_end(outer)
        return part

    return _make(archive, target, fill, say)


def _unpack_inner(stream: IO[bytes], folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(fileobj=stream) as inner:
        inner.extractall(folder, filter="data")
        check_end(inner)


def _make(archive: Path, target: Path, fill: Callable[[Path], Path], say: Say | None) -> Path:
    """The target, from what `fill` makes of a fresh folder beside it, which goes in any case."""
    if target.exists():
        return target
    with _errors_told(archive, target), one_at_a_time(target, "unpacks", say=say):
        if target.exists():
            return target
        with make_folder_atomically(target) as part:
            fill(part).rename(target)
    return target


@contextmanager
def _errors_told(archive: Path, target: Path) -> Iterator[None]:
    try:
        yield
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


def _damaged(archive: Path, error: BaseException) -> ImageError:
    return ImageError(f"{archive} is damaged, download it again: {reason(error)}")
