"""What Triton's interpreter can do here, as its versions and NumPy's differ in that."""

from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl


@triton.jit
def count_to(counter_ptr, end):
    for step in range(end):
        tl.store(counter_ptr, step + 1)


@cache
def obstacle() -> str | None:
    """Why no kernel of a few lines runs in the interpreter, in words; None if one does."""
    try:
        count_to[(1,)](counter := torch.zeros(1, dtype=torch.int32), 3)
    except Exception as error:  # of whatever kind the interpreter makes of it
        return (
            f"Triton {triton.__version__}'s interpreter fails under NumPy {np.__version__}: {error}"
        )
    assert counter.item() == 3
    return None
