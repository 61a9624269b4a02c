"""A whitening of `burst` -> the matrices that prompts are multiplied by: their scale, their floor.

W amplifies most where the response varies least, so its scale is that of the directions that were
hardly measured. Inside attention a LayerNorm takes a prompt's scale away; the residual stream, and
a head that reads the mean of prompts and patches, have all of it. So W is used at unit RMS gain,

    ||W||_F / sqrt(d) = 1, which multiplies a random direction by 1 in the mean square,

and directions below the floor, whose variance is not known, have a gain of their own.
"""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpt.prompt import PromptOptions
from burst.decorrelation import diagonal_gains
from burst.errors import CheckpointError
from burst.whitening import Whitening

Floats = NDArray[np.float64]
USED = "used_by_prompts"  # key of a record: W is no longer what `burst whiten` made


def prompt_whitening(whitening: Whitening, options: PromptOptions) -> Whitening:
    """The whitening with the matrices that prompts are multiplied by as its W.

    With `prompt_scale` "paper" they are W as it is, of V^(-1/2) the diagonal matrix. Else:

        bpt-fwhiten, bpt-twhiten   (c W')^T, so that P (c W')^(T T) = c P W' is what the prompt is
        bpt-dwhiten                c V'^(-1/2), as a diagonal matrix
        bpt-bilinear               columns u_i g_i, falling with the variance of the response

    W' is W with the gain of each direction below the floor set to `null_gain` times the RMS gain of
    the kept ones, then c brings the whole to unit RMS gain: so tokens start at the deviation of P
    whatever floor and null gain are. The u_i are orthonormal directions of a prompt (for the -cor
    methods, of a prompt with every entry divided by its deviation), and g_i their gains in W'.

    What stands in the attention's logits is P W' A X^T = P (W' Y), which is white for every method.
    The paper's P W^T is the same for its symmetric W (zca), and is not white for the others.

    Args:
        whitening: from `burst.whiten` or `load_whitening`; W (blocks, d, d).
        options: method, `prompt_scale` and `null_gain`.

    Returns:
        The same blocks; W (blocks, d, d) on the CPU.

    Raises:
        CheckpointError: what the method needs is not in a file of an earlier version; or W is
            already what prompts are multiplied by, and is to be scaled again.

    Source: arXiv 2506.22908 (P W^T); for P W' see the algebra above.
    """
    paper = options.prompt_scale == "paper"
    if USED in whitening.record and not paper:
        raise CheckpointError(
            "this whitening was taken from a run, and is scaled already; give what `burst whiten` "
            "wrote, or prompt_scale paper to use it as it is"
        )
    matrices = [
        _diagonal(whitening, place, options)
        if options.method == "bpt-dwhiten"
        else whitening.W[place].cpu()
        if paper
        else _full(whitening, place, options)
        for place in range(len(whitening.blocks))
    ]
    used = {name: getattr(options, name) for name in ("method", "prompt_scale", "null_gain")}
    return dataclasses.replace(
        whitening, W=torch.stack(matrices), record=whitening.record | {USED: used}
    )


def prompt_matrices(used: Whitening, method: str) -> dict[int, Tensor]:
    """Block -> what `build_prompt` takes as `whitening`: (d, d), or (d,) gains for bpt-dwhiten.

    Of the dtype of W, float32 from `prompt_whitening`.

    Args:
        used: what `prompt_whitening` made.
        method: of the prompts.
    """
    diagonal = method == "bpt-dwhiten"
    return {
        one.block: w.diagonal().clone() if diagonal else w
        for one, w in zip(used.blocks, used.W, strict=True)
    }


def unit_scale(gains: Floats) -> float:
    """1 / RMS of the gains: what brings a matrix of these singular values to unit RMS gain."""
    return 1.0 / float(np.sqrt(np.mean(np.square(gains))))


def with_null_gain(gains: Floats, kept: NDArray[np.bool_], null_gain: float) -> Floats:
    """Gains with those that are not kept set to `null_gain` times the RMS of the kept ones."""
    return np.where(kept, gains, null_gain * np.sqrt(np.mean(np.square(gains[kept]))))


def _full(whitening: Whitening, place: int, options: PromptOptions) -> Tensor:
    """(d, d), see `prompt_whitening`.

    W = L S R^T / deviation, with L and R orthogonal. W^T W, without the deviations, has R and S^2:
    what lies below the floor are the d - kept largest of S.
    """
    deviation = _deviations(whitening, place)
    w = whitening.W[place].cpu().double().numpy() * deviation
    squares, right = np.linalg.eigh(w.T @ w)  # ascending gains: falling variances of the response
    gains = np.sqrt(squares.clip(min=0))
    kept = np.arange(len(gains)) < whitening.blocks[place].kept
    wanted = with_null_gain(gains, kept, options.null_gain)
    if options.method == "bpt-bilinear":
        made = right * wanted / deviation[:, None]
    else:
        ratio = np.divide(wanted, gains, out=np.zeros_like(gains), where=gains > 0)
        made = ((w @ right * ratio) @ right.T / deviation).T
        made *= np.sqrt(len(made)) / np.linalg.norm(made)
    return torch.from_numpy(made.astype(np.float32))


def _deviations(whitening: Whitening, place: int) -> Floats:
    """What Y is divided by before it is decorrelated: (d,), ones but for the -cor methods."""
    method = str(whitening.record.get("method", "zca"))
    if not method.endswith("-cor"):
        return np.ones(whitening.W.shape[-1])
    return np.sqrt(_variances(whitening, place))


def _diagonal(whitening: Whitening, place: int, options: PromptOptions) -> Tensor:
    """V^(-1/2) of a block, (d, d)."""
    record = whitening.record
    if options.prompt_scale == "paper" and record.get(USED, {}).get("method") == "bpt-dwhiten":
        return whitening.W[place].cpu()
    variances, floor = _variances(whitening, place), float(record.get("floor", 0.0))
    gains = diagonal_gains(variances, floor)
    if options.prompt_scale == "unit":
        kept = variances >= floor * variances.max()
        gains = with_null_gain(gains, kept & (variances > 0), options.null_gain)
        gains = gains * unit_scale(gains)
    return torch.from_numpy(np.diag(gains).astype(np.float32))


def _variances(whitening: Whitening, place: int) -> Floats:
    """V = diag(Sigma), (d,).

    Raises:
        CheckpointError: it is of a version that did not keep them.
    """
    if whitening.variances is None:
        raise CheckpointError(
            "this whitening file is of an earlier version, and lacks the variances of the "
            "response's rows; make it again with `burst whiten`"
        )
    return np.asarray(whitening.variances[place].cpu().double().numpy())
