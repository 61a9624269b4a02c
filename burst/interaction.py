"""W_q and W_k -> A = W_q W_k^T; A and X -> the histogram of the response A X^T, streamed.

interaction              A in float32, from a pair of weights
response_histogram       of A X^T, which is never stored
head_response_histogram  the same for one head, through its keys
response_matrix          a block -> the float64 matrix that takes its tokens to the response
"""

from collections.abc import Iterable

from torch import Tensor

from burst.adapters import AttentionBlock
from burst.adapters.norms import first_norm
from burst.axis import Axis, FloatAxis
from burst.errors import ShapeError, UnknownName
from burst.histogram import Histogram
from burst.kernels import matmul_histogram
from burst.precision import plain_float32
from burst.projection import projection

CONVENTIONS = ("paper", "authors")
_DEFAULT_AXIS = FloatAxis()


def interaction(w_q: Tensor, w_k: Tensor, *, convention: str = "paper") -> Tensor:
    """W_q W_k^T: the bilinear form through which two tokens meet in attention.

    Args:
        w_q: (d, m) query weights, so that q = x @ w_q; timm stores the transpose.
            m is d_h for one head; m = h * d_h gives the sum over h heads.
        w_k: (d, m) key weights, same orientation.
        convention: "paper" is W_q W_k^T, (d, d). "authors" is what the paper's released code
            computes from torch's (out, in) weights, W_q^T W_k, (m, m): it mixes the heads'
            output channels, is not the form that scores tokens, and is here to match their figure.

    Returns:
        (d, d), or (m, m), float32; unit: logits before 1/sqrt(d_h). Biases are left out.

    Raises:
        ShapeError: w_q and w_k are not matrices of one shape.
        UnknownName: the convention is neither of the two.

    Source: arXiv 2506.22908, section 3.

    >>> import torch
    >>> interaction(torch.eye(3), 2 * torch.eye(3)).diagonal()
    tensor([2., 2., 2.])
    """
    _check_pair(w_q, w_k)
    if convention not in CONVENTIONS:
        raise UnknownName("convention", convention, CONVENTIONS)
    with plain_float32(w_q.device):
        if convention == "authors":
            return w_q.float().mT @ w_k.float()
        return w_q.float() @ w_k.float().mT


def response_histogram(
    a: Tensor,
    x: Tensor,
    axis: Axis = _DEFAULT_AXIS,
    *,
    backend: str = "auto",
    precision: str = "tf32x3",
) -> Histogram:
    """Histogram of the response Y = A X^T, (d, n), whose entry (i, j) scores e_i against token j.

    Args:
        a: (d, d) interaction.
        x: (..., d) tokens in rows; leading dimensions are flattened to n.
        axis: where the bins lie.
        backend, precision: see `burst.kernels.matmul_histogram`; Y is never stored.

    Returns:
        Of d n entries; unit: logits before 1/sqrt(d_h), as of `interaction`.

    Raises:
        ShapeError: a and x do not share d, or see `burst.kernels.matmul_histogram`.
        UnknownName, BackendError: see `burst.kernels.matmul_histogram`.

    Warns:
        BackendWarning: as `burst.kernels.matmul_histogram`.
    """
    tokens = _rows(x, a.shape[-1]).mT
    return matmul_histogram(a, tokens, axis, backend=backend, precision=precision)


def head_response_histogram(
    w_q: Tensor,
    w_k: Tensor,
    x: Tensor,
    axis: Axis = _DEFAULT_AXIS,
    *,
    backend: str = "auto",
    precision: str = "tf32x3",
) -> Histogram:
    """Histogram of one head's response W_q (X W_k)^T, through the head's keys.

    The same entries as `response_histogram(interaction(w_q, w_k), x)` up to float32 rounding,
    at d_h / d of its cost: all h heads together cost about two whole products.

    Args:
        w_q: (d, d_h) query weights of the head.
        w_k: (d, d_h) key weights of the head.
        x: (..., d) tokens in rows.
        axis: where the bins lie.
        backend, precision: see `burst.kernels.matmul_histogram`; of the product with W_q. The
            keys X W_k are float32 always.

    Raises:
        ShapeError: the weights differ in shape, or x has another d.
        UnknownName, BackendError: see `burst.kernels.matmul_histogram`.

    Warns:
        BackendWarning: as `burst.kernels.matmul_histogram`.
    """
    _check_pair(w_q, w_k)
    keys = head_keys(w_k, x)
    return matmul_histogram(w_q, keys.mT, axis, backend=backend, precision=precision)


