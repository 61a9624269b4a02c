"""Second moments of X -> W that makes the response A X^T white, block by block.

whiten          one pass over images -> Whitening
whiten_moments  the same from moments that were kept: another method costs no second pass
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from math import nan
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor, nn

from burst.adapters import (
    AttentionBlock,
    find_blocks,
    measurable_blocks,
    warn_of_omissions,
)
from burst.backbone import Backbone
from burst.collect import collect_split
from burst.decorrelation import (
    Decorrelation,
    Floats,
    authors_decorrelation,
    covariance_factor,
    decorrelate,
    row_variances,
    shrink,
    shrinkage_share,
)
from burst.errors import BurstError, and_more
from burst.fingerprint import Subject, identity, model_differences, subject_of
from burst.interaction import response_matrices
from burst.progress import Progress
from burst.second_moments import SecondMoments, TokenMoments
from burst.whitening_options import WhiteningOptions

T = TypeVar("T")


class RankWarning(UserWarning):
    """There are fewer tokens than dimensions, so their covariance is not of full rank."""


@dataclass(frozen=True)
class BlockDiagnostics:
    """How the whitening of one block went; the numbers are defined on `Decorrelation`.

    For the method "diagonal" directions are rows of Y and eigenvalues their variances.

    Attributes:
        block: its index.
        tokens: how many tokens were fitted on.
        rank: eigenvalues of Sigma that are not lost in rounding.
        kept: eigenvalues at the floor or above: the directions that W makes white. By the authors'
            recipe, those above float32 rounding.
        kept_variance: their share of the variance.
        condition_number: largest eigenvalue over the least of the `rank`.
        kept_condition_number: largest eigenvalue over the least of the `kept`.
        effective_rank: exp of the spectrum's entropy: of shares of the variance.
        shrinkage: share of mu I in C.
        whiteness_error: on held-out images and the kept directions; NaN where none were held out.
        variance_error: the part of it that is of variances, not of correlations; NaN where it was
            not measured.
    """

    block: int
    tokens: int
    rank: int
    kept: int
    kept_variance: float
    condition_number: float
    kept_condition_number: float
    effective_rank: float
    shrinkage: float
    whiteness_error: float
    variance_error: float


@dataclass(frozen=True, eq=False)
class Whitening:
    """Whitening matrices for the blocks of a model.

    Attributes:
        W: (blocks, d, d) float32: W[i] @ Y is white, Y = A X^T (d, n) being the response of block
            `blocks[i].block`. A prompt P (m, d) is transformed as P @ W[i].T.
        eigenvalues: (blocks, d) float64, falling: of Sigma = cov(Y), of its correlation matrix for
            the -cor methods, or of its diagonal for "diagonal", before the floor. By the authors'
            recipe, of Y Y^T / d, Y being averaged over images.
        mean: (blocks, d) float64, of Y: W[i] @ (Y - mean[i, :, None]) has mean 0.
        blocks: what became of each block.
        record: model, weights, images and options, as plain data.
        variances: (blocks, d) float64, V = diag(Sigma): of each row of Y, in order, before the
            floor. None if read from a file of an earlier version, which did not hold it.
    """

    W: Tensor
    eigenvalues: Tensor
    mean: Tensor
    blocks: tuple[BlockDiagnostics, ...]
    record: dict[str, Any] = field(repr=False)
    variances: Tensor | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex of the tensors, of the options and of the query and key weights.

        Not of what does not decide them: when they were made, by which command, of images where.
        """
        decides = ("qk_sha256", *(one.name for one in fields(WhiteningOptions)))
        about = {name: self.record.get(name) for name in decides}
        digest = hashlib.sha256(json.dumps(about).encode())
        for tensor in (self.W, self.eigenvalues, self.mean, self.variances):
            digest.update(f"\n{None if tensor is None else tuple(tensor.shape)}\n".encode())
            if tensor is not None:
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def whiten(
    model: nn.Module | Backbone,
    batches: Iterable[Any],
    options: WhiteningOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Whitening:
    """Whitening matrices for a model's blocks, from one pass over batches.

    Every k-th image, k = round(1 / held_out), or every k-th batch where the images are not known by
    name, is held out to measure the whiteness on, see `collect_split`. To try several options keep
    the moments: `collect_split` and `whiten_moments` are what this function calls.

    Args:
        model: any with attention that has an adapter, or a backbone from `load_backbone`.
        batches: as for `burst.survey`.
        options: all blocks by ZCA if not given.
        progress: called as progress(batches done, batches in all, or 0 if that is not known).

    Raises:
        UnsupportedModel: see `survey`; or a block without the norm that `through_norm` needs.
        BurstError, EmptyResult, ImageError, ShapeError: see `collect_moments` and
            `whiten_moments`.

    Warns:
        RankWarning: there are fewer tokens than dimensions; not for "diagonal".
        OmittedTermWarning: once, if the scores have terms that W_q W_k^T leaves out.
    """
    options = options or WhiteningOptions()
    subject = subject_of(model)
    blocks, _, omitted = measurable_blocks(subject.model, options.blocks)
    warn_of_omissions(subject.name, omitted)
    response_matrices(blocks, **options.response)  # what cannot be whitened shows before the pass
    moments, held_out = collect_split(
        model,
        batches,
        options.held_out,
        blocks=[block.index for block in blocks],
        tokens=options.tokens,
        progress=progress,
    )
    return whiten_moments(model, moments, options, held_out=held_out)


def whiten_moments(
    model: nn.Module | Backbone,
    moments: TokenMoments,
    options: WhiteningOptions | None = None,
    *,
    held_out: TokenMoments | None = None,
) -> Whitening:
    """Whitening matrices from second moments, without images.

    Sigma = A C A^T is decomposed through its factor A C^(1/2), in float64; blocks at the same time,
    one on each of torch's threads.

    Args:
        model: the one that the moments are of.
        moments: from `collect_moments`.
        options: `held_out` in it is not used.
        held_out: moments of other images, to measure the whiteness on.

    Raises:
        BurstError: moments of another model or of other tokens; a block that they lack; a singular
            Sigma and no floor; constant entries of Y for a -cor method; `cholesky` without
            shrinkage from fewer tokens than dimensions; the authors' recipe and images with
            different numbers of tokens, or a W that is not finite.
        EmptyResult: the response of a block does not vary.
        ShapeError: blocks of several widths; or see `response_matrix`.
        UnsupportedModel: a block that cannot be whitened.

    Warns:
        RankWarning: there are fewer tokens than dimensions; not for "diagonal".
    """
    options = options or WhiteningOptions()
    subject = subject_of(model)
    measurable, _, _ = measurable_blocks(subject.model, options.blocks)
    asked = [one for one in measurable if options.blocks is not None or one.index in moments.blocks]
    chosen = [block.index for block in asked]
    for one in (moments, held_out) if held_out else (moments,):
        _check_moments(one, subject, chosen, options)
    tasks = [
        _Task(
            block,
            response.numpy(),
            moments.blocks[block.index],
            held_out.blocks[block.index] if held_out else None,
        )
        for block, response in response_matrices(asked, **options.response)
    ]
    _check_rank(tasks, options)
    found, variances, diagnostics = zip(
        *_in_parallel(lambda task: _whiten_block(task, options), tasks), strict=True
    )
    means = [task.response @ task.moments.mean.numpy() for task in tasks]
    return Whitening(
        torch.from_numpy(np.stack([one.matrix for one in found])),
        torch.from_numpy(np.stack([one.eigenvalues for one in found])),
        torch.from_numpy(np.stack(means)),
        diagnostics,
        _record(subject, moments, held_out, options, tasks),
        torch.from_numpy(np.stack(variances)),
    )


class _Task(NamedTuple):
    """What one block's whitening is made from."""

    block: AttentionBlock
    response: Floats  # (d, d), Y = response @ X^T
    moments: SecondMoments
    held_out: SecondMoments | None


def _whiten_block(
    task: _Task, options: WhiteningOptions
) -> tuple[Decorrelation, Floats, BlockDiagnostics]:
    try:
        factor, share = _factor(task, options)
        if options.recipe == "authors":
            found = authors_decorrelation(_mean_response(task))
        else:
            found = decorrelate(factor, method=options.method, floor=options.floor)
    except BurstError as mistake:
        raise type(mistake)(f"{task.block.name}: {mistake}") from None
    held_out = None
    if task.held_out:
        covariance = task.held_out.covariance(centred=options.centred).numpy()
        held_out = task.response @ covariance_factor(covariance)
    return found, row_variances(factor), _diagnose(task, found, share, held_out)


def _factor(task: _Task, options: WhiteningOptions) -> tuple[Floats, float]:
    """F with F F^T = Sigma, and how much C was shrunk."""
    covariance = task.moments.covariance(centred=options.centred).numpy()
    share = shrinkage_share(covariance, task.moments.count, options.shrinkage)
    return task.response @ covariance_factor(shrink(covariance, share)), share


def _mean_response(task: _Task) -> Floats:
    """Y (d, N) averaged over images."""
    positions = task.moments.positions
    if positions is None:
        raise BurstError("its images have different numbers of tokens, so they have no mean image")
    return np.asarray(task.response @ positions.numpy().T)


def _diagnose(
    task: _Task, found: Decorrelation, share: float, held_out: Floats | None
) -> BlockDiagnostics:
    return BlockDiagnostics(
        block=task.block.index,
        tokens=task.moments.count,
        rank=found.rank,
        kept=found.kept,
        kept_variance=found.kept_variance,
        condition_number=found.condition_number,
        kept_condition_number=found.kept_condition_number,
        effective_rank=found.effective_rank,
        shrinkage=share,
        whiteness_error=nan if held_out is None else found.whiteness_error(held_out),
        variance_error=nan if held_out is None else found.variance_error(held_out),
    )


def _in_parallel(work: Callable[[_Task], T], tasks: Sequence[_Task]) -> list[T]:
    """One task a thread, and each thread's BLAS alone: decompositions gain little from more."""
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(min(len(tasks), torch.get_num_threads())) as pool,
    ):
        return list(pool.map(work, tasks))


