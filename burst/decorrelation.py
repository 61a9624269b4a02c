"""A covariance in factored form, F F^T -> the matrix that whitens it. NumPy, float64.

The covariance of a response spans 14 orders of magnitude, its factor F half as many. So F is what
is decomposed, and F F^T never is as a whole.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack

from burst.errors import BurstError, EmptyResult, ShapeError, UnknownName, and_more

Floats: TypeAlias = NDArray[np.float64]
FULL_METHODS = ("zca", "pca", "cholesky", "zca-cor", "pca-cor")
METHODS = (*FULL_METHODS, "diagonal")
SHRINKAGES = ("none", "oas")
EPSILON = float(np.finfo(np.float64).eps)
TOKEN_EPSILON = float(np.finfo(np.float32).eps)
SPLIT = 1e-7
DOES_NOT_VARY = "its response does not vary, so there is nothing to whiten"


@dataclass(frozen=True, eq=False)
class Decorrelation:
    """A whitening matrix and the spectrum that it was made from.

    Attributes:
        matrix: (d, d) float32, W; W Y is white if cov(Y) = F F^T, or, for `diagonal`, of unit
            variance in every row.
        eigenvalues: (d,) float64, falling, before the floor: of F F^T; of the correlation matrix
            for `zca-cor` and `pca-cor`; of V, the variances of the rows, for `diagonal`. 0 where
            they are lost in rounding.
        basis: (d, d) float64, orthonormal columns in the space of W Y, in the order of the
            eigenvalues. W F F^T W^T is the identity on the first `kept`, and smaller on the others.
            For `diagonal` they are unit vectors, and only its diagonal is that of the identity.
        kept: how many eigenvalues lie at the floor or above; by the authors' recipe, above float32
            rounding.
    """

    matrix: NDArray[np.float32]
    eigenvalues: Floats
    basis: Floats
    kept: int

    @property
    def rank(self) -> int:
        """How many eigenvalues are not lost in rounding."""
        return int(np.count_nonzero(self.eigenvalues))

    @property
    def kept_variance(self) -> float:
        """Share of the variance, 0..1, in the kept directions."""
        return float(self.eigenvalues[: self.kept].sum() / self.eigenvalues.sum())

    @property
    def condition_number(self) -> float:
        """Largest eigenvalue over the least one that is not 0."""
        return float(self.eigenvalues[0] / self.eigenvalues[self.rank - 1])

    @property
    def kept_condition_number(self) -> float:
        """Largest eigenvalue over the least one kept: at most 1 / floor."""
        return float(self.eigenvalues[0] / self.eigenvalues[self.kept - 1])

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the eigenvalues' shares of the variance: 1 to d.

        Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality",
        EUSIPCO, definition 1.
        """
        share = self.eigenvalues[: self.rank] / self.eigenvalues.sum()
        return float(np.exp(-(share * np.log(share)).sum()))

    def whiteness_error(self, factor: Floats) -> float:
        """How far from white W Y is on the kept directions, where cov(Y) = factor factor^T.

        ||U^T W cov(Y) W^T U - I||_F / sqrt(k), U being the k kept columns of `basis`: 0 if white,
        1 if W Y vanishes. Even the right W gives sqrt((k + 1) / n) on n independent Gaussians.
        `diagonal` does not decorrelate: its error is mostly that of the correlations which remain.

        Raises:
            ShapeError: the factor has another number of rows.
        """
        white = self._kept_rows(factor)
        return float(np.linalg.norm(white @ white.T - np.eye(self.kept)) / self.kept**0.5)

    def variance_error(self, factor: Floats) -> float:
        """The part of `whiteness_error` that is of variances: its square has this one's in it.

        sqrt(mean over the kept directions of (their variance in W Y - 1)^2). What the square lacks
        is of correlations: the sum of the squared off-diagonal entries, divided by k. For
        `diagonal` the directions are rows, and this is what it promises of them.

        Raises:
            ShapeError: the factor has another number of rows.
        """
        white = self._kept_rows(factor)
        return float(np.sqrt(np.mean((np.square(white).sum(axis=1) - 1) ** 2)))

    def _kept_rows(self, factor: Floats) -> Floats:
        """U^T W factor: W Y in the kept directions."""
        if factor.shape[0] != self.matrix.shape[0]:
            raise ShapeError(f"factor {factor.shape} must have {self.matrix.shape[0]} rows")
        rows: Floats = (self.basis[:, : self.kept].T @ self.matrix.astype(np.float64)) @ factor
        return rows


