"""A name -> training, validation and test images with their classes; one file a dataset.

digits         scikit-learn's hand-written digits, which come with it
folder:PATH    one's own images: a folder or archive with train/, val/ and test/
"""

from pathlib import Path

from bpt.dataset import digits, folder
from bpt.dataset.benchmark import Benchmark, DatasetInfo
from bpt.dataset.split import FileOpener, Split, hold_out
from burst.errors import BurstError, check_known

DATASETS = (digits.INFO, folder.INFO)


def known_datasets() -> tuple[DatasetInfo, ...]:
    """What `open_dataset` knows, in its order."""
    return DATASETS


def open_dataset(name: str, data: str | Path | None = None) -> Benchmark:
    """A dataset by its name.

    Args:
        name: of `known_datasets`, or "folder:PATH".
        data: where its files lie; not for what is embedded.

    Raises:
        UnknownName: no such name; the nearest are offered.
        BurstError: `data` is missing, or given twice, or for an embedded dataset.
        ImageError: see the dataset's file.
    """
    kind, colon, path = name.partition(":")
    check_known("dataset", kind, [one.name for one in DATASETS])
    info = next(one for one in DATASETS if one.name == kind)
    if colon and (data is not None or info.embedded):
        raise BurstError(f"dataset {name!r}: give its place once, as --data or behind folder:")
    place = path if colon else data
    if info.embedded and place is not None:
        raise BurstError(f"{kind} comes with scikit-learn; leave --data out")
    if not info.embedded and not place:
        raise BurstError(f"dataset {kind} needs a place: --data PATH; expected {info.files}")
    return info.opener(Path(place) if place else None)


__all__ = [
    "Benchmark",
    "DatasetInfo",
    "FileOpener",
    "Split",
    "hold_out",
    "known_datasets",
    "open_dataset",
]
