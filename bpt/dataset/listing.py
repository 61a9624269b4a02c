"""Image names in a dataset's lists -> splits of files that are really there."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import scipy.io

from bpt.dataset.benchmark import Benchmark, Request
from bpt.dataset.place import find
from bpt.dataset.split import FileOpener, Labels, Split
from burst.errors import ImageError

MOST = 10**6  # no list here counts further: classes, images, pixels
VPT_FILES = {"train": "train.json", "val": "val.json", "test": "test.json"}


class Listed:
    """The images under a root, by the names that the dataset's lists give them.

    A name is taken as it is, without `./`; else, in this order: in other case; with its first
    folder doubled, as in copies on Kaggle (cars_train/cars_train/00001.jpg); with spaces or other
    marks as they are.

    Args:
        root: of the dataset.

    Raises:
        ImageError: it holds no image.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.opener = FileOpener(root)
        self._lower: dict[str, str] | None = None

    def split(self, images: Iterable[tuple[str, int]]) -> Split:
        """Names and labels -> the split, in the order of the names.

        Raises:
            ImageError: images that the list names are missing; how many, and one of them.
        """
        listed = sorted((str(PurePosixPath(name)), label) for name, label in images)
        found = [self._find(name) for name, _ in listed]
        missing = [name for (name, _), one in zip(listed, found, strict=True) if one is None]
        if missing:
            raise ImageError(
                f"{self.root}: {len(missing):,} of {len(listed):,} listed images are missing, "
                f"such as {missing[0]!r}; remove what is there and unpack the archive again"
            )
        labels = np.array([label for _, label in listed], np.int64)
        return Split(tuple(one for one in found if one is not None), labels, self.opener)

    def _find(self, name: str) -> str | None:
        files = self.opener.files.sizes
        if name in files:
            return name
        if self._lower is None:
            self._lower = {one.lower(): one for one in sorted(files, reverse=True)}
        doubled = f"{name.partition('/')[0]}/{name}"
        return self._lower.get(name.lower()) or self._lower.get(doubled.lower())


def vpt_benchmark(
    request: Request,
    name: str,
    *,
    prefix: str = "",
    rename: Mapping[str, str] | None = None,
    unpacked: str = "",
) -> Benchmark | None:
    """The dataset as train.json, val.json and test.json in its root split it; None without them.

    They are the files of KMnP/vpt: {path: class id}. Ids become labels by their order over all
    splits, so that a class that one split lacks shifts no label. A class is called like the folder
    of its images where it has one of its own, else by its id.

    Args:
        request: whose root is looked into.
        name: of the dataset.
        prefix: what the paths are relative to, in the root.
        rename: paths that lie elsewhere.
        unpacked: the folder of its archive; where it lies in the root, the images are in it.

    Raises:
        ImageError: one of the files is missing or damaged, or names images that are missing.
    """
    root = request.root
    assert root is not None
    files = {kind: find(root, file) for kind, file in VPT_FILES.items()}
    if not any(files.values()):
        return None
    if lacking := [VPT_FILES[kind] for kind, file in files.items() if file is None]:
        raise ImageError(f"{root} has split files but no {' and no '.join(lacking)}")
    tables = {kind: _read_vpt(file) for kind, file in files.items() if file}
    ids = sorted({label for table in tables.values() for label in table.values()})
    label_of = {one: label for label, one in enumerate(ids)}
    folders: dict[int, set[str]] = {one: set() for one in ids}
    for table in tables.values():
        for path, one in table.items():
            folders[one].add(PurePosixPath(path).parent.name)
    own = len({one for names in folders.values() for one in names}) == len(ids)
    names = [min(folders[one]) if own else str(one) for one in ids]
    listed = Listed(find(root, unpacked) or root)

    def split(kind: str) -> Split:
        table = tables[kind]
        paths = [(path if not rename else rename.get(path, path)) for path in table]
        pairs = zip(paths, table.values(), strict=True)
        return listed.split((prefix + path, label_of[one]) for path, one in pairs)

    return request.benchmark(name, names, split("train"), split("test"), split("val"))


def _read_vpt(path: Path) -> dict[str, int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ImageError(f"{path} must hold one object of image paths and class ids")
    found = {}
    for name, label in content.items():
        if (number := _whole(label)) is None:
            raise ImageError(f"{path}: class id {label!r} of {name!r} is no whole number")
        found[str(PurePosixPath(name))] = number
    return found


def _whole(label: object) -> int | None:
    """A whole number, also as "3" or 3.0; None if it is none."""
    if isinstance(label, float):
        return int(label) if label.is_integer() else None
    try:
        return int(label) if isinstance(label, int | str) and not isinstance(label, bool) else None
    except ValueError:
        return None


def read_mat(path: Path, *keys: str) -> list[Any]:
    """Variables of a .mat file, squeezed.

    Raises:
        ImageError: it cannot be read, or lacks one.
    """
    try:
        content = scipy.io.loadmat(path, squeeze_me=True, variable_names=keys)
    except Exception as error:  # SciPy raises anything on damaged data
        raise ImageError(f"{path} is damaged, or no .mat file: {error}") from error
    if lacking := [key for key in keys if key not in content]:
        raise ImageError(f"{path} has no variable {lacking[0]!r}")
    return [content[key] for key in keys]


def whole_numbers(values: Any, what: str, *, least: int = 1, most: int = MOST) -> Labels:  # noqa: ANN401
    """A variable or a field of a .mat file, checked, as (n,) int64.

    Args:
        values: as `read_mat` gives it.
        what: to call it.
        least: that is allowed.
        most: that is allowed.

    Raises:
        ImageError: it is no list of whole numbers within these.
    """
    try:
        found = np.array(np.atleast_1d(values).tolist())
    except ValueError:  # cells of several lengths
        found = np.empty((0, 0))
    if found.ndim != 1 or found.dtype.kind not in "iuf":
        raise ImageError(f"{what} is no list of numbers")
    good = (found >= least) & (found <= most) & (found == np.floor(found))
    if not good.all():
        place = int(good.argmin())
        raise ImageError(
            f"{what}: number {place + 1} is {found[place]}; "
            f"expected a whole number from {least:,} to {most:,}"
        )
    return found.astype(np.int64)


def read_table(path: Path, columns: int) -> list[list[str]]:
    """Lines of a text file, cut at blanks into so many columns; the last keeps its blanks.

    Raises:
        ImageError: it cannot be read, is empty, or a line has fewer columns; with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = line.strip().split(maxsplit=columns - 1)
            if len(row) < columns:
                raise ImageError(f"{path}, line {number}: {line!r} must have {columns} columns")
            rows.append(row)
    if not rows:
        raise ImageError(f"{path} is empty")
    return rows