def oas_shrinkage(covariance: Floats, count: int) -> float:
    """The shrinkage towards mu I, mu = tr(C) / d, that the oracle approximating shrinkage takes.

    s = min(1, (a + mu^2) / ((n + 1) (a - mu^2 / d))), a = tr(C^2) / d^2. It is derived for
    independent Gaussian samples. Tokens of one image are neither, so it shrinks too little.

    Source: Chen et al. 2010, Eq. 23, doi 10.1109/TSP.2010.2053029, without its terms of order
    2 / d, as in scikit-learn.
    """
    d = len(covariance)
    mu = float(np.trace(covariance)) / d
    a = float(np.mean(covariance**2))
    below = (count + 1) * (a - mu * mu / d)
    return min(1.0, (a + mu * mu) / below) if below > 0 else 1.0


def shrinkage_share(covariance: Floats, count: int, asked: str | float) -> float:
    """How much to shrink a covariance of `count` samples: one of `SHRINKAGES`, or so much."""
    if asked == "oas":
        return oas_shrinkage(covariance, count)
    return 0.0 if asked == "none" else float(asked)


def shrink(covariance: Floats, share: float) -> Floats:
    """(1 - s) C + s mu I, mu = tr(C) / d: same trace, and of full rank where s > 0.

    Raises:
        BurstError: share is outside 0..1.
    """
    if not 0 <= share <= 1:
        raise BurstError(f"shrinkage {share} must lie in 0..1")
    mu = float(np.trace(covariance)) / len(covariance)
    return (1 - share) * covariance + share * mu * np.eye(len(covariance))


def covariance_factor(covariance: Floats) -> Floats:
    """L with L L^T = C, for a C that may be singular: (d, r), r being its numerical rank.

    F = A L then has the singular values, and left singular vectors, of A C^(1/2), since F F^T is
    the same. L is the pivoted Cholesky factor: it stops where what is left of C has no diagonal
    entry above d (4 eps)^2 of the largest, eps being that of float32: the trace of an error of
    four units in the last place of every token. So the exactly null direction behind a LayerNorm,
    known only as rounding noise, is left out; a square root would turn 1e-15 of C into 3e-8 of F.

    If C is perturbed, the squared singular values of F change by factors within 1 +- ||L^+ dC
    L^+T||, which is at most eps cond(C) for rounding: the small ones are as sure as the large ones.
    """
    largest = float(covariance.diagonal().max())
    tolerance = largest * len(covariance) * (4 * TOKEN_EPSILON) ** 2
    lower, order, rank, _ = lapack.dpstrf(covariance, tol=tolerance, lower=1)
    if largest <= 0:
        rank = 0
    factor = np.empty((len(covariance), rank))
    factor[order - 1] = np.tril(lower)[:, :rank]
    return factor


def left_singular(factor: Floats) -> tuple[Floats, Floats]:
    """U (d, d) and S (d,), falling, of F = U S V^T, small singular values included.

    As precise as the SVD, at about 0.6 of its cost, since V is not needed: F F^T is diagonalised,
    which is sound to d eps / 1e-7 for the eigenvalues above 1e-7 of the largest; then those
    directions are taken out of F and the rest is treated alike, on its own scale. Directions taken
    out leave a trace in the rest of relative size eps S_1 / S_j < 1e-12, at right angles to it, so
    it enters S squared. S is 0 beyond the number of columns of F, and below 16 d eps S_1, where F
    itself is rounding noise.
    """
    d, columns = factor.shape
    noise = 16 * d * EPSILON
    values, vectors = np.zeros(d), np.empty((d, d))
    rows, basis, done = factor, np.eye(d), 0
    while done < d:
        eigenvalues, rotation = np.linalg.eigh(rows @ rows.T)
        eigenvalues = eigenvalues[::-1].clip(min=0)
        basis = basis @ rotation[:, ::-1] if done else rotation[:, ::-1]
        if done and eigenvalues[0] <= (noise * values[0]) ** 2:
            vectors[:, done:] = basis
            break
        sound = int(np.count_nonzero(eigenvalues >= SPLIT * eigenvalues[0]))
        values[done : done + sound] = np.sqrt(eigenvalues[:sound])
        vectors[:, done : done + sound] = basis[:, :sound]
        basis, done = basis[:, sound:], done + sound
        rows = basis.T @ factor
    values[columns:] = 0.0
    values[values <= noise * values[0]] = 0.0
    return vectors, values


