"""Images that nobody has split -> training, validation and test images, by their names."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from burst.errors import ImageError, some

SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}
LEAST = len(SHARES)  # images of a class: one for each split
SEED = "bpt split 0"  # of the data, not of a training: every seed and method sees the same split


def split_by_name(
    classes: Mapping[str, str], copies: Iterable[Sequence[str]], place: str, *, above: int = 0
) -> dict[str, str]:
    """Name -> "train", "val" or "test", class by class.

    A hash of class and name is a place in 0..1: below 0.15 the image is to test, below 0.30 to
    validate, else to train. So whatever is added or removed later, an image stays where it is. The
    price is that the shares are met on average and not exactly: both cannot be had, for exact
    shares go by the order among all images, which any new one shifts. Where a split of a small
    class would get no image, it is given the nearest by hash; these few may move as it grows.

    Copies stay together, at the place of the first of them by hash. Those that lie in several
    classes are only trained on: no answer to them could be right.

    Args:
        classes: name -> class.
        copies: groups of names with the same bytes.
        place: for messages.
        above: how many folders of each name are not hashed, since they hold all images.

    Raises:
        ImageError: a class has fewer than three different images; it is named.
    """
    first = {name: min(group) for group in copies for name in group}
    copied = {classes[name] for name in first}
    members: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        members[first.get(name, name)].append(name)
    units: dict[str, list[list[str]]] = {one: [] for one in sorted(set(classes.values()))}
    found: dict[str, str] = {}
    for names in members.values():
        within = {classes[name] for name in names}
        if len(within) == 1:
            units[within.pop()].append(names)
        else:
            found |= dict.fromkeys(names, "train")
    _check_enough(units, copied, place)
    for one, groups in units.items():
        placed = sorted(
            (min(_position(one, name, above) for name in group), group) for group in groups
        )
        for kind, (_, group) in zip(_kinds([at for at, _ in placed]), placed, strict=True):
            found |= dict.fromkeys(group, kind)
    return found


def _kinds(positions: Sequence[float]) -> list[str]:
    """The split of each of a class's images, in the order of their positions; none goes empty."""
    count = len(positions)
    tested = sum(at < SHARES["test"] for at in positions)
    held = sum(at < SHARES["test"] + SHARES["val"] for at in positions)
    tested = min(max(tested, 1), count - 2)
    held = min(max(held, tested + 1), count - 1)
    return ["test"] * tested + ["val"] * (held - tested) + ["train"] * (count - held)


def _position(class_name: str, name: str, above: int) -> float:
    """A place in [0, 1) that the names alone decide, in whichever form Unicode writes them."""
    text = "\0".join((SEED, class_name, *name.split("/")[above:]))
    text = unicodedata.normalize("NFC", text)
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _check_enough(units: Mapping[str, Sequence[object]], copied: Iterable[str], place: str) -> None:
    few = {one: len(groups) for one, groups in units.items() if len(groups) < LEAST}
    if few:
        listed = some(f"{one!r} ({count})" for one, count in few.items())
        copies = "; copies count once, and those in two classes not at all"
        raise ImageError(
            f"{place}: too few different images of class {listed}; each class needs {LEAST}, one "
            f"to train, one to validate and one to test{copies if few.keys() & copied else ''}"
        )
