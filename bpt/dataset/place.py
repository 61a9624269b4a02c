"""Where a dataset's files lie: the place that was named, its usual folders, archives in them."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from bpt.dataset.unpack import is_archive, unpack, unpack_nested
from burst.errors import ImageError
from burst.files import at_home
from burst.progress import Say


@dataclass(frozen=True)
class Archive:
    """An archive as its makers publish it.

    Attributes:
        file: its name.
        folder: what its content becomes, beside it.
        top: the one folder in it that becomes `folder`; None if all of it does.
        nested: whether it holds an archive for each of its folders.
    """

    file: str
    folder: str
    top: str | None = None
    nested: bool = False


@dataclass(frozen=True)
class Layout:
    """How a dataset's files are named.

    Attributes:
        folders: where its root may lie in a place, apart from the place itself.
        markers: files or folders one of which tells its root, in the root.
        archives: what is unpacked if it lies there and its folder does not.
        foreign: what a folder of images is called in another dataset with the same markers, as a
            regular expression.
    """

    folders: tuple[str, ...]
    markers: tuple[str, ...]
    archives: tuple[Archive, ...] = ()
    foreign: str | None = None

    def bases(self, place: Path) -> list[Path]:
        """The folders that are looked into, in order."""
        if place.is_file():
            return [place.parent / folder for folder in ("", *self.folders)]
        found = [find(place, folder) for folder in self.folders]
        return list(dict.fromkeys([place, *(one for one in found if one)]))

    def marked(self, place: Path) -> list[Path]:
        """The folders that have a marker, also those of another dataset."""
        return [base for base in self.bases(place) if any(find(base, one) for one in self.markers)]

    def root(self, place: Path) -> Path | None:
        """The first of them that is no other dataset's."""
        return next((base for base in self.marked(place) if not self._is_foreign(base)), None)

    def _is_foreign(self, base: Path) -> bool:
        images = find(base, "images")
        if self.foreign is None or images is None:
            return False
        return any(re.fullmatch(self.foreign, one.name) for one in images.glob("*"))

    def packed(self, place: Path) -> list[tuple[Path, Archive]]:
        """Archives that lie there and were not unpacked, with the folder they lie in.

        Where there is one alone, a file that is given is it, whatever its name.
        """
        listed = [(base, archive) for base in self.bases(place) for archive in self.archives]
        if len(self.archives) == 1 and is_archive(place):
            listed = [(place.parent, replace(self.archives[0], file=place.name))]
        return [
            (base, archive)
            for base, archive in listed
            if (base / archive.file).is_file() and not (base / archive.folder).exists()
        ]


def data_root() -> Path:
    """Where datasets lie if nobody says: $BPT_DATA, or `data` in the working folder."""
    return Path(os.environ.get("BPT_DATA") or "data")


def place_of(data: str | Path | None) -> Path:
    """The place that is given, `~` being one's home, or `data_root()`.

    Raises:
        BurstError: no home directory is known.
    """
    return at_home(data) if data is not None else data_root()


def prepare(name: str, layout: Layout, place: Path, *, hint: str, say: Say | None = None) -> Path:
    """The dataset's root; what is still packed is unpacked beside its archive.

    Raises:
        ImageError: there is nothing of it in the place; a damaged archive.
        OutputError: an archive cannot be unpacked where it lies.
    """
    if not place.exists():
        raise ImageError(not_found(name, layout, place, hint=hint))
    for base, archive in layout.packed(place):
        if say:
            say(f"unpacking {base / archive.file}")
        if archive.nested:
            unpack_nested(base / archive.file, base / archive.folder, say=say)
        else:
            unpack(base / archive.file, base / archive.folder, top=archive.top, say=say)
    root = layout.root(place)
    if root is None:
        raise ImageError(not_found(name, layout, place, hint=hint))
    return root


def not_found(name: str, layout: Layout, place: Path, *, hint: str) -> str:
    """Why a dataset is not in a place, and what to do."""
    if not place.exists():
        return f"{name}: {str(place)!r} does not exist; {hint}"
    if others := layout.marked(place):
        return f"{name}: {others[0]} holds another dataset; {hint}"
    files = [archive.file for archive in layout.archives]
    if files and is_archive(place) and place.name not in files:
        told = ", ".join(files)
        return f"{name}: {place} is none of {told}; give it the name that it is published under"
    looked = ", ".join(str(base) for base in layout.bases(place))
    return f"{name}: none of {', '.join(layout.markers)} and no archive of it in {looked}; {hint}"


def find(base: Path, name: str) -> Path | None:
    """The file or folder of this relative name, if there is one; case counts only in a tie."""
    here = base
    for part in PurePosixPath(name).parts:
        exact = here / part
        if not exact.exists():
            try:
                alike = sorted(one for one in here.iterdir() if one.name.lower() == part.lower())
            except OSError:
                return None
            if not alike:
                return None
            exact = alike[0]
        here = exact
    return here if here.exists() else None


def required(root: Path, *names: str) -> Path:
    """The first of these files that is there.

    Raises:
        ImageError: there is none.
    """
    for name in names:
        if found := find(root, name):
            return found
    raise ImageError(f"{root} has no {' or '.join(names)}; unpack its archive again")