def decorrelate(factor: Floats, *, method: str = "zca", floor: float = 1e-6) -> Decorrelation:
    """The whitening matrix W of Sigma = F F^T, by one of five methods, or its diagonal alone.

    Sigma = U D U^T, P = G T G^T the correlation matrix, V the diagonal of Sigma:

        zca      U D^(-1/2) U^T              symmetric; W Y is as close to Y as can be
        pca      D^(-1/2) U^T                variances in falling order
        cholesky R, R^T R = Sigma^(-1)       upper triangular, positive diagonal
        zca-cor  G T^(-1/2) G^T V^(-1/2)     as close to the standardised Y as can be
        pca-cor  T^(-1/2) G^T V^(-1/2)
        diagonal V^(-1/2)                    d numbers: unit variances, correlations as they are

    Eigenvalues of D (of T, or of V) below `floor` times the largest are raised to that: their
    directions are not lost, only amplified no more than the least kept one, so W has full rank and
    a prompt P W^T can still move there. The signs of U and G, which `pca` shows, make their
    diagonals positive. `diagonal` does not whiten, but is what every whitening must be compared
    with: it takes out the spread of the rows' variances, which makes pooled entries heavy-tailed.

    Args:
        factor: (d, r) float64, any F with F F^T = Sigma: for n samples y_i about their mean, the
            matrix of the y_i / sqrt(n); for the response Y = A X^T, A L with L L^T = cov(X).
        method: "zca", "pca", "cholesky", "zca-cor", "pca-cor" or "diagonal".
        floor: 0 up to, but not including, 1. With 0, Sigma must be of full rank; for `diagonal`,
            no entry of Y may be constant.

    Returns:
        W (d, d) as `matrix`, so that cov(W Y) is the identity on the eigenvalues above the floor,
        or has ones on its diagonal for `diagonal`; the spectrum, and what follows from it.

    Raises:
        UnknownName: another method.
        BurstError: floor out of range; a factor that is not finite; floor 0 and a singular Sigma;
            an entry of Y that is constant and a method that standardises, or floor 0 and
            `diagonal`.
        EmptyResult: Sigma is zero.

    Source: Kessy, Lewin and Strimmer 2018, Table 1, doi 10.1080/00031305.2016.1277159.

    >>> decorrelate(np.diag([2.0, 0.5])).matrix.diagonal()
    array([0.5, 2. ], dtype=float32)
    """
    if method not in METHODS:
        raise UnknownName("whitening method", method, METHODS)
    if not 0 <= floor < 1:
        raise BurstError(f"the eigenvalue floor is {floor}; it must be at least 0 and below 1")
    if not np.isfinite(factor).all():
        raise BurstError("a factor of Sigma must be finite")
    if method == "diagonal":
        return _diagonal(factor, floor)
    deviation = _deviation(factor, standardise=method.endswith("cor"))
    u, s = left_singular(factor / deviation[:, None])
    u *= np.where(u.diagonal() < 0, -1.0, 1.0)
    eigenvalues = s * s
    raised = np.maximum(eigenvalues, floor * eigenvalues[0])
    if raised[-1] <= 0:
        raise BurstError(
            f"its covariance is singular, of rank {np.count_nonzero(s)} of {len(s)}; "
            "give a floor above 0"
        )
    scaled = u.T / np.sqrt(raised)[:, None]
    basis = _rotation(method, u, scaled)
    matrix = (basis @ scaled / deviation).astype(np.float32)
    kept = int(np.count_nonzero(eigenvalues >= floor * eigenvalues[0]))
    return Decorrelation(matrix, eigenvalues, basis, kept)


