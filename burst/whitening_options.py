"""How to whiten: which response, by which method, how regularised."""

from dataclasses import dataclass
from typing import Any

from burst.decorrelation import METHODS, SHRINKAGES
from burst.errors import BurstError, check_known
from burst.forward import TOKENS
from burst.interaction import CONVENTIONS

RECIPES = ("corrected", "authors")


@dataclass(frozen=True)
class WhiteningOptions:
    """How to whiten.

    Attributes:
        blocks: indices, each of tokens of one width; None for all.
        method: "zca", "pca", "cholesky", "zca-cor", "pca-cor" or "diagonal", see `decorrelate`.
        shrinkage: of C towards mu I: "none", "oas" (`oas_shrinkage`), or how much, 0 to 1.
        floor: eigenvalues, or variances of the rows for "diagonal", below `floor` times the largest
            are raised to it, see `decorrelate`.
        centred: C is the covariance of X; else its second moment E[x x^T].
        convention: "paper" or "authors", see `burst.interaction.interaction`.
        tokens: "all", or "patch" to leave class, distillation and register tokens out.
        through_norm: whiten H diag(g) A X^T, what a prompt meets that goes through the block's
            first norm as the tokens do, see `response_matrix`: H centres it and g is the norm's
            gain. One direction of it never varies, so `floor` must be above 0, but for "diagonal".
            Behind a norm that does not centre, such as an RMSNorm, it is diag(g) A X^T.
        head: whiten the response of this head alone, A_h X^T, whose rank is d_h; None for all.
        recipe: "corrected", or "authors": what their released code estimates. It sets
            `convention` to "authors", `centred` to False and `floor` to 0, and whitens the response
            averaged over images; see `authors_decorrelation` for what that does to W.
        held_out: share of the images to measure the whiteness on, not to fit; up to 0.5.

    Raises:
        UnknownName: a method, shrinkage, convention, recipe or kind of tokens that is not known.
        BurstError: a number out of range; the authors' recipe with a method, shrinkage or norm of
            its own; the authors' convention with a head or a norm, which it does not know.
    """

    blocks: tuple[int, ...] | None = None
    method: str = "zca"
    shrinkage: str | float = "none"
    floor: float = 1e-6
    centred: bool = True
    convention: str = "paper"
    tokens: str = "all"
    through_norm: bool = False
    head: int | None = None
    recipe: str = "corrected"
    held_out: float = 0.2

    def __post_init__(self) -> None:
        check_known("whitening method", self.method, METHODS)
        check_known("convention", self.convention, CONVENTIONS)
        check_known("kind of tokens", self.tokens, TOKENS)
        check_known("recipe", self.recipe, RECIPES)
        if isinstance(self.shrinkage, str):
            check_known("shrinkage", self.shrinkage, SHRINKAGES)
        elif not 0 <= self.shrinkage <= 1:
            raise BurstError(f"shrinkage is {self.shrinkage}; it must lie in 0..1")
        if not 0 <= self.floor < 1:
            raise BurstError(
                f"the eigenvalue floor is {self.floor}; it must lie in 0..1, without 1"
            )
        if not 0 <= self.held_out <= 0.5:
            raise BurstError(f"the held-out share is {self.held_out}; it must lie in 0..0.5")
        if self.recipe == "authors":
            self._take_authors()
        if self.convention == "authors" and (self.head is not None or self.through_norm):
            raise BurstError("the authors' convention knows no heads and no norm; leave them out")

    def _take_authors(self) -> None:
        if self.method != "zca" or self.shrinkage != "none":
            raise BurstError("the authors' recipe has its own method, without shrinkage")
        for name, value in {"convention": "authors", "centred": False, "floor": 0.0}.items():
            object.__setattr__(self, name, value)

    @property
    def response(self) -> dict[str, Any]:
        """Which response is whitened, as `response_matrix` takes it."""
        return {"convention": self.convention, "head": self.head, "through_norm": self.through_norm}
