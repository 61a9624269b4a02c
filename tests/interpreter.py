"""What Triton's interpreter can do here, as its versions and NumPy's differ in that; faster."""

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


@cache
def patch_once_a_launch() -> None:
    """The interpreter looks through triton.language at each call of a function: 40 % of its time.

    What one call replaces there the others of the launch find replaced. It stays as slow as it is
    where a version of Triton has other insides.
    """
    from triton.runtime import interpreter

    if not (hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "GridExecutor")):
        return
    launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    done: set[frozenset[int]] = set()

    def patch_new(function):
        seen = frozenset(
            id(one) for one in function.__globals__.values() if one is tl or one is tl.core
        )
        if seen in done:
            return None
        done.add(seen)
        return patch(function)

    def launch_anew(self, *arguments, **options):
        done.clear()
        try:
            launch(self, *arguments, **options)
        finally:
            done.clear()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_new, launch_anew
