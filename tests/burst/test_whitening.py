"""A whitening of a small model against the same computed from materialised tokens."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from hf_models import MODELS
from PIL import Image
from scipy.stats import kurtosis
from support import DEPTH, DIM, HEADS, backbone_of, vit

from burst.adapters import OmittedTermWarning, find_blocks
from burst.backbone import load_backbone
from burst.collect import collect_moments, split_images
from burst.decorrelation import FULL_METHODS
from burst.errors import BurstError, EmptyResult, ShapeError, UnknownName, UnsupportedModel
from burst.interaction import response_matrix
from burst.statistics import describe
from burst.survey import images_for
from burst.tokens import capture
from burst.whitened import whitened_histogram, whitened_histograms
from burst.whitening import RankWarning, whiten, whiten_moments
from burst.whitening_options import WhiteningOptions


@pytest.fixture(scope="module")
def backbone():
    model = vit()
    for i, block in enumerate(model.blocks):  # gains and weights that are not all alike
        generator = torch.Generator().manual_seed(i)
        block.norm1.weight.data = 0.5 + torch.rand(DIM, generator=generator)
        block.attn.qkv.weight.data = torch.randn(3 * DIM, DIM, generator=generator)
    return backbone_of(model)


@pytest.fixture(scope="module")
def images(backbone):
    return images_for(backbone, "sample", num_images=60)


@pytest.fixture(scope="module")
def moments(backbone, images):
    return collect_moments(backbone, images)


def tokens_of(backbone, images, block):
    """(images, N, d) float64."""
    rows = []
    with torch.inference_mode():
        for batch in images:
            with capture(backbone.model, (block,)) as read:
                backbone.model(batch)
            rows.append(read[block].double())
    return torch.cat(rows).numpy()


def weights_of(backbone, block):
    weight = backbone.model.blocks[block].attn.qkv.weight.detach().double().numpy()
    return weight[:DIM], weight[DIM : 2 * DIM]


def test_w_whitens_the_materialised_response(backbone, images, moments):
    found = whiten_moments(backbone, moments)
    assert found.W.shape == (DEPTH, DIM, DIM)
    assert found.W.dtype == torch.float32
    for block, one in enumerate(found.blocks):
        x = tokens_of(backbone, images, block).reshape(-1, DIM)
        query, key = weights_of(backbone, block)
        y = query.T @ key @ x.T
        np.testing.assert_allclose(found.mean[block], y.mean(1), atol=1e-10)
        values, vectors = np.linalg.eigh(np.cov(y, bias=True))
        np.testing.assert_allclose(
            found.eigenvalues[block][: one.kept], values[::-1][: one.kept], rtol=1e-6
        )
        white = found.W[block].double().numpy() @ y
        kept = vectors[:, ::-1][:, : one.kept].T @ white
        np.testing.assert_allclose(np.cov(kept, bias=True), np.eye(one.kept), atol=1e-3)
        assert one.block == block
        assert one.tokens == x.shape[0] == 60 * 17
        assert one.rank == DIM - 1  # a LayerNorm's null direction
        assert np.isnan(one.whiteness_error)


@pytest.mark.parametrize("method", FULL_METHODS)
def test_every_method_is_white_on_the_fitted_tokens(method, backbone, moments):
    options = WhiteningOptions(method=method, floor=1e-4)
    found = whiten_moments(backbone, moments, options, held_out=moments)
    for one in found.blocks:
        assert one.whiteness_error < 1e-4
        assert one.kept_condition_number <= 1e4
        assert 0.99 < one.kept_variance <= 1
        assert 1 < one.effective_rank < one.kept
    assert torch.isfinite(found.W).all()


def test_the_diagonal_divides_each_row_by_its_deviation(backbone, images, moments):
    options = WhiteningOptions(method="diagonal")
    found = whiten_moments(backbone, moments, options, held_out=moments)
    for block, one in enumerate(found.blocks):
        query, key = weights_of(backbone, block)
        y = query.T @ key @ tokens_of(backbone, images, block).reshape(-1, DIM).T
        np.testing.assert_allclose(found.variances[block], y.var(axis=1), rtol=1e-9)
        np.testing.assert_allclose(found.W[block], np.diag(1 / y.std(axis=1)), rtol=1e-6)
        np.testing.assert_allclose(found.eigenvalues[block], np.sort(y.var(axis=1))[::-1])
        rest = np.linalg.norm(np.corrcoef(y) - np.eye(DIM)) / DIM**0.5
        assert one.whiteness_error == pytest.approx(rest, rel=1e-3)
        assert one.variance_error < 1e-5
        assert one.kept == one.rank == DIM
        assert one.effective_rank > 10  # all rows vary alike, however correlated they are


@pytest.mark.parametrize(
    "changes", [{}, {"shrinkage": "oas"}, {"through_norm": True}, {"head": 2}, {"floor": 0.1}]
)
def test_the_variances_are_the_diagonal_of_sigma_whatever_the_method(changes, backbone, moments):
    full = whiten_moments(backbone, moments, WhiteningOptions(**changes))
    diagonal = whiten_moments(backbone, moments, WhiteningOptions(method="diagonal", **changes))
    assert torch.equal(full.variances, diagonal.variances)
    trace = full.variances.sum(dim=1)
    torch.testing.assert_close(full.eigenvalues.sum(dim=1), trace, rtol=1e-9, atol=0)
    floor = changes.get("floor", 1e-6) * full.variances.amax(dim=1, keepdim=True)
    gains = full.variances.maximum(floor) ** -0.5
    torch.testing.assert_close(diagonal.W, torch.diag_embed(gains).float())


def test_the_diagonal_needs_no_more_tokens_than_dimensions(backbone):
    moments = collect_moments(backbone, images_for(backbone, "sample", num_images=1))
    found = whiten_moments(backbone, moments, WhiteningOptions(method="diagonal"))
    assert all(one.rank == DIM for one in found.blocks)
    found = whiten_moments(backbone, moments, WhiteningOptions(method="diagonal", floor=0))
    assert torch.isfinite(found.W).all()


@pytest.mark.parametrize("method", ["zca", "diagonal"])
def test_the_kurtosis_after_the_diagonal_is_that_of_standardised_rows(method, backbone, images):
    options = WhiteningOptions(blocks=(1, 2), method=method, held_out=0)
    found = whiten(backbone, images, options)
    entries = whitened_histograms(backbone, images, found, options)
    for block in (1, 2):
        x = tokens_of(backbone, images, block).reshape(-1, DIM)
        y = response_matrix(find_blocks(backbone.model)[block]).numpy() @ x.T
        scaled = (y / y.std(axis=1, keepdims=True)).ravel()
        moments = entries[block].diagonal.moments
        assert moments.excess_kurtosis == pytest.approx(kurtosis(scaled), rel=1e-4)
        assert moments.std == pytest.approx(scaled.std(), rel=1e-5)


def test_a_row_that_never_varies_is_no_infinity(images):
    model = vit()
    model.blocks[0].attn.qkv.weight.data[:DIM, 3] = 0
    constant = backbone_of(model)
    for method in ("diagonal", "zca"):
        options = WhiteningOptions(blocks=(0,), method=method)
        found = whiten(constant, images, options)
        (entries,) = whitened_histograms(constant, images, found, options).values()
        assert np.isfinite(entries.diagonal.moments.excess_kurtosis)
        assert torch.isfinite(found.W).all()
        assert entries.diagonal.nonfinite.total == 0
    with pytest.raises(BurstError, match=r"blocks\.0: entry 3 of its response .* floor"):
        whiten(constant, images, WhiteningOptions(method="diagonal", floor=0))


def test_the_whitening_of_other_images_is_measured(backbone):
    found = whiten(backbone, images_for(backbone, "sample", num_images=200))
    assert found.record["images"]["count"] == 160
    assert found.record["images"]["held_out"] == 40
    (source,) = found.record["images"]["sources"]
    assert source == images_for(backbone, "sample", num_images=200).record
    for one in found.blocks:
        assert one.tokens == 160 * 17
        assert 0.02 < one.whiteness_error < 1


def test_one_pass_equals_its_parts(backbone, images):
    fitting, held = split_images(images, 0.25)
    options = WhiteningOptions(blocks=(2, 0), held_out=0.25)
    calls = []
    found = whiten(backbone, images, options, progress=lambda *numbers: calls.append(numbers))
    assert calls == [(1, 2), (2, 2)]
    parts = (collect_moments(backbone, part, blocks=(2, 0)) for part in (fitting, held))
    first, second = parts
    expected = whiten_moments(backbone, first, options, held_out=second)
    assert torch.equal(found.W, expected.W)
    assert found.blocks == expected.blocks
    assert [one.block for one in found.blocks] == [2, 0]


def test_blocks_that_cannot_be_whitened_are_left_out_of_moments_as_they_are_of_images():
    """The head of SigLIP pools by a learned query, whose tokens have moments all the same."""
    (known,) = (one for one in MODELS if one.name == "SiglipVisionModel")
    model, batches = known.build(), [known.inputs() for _ in range(4)]
    moments = collect_moments(model, batches)
    assert len(moments.blocks) == len(find_blocks(model)) == known.attentions + 1
    options = WhiteningOptions(held_out=0.0, shrinkage=0.1)
    found, direct = whiten_moments(model, moments, options), whiten(model, batches, options)
    assert found.blocks == direct.blocks and len(found.blocks) == known.attentions
    assert torch.equal(found.W, direct.W)
    pool = replace(options, blocks=(known.attentions,))
    with pytest.raises(UnsupportedModel, match="its queries are learned vectors"):
        whiten_moments(model, moments, pool)


def test_few_images_leave_nothing_held_out(backbone):
    found = whiten(backbone, images_for(backbone, "sample", num_images=4))
    assert found.record["images"]["held_out"] == 0
    assert all(np.isnan(one.whiteness_error) for one in found.blocks)


def test_held_out_images_that_cannot_be_read_leave_nothing_held_out(backbone, tmp_path):
    for shade in range(6):
        Image.new("L", (16, 16), 40 * shade).save(tmp_path / f"{shade}.png")
    stream = images_for(backbone, tmp_path, skip_bad=True)
    (torn,) = split_images(stream, 0.2)[1].names
    (tmp_path / torn).write_bytes(b"torn")
    stream = images_for(backbone, tmp_path, skip_bad=True)
    options = WhiteningOptions(blocks=(1,), floor=1e-2)
    found = whiten(backbone, stream, options)
    assert np.isnan(found.blocks[0].whiteness_error)
    images = found.record["images"]
    assert (images["count"], images["held_out"]) == (5, 0)
    assert [name for name, _ in images["bad"]] == [torn]
    read = whitened_histograms(backbone, stream, found, options)[1]
    assert read.after.count == 5 * 17 * DIM


def test_a_head_has_no_more_directions_than_its_width(backbone, moments):
    found = whiten_moments(backbone, moments, WhiteningOptions(head=1, floor=0.0001))
    assert all(one.rank == DIM // HEADS for one in found.blocks)
    with pytest.raises(ShapeError, match="heads 0 to 3"):
        whiten_moments(backbone, moments, WhiteningOptions(head=4))


def test_through_norm_and_centring_change_what_is_white(backbone, images, moments):
    options = WhiteningOptions(blocks=(1,), through_norm=True, centred=False)
    found = whiten_moments(backbone, moments, options)
    x = tokens_of(backbone, images, 1).reshape(-1, DIM)
    response = response_matrix(find_blocks(backbone.model)[1], through_norm=True).numpy()
    y = response @ x.T
    expected = np.linalg.eigvalsh(y @ y.T / y.shape[1])[::-1]
    kept = found.blocks[0].kept
    np.testing.assert_allclose(found.eigenvalues[0, :kept], expected[:kept], rtol=1e-6)


def normed(norm, prompts):
    """LayerNorm of (m, d) prompts without its bias, by NumPy in float64, and their deviations."""
    deviation = np.sqrt(prompts.var(axis=1) + norm.eps)
    centred = prompts - prompts.mean(axis=1, keepdims=True)
    return centred / deviation[:, None] * norm.weight.double().numpy(), deviation


def test_through_norm_whitens_what_prompts_meet_behind_the_layer_norm_on_other_images():
    tiny = load_backbone("mae_tiny")
    tiny.model.blocks = tiny.model.blocks[:3]  # for speed
    fitting, held = split_images(images_for(tiny, "sample", num_images=128), 0.5)
    moments = collect_moments(tiny, fitting)
    found = whiten_moments(tiny, moments, WhiteningOptions(through_norm=True))
    with torch.inference_mode(), capture(tiny.model) as tokens:
        tiny.model(torch.cat(list(held)))
    for block, one in enumerate(found.blocks):
        part = tiny.model.blocks[block]
        query, key = part.attn.qkv.weight.double().numpy().reshape(3, 192, 192)[:2]
        # Unit prompts have one deviation, so times it they are whitened as they are.
        prompts, deviation = normed(part.norm1, np.eye(192))
        response = deviation[:, None] * (prompts @ query.T @ key)
        sigma = response @ moments.blocks[block].covariance().numpy() @ response.T
        kept = np.linalg.eigh(sigma).eigenvectors[:, ::-1][:, : one.kept]
        assert abs(kept.sum(axis=0)).max() < 1e-6  # at right angles to the one that never varies
        y = response @ tokens[block].double().flatten(0, 1).numpy().T
        variances = (kept.T @ found.W[block].double().numpy() @ y).var(axis=1)
        assert 0.8 < variances.min() < variances.max() < 1.6


@pytest.mark.parametrize("method", FULL_METHODS)
def test_through_norm_one_direction_is_null_and_never_kept(method, backbone, moments):
    options = WhiteningOptions(method=method, through_norm=True, floor=1e-10)
    found = whiten_moments(backbone, moments, options, held_out=moments)
    full = whiten_moments(backbone, moments, replace(options, shrinkage=0.1))  # rank d of tokens
    for whitening in (found, full):
        assert all(one.kept <= one.rank <= DIM - 1 for one in whitening.blocks)
        assert (whitening.eigenvalues[:, -1] == 0).all()
        assert torch.isfinite(whitening.W).all()
    assert all(one.rank == DIM - 1 for one in full.blocks)
    assert all(one.whiteness_error < 1e-3 for one in found.blocks)
    with pytest.raises(BurstError, match=r"singular, of rank 31 of 32; give a floor above 0$"):
        whiten_moments(backbone, moments, replace(options, floor=0.0, shrinkage=0.1))


@pytest.mark.parametrize("shrinkage", ["oas", 0.3])
def test_shrinkage_gives_the_tokens_full_rank(shrinkage, backbone, moments):
    found = whiten_moments(backbone, moments, WhiteningOptions(shrinkage=shrinkage))
    for one in found.blocks:
        assert one.rank == DIM
        assert one.shrinkage == 0.3 if shrinkage == 0.3 else 0 < one.shrinkage < 0.1


def test_the_authors_recipe_is_what_their_code_does(backbone, images, moments):
    found = whiten_moments(backbone, moments, WhiteningOptions(recipe="authors"), held_out=moments)
    for name, value in (("convention", "authors"), ("centred", False), ("floor", 0.0)):
        assert found.record[name] == value
    for block, one in enumerate(found.blocks):
        query, key = weights_of(backbone, block)
        y = query @ key.T @ tokens_of(backbone, images, block).mean(0).T
        expected = np.linalg.eigvalsh(y @ y.T / DIM)[::-1]
        np.testing.assert_allclose(
            found.eigenvalues[block], expected, atol=1e-5 * expected[0], rtol=0
        )
        assert one.kept <= 17
        assert one.whiteness_error > 1


def test_fewer_tokens_than_dimensions_is_warned_about(backbone):
    moments = collect_moments(backbone, images_for(backbone, "sample", num_images=1))
    with pytest.warns(
        RankWarning, match=r"17 tokens in 32 .* blocks\.0 \(and 2 more\) has rank 16"
    ):
        found = whiten_moments(backbone, moments)
    assert all(one.rank == 16 for one in found.blocks)
    assert torch.isfinite(found.W).all()
    cholesky = WhiteningOptions(method="cholesky")
    with pytest.raises(BurstError, match="a method other than cholesky"):
        whiten_moments(backbone, moments, cholesky)
    with pytest.warns(RankWarning):
        whiten_moments(backbone, moments, WhiteningOptions(method="cholesky", shrinkage=0.1))


def test_a_singular_covariance_without_a_floor_is_refused(backbone, moments):
    with pytest.raises(
        BurstError, match=r"blocks\.0: its covariance is singular, of rank 31 of 32"
    ):
        whiten_moments(backbone, moments, WhiteningOptions(floor=0.0))
    found = whiten_moments(backbone, moments, WhiteningOptions(floor=0.0, shrinkage=0.1))
    assert all(one.kept == DIM for one in found.blocks)


def test_constant_tokens_are_refused_and_constant_features_are_not(images):
    model = vit()
    model.blocks[1].norm1.weight.data[:] = 0
    constant = backbone_of(model)
    with pytest.raises(EmptyResult, match=r"blocks\.1: its response does not vary"):
        whiten(constant, images)
    model.blocks[1].norm1.weight.data[5:] = 1
    found = whiten(constant, images, WhiteningOptions(blocks=(1,)))
    assert found.blocks[0].rank == DIM - 5
    assert torch.isfinite(found.W).all()


def test_a_constant_response_has_no_correlation(images):
    model = vit()
    model.blocks[0].attn.qkv.weight.data[:DIM, 3] = 0
    with pytest.raises(BurstError, match=r"blocks\.0: entry 3 of its response"):
        whiten(backbone_of(model), images, WhiteningOptions(method="zca-cor"))


def test_moments_of_something_else_are_refused(backbone, images, moments):
    with pytest.raises(BurstError, match="of query and key weights .*, not"):
        whiten_moments(backbone_of(vit(num_heads=2)), moments)
    with pytest.raises(BurstError, match="of tokens all, not patch"):
        whiten_moments(backbone, moments, WhiteningOptions(tokens="patch"))
    few = collect_moments(backbone, images, blocks=(1,))
    with pytest.raises(BurstError, match=r"lack blocks \[0\]"):
        whiten_moments(backbone, few, WhiteningOptions(blocks=(0, 1)))
    with pytest.raises(BurstError, match=r"lack blocks \[0, 2\]"):
        whiten_moments(backbone, moments, held_out=few)


def test_blocks_of_several_widths_do_not_go_together():
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=16, depths=(1, 1, 1, 1),
                              num_heads=(1, 2, 2, 2), img_size=64, window_size=2,
                              num_classes=0)  # fmt: skip
    swin = backbone_of(model, image_size=(64, 64))
    images = images_for(swin, "sample", num_images=5)
    with pytest.warns(OmittedTermWarning), pytest.raises(ShapeError, match="different widths"):
        whiten(swin, images)
    with pytest.warns(OmittedTermWarning, match="shifted-window mask"):
        found = whiten(swin, images, WhiteningOptions(blocks=(0,)))
    assert found.W.shape == (1, 16, 16)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"method": "zac"}, UnknownName, "did you mean zca"),
        ({"shrinkage": "osa"}, UnknownName, "did you mean oas"),
        ({"shrinkage": 1.5}, BurstError, "shrinkage is 1.5"),
        ({"floor": 1.0}, BurstError, "floor is 1.0"),
        ({"floor": float("nan")}, BurstError, "floor is nan"),
        ({"convention": "papers"}, UnknownName, "did you mean paper"),
        ({"tokens": "patches"}, UnknownName, "did you mean patch"),
        ({"recipe": "author"}, UnknownName, "did you mean authors"),
        ({"held_out": 0.9}, BurstError, "held-out share is 0.9"),
        ({"convention": "authors", "head": 0}, BurstError, "knows no heads"),
        ({"recipe": "authors", "through_norm": True}, BurstError, "no norm"),
        ({"recipe": "authors", "method": "pca"}, BurstError, "its own method"),
        ({"recipe": "authors", "method": "diagonal"}, BurstError, "its own method"),
        ({"method": "diag"}, UnknownName, "did you mean diagonal"),
    ],
)
def test_options_check_themselves(options, error, words):
    with pytest.raises(error, match=words):
        WhiteningOptions(**options)


def test_histograms_are_those_of_the_materialised_response(backbone, images):
    options = WhiteningOptions(blocks=(1,), floor=1e-2)
    found = whiten(backbone, images, options)
    before, after, _ = whitened_histograms(backbone, images, found, options)[1]
    held = split_images(images, options.held_out)[1]
    x = tokens_of(backbone, held, 1).reshape(-1, DIM)
    y = response_matrix(find_blocks(backbone.model)[1]).numpy() @ x.T
    white = found.W[0].double().numpy() @ y
    for hist, values in ((before, y), (after, white)):
        assert hist.count == values.size == 12 * 17 * DIM
        assert hist.moments.std == pytest.approx(values.std(), rel=1e-5)
        assert describe(hist)["max"] == pytest.approx(values.max(), rel=1e-4)
    with pytest.raises(BurstError, match="not all among those whitened"):
        whitened_histograms(backbone, images, found, WhiteningOptions(blocks=(0,)))


def test_a_whitened_response_needs_matrices_that_fit():
    w, a, x = torch.eye(3) * 2, torch.eye(3), torch.ones(5, 3)
    assert whitened_histogram(w, a, x).moments.mean == 2
    with pytest.raises(ShapeError, match="do not multiply"):
        whitened_histogram(torch.eye(4), a, x)


def test_threads_do_not_change_the_result(backbone, moments):
    before = torch.get_num_threads()
    many = whiten_moments(backbone, moments)
    torch.set_num_threads(1)
    try:
        one = whiten_moments(backbone, moments)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one.W, many.W)
