"""Image files in a folder, a zip or a tar: their names, their sizes, their bytes.

Names are relative, with forward slashes. A file is an image by its suffix, in any case; hidden
files and folders, and the `__MACOSX` that macOS puts into zips, do not count. Nothing is unpacked:
a tar that is compressed as a whole cannot be read at random, and is refused.
"""

import lzma
import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from burst.errors import ImageError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"),
)
ARCHIVE_SUFFIXES = (".zip", ".tar")
ACCEPTED = "a folder, a zip or uncompressed tar of images, or one image file"
GLANCE = 4096  # bytes out of the middle of a file, where those of two photos differ

# What zipfile, tarfile and the decompressors raise on damaged data.
DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(OSError, EOFError, NotImplementedError, RuntimeError, ValueError),
)

Read = Callable[[str], bytes]


class ImageFiles(Protocol):
    """A place that image files are read from."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of every image file, by name; in no particular order."""

    @property
    def others(self) -> int:
        """How many visible files are no images."""

    def reader(self) -> AbstractContextManager[Read]:
        """Open the place; what comes back reads any of its images, from any thread."""

    def glance(self, name: str) -> Hashable:
        """What files of the same bytes share and others seldom do, for little reading.

        Raises:
            OSError: it cannot be read.
        """


def list_images(path: Path) -> ImageFiles:
    """Every image file in a folder, nested ones too, or in an archive; or the file itself.

    Raises:
        ImageError: nothing lies there, it is of another kind, it is damaged or encrypted, it is
            compressed as a whole, it cannot be read, or it holds no image.
    """
    try:
        files = _list(path)
    except DAMAGED as error:
        raise ImageError(f"{path} cannot be read, or is damaged: {reason(error)}") from error
    if not files.sizes:
        raise ImageError(
            f"{path} holds no image: no file ends in {' '.join(IMAGE_SUFFIXES)}, "
            f"{files.others} other files were seen"
        )
    return files


def open_tar(path: Path) -> tarfile.TarFile:
    """A tar whose files are read where they lie.

    Raises:
        ImageError: it is compressed as a whole; what to do.
        tarfile.ReadError: it is no tar.
    """
    try:
        return tarfile.open(path, "r:")
    except tarfile.ReadError:
        if tarfile.is_tarfile(path):
            raise ImageError(
                f"{path} is a compressed tar, of which no file can be read by itself; unpack it "
                "and give the folder, or make it a zip or an uncompressed tar"
            ) from None
        raise


def check_end(tar: tarfile.TarFile) -> None:
    """Refuse a tar, read to its end, that was cut short or overwritten there.

    Raises:
        tarfile.ReadError: a header that tarfile cannot read, which it takes for the end.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError("it ends in the middle of a member")


def reason(error: BaseException) -> str:
    """What an error says, on one line; its type where it says nothing by itself."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split())
    if text and isinstance(error, OSError | ValueError | RuntimeError | tarfile.TarError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _list(path: Path) -> ImageFiles:
    if not path.exists():
        raise ImageError(f"image source {str(path)!r} does not exist; expected {ACCEPTED}")
    if path.is_dir():
        return _list_folder(path)
    if not path.is_file():
        raise ImageError(f"{path} is neither a folder nor a file; expected {ACCEPTED}")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _Folder(path.parent, {path.name: path.stat().st_size}, others=0)
    if zipfile.is_zipfile(path):
        return _list_zip(path)
    if tarfile.is_tarfile(path):
        return _list_tar(path)
    if path.suffix.lower() in ARCHIVE_SUFFIXES:
        raise ImageError(f"{path} is not a complete zip or tar; was its download cut short?")
    raise ImageError(f"{path} is neither an image nor an archive; expected {ACCEPTED}")


def _visible(name: str) -> bool:
    hidden = (p == "__MACOSX" or (p[:1] == "." and p not in (".", "..")) for p in name.split("/"))
    return not any(hidden)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


@dataclass(frozen=True)
class _Folder:
    root: Path
    sizes: Mapping[str, int]
    others: int

    @contextmanager
    def reader(self) -> Iterator[Read]:
        yield lambda name: (self.root / name).read_bytes()

    def glance(self, name: str) -> bytes:
        with open(f"{self.root}/{name}", "rb") as file:  # noqa: PTH123  twice as fast
            return os.pread(file.fileno(), GLANCE, self.sizes[name] // 2)


def _list_folder(root: Path) -> _Folder:
    sizes, others = {}, 0
    for name, size in _walk(root, "", frozenset()):
        if _is_image(name):
            sizes[name] = size
        else:
            others += 1
    return _Folder(root, sizes, others)


def _walk(folder: Path, prefix: str, above: frozenset[Path]) -> Iterator[tuple[str, int]]:
    """Names and sizes of the visible files; links are followed, but not back up in a circle."""
    here = folder.resolve()
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _visible(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
            elif entry.is_symlink():  # it leads nowhere: listed, so that it is missed on reading
                yield prefix + entry.name, 0


@dataclass(frozen=True)
class _Zip:
    path: Path
    members: Mapping[str, zipfile.ZipInfo]
    others: int

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: member.file_size for name, member in self.members.items()}

    @contextmanager
    def reader(self) -> Iterator[Read]:
        lock = threading.Lock()  # one handle, one file position
        with zipfile.ZipFile(self.path) as archive:

            def read(name: str) -> bytes:
                with lock:
                    return archive.read(self.members[name])

            yield read

    def glance(self, name: str) -> int:
        return self.members[name].CRC


def _list_zip(path: Path) -> _Zip:
    members, others = {}, 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir() or not _visible(member.filename):
                continue
            if not _is_image(member.filename):
                others += 1
                continue
            if member.flag_bits & 1:
                raise ImageError(
                    f"{path} is encrypted ({member.filename!r}); unpack it with its password "
                    "and give the folder"
                )
            members[str(PurePosixPath(member.filename))] = member
    return _Zip(path, members, others)


@dataclass(frozen=True)
class _Tar:
    path: Path
    extents: Mapping[str, tuple[int, int]]  # name -> where its bytes start, how many
    others: int

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: size for name, (_, size) in self.extents.items()}

    @contextmanager
    def reader(self) -> Iterator[Read]:
        with self.path.open("rb") as file:

            def read(name: str) -> bytes:
                start, size = self.extents[name]
                return os.pread(file.fileno(), size, start)  # no shared position, hence no lock

            yield read

    def glance(self, name: str) -> bytes:
        start, size = self.extents[name]
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), min(GLANCE, size - size // 2), start + size // 2)


def _list_tar(path: Path) -> _Tar:
    extents = {}
    with open_tar(path) as tar:
        for member in tar:
            if member.isreg() and not member.issparse():
                extents[member.name] = (member.offset_data, member.size)
            elif member.islnk() and member.linkname in extents:
                extents[member.name] = extents[member.linkname]
        check_end(tar)
    visible = {name: extent for name, extent in extents.items() if _visible(name)}
    images = {str(PurePosixPath(n)): extent for n, extent in visible.items() if _is_image(n)}
    return _Tar(path, images, len(visible) - len(images))
