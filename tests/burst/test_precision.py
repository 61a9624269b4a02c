"""Products are float32 whatever the caller has allowed elsewhere, and that stays allowed."""

from contextlib import nullcontext

import pytest
import torch

from burst import head_response_histogram, interaction, matmul_histogram
from burst.precision import plain_float32

CPU = torch.device("cpu")
# torch 2.9 says so to whoever uses the old setting, as these tests do on purpose.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Please use the new API settings"),
    pytest.mark.usefixtures("no_precision_set"),
]


def old(name):
    torch.set_float32_matmul_precision(name)


def new(owner, value):
    if not hasattr(owner, "fp32_precision"):
        pytest.skip("this torch has no fp32_precision")
    owner.fp32_precision = value


def matmul_of(backend):
    return getattr(getattr(torch.backends, backend), "matmul", None)


SETTINGS = {
    "nothing": lambda: None,
    "high": lambda: old("high"),
    "medium": lambda: old("medium"),
    "tf32 on a GPU, new": lambda: new(matmul_of("cuda"), "tf32"),
    "bf16 on the CPU, new": lambda: new(matmul_of("mkldnn"), "bf16"),
    "old and new": lambda: (old("medium"), new(matmul_of("cuda"), "ieee")),
}


def state():
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        before = "contradicted"
    owners = (matmul_of("cuda"), matmul_of("mkldnn"))
    return before, [getattr(owner, "fp32_precision", None) for owner in owners]


@pytest.mark.parametrize("setting", SETTINGS)
def test_products_are_float32_and_the_setting_stays(setting):
    SETTINGS[setting]()
    before = state()
    with plain_float32(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
    assert state() == before


def test_a_setting_that_is_inherited_is_inherited_again():
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has no fp32_precision")
    whole = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = "tf32"
        with plain_float32(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
        assert matmul_of("cuda").fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert matmul_of("cuda").fp32_precision == matmul_of("mkldnn").fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = whole


def test_a_product_without_values_has_a_shape():
    w = torch.empty(5, 3, device="meta")
    assert interaction(w, w).shape == (5, 5)


def test_the_setting_comes_back_after_an_error():
    old("medium")
    with pytest.raises(ZeroDivisionError), plain_float32(CPU):
        _ = 1 / 0
    assert state()[0] == "medium"


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_that_the_caller_allows_changes_a_number(setting, autocast):
    w_q, w_k, x = torch.randn(192, 64), torch.randn(192, 64), torch.randn(500, 192)
    a = torch.randn(192, 192)
    expected = w_q @ w_k.mT, (a @ x.mT).min().item(), (w_q @ (x @ w_k).mT).min().item()
    SETTINGS[setting]()
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        found = interaction(w_q, w_k)
        response = matmul_histogram(a, x.mT)
        head = head_response_histogram(w_q, w_k, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected[0], rtol=1e-6, atol=1e-5)
    assert response.precision == head.precision == "ieee"
    assert response.moments.minimum == pytest.approx(expected[1], rel=1e-6)
    assert head.moments.minimum == pytest.approx(expected[2], rel=1e-6)


def test_inside_of_another_it_looks_at_nothing_and_the_outer_one_puts_all_back():
    torch.set_float32_matmul_precision("medium")
    with plain_float32(CPU):
        with plain_float32(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"
    with pytest.raises(RuntimeError, match="within"), plain_float32(CPU):
        raise RuntimeError("within")
    with plain_float32(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
