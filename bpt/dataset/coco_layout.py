"""Where a set in COCO's format keeps its JSONs and its images.

COCO's own files, as they are published, packed or not:

    annotations/instances_{train,val}2017.json, or annotations_trainval2017.zip
    train2017/ and val2017/, or train2017.zip and val2017.zip (or .tar); also in images/

What tools write, in a folder or in one zip or uncompressed tar; the first that is there is taken:

    instances_NAME.json      as CVAT, Datumaro and COCO have it, usually in annotations/
    _annotations.coco.json   in train/ and valid/, as Roboflow has it
    train.json, val.json     or other names with these words
    one JSON                 result.json, annotations.json, or the only one

A JSON is for training or for validation by the last of the words train, val, valid and validation
in its path; a year may follow. Those with the word test are not read.

The file name that a JSON gives an image is looked up in images/NAME/, NAME/, the JSON's folder, the
one above annotations/, images/ and the place itself, where NAME is that word, such as train2017. It
may also lie in NAME.zip, NAME.tar or images.zip, which are read in place. If it is nowhere there,
its base name counts, where only one image has it, in either form of Unicode.
"""

import os
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from bpt.dataset.place import find
from bpt.dataset.split import FileOpener
from burst.archive import DAMAGED, open_tar, reason
from burst.errors import ImageError

PACKED = "annotations_trainval2017.zip"
OFFICIAL = "annotations/instances_{}2017.json"
EXPECTED = (
    "annotations/instances_*.json, train.json and val.json, train/_annotations.coco.json and "
    "valid/_annotations.coco.json, or one JSON"
)
SINGLE = ("result.json", "annotations.json", "coco.json")  # among other JSONs
WORD = re.compile(r"(?<![a-z])(train|val|test)(?:ing|id|idation)?(?:\d{4})?(?![a-z0-9])")
HIDDEN = re.compile(r"(^|/)(\.|__MACOSX/)")


