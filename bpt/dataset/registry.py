"""The known datasets: found by name, opened, fetched."""

from pathlib import Path

from bpt.dataset import birds, cars, coco, digits, dogs, flowers, folder, imagenet, vtab
from bpt.dataset.benchmark import Benchmark, DatasetInfo, Request, how_to_get
from bpt.dataset.download import fetch
from bpt.dataset.place import place_of, prepare
from burst.errors import BurstError, ImageError, UnknownName, check_known
from burst.files import at_home, safe_name
from burst.progress import Progress, Say

DATASETS = (
    digits.INFO,
    folder.INFO,
    birds.CUB,
    birds.NABIRDS,
    flowers.INFO,
    dogs.INFO,
    cars.INFO,
    imagenet.INFO,
    vtab.INFO,
    coco.INFO,
)


def known_datasets() -> tuple[DatasetInfo, ...]:
    """What `open_dataset` knows, in its order."""
    return DATASETS


def dataset_info(name: str) -> DatasetInfo:
    """What is known of a dataset, by its name or as "folder:PATH", "coco:PATH" or "vtab:TASK".

    Raises:
        UnknownName: no such name; the nearest are offered.
    """
    kind, own, rest = name.partition(":")
    known = [one.name for one in DATASETS]
    if kind not in known and Path(name).exists():
        raise UnknownName("dataset", name, known, f"(your own images are folder:{name})")
    check_known("dataset", kind, known)
    if own and kind == coco.INFO.name:
        return coco.OWN
    if own and kind == vtab.INFO.name:
        return vtab.vtab_info(rest)
    return next(one for one in DATASETS if one.name == kind)


def without_place(name: str) -> str:
    """A dataset's name without the place in it: folder:photos -> folder; vtab:cifar has none."""
    kind = name.partition(":")[0]
    return name if kind == vtab.INFO.name else kind


def file_name(name: str) -> str:
    """What files of a dataset are called: folder:my/photos -> folder-photos, so that two differ."""
    kind, _, rest = name.partition(":")
    last = Path(rest).name if rest else ""
    return safe_name(f"{kind}-{last}" if last else kind)


def open_dataset(
    name: str,
    data: str | Path | None = None,
    *,
    train_fraction: float | None = None,
    train_list: str | Path | None = None,
    say: Say | None = None,
) -> Benchmark:
    """A dataset to classify, by its name.

    What its makers' archives hold is unpacked beside them, once.

    Args:
        name: of `known_datasets`, or "folder:PATH", or "vtab:TASK".
        data: the folder that it lies in, or its archive; `data_root()` if not given. Not for what
            is embedded.
        train_fraction: share of each class's training images to take, see `class_fraction`.
        train_list: for imagenet: a text file that names the training images.
        say: called with a line before long work, and with the dataset's `notes`.

    Raises:
        UnknownName: no such name; the nearest are offered.
        BurstError: `data` is missing, or given twice, or for an embedded dataset; a list where
            there is none; a fraction out of range; the dataset is for detection.
        ImageError: see the dataset's file.
        OutputError: an archive cannot be unpacked beside itself.
    """
    info = dataset_info(name)
    opener = info.opener
    if opener is None:
        if info.members:
            listed = ", ".join(info.members)
            raise BurstError(f"{name} is {len(info.members)} datasets; say which: {listed}")
        raise BurstError(f"{name} is for detection, not for classification; see bpt.open_coco")
    path = name.partition(":")[2] if info.layout is None else ""
    colon = ":" in name and info.name != name
    if colon and (data is not None or info.layout is not None or info.embedded):
        raise BurstError(f"dataset {name!r}: give its place once, as data or behind folder:")
    if info.embedded and data is not None:
        raise BurstError(f"{info.name} comes with scikit-learn; leave data out")
    if train_list is not None and info is not imagenet.INFO:
        raise BurstError(f"a list of training images is for imagenet, not for {info.name}")
    root: Path | None = None
    if info.layout is not None:
        root = prepare(info.name, info.layout, place_of(data), hint=how_to_get(info), say=say)
    elif not info.embedded:
        if not (path or data):
            raise BurstError(
                f"dataset {name} needs a place, as data or as folder:PATH; expected {info.files}"
            )
        root = at_home(path or data or "")  # no shell does behind a colon
    request = Request(root, train_fraction, Path(train_list) if train_list else None)
    benchmark = opener(request)
    if info.classes is not None and len(benchmark.classes) > info.classes:
        raise ImageError(
            f"{root} has {len(benchmark.classes)} classes, and {info.name} {info.classes}: "
            "is it another dataset?"
        )
    if say:
        for note in benchmark.notes:
            say(note)
    return benchmark


def locate(info: DatasetInfo, data: str | Path | None = None) -> tuple[Path | None, list[Path]]:
    """Where a dataset is, or None; and where it was looked for. Nothing is unpacked.

    Args:
        info: of the dataset; of one without a layout, such as one's own images, nothing is known.
        data: the folder that it lies in, or its archive; `data_root()` if not given.
    """
    if info.layout is None:
        return None, []
    place = place_of(data)
    packed = info.layout.packed(place) if place.exists() else []
    found = info.layout.root(place) if place.exists() else None
    return found or (packed[0][0] / packed[0][1].file if packed else None), info.layout.bases(place)


def download_dataset(
    info: DatasetInfo,
    data: str | Path | None = None,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Path:
    """Fetch what its makers publish, checked, into a folder of its own, and unpack it.

    Args:
        info: of the dataset.
        data: the folder above; `data_root()` if not given.
        progress: called as progress(bytes done, bytes in all) for each file.
        say: called with a line for each file.

    Returns:
        The folder that holds it: `data`/NAME.

    Raises:
        BurstError: its licence or its site does not allow it.
        DownloadError, OutputError: see `fetch`.
        ImageError: an archive is damaged.
    """
    if not info.downloads or info.layout is None:
        raise BurstError(f"{info.name} cannot be downloaded from here: {how_to_get(info)}")
    place = place_of(data) / info.name
    for file in info.downloads:
        if say:
            say(f"{file.url} to {place / file.name}")
        fetch(file, place, progress=progress, say=say)
    prepare(info.name, info.layout, place, hint=how_to_get(info), say=say)
    return place
