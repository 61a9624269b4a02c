"""What all tests share: seeds, no display, the real images where they are."""

import multiprocessing
import os
import resource
import signal
import socket
from functools import partial
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from subprocess import CompletedProcess

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
if not torch.cuda.is_available():  # read when Triton is first imported, by whatever test
    os.environ["TRITON_INTERPRET"] = "1"
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="session")
def _no_cache_at_home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("BURST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def one_thread():
    """As in each process of a group: float32 sums depend on how many share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_precision_set():
    """Nobody has said how float32 is multiplied, before; and what a test says ends with it.

    The old setting sets the new ones of torch 2.9 too, and leaves them set.
    """
    backends = (getattr(torch.backends, name) for name in ("cuda", "mkldnn"))
    owners = [getattr(one, "matmul", None) for one in backends]
    owners = [one for one in owners if hasattr(one, "fp32_precision")]
    before = [one.fp32_precision for one in owners]
    for one in owners:
        one.fp32_precision = "none"
    yield
    torch.set_float32_matmul_precision("highest")
    for one, value in zip(owners, before, strict=True):
        one.fp32_precision = value


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def short_files():
    """No file of this process can be longer than 70,000 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real images; a test that needs them is skipped where there is none."""
    folder = Path(os.environ.get("BURST_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real images are not here; set BURST_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def forkserver():
    """Its processes are forked from one that has imported `bpt` and done nothing else.

    A process that is spawned takes five seconds to import it. Triton is not in its interpreter.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bpt"])
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        ensure_running()
    return context


START = """
import os

import torch

for number, name in enumerate(("stdin", "stdout", "stderr")):
    os.dup2(os.open(f"{place}/{name}{rank}", os.O_RDWR | os.O_CREAT), number)
os.environ.update(environment)
torch.set_num_threads(1)
"""


class Forked:
    """A program in a process of its own, which knows its folder as `place`; see `forkserver`."""

    def __init__(self, forkserver, program, place, *, rank=0, **environment):
        self.program, self.place, self.rank = program, place, rank
        names = {"place": str(place), "rank": rank, "environment": environment}
        self.process = forkserver.Process(target=exec, args=(START + program, names))
        self.process.start()

    def end(self) -> CompletedProcess:
        """Wait for its end; it is killed after four minutes."""
        self.process.join(240)
        self.process.kill()
        self.process.join()
        texts = [(self.place / f"{one}{self.rank}").read_text() for one in ("stdout", "stderr")]
        return CompletedProcess(self.program, self.process.exitcode, *texts)


@pytest.fixture(scope="session")
def forked(forkserver):
    """Starts a program, given its folder: a `Forked`."""
    return partial(Forked, forkserver)


@pytest.fixture(scope="session")
def in_two_processes(forked):
    """Runs a program, which knows its folder as `place`, in a group of two; how both ended.

    No launcher ends one with the other. Gloo listens on this machine alone.
    """

    def run(program, place):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        group["MASTER_PORT"] = port
        both = [
            forked(program, place, rank=rank, **group, RANK=str(rank), LOCAL_RANK=str(rank))
            for rank in range(2)
        ]
        return [one.end() for one in both]

    return run
