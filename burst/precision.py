"""float32 as it is: products and convolutions, whatever else the caller has allowed elsewhere."""

import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch

PLAIN = ("none", "ieee")
Setting: TypeAlias = tuple[Any, str, list[Any]]  # its owner, its value, what it inherits from


class _Inside(threading.local):
    """Kinds of devices whose products are plain already: looking again would cost as a product."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()


_inside = _Inside()


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices as they are, on the CPU and on a GPU, for a while.

    Autocast, `torch.set_float32_matmul_precision`, `allow_tf32` and the settings called
    `fp32_precision` (torch 2.9) all let products be rounded to fewer bits. They are the process's:
    what they were is put back, also where the caller has mixed old and new ones. One that is equal
    to what it would inherit is let inherit again.

    Args:
        device: where the matrices are.
    """
    if device.type in _inside.kinds:
        yield
        return
    _inside.kinds.add(device.type)
    try:
        with _plain_float32(device):
            yield
    finally:
        _inside.kinds.discard(device.type)


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Convolve float32 as it is, for a while: on a GPU cuDNN rounds to TF32 unless told otherwise.

    What the settings were is put back, as in `plain_float32`.
    """
    settings = _new_settings("conv")
    for owner, _, _ in settings:
        owner.fp32_precision = "ieee"
    try:
        yield
    finally:
        _put_back(settings)


@contextmanager
def _plain_float32(device: torch.device) -> Iterator[None]:
    with _without_autocast(device.type):
        before = _old_setting()
        settings = _new_settings("matmul")
        if before == "highest" and all(value in PLAIN for _, value, _ in settings):
            yield
            return
        _set_old("highest")  # sets the new ones too
        try:
            yield
        finally:
            if before is not None:
                _set_old(before)
            _put_back(settings)


def _without_autocast(kind: str) -> AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()  # such as the meta device


def _old_setting() -> str | None:
    """None where a new setting contradicts it, and torch will not tell."""
    try:
        with _without_advice():
            return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _set_old(value: str) -> None:
    with _without_advice():
        torch.set_float32_matmul_precision(value)


@contextmanager
def _without_advice() -> Iterator[None]:
    """torch 2.9 warns whoever looks at the old setting; the caller's own is what it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        yield


def _new_settings(operation: str) -> list[Setting]:
    """Those of one operation, on the CPU and on a GPU."""
    found = []
    for backend in (torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn):
        owner: Any = getattr(backend, operation, None)
        if hasattr(owner, "fp32_precision"):
            parents = [one for one in (backend, torch.backends) if hasattr(one, "fp32_precision")]
            found.append((owner, owner.fp32_precision, parents))
    return found


def _put_back(settings: Iterable[Setting]) -> None:
    for owner, value, parents in settings:
        # torch tells an inherited value as if it were the setting's own.
        inherited = any(parent.fp32_precision == value for parent in parents)
        owner.fp32_precision = "none" if inherited else value
