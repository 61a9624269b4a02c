"""Names that others gave to files, classes and runs, as figures, pages and files take them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
MOST_LETTERS = 24  # of a name in a figure
MOST_BYTES = 150  # of a file's name; file systems take 255, with its suffix and what precedes it
_LONE = re.compile("[\ud800-\udfff]")  # a byte of a file's name that is no UTF-8, in Python's words


def readable(name: str) -> str:
    """A name that any font and file takes: what is no text in it becomes U+FFFD.

    >>> readable("caf\\udce9.jpg")
    'caf\N{REPLACEMENT CHARACTER}.jpg'
    """
    return _LONE.sub("\N{REPLACEMENT CHARACTER}", name)


def folder_names(folders: Sequence[Path]) -> list[str]:
    """Folders, each from where they part: `vpt/seed_0` and `spt/seed_0`; of one its name.

    Those that have nothing in common are told in full.

    Args:
        folders: at least one.
    """
    places = [Path(os.path.normpath(folder.absolute())) for folder in folders]
    common = Path(os.path.commonpath([place.parent for place in places]))
    near = common != Path(common.anchor)
    return [readable(str(place.relative_to(common) if near else place)) for place in places]


def shortened(name: str) -> str:
    """A name for a figure: of `MOST_LETTERS` at most, the middle left out.

    >>> shortened("Chevrolet Silverado 1500 Extended Cab 2012")
    'Chevrolet Silv\N{HORIZONTAL ELLIPSIS} Cab 2012'
    """
    name = readable(name)
    if len(name) <= MOST_LETTERS:
        return name
    end = MOST_LETTERS * 3 // 8
    return name[: MOST_LETTERS - 1 - end] + ELLIPSIS + name[-end:]


def new_stem(name: str, taken: set[str]) -> str:
    """A file's name without a suffix, cut to what a file system takes; it is taken from now on.

    One that is taken already gets a number.
    """
    stem = readable(name).encode()[:MOST_BYTES].decode(errors="ignore")
    found, number = stem, 1
    while found in taken:
        number += 1
        found = f"{stem}-{number}"
    taken.add(found)
    return found
