"""Programs in processes that are forked from one that has imported `bpt`, alone or in a group."""

import multiprocessing
import socket
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from subprocess import CompletedProcess

import pytest

LIMIT = 200  # seconds, below those of pytest
START = """
import os

import torch

for number, name in enumerate(("stdin", "stdout", "stderr")):
    os.dup2(os.open(f"{place}/{name}{rank}", os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
os.environ.update(environment)
torch.set_num_threads(1)
"""


def preloaded_server() -> ForkServerContext:
    """A process that is spawned takes five seconds to import `bpt` and its parts; these take none.

    TRITON_INTERPRET is not set there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bpt", "sklearn.datasets", "sklearn.model_selection"])
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        ensure_running()
    return context


class Forked:
    """A program in a process of its own, which knows its folder as `place`."""

    def __init__(
        self,
        server: ForkServerContext,
        program: str,
        place: Path,
        rank: int = 0,
        **environment: str,
    ) -> None:
        self.program, self.place, self.rank = program, place, rank
        self.deadline = time.monotonic() + LIMIT
        names = {"place": str(place), "rank": rank, "environment": environment}
        self.process = server.Process(target=exec, args=(START + program, names), daemon=True)
        self.process.start()

    def end(self) -> CompletedProcess:
        """How it ended; it is killed where that takes too long."""
        self.process.join(max(self.deadline - time.monotonic(), 0))
        late = self.process.is_alive()
        self.process.kill()
        self.process.join()
        out, err = ((self.place / f"{one}{self.rank}").read_text() for one in ("stdout", "stderr"))
        err += f"\nkilled after {LIMIT} s" if late else ""
        return CompletedProcess(self.program, self.process.exitcode, out, err)


def in_a_group_of_two(
    start: Callable[..., Forked], program: str, place: Path
) -> list[CompletedProcess]:
    """How both processes of a group ended. No launcher ends one with the other."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        both.append(start(program, place, rank, **group, **own))
    return [one.end() for one in both]
