"""Everything that burst raises for a user's mistake.

BurstError                 one line: what came, what was expected, what to do
├── UnknownName            a name that is not known; the nearest known ones are offered
├── ShapeError             tensors, axes or histograms that do not fit together
├── BackendError           a kernel backend asked for by name that cannot run here
├── UnsupportedModel       a model whose attention has no query-key product we may measure
├── HookNeverFired         a block was asked for that the forward pass did not run
├── CheckpointError        a weight file: missing, damaged, of another kind or shape, not finite
├── ImageError             an image source: missing, empty, or an image that cannot be read
├── TextError              a text: missing, empty, not UTF-8, or for a model that reads none
├── EmptyResult            nothing was left to measure
└── OutputError            a place that cannot be written

BackendWarning             the fast backend cannot be used on a GPU, and another counts
"""

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any


class BurstError(Exception):
    """Base of every error that names a user's mistake; its text is one line.

    Attributes:
        everywhere: whether all processes of a run raise it, see `burst.distributed`.
    """

    everywhere = False

    def __reduce__(self) -> tuple[Any, ...]:
        # As text and attributes: what a subclass is made from would be asked for otherwise.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[BurstError], args: tuple[Any, ...], state: dict[str, Any]) -> BurstError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def one_line(error: BurstError) -> str:
    """What an error says, for a table or a sentence."""
    return " ".join(str(error).split())


def and_more(count: int) -> str:
    """What stands behind one that is named, of so many.

    >>> and_more(1), and_more(3)
    ('', ' (and 2 more)')
    """
    return f" (and {count - 1} more)" if count > 1 else ""


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more."""
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


class UnknownName(BurstError):
    """A name that is not known, with the nearest ones that are.

    Attributes:
        given: the name that is not known.
    """

    def __init__(self, kind: str, given: str, known: Iterable[str], hint: str = "") -> None:
        self.given = given
        names = sorted(known)
        near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
        offer = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"unknown {kind} {given!r}; {offer}{' ' + hint if hint else ''}")


class ShapeError(BurstError):
    """Tensors, axes or histograms that do not fit together."""


class BackendError(BurstError):
    """A kernel backend that was asked for by name and cannot run here."""


class BackendWarning(RuntimeWarning):
    """The fast backend cannot be used on a GPU, and another counts in its place."""


class UnsupportedModel(BurstError):
    """A model whose attention has no query-key product that we may measure."""


class HookNeverFired(BurstError):
    """A block was asked for that the forward pass did not run."""


class CheckpointError(BurstError):
    """A weight file that is missing, damaged, of another kind or shape, or not finite."""


class ImageError(BurstError):
    """An image source that is missing or empty, or an image that cannot be read."""


class TextError(BurstError):
    """A text that is missing, empty or no text, or a model that reads none."""


class EmptyResult(BurstError):
    """Nothing was left to measure."""


class OutputError(BurstError):
    """A place that cannot be written."""


def check_known(kind: str, given: str, known: Iterable[str]) -> None:
    """Refuse a name that is not known, offering the nearest ones.

    Raises:
        UnknownName: `given` is not among `known`.
    """
    if given not in known:
        raise UnknownName(kind, given, known)


def check_share(name: str, value: float | None) -> None:
    """Refuse what is no share: not above 0, or above 1; None is none that was given.

    Raises:
        BurstError: it is named.
    """
    if value is not None and not 0 < value <= 1:
        raise BurstError(f"{name} is {value}; it must lie in 0..1, without 0")


def check_kinds(options: Any) -> None:  # noqa: ANN401  any dataclass
    """Refuse what is no number, or no whole one, in a field that is annotated as one.

    Else a text, or a half of an epoch, fails far from where it was given.

    Args:
        options: a dataclass.

    Raises:
        BurstError: there is such a value; its field is named.
    """
    for one in fields(options):
        kind: Any = one.type
        if not (whole := kind in (int, int | None)) and kind not in (float, float | None):
            continue
        if not isinstance(value := getattr(options, one.name), kind if whole else kind | int):
            raise BurstError(f"{one.name} is {value!r}; it must be a {'whole ' * whole}number")
