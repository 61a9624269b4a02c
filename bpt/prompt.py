"""How a prompt (m tokens of width d) is parameterised.

vpt             P, uniform at the start
gatevpt         the same; what blocks make of it is gated, see `bpt.gates`
spt             P, tokens of the training set at the start
bpt-fwhiten     P W^T with the whitening matrix W of the block, frozen
bpt-twhiten     the same, W trained too
bpt-dwhiten     P V^(-1/2), the diagonal alone: d frozen numbers, V = diag(Sigma)
bpt-bilinear    A B^T with A (m x r) and B (d x r): no bias, no norm, no non-linearity

W and V^(-1/2) come at the scale that `bpt.prompt_matrices` gives them. Each prompt gives its m x d
tokens once a step, whatever the batch, and always by a float32 product.
Source: Wang et al., "Attention to the Burstiness in Visual Prompt Tuning!", ICCV 2025,
arXiv 2506.22908; vpt: Jia et al. 2022, arXiv 2203.12119; spt: Wang et al. 2024, arXiv 2402.02382;
gatevpt: Yoo et al. 2023, arXiv 2306.05067.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from burst.errors import BurstError, ShapeError, check_kinds, check_known
from burst.precision import plain_float32

PROMPT_METHODS = (
    "vpt",
    "gatevpt",
    "spt",
    "bpt-fwhiten",
    "bpt-twhiten",
    "bpt-dwhiten",
    "bpt-bilinear",
)
"""What `PromptOptions.method` may be: the kinds of prompts."""
FROZEN = ("bpt-fwhiten", "bpt-dwhiten")  # whose whitening matrix is kept as it is
SPT_TOKENS = ("random", "mean", "max", "kmeans")
BILINEAR_STARTS = ("xavier", "balanced", "whitening")
SCALES = ("unit", "paper")
STD = 0.02  # of P and A at the start, of the bpt methods
NULL_GAIN = 1.0  # prompts that cannot leave the kept directions were worse: docs/evidence.md


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How every prompted block's prompt is made.

    Attributes:
        method: one of `PROMPT_METHODS`.
        num_prompts: m, tokens a prompted block.
        rank: r, columns of A and B (bpt-bilinear only).
        spt_tokens: which tokens spt starts from, one of `SPT_TOKENS`.
        bilinear_init: "xavier"; "balanced": A and B orthogonal, so that the singular values of
            A B^T are equal (where r <= d) and its entries have vpt's deviation; or "whitening": B
            starts from the leading whitened directions, those in which the response varies most;
            with the paper's scale from columns of W.
        prompt_scale: of whitening matrices: "unit" RMS gain, or "paper" for W as it is.
        null_gain: gain of the directions below the floor, in units of the RMS gain of the kept
            ones; of no use with the paper's scale. See `prompt_whitening` for both.

    Raises:
        UnknownName: a name that is not known; the nearest are offered.
        BurstError: a number that is not positive, or a null gain that is negative or not finite.

    Source: bpt: Wang et al. 2025, arXiv 2506.22908; vpt: Jia et al. 2022, arXiv 2203.12119; spt:
    Wang et al. 2024, arXiv 2402.02382; gatevpt: Yoo et al. 2023, arXiv 2306.05067; balanced: Arora
    et al. 2019, arXiv 1905.13655.
    """

    method: str = "bpt-bilinear"
    num_prompts: int = 100
    rank: int = 75
    spt_tokens: str = "random"
    bilinear_init: str = "xavier"
    prompt_scale: str = "unit"
    null_gain: float = NULL_GAIN

    def __post_init__(self) -> None:
        check_kinds(self)
        check_known("method", self.method, PROMPT_METHODS)
        check_known("kind of spt tokens", self.spt_tokens, SPT_TOKENS)
        check_known("start of the bilinear prompt", self.bilinear_init, BILINEAR_STARTS)
        check_known("prompt scale", self.prompt_scale, SCALES)
        if not 0 <= self.null_gain < math.inf:
            raise BurstError(f"null_gain is {self.null_gain}; it must not be negative")
        for name in ("num_prompts", "rank"):
            if getattr(self, name) < 1:
                raise BurstError(f"{name} is {getattr(self, name)}; it must be positive")

    @property
    def needs_whitening(self) -> bool:
        """Whether `build_prompt` must be given the block's whitening matrix."""
        from_whitening = self.method == "bpt-bilinear" and self.bilinear_init == "whitening"
        return self.method in (*FROZEN, "bpt-twhiten") or from_whitening

    @property
    def needs_tokens(self) -> bool:
        """Whether `build_prompt` must be given tokens to start from."""
        return self.method == "spt"

    def parameters(self, width: int, depth: int = 0) -> int:
        """Numbers that are trained in one prompt.

        Args:
            width: d.
            depth: L, to count the gates and temperatures of so many blocks too (gatevpt).

        >>> PromptOptions().parameters(768)
        65100
        >>> PromptOptions(method="gatevpt").parameters(768, depth=12)
        76823
        """
        if self.method == "bpt-bilinear":
            return self.rank * (self.num_prompts + width)
        trained = width * width if self.method == "bpt-twhiten" else 0
        trained += 2 * depth - 1 if self.method == "gatevpt" and depth else 0
        return self.num_prompts * width + trained


class PromptModule(nn.Module):
    """The m tokens of width d of one prompt: its call, once a step, gives them as (m, d)."""

    def forward(self) -> Tensor:
        """(m, d), of the parameters' dtype."""
        raise NotImplementedError


