"""W_q and W_k -> the spectrum of A = W_q W_k^T, whole and head by head.

singular_values    from the factors, without the d x d product where they are narrower than that
symmetric_share    how much of A is symmetric, from the factors likewise
describe_spectrum  ranks, norms and tail of given singular values
spectrum           all blocks of a model -> one tidy table
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import nan
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from burst.adapters import SkippedBlock, measurable_blocks, warn_of_omissions
from burst.backbone import Backbone
from burst.errors import BurstError, ShapeError
from burst.fingerprint import identity, subject_of
from burst.float64 import to_float64
from burst.gauge import WHOLE
from burst.power_law import fit_power_law
from burst.progress import Progress
from burst.projection import Projection, projection

Floats = NDArray[np.float64]
Key = tuple[int, str]  # block, head

SPECTRAL_STATISTICS = (
    "rank",
    "spectral_norm",
    "frobenius_norm",
    "stable_rank",
    "effective_rank",
    "tail_exponent",
    "tail_count",
    "tail_ks",
    "symmetric_share",
)
"""The numbers of `describe_spectrum`, in its order, and behind them `symmetric_share`."""
NULLS = ("stable_rank", "effective_rank", "tail_exponent", "tail_ks", "symmetric_share")
COLUMNS = (
    *("model", "pretraining", "block", "head"),
    *SPECTRAL_STATISTICS,
    *(f"{name}_null" for name in NULLS),
)
NULL_SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of W_q W_k^T, block by block.

    Attributes:
        table: one row a block and head: model, pretraining, block, head ("all", or a number as
            text), the `SPECTRAL_STATISTICS`, and those of random factors as `stable_rank_null`,
            `effective_rank_null`, `tail_exponent_null`, `tail_ks_null` and `symmetric_share_null`.
            NaN where a statistic is not defined.
        values: under (block, head), the singular values, float64, falling; min(d, m) of them, m
            being the width of the factors. Those of A beyond that are 0.
        nulls: the same of one draw of random factors, scaled to the Frobenius norm.
        skipped: blocks that could not be measured.
        omitted: terms of the attention scores that W_q W_k^T leaves out.
        record: model, weights and what was asked for, as plain data.
    """

    table: pd.DataFrame
    values: dict[Key, Floats]
    nulls: dict[Key, Floats]
    skipped: tuple[SkippedBlock, ...]
    omitted: tuple[str, ...]
    record: dict[str, Any] = field(repr=False)


def singular_values(w_q: Tensor, w_k: Tensor) -> Floats:
    """Singular values of W_q W_k^T in float64, falling: min(d, m) of them, the others are 0.

    Where m < d they are those of R_q R_k^T (m, m), with W_q = Q_q R_q and W_k = Q_k R_k, and the
    d x d product is never made. Values below max(d, m) eps of the largest, which are rounding, are
    0 too.

    Args:
        w_q: (d, m) query weights of any floating dtype: d_h wide for a head, h * d_h for all heads
            together.
        w_k: (d, m) key weights.

    Raises:
        ShapeError: they are not matrices of one shape, or are empty.
        BurstError: a weight is not finite.

    >>> singular_values(torch.eye(3)[:, :2], 2 * torch.eye(3)[:, :2])
    array([2., 2.])
    """
    return _values(_core(*_checked(w_q, w_k)), max(w_q.shape))


def symmetric_share(w_q: Tensor, w_k: Tensor) -> float:
    """||(A + A^T) / 2||_F^2 / ||A||_F^2 for A = W_q W_k^T: 1 if symmetric, 0 if antisymmetric.

    It is (1 + tr(A A) / ||A||_F^2) / 2, and tr(A A) = tr(M M) with M = W_k^T W_q (m, m) where that
    is the smaller one. What is symmetric scores x against y as y against x. Random factors have
    (1 + 1/d) / 2 of it. NaN if A is 0.

    Args:
        w_q: (d, m) query weights.
        w_k: (d, m) key weights.

    Raises:
        ShapeError, BurstError: see `singular_values`.
    """
    w_q, w_k = _checked(w_q, w_k)
    return _share(w_q, w_k, _core(w_q, w_k))