@dataclass(frozen=True)
class JsonFile:
    """A JSON of a set.

    Attributes:
        place: the folder, zip or tar that it lies in.
        name: its path in there, with forward slashes.
    """

    place: Path
    name: str

    def __str__(self) -> str:
        return str(self.place / self.name)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its bytes, from their start."""
        if self.place.is_dir():
            with (self.place / self.name).open("rb") as stream:
                yield stream
        elif zipfile.is_zipfile(self.place):
            with zipfile.ZipFile(self.place) as archive, archive.open(self.name) as stream:
                yield stream
        else:
            with open_tar(self.place) as tar:
                inner = tar.extractfile(self.name)
                assert inner is not None  # it was listed as a file
                yield inner

    @property
    def file(self) -> str:
        """Its name without its folders."""
        return PurePosixPath(self.name).name

    @property
    def kind(self) -> str:
        """train, val or test; empty if no word tells."""
        found = self._words()
        return found[-1].group(1) if found else ""

    @property
    def split(self) -> str:
        """What the folder of its images may be called, such as train2017, valid or default."""
        stem = self.file.removesuffix(".json")
        if stem.startswith("instances_"):
            return stem.removeprefix("instances_")
        found = self._words()
        return found[-1].group() if found else stem

    def _words(self) -> list[re.Match[str]]:
        return list(WORD.finditer(self.name.removesuffix(".json").lower()))


@dataclass(frozen=True)
class Found:
    """The JSONs of a set.

    Attributes:
        train: or the only one.
        val: None if there is only one.
        base: the folder that the images' folders or archives must lie in, with COCO's own files;
            None where all of the place is searched.
    """

    train: JsonFile
    val: JsonFile | None
    base: Path | None = None


def official_jsons(base: Path) -> Found:
    """COCO's own, in a folder or in their archive.

    Raises:
        ImageError: one is missing; where it was looked for.
    """
    found = []
    packed = find(base, PACKED) or find(base, f"annotations/{PACKED}")
    for kind in ("train", "val"):
        name = OFFICIAL.format(kind)
        if find(base, name):
            found.append(JsonFile(base, name))
        elif packed and name in _members(packed):
            found.append(JsonFile(packed, name))
        else:
            raise ImageError(f"{base} has neither {name} nor {PACKED} with it; download it again")
    return Found(found[0], found[1], base)


def own_jsons(place: Path) -> Found:
    """Those of any set.

    Raises:
        ImageError: there is none, or it is not clear which are meant.
    """
    if not place.exists():
        raise ImageError(f"{str(place)!r} does not exist; expected a folder, zip or tar")
    if find(place, PACKED):
        return official_jsons(place)
    every = [JsonFile(place, name) for name in _members(place) if name.endswith(".json")]
    every = sorted((one for one in every if one.kind != "test"), key=lambda one: one.name)
    for rule in (
        [one for one in every if one.file.startswith("instances_")],
        [one for one in every if one.file == "_annotations.coco.json"],
        [one for one in every if one.kind],
        [one for one in every if one.file in SINGLE],
        every,
    ):
        if rule:
            return _chosen(place, rule)
    raise ImageError(f"{place} has no JSON of annotations; expected {EXPECTED}")


def _chosen(place: Path, jsons: Sequence[JsonFile]) -> Found:
    train, val = ([one for one in jsons if one.kind == kind] for kind in ("train", "val"))
    if len(train) == len(val) == 1:
        return Found(train[0], val[0])
    if len(jsons) == 1 and not val:
        return Found(jsons[0], None)
    names = ", ".join(one.name for one in jsons[:4]) + (", ..." if len(jsons) > 4 else "")
    raise ImageError(
        f"{place} has {names}, which are not one JSON for training and one for validation; "
        f"expected {EXPECTED}"
    )


def _members(place: Path) -> list[str]:
    """Names of the visible files of a folder, zip or tar."""
    try:
        if place.is_dir():
            names: Iterable[str] = _walk(place)
        elif zipfile.is_zipfile(place):
            with zipfile.ZipFile(place) as archive:
                names = archive.namelist()
        else:
            with open_tar(place) as tar:
                names = [one.name for one in tar if one.isfile()]
        return [name for name in names if not HIDDEN.search(name.removeprefix("./"))]
    except DAMAGED as error:
        raise ImageError(f"{place} is no folder, zip or tar: {reason(error)}") from error


def _walk(place: Path) -> Iterator[str]:
    """Links are followed, but not in a circle."""
    seen = set()
    for here, folders, files in os.walk(place, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        above = Path(here).relative_to(place).as_posix()
        yield from (file if above == "." else f"{above}/{file}" for file in files)


def image_place(found: Found, json: JsonFile) -> Path:
    """The folder or archive that a JSON's images lie in.

    Raises:
        ImageError: COCO's own are neither there nor packed.
    """
    above = found.base or _above(json)
    names = [f"{json.split}.zip", f"{json.split}.tar"]
    names += [f"images/{name}" for name in names]
    if found.base:
        names = [json.split, f"images/{json.split}", *names]
    else:
        names += ["images.zip", "images.tar"]
    for name in names:
        if place := find(above, name):
            return place
    if found.base:
        raise ImageError(
            f"{above} has the annotations of {json.split}, but no {json.split}/ and no "
            f"{json.split}.zip or .tar with its images"
        )
    return json.place


def named(json: JsonFile, file_names: Sequence[str], opener: FileOpener) -> tuple[str, ...]:
    """The images of a JSON, as the opener takes them.

    Raises:
        ImageError: images are missing, how many and one of them; or a name fits several.
    """
    files = opener.files.sizes
    folders = _folders(json, opener.place)
    names = [name.replace("\\", "/").removeprefix("./") for name in file_names]
    found = [_first(name, folders, files) for name in names]
    if None in found:
        by_base = _by_base_name(files)
        for place, (name, one) in enumerate(zip(names, found, strict=True)):
            alike = by_base.get(_base_name(name), []) if one is None else []
            if len(alike) > 1:
                raise ImageError(
                    f"{json}: image {name!r} may be {alike[0]} or {alike[1]} of {opener.place}; "
                    "its file_name must tell the folder"
                )
            if alike:
                found[place] = alike[0]
    if missing := [name for name, one in zip(file_names, found, strict=True) if one is None]:
        raise ImageError(
            f"{opener.place} lacks {len(missing):,} of {len(found):,} images of {json}, such as "
            f"{missing[0]!r}; unpack or copy its images again"
        )
    return tuple(one for one in found if one is not None)


def _above(json: JsonFile) -> Path:
    """The folder of a set's annotations/, or that of its JSON."""
    folder = (json.place / json.name).parent
    return folder.parent if folder.name == "annotations" else folder


def _folders(json: JsonFile, place: Path) -> list[str]:
    """Where a file name of the JSON may start, in the place of its images."""
    if place != json.place:
        return ["", f"{json.split}/", f"images/{json.split}/", "images/"]
    own = PurePosixPath(json.name).parent
    above = own.parent if own.name == "annotations" else own
    folders = [above / "images" / json.split, above / json.split, own, above, above / "images"]
    return [*("" if one == PurePosixPath() else f"{one}/" for one in folders), ""]


def _first(name: str, folders: Iterable[str], files: Iterable[str]) -> str | None:
    return next((folder + name for folder in folders if folder + name in files), None)


def _by_base_name(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(_base_name(name), []).append(name)
    return found


def _base_name(name: str) -> str:
    return unicodedata.normalize("NFC", PurePosixPath(name).name)
