"""A CSV of labels beside images: which image is of which class, and of which split."""

import csv
import functools
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from bpt.dataset.own_layout import OwnImages, by_folders, folders_above, left_out, split_named
from burst.archive import reason
from burst.errors import ImageError

SUFFIXES = (".csv", ".tsv")
DELIMITERS = (",", ";", "\t")
# In the order of preference, where a table has several of them.
FILE = (
    *("filename", "file_name", "file", "image", "image_path", "image_name", "image_id", "img"),
    *("path", "filepath", "file_path", "photo", "name", "id"),
)
LABEL = (
    *("label", "labels", "class", "class_name", "classname", "class_label", "category"),
    "target",
)
SPLIT = ("split", "set", "subset", "partition")


@dataclass(frozen=True)
class _Row:
    line: int
    file: str
    label: str
    split: str | None


@dataclass(frozen=True)
class _Columns:
    """Where a table has what; `header` is empty where it has none."""

    header: tuple[str, ...]
    file: int
    label: int
    split: int | None

    def named(self, place: int) -> str:
        """A column, for messages: by name if it has one."""
        return f"column {self.header[place]!r}" if self.header else f"column {place + 1}"


def is_table(path: Path) -> bool:
    """Whether a file's name says that it holds a table."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def labels_in(place: Path, names: Sequence[str]) -> Path | None:
    """The one CSV of labels in a folder of images; None where folders tell the classes.

    It is taken if its header names a column of files and one of labels, unless images lie in
    train/CLASS/; and a CSV of other columns, where there are no folders of classes.

    Raises:
        ImageError: there are no folders of classes, and several CSVs.
    """
    if not place.is_dir():
        return None
    tables = _tables(place, names)
    if not tables:
        return None
    try:
        images = by_folders(names, str(place))
    except ImageError:
        if len(tables) > 1:
            listed = ", ".join(table.name for table in tables[:4])
            raise ImageError(
                f"{place} has no folders of classes, and {len(tables)} tables: {listed}; say which "
                f"one holds the labels: folder:{tables[0]}"
            ) from None
        return tables[0]
    if images.kinds or len(tables) != 1:
        return None
    try:
        first = _lines(tables[0])[0][1]
    except ImageError:  # whatever else it holds: the folders tell the classes
        return None
    named = _place(first, FILE) is not None and _place(first, LABEL) is not None
    return tables[0] if named else None


def by_labels(names: Sequence[str], table: Path) -> OwnImages:
    """Classes, and splits if it has a column of them, as a CSV beside or above the images says.

    Columns are found by the names in its first line, in any case, blanks as `_`: of files
    (filename, file, image, path, name, id ...), of labels (label, class, category, target ...) and
    of splits (split, set, subset). Without such a line they are the file, its label and, if there
    are three, its split. They stand apart by comma, semicolon or tab. A file is named by its path
    from the CSV, or by the end of it, if no other ends so; with or without what its name ends in
    (.jpg), in any case and in either form of Unicode. Labels are names, numbers too. Where no
    column tells the splits and all images lie in train/ and test/ (or val/), these folders do.

    Args:
        names: of the images, from the CSV's folder.
        table: the CSV, in UTF-8.

    Raises:
        ImageError: it cannot be read, lacks a column, or a line of it is wrong: by line and column.
    """
    lines = _lines(table)
    columns = _columns(lines[0][1], f"{table}, line {lines[0][0]}")
    rows = _rows(lines[1:] if columns.header else lines, columns, table)
    classes: dict[str, str] = {}
    kinds: dict[str, str] = {}
    seen: dict[str, _Row] = {}
    above = folders_above(names)
    find = _Finder(names, above)
    if not columns.header:
        _check_no_header(rows, find, table)
    for row in rows:
        name = find(row.file, f"{table}, line {row.line}, {columns.named(columns.file)}")
        if (before := seen.setdefault(name, row)) is not row:
            if replace(before, line=row.line, file=row.file) == row:
                continue
            raise ImageError(
                f"{table}, line {row.line}: {row.file!r} is {row.label!r}, "
                f"and {before.label!r} in line {before.line}; keep one of them"
            )
        classes[name] = row.label
        if columns.split is not None:
            kinds[name] = _kind(row, columns, table)
    if columns.split is None:
        kinds = _kinds_of_folders(classes, above)
    outside = [name for name in names if name not in classes]
    notes = (f"labels are those of {table}", *left_out(outside, f"{table.name} does not name"))
    if len(set(classes.values())) < 2:
        raise ImageError(f"{table} has one label, {rows[0].label!r}; a classifier needs two")
    return OwnImages(classes, kinds, above, str(table), notes)


class _Finder:
    """What a table calls a file -> its name."""

    def __init__(self, names: Iterable[str], above: int) -> None:
        self._exact, self._above = set(names), above

    @functools.cached_property
    def _ends(self) -> dict[str, list[str]]:
        """The names by each end of them; large, and not needed where the table has all in full."""
        ends = defaultdict(list)
        for name in sorted(self._exact):
            parts = _plain(name).split("/")
            for start in range(len(parts)):
                end = "/".join(parts[start:])
                ends[end].append(name)
                ends[end.rpartition(".")[0] + "\0"].append(name)  # without what it ends in
        return ends

    def __call__(self, text: str, where: str) -> str:
        """The name.

        Raises:
            ImageError: there is no such file, or there are several.
        """
        found = self.alike(text)
        if not found:
            raise ImageError(f"{where}: no image {text!r} lies there")
        if len(found) > 1:
            several = " and ".join(found[:2])
            raise ImageError(f"{where}: {text!r} may be {several}; give its path")
        return found[0]

    def alike(self, text: str) -> list[str]:
        """All that may be meant."""
        asked = str(PurePosixPath(text.replace("\\", "/")))
        if asked in self._exact:
            return [asked]
        parts = PurePosixPath(_plain(asked)).parts
        for start in range(len(parts)):  # a path from somewhere else may stand before it
            end = "/".join(parts[start:])
            for key in (end, f"{end}\0"):
                found = self._ends.get(key, [])
                if start:  # dogs/1.png is not what cats/1.png means
                    found = [name for name in found if self._within(name) <= len(parts) - start]
                if found:
                    return found
        return []

    def _within(self, name: str) -> int:
        """Parts of a name below the folders that hold all images."""
        return len(name.split("/")) - self._above


def _plain(name: str) -> str:
    """A name in small letters, and in one form of Unicode."""
    return unicodedata.normalize("NFC", name.lower())


def _tables(place: Path, names: Sequence[str]) -> list[Path]:
    """CSVs in the folder, or else in those that hold all of its images."""
    folders = [place]
    above = folders_above(names)
    folders += [place.joinpath(*names[0].split("/")[:n]) for n in range(1, above + 1)]
    for folder in folders:
        found = [one for one in sorted(folder.iterdir()) if is_table(one) and one.name[0] != "."]
        if found:
            return found
    return []


def _lines(table: Path) -> list[tuple[int, list[str]]]:
    """Cells of each line that is not empty, with its number."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImageError(f"{table} is not in UTF-8; save it as CSV UTF-8") from error
    except OSError as error:
        raise ImageError(f"{table} cannot be read: {reason(error)}") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
    found = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                found.append((reader.line_num, cells))
    except csv.Error as error:
        raise ImageError(f"{table}, line {reader.line_num}: {error}") from error
    if not found:
        raise ImageError(f"{table} is empty; expected lines such as cat1.jpg,cat")
    return found


