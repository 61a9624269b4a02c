"""`search_methods`: who is best, when all had the same chance. Shared by processes, and resumed.

All that is known lies in the run folders. A process works out what is to be done next, takes the
first training that no other process holds, runs it, and begins anew; so it does not matter how
many there are, or which of them ends.
"""

import functools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bpt.recipe import Recipe
from bpt.search.options import SearchOptions
from bpt.search.worker import Worker
from bpt.side_by_side import POLL, side_by_side
from burst.errors import BurstError
from burst.files import make_folder, remove_leftovers
from burst.lock import warn_without_locks
from burst.progress import Progress, Say

MOST_ON_CPU = 4  # processes, unless asked for more


def search_methods(
    base: Recipe,
    methods: Sequence[str],
    out: str | Path,
    *,
    options: SearchOptions | None = None,
    devices: Sequence[str] = ("auto",),
    progress: Progress | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Search each method's learning rate and weight decay, and compare the best of each.

    Every method has the same number of trials, on validation images alone. Trials are compared at
    the end of a training, and the better half goes on to the next fold (`bpt.search.halving`); the
    grid grows until the best lies inside (`bpt.search.plan`). The best of each is trained with
    every seed and tested once, and methods are compared image by image (`bpt.search.paired`).

    The same call goes on after an end at any moment, and comes to the same. Several at once, on
    one machine or on several with one disk, share the trainings. More seeds, methods, rates and
    decays may be asked for later; what is there is used.

    Args:
        base: dataset, backbone and all else that holds for every method; its own method, rates,
            decays and seed are not used. What no `origins` call given is as published, or default.
        methods: of `bpt.METHODS`, one or several.
        out: the folder of the search.
        options: grid, seeds, folds, trials.
        devices: one training at a time on each; several have a process of their own each, and
            "cpu" named several times shares the threads.
        progress: called as progress(steps done, steps in all) of the training that runs; only
            with one device.
        say: called with a line now and then.

    Returns:
        The content of search.json.

    Raises:
        RunExists: `out` holds another search; it names what differs.
        Interrupted: by SIGINT or SIGTERM; what runs was saved.
        BurstError: no device; or what a training or `method_recipes` refuses.
    """
    if not devices:
        raise BurstError("a search needs at least one device")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BurstError("a search shares its trainings by itself: start it without torchrun")
    asked = options or SearchOptions()
    search = Worker(base, methods, Path(out), asked, say=say)
    search.check_start()
    remove_leftovers(make_folder(out))
    warn_without_locks(Path(out), search.say)
    search.save()
    if len(devices) == 1:
        search.work(devices[0], progress=progress)
    else:
        _share(base, methods, Path(out), asked, devices, search)
    return search.save()


def _share(
    base: Recipe,
    methods: Sequence[str],
    out: Path,
    options: SearchOptions,
    devices: Sequence[str],
    search: Worker,
) -> None:
    """A process on each device."""
    threads = max(torch.get_num_threads() // max(list(devices).count("cpu"), 1), 1)
    work = functools.partial(_work_there, base, methods, out, options, threads)
    failed: list[str] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL):
            search.tell()

    def report(name: str, outcome: dict[str, Any] | str | None) -> None:
        if isinstance(outcome, str):
            failed.append(outcome)
            search.say(f"{name}: {outcome}")

    works = {f"process {number + 1} on {one}": work for number, one in enumerate(devices)}
    search.begin()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        side_by_side(works, devices, report)
    finally:
        ended.set()
        watcher.join()
    search.tell()
    if failed and search.jobs(search.courses()):  # else the others did its work
        raise BurstError(failed[0])


def _work_there(
    base: Recipe,
    methods: Sequence[str],
    out: Path,
    options: SearchOptions,
    threads: int,
    device: str,
) -> dict[str, Any]:
    """In a process of its own."""
    if device == "cpu":
        torch.set_num_threads(threads)
    Worker(base, methods, out, options).work(device)
    return {}


def search_devices(devices: Sequence[str], processes: int | None = None) -> list[str]:
    """Each device as often as it shall have a process.

    Args:
        devices: such as "cpu", "cuda:0".
        processes: on each; None: one, and on a CPU one a thread, up to four, where small models
            gain most.

    Returns:
        The names, each so many times in a row.
    """
    on_cpu = min(torch.get_num_threads(), MOST_ON_CPU)
    counts = [processes or (on_cpu if one == "cpu" else 1) for one in devices]
    return [one for one, count in zip(devices, counts, strict=True) for _ in range(count)]
