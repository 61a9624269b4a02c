"""What the tests of training share."""

import multiprocessing
import socket
from subprocess import CompletedProcess

import pytest
from colours import write_images


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """24 images to train on, 9 to validate, 12 to test, 3 classes."""
    return write_images(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def forkserver():
    """Its processes are forked from one that has imported `bpt` and done nothing else.

    A process that is spawned takes five seconds to import it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bpt"])
    return context


START = """
import os

import torch

for number, name in enumerate(("stdin", "stdout", "stderr")):
    os.dup2(os.open(f"{place}/{name}{group['RANK']}", os.O_RDWR | os.O_CREAT), number)
os.environ.update(group)
torch.set_num_threads(1)
"""


@pytest.fixture(scope="session")
def in_two_processes(forkserver):
    """Runs a program, which knows its folder as `place`, in a group of two; how both ended."""

    def run(program, place):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        processes = []
        for rank in "01":
            mine = {**group, "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
            arguments = START + program, {"place": str(place), "group": mine}
            processes.append(forkserver.Process(target=exec, args=arguments))
            processes[-1].start()
        for process in processes:
            process.join(120)
            process.kill()
            process.join()
        texts = [
            [(place / f"{name}{rank}").read_text() for name in ("stdout", "stderr")]
            for rank in "01"
        ]
        return [
            CompletedProcess(program, one.exitcode, *text)
            for one, text in zip(processes, texts, strict=True)
        ]

    return run
