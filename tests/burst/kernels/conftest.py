"""Without a GPU the Triton kernels run under Triton's interpreter (see tests/conftest.py)."""

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where the Triton kernels run: on a GPU where there is one, else in the interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from burst.kernels import _triton

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU is here")
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("a GPU is here: the kernels are compiled for it, not interpreted")
    assert (request.param == "cpu") == _triton.INTERPRETED, "Triton was imported too early"
    if request.param == "cpu":
        from interpreter import obstacle, patch_once_a_launch

        if why := obstacle():
            pytest.skip(why)
        patch_once_a_launch()
    return torch.device(request.param)
