"""A run over several processes, as `torchrun` starts them: who am I, and merging what each has."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

from burst.histogram import Histogram

K = TypeVar("K")
T = TypeVar("T")


def rank_and_size() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def process_group(backend: str = "gloo") -> Iterator[tuple[int, int]]:
    """Join the processes that `torchrun` started, if it did; gives rank and size.

    What `burst` sends are small results, as Python objects, so gloo serves on machines with GPUs
    too; whoever sends gradients asks for "cpu:gloo,cuda:nccl".
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield rank_and_size()
        return
    dist.init_process_group(backend)
    try:
        yield rank_and_size()
    finally:
        dist.destroy_process_group()


def gather(mine: T) -> list[T]:
    """What every process has, in order of rank, on every process; `mine` must pickle."""
    _, size = rank_and_size()
    if size == 1:
        return [mine]
    parts: list[T | None] = [None] * size
    dist.all_gather_object(parts, mine)
    return [part for part in parts if part is not None]


def add_histograms(mine: dict[K, Histogram]) -> dict[K, Histogram]:
    """The histograms of all processes, those of one key added up, on every process."""
    whole: dict[K, Histogram] = {}
    for part in gather(mine):
        for key, hist in part.items():
            whole[key] = whole[key] + hist if key in whole else hist
    return whole
