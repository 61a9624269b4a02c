"""Prompts: their products, starts and counts."""

import math

import numpy as np
import pytest
import torch

from bpt.prompt import PROMPT_METHODS, PlainPrompt, PromptOptions, build_prompt
from burst.errors import BurstError, ShapeError, UnknownName

D = 24
COUNTS = [  # the paper's, at d = 768
    ("vpt", 100, 75, 1, 76_800),
    ("gatevpt", 100, 75, 1, 76_800),
    ("spt", 100, 75, 1, 76_800),
    ("bpt-fwhiten", 100, 75, 1, 76_800),
    ("bpt-twhiten", 100, 75, 1, 666_624),
    ("bpt-dwhiten", 100, 75, 1, 76_800),
    ("bpt-bilinear", 100, 75, 1, 65_100),
    ("bpt-bilinear", 50, 50, 12, 490_800),
    ("bpt-bilinear", 50, 50, 4, 163_600),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def built(method, width=D, **options):
    chosen = PromptOptions(method=method, **{"num_prompts": 7, "rank": 5, **options})
    whitening = torch.randn(width, width, generator=generator(1))
    if method == "bpt-dwhiten":
        whitening = whitening.diagonal().clone()
    tokens = torch.randn(chosen.num_prompts, width, generator=generator(2))
    return chosen, build_prompt(
        chosen,
        width=width,
        patch_size=4,
        generator=generator(),
        whitening=whitening if chosen.needs_whitening else None,
        tokens=tokens if chosen.needs_tokens else None,
    )


@pytest.mark.parametrize(("method", "prompts", "rank", "blocks", "expected"), COUNTS)
def test_parameter_counts_are_the_papers(method, prompts, rank, blocks, expected):
    options, prompt = built(method, width=768, num_prompts=prompts, rank=rank)
    trained = sum(p.numel() for p in prompt.parameters() if p.requires_grad)
    assert blocks * trained == expected
    assert options.parameters(768) == trained


@pytest.mark.parametrize("method", PROMPT_METHODS)
def test_a_prompt_is_its_product(method):
    _, prompt = built(method)
    given = {name: value.detach().double().numpy() for name, value in prompt.named_parameters()}
    given |= {name: value.double().numpy() for name, value in prompt.named_buffers()}
    if method == "bpt-bilinear":
        expected = np.einsum("mr,dr->md", given["left"], given["right"])
    elif "gains" in given:
        expected = given["values"] * given["gains"]
    elif "whitening" in given:
        expected = np.einsum("mk,dk->md", given["values"], given["whitening"])
    else:
        expected = given["values"]
    np.testing.assert_allclose(prompt().detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert prompt().shape == (7, D)


@pytest.mark.parametrize("method", PROMPT_METHODS)
def test_the_seed_decides_and_the_global_state_is_left_alone(method):
    before = torch.get_rng_state()
    (_, one), (_, two) = built(method), built(method)
    assert torch.equal(one(), two())
    assert torch.equal(torch.get_rng_state(), before)


def test_vpt_starts_uniform_within_its_bound():
    _, prompt = built("vpt", width=768, num_prompts=200)
    bound = math.sqrt(6 / (3 * 4**2 + 768))
    values = prompt().detach()
    assert values.abs().max() <= bound
    assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_bilinear_starts_normal_and_xavier():
    _, prompt = built("bpt-bilinear", width=768, num_prompts=200, rank=75)
    assert float(prompt.left.detach().std()) == pytest.approx(0.02, rel=0.02)
    bound = math.sqrt(6 / (768 + 75))
    assert prompt.right.detach().abs().max() <= bound
    assert float(prompt.right.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(("m", "rank"), [(30, 12), (7, 5), (5, 5), (5, 9), (1, 3), (3, 1)])
def test_a_balanced_start_has_equal_singular_values_at_the_scale_of_vpt(m, rank):
    _, prompt = built("bpt-bilinear", bilinear_init="balanced", num_prompts=m, rank=rank)
    left, right = (x.detach().double().numpy() for x in (prompt.left, prompt.right))
    deviation = math.sqrt(6 / (3 * 4**2 + D)) / math.sqrt(3)
    kept = min(m, rank)
    expected = np.full(kept, deviation * math.sqrt(m * D / kept))
    np.testing.assert_allclose(np.linalg.svd(left @ right.T)[1][:kept], expected, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.svd(left)[1] ** 2, expected, rtol=1e-5)
    np.testing.assert_allclose(right.T @ right, expected[0] * np.eye(rank), atol=1e-5)
    if rank <= m:
        np.testing.assert_allclose(left.T @ left, right.T @ right, atol=1e-5)


def test_bilinear_from_whitening_starts_from_the_leading_columns_at_unit_rms_gain():
    _, prompt = built("bpt-bilinear", bilinear_init="whitening")
    leading = torch.randn(D, D, generator=generator(1))[:, :5].double().numpy()
    expected = leading * math.sqrt(D) / np.sqrt(np.sum(leading**2))
    np.testing.assert_allclose(prompt.right.detach().numpy(), expected, rtol=1e-6)


def test_bilinear_from_whitening_at_the_papers_scale_starts_from_distinct_whole_columns():
    _, prompt = built("bpt-bilinear", bilinear_init="whitening", prompt_scale="paper")
    whitening = torch.randn(D, D, generator=generator(1))
    places = [
        [j for j in range(D) if torch.equal(whitening[:, j], column)]
        for column in prompt.right.detach().T
    ]
    assert all(len(place) == 1 for place in places)
    assert len({place[0] for place in places}) == 5


def test_only_twhiten_trains_its_whitening():
    assert [name for name, _ in built("bpt-fwhiten")[1].named_parameters()] == ["values"]
    names = [name for name, _ in built("bpt-twhiten")[1].named_parameters()]
    assert sorted(names) == ["values", "whitening"]


def test_training_a_prompt_leaves_what_it_was_given_alone():
    whitening = torch.eye(D)
    options = PromptOptions(method="bpt-twhiten", num_prompts=3)
    prompt = build_prompt(
        options, width=D, patch_size=4, generator=generator(), whitening=whitening
    )
    with torch.no_grad():
        prompt.whitening.add_(1)
    assert torch.equal(whitening, torch.eye(D))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "vtp"}, UnknownName, "vpt"),
        ({"spt_tokens": "median"}, UnknownName, "mean"),
        ({"bilinear_init": "svd"}, UnknownName, "xavier"),
        ({"prompt_scale": "units"}, UnknownName, "unit"),
        ({"null_gain": -1.0}, BurstError, "null_gain is -1"),
        ({"null_gain": math.nan}, BurstError, "null_gain is nan"),
        ({"num_prompts": 0}, BurstError, "num_prompts is 0"),
        ({"rank": -1}, BurstError, "rank is -1"),
        ({"rank": 2.0}, BurstError, r"rank is 2\.0; it must be a whole number"),
        ({"null_gain": None}, BurstError, "null_gain is None; it must be a number"),
    ],
)
def test_options_check_themselves(options, error, words):
    with pytest.raises(error, match=words):
        PromptOptions(**options)


