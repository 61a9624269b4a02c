"""How one's own folder is laid out: which of its folders are splits, which are classes."""

from collections.abc import Sequence
from dataclasses import dataclass

from burst.errors import ImageError

EXPECTED = (
    "CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE and, if there is one, val/CLASS/IMAGE, "
    "or images and a CSV of their labels"
)
SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
KINDS = {spelling: kind for kind, spellings in SPELLINGS.items() for spelling in spellings}


@dataclass(frozen=True)
class OwnImages:
    """Images with the classes that somebody gave them.

    Attributes:
        classes: name -> class.
        kinds: name -> "train", "val" or "test"; empty where nobody split them.
        above: how many folders of each name hold all images.
        source: what says so, for messages.
        notes: what is left out, in sentences.
    """

    classes: dict[str, str]
    kinds: dict[str, str]
    above: int
    source: str
    notes: tuple[str, ...] = ()


def split_named(name: str) -> str | None:
    """The split that a folder or a column calls so, in any case: Validation -> val."""
    return KINDS.get(name.strip().lower())


def folders_above(names: Sequence[str]) -> int:
    """How many folders hold all images: each the only one in the last, and not called a split."""
    paths, depth = [name.split("/") for name in names], 0
    while all(len(parts) > depth + 1 for parts in paths):
        tops = {parts[depth] for parts in paths}
        if len(tops) > 1 or split_named(tops.pop()):
            break
        depth += 1
    return depth


def by_folders(names: Sequence[str], place: str) -> OwnImages:
    """Classes, and splits if there are any, as the names of the folders say.

    Folders beside `train/` count as splits if they are called so, and else for nothing. A folder
    called train beside others, with images and no folders in it, is a class like them.

    Raises:
        ImageError: no two classes; an image of a split lies in no class; two folders for one
            split, or splits without `train/`.
    """
    above = folders_above(names)
    tails = {name: name.split("/")[above:] for name in names}
    tops = {parts[0] for parts in tails.values() if len(parts) > 1}
    kinds = {top: kind for top in sorted(tops) if (kind := split_named(top))}
    flat = all(len(parts) == 2 for parts in tails.values() if kinds.get(parts[0]) == "train")
    if not kinds or (set(kinds.values()) == {"train"} and flat and len(tops) > 1):
        return _as_classes(tails, above, place)
    for kind in SPELLINGS:
        alike = [top for top, one in kinds.items() if one == kind]
        if len(alike) > 1:
            raise ImageError(f"{place} has both {'/ and '.join(alike)}/; keep one of them")
    return _as_splits(tails, kinds, above, place)


def _as_classes(tails: dict[str, list[str]], above: int, place: str) -> OwnImages:
    classes = {name: parts[0] for name, parts in tails.items() if len(parts) > 1}
    found = sorted(set(classes.values()))
    if len(found) < 2:
        held = f"only one folder of a class, {found[0]!r}" if found else "no folders of classes"
        raise ImageError(f"{place} has images and {held}; expected {EXPECTED}")
    outside = [name for name in tails if name not in classes]
    return OwnImages(classes, {}, above, place, left_out(outside, "lie in no folder of a class"))


def _as_splits(
    tails: dict[str, list[str]], called: dict[str, str], above: int, place: str
) -> OwnImages:
    classes, kinds, outside = {}, {}, []
    for name, parts in tails.items():
        kind = called.get(parts[0])
        if kind is None:
            outside.append(name)
        elif len(parts) < 3:
            raise ImageError(f"{place}: {name!r} lies in no class; expected {EXPECTED}")
        else:
            classes[name], kinds[name] = parts[1], kind
    notes = left_out(outside, f"do not lie in {'/, '.join(called)}/")
    return OwnImages(classes, kinds, above, place, notes)


def left_out(names: Sequence[str], why: str) -> tuple[str, ...]:
    """A sentence on images that do not count; none where there are none."""
    if not names:
        return ()
    return (f"left out: images that {why}, {len(names):,}, such as {min(names)!r}",)
