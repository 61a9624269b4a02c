"""What all tests share: seeds, no display, processes, the real images where they are."""

import gc
import os
import pwd
import resource
import signal
import warnings
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import settings
from processes import Forked, in_a_group_of_two, preloaded_server

matplotlib.use("Agg")
settings.register_profile("same", derandomize=True, deadline=None)  # each time, however long
settings.load_profile("same")
if not torch.cuda.is_available():  # read when Triton is first imported, by whatever test
    os.environ["TRITON_INTERPRET"] = "1"
ROOT = Path(__file__).parents[1]
gc.disable()  # until all tests are known: what is imported and collected stays, and is a lot


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seeded():
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # of devices that are not there torch keeps a list, with a traceback each: milliseconds
        torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_cache_at_home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("BURST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _measured_for_a_moment():
    """Each plan of a training measures the device; here nobody asks how fast that is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bpt.plan.LONG_ENOUGH", 0.0)
        yield


@pytest.fixture
def no_home(monkeypatch):
    """As in a container whose user nobody knows, with no cache named either."""

    def unknown(user):
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME", "BPT_CACHE", "BURST_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


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

    def unset():
        with warnings.catch_warnings():  # torch 2.9 warns of the old setting
            warnings.simplefilter("ignore")
            torch.set_float32_matmul_precision("highest")
        for one in owners:
            if hasattr(one, "fp32_precision"):
                one.fp32_precision = "none"

    unset()
    yield
    unset()


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
    """A context of `multiprocessing`: its processes have imported `bpt` and done nothing else."""
    return preloaded_server()


@pytest.fixture(scope="session")
def forked(forkserver):
    """Starts a program, given its folder: a `Forked`."""
    return partial(Forked, forkserver)


@pytest.fixture(scope="session")
def in_two_processes(forked):
    """Runs a program, given its folder, in a group of two; how both ended."""
    return partial(in_a_group_of_two, forked)
