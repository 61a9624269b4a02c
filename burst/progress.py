"""How long work tells its caller where it is, it never prints; and how times are said."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # called with what is done, and with how much there is
Say = Callable[[str], None]  # called with a line for people, now and then

MINUTE, HOUR, DAY = 60, 3600, 86400


def part_of(progress: Progress | None, place: int, count: int) -> Progress | None:
    """What one of `count` passes of equal length calls, `place` of which are behind it."""
    if progress is None:
        return None
    return lambda done, total: progress(place * total + done, count * total)


def spoken_time(seconds: float) -> str:
    """A length of time, roughly, in the unit that suits it.

    >>> spoken_time(0.2), spoken_time(250), spoken_time(7300), spoken_time(1e5), spoken_time(1e6)
    ('1 s', '4 min', '2.0 h', '28 h', '12 days')
    """
    if seconds < 2 * MINUTE:
        return f"{max(1, round(seconds))} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    if seconds < 2 * DAY:
        return f"{seconds / HOUR:.{1 if seconds < 10 * HOUR else 0}f} h"
    return f"{seconds / DAY:,.0f} days"
