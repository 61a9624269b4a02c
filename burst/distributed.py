"""A run over several processes, as `torchrun` starts them: who am I, what the others have, errors.

An error of one process must not leave the others waiting. So where processes meet, each brings
what it found or the error that ended its work, and one error is raised on all: the same class, the
same text, that of the first process that has one. They meet in every function here that says so,
and where they leave `process_group`: whoever fails goes there and meets the others wherever they
wait. This is for the errors of `burst.errors`; another one ends its process, and `torchrun` the
others.

gather       what every process has, on each
together     the same of work that may fail
agreed       what the first process finds, on each
first_alone  work of every process that the first does alone before
highest      the highest number that any process has, on each: cheap enough for every step
add_rows     the sum of a large tensor over all processes, on each, in place
meet         wait for all
"""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from burst.errors import BurstError

T = TypeVar("T")

# How long one process waits for another, which may unpack ImageNet meanwhile: 1.3 million files
# take hours on a slow disk. A process that died is noticed at once, by its closed connection and
# by `torchrun`; this only ends the wait for one that hangs.
TIMEOUT = timedelta(days=1)
FAILED = 2**31  # in place of a number
ROWS = 2**14  # of a tensor that are sent at once
_GROUPS = itertools.count()  # that this process has joined


def rank_and_size() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first_process() -> bool:
    """Whether this process is the one that prints, under `torchrun` too."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def process_group(backend: str = "gloo") -> Iterator[tuple[int, int]]:
    """Join the processes that `torchrun` started, if it did; gives rank and size.

    What `burst` sends are small results, as Python objects, so gloo serves on machines with GPUs
    too; whoever sends gradients asks for "cpu:gloo,cuda:nccl". A group that is there already is
    taken, and stays. The processes leave together, after an error that all know of too. Any other
    error leaves the group as it is, for to leave alone would be to wait for those who wait for this
    process: its end is what they notice.

    Raises:
        BurstError: another process of the group raised it; of any subclass.
    """
    joining = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if joining:
        _join(backend)
    try:
        try:
            yield rank_and_size()
        except BurstError as error:
            _raise_everywhere(error)
        meet()
    except BurstError:
        if joining:
            dist.destroy_process_group()
        raise
    if joining:
        dist.destroy_process_group()


def _join(backend: str) -> None:
    """Each group of a process has keys of its own in the store.

    That of `torchrun` outlives a group, and whoever comes first to the next would read where the
    others were in the last.
    """
    # Torch's stub leaves both out, which are documented.
    met = dist.rendezvous("env://", timeout=TIMEOUT)  # type: ignore[attr-defined, unused-ignore]
    store, rank, size = next(met)
    keys = f"group {next(_GROUPS)}"
    own = dist.PrefixStore(keys, store)  # type: ignore[attr-defined, unused-ignore]
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=TIMEOUT)


def gather(mine: T) -> list[T]:
    """What every process has, in order of rank, on every process; `mine` must pickle.

    Raises:
        BurstError: another process cannot bring its part; of any subclass.
    """
    meet()
    return _exchange(mine)


def together(work: Callable[[], T]) -> list[T]:
    """What the work of every process gives, in order of rank, on every process.

    Raises:
        BurstError: on all, if the work of one raises it; of any subclass.
    """
    try:
        mine = work()
    except BurstError as error:
        _raise_everywhere(error)
    return gather(mine)


def agreed(work: Callable[[], T]) -> T:
    """What the first process finds, or its error, on every process: one copy on each."""
    rank, size = rank_and_size()
    found: list[Any] = [None]
    try:
        if rank == 0:
            found = [work()]
    except BurstError as error:
        _raise_everywhere(error)
    meet()
    if size > 1:
        sent = list(found)  # the first keeps its own, not a copy
        dist.broadcast_object_list(sent, src=0)
        found = found if rank == 0 else sent
    agreed_upon: T = found[0]
    return agreed_upon


def first_alone(work: Callable[[], T]) -> T:
    """Work of every process that the first does alone before, such as to unpack an archive."""
    kept: list[T] = []
    agreed(lambda: kept.append(work()))
    return kept[0] if kept else work()


def highest(mine: int) -> int:
    """The highest of the processes' numbers, each from 0 to 2^31 - 1, on every process.

    Raises:
        BurstError: another process cannot bring its number; of any subclass.
    """
    return _highest(mine, None)


def add_rows(mine: Tensor) -> None:
    """Add the other processes' rows to mine, in place: no process holds a second copy.

    Args:
        mine: on the CPU, of the same shape on every process.
    """
    if rank_and_size()[1] == 1:
        return
    meet()
    for rows in torch.split(mine, ROWS):
        sent = rows.to(_device())
        dist.all_reduce(sent)
        rows.copy_(sent)


def meet() -> None:
    """Wait for all processes, before something that none can do, or leave, alone.

    Raises:
        BurstError: another process raised it; of any subclass.
    """
    highest(0)


def _highest(mine: int, error: BurstError | None) -> int:
    """All meetings begin with this; only if a process has an error, they are sent."""
    if rank_and_size()[1] == 1:
        return mine
    found = torch.tensor(FAILED if error else mine, device=_device())
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    if int(found) == FAILED:
        first = next(one for one in _exchange(error) if one)
        first.everywhere = True
        raise first
    return int(found)


def _device() -> str:
    """Where what is sent must lie."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _exchange(mine: T) -> list[T]:
    rank, size = rank_and_size()
    if size == 1:
        return [mine]
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, mine)
    parts[rank] = mine  # not a copy: an error keeps its traceback
    return parts


def _raise_everywhere(error: BurstError) -> NoReturn:
    if not error.everywhere:
        with suppress(RuntimeError):  # nobody is left to be told
            _highest(0, error)
    raise error
