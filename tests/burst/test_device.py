"""Which device a name means, for one process and for several; no GPU is needed, or used."""

import pandas as pd
import pytest
import torch
from support import SIZE, backbone_of, vit

import burst
from burst import BurstError, choose_device
from burst.device import check_device, out_of_memory
from burst.spectrum import _null
from cli._common import parse_devices


@pytest.fixture
def two_gpus(monkeypatch):
    """As far as one can tell without using them; the indices of what became the current one.

    What torch checks of a device in Python is its own, and alone its calls of CUDA are replaced.
    """
    current = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", current.append, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current[-1], raising=False)
    monkeypatch.setattr("burst.device._compute_on", lambda _: None)
    return current


def test_auto_is_the_processor_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_of_a_machine_has_a_gpu_of_its_own(name, two_gpus, monkeypatch):
    for local in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", local)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        assert choose_device(name) == torch.device(f"cuda:{local}")
        assert two_gpus[-1] == int(local)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_one_process_has_the_current_gpu(name, two_gpus):
    assert choose_device(name) == torch.device("cuda:0")
    torch.cuda.set_device(1)
    assert choose_device(name) == torch.device("cuda:1")


def test_a_gpu_that_is_named_is_taken_and_becomes_the_current_one(two_gpus):
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert two_gpus[-1] == 1


def test_one_gpu_for_several_processes_is_refused(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(BurstError, match="cuda:0 is one GPU, and several processes run"):
        choose_device("cuda:0")


def test_more_processes_than_gpus_are_refused(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(BurstError, match="process 2 of this machine.*no GPU: it sees 2"):
        choose_device("auto")


@pytest.mark.parametrize(("name", "other"), [("auto", ""), ("cuda", "auto, which .*, or ")])
def test_a_gpu_that_this_torch_has_no_kernels_for_is_refused(name, other, two_gpus, monkeypatch):
    def without_kernels(_):
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel "
        )

    monkeypatch.setattr("burst.device._compute_on", without_kernels)
    told = f"'cuda' cannot be used here: CUDA error: no kernel .*device; give {other}cpu "
    with pytest.raises(BurstError, match=told):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta:0:1"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(BurstError, match=f"the device '{name}' cannot be used here: "):
        choose_device(name)


def test_a_gpu_for_another_process_is_looked_at_and_not_used(two_gpus, monkeypatch):
    monkeypatch.setattr("burst.device._compute_on", lambda device: pytest.fail(f"{device} is used"))
    check_device("cuda:1")
    with pytest.raises(BurstError, match="'cuda:2' cannot be used here: there are 2 GPUs, from 0"):
        check_device("cuda:2")
    assert two_gpus == [0]


@pytest.mark.parametrize(("text", "processes"), [("cuda:0,cuda:1", None), ("cuda:1", 4)])
def test_gpus_of_processes_to_come_are_not_used_by_the_one_that_is_typed(
    text, processes, two_gpus, monkeypatch
):
    monkeypatch.setattr("burst.device._compute_on", lambda device: pytest.fail(f"{device} is used"))
    assert parse_devices(text, processes) == text.split(",")
    assert two_gpus == [0]


@pytest.mark.parametrize("name", ["gpu", "cuda:x"])
def test_a_device_for_another_process_that_is_none_is_refused(name):
    check_device("cpu")
    with pytest.raises(BurstError, match=f"the device '{name}' cannot be used here: "):
        check_device(name)


def test_a_full_gpu_is_told_in_a_line():
    """The first sentence of torch 2.14, and what another version or allocator may say."""
    told = "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 15.77 GiB"
    words = "the GPU has no room left (tried to allocate 1.50 GiB)"
    assert out_of_memory(torch.OutOfMemoryError(told)) == words
    assert out_of_memory(torch.OutOfMemoryError("no")) == "the GPU has no room left"


IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
CALLS = {
    "survey": lambda backbone: (
        burst.survey(
            backbone, [IMAGES], burst.SurveyOptions(quantities=("qk", "x", "qkx", "logits"))
        ).table
    ),
    "permuted": lambda backbone: (
        burst.survey(backbone, [IMAGES], burst.SurveyOptions(blocks=(0,), tokens="permuted")).table
    ),
    "extremes": lambda backbone: burst.extremes(backbone, [IMAGES]).summary,
    "map": lambda backbone: burst.token_energy(backbone, [IMAGES])[0].table(),
    "spectrum": lambda backbone: burst.spectrum(backbone, blocks=[0]).table,
    "random weights": lambda backbone: burst.spectrum(burst.random_weights(backbone), [0]).table,
    "random": lambda _: (
        burst.spectrum(burst.load_backbone("timm:test_vit", "random"), blocks=[0]).table
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_on_the_processor_is_measured_whatever_the_default_device(call):
    backbone = backbone_of(vit())
    expected = call(backbone)
    _null.cache_clear()
    torch.set_default_device("meta")
    try:
        found = call(backbone)
    finally:
        torch.set_default_device(None)
    pd.testing.assert_frame_equal(found, expected)
