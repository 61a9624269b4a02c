"""A labelled folder or zip of images -> one uint8 array, decoded once and memory-mapped."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from burst.errors import ImageError
from burst.files import make_folder, write_atomically

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True)
class Pixels:
    """Labelled images in memory.

    Attributes:
        values: (n, size, size, 3) uint8, RGB; perhaps a memory map.
        labels: (n,) int64, positions in `classes`.
        classes: names of the class folders, sorted.
        digest: SHA-256 of the sources' names and sizes, and of the size.
    """

    values: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class _Entry:
    """One image: where it lies, and its class."""

    source: Path
    name: str
    size: int
    label: str


def load_pixels(
    sources: list[Path], *, size: int, cache: Path | None = None, under: str = ""
) -> Pixels:
    """Read ImageFolders (a folder a class) or zips of them.

    Args:
        sources: folders or zips; a class may be spread over several.
        size: images are stored with this height and width in pixels: the shorter side is resized,
            and the centre kept.
        cache: a folder to keep the decoded array in; the second time it is only mapped.
        under: take only what lies in this folder, such as "train".

    Raises:
        ImageError: no image, one that cannot be read, or a source that is neither.
    """
    entries = sorted(
        (entry for source in sources for entry in _entries(source, under)),
        key=lambda entry: (entry.label, entry.name),
    )
    if not entries:
        raise ImageError(f"no images in class folders in {', '.join(map(str, sources))}")
    classes = tuple(sorted({entry.label for entry in entries}))
    numbers = {label: number for number, label in enumerate(classes)}
    labels = np.array([numbers[entry.label] for entry in entries])
    digest = _digest(entries, size)
    if cache is None:
        return Pixels(_decode(entries, size), labels, classes, digest)
    path = cache / f"{digest[:16]}.npy"
    if not path.exists():
        make_folder(cache)
        with write_atomically(path) as temporary:
            np.save(temporary, _decode(entries, size))
    return Pixels(np.load(path, mmap_mode="r"), labels, classes, digest)


def _entries(source: Path, under: str) -> Iterator[_Entry]:
    """Every image that lies in a class folder of `source`."""
    if source.is_dir():
        for path in (source / under).rglob("*"):
            if path.suffix.lower() in SUFFIXES:
                name = path.relative_to(source).as_posix()
                yield _Entry(source, name, path.stat().st_size, path.parent.name)
        return
    try:
        with zipfile.ZipFile(source) as archive:
            infos = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ImageError(f"{source} is neither a folder nor a zip of images: {error}") from error
    for info in infos:
        path = PurePosixPath(info.filename)
        inside = not under or under in path.parts[:-2]
        if path.suffix.lower() in SUFFIXES and len(path.parts) > 1 and inside:
            yield _Entry(source, info.filename, info.file_size, path.parent.name)


def _digest(entries: list[_Entry], size: int) -> str:
    lines = [f"{entry.label} {entry.name} {entry.size}" for entry in entries]
    return hashlib.sha256("\n".join([str(size), *lines]).encode()).hexdigest()


def _decode(entries: list[_Entry], size: int) -> NDArray[np.uint8]:
    values = np.empty((len(entries), size, size, 3), np.uint8)
    archives = {entry.source: entry.source for entry in entries if entry.source.is_file()}
    opened = {path: zipfile.ZipFile(path) for path in archives}

    def store(number: int) -> None:
        entry = entries[number]
        archive = opened.get(entry.source)
        try:
            raw = archive.read(entry.name) if archive else (entry.source / entry.name).read_bytes()
            values[number] = _square(Image.open(io.BytesIO(raw)), size)
        except (OSError, zipfile.BadZipFile, Image.DecompressionBombError) as error:
            raise ImageError(f"{entry.source}: {entry.name} cannot be read: {error}") from error

    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(store, range(len(entries)), chunksize=64))
    finally:
        for archive in opened.values():
            archive.close()
    return values


def _square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The centre of an image, its shorter side resized to `size`."""
    image = image.convert("RGB")
    scale = size / min(image.size)
    if scale != 1:
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
