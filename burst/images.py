"""A folder, an archive, an image file or `sample` -> batches of normalised images.

stream = open_images("photos.zip", num_images=100, batch_size=32, image_size=224,
                     mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
for images in stream:          # (32, 3, 224, 224) float32
    model(images)
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burst.archive import ACCEPTED, DAMAGED, ImageFiles, list_images, reason
from burst.errors import ImageError
from burst.preprocess import Preprocess, decode
from burst.sample_images import draw_crop, load_photos
from burst.stream import NamedStream

__all__ = ["ImageStream", "open_images"]

SAMPLE = "sample"
MAX_THREADS = 8

Load = Callable[[str], Tensor]  # name -> (3, H, W) uint8; ImageError says why not
Opener = Callable[[], AbstractContextManager[Load]]


def open_images(
    source: str | Path,
    *,
    num_images: int | None,
    batch_size: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_fraction: float = 0.875,
    crop_mode: str = "center",
    seed: int = 0,
    skip_bad: bool = False,
) -> "ImageStream":
    """Batches of normalised images from a folder, an archive, an image file or `sample`.

    The names are sorted, then put into an order that depends on nothing but the seed and how many
    there are, and the first `num_images` are read in that order. So the choice does not depend on
    the file system, 10 images are the first of 100, and every batch is a random draw.

    Args:
        source: a folder (searched through; ImageFolder or any other), a zip or uncompressed tar,
            one image file, or `sample`: random crops of the two photographs that come with
            scikit-learn. Crop i depends on the seed and i only: 8 to 100 % of the area, aspect 3/4
            to 4/3, flipped half the time. A folder of that name is `./sample` or a `Path`.
        num_images: at most so many images; None: all of them. Where the source has fewer, all are
            read: compare with `count`.
        batch_size: images a batch; the last one may be smaller.
        image_size: side of the square that the model reads, in pixels.
        mean: per channel (R, G, B), of values in 0..1.
        std: same; positive.
        interpolation: how to resize; see `Preprocess`.
        crop_fraction: what the centre crop keeps of the resized image (files only).
        crop_mode: how files are resized, see `Preprocess`.
        seed: of the order, or of the crops; not negative.
        skip_bad: leave out images that cannot be read, and go on.

    Raises:
        ImageError: the source is missing, empty, damaged or of another kind, or a number is out
            of range. Reading a bad image raises it while iterating.
        UnknownName: an interpolation or crop mode that is not known.
    """
    check_numbers(num_images=num_images, batch_size=batch_size, seed=seed)
    preprocess = Preprocess(
        image_size=image_size,
        mean=mean,
        std=std,
        interpolation=interpolation,
        crop_fraction=crop_fraction,
        crop_mode=crop_mode,
    )
    if source == SAMPLE:
        sizes, opener = _sample(num_images, seed, preprocess)
    else:
        sizes, opener = _files(source, num_images, seed, preprocess)
    names = list(sizes)
    return ImageStream(
        source=str(source),
        batches=[names[i : i + batch_size] for i in range(0, len(names), batch_size)],
        fingerprint=_fingerprint(sizes),
        opener=opener,
        preprocess=preprocess,
        skip_bad=skip_bad,
        seed=seed,
    )


class ImageStream(NamedStream):
    """Images in batches, decoded a little ahead in threads. Made by `open_images`.

    Iterating yields (B, 3, H, W) float32 on the CPU, in the order of `names`; it can be repeated.
    At most one batch is decoded ahead of the one being put together, so memory does not grow with
    the number of images. Leaving the loop early ends the threads.

    Attributes:
        source: the source as it was given.
        names: what this stream reads, in order; for a shard, its own part.
        batch_names: the same, batch by batch.
        skipped: (name, reason) of each image left out, in order; filled while iterating.
        fingerprint: sha256 in hex of the names and sizes in bytes of all images chosen, in order;
            the same for every shard. It says which files were read, not what was in them.
        seed: of the choice and order of the images; None if nobody drew them.
        split: of a dataset, whose name the source is.

    Raises (while iterating):
        ImageError: an image cannot be read and `skip_bad` is off; or no image at all could be.
            A shard, or what `of_batches` makes, yields nothing instead: another may have some.
    """

    def __init__(
        self,
        *,
        source: str,
        batches: Sequence[Sequence[str]],
        fingerprint: str,
        opener: Opener,
        preprocess: Preprocess,
        skip_bad: bool,
        seed: int | None = None,
        split: str | None = None,
        is_part: bool = False,
    ) -> None:
        self.source = source
        self.names = [name for batch in batches for name in batch]
        self.skipped: list[tuple[str, str]] = []
        self.fingerprint = fingerprint
        self.seed = seed
        self.split = split
        self.batch_names = batches
        self._opener = opener
        self._preprocess = preprocess
        self._skip_bad = skip_bad
        self._is_part = is_part

    @property
    def count(self) -> int:
        """How many images will be read, bad ones included."""
        return len(self.names)

    @property
    def batches(self) -> int:
        """How many batches will be read; one whose images are all skipped is not yielded."""
        return len(self.batch_names)

    @property
    def record(self) -> dict[str, Any]:
        """Which images, and how they are prepared: plain data, as JSON gives it back."""
        how = asdict(self._preprocess)
        how |= {"mean": list(how["mean"]), "std": list(how["std"])}
        return {
            "source": self.source,
            **({"split": self.split} if self.split else {}),
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            **how,
        }

    def shard(self, rank: int, world_size: int) -> "ImageStream":
        """The part for one of `world_size` processes: batches rank, rank + world_size, ...

        Raises:
            ImageError: rank is not in 0..world_size - 1.
        """
        if not 0 <= rank < world_size:
            raise ImageError(f"rank {rank} must lie in 0..{world_size - 1} (world size - 1)")
        # Whole batches, not images: float32 results of a forward pass depend on what else is in
        # the batch, so a batch must hold the same images however many processes there are.
        part = self.of_batches(self.batch_names[rank::world_size])
        part._is_part = self._is_part or world_size > 1
        return part

    def of_batches(self, batches: Sequence[Sequence[str]]) -> "ImageStream":
        """A stream over other batches of the images that this one reads, given by their names."""
        return ImageStream(
            source=self.source,
            batches=batches,
            fingerprint=self.fingerprint,
            opener=self._opener,
            preprocess=self._preprocess,
            skip_bad=self._skip_bad,
            seed=self.seed,
            split=self.split,
            is_part=True,
        )

    def __iter__(self) -> Iterator[Tensor]:
        self.skipped.clear()
        with self._opener() as load, _threads() as pool:
            loading = ((name, pool.submit(load, name)) for name in self.names)
            ahead = deque(islice(loading, len(self.batch_names[0]) if self.batch_names else 0))
            for batch in self.batch_names:
                pixels = self._gather(len(batch), ahead, loading)
                if pixels is not None:
                    yield self._preprocess.normalise(pixels)
        if not self._is_part:
            self.check_some_read(self.skipped)

    def check_some_read(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Refuse to go on without images; for what the shards of this stream left out.

        Raises:
            ImageError: it is all of them; the first is named.
        """
        if skipped and len(skipped) == self.count:
            name, why = skipped[0]
            raise ImageError(
                f"none of the {self.count} images of {self.source} can be read; "
                f"the first, {name!r}: {why}"
            )

    def _gather(
        self,
        count: int,
        ahead: deque[tuple[str, Future[Tensor]]],
        loading: Iterator[tuple[str, Future[Tensor]]],
    ) -> Tensor | None:
        """The next `count` images, (B, 3, H, W) uint8; one more is started for each one taken."""
        images = []
        for _ in range(count):
            name, future = ahead.popleft()
            ahead.extend(islice(loading, 1))
            try:
                images.append(future.result())
            except ImageError as error:
                if not self._skip_bad:
                    raise ImageError(
                        f"cannot read image {name!r} of {self.source}: {error}; "
                        "skip_bad (--skip-bad) leaves it out"
                    ) from error
                # Out of its own batch only: no image moves to another batch to fill the gap.
                self.skipped.append((name, str(error)))
        return torch.stack(images) if images else None


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    count = min(MAX_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(count, thread_name_prefix="burst-images")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def check_numbers(*, num_images: int | None, batch_size: int, seed: int) -> None:
    """Refuse numbers with which no image can be read.

    Raises:
        ImageError: it is named.
    """
    if num_images is not None and num_images < 1:
        raise ImageError(f"num_images {num_images} must be at least 1")
    if batch_size < 1:
        raise ImageError(f"batch_size {batch_size} must be at least 1")
    if seed < 0:
        raise ImageError(f"seed {seed} must not be negative")


def _fingerprint(sizes: Mapping[str, int]) -> str:
    digest = hashlib.sha256()
    for name, size in sizes.items():
        digest.update(name.encode(errors="surrogateescape") + f"\0{size}\n".encode())
    return digest.hexdigest()


def _files(
    source: str | Path, num_images: int | None, seed: int, preprocess: Preprocess
) -> tuple[dict[str, int], Opener]:
    """The chosen names with their sizes, in reading order, and how to load them."""
    files = list_images(_path(source))
    sizes = files.sizes
    names = sorted(sizes)
    order = np.random.default_rng(seed).permutation(len(names))[:num_images]
    return {names[i]: sizes[names[i]] for i in order}, _file_opener(files, preprocess)


def _path(source: str | Path) -> Path:
    """A source that is no name but a path; a bare word that leads nowhere was meant as a name."""
    path = Path(source)
    if not str(source):
        raise ImageError(f"the image source is empty; expected `{SAMPLE}`, {ACCEPTED}")
    if path.parent == Path() and not path.suffix and not path_exists(path):
        raise ImageError(
            f"unknown image source {str(source)!r}: no such name (known: {SAMPLE}) and no such "
            f"file here; expected `{SAMPLE}`, {ACCEPTED}"
        )
    return path


def path_exists(path: Path) -> bool:
    """Whether something lies there; a name that is too long is none."""
    try:
        return path.exists()
    except OSError:
        return False


def _file_opener(files: ImageFiles, preprocess: Preprocess) -> Opener:
    @contextmanager
    def opener() -> Iterator[Load]:
        with files.reader() as read:

            def load(name: str) -> Tensor:
                try:
                    data = read(name)
                except DAMAGED as error:
                    raise ImageError(reason(error)) from error
                return preprocess.centre(decode(data))

            yield load

    return opener


def _sample(
    num_images: int | None, seed: int, preprocess: Preprocess
) -> tuple[dict[str, int], Opener]:
    """As `_files`, for crops of the two photographs; a size is that of the crop's pixels."""
    if num_images is None:
        raise ImageError(f"`{SAMPLE}` has no end: num_images must say how many images to draw")
    photos = load_photos()
    crops = {}
    for i in range(num_images):
        crop = draw_crop(photos, seed=seed, i=i)
        crops[f"{i}:{crop}"] = crop

    def load(name: str) -> Tensor:
        crop = crops[name]
        return preprocess.crop(
            photos[crop.photo],
            top=crop.top,
            left=crop.left,
            height=crop.height,
            width=crop.width,
            flip=crop.flip,
        )

    sizes = {name: 3 * crop.height * crop.width for name, crop in crops.items()}
    return sizes, lambda: nullcontext(load)
