"""Images that are there twice: files of the same bytes."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor

from bpt.dataset.split import FileOpener
from burst.archive import DAMAGED

THREADS = 8
PART = 64  # files that a thread takes at a time


def same_bytes(opener: FileOpener) -> list[tuple[str, ...]]:
    """Names of images whose files hold the same bytes, group by group, sorted; empty files aside.

    Only files of one size are looked at: first by a glance, see `ImageFiles`, and whole only if
    that is the same. A file that cannot be read is like no other.
    """
    files = opener.files
    sizes = files.sizes
    groups = _alike(sizes, lambda name: sizes[name] or None)
    with ThreadPoolExecutor(THREADS) as pool, files.reader() as read:
        for key in (files.glance, lambda name: hashlib.sha256(read(name)).digest()):
            groups = _finer(groups, _readable(key), pool)
    return sorted(tuple(sorted(names)) for names in groups)


def _readable(key: Callable[[str], Hashable]) -> Callable[[str], Hashable | None]:
    """The same, but None for a file that cannot be read."""

    def found(name: str) -> Hashable | None:
        try:
            return key(name)
        except DAMAGED:
            return None

    return found


def _finer(
    groups: list[list[str]], key: Callable[[str], Hashable | None], pool: ThreadPoolExecutor
) -> list[list[str]]:
    """Each group cut into those of one key."""
    names = [name for group in groups for name in group]
    parts = [names[start : start + PART] for start in range(0, len(names), PART)]
    keys = pool.map(lambda part: [key(name) for name in part], parts)
    known = dict(zip(names, (one for found in keys for one in found), strict=True))
    return [finer for group in groups for finer in _alike(group, known.__getitem__)]


def _alike(names: Iterable[str], key: Callable[[str], Hashable | None]) -> list[list[str]]:
    """Groups of at least two names with one key; None is like no other."""
    found: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        if (one := key(name)) is not None:
            found[one].append(name)
    return [group for group in found.values() if len(group) > 1]
