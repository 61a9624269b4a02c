"""One's own images: folders of classes, folders of splits with classes, or a CSV of labels."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bpt.dataset.benchmark import SPLITS, Benchmark, DatasetInfo, Request
from bpt.dataset.by_name import SHARES, split_by_name
from bpt.dataset.duplicates import same_bytes
from bpt.dataset.labels_file import by_labels, is_table, labels_in
from bpt.dataset.own_layout import EXPECTED, OwnImages, by_folders
from bpt.dataset.split import FileOpener, Split
from burst.archive import IMAGE_SUFFIXES
from burst.errors import ImageError, some

MOST_LOOKED_INTO = 200_000


def open_folder(request: Request) -> Benchmark:
    """Images in folders of their classes, or with a CSV of labels.

    - CLASS/IMAGE: split by name, class by class: 70 % to train, 15 % to validate, 15 % to test,
      always the same, see `split_by_name`.
    - train/CLASS/IMAGE, test/CLASS/IMAGE and, if there is one, val/CLASS/IMAGE, as torchvision's
      ImageFolder reads each; training, valid, validation, dev and testing are other names for
      them, and so are names with such a word, as seg_train/, if the same classes lie in them.
      Without val/, a tenth of the training images is held out, class by class and always the same,
      see `hold_out`; without test/, val/ is the test split, and a tenth is held out likewise; with
      neither, train/ is split by name.
    - a CSV of labels, in the folder, or given itself: see `by_labels`.

    An archive (zip, uncompressed tar) is read in place; all may lie in folders above. Classes are
    those of all splits, sorted. Of files with the same bytes none is trained on while another is
    tested on, where we split; where they were split so, `notes` says it.

    Raises:
        ImageError: nothing or no image lies there; no two classes, or a split is missing; an image
            lies in no class; a class has no training image, or too few to be split; the place or a
            class has a name that is not in UTF-8, as out of old archives. Files may.
    """
    place = request.root
    assert place is not None
    opener = FileOpener(place.parent if is_table(place) else place)
    images = _sorted_out(opener, place)
    copies = _copies(opener, images)
    kinds, about, notes = _split(images, copies)
    notes = [*_not_read(opener, images), *images.notes, *notes]
    benchmark = _benchmark(request, opener, images, kinds, copies)
    about = about | {"notes": notes}
    return replace(
        benchmark, source=images.source, about=about, notes=tuple(notes), copies=tuple(copies)
    )


def _split(
    images: OwnImages, copies: Sequence[Sequence[str]]
) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """Name -> split; what a run's record says of it, and what is told."""
    kinds: dict[str, str] = images.kinds
    about: dict[str, Any] = {"split": {"by": "given"}}
    if not set(kinds.values()) - {"train"}:
        kinds = split_by_name(images.classes, copies, images.source, above=images.above)
        about = {"split": {"by": "name, class by class", "shares": SHARES}}
        return kinds, about, [*_notes_on_copies(copies, images), _split_in_words(kinds, images)]
    notes = []
    if "test" not in kinds.values():
        kinds = {name: "test" if kind == "val" else kind for name, kind in kinds.items()}
        about = {"split": {"by": "given", "tested_on": "val"}}
        notes.append(
            f"{images.source} has no test images: its validation images are tested on, and a tenth "
            "of the training images is held out to choose the epoch"
        )
    return kinds, about, [*notes, *_seen_before(copies, kinds)]


def _not_read(opener: FileOpener, images: OwnImages) -> list[str]:
    """What is said of files that are no images, such as photos in HEIC."""
    others = opener.files.others - is_table(Path(images.source))
    if others < 1:
        return []
    return [f"left out: other files, {others:,}; images end in {' '.join(IMAGE_SUFFIXES)}"]


def _sorted_out(opener: FileOpener, place: Path) -> OwnImages:
    names = sorted(opener.files.sizes)
    table = place if is_table(place) else labels_in(place, names)
    return by_labels(names, table) if table else by_folders(names, str(place))


def _benchmark(
    request: Request,
    opener: FileOpener,
    images: OwnImages,
    kinds: dict[str, str],
    copies: Sequence[Sequence[str]],
) -> Benchmark:
    classes = tuple(sorted(set(images.classes.values())))
    for name in (images.source, *classes):
        if name.encode(errors="ignore").decode() != name:
            what = f"the folder {os.fsencode(name)!r}"
            raise ImageError(f"{images.source}: {what} is not named in UTF-8; rename it")
    trained = {images.classes[name] for name, kind in kinds.items() if kind == "train"}
    if not trained:
        raise ImageError(f"{images.source} has no image in train/; expected {EXPECTED}")
    if lacking := [name for name in classes if name not in trained]:
        raise ImageError(f"{images.source}: class {lacking[0]!r} has no image in train/")
    number = {name: label for label, name in enumerate(classes)}

    def split(kind: str) -> Split:
        found = sorted(name for name, one in kinds.items() if one == kind)
        labels = np.array([number[images.classes[name]] for name in found], np.int64)
        return Split(tuple(found), labels, opener)

    val = split("val")
    return request.benchmark(
        "folder",
        classes,
        split("train"),
        split("test"),
        val if len(val) else None,
        copies=copies,
    )


def _copies(opener: FileOpener, images: OwnImages) -> list[tuple[str, ...]]:
    """Images with the same bytes; none of very many that were split already, where they only warn.

    A million files take minutes to look into, over a network longer.
    """
    if images.kinds and len(images.classes) > MOST_LOOKED_INTO:
        return []
    found = (tuple(n for n in names if n in images.classes) for names in same_bytes(opener))
    return [names for names in found if len(names) > 1]


def _split_in_words(kinds: dict[str, str], images: OwnImages) -> str:
    train, val, test = (sum(one == kind for one in kinds.values()) for kind in SPLITS)
    shares = "/".join(f"{100 * SHARES[kind]:.0f}" for kind in SPLITS)
    classes = sorted(set(images.classes.values()))
    return (
        f"{images.source}: {len(kinds):,} images of {len(classes):,} classes ({some(classes)}), "
        f"split by name: {train:,} to train, {val:,} to validate, {test:,} to test ({shares} % on "
        "average, the same for every seed and method)"
    )


def _notes_on_copies(copies: Sequence[Sequence[str]], images: OwnImages) -> list[str]:
    """What became of files with the same bytes."""
    within: list[Sequence[str]] = []
    across: list[Sequence[str]] = []
    for group in copies:
        classes = {images.classes[name] for name in group}
        (within if len(classes) == 1 else across).append(group)
    notes = []
    for groups, fate in (
        (within, "each kept in one split"),
        (across, "in different classes, so only trained on"),
    ):
        if groups:
            count = sum(len(group) for group in groups)
            such = " and ".join(groups[0][:2])
            notes.append(f"{count:,} images are the same as others, {fate}, such as {such}")
    return notes


def _seen_before(copies: Sequence[Sequence[str]], kinds: dict[str, str]) -> list[str]:
    """What was split so that an image is tested on that was trained on."""
    pairs = []
    for group in copies:
        seen = [name for name in group if kinds[name] != "test"]
        pairs += [(name, seen[0]) for name in group if kinds[name] == "test" and seen]
    if not pairs:
        return []
    return [
        f"{len(pairs):,} test images are also among those to train or validate, such as "
        f"{' and '.join(pairs[0])}: the test accuracy counts them as new"
    ]


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
