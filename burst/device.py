"""Which device, by name; under `torchrun` each process has a GPU of its own."""

import os

import torch

from burst.errors import BurstError


def choose_device(name: str) -> torch.device:
    """The device with this name, ready to be used by this process.

    Args:
        name: "auto" is the GPU, if there is one, and else the CPU. "cuda" is, under `torchrun`, the
            GPU of the process's local rank, which becomes the current one; any other name is taken
            as it is ("cpu", "cuda:1", "mps").

    Raises:
        BurstError: PyTorch does not have the device here; or this machine runs more processes
            than it has GPUs.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "cuda" and local:
        if local >= torch.cuda.device_count():
            raise BurstError(
                f"process {local} of this machine, counted from 0, has no GPU: there are "
                f"{torch.cuda.device_count()}; start as many processes a machine as it has GPUs"
            )
        name = f"cuda:{local}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        if reason.startswith("Expected one of"):  # and then two dozen names
            reason = "PyTorch knows no such device"
        raise BurstError(
            f"the device {name!r} cannot be used here: {reason}; "
            "give auto, which takes what there is, or cpu (--device cpu)"
        ) from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def tokens_a_batch(device: torch.device) -> int:
    """About how many tokens a batch should have: few, for a CPU's cache, or many on a GPU."""
    return 4096 if device.type == "cpu" else 32768
