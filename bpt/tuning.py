"""What trainings of classifiers and of detectors are told alike; it checks itself."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from typing import Any, Self

from bpt.dataset import without_place
from bpt.gates import START
from bpt.machine import FREE_ON_RESUME, RENAMED, Machine
from bpt.methods import METHODS, check_used
from bpt.model import AFTER
from bpt.prompt import NULL_GAIN, PROMPT_METHODS, PromptOptions
from burst.errors import BurstError, check_kinds, check_known, check_share
from burst.whitening_options import WhiteningOptions

MADE_WITH = ("floor", "shrinkage", "through_norm")  # matrices that no file brings
OF_MATRICES = (*MADE_WITH, "prompt_scale", "null_gain")  # options without effect where are none
FLOOR = 1e-3
LARGEST_SEED = 2**32 - 1  # that all generators take
MADE = "as made by hand"  # where the values of a recipe are from that was not filled in
PRECISIONS = ("float32", "bfloat16", "float16")
NORMALISATIONS = ("native", "reference")


@dataclass(frozen=True, kw_only=True)
class Tuning(Machine):
    """What every training is told: images, backbone, prompts, steps. None: it depends on the rest.

    What of it a machine, and not the result, depends on is in `Machine`.

    Attributes:
        dataset: a name of `known_datasets`; "folder:PATH" or "coco:PATH" for one's own images,
            "vtab:TASK" for one of VTAB-1k.
        train_fraction: share of the training images to use.
        model: see `burst.load_backbone`.
        normalisation: of the images: "native", as the backbone was pretrained, or "reference",
            with ImageNet's mean and deviation for every backbone, as the published numbers.
        method: one of `METHODS`: how prompts are parameterised, "linear" (what stands behind a
            frozen backbone), "full" (fine-tuning of all weights), or "lora", "adapter", "bitfit".
        placement: which blocks get a prompt, see `parse_placement`.
        num_prompts: m, tokens a prompted block.
        rank: r of bpt-bilinear.
        spt_tokens: what spt starts from.
        bilinear_init: "xavier", "balanced" or "whitening"; the last if `whitening` is given.
        prompt_scale: of whitening matrices: "unit" RMS gain, or the "paper"'s.
        null_gain: of directions below the floor, in units of the RMS gain of the kept ones; of no
            use with the paper's scale.
        floor, shrinkage, through_norm: of matrices that are made from the training images, see
            `burst.WhiteningOptions`; of no use where `whitening` is given, which has its own.
        after: what becomes of prompt tokens behind the last prompted block: "carry" or "drop".
        gate_init: the gates start at sigmoid(-gate_init) (gatevpt only).
        prompt_dropout: share of a prompt's values that a training image misses (vpt, gatevpt).
        batch_size: images an optimiser step, over all processes.
        lr: learning rate at its peak.
        weight_decay: of prompts; without prompts, of all matrices. Vectors never decay.
        layer_decay: factor of the learning rate from one block to the one before it (full only).
        drop_path: stochastic depth of the last block, falling linearly to 0 (full only).
        precision: "float32", or "bfloat16" or "float16" for autocast.
        seed: of the start, the order of the images and their augmentation.

    Raises:
        UnknownName: a name that is not known; the nearest are offered.
        BurstError: a number out of range, or options that contradict each other.
    """

    dataset: str
    train_fraction: float | None = None
    model: str = "mae_tiny"
    normalisation: str = "native"
    method: str = "bpt-bilinear"
    placement: str = "shallow"
    num_prompts: int = 100
    rank: int = 75
    spt_tokens: str = "random"
    bilinear_init: str = "xavier"
    prompt_scale: str = "unit"
    null_gain: float = NULL_GAIN
    floor: float = FLOOR
    shrinkage: str | float = "none"
    through_norm: bool = False
    after: str = "carry"
    gate_init: float = START
    prompt_dropout: float = 0.0
    batch_size: int = 32
    lr: float | None = None
    weight_decay: float | None = None
    layer_decay: float = 0.65
    drop_path: float = 0.1
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_kinds(self)
        known = {
            "method": METHODS,
            "after": AFTER,
            "precision": PRECISIONS,
            "normalisation": NORMALISATIONS,
        }
        for name, names in known.items():
            check_known(name, getattr(self, name), names)
        if self.whitening and self.method == "bpt-bilinear":
            object.__setattr__(self, "bilinear_init", "whitening")
        self._fill_in()
        self._check_numbers()
        if self.prompted:
            self.prompt_options  # noqa: B018  checks itself
            self.whitening_options()
        if self.method == "gatevpt" and (self.placement, self.after) != ("shallow", "carry"):
            raise BurstError(
                f"gatevpt has one prompt, from the first block to the last, not placement "
                f"{self.placement}, after {self.after}; leave placement and after out"
            )
        if self.whitening:
            check_used(self.method, ["whitening"])

    @property
    def prompted(self) -> bool:
        """Whether the method has prompts."""
        return self.method in PROMPT_METHODS

    @property
    def libraries(self) -> tuple[str, ...]:
        """What it needs beside what is always installed."""
        return ("peft",) if self.method == "lora" else ()

    @property
    def prompt_options(self) -> PromptOptions:
        """How each prompt is made; only where `prompted`."""
        names = [one.name for one in fields(PromptOptions)]
        return PromptOptions(**{name: getattr(self, name) for name in names})

    def whitening_options(self, blocks: tuple[int, ...] | None = None) -> WhiteningOptions:
        """How the matrices of these blocks are made, where no file brings them."""
        made = {name: getattr(self, name) for name in MADE_WITH}
        return WhiteningOptions(blocks=blocks, **made)

    @property
    def needs_whitening(self) -> bool:
        """Whether a whitening matrix of each prompted block is used."""
        return self.prompted and self.prompt_options.needs_whitening

    @property
    def peak_lr(self) -> float:
        """`lr`, which is filled in by now."""
        assert self.lr is not None
        return self.lr

    @property
    def total_epochs(self) -> int:
        """Passes over the training images."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def provenance(self) -> list[str]:
        """Where the hyper-parameters come from that nobody gave, a line for each source."""
        groups: dict[str, list[str]] = {}
        for name, source in self.origins.items():
            if source not in ("given", MADE):
                groups.setdefault(source, []).append(f"{name} {getattr(self, name)}")
        return [f"{', '.join(values)}: {source}" for source, values in groups.items()]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, also of an earlier version.

        Of a version that knew no scale: the paper's, and the floor of `burst whiten`.

        Raises:
            UnknownName: a key that is no hyper-parameter.
        """
        values = {RENAMED.get(name, name): value for name, value in values.items()}
        for name in values:
            check_known("hyper-parameter", name, [one.name for one in fields(cls)])
        recipe = cls(**values)
        if "prompt_scale" in values or not recipe.needs_whitening:
            return recipe
        floor = recipe.floor if recipe.whitening else WhiteningOptions().floor
        return replace(recipe, prompt_scale="paper", floor=floor)

    def differences(self, other: "Tuning") -> list[str]:
        """Names of what differs, apart from what may differ between two parts of one training.

        Where one's own images lie is no difference: whether they are the same is for their digest.
        """
        mine, theirs = (
            {**one.to_dict(), "dataset": without_place(one.dataset)} for one in (self, other)
        )
        free = FREE_ON_RESUME | (frozenset() if self.needs_whitening else frozenset(OF_MATRICES))
        return [name for name in mine if mine[name] != theirs.get(name) and name not in free]

    def differences_in_words(self, other: "Tuning") -> list[str]:
        """The same with the values, such as "epochs 2, not 3"."""
        names = self.differences(other)
        return [f"{name} {getattr(self, name)}, not {getattr(other, name)}" for name in names]

    def _fill_in(self) -> None:
        """Give what is None the value that it stands for."""
        raise NotImplementedError

    def _derive(self, values: Mapping[str, Any]) -> None:
        """Set what is still None."""
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check_numbers(self) -> None:
        self._check_positive("batch_size", "accumulation", "eval_batch_size")
        self._check_not_negative("seed", "workers", "weight_decay")
        if self.seed > LARGEST_SEED:
            raise BurstError(f"seed is {self.seed}; it must be at most {LARGEST_SEED}")
        if not 0 < self.peak_lr < float("inf"):
            raise BurstError(f"lr is {self.lr}; it must be positive")
        check_share("train_fraction", self.train_fraction)
        check_share("layer_decay", self.layer_decay)
        if not 0 <= self.drop_path < 1:
            raise BurstError(f"drop_path is {self.drop_path}; it must lie in 0..1, without 1")
        if not isfinite(self.gate_init):
            raise BurstError(f"gate_init is {self.gate_init}; it must be finite")
        if not 0 <= self.prompt_dropout < 1:
            raise BurstError(
                f"prompt_dropout is {self.prompt_dropout}; it must lie in 0..1, without 1"
            )
        if self.batch_size % self.accumulation:
            raise BurstError(
                f"batch_size {self.batch_size} cannot be cut into {self.accumulation} equal parts"
            )

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise BurstError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def _check_not_negative(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < float("inf"):
                raise BurstError(f"{name} is {getattr(self, name)}; it must not be negative")


def check_fields(recipe: type[Tuning], given: Iterable[str], *, dataset: str) -> None:
    """Refuse an option that trainings on such a dataset do not have.

    Raises:
        BurstError: there is one; it is named.
    """
    names = [one.name for one in fields(recipe)]
    for name in given:
        if name not in names:
            raise BurstError(f"{name} is no option of a training on {dataset}; leave it out")


def check_whitening(asked: Tuning, given: Iterable[str]) -> None:
    """Refuse an option of whitening matrices that another one leaves without an effect.

    Args:
        asked: what was given, as a recipe.
        given: the names of it.

    Raises:
        BurstError: there is one; it is named.
    """
    names = [name for name in OF_MATRICES if name in given]
    if names and not asked.needs_whitening:
        raise BurstError(
            f"{names[0]} is of whitening matrices, and {asked.method} from {asked.bilinear_init} "
            "has none; leave it out, or choose bilinear_init whitening"
        )
    if asked.whitening and names[:1] and names[0] in MADE_WITH:
        raise BurstError(
            f"{names[0]} is of matrices that are made from the training images, but the whitening "
            f"{asked.whitening} is given, which has its own; leave one of them out"
        )
    if "null_gain" in names and asked.prompt_scale == "paper":
        raise BurstError("prompt_scale paper takes W as it is; leave null_gain out")
