"""How long work tells its caller where it is: it never prints."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # called with what is done, and with how much there is
Say = Callable[[str], None]  # called with a line for people, now and then
