"""Which device, by name; under `torchrun` each process has a GPU of its own."""

import os
import re

import torch

from burst.errors import BurstError


def choose_device(name: str) -> torch.device:
    """The device with this name, ready to be used by this process.

    Args:
        name: "auto" is the GPU, if there is one, and else the CPU. "cuda" is, under `torchrun`, the
            GPU of the process's local rank, and else the current one; any other name is taken
            as it is ("cpu", "cuda:1", "mps").

    Returns:
        The device, a GPU with its index; it is now the current one.

    Raises:
        BurstError: PyTorch does not have the device here, or no kernels for it; this machine runs
            more processes than it has GPUs; or it runs several, and one GPU is named for all of
            them.
    """
    asked = name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            device = torch.device("cuda", _index(device))
        _compute_on(device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except torch.OutOfMemoryError:
        raise  # which says what to do itself
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        if reason.startswith("Expected one of"):  # and then two dozen names
            reason = "PyTorch knows no such device"
        other = "" if asked == "auto" else "auto, which takes what there is, or "
        raise BurstError(
            f"the device {name!r} cannot be used here: {reason}; give {other}cpu (--device cpu)"
        ) from error
    return device


def _compute_on(device: torch.device) -> None:
    """Memory alone says nothing: a PyTorch may lack kernels for a GPU that it sees, an old one."""
    torch.zeros(1, device=device).add_(1).item()


def _index(device: torch.device) -> int:
    """Which GPU this process has.

    Raises:
        BurstError: see `choose_device`.
    """
    local = os.environ.get("LOCAL_RANK")  # of torchrun
    if device.index is not None:
        if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
            raise BurstError(
                f"{device} is one GPU, and several processes run on this machine; give cuda, "
                "which is a GPU of its own for each (--device cuda)"
            )
        return device.index
    if local is None:
        return torch.cuda.current_device()
    if (count := torch.cuda.device_count()) and int(local) >= count:
        raise BurstError(
            f"process {local} of this machine, counted from 0, has no GPU: it sees {count}; "
            "start as many processes a machine as it has GPUs, or, where each sees one of its own "
            "(SLURM's --gpus-per-task), let all of them see all"
        )
    return int(local)


def check_device(name: str) -> torch.device:
    """The device with this name, ready to be used; a GPU that is named is not made the current one.

    It may be for another process.

    Raises:
        BurstError: see `choose_device`.
    """
    kind, _, index = name.partition(":")
    if kind != "cuda" or not index.isdecimal() or not torch.cuda.is_available():
        return choose_device(name)
    if int(index) >= (count := torch.cuda.device_count()):
        raise BurstError(f"the device {name!r} cannot be used here: there are {count} GPUs, from 0")
    return torch.device(name)


def out_of_memory(error: RuntimeError) -> str:
    """What to say of torch's OutOfMemoryError, in one line."""
    told = re.search(r"Tried to allocate [\d.]+ \w+", str(error))
    return f"the GPU has no room left{f' ({told[0][0].lower() + told[0][1:]})' if told else ''}"


def tokens_a_batch(device: torch.device) -> int:
    """About how many tokens a batch should have: few, for a CPU's cache, or many on a GPU."""
    return 4096 if device.type == "cpu" else 32768