def head_keys(w_k: Tensor, x: Tensor) -> Tensor:
    """X W_k, (n, d_h) float32: a head's keys, biases left out, of tokens x (..., d) in rows.

    Raises:
        ShapeError: x has another d.
    """
    with plain_float32(x.device):
        return _rows(x, w_k.shape[0]).float() @ w_k.float()


def response_matrix(
    block: AttentionBlock,
    *,
    convention: str = "paper",
    head: int | None = None,
    through_norm: bool = False,
) -> Tensor:
    """A in float64: Y = A X^T is what a block's tokens answer to each unit prompt.

    In the model a prompt p goes through the block's first norm as the tokens do, and meets them as
    (p H / s) diag(g): a LayerNorm centres it (H = I - 1 1^T / d), divides it by its deviation s and
    multiplies it by the gain g. With `through_norm` the response is that of M = H diag(g) A, or of
    diag(g) A behind a norm that does not centre. s, which scales all that a prompt meets alike, and
    the norm's bias, which is the same for all prompts, stay out. The columns of H sum to zero, so
    a centred response does not vary in the direction (1, ..., 1): a constant prompt meets nothing.

    `interaction` rounds A to float32, which is 1e-7 of its largest singular value and so drowns the
    smallest ones; here the product of the float32 weights is exact to 1e-16.

    Args:
        block: from `find_blocks`.
        convention: as in `interaction`.
        head: A_h of this head alone; the A_h add up to A.
        through_norm: M in place of A.

    Returns:
        (d, d) float64 on the CPU.

    Raises:
        UnsupportedModel: see `projection`; or, with `through_norm`, the block has no norm before
            its attention of which it is known what it does.
        ShapeError: no such head; or the authors' product does not have the tokens' width.
    """
    weights = projection(block.attention, name=block.attention_name)
    pair = weights.whole() if head is None else weights.head(head)
    w_q, w_k = (w.detach().cpu().double() for w in pair)
    a = w_q.mT @ w_k if convention == "authors" else w_q @ w_k.mT
    if len(a) != weights.dim:
        raise ShapeError(
            f"{block.attention_name}: the authors' product is {tuple(a.shape)} and tokens have "
            f"{weights.dim} dimensions; use the paper's convention"
        )
    if not through_norm:
        return a
    norm = first_norm(block, weights.dim)
    scaled = norm.gain[:, None] * a
    return scaled - scaled.mean(dim=0) if norm.centres else scaled


def response_matrices(
    blocks: Iterable[AttentionBlock],
    *,
    convention: str = "paper",
    head: int | None = None,
    through_norm: bool = False,
) -> list[tuple[AttentionBlock, Tensor]]:
    """Each block with its `response_matrix`; all of one width, as they go into one whitening.

    Raises:
        ShapeError: blocks of different widths.
        UnsupportedModel, ShapeError: see `response_matrix`.
    """
    found = [
        (
            block,
            response_matrix(block, convention=convention, head=head, through_norm=through_norm),
        )
        for block in blocks
    ]
    widths = {block.index: len(matrix) for block, matrix in found}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{block}: {width}" for block, width in widths.items())
        raise ShapeError(f"blocks of different widths ({listed}) do not go into one whitening")
    return found


def _check_pair(w_q: Tensor, w_k: Tensor) -> None:
    if w_q.ndim != 2 or w_q.shape != w_k.shape:
        raise ShapeError(
            f"w_q {tuple(w_q.shape)} and w_k {tuple(w_k.shape)} must be matrices of one shape"
        )


def _rows(x: Tensor, dim: int) -> Tensor:
    if x.ndim < 2 or x.shape[-1] != dim:
        raise ShapeError(f"tokens {tuple(x.shape)} must be (..., {dim}) to meet the interaction")
    return x.reshape(-1, dim)