def row_variances(factor: Floats) -> Floats:
    """V = diag(F F^T), (d,): variances of the entries of Y; 0 where they are lost in rounding."""
    variances: Floats = np.square(factor).sum(axis=1)
    variances[variances <= (len(factor) * EPSILON) ** 2 * variances.max(initial=0.0)] = 0.0
    return variances


def diagonal_gains(variances: Floats, floor: float) -> Floats:
    """V^(-1/2), (d,), variances below `floor` times the largest raised to it; 0 for what is 0."""
    raised = np.maximum(variances, floor * variances.max(initial=0.0))
    gains: Floats = np.zeros_like(raised)
    np.divide(1.0, np.sqrt(raised), out=gains, where=raised > 0)
    return gains


def _diagonal(factor: Floats, floor: float) -> Decorrelation:
    variances = row_variances(factor)
    largest = float(variances.max(initial=0.0))
    if not largest > 0:
        raise EmptyResult(DOES_NOT_VARY)
    constant = np.flatnonzero(variances == 0)
    if constant.size and not floor:
        raise BurstError(
            f"entry {constant[0]} of its response{and_more(constant.size)} is constant; "
            "give a floor above 0"
        )
    falling = np.argsort(-variances, kind="stable")
    matrix = np.diag(diagonal_gains(variances, floor)).astype(np.float32)
    kept = int(np.count_nonzero(variances >= floor * largest))
    return Decorrelation(matrix, variances[falling], np.eye(len(variances))[:, falling], kept)


def _deviation(factor: Floats, *, standardise: bool) -> Floats:
    """Standard deviations to divide by; ones for the methods that do not."""
    deviation: Floats = np.linalg.norm(factor, axis=1)
    largest = deviation.max(initial=0.0)
    if not largest > 0:
        raise EmptyResult(DOES_NOT_VARY)
    if not standardise:
        return np.ones(len(factor))
    constant = np.flatnonzero(deviation <= len(factor) * EPSILON * largest)
    if constant.size:
        raise BurstError(
            f"entry {constant[0]} of its response{and_more(constant.size)} is constant, so "
            "there is no correlation; take a method without -cor, or shrinkage"
        )
    return deviation


def _rotation(method: str, u: Floats, scaled: Floats) -> Floats:
    """The orthogonal O of W = O D^(-1/2) U^T: all that tells the methods apart."""
    if method.startswith("zca"):
        return u
    if method.startswith("pca"):
        return np.eye(len(u))
    # Rows in falling order of their norms: Householder QR is then as precise row by row.
    q, r = np.linalg.qr(scaled[::-1])
    rotation: Floats = (q * np.sign(r.diagonal())).T[:, ::-1]
    return rotation


def authors_decorrelation(mean_response: Floats) -> Decorrelation:
    """W as the paper's released code computes it, U S^(-1/2) V^T in float32, with no floor.

    S are the singular values of Y Y^T / d, with Y (d, N) the response averaged over images. Its
    rank is at most N, one image's token count, so at least d - N directions have only rounding
    noise for a variance. The inverse root turns it into the largest gains of all: W amplifies
    most where nothing was measured. U and V differ there, in sign or altogether, so W is neither
    positive nor symmetric, and depends on the machine that it was computed on. Averaging over
    images takes out what varies between them, and dividing by d instead of the number of samples
    scales W by sqrt(d / N). W Y is not white on real tokens. `kept` counts the eigenvalues above
    float32 rounding.

    Raises:
        BurstError: a singular value is 0, so that W is not finite.

    Source: the code released with arXiv 2506.22908.
    """
    y = torch.from_numpy(mean_response).float()
    u, s, vt = (part.numpy() for part in torch.linalg.svd(y @ y.mT / len(y)))
    if not s[-1] > 0:
        raise BurstError("the authors' recipe gives a matrix that is not finite")
    matrix = np.asarray((u / np.sqrt(s)) @ vt, dtype=np.float32)
    kept = int(np.count_nonzero(s > len(y) * TOKEN_EPSILON * s[0]))
    return Decorrelation(matrix, s.astype(np.float64), u.astype(np.float64), kept)
