"""Stanford Cars: 196 models, in three layouts that go about."""

from pathlib import Path
from typing import Any

import numpy as np

from bpt.dataset.benchmark import FGVC_COPY, Benchmark, DatasetInfo, Request
from bpt.dataset.listing import MOST, Listed, read_mat, vpt_benchmark, whole_numbers
from bpt.dataset.place import Archive, Layout, find
from burst.errors import ImageError

COMBINED = "cars_annos.mat"
DEVKIT = {
    "train": ("devkit/cars_train_annos.mat", "cars_train_annos.mat"),
    "test": ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"),
}
META = ("devkit/cars_meta.mat", "cars_meta.mat")
BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
RANGES = {"class": (1, MOST), "test": (0, 1)} | dict.fromkeys(BOX, (0, MOST))
Row = dict[str, Any]


def open_cars(request: Request) -> Benchmark:
    """The devkit's lists with cars_train/ and cars_test/, or cars_annos.mat with car_ims/.

    On Kaggle's copy the images lie in cars_train/cars_train/ and cars_test/cars_test/. The numbers
    of car_ims/ are others than those of cars_train/ and cars_test/: where a list names the former
    and only the latter are there, images are matched by split, class and bounding box.

    Raises:
        ImageError: a file is missing or damaged, or an image is missing.
    """
    root = request.root
    assert root is not None
    single = find(root, "car_ims") is not None
    combined = find(root, COMBINED)
    devkit = {kind: _first(root, names) for kind, names in DEVKIT.items()}
    if find(root, "train.json"):
        rename = None if single else _six_digits(root, combined, devkit)
        found = vpt_benchmark(request, "cars", rename=rename)
        assert found is not None
        return found
    if combined and single:
        rows = _combined_rows(combined)
        names = _class_names(combined)
    else:
        rows = _devkit_rows(root, devkit)
        names = _class_names(_first(root, META))
    count = max(row["class"] for row in rows)
    if len(names) < count:
        names = [str(number) for number in range(1, count + 1)]
    listed = Listed(root)
    train, test = (
        listed.split((row["path"], row["class"] - 1) for row in rows if row["test"] == test)
        for test in (False, True)
    )
    return request.benchmark("cars", names, train, test)


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((found for name in names if (found := find(root, name))), None)


def _class_names(file: Path | None) -> list[str]:
    """Empty without a file."""
    return (
        [] if file is None else [str(one) for one in np.atleast_1d(*read_mat(file, "class_names"))]
    )


def _rows(file: Path, *fields: str) -> list[Row]:
    """The struct array `annotations`, one dictionary an image, with its class, box and `fields`."""
    annotations = np.atleast_1d(read_mat(file, "annotations")[0])
    if lacking := {"class", *BOX, *fields} - {*(annotations.dtype.names or ())}:
        raise ImageError(f"{file}: its annotations have no {min(lacking)}")
    if not len(annotations):
        raise ImageError(f"{file} lists no image")
    columns = {name: annotations[name].tolist() for name in ("class", *BOX, *fields)}
    for name in RANGES.keys() & columns.keys():
        least, most = RANGES[name]
        checked = whole_numbers(columns[name], f"{file}, {name}", least=least, most=most)
        columns[name] = checked.tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _combined_rows(file: Path) -> list[Row]:
    return [
        row | {"path": str(row["relative_im_path"]), "test": bool(row["test"])}
        for row in _rows(file, "relative_im_path", "test")
    ]


def _devkit_rows(root: Path, devkit: dict[str, Path | None]) -> list[Row]:
    """Of both lists, with paths from the root."""
    if lacking := [DEVKIT[kind][0] for kind, file in devkit.items() if file is None]:
        raise ImageError(
            f"{root} has no {' and no '.join(lacking)}; the labels of the test images are in "
            "cars_test_annos_withlabels.mat, which is not part of the devkit's archive"
        )
    return [
        row | {"path": f"cars_{kind}/{row['fname']}", "test": kind == "test"}
        for kind, file in devkit.items()
        if file
        for row in _rows(file, "fname")
    ]


def _six_digits(
    root: Path, combined: Path | None, devkit: dict[str, Path | None]
) -> dict[str, str]:
    """car_ims/000001.jpg -> its image in cars_train/ or cars_test/."""
    if combined is None or None in devkit.values():
        raise ImageError(
            f"{root}: the split files name car_ims/, which is not there. To find its images in "
            f"cars_train/ and cars_test/, {COMBINED} and both lists of the devkit are needed"
        )

    def key(row: Row) -> tuple[int, ...]:
        return (int(row["test"]), *(row[name] for name in ("class", *BOX)))

    found: dict[tuple[int, ...], list[str]] = {}
    for row in _devkit_rows(root, devkit):
        found.setdefault(key(row), []).append(row["path"])
    renamed = {}
    for row in _combined_rows(combined):
        alike = found.get(key(row))
        if not alike:
            raise ImageError(f"no image of the devkit is {row['path']} of {combined}, by its box")
        # Of two with one box, class and split, either will do.
        renamed[row["path"]] = alike.pop(0)
    return renamed


INFO = DatasetInfo(
    name="cars",
    title="Stanford Cars",
    classes=196,
    sizes=(7_329, 815, 8_041),
    licence="for research",
    citation="Krause et al. 2013, doi 10.1109/ICCVW.2013.77",
    source="copies on Kaggle, since its site is gone (labels of the test images lie apart)",
    copies=(FGVC_COPY,),
    files="cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat; or car_ims/ and "
    "cars_annos.mat; packed or not",
    opener=open_cars,
    layout=Layout(
        folders=("stanford_cars", "cars", "Cars", "StanfordCars"),
        markers=(*DEVKIT["train"], COMBINED, "train.json"),
        archives=(
            Archive("car_ims.tgz", "car_ims", top="car_ims"),
            Archive("cars_train.tgz", "cars_train", top="cars_train"),
            Archive("cars_test.tgz", "cars_test", top="cars_test"),
            Archive("car_devkit.tgz", "devkit", top="devkit"),
        ),
    ),
)
