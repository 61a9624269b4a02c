"""How one's own folder is laid out: which of its folders are splits, which are classes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from burst.errors import ImageError, some

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
WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")


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


def split_in_words(name: str) -> str | None:
    """The split that a word of a folder's name says: seg_train -> train, testset2 -> test."""
    words = (word.lower().removesuffix("set") for word in WORD.findall(name))
    kinds = {KINDS[word] for word in words if word in KINDS}
    return kinds.pop() if len(kinds) == 1 else None


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
    called train beside others, with images and no folders in it, is a class like them. Where a word
    of their names calls folders splits, as of training_set/ and test_set/, they are splits if they
    hold folders of the same classes, and a note says so. A folder that holds only one of its own
    name, as Kaggle packs them, counts once.

    Raises:
        ImageError: no two classes; an image of a split lies in no class; two folders for one
            split, or splits without `train/`; nothing but folders with words of splits in their
            names, without the same classes in them.
    """
    above = folders_above(names)
    tails = _undoubled({name: name.split("/")[above:] for name in names})
    inside: dict[str, set[str]] = {}
    for parts in tails.values():
        if len(parts) > 1:
            inside.setdefault(parts[0], set()).update(parts[1:-1][:1])
    named = {top: kind for top in sorted(inside) if (kind := split_named(top))}
    worded = _worded(inside, named, place)
    kinds = named | worded
    flat = not any(inside[top] for top, kind in kinds.items() if kind == "train")
    if not kinds or (set(kinds.values()) == {"train"} and flat and len(inside) > 1):
        return _as_classes(tails, above, place)
    for kind in SPELLINGS:
        alike = [top for top, one in kinds.items() if one == kind]
        if len(alike) > 1:
            raise ImageError(f"{place} has both {'/ and '.join(alike)}/; keep one of them")
    found = _as_splits(tails, kinds, above, place)
    return replace(found, notes=(*_read_as(worded, found, place), *found.notes))


def _undoubled(tails: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The parts of each name, a/a/x.png as a/x.png if all of a/ lies in a/a/."""
    wide = {parts[0] for parts in tails.values() if len(parts) < 3 or parts[0] != parts[1]}
    return {name: parts if parts[0] in wide else parts[1:] for name, parts in tails.items()}


def _worded(inside: Mapping[str, set[str]], named: Mapping[str, str], place: str) -> dict[str, str]:
    """Folders that are splits by a word of their names and by the classes in them -> split.

    Args:
        inside: folder -> the folders in it.
        named: those that are called like a split -> split.
        place: for messages.

    Raises:
        ImageError: all have such names, and nothing else tells whether they are splits or classes.
    """
    worded = {
        top: kind
        for top in sorted(inside)
        if (kind := split_in_words(top)) and kind not in named.values()
    }
    both = {**named, **worded}
    if not worded or "train" not in both.values() or len(set(both.values())) < 2:
        return {}
    classes = set().union(*(inside[top] for top, kind in both.items() if kind == "train"))
    alike = {top: kind for top, kind in both.items() if inside[top] & classes}
    if len(set(alike.values())) > 1:
        return {top: kind for top, kind in worded.items() if top in alike}
    if both.keys() == inside.keys() and not named.keys() & alike.keys():
        raise ImageError(
            f"{place}: {'/ and '.join(sorted(both))}/ are called like splits, but hold no folders "
            f"of the same classes; rename them if they are classes; expected {EXPECTED}"
        )
    return {}


def _read_as(worded: Mapping[str, str], images: OwnImages, place: str) -> tuple[str, ...]:
    """A sentence on folders that are splits by a word of their names; none without them."""
    if not worded:
        return ()
    order = sorted(worded, key=lambda top: list(SPELLINGS).index(worded[top]))
    read = " and ".join(f"{top}/ is read as {worded[top]}/" for top in order)
    classes = some(sorted(set(images.classes.values())))
    return (
        f"{place}: {read}, with the classes {classes}; if these folders are classes themselves, "
        "give a CSV of labels",
    )


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
