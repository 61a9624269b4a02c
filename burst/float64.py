"""Float64 for tensors of any device, also of those that have none."""

from torch import Tensor

LACKING = ("mps",)  # Apple's GPUs


def where_float64(x: Tensor) -> Tensor:
    """The tensor on its device, or on the CPU if that device has no float64."""
    return x.cpu() if x.device.type in LACKING else x


def to_float64(x: Tensor) -> Tensor:
    """The same in float64."""
    return where_float64(x).double()
