"""Splits -> batches: the same for any number of workers and processes, from any step on."""

import contextlib
import functools
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from bpt.dataset import Split
from bpt.pixels import U8, Kept, Pixels, in_order
from bpt.transforms import Box, EvalTransform, TrainTransform, Transform
from burst.errors import BurstError

Places = NDArray[np.int64]

CPU = torch.device("cpu")
SMOOTH = ("bilinear", "bicubic")  # what torch resizes antialiased by itself, without Pillow
PART = 8  # images that one thread prepares at once
AHEAD = 2  # batches that are prepared while one is used
Part = tuple[list[tuple[U8, Box]], Tensor]  # images and boxes, and where their crops go


def train_batches(
    split: Split,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    device: torch.device = CPU,
    views: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One process's share of an epoch's batches.

    Seed and epoch decide the order of the images, see `places_of`, and with an image's place in
    the split what is drawn for it. Torch's global generator stays as it was.

    Where the split's images are `Pixels`, threads prepare the next batches while one is used; not
    with RandAugment or erasing, which draw from Python's global generators. The
    same boxes are drawn of an image that is kept as it was; torch resizes them then, not Pillow,
    which differs by a level or two of 255. Of a reduced image the box is drawn on its new size:
    another box, from the same distribution of places and shapes relative to the image.

    Args:
        split: to train on.
        transform: image -> (3, H, W) float32; draws from torch's global generator.
        batch_size: images a global batch.
        seed: of the training.
        epoch: counted from 0.
        start: first global batch.
        rank: of this process.
        world: how many there are.
        workers: processes that read images; 0 reads them in this one.
        device: where `Pixels` are resized, and their batches are.
        views: of each image; epoch e draws what epoch e mod `views` does. None: always another.

    Yields:
        (b, 3, H, W) float32 and (b,) int64 labels.

    Raises:
        ImageError: an image cannot be read; it is named.
    """
    places = places_of(
        len(split),
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        start=start,
        rank=rank,
        world=world,
    )
    draw = seed, epoch if views is None else epoch % views
    return augmented(split, transform, places, draw=draw, workers=workers, device=device)


def places_of(
    images: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> list[Places]:
    """One process's share of the places of an epoch's batches in a split of so many images.

    Seed and epoch decide the order. Global batch b holds images b * batch_size to
    (b + 1) * batch_size of it; process `rank` of `world` takes every world-th of them, so that all
    processes together see what one alone would. The last, incomplete batch is left out.
    """
    order = np.random.default_rng([seed, epoch]).permutation(images)
    return [
        order[step * batch_size : (step + 1) * batch_size][rank::world]
        for step in range(start, images // batch_size)
    ]


def places_in_order(images: int, batch_size: int, *, rank: int = 0, world: int = 1) -> list[Places]:
    """One process's share of the places of all images of a split, in order, in batches."""
    places = np.arange(images)
    return [places[i : i + batch_size] for i in range(0, images, batch_size)][rank::world]


def augmented(
    split: Split,
    transform: Transform,
    batches: Sequence[Places],
    *,
    draw: tuple[int, int],
    workers: int = 0,
    device: torch.device = CPU,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images at these places, transformed as seed and view `draw` it, and labels."""
    if isinstance(split.opener, Pixels):
        kept = split.opener.kept
        if isinstance(transform, EvalTransform):
            assert kept == Kept(preprocess=transform.preprocess)
            crops = _centre_crops(split, split.opener, batches, draw if transform.flip else None)
            yield from ((images, labels) for images, labels, _ in crops)
            return
        assert kept.smallest_crop is not None, "centre crops are for evaluation"
        fast = kept.preprocess.interpolation in SMOOTH
        if isinstance(transform, TrainTransform) and fast and not transform.one_by_one:
            augment = _Augment(split, split.opener, transform, draw=draw, device=device)
            yield from augment.batches(batches)
            return
    dataset = _Transformed(split, transform, draw=draw)
    for images, labels, _ in _read(dataset, batches, workers):
        yield images, labels


def eval_batches(
    split: Split,
    transform: Transform,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One process's share of a split, in order; each image once over all processes.

    Where the split's images are `Pixels`, they are the centre crops, and are only normalised.

    Args:
        split: to evaluate on.
        transform: image -> (3, H, W) float32.
        batch_size: images a batch.
        rank: of this process, which takes every `world`-th batch.
        world: how many processes there are.
        workers: processes that read images; 0 reads them in this one.

    Yields:
        (b, 3, H, W) float32, (b,) int64 labels and (b,) int64 places in the split.

    Raises:
        ImageError: an image cannot be read; it is named.
    """
    batches = places_in_order(len(split), batch_size, rank=rank, world=world)
    if isinstance(split.opener, Pixels):
        assert isinstance(transform, EvalTransform)
        assert split.opener.kept == Kept(preprocess=transform.preprocess)
        return _centre_crops(split, split.opener, batches, None)
    return _read(_Transformed(split, transform, draw=None), batches, workers)


Item = tuple[Tensor, int, int]


class _Transformed(Dataset[Item | BurstError]):
    """Index -> image as the model reads it, label, index; or why there is none.

    An error is handed over as a value, because a worker process that raises it would wrap a whole
    traceback around its text.
    """

    def __init__(self, split: Split, transform: Transform, *, draw: tuple[int, int] | None) -> None:
        self.split, self.transform, self.draw = split, transform, draw

    def __getitem__(self, index: int) -> Item | BurstError:
        try:
            image, label = self.split[index]
            if self.draw is None:
                return self.transform(image), label, index
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(mixed_seed(*self.draw, index))
                return self.transform(image), label, index
        except BurstError as error:
            return error


def _read(
    dataset: _Transformed, batches: Sequence[Any], workers: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        collate_fn=_collate,
        # Where somebody has chosen a GPU, not wherever there is one.
        pin_memory=torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
        generator=torch.Generator(),  # else it draws from the global one
    )
    for batch in loader:
        if isinstance(batch, BurstError):
            raise batch
        yield batch


def _collate(items: list[Item | BurstError]) -> tuple[Tensor, Tensor, Tensor] | BurstError:
    images, labels, indices = [], [], []
    for item in items:
        if isinstance(item, BurstError):
            return item
        images.append(item[0])
        labels.append(item[1])
        indices.append(item[2])
    return torch.stack(images), torch.tensor(labels), torch.tensor(indices)


class Buffers:
    """Memory of batches that is used again: fresh memory takes as long as the resizing.

    A tensor gives its memory back when nothing reads it any more, neither the tensor itself nor a
    view of it.
    """

    def __init__(self) -> None:
        self.free: list[NDArray[np.float32]] = []

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """A float32 tensor of any content."""
        fitting = [place for place, one in enumerate(self.free) if one.shape == shape]
        buffer = self.free.pop(fitting[0]) if fitting else np.empty(shape, np.float32)
        # All that reads the memory shares one storage, which holds this array as long as it lives.
        lent = buffer.view()
        weakref.finalize(lent, self.free.append, buffer).atexit = False
        return torch.from_numpy(lent)


class _Augment:
    """Random crops of kept pixels: drawn in the caller's thread, resized in others."""

    def __init__(
        self,
        split: Split,
        pixels: Pixels,
        transform: TrainTransform,
        *,
        draw: tuple[int, int],
        device: torch.device,
    ) -> None:
        self.split, self.pixels, self.transform = split, pixels, transform
        self.seed, self.device = draw, device
        self._buffers = Buffers()
        mean, std = (
            torch.tensor(one) for one in (transform.preprocess.mean, transform.preprocess.std)
        )
        # (x / 255 - mean) / std as one product and one sum
        self._scale = (1 / (255 * std)).view(3, 1, 1).to(device)
        self._shift = (-mean / std).view(3, 1, 1).to(device)
        if device.type == "cuda":
            self._training = torch.cuda.current_stream(device)
            self._own = _own_stream(device)

    def batches(self, batches: Sequence[Places]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of the images at these places."""
        starts = [range(0, len(batch), PART) for batch in batches]
        images: deque[Tensor] = deque()

        def parts() -> Iterator[Part]:
            for batch, first in zip(batches, starts, strict=True):
                images.append(self._empty(len(batch)))
                for start in first:
                    part = slice(start, start + PART)
                    yield self._drawn(batch[part]), images[-1][part]

        ahead = (AHEAD + 1) * max(map(len, starts), default=0) - 1
        with contextlib.closing(in_order(self._prepare, parts(), ahead=ahead)) as prepared:
            for batch, first in zip(batches, starts, strict=True):
                for _ in first:
                    next(prepared)
                yield images.popleft(), torch.from_numpy(self.split.labels[batch])

    def _empty(self, count: int) -> Tensor:
        shape = (count, 3, *[self.transform.preprocess.image_size] * 2)
        if self.device.type != "cpu":
            return torch.empty(shape, device=self.device)
        return self._buffers.take(shape)

    def _drawn(self, places: Places) -> list[tuple[U8, Box]]:
        """Each image and its box, drawn as without the cache."""
        found = []
        with torch.random.fork_rng(devices=[]):
            for place in places.tolist():
                image = self.pixels[self.split.names[place]]
                torch.default_generator.manual_seed(mixed_seed(*self.seed, place))
                found.append((image, self.transform.draw(*image.shape[:2])))
        return found

    def _prepare(self, part: Part) -> None:
        """Fill the part's (n, 3, size, size) float32."""
        if self.device.type != "cuda":
            self._fill(*part)
            return
        torch.cuda.set_device(self.device)  # leaving a stream, another thread would take up GPU 0
        self._own.wait_stream(self._training)  # which may still read what this memory held before
        with torch.cuda.stream(self._own):
            self._fill(*part)
        self._own.synchronize()

    def _fill(self, drawn: list[tuple[U8, Box]], images: Tensor) -> None:
        preprocess = self.transform.preprocess
        size, mode = preprocess.image_size, preprocess.interpolation
        for (image, box), out in zip(drawn, images, strict=True):
            pixels = crop(image, box, size, mode, device=self.device)
            torch.mul(pixels, self._scale, out=out).add_(self._shift)


@functools.cache
def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs of a process: what one stream used, PyTorch keeps for that stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def crop(image: U8, box: Box, size: int, mode: str, *, device: torch.device = CPU) -> Tensor:
    """(3, size, size) uint8: a box of an (H, W, 3) image, resized antialiased, mirrored or not.

    `mode` is "bilinear" or "bicubic". Without Pillow, several times faster and up to rounding the
    same as `Preprocess.crop`.
    """
    part = np.array(image[box.top : box.top + box.height, box.left : box.left + box.width])
    pixels = torch.from_numpy(part).to(device).permute(2, 0, 1)[None]
    if device.type != "cpu":  # elsewhere only floating-point numbers are resized
        pixels = pixels.float()
    found = functional.interpolate(pixels, [size, size], mode=mode, antialias=True)[0]
    if device.type != "cpu":
        found = found.clamp(0, 255).round().to(torch.uint8)
    return found.flip(-1) if box.flip else found


def _centre_crops(
    split: Split, pixels: Pixels, batches: Sequence[Places], draw: tuple[int, int] | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    def load(places: Places) -> Tensor:
        images = np.stack([pixels[split.names[place]] for place in places])
        contiguous = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        normal = pixels.kept.preprocess.normalise(contiguous)
        if draw is None:
            return normal
        mirror = torch.from_numpy(mirrored(draw, places)).view(-1, 1, 1, 1)
        return torch.where(mirror, normal.flip(-1), normal)

    with contextlib.closing(in_order(load, batches, ahead=1)) as loaded:
        for places, images in zip(batches, loaded, strict=True):
            yield images, torch.from_numpy(split.labels[places]), torch.from_numpy(places)


def mirrored(draw: tuple[int, int], places: Places) -> NDArray[np.bool_]:
    """Whether `EvalTransform` mirrors the images at these places, as seed and view `draw` it."""
    one = torch.Generator()
    seeds = (mixed_seed(*draw, place) for place in places.tolist())
    drawn = [torch.rand(1, generator=one.manual_seed(seed)).item() for seed in seeds]
    return np.array(drawn) < 0.5


def mixed_seed(*numbers: int) -> int:
    """One seed from several, well spread."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