def test_a_matrix_that_is_missing_or_does_not_fit_is_refused():
    same = {"width": D, "patch_size": 4, "generator": generator()}
    with pytest.raises(ShapeError, match="needs whitening"):
        build_prompt(PromptOptions(method="bpt-fwhiten"), **same)
    with pytest.raises(ShapeError, match="needs tokens"):
        build_prompt(PromptOptions(method="spt"), **same)
    with pytest.raises(ShapeError, match=r"\(3, 3\), expected \(24, 24\)"):
        build_prompt(PromptOptions(method="bpt-fwhiten"), whitening=torch.eye(3), **same)
    wide = PromptOptions(rank=D + 1, bilinear_init="whitening")
    with pytest.raises(ShapeError, match="rank 25 exceeds the 24 columns"):
        build_prompt(wide, whitening=torch.eye(D), **same)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", PROMPT_METHODS)
def test_autocast_changes_no_bit_of_a_prompt_or_of_its_gradients(method, precision):
    upstream = torch.randn(7, D, generator=generator(3))
    (_, plain), (_, cast) = built(method), built(method)
    plain().backward(upstream)
    with torch.autocast("cpu", precision):
        tokens = cast()
    tokens.backward(upstream)
    assert tokens.dtype == torch.float32 and torch.equal(tokens, plain())
    for one, other in zip(plain.parameters(), cast.parameters(), strict=True):
        assert other.grad.dtype == torch.float32 and torch.equal(one.grad, other.grad)


@pytest.mark.filterwarnings("ignore:Please use the new API settings")  # torch 2.9
@pytest.mark.usefixtures("no_precision_set")
@pytest.mark.parametrize("method", PROMPT_METHODS)
def test_a_less_precise_product_that_is_allowed_elsewhere_changes_no_bit(method, monkeypatch):
    (_, prompt) = built(method)
    expected = prompt()
    seen = []
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda one, other: seen.append(torch.get_float32_matmul_precision()) or one.mm(other),
    )
    torch.set_float32_matmul_precision("medium")
    assert torch.equal(prompt(), expected)
    assert torch.get_float32_matmul_precision() == "medium"
    multiplied = method in ("bpt-fwhiten", "bpt-twhiten", "bpt-bilinear")
    assert set(seen) == ({"highest"} if multiplied else set())


def test_a_plain_prompt_is_its_values():
    values = torch.randn(3, D)
    assert torch.equal(PlainPrompt(values)(), values)
