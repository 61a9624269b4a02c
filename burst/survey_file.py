"""A survey -> one .npz file, and back with nothing lost: arrays and a JSON text, no pickle.

about                            the JSON: everything but numbers in arrays
BLOCK/HEAD/QUANTITY/counts       int64: underflow, bins, overflow
BLOCK/HEAD/QUANTITY/moments      float64, in the order of `MOMENTS`
BLOCK/HEAD/QUANTITY/rows         float64 (5, rows), in the order of `GroupMoments`, of a product
BLOCK/HEAD/QUANTITY/columns      float64, in the order of `GroupSums`
table/COLUMN                     a column of numbers
softmax/COLUMN                   the same of the table of what softmax makes of logits
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from burst.adapters import SkippedBlock
from burst.archive import reason
from burst.axis import axis_from_dict
from burst.decomposition import GroupMoments, GroupSums, Margins
from burst.errors import CheckpointError, OutputError, ShapeError
from burst.files import write_atomically
from burst.gauge import Key
from burst.histogram import Histogram, NonFinite
from burst.moments import Moments
from burst.survey import Survey
from burst.weightfile import DAMAGE

KIND = "burst survey 1"
MOMENTS = ("mean", "m2", "m3", "m4", "minimum", "maximum")
NUMBERS = "iuf"  # kinds of dtype

Read = Callable[[str], NDArray[Any]]


def write_survey(survey: Survey, path: str | Path) -> None:
    """Write what `read_survey` reads, whole or not at all. See `Survey.save`."""
    if Path(path).suffix != ".npz":
        raise OutputError(f"cannot write {path}: a survey is saved as .npz")
    arrays: dict[str, Any] = {"about": np.array(json.dumps({"kind": KIND, **_about(survey)}))}
    for place, table in (("table", survey.table), ("softmax", survey.softmax)):
        arrays |= {f"{place}/{name}": table[name].to_numpy() for name in _numbers(table)}
    for key, hist in survey.histograms.items():
        arrays[f"{_name(key)}/counts"] = hist.values(flow=True)
        arrays[f"{_name(key)}/moments"] = np.array([getattr(hist.moments, one) for one in MOMENTS])
    for key, margins in survey.margins.items():
        arrays[f"{_name(key)}/rows"] = np.stack(margins.rows.arrays())
        arrays[f"{_name(key)}/columns"] = np.stack(margins.columns.arrays())
    with write_atomically(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def read_survey(path: str | Path) -> Survey:
    """Read what `write_survey` wrote. See `Survey.load`."""
    try:
        with Path(path).open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("it is not a whole .npz file")
            with zipfile.ZipFile(stream) as archive:
                return _survey(lambda name: _array(archive, name))
    except (ShapeError, *DAMAGE) as error:
        raise CheckpointError(
            f"{path} cannot be read as a survey: {reason(error)}; expected what "
            "`burst histogram --out` or `Survey.save` wrote"
        ) from error


def _about(survey: Survey) -> dict[str, Any]:
    return {
        **_about_table(survey.table),
        "softmax": _about_table(survey.softmax) if len(survey.softmax) else None,
        "histograms": [[*key, _beside(hist)] for key, hist in survey.histograms.items()],
        "margins": [list(key) for key in survey.margins],
        "skipped": [vars(block) for block in survey.skipped],
        "omitted": survey.omitted,
        "bad_images": survey.bad_images,
        "record": survey.record,
    }


def _about_table(table: pd.DataFrame) -> dict[str, Any]:
    numbers = _numbers(table)
    return {
        "columns": list(table.columns),
        "texts": {name: table[name].tolist() for name in table.columns if name not in numbers},
    }


def _beside(hist: Histogram) -> dict[str, Any]:
    """What a histogram has beside its counts and the moments that are not whole numbers."""
    return {
        "axis": hist.axis.to_dict(),
        "count": int(hist.count),
        "nonfinite": {name: int(number) for name, number in vars(hist.nonfinite).items()},
        "backend": hist.backend,
        "precision": hist.precision,
        "kernel": hist.kernel,
    }


def _survey(read: Read) -> Survey:
    about = json.loads(str(read("about")))
    if about["kind"] != KIND:
        raise ValueError(f"it is of another kind, {about['kind']!r}")
    softmax = about.get("softmax")  # not in files that were written before there was one
    return Survey(
        _table(about, read),
        {
            (block, head, quantity): _histogram(_name((block, head, quantity)), beside, read)
            for block, head, quantity, beside in about["histograms"]
        },
        tuple(SkippedBlock(**block) for block in about["skipped"]),
        tuple(about["omitted"]),
        tuple((name, why) for name, why in about["bad_images"]),
        about["record"],
        {  # files that were written before there were any have none
            (block, head, quantity): _margins(_name((block, head, quantity)), read)
            for block, head, quantity in about.get("margins", ())
        },
        **({"softmax": _table(softmax, read, "softmax")} if softmax else {}),
    )


def _table(about: Mapping[str, Any], read: Read, place: str = "table") -> pd.DataFrame:
    texts = about["texts"]
    return pd.DataFrame(
        {
            name: texts[name] if name in texts else read(f"{place}/{name}")
            for name in about["columns"]
        }
    )


def _histogram(name: str, beside: Mapping[str, Any], read: Read) -> Histogram:
    counts, moments = read(f"{name}/counts"), read(f"{name}/moments")
    if counts.dtype != np.int64 or moments.dtype != np.float64 or (counts < 0).any():
        raise ShapeError(f"{name} has no counts from 0 or no moments")
    numbers = dict(zip(MOMENTS, moments.tolist(), strict=True))
    return Histogram(
        axis_from_dict(beside["axis"]),
        counts,
        moments=Moments(beside["count"], **numbers),
        nonfinite=NonFinite(**beside["nonfinite"]),
        backend=beside["backend"],
        precision=beside["precision"],
        kernel=beside["kernel"],
    )


def _margins(name: str, read: Read) -> Margins:
    rows, columns = read(f"{name}/rows"), read(f"{name}/columns")
    if rows.dtype != np.float64 or rows.ndim != 2 or columns.dtype != np.float64:
        raise ShapeError(f"{name} has no margins")
    return Margins(GroupMoments(*rows), GroupSums(*columns))


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read as a whole before it is looked at, so that the zip has checked its sum."""
    member = io.BytesIO(archive.read(f"{name}.npy"))
    array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _name(key: Key) -> str:
    block, head, quantity = key
    return f"{block}/{head}/{quantity}"


def _numbers(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if table[name].dtype.kind in NUMBERS]
