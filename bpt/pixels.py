"""Images decoded once, into a file that every process maps into its memory.

    $BPT_CACHE/NAME-KEY/pixels.u8     of one image after another: (H, W, 3) uint8, RGB
    $BPT_CACHE/NAME-KEY/shapes.npy    (n, 2) int32: their heights and widths

A folder's name tells of which images and what is kept of them.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped, unused-ignore]
from torchvision.transforms.v2 import functional as transforms

from bpt.cache import cache_root, check_room, made_once, to_disk
from bpt.dataset import FileOpener, Split
from burst.downloads import in_bytes
from burst.files import make_folder_atomically
from burst.preprocess import INTERPOLATIONS, Preprocess
from burst.progress import Say

A = TypeVar("A")
B = TypeVar("B")
U8 = NDArray[np.uint8]

VERSION = 1  # of the files' format
PIXELS, SHAPES = "pixels.u8", "shapes.npy"
MAX_THREADS = 16
SAMPLE = 16  # images whose sizes tell how large the file will be
SAY_EVERY = 30.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of each image.

    For evaluation, its centre crop: the very pixels that would be made of it each time.

    For training, all of it, unless its short side is above ceil(size / sqrt(smallest_crop)): then
    it is resized to that, antialiased. A reduced image has at least size^2 / smallest_crop pixels,
    and a random crop takes at least `smallest_crop` of them, so every crop still has as many
    pixels as the output, size^2: a crop is never enlarged for having been reduced before.

    Attributes:
        preprocess: how the backbone's images are prepared.
        smallest_crop: least share of the area that a random crop takes; None for evaluation.

    >>> Kept(preprocess=Preprocess(image_size=224, mean=[0] * 3, std=[1] * 3), smallest_crop=0.08)
    ... .short
    792
    """

    preprocess: Preprocess
    smallest_crop: float | None = None

    @property
    def short(self) -> int | None:
        """Longest short side that is kept for training, in pixels; None for evaluation."""
        if self.smallest_crop is None:
            return None
        return math.ceil(self.preprocess.image_size / math.sqrt(self.smallest_crop))

    def pixels(self, image: Image.Image) -> U8:
        """(H, W, 3) uint8.

        Raises:
            ImageError: see `Preprocess.centre`.
        """
        if self.short is None:
            return np.ascontiguousarray(self.preprocess.centre(image).permute(1, 2, 0).numpy())
        if min(image.size) > self.short:
            mode = INTERPOLATIONS[self.preprocess.interpolation]
            image = transforms.resize(image, [self.short], interpolation=mode)
        return np.array(image)

    def key(self, split: Split) -> str:
        """SHA-256 in hex of what is kept of which images: their names, and whether they changed."""
        opener = _files(split)
        settings = [VERSION, PIL.__version__, self.short, self.preprocess.interpolation]
        if self.short is None:
            one = self.preprocess
            settings += [one.image_size, one.crop_fraction, one.crop_mode]
            settings += one.fill if one.crop_mode == "border" else []
        found = hashlib.sha256(json.dumps([*settings, str(opener.place.resolve())]).encode())
        sizes, single = opener.files.sizes, not opener.place.is_dir()
        changed = _changed(f"{opener.place}") if single else 0
        for name in _names(split):
            when = changed if single else _changed(f"{opener.place}/{name}")
            found.update(f"{name}\0{sizes.get(name)}\0{when}\0".encode(errors="surrogateescape"))
        return found.hexdigest()


class Pixels:
    """Name -> image, from the pixels that were kept; each process maps the file for itself.

    Args:
        folder: of the cache.
        names: of the images, in the order of the file.
        kept: what is kept of them.

    Raises:
        OSError: the files cannot be read.
        ValueError: they are damaged, or not of so many images.
    """

    folder: Path
    names: Sequence[str]
    kept: Kept

    def __init__(self, folder: Path, names: Sequence[str], kept: Kept) -> None:
        self.__setstate__({"folder": folder, "names": names, "kept": kept})

    def __call__(self, name: str) -> Image.Image:
        """The image, 8-bit RGB."""
        return Image.fromarray(self[name])

    def __getitem__(self, name: str) -> U8:
        """(H, W, 3) uint8, read-only: a view of the file."""
        place = self._places[name]
        height, width = self._shapes[place]
        start = self._starts[place]
        return self._flat[start : start + 3 * height * width].reshape(height, width, 3)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "names": self.names, "kept": self.kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.names, self.kept = state["folder"], state["names"], state["kept"]
        try:
            shapes = np.load(self.folder / SHAPES).astype(np.int64)
        except EOFError as error:  # an empty file
            raise ValueError(str(error)) from error
        if shapes.shape != (len(self.names), 2):
            raise ValueError(f"shapes {shapes.shape}, expected {(len(self.names), 2)}")
        starts = np.append(0, np.cumsum(3 * shapes.prod(axis=1)))
        flat = np.memmap(self.folder / PIXELS, np.uint8, mode="r")
        if len(flat) != starts[-1]:
            raise ValueError(f"{len(flat)} bytes, expected {starts[-1]}")
        self._flat: U8 = np.asarray(flat)  # a slice of a memmap takes longer than of an array
        self._starts, self._shapes = starts.tolist(), shapes.tolist()
        self._places = {name: place for place, name in enumerate(self.names)}