def _check_moments(
    moments: TokenMoments, subject: Subject, chosen: Sequence[int], options: WhiteningOptions
) -> None:
    differing = model_differences(vars(moments), identity(subject))
    if moments.tokens != options.tokens:
        differing.append(f"tokens {moments.tokens}, not {options.tokens}")
    if differing:
        raise BurstError(f"the moments are of {'; '.join(differing)}")
    missing = [block for block in chosen if block not in moments.blocks]
    if missing:
        raise BurstError(f"the moments lack blocks {missing}; they have {[*moments.blocks]}")


def _check_rank(tasks: Sequence[_Task], options: WhiteningOptions) -> None:
    few = [one for one in tasks if one.moments.count - options.centred < one.moments.dim]
    if not few or options.method == "diagonal":  # variances of rows need no full rank
        return
    moments = few[0].moments
    what = (
        f"{moments.count} tokens in {moments.dim} dimensions: the covariance of "
        f"{few[0].block.name}{and_more(len(few))} has rank "
        f"{moments.count - options.centred} at most; give more images"
    )
    if options.method == "cholesky" and options.shrinkage in ("none", 0):
        raise BurstError(f"{what}, shrinkage or a method other than cholesky")
    warnings.warn(what, RankWarning, stacklevel=3)


def _record(
    subject: Subject,
    moments: TokenMoments,
    held_out: TokenMoments | None,
    options: WhiteningOptions,
    tasks: Sequence[_Task],
) -> dict[str, Any]:
    return {
        **identity(subject),
        "model_blocks": len(find_blocks(subject.model)),
        "dim": tasks[0].moments.dim,
        "images": {
            "count": moments.images,
            "held_out": held_out.images if held_out else 0,
            "sources": [dict(source) for source in moments.sources],
            "bad": [list(bad) for one in (moments, held_out) if one for bad in one.bad_images],
        },
        "token_count": tasks[0].moments.count,
        **asdict(options),
        "blocks": [task.block.index for task in tasks],
    }