def _place(cells: Sequence[str], known: Sequence[str]) -> int | None:
    """Where the first of these names stands, in any case, blanks as `_`."""
    lower = ["_".join(cell.lower().split()) for cell in cells]
    return next((lower.index(name) for name in known if name in lower), None)


def _columns(cells: Sequence[str], where: str) -> _Columns:
    """Which column holds what, by the first line.

    Raises:
        ImageError: a column of files or of labels cannot be told.
    """
    file, label, split = (_place(cells, known) for known in (FILE, LABEL, SPLIT))
    if file is not None and label is not None:
        return _Columns(tuple(cells), file, label, split)
    if file is None and label is None and len(cells) in (2, 3):
        return _Columns((), 0, 1, 2 if len(cells) == 3 else None)
    lacking, known = ("files", FILE) if file is None else ("labels", LABEL)
    advice = ", or leave this line out" if len(cells) == 2 else ""
    raise ImageError(
        f"{where}: no column of {lacking} among {', '.join(cells)}; call it {known[0]}{advice}"
    )


def _check_no_header(rows: Sequence[_Row], find: _Finder, table: Path) -> None:
    """Refuse a first line that is a header of names that are not known.

    Raises:
        ImageError: it names no image, and another line does.
    """
    first = rows[0]
    if not find.alike(first.file) and any(find.alike(row.file) for row in rows[1:]):
        raise ImageError(
            f"{table}, line {first.line}, column 1: no image {first.file!r} lies there; if it is a "
            f"header, call the files {', '.join(FILE[:4])} or the like, the labels "
            f"{', '.join(LABEL[:4])} or the like"
        )


def _rows(lines: Sequence[tuple[int, list[str]]], columns: _Columns, table: Path) -> list[_Row]:
    if not lines:
        raise ImageError(f"{table} has a header and no line below it")
    width = len(columns.header) or (2 if columns.split is None else 3)
    rows = []
    for line, cells in lines:
        if len(cells) != width:
            raise ImageError(
                f"{table}, line {line}: {len(cells)} columns instead of {width}; put what holds "
                "the delimiter in quotes"
            )
        for place in (columns.file, columns.label):
            if not cells[place]:
                raise ImageError(f"{table}, line {line}, {columns.named(place)} is empty")
        split = None if columns.split is None else cells[columns.split]
        rows.append(_Row(line, cells[columns.file], cells[columns.label], split))
    return rows


def _kind(row: _Row, columns: _Columns, table: Path) -> str:
    assert row.split is not None and columns.split is not None
    kind = split_named(row.split)
    if kind is None:
        raise ImageError(
            f"{table}, line {row.line}, {columns.named(columns.split)}: {row.split!r} is no split; "
            "expected train, val or test"
        )
    return kind


def _kinds_of_folders(names: Iterable[str], above: int) -> dict[str, str]:
    """Name -> split, if each image lies in a folder that is called one; else nothing."""
    kinds = {}
    for name in names:
        parts = name.split("/")[above:]
        kind = split_named(parts[0]) if len(parts) > 1 else None
        if kind is None:
            return {}
        kinds[name] = kind
    return kinds
