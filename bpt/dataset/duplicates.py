"""Images that are there twice: files of the same bytes."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor

from bpt.dataset.split import FileOpener
from burst.archive import DAMAGED

SAMPLE = 4096  # bytes out of the middle of a file, where those of two photos differ
THREADS = 8


def same_bytes(opener: FileOpener) -> list[tuple[str, ...]]:
    """Names of images whose files hold the same bytes, group by group, sorted; empty files aside.

    Only files of one size are looked at: first at a few bytes out of their middle, where they lie
    in a folder, and whole only if those are the same. A file that cannot be read is like no other.
    """
    groups = _alike(opener.files.sizes, lambda name: opener.files.sizes[name] or None)
    with ThreadPoolExecutor(THREADS) as pool, opener.files.reader() as read:

        def middle(name: str) -> bytes | None:
            try:
                with (opener.place / name).open("rb") as stream:
                    stream.seek(opener.files.sizes[name] // 2)
                    return stream.read(SAMPLE)
            except OSError:
                return None

        def digest(name: str) -> bytes | None:
            try:
                return hashlib.sha256(read(name)).digest()
            except DAMAGED:
                return None

        for key in (middle, digest) if opener.place.is_dir() else (digest,):
            groups = _finer(groups, key, pool)
    return sorted(tuple(sorted(names)) for names in groups)


def _finer(
    groups: list[list[str]], key: Callable[[str], bytes | None], pool: ThreadPoolExecutor
) -> list[list[str]]:
    """Each group cut into those of one key."""
    names = [name for group in groups for name in group]
    known = dict(zip(names, pool.map(key, names), strict=True))
    return [finer for group in groups for finer in _alike(group, known.__getitem__)]


def _alike(names: Iterable[str], key: Callable[[str], Hashable | None]) -> list[list[str]]:
    """Groups of at least two names with one key; None is like no other."""
    found: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        if (one := key(name)) is not None:
            found[one].append(name)
    return [group for group in found.values() if len(group) > 1]
