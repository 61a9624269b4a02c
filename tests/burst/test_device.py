"""Which device a name means, for one process and for several; no GPU is needed, or used."""

import pytest
import torch

from burst import BurstError, choose_device


@pytest.fixture
def two_gpus(monkeypatch):
    """As far as one can tell without using them; what became the current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    return current


def test_auto_is_the_processor_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_of_a_machine_has_a_gpu_of_its_own(name, two_gpus, monkeypatch):
    assert choose_device(name).index in (None, 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device(name) == torch.device("cuda:1")
    assert two_gpus[-1] == torch.device("cuda:1")


def test_a_gpu_that_is_named_is_taken(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda:0") == torch.device("cuda:0")


def test_more_processes_than_gpus_are_refused(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(BurstError, match="process 2 of this machine.*no GPU: there are 2"):
        choose_device("auto")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta:0:1"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(BurstError, match=f"the device '{name}' cannot be used here: "):
        choose_device(name)
