"""One's own images: a folder or an archive with train/CLASS/, val/CLASS/ and test/CLASS/."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from bpt.dataset.benchmark import Benchmark, DatasetInfo, Request
from bpt.dataset.split import FileOpener, Split
from burst.errors import ImageError

EXPECTED = "train/CLASS/IMAGE, test/CLASS/IMAGE and, if there is one, val/CLASS/IMAGE"
SPLITS = ("train", "val", "test")


def open_folder(request: Request) -> Benchmark:
    """Images in folders of their classes, as torchvision's ImageFolder reads them.

    An archive (zip, uncompressed tar) is read in place; all may lie in one folder more. Classes are
    the folders of all splits, sorted. Without `val/`, a tenth of the training images is held out,
    class by class and always the same, see `hold_out`.

    Raises:
        ImageError: nothing or no image lies there; a split is missing; an image lies in no class;
            a class has no training image.
    """
    place = request.root
    assert place is not None
    opener = FileOpener(place)
    files = _sorted_into(opener.files.sizes, place)
    classes = tuple(sorted({name for split in files.values() for _, name in split}))
    trained = {name for _, name in files["train"]}
    if lacking := [name for name in classes if name not in trained]:
        raise ImageError(f"{place}: class {lacking[0]!r} has no image in train/")
    number = {name: label for label, name in enumerate(classes)}

    def split(kind: str) -> Split:
        found = sorted(files[kind])
        labels = np.array([number[name] for _, name in found], np.int64)
        return Split(tuple(path for path, _ in found), labels, opener)

    val = split("val") if files["val"] else None
    return request.benchmark("folder", classes, split("train"), split("test"), val)


def _sorted_into(names: Iterable[str], place: Path) -> dict[str, list[tuple[str, str]]]:
    """Split -> (name, class) of its images."""
    names = list(names)
    paths = [PurePosixPath(name).parts for name in names]
    tops = {parts[0] for parts in paths}
    above = 1 if len(tops) == 1 and not tops & set(SPLITS) else 0
    files: dict[str, list[tuple[str, str]]] = {kind: [] for kind in SPLITS}
    for name, parts in zip(names, paths, strict=True):
        inside = parts[above:]
        if inside and inside[0] in SPLITS:
            if len(inside) < 3:
                raise ImageError(f"{place}: {name!r} lies in no class; expected {EXPECTED}")
            files[inside[0]].append((name, inside[1]))
    for kind in ("train", "test"):
        if not files[kind]:
            raise ImageError(f"{place} has no image in {kind}/; expected {EXPECTED}")
    return files


INFO = DatasetInfo(
    name="folder",
    title="Your own images",
    classes=None,
    sizes=None,
    licence="yours",
    citation="",
    source="a folder or an archive (zip, uncompressed tar): as data or folder:PATH",
    files=EXPECTED,
    embedded=False,
    opener=open_folder,
)
