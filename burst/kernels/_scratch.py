"""Buffers that the accumulators of a thread use in turn.

A survey keeps up to a thousand accumulators, and works on one at a time.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch

Buffers = TypeVar("Buffers")


class _Known(threading.local):
    def __init__(self) -> None:
        self.buffers: WeakValueDictionary[Any, Any] = WeakValueDictionary()


_known = _Known()


def shared(
    make: Callable[[int, torch.device], Buffers], size: int, device: torch.device
) -> Buffers:
    """`make(size, device)`, once for all who ask in this thread, and on a GPU on this stream.

    It lives as long as somebody keeps what he was given. Whoever writes to it expects nothing of
    what it held.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = make, size, device, stream
    found: Buffers | None = _known.buffers.get(key)
    if found is None:
        with torch.inference_mode(False):  # those can be written to in either mode
            found = make(size, device)
        _known.buffers[key] = found
    return found