class PlainPrompt(PromptModule):
    """P itself, `values` (m, d): vpt, gatevpt, spt, and what any other prompt folds to."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self) -> Tensor:
        """P, (m, d)."""
        return self.values


class WhitenedPrompt(PromptModule):
    """P W^T, with P `values` (m, d), trained, and W `whitening` (d, d), frozen or trained."""

    def __init__(self, values: Tensor, whitening: Tensor, *, trained: bool) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.whitening: Tensor
        if trained:
            self.whitening = nn.Parameter(whitening)
        else:
            self.register_buffer("whitening", whitening)

    def forward(self) -> Tensor:
        """P W^T, (m, d)."""
        return _product(self.values, self.whitening)


class DiagonalPrompt(PromptModule):
    """P V^(-1/2): P `values` (m, d), and frozen `gains` (d,), one for each dimension."""

    def __init__(self, values: Tensor, gains: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.gains: Tensor
        self.register_buffer("gains", gains)

    def forward(self) -> Tensor:
        """P V^(-1/2), (m, d)."""
        return self.values * self.gains


class BilinearPrompt(PromptModule):
    """A B^T, with A `left` (m, r) and B `right` (d, r), both trained."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)

    def forward(self) -> Tensor:
        """A B^T, (m, d)."""
        return _product(self.left, self.right)


def build_prompt(
    options: PromptOptions,
    *,
    width: int,
    patch_size: int,
    generator: torch.Generator,
    whitening: Tensor | None = None,
    tokens: Tensor | None = None,
) -> PromptModule:
    """A prompt at its start, float32.

    Args:
        options: its method and sizes.
        width: d.
        patch_size: pixels; the range of vpt and gatevpt depends on it.
        generator: of the start; the global random state is left alone.
        whitening: of the block that the prompt is for, where `needs_whitening`: (d, d), or (d,)
            gains for bpt-dwhiten, as `prompt_matrices` gives them; copied to float32.
        tokens: (m, d) to start from, where `needs_tokens`.

    Raises:
        ShapeError: a matrix that is needed is missing or of another shape; or the bilinear prompt
            is to start from more columns than W has.
    """
    m, method = options.num_prompts, options.method
    if options.needs_tokens:
        return PlainPrompt(_given("tokens", tokens, (m, width)))
    bound = math.sqrt(6 / (3 * patch_size**2 + width))
    if method in ("vpt", "gatevpt"):
        return PlainPrompt(_uniform(m, width, bound, generator))
    if method == "bpt-bilinear" and options.bilinear_init == "balanced":
        rms = bound / math.sqrt(3)
        return BilinearPrompt(*_balanced(m, width, options.rank, rms=rms, generator=generator))
    if method == "bpt-bilinear":
        left = _normal(m, options.rank, generator)
        return BilinearPrompt(left, _right(options, width, whitening, generator))
    if method == "bpt-dwhiten":
        gains = _given("whitening", whitening, (width,))
        return DiagonalPrompt(_normal(m, width, generator), gains)
    matrix = _given("whitening", whitening, (width, width))
    start = _normal(m, width, generator)
    return WhitenedPrompt(start, matrix, trained=method == "bpt-twhiten")


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left right^T as the parameters are, whatever less precise product is allowed elsewhere.

    A product with W is smallest in the directions where the response varies most: there large
    terms cancel, and what bfloat16 rounds off them remains.
    """
    if torch.compiler.is_compiling():  # a graph has autocast in it, but no setting of the process
        with torch.autocast(left.device.type, enabled=False):
            return left @ right.mT
    with plain_float32(left.device):
        return left @ right.mT


def _right(
    options: PromptOptions, width: int, whitening: Tensor | None, generator: torch.Generator
) -> Tensor:
    """B, (d, r): Xavier-uniform, or r whitened directions.

    At unit scale the first r, which are those that the response varies most in, and was measured
    best in; ||B||_F = sqrt(d), so that tokens start at the deviation of A. As in the paper: r
    columns of W drawn once, so that they stay its directions. (The authors' code draws other
    columns for each row, after which nothing of W is left but the distribution of its values.)
    """
    rank = options.rank
    if options.bilinear_init == "xavier":
        return _uniform(width, rank, math.sqrt(6 / (width + rank)), generator)
    matrix = _given("whitening", whitening, (width, width))
    if rank > width:
        raise ShapeError(f"rank {rank} exceeds the {width} columns of the whitening matrix")
    if options.prompt_scale == "unit":
        leading = matrix[:, :rank]
        return leading * (math.sqrt(width) / float(torch.linalg.matrix_norm(leading)))
    columns = torch.randperm(width, generator=generator)[:rank]
    return matrix[:, columns].contiguous()


def _balanced(
    m: int, width: int, rank: int, *, rms: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A (m, r) and B (d, r), orthogonal: each has min(m, r) or min(d, r) equal singular values.

    So has A B^T, where r <= d; its entries have vpt's deviation `rms`. AdamW moves every entry by
    about its rate: from entries of 0.02 a few steps make the rows of A, and of the prompt, alike.

    Source: A^T A = B^T B (where r <= m) is the balance of Arora et al. 2019, arXiv 1905.13655.
    """
    gain = math.sqrt(rms * math.sqrt(m * width / min(m, width, rank)))
    left, right = torch.empty(m, rank), torch.empty(width, rank)
    nn.init.orthogonal_(left, gain=gain, generator=generator)
    return left, nn.init.orthogonal_(right, gain=gain, generator=generator)


def _given(name: str, matrix: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if matrix is None:
        raise ShapeError(f"this prompt needs {name} of shape {shape}; none was given")
    if tuple(matrix.shape) != shape:
        raise ShapeError(f"{name} has shape {tuple(matrix.shape)}, expected {shape}")
    return matrix.detach().to(torch.float32).clone()


def _uniform(rows: int, columns: int, bound: float, generator: torch.Generator) -> Tensor:
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.empty(rows, columns).normal_(std=STD, generator=generator)
