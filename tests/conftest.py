"""What all tests share: seeds, no display, the real images where they are."""

import os
import resource
import signal
from pathlib import Path

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
