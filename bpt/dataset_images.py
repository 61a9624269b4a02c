"""Training images of a dataset -> a stream of them, as `burst` reads those of a folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from bpt.dataset import Split, dataset_info, open_coco, open_dataset
from bpt.detection.configuration import unlabelled
from burst.backbone import Backbone
from burst.distributed import first_alone
from burst.errors import BurstError, ImageError
from burst.images import ImageStream, check_numbers
from burst.progress import Say
from burst.survey import images_a_batch

NUM_IMAGES = 1000  # training images that matrices and tokens are taken from, where there are more
BATCH_SIZE = 32


def dataset_images(
    backbone: Backbone,
    name: str,
    data: str | Path | None = None,
    *,
    num_images: int | None = 100,
    seed: int = 0,
    skip_bad: bool = False,
    say: Say | None = None,
) -> ImageStream:
    """Training images of a dataset, prepared as `burst.images_for` prepares those of a folder.

    Args:
        backbone: as whose images they are prepared: in centre crops, nothing is augmented.
        name: of a dataset, see `open_dataset` and `open_coco`.
        data: the folder that it lies in, or its archive; `data_root()` if not given.
        num_images: at most so many, drawn with the seed; None: all of them.
        seed: of the draw; not negative.
        skip_bad: leave out images that cannot be read, and go on.
        say: called with a line before long work, and with the dataset's notes.

    Raises:
        ImageError: the backbone does not read images, a number is out of range, or see the
            dataset's file. Reading a bad image raises it while iterating.
        BurstError: see `open_dataset` and `open_coco`.
    """
    batch_size = images_a_batch(backbone)
    check_numbers(num_images=num_images, batch_size=batch_size, seed=seed)

    def opened() -> tuple[Split, str]:
        if dataset_info(name).task == "detection":
            coco = open_coco(name, data, say=say)
            return unlabelled(coco.train), coco.digest
        benchmark = open_dataset(name, data, say=say)
        return benchmark.train, benchmark.digest

    train, digest = first_alone(opened)
    return image_stream(
        train,
        backbone,
        seed=seed,
        digest=digest,
        source=f"folder:{data}" if name == "folder" else name,  # that name alone says no place
        split="train",
        num_images=num_images,
        batch_size=batch_size,
        skip_bad=skip_bad,
    )


def image_stream(
    images: Split,
    backbone: Backbone,
    *,
    seed: int,
    digest: str,
    source: str | None = None,
    split: str | None = None,
    num_images: int | None = NUM_IMAGES,
    batch_size: int = BATCH_SIZE,
    skip_bad: bool | None = None,
) -> ImageStream:
    """Images of a split, drawn with the seed, as `burst` reads images; called by their places.

    Args:
        images: a split of a dataset.
        backbone: as whose images they are prepared.
        seed: of the draw.
        digest: of the dataset; stands in the stream's fingerprint.
        source, split: what the stream says that it is of; None: so many training images.
        num_images: at most so many; None: all of them.
        batch_size: images a batch.
        skip_bad: leave out images that cannot be read; None: no, and nobody can ask for it.
    """
    chosen = np.random.default_rng(seed).permutation(len(images))[:num_images]
    names = [str(index) for index in chosen]  # an index, because two names may be equal
    preprocess = backbone.preprocess

    @contextmanager
    def opener() -> Iterator[Callable[[str], Tensor]]:
        def load(name: str) -> Tensor:
            try:
                return preprocess.centre(images[int(name)][0])
            except ImageError as error:
                if skip_bad is not None:
                    raise
                # The stream would advise an option that bpt has not.
                raise BurstError(str(error)) from error

        yield load

    return ImageStream(
        source=source or f"{len(chosen)} training images",
        batches=[names[i : i + batch_size] for i in range(0, len(names), batch_size)],
        fingerprint=digest,
        opener=opener,
        preprocess=preprocess,
        skip_bad=bool(skip_bad),
        seed=seed,
        split=split,
    )
