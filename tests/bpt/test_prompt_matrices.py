"""What prompts are multiplied by: unit RMS gain, the null gain, the diagonal alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bpt.prompt import PromptOptions, build_prompt
from bpt.prompt_matrices import prompt_matrices, prompt_whitening
from burst import CheckpointError
from burst.decorrelation import FULL_METHODS, decorrelate, row_variances
from burst.whitening import BlockDiagnostics, Whitening

D, KEPT, FLOOR = 12, 8, 1e-4


def covariance(seed=0):
    """Eight variances over two orders of magnitude, and four far below the floor."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((D, D)))[0]
    values = np.concatenate([np.geomspace(1.0, 0.02, KEPT), np.geomspace(1e-6, 1e-9, D - KEPT)])
    return rotation, values


def whitening(method="zca", *, seed=0, variances=True):
    rotation, values = covariance(seed)
    factor = rotation * np.sqrt(values)
    found = decorrelate(factor, method=method, floor=FLOOR)
    about = BlockDiagnostics(3, 100, D, found.kept, *([0.0] * 7))
    rows = torch.from_numpy(row_variances(factor))[None]
    return Whitening(
        torch.from_numpy(found.matrix)[None],
        torch.from_numpy(found.eigenvalues)[None],
        torch.zeros(1, D, dtype=torch.float64),
        (about,),
        {"method": method, "floor": FLOOR},
        rows if variances else None,
    )


def matrix(made, **options):
    options = PromptOptions(**{"method": "bpt-fwhiten", **options})
    return prompt_matrices(prompt_whitening(made, options), options.method)[3].double().numpy()


def expected_zca(null_gain):
    """From the eigen-decomposition of Sigma in float64, which knows nothing of W."""
    rotation, values = covariance()
    sigma = (rotation * values) @ rotation.T
    found, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    kept = found >= FLOOR * found[-1]
    gains = np.ones(D)
    gains[kept] = found[kept] ** -0.5
    gains[~kept] = null_gain * np.sqrt(np.mean(gains[kept] ** 2))
    return (vectors * gains / np.sqrt(np.mean(gains**2))) @ vectors.T


@pytest.mark.parametrize("null_gain", [0.0, 0.5, 1.0, 3.0])
def test_directions_below_the_floor_have_the_null_gain_and_the_whole_unit_rms(null_gain):
    made = matrix(whitening(), null_gain=null_gain)
    np.testing.assert_allclose(made, expected_zca(null_gain), atol=2e-5)
    assert np.linalg.norm(made) == pytest.approx(np.sqrt(D), rel=1e-6)


@pytest.mark.parametrize("method", FULL_METHODS)
def test_the_prompts_tokens_make_the_response_white_by_every_method(method):
    rotation, values = covariance()
    sigma = (rotation * values) @ rotation.T
    made = matrix(whitening(method), null_gain=0.0).T  # tokens are P made^T: P times this
    found = np.linalg.eigvalsh(made @ sigma @ made.T)
    np.testing.assert_allclose(found[-KEPT:] / found[-1], 1.0, rtol=1e-4)
    np.testing.assert_allclose(found[:-KEPT], 0.0, atol=1e-6)


def test_the_papers_p_w_transposed_is_white_for_a_symmetric_w_alone():
    rotation, values = covariance()
    sigma = (rotation * values) @ rotation.T

    def spread(method):
        w = matrix(whitening(method), prompt_scale="paper")
        found = np.linalg.eigvalsh(w.T @ sigma @ w)
        return found[-1] / found[-KEPT]

    assert spread("zca") == pytest.approx(1.0, abs=1e-2)
    assert spread("pca") > 5


def test_the_papers_scale_is_w_as_it_is():
    made = whitening("pca")
    options = PromptOptions(method="bpt-fwhiten", prompt_scale="paper")
    assert torch.equal(prompt_whitening(made, options).W, made.W)


@given(st.floats(1e-3, 1e3))
@settings(max_examples=20)
def test_a_factor_of_w_changes_nothing(factor):
    made = whitening()
    scaled = replace(made, W=made.W * factor)
    np.testing.assert_allclose(matrix(scaled), matrix(made), atol=1e-5)


@given(st.floats(0.0, 5.0), st.sampled_from(["bpt-fwhiten", "bpt-twhiten", "bpt-dwhiten"]))
@settings(max_examples=30)
def test_a_random_direction_is_multiplied_by_one_in_the_mean_square(null_gain, method):
    made = matrix(whitening(), null_gain=null_gain, method=method)
    gains = made if made.ndim == 1 else np.linalg.svd(made, compute_uv=False)
    assert np.mean(gains**2) == pytest.approx(1.0, rel=1e-5)


