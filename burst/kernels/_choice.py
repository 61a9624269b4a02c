"""Which backend counts where."""

import torch

from burst.axis import Axis
from burst.errors import BackendError, UnknownName
from burst.kernels import _trial
from burst.kernels._scaling import takes

BACKENDS = ("reference", "torch", "triton")
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")


def choose(requested: str, device: torch.device, *, installed: bool, trusted: bool = False) -> str:
    """The backend that counts on `device`: `requested`; for "auto" `triton` or `torch`.

    A pure function; whether "triton" can run on the CPU (under its interpreter) is found out when
    it starts.

    Args:
        requested: "auto" or a name from `BACKENDS`.
        device: where the tensors are.
        installed: whether Triton is.
        trusted: whether "auto" may be `triton` on this device, if that is a GPU.

    Raises:
        UnknownName: no backend is called `requested`.
        BackendError: the tensors are on a device without data; or "triton" was asked for and is
            not installed.
    """
    if device.type == "meta":
        raise BackendError("a tensor on the meta device has no values to count; load it first")
    if requested == "auto":
        return "triton" if device.type == "cuda" and installed and trusted else "torch"
    if requested not in BACKENDS:
        raise UnknownName("backend", requested, ("auto", *BACKENDS))
    if requested == "triton" and not installed:
        raise BackendError("the triton backend needs Triton: pip install triton, or backend='auto'")
    return requested


def trusted(requested: str, device: torch.device, axis: Axis) -> bool:
    """Whether "auto" may try Triton on a GPU."""
    if requested != "auto" or device.type != "cuda":
        return False
    if problem := _trial.obstacle(device):
        _trial.warn(device, problem)
    return problem is None and takes(axis)
