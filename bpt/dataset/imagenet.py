"""ImageNet-1K (ILSVRC 2012): the validation images are the test split."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from timm.data.imagenet_info import ImageNetInfo

from bpt.dataset.benchmark import Benchmark, DatasetInfo, Request
from bpt.dataset.listing import Listed, read_mat, read_table, whole_numbers
from bpt.dataset.place import Archive, Layout, find
from burst.errors import ImageError

WNID = re.compile(r"n\d{8}")
DEVKIT = "ILSVRC2012_devkit_t12"
SOLUTION = "LOC_val_solution.csv"
HELD_OUT = 10_000  # training images to choose the epoch on, at most


def open_imagenet(request: Request) -> Benchmark:
    """train/WNID/ and val/WNID/; classes are the WordNet ids, sorted.

    val/ may also hold all images without folders, as the official archive and Kaggle's copy do:
    their classes are then read from the devkit or from LOC_val_solution.csv. For validation a tenth
    of the training images is held out, at most 10,000, class by class.

    `train_list` names training images, one a line, as n01440764_10183.JPEG or with a path before it
    (what stands behind a blank is not read), as SimCLR's lists of 1 % and 10 % do.

    Raises:
        ImageError: a folder or an image is missing, or a list is damaged.
    """
    root = request.root
    assert root is not None
    listed = Listed(root)
    train: dict[str, str] = {}
    val: dict[str, str] = {}
    for name in listed.opener.files.sizes:
        parts = PurePosixPath(name).parts
        if parts[0] in ("train", "val") and len(parts) <= 3:
            (train if parts[0] == "train" else val)[name] = parts[1] if len(parts) == 3 else ""
    if "" in val.values():
        val = _classes_of_flat(val, root)
    if odd := sorted(name for name, wnid in (train | val).items() if not WNID.fullmatch(wnid)):
        raise ImageError(f"{root}: {odd[0]!r} lies in no folder called like a class, as n01440764")
    if request.train_list is not None:
        train = _chosen(train, request.train_list)
    wnids = sorted({*train.values(), *val.values()})
    if lacking := sorted(set(wnids) - set(train.values())):
        raise ImageError(f"{root}: class {lacking[0]} has no training image")
    label = {wnid: place for place, wnid in enumerate(wnids)}

    def split(images: dict[str, str]) -> Iterable[tuple[str, int]]:
        return ((name, label[wnid]) for name, wnid in images.items())

    pool = listed.split(split(train))
    taken = len(pool) * (request.train_fraction or 1.0)
    share = min(0.1, HELD_OUT / max(1.0, taken))
    return request.benchmark(
        "imagenet", _names(wnids), pool, listed.split(split(val)), held_out=share
    )


def _names(wnids: list[str]) -> list[str]:
    """In words, as timm has them; the id itself where it has none."""
    info = ImageNetInfo()
    known = set(info.label_names())  # type: ignore[no-untyped-call]
    return [info.label_name_to_description(one) if one in known else one for one in wnids]


def _chosen(train: dict[str, str], path: Path) -> dict[str, str]:
    """Of the training images those that a list names."""
    by_name = {PurePosixPath(name).name: name for name in train}
    found = {}
    for number, row in enumerate(read_table(path, 1), 1):
        name = PurePosixPath(row[0].split()[0]).name
        if name not in by_name:
            raise ImageError(f"{path}, line {number}: {name!r} is no training image")
        found[by_name[name]] = train[by_name[name]]
    return found


def _classes_of_flat(val: dict[str, str], root: Path) -> dict[str, str]:
    """Classes of validation images that lie in no folders."""
    for above in (root, *list(root.parents)[:3]):
        if file := find(above, SOLUTION):
            known = _kaggle(file)
            break
        if folder := find(above, f"{DEVKIT}/data"):
            known = _devkit(folder)
            break
    else:
        raise ImageError(
            f"{root}/val has no folders of classes, and there is neither {SOLUTION} nor {DEVKIT}/ "
            "to tell them"
        )
    found = {name: wnid or known.get(PurePosixPath(name).stem, "") for name, wnid in val.items()}
    if lacking := [name for name, wnid in found.items() if not wnid]:
        raise ImageError(f"{root}: the class of {lacking[0]!r} is not known")
    return found


def _kaggle(file: Path) -> dict[str, str]:
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.reader(stream) if row][1:]
        return {name: boxes.split()[0] for name, boxes in rows}
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise ImageError(f"{file} is damaged: {error}") from error


def _devkit(folder: Path) -> dict[str, str]:
    """ILSVRC2012_val_00000001 -> WordNet id."""
    synsets = np.atleast_1d(read_mat(folder / "meta.mat", "synsets")[0])
    if not {"ILSVRC2012_ID", "WNID"} <= {*(synsets.dtype.names or ())}:
        raise ImageError(f"{folder / 'meta.mat'}: its synsets have no ILSVRC2012_ID and no WNID")
    ids = whole_numbers(synsets["ILSVRC2012_ID"], f"{folder / 'meta.mat'}, ILSVRC2012_ID")
    wnid = {one: str(name) for one, name in zip(ids.tolist(), synsets["WNID"], strict=True)}
    rows = read_table(folder / "ILSVRC2012_validation_ground_truth.txt", 1)
    try:
        return {
            f"ILSVRC2012_val_{number:08d}": wnid[int(row[0])] for number, row in enumerate(rows, 1)
        }
    except KeyError as error:
        raise ImageError(f"{folder}: class id {error} is not in meta.mat") from error
    except ValueError as error:
        raise ImageError(f"{folder}: a class id is no number: {error}") from error


INFO = DatasetInfo(
    name="imagenet",
    title="ImageNet-1K (ILSVRC 2012)",
    classes=1000,
    sizes=(1_271_167, 10_000, 50_000),
    licence="ImageNet's terms of access: non-commercial research and education",
    citation="Russakovsky et al. 2015, doi 10.1007/s11263-015-0816-y",
    source="https://image-net.org (registration), or Kaggle's ImageNet Object Localization",
    files="train/WNID/ and val/WNID/; or ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
    f"{DEVKIT}.tar.gz; or Kaggle's ILSVRC/ and {SOLUTION}",
    opener=open_imagenet,
    layout=Layout(
        folders=(
            "imagenet",
            "ImageNet",
            "ILSVRC2012",
            "ILSVRC/Data/CLS-LOC",
            "imagenet/ILSVRC/Data/CLS-LOC",
        ),
        markers=("train",),
        archives=(
            Archive("ILSVRC2012_img_train.tar", "train", nested=True),
            Archive("ILSVRC2012_img_val.tar", "val"),
            Archive(f"{DEVKIT}.tar.gz", DEVKIT, top=DEVKIT),
        ),
    ),
)