def stored_pixels(split: Split, kept: Kept, *, say: Say) -> Pixels | None:
    """The pixels of a split, decoded now if they are not there yet; by one process.

    Args:
        split: of a `FileOpener`.
        kept: what to keep of its images.
        say: called with a line now and then.

    Returns:
        None where they cannot be kept: the folder cannot be written, or there is no room. One
        line says so.

    Raises:
        ImageError: an image cannot be read; it is named, and nothing is left behind.
    """
    names, key = _names(split), kept.key(split)
    folder = cache_root() / f"{_files(split).place.resolve().name[:40]}-{key[:32]}"
    return made_once(
        folder,
        lambda: Pixels(folder, names, kept),
        lambda: _build(folder, names, lambda name: kept.pixels(split.opener(name)), say),
        doing="decodes images into",
        otherwise="images are decoded again each time",
        say=say,
    )


def in_order(
    work: Callable[[A], B], items: Iterable[A], *, ahead: int, count: int | None = None
) -> Generator[B]:
    """What `work` makes of each item, in order; threads work on the items that come next.

    The items are taken in the thread of the caller. An error in `work` is raised here, when its
    turn comes. When the iterator ends or is closed, its threads have ended too.

    Args:
        work: called in threads.
        items: taken one by one.
        ahead: how many items are worked on, or done and waiting, besides the current one.
        count: of threads; as `threads` says if not given.
    """
    pool = ThreadPoolExecutor(count or threads(), initializer=_one_thread)
    waiting = deque[Future[B]]()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def threads(*, alone: bool = False) -> int:
    """How many are worth starting: this process's share of the cores, at most 16.

    All cores are its share where it works `alone`, and the others of this machine wait for it.
    """
    processes = 1 if alone else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun
    return min(MAX_THREADS, max(1, len(os.sched_getaffinity(0)) // processes))


def _one_thread() -> None:
    """Keep torch from splitting this thread's operations over all cores once more."""
    torch.get_num_threads()  # torch sets the number when a thread first asks; so ask before
    _libraries().limit(limits=1, user_api="openmp")


@functools.cache
def _libraries() -> ThreadpoolController:
    """Those with threads of their own; finding them takes longer than limiting them."""
    return ThreadpoolController()


def _build(folder: Path, names: Sequence[str], load: Callable[[str], U8], say: Say) -> None:
    """Make the folder.

    Raises:
        OSError: it cannot be written, or there is no room.
        ImageError: of `load`.
    """
    with make_folder_atomically(folder) as part:
        size = _size_of(names, load)
        check_room(size, folder.parent, f"they take about {in_bytes(size)}")
        say(f"decoding {len(names):,} images once into {folder} (about {in_bytes(size)})")
        _write(part, names, load, say)


def _write(part: Path, names: Sequence[str], load: Callable[[str], U8], say: Say) -> None:
    shapes, said = [], time.monotonic()
    count = threads(alone=True)
    images = in_order(load, names, ahead=4 * count, count=count)
    with contextlib.closing(images), (part / PIXELS).open("wb") as stream:
        for pixels in images:
            stream.write(pixels.data)
            shapes.append(pixels.shape[:2])
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                say(f"decoded {len(shapes):,} of {len(names):,} images")
        to_disk(stream)
    with (part / SHAPES).open("wb") as stream:
        np.save(stream, np.array(shapes, np.int32))
        to_disk(stream)


def _size_of(names: Sequence[str], load: Callable[[str], U8]) -> int:
    """About how many bytes the images take, by some of them."""
    some = names[:: math.ceil(len(names) / SAMPLE)]
    return sum(load(name).nbytes for name in some) * len(names) // len(some)


def _files(split: Split) -> FileOpener:
    assert isinstance(split.opener, FileOpener)
    return split.opener


def _names(split: Split) -> tuple[str, ...]:
    """Each once, in an order that all folds of a dataset have."""
    return tuple(sorted(set(split.names)))


def _changed(file: str) -> int:
    """When, in nanoseconds; 0 if it is missing, which reading it will tell."""
    try:
        return os.stat(file).st_mtime_ns  # noqa: PTH116  a Path for each takes five times as long
    except OSError:
        return 0
