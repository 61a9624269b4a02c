"""How many augmented images a second, next to the usual DataLoader with Pillow?

    python benchmarks/loading.py                        # 500 x 375 JPEGs that it makes itself
    python benchmarks/loading.py --data photos.zip      # or a folder

The usual way: a dataset of files, RandomResizedCrop(224, bicubic), flip, ToTensor and Normalize in
as many DataLoader workers as there are cores; the workers live on from epoch to epoch. Ours is
`bpt.train_batches`: without the cache, in the epoch that fills the cache, and from the second epoch
on. Nothing is done with the batches. The ways take turns, and the median of the repeats counts.
The files are in the page cache of the system for all ways.
"""

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bpt import Split, train_batches
from bpt.dataset import FileOpener
from bpt.pixels import Kept, stored_pixels
from bpt.transforms import TrainTransform
from burst.preprocess import Preprocess

MEAN, STD, SIZE, SMALLEST_CROP = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, 0.08
PREPROCESS = Preprocess(image_size=SIZE, mean=MEAN, std=STD)
KEPT = Kept(preprocess=PREPROCESS, smallest_crop=SMALLEST_CROP)
TARGET = 5.0
USUAL, PLAIN = "DataLoader with Pillow", "bpt, no cache"
FIRST, LATER = "bpt, first epoch, cache filled", "bpt, from the second epoch on"


class Usual(Dataset):
    """As torchvision's ImageFolder reads and its examples augment."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    SIZE, interpolation=transforms.InterpolationMode.BICUBIC
                ),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with self.files[index].open("rb") as stream:
            image = Image.open(stream).convert("RGB")
        return self.transform(image), 0


def write_photographs(folder: Path, count: int) -> None:
    """JPEGs of 500 x 375 pixels: noise whose octaves fall off as those of photographs do."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = np.full((375, 500, 3), 128.0)
        for octave in range(9):
            side = 2 ** (octave + 1)
            noise = rng.normal(0, 70 / side**0.43, (side * 3 // 4 + 1, side, 3))
            for channel in range(3):
                layer = Image.fromarray(noise[..., channel].astype(np.float32))
                pixels[..., channel] += layer.resize((500, 375), Image.Resampling.BICUBIC)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number}.jpg", quality=90)


def rate(batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> float:
    """Images a second of a pass over the batches, what comes before the first included."""
    began = time.perf_counter()
    images = sum(len(labels) for _, labels in batches())
    return images / (time.perf_counter() - began)


def compare(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """For each way the images a second of each repeat."""
    opener = FileOpener(folder)
    names = tuple(sorted(opener.files.sizes))
    split = Split(names, np.zeros(len(names), np.int64), opener)
    transform = TrainTransform(PREPROCESS, smallest_crop=SMALLEST_CROP, flip=True)
    usual = DataLoader(
        Usual([folder / name for name in names]),
        batch_size=options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=True,
    )
    rates: dict[str, list[float]] = {USUAL: [], PLAIN: [], FIRST: [], LATER: []}
    for epoch in range(options.repeats + 1):  # the first warms up
        os.environ["BPT_CACHE"] = str(folder.parent / f"cache{epoch}")

        def batches(images: Split, epoch: int = epoch) -> Iterable[tuple[Tensor, Tensor]]:
            return train_batches(
                images,
                transform,
                batch_size=options.batch,
                seed=0,
                epoch=epoch,
                workers=options.workers,
                device=torch.device(options.device),
            )

        def cached() -> Split:
            pixels = stored_pixels(split, KEPT, say=lambda _: None)
            assert pixels is not None, "no room for the cache"
            return Split(names, split.labels, pixels)

        found = {
            USUAL: rate(lambda: usual),
            PLAIN: rate(lambda: batches(split)),
            FIRST: rate(lambda: batches(cached())),
        }
        again = cached()  # opened once a training
        found[LATER] = rate(lambda images=again: batches(images))
        if epoch:
            for way, value in found.items():
                rates[way].append(value)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="a folder or zip of photographs")
    parser.add_argument("--images", type=int, default=512, help="how many to make without --data")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photographs"
        folder.mkdir()
        if options.data is None:
            write_photographs(folder, options.images)
        elif options.data.is_dir():
            folder = Path(temporary) / "link"
            folder.symlink_to(options.data.resolve())
        else:
            with zipfile.ZipFile(options.data) as archive:
                archive.extractall(folder)
        rates = compare(folder, options)
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} "
        f"torch threads, {options.workers} workers, device {options.device}; "
        f"{versions}, Pillow {PIL.__version__}; load {os.getloadavg()[0]:.1f}"
    )
    base = statistics.median(rates[USUAL])
    rows = []
    for way, values in rates.items():
        median = statistics.median(values)
        rows.append({"way": way, "images_per_second": median, "times": median / base})
        print(f"{way:32} {median:8.0f} images/s {median / base:6.2f} times")
    print(f"target: {TARGET:.0f} times, from the second epoch on")
    if options.out:
        with options.out.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
