"""Work on several devices at once, each in a process of its own."""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import FrameType
from typing import Any, TypeVar

import torch

from bpt.errors import Interrupted
from bpt.signals import handled_by, this_command
from burst.device import choose_device, out_of_memory
from burst.errors import BurstError, one_line

Result = dict[str, Any]
K = TypeVar("K")
Work = Callable[[str], Result | str | None]  # on a device
POLL = 1.0  # seconds between looks at what other processes do
_at_work = threading.Lock()  # in a process that was started here: is it?


def side_by_side(
    works: Mapping[K, Work],
    devices: Sequence[str],
    report: Callable[[K, Result | str | None], None],
) -> None:
    """A thread a device hands it one work after another, in a process of its own.

    A work that gives None, as it belongs to others now, is called again later. A process that a
    work ends, as by a kill or an error of CUDA's, is followed by another, unless its device cannot
    be used any more: then the other devices do the rest. The processes end with this one, however
    that ends: they save what they are at first.

    Args:
        works: by name what is called with a device there; it must pickle.
        devices: where; one may be named several times.
        report: called with a name and what came of it, or why there is nothing.

    Raises:
        Interrupted: by SIGINT or SIGTERM, after each process has saved what it was at.
    """
    waiting: queue.SimpleQueue[tuple[K, Work]] = queue.SimpleQueue()
    for item in works.items():
        waiting.put(item)
    lock, raised, lost = threading.Lock(), list[BaseException](), list[str]()
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA

    def serve(device: str) -> None:
        before = False
        while not raised and not waiting.empty():
            with ProcessPoolExecutor(1, mp_context=context, initializer=_begin) as pool:
                if before and (why := _lost(pool, device)):
                    lost.append(why)
                    return
                while not raised and serve_one(pool, device):
                    pass
            before = True

    def serve_one(pool: ProcessPoolExecutor, device: str) -> bool:
        """Whether there was a work, and its process can take another.

        After an error that nobody foresaw it cannot: after some of CUDA's all that follows fails.
        """
        try:
            name, work = waiting.get_nowait()
        except queue.Empty:
            return False
        alive = True
        try:
            outcome = pool.submit(_guarded, work, device).result()
        except (Exception, KeyboardInterrupt) as error:
            if raised:  # it had nothing to save
                return False
            outcome, alive = f"its process ended: {_first_line(error)}", False
        if isinstance(outcome, int):
            raised.append(Interrupted(outcome, this_command()))
            return False
        with lock:
            report(name, outcome)
        if outcome is None:
            waiting.put((name, work))
            time.sleep(POLL)
        return alive

    def interrupt(signum: int, _: FrameType | None) -> None:
        raised.append(Interrupted(signum, this_command()))
        for child in multiprocessing.active_children():
            child.terminate()  # each saves its training first

    threads = [threading.Thread(target=serve, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    with handled_by(interrupt):  # a join that KeyboardInterrupt ends takes its thread for ended
        for thread in threads:
            thread.join()
    if raised:
        raise raised[0]
    while not waiting.empty():
        report(waiting.get()[0], f"no device is left: {lost[-1]}")


def _lost(pool: ProcessPoolExecutor, device: str) -> str:
    """Why a device, on which a process ended, cannot be used any more; empty if it can."""
    try:
        pool.submit(choose_device, device).result()
    except Exception as error:  # of any library
        return _first_line(error)
    return ""


def _first_line(error: BaseException) -> str:
    """CUDA's errors have more, on how to look for their cause."""
    return str(error).partition("\n")[0]


def _begin() -> None:
    """Ctrl-C reaches these processes too, but ends them through the one that started them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever, with all its memory."""
    parent, main = multiprocessing.parent_process(), threading.main_thread()
    if parent is None or main.ident is None:
        return
    parent.join()
    signal.pthread_kill(main.ident, signal.SIGTERM)  # which lets a training save
    with _at_work:
        os._exit(1)


def _guarded(work: Work, device: str) -> Result | str | int | None:
    """In another process; the number of a signal that interrupted it, in a training or not."""
    with _at_work:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # locks are to go
        try:
            return work(device)
        except KeyboardInterrupt:
            return int(signal.SIGTERM)
        except Interrupted as error:
            return error.signum
        except BurstError as error:
            return one_line(error)
        except torch.OutOfMemoryError as error:
            return out_of_memory(error)
        finally:
            signal.signal(signal.SIGTERM, before)
