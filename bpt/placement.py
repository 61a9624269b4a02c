"""Which blocks get a prompt of their own."""

import re

from burst.errors import BurstError

KINDS = "shallow, deep, last:K, first:K, A+B or interval:K"


def parse_placement(text: str, depth: int) -> tuple[int, ...]:
    """The prompted blocks, counted from 0, ascending.

    Args:
        text: "shallow" (block 0), "deep" (every block), "last:K", "first:K", "A+B" (the first A
            and the last B), "interval:K" (the first block of each of K equal groups).
        depth: blocks of the model.

    Raises:
        BurstError: `text` is none of these, asks for no block, or does not fit the depth.

    Source: Wang et al. 2025, arXiv 2506.22908, supplement, table 10.

    >>> parse_placement("3+1", 12)
    (0, 1, 2, 11)
    >>> parse_placement("interval:4", 12)
    (0, 3, 6, 9)
    """
    if text == "shallow":
        return (0,)
    if text == "deep":
        return tuple(range(depth))
    if match := re.fullmatch(r"(\d+)\+(\d+)", text):
        first, last = (int(number) for number in match.groups())
        return _ends(text, first, last, depth)
    if match := re.fullmatch(r"(last|first|interval):(\d+)", text):
        kind, count = match[1], int(match[2])
        if kind == "interval":
            return _interval(text, count, depth)
        return _ends(text, *((count, 0) if kind == "first" else (0, count)), depth)
    raise BurstError(f"placement {text!r} is not known; give {KINDS}")


def _ends(text: str, first: int, last: int, depth: int) -> tuple[int, ...]:
    """The first and the last blocks, which must not overlap."""
    if not 0 < first + last <= depth:
        raise BurstError(
            f"placement {text!r} asks for {first + last} of {depth} blocks; give 1 to {depth}"
        )
    return (*range(first), *range(depth - last, depth))


def _interval(text: str, groups: int, depth: int) -> tuple[int, ...]:
    if groups < 1 or depth % groups:
        raise BurstError(f"placement {text!r} must divide {depth} blocks into equal groups")
    return tuple(range(0, depth, depth // groups))
