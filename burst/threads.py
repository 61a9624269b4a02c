"""Several threads and one model: hooks hang on the model, and so every thread runs them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import RLock, get_ident
from typing import ParamSpec
from weakref import WeakKeyDictionary

from torch import nn

P = ParamSpec("P")
_locks: "WeakKeyDictionary[nn.Module, AbstractContextManager[object]]" = WeakKeyDictionary()


def of_this_thread(hook: Callable[P, None]) -> Callable[P, None]:
    """A hook that leaves alone what threads other than the present one run."""
    thread = get_ident()

    def hook_of_thread(*args: P.args, **kwargs: P.kwargs) -> None:
        if get_ident() == thread:
            hook(*args, **kwargs)

    return hook_of_thread


def lock_of(model: nn.Module) -> AbstractContextManager[object]:
    """The model's re-entrant lock: who changes it for a while (its mode, a forward) holds it."""
    return _locks.setdefault(model, RLock())