def describe_spectrum(values: Floats) -> dict[str, float]:
    """Ranks, norms and tail of a matrix from its singular values.

    Args:
        values: float64, not negative, of any shape and in any order.

    Returns:
        rank: how many are not 0.
        spectral_norm, frobenius_norm: the largest, and the root of their sum of squares.
        stable_rank: ||A||_F^2 / ||A||_2^2, from 1 to rank (Rudelson and Vershynin 2007,
            doi 10.1145/1255443.1255449).
        effective_rank: exp of the entropy of values / sum(values), from 1 to rank (Roy and
            Vetterli 2007, "The effective rank: a measure of effective dimensionality", EUSIPCO,
            definition 1).
        tail_exponent, tail_count, tail_ks: of the power law of the largest eigenvalues of A^T A
            (squared singular values), how many they are, and how far from it, by `fit_power_law`:
            the estimate of Martin, Peng and Mahoney 2021 (doi 10.1038/s41467-021-24025-8), so that
            exponents can be compared with theirs. That of the singular values is 2 alpha - 1.
        Where all values are 0, rank, norms and tail_count are 0 and the others NaN; where there are
        too few for a tail, tail_count is 0 and tail_exponent and tail_ks are NaN.
    """
    found = values[values > 0]
    if not found.size:
        empty = dict.fromkeys(SPECTRAL_STATISTICS[3:-1], nan)
        return {"rank": 0, "spectral_norm": 0.0, "frobenius_norm": 0.0, **empty, "tail_count": 0}
    largest = float(found.max())
    relative = found / largest
    share = relative / relative.sum()
    energy = float(np.square(relative).sum())
    tail = fit_power_law(np.square(relative))
    return {
        "rank": len(found),
        "spectral_norm": largest,
        "frobenius_norm": largest * energy**0.5,
        "stable_rank": energy,
        "effective_rank": float(np.exp(-(share * np.log(share)).sum())),
        "tail_exponent": tail.exponent,
        "tail_count": tail.count,
        "tail_ks": tail.ks,
    }


def spectrum(
    model: nn.Module | Backbone,
    blocks: Iterable[int] | None = None,
    per_head: bool = True,
    *,
    progress: Progress | None = None,
) -> Spectrum:
    """The spectrum of W_q W_k^T in every block of a model: from weights alone, no images are read.

    Query and key biases stay out, as in arXiv 2506.22908. The null are Gaussian factors of the same
    shape, independent and of equal variance: how A would look had training left no trace. Its
    statistics are medians over 5 draws with fixed seeds, but for the symmetric share, which is the
    expected one. Its tail exponent varies from draw to draw by a factor of 2 and more, for it is
    no power law (`tail_ks_null`); ranks hardly vary.

    Args:
        model: any with attention that has an adapter, or a backbone from `load_backbone`.
        blocks: block indices; None for all.
        per_head: each head's W_q W_k^T too.
        progress: called as progress(blocks done, blocks in all).

    Raises:
        UnsupportedModel: the model has no attention, or none that can be measured, or a block
            asked for by index cannot be.
        BurstError: block index out of range; weights that are not finite.

    Warns:
        OmittedTermWarning: once, if the scores have terms that W_q W_k^T leaves out.
    """
    subject = subject_of(model)
    chosen, skipped, omitted = measurable_blocks(subject.model, blocks)
    warn_of_omissions(subject.name, omitted)
    values: dict[Key, Floats] = {}
    nulls: dict[Key, Floats] = {}
    rows = []
    for done, block in enumerate(chosen, start=1):
        weights = projection(block.attention, name=block.attention_name)
        for head, (w_q, w_k) in _parts(weights, per_head=per_head):
            key = block.index, head
            core = _core(w_q, w_k)
            values[key] = _values(core, max(w_q.shape))
            nulls[key] = _null(*w_q.shape, NULL_SEEDS[0]) * np.linalg.norm(values[key])
            share = _share(w_q, w_k, core)
            found = {**describe_spectrum(values[key]), "symmetric_share": share}
            null = _null_statistics(*w_q.shape)
            rows.append((subject.name, subject.pretraining, *key, *found.values(), *null))
        if progress:
            progress(done, len(chosen))
    record = {
        **identity(subject),
        "blocks": [block.index for block in chosen],
        "per_head": per_head,
        "null_seeds": list(NULL_SEEDS),
    }
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Spectrum(table, values, nulls, skipped, omitted, record)