@given(st.floats(0.1, 10.0), st.sampled_from(["bpt-fwhiten", "bpt-dwhiten"]))
@settings(max_examples=10)
def test_a_factor_of_the_prompt_is_one_of_its_tokens(factor, method):
    made = whitening()
    options = PromptOptions(method=method, num_prompts=4)
    w = prompt_matrices(prompt_whitening(made, options), method)[3]
    shared = {"width": D, "patch_size": 4, "whitening": w}
    prompt = build_prompt(options, generator=torch.Generator().manual_seed(0), **shared)
    before = prompt().detach()
    with torch.no_grad():
        prompt.values.mul_(factor)
    torch.testing.assert_close(prompt().detach(), factor * before, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["zca", "pca", "zca-cor", "diagonal"])
def test_the_diagonal_alone_is_v_to_the_minus_one_half(method):
    rotation, values = covariance()
    deviation = np.sqrt(np.diag((rotation * values) @ rotation.T))
    made = matrix(whitening(method), method="bpt-dwhiten")
    expected = 1 / deviation
    np.testing.assert_allclose(made, expected / np.sqrt(np.mean(expected**2)), rtol=1e-6)
    paper = matrix(whitening(method), method="bpt-dwhiten", prompt_scale="paper")
    np.testing.assert_allclose(paper, expected, rtol=1e-6)


def test_rows_below_the_floor_have_the_null_gain_of_the_diagonal():
    made = whitening()
    variances = torch.tensor([[1.0] * 5 + [4.0] * 5 + [1e-7, 0.0]], dtype=torch.float64)
    made = replace(made, variances=variances)
    gains = matrix(made, method="bpt-dwhiten", null_gain=2.0)
    kept = np.array([1.0] * 5 + [0.5] * 5)
    expected = np.concatenate([kept, [2 * np.sqrt(np.mean(kept**2))] * 2])
    np.testing.assert_allclose(gains, expected / np.sqrt(np.mean(expected**2)), rtol=1e-6)


@pytest.mark.parametrize("method", FULL_METHODS)
def test_the_bilinear_prompt_starts_where_the_response_varies_most_and_is_white(method):
    rotation, values = covariance()
    sigma = (rotation * values) @ rotation.T
    if method.endswith("-cor"):
        scale = np.sqrt(np.diag(sigma))
        values, rotation = np.linalg.eigh(sigma / np.outer(scale, scale))
        values, rotation = values[::-1], rotation[:, ::-1] * 1.0
        leading = rotation[:, :5] / scale[:, None]
    else:
        leading = rotation[:, :5]
    options = PromptOptions(num_prompts=3, rank=5, bilinear_init="whitening")
    w = prompt_matrices(prompt_whitening(whitening(method), options), options.method)[3]
    generator = torch.Generator().manual_seed(0)
    right = build_prompt(options, width=D, patch_size=4, generator=generator, whitening=w).right
    b = right.detach().double().numpy()
    assert np.linalg.norm(b) == pytest.approx(np.sqrt(D), rel=1e-6)
    of_response = b.T @ sigma @ b
    np.testing.assert_allclose(of_response / of_response[0, 0], np.eye(5), atol=1e-4)
    if not method.endswith("-cor"):
        assert np.linalg.matrix_rank(np.hstack([b, leading]), tol=1e-3) == 5


@pytest.mark.parametrize("null_gain", [0.0, 1.0])
def test_a_rank_beyond_the_kept_directions_starts_them_at_the_null_gain(null_gain):
    start = {"bilinear_init": "whitening", "null_gain": null_gain}
    options = PromptOptions(num_prompts=3, rank=10, **start)
    w = prompt_matrices(prompt_whitening(whitening(), options), options.method)[3]
    generator = torch.Generator().manual_seed(0)
    right = build_prompt(options, width=D, patch_size=4, generator=generator, whitening=w).right
    norms = np.linalg.norm(right.detach().double().numpy(), axis=0)
    assert np.all(norms[:KEPT] > 0.1)
    expected = null_gain * np.sqrt(np.mean(norms[:KEPT] ** 2))
    np.testing.assert_allclose(norms[KEPT:], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "method, options",
    [("zca-cor", {"method": "bpt-fwhiten"}), ("zca", {"method": "bpt-dwhiten"})],
)
def test_a_file_of_an_earlier_version_that_lacks_the_variances_says_so(method, options):
    with pytest.raises(CheckpointError, match="earlier version, and lacks the variances"):
        matrix(whitening(method, variances=False), **options)
    assert matrix(whitening(variances=False)).shape == (D, D)


@pytest.mark.parametrize("method", ["bpt-fwhiten", "bpt-dwhiten"])
def test_what_a_run_has_scaled_is_taken_again_as_it_is_or_not_at_all(method):
    options = PromptOptions(method=method)
    used = prompt_whitening(whitening(), options)
    with pytest.raises(CheckpointError, match="scaled already"):
        prompt_whitening(used, options)
    again = prompt_whitening(used, replace(options, prompt_scale="paper"))
    assert torch.equal(again.W, used.W)
