"""What a search is told beside the recipe and the methods."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bpt.recipe import Recipe
from bpt.search.grid import Grid, default_grid
from bpt.search.halving import Rung, rungs
from burst.errors import BurstError

FOLDS = 2
LEAST_VALIDATION = 500  # images; with fewer, a search cross-validates


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a search goes about it.

    Attributes:
        lrs: learning rates to begin with, of every method; None: four around each method's own.
        weight_decays: the same; None: 0 and each method's own.
        seeds: of the final trainings; trials are run with the first that a search was begun with.
        folds: of a cross-validation, where there are fewer than 500 validation images.
        max_trials: of each method, extensions of its grid among them; None: half as many again as
            the grid has.
        halving: whether trials are stopped within a training, which saves up to a quarter of a
            search and loses what pays late; see `bpt.search.halving`.

    Raises:
        BurstError: no seed, one twice or a negative one; fewer than 2 folds; fewer trials than the
            grid has points; or an axis that is empty, has a value twice or one out of range.
    """

    lrs: tuple[float, ...] | None = None
    weight_decays: tuple[float, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: int = FOLDS
    max_trials: int | None = None
    halving: bool = False

    def __post_init__(self) -> None:
        for name in ("lrs", "weight_decays", "seeds"):
            values: Sequence[float] | None = getattr(self, name)
            object.__setattr__(self, name, None if values is None else tuple(values))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise BurstError(
                f"seeds {list(self.seeds)} must be at least one whole number, and no two the same"
            )
        if self.folds < 2:
            raise BurstError(f"folds is {self.folds}; a cross-validation has at least 2")
        grid = self.grid(0.01, 0.0)  # checks itself
        if self.max_trials is not None and self.max_trials < len(grid.points):
            raise BurstError(
                f"max_trials is {self.max_trials}, but the grid has {len(grid.points)} points; "
                "allow as many, or give fewer lrs or weight_decays"
            )

    def to_dict(self) -> dict[str, Any]:
        """As search.json has it; None where it was left to the search."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def grid(self, lr: float, weight_decay: float) -> Grid:
        """Where a method begins whose own rate and decay these are."""
        own = default_grid(lr, weight_decay)
        return Grid(
            own.lrs if self.lrs is None else self.lrs,
            own.weight_decays if self.weight_decays is None else self.weight_decays,
        )

    def folds_of(self, validated: int) -> int | None:
        """Of a cross-validation; None where there are validation images enough."""
        return self.folds if validated < LEAST_VALIDATION else None

    def rungs_of(self, recipe: Recipe, validated: int) -> list[Rung]:
        """Where a method's trials are compared, with so many validation images.

        A probe's come to the end of a training: what costs time is its features, not its epochs.
        """
        halving = self.halving and recipe.method != "linear"
        return rungs(recipe.total_epochs, self.folds_of(validated), halving=halving)

    def most_trials(self, first: int) -> int:
        """Of a method, extensions of its grid among them, where the largest grid has `first`."""
        return self.max_trials or 3 * first // 2

    def grid_of(self, recipe: Recipe) -> Grid:
        """Where the method of a recipe begins."""
        return self.grid(recipe.peak_lr, searched_decay(recipe))


def searched_decay(recipe: Recipe) -> float:
    """The weight decay that is searched: that of what the method trains; of a probe the head's."""
    decay = recipe.weight_decay if recipe.method != "linear" else recipe.head_weight_decay
    return decay or 0.0