def _parts(weights: Projection, *, per_head: bool) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """The factors of the whole, and of each head, in float64 on the CPU."""
    w_q, w_k = to_float64(weights.w_q).cpu(), to_float64(weights.w_k).cpu()
    yield WHOLE, _together(w_q, w_k)
    if per_head:
        yield from ((str(i), (w_q[i], w_k[i])) for i in range(weights.num_heads))


def _together(w_q: Tensor, w_k: Tensor) -> tuple[Tensor, Tensor]:
    """All heads' factors side by side, those of grouped queries, which share keys, as one.

    sum_i W_q,i W_k^T = (sum_i W_q,i) W_k^T over the heads i of a group: A has no larger rank.
    """
    first = [i for i in range(len(w_k)) if i == 0 or not torch.equal(w_k[i], w_k[i - 1])]
    ends = [*first[1:], len(w_k)]
    summed = [w_q[i:end].sum(dim=0) for i, end in zip(first, ends, strict=True)]
    return torch.cat(summed, dim=1), torch.cat([w_k[i] for i in first], dim=1)


def _checked(w_q: Tensor, w_k: Tensor) -> tuple[Tensor, Tensor]:
    if w_q.ndim != 2 or w_q.shape != w_k.shape or not w_q.numel():
        raise ShapeError(
            f"w_q {tuple(w_q.shape)} and w_k {tuple(w_k.shape)} must be matrices of one shape"
        )
    if not (w_q.isfinite().all() and w_k.isfinite().all()):
        raise BurstError("query or key weights are not finite; load an undamaged checkpoint")
    return to_float64(w_q.detach()).cpu(), to_float64(w_k.detach()).cpu()


def _core(w_q: Tensor, w_k: Tensor) -> Tensor:
    """A itself, or, if smaller, R_q R_k^T: the same singular values."""
    if w_q.shape[1] >= w_q.shape[0]:
        return w_q @ w_k.mT
    r_q: Tensor
    r_k: Tensor
    r_q, r_k = (torch.linalg.qr(w, mode="r").R for w in (w_q, w_k))
    return r_q @ r_k.mT


def _values(core: Tensor, size: int) -> Floats:
    values: Floats = torch.linalg.svdvals(core).numpy()
    values[values <= size * np.finfo(np.float64).eps * values[0]] = 0.0
    return values


def _share(w_q: Tensor, w_k: Tensor, core: Tensor) -> float:
    scale = core.abs().max()
    if not scale > 0:
        return nan
    product = core if w_q.shape[1] >= w_q.shape[0] else w_k.mT @ w_q
    trace = ((product / scale) * (product / scale).mT).sum()
    share = (1 + trace / torch.square(core / scale).sum()) / 2
    return float(share.clamp(0, 1))


@lru_cache(maxsize=16 * len(NULL_SEEDS))
def _null(dim: int, width: int, seed: int) -> Floats:
    """Singular values of the product of random factors (dim, width), of Frobenius norm 1."""
    generator = torch.Generator().manual_seed(seed)
    shape = 2, dim, width
    w_q, w_k = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    values = singular_values(w_q, w_k)
    return values / np.linalg.norm(values)


@lru_cache(maxsize=16)
def _null_statistics(dim: int, width: int) -> tuple[float, ...]:
    draws = [describe_spectrum(_null(dim, width, seed)) for seed in NULL_SEEDS]
    drawn = (float(np.median([one[name] for one in draws])) for name in NULLS[:-1])
    return *drawn, (1 + 1 / dim) / 2
