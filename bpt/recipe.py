"""Every hyper-parameter of a training, in one object that checks itself."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bpt.model import AFTER, POOLINGS
from bpt.prompt import METHODS as PROMPT_METHODS
from bpt.prompt import PromptOptions
from burst.errors import BurstError, check_known

METHODS = (*PROMPT_METHODS, "linear", "full")
WHITENED = tuple(name for name in PROMPT_METHODS if name.startswith("bpt-"))
# The methods that make use of an option, where not all of them do.
USED_BY = {
    "placement": PROMPT_METHODS,
    "num_prompts": PROMPT_METHODS,
    "rank": ("bpt-bilinear",),
    "spt_tokens": ("spt",),
    "bilinear_init": ("bpt-bilinear",),
    "whitening": WHITENED,
    "after": PROMPT_METHODS,
    "weight_decay": (*PROMPT_METHODS, "full"),
    "head_weight_decay": (*PROMPT_METHODS, "linear"),
    "layer_decay": ("full",),
    "drop_path": ("full",),
}
PRECISIONS = ("float32", "bfloat16", "float16")
PROTOCOLS = ("standard", "authors")
NORMALISATIONS = ("native", "reference")
OPTIMIZERS = ("adamw", "sgd", "lars")
# Where nobody asks for others. Prompts: the paper's, of CUB with MAE. Fine-tuning: the supplement's
# (Table 8), its learning rate scaled from 1,024 images a step to 32.
PROMPT_DEFAULTS = {"lr": 5e-2, "weight_decay": 5e-3, "head_weight_decay": 0.5}
DEFAULTS = {
    "linear": {"lr": 1e-2, "weight_decay": 0.0, "head_weight_decay": 0.0},
    "full": {"lr": 1.25e-4, "weight_decay": 0.05, "head_weight_decay": 0.05},
}
# What may differ between two parts of one training: it changes where things are and how fast.
FREE_ON_RESUME = ("data", "weights", "whitening", "workers", "eval_batch_size", "origins")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, on what and how. None stands for a default that depends on the rest.

    Attributes:
        dataset: a name of `known_datasets`; "folder" or "folder:PATH" for one's own images.
        data: the folder or archive of the dataset.
        train_fraction: share of each class's training images to use, see `class_fraction`.
        train_list: for imagenet: a file that names the training images.
        model: see `burst.load_backbone`.
        weights: its checkpoint, or "random".
        normalisation: of the images: "native", as the backbone was pretrained, or "reference",
            with ImageNet's mean and deviation for every backbone, as the published numbers.
        method: one of `METHODS`: how prompts are parameterised, "linear" (a head on frozen
            features) or "full" (fine-tuning of all weights).
        placement: which blocks get a prompt, see `parse_placement`.
        num_prompts: m, tokens a prompted block.
        rank: r of bpt-bilinear.
        spt_tokens: what spt starts from.
        bilinear_init: "xavier" or "whitening"; the latter if `whitening` is given.
        whitening: a file of `burst whiten`; made from the training images where a method needs
            one and none is given.
        pooling: see `PromptedViT`.
        after: what becomes of prompt tokens behind the last prompted block: "carry" or "drop".
        epochs: passes over the training images; 100, and 10 for digits.
        warmup_epochs: of them with a rising learning rate; a tenth.
        batch_size: images an optimiser step, over all processes.
        accumulation: parts that each process cuts its share of a step into, one after another.
        eval_batch_size: images a step of an evaluation, on each process.
        optimizer: "adamw"; "sgd" or "lars", both with momentum 0.9.
        lr: learning rate at its peak; 0.05, for linear 0.01, for full 0.000125.
        min_lr: at the end of the cosine.
        weight_decay: of prompts; for full, of all matrices. 0.005, for full 0.05. Vectors never
            decay.
        head_weight_decay: of the head's matrix, but for full; 0.5, for linear 0.
        layer_decay: factor of the learning rate from one block to the one before it (full only).
        drop_path: stochastic depth of the last block, falling linearly to 0 (full only).
        precision: "float32", or "bfloat16" or "float16" for autocast.
        compile: use torch.compile.
        ema_decay: evaluate and keep the moving average of the trained tensors, not their last
            values.
        protocol: "standard": train on the training split, choose the epoch on the validation
            split, read the test split once. "authors": train on both and report the last epoch
            and the best one on the test split, as the published numbers do.
        seed: of the start, the order of the images and their augmentation.
        workers: processes that read images.
        cache: decode each image once, into a memory-mapped file, see `bpt.pixels`.
        origins: of each hyper-parameter that was chosen, by whom; see `recipe_for`.

    Raises:
        UnknownName: a name that is not known; the nearest are offered.
        BurstError: a number out of range, or options that contradict each other.
    """

    dataset: str = "digits"
    data: str | None = None
    train_fraction: float | None = None
    train_list: str | None = None
    model: str = "mae_tiny"
    weights: str | None = None
    normalisation: str = "native"
    method: str = "bpt-bilinear"
    placement: str = "shallow"
    num_prompts: int = 100
    rank: int = 75
    spt_tokens: str = "random"
    bilinear_init: str = "xavier"
    whitening: str | None = None
    pooling: str = "default"
    after: str = "carry"
    epochs: int | None = None
    warmup_epochs: int | None = None
    batch_size: int = 32
    accumulation: int = 1
    eval_batch_size: int = 128
    optimizer: str = "adamw"
    lr: float | None = None
    min_lr: float = 1e-8
    weight_decay: float | None = None
    head_weight_decay: float | None = None
    layer_decay: float = 0.65
    drop_path: float = 0.1
    precision: str = "float32"
    compile: bool = False
    ema_decay: float | None = None
    protocol: str = "standard"
    seed: int = 0
    workers: int = 0
    cache: bool = True
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        known = {
            "method": METHODS,
            "pooling": POOLINGS,
            "after": AFTER,
            "precision": PRECISIONS,
            "protocol": PROTOCOLS,
            "normalisation": NORMALISATIONS,
            "optimizer": OPTIMIZERS,
        }
        for name, names in known.items():
            check_known(name, getattr(self, name), names)
        self._fill_in()
        self._check_numbers()
        if self.prompted:
            self.prompt_options  # noqa: B018  checks itself
        if self.whitening:
            check_used(self.method, ["whitening"])
        if self.pooling in ("prompts", "prompts+patches") and not self.prompted:
            raise BurstError(f"method {self.method} has no prompts to pool; leave the pooling out")

    @property
    def prompted(self) -> bool:
        """Whether the method has prompts."""
        return self.method in PROMPT_METHODS

    @property
    def prompt_options(self) -> PromptOptions:
        """How each prompt is made; only where `prompted`."""
        names = [one.name for one in fields(PromptOptions)]
        return PromptOptions(**{name: getattr(self, name) for name in names})

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
        """`epochs`, which is filled in by now."""
        assert self.epochs is not None
        return self.epochs

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def provenance(self) -> list[str]:
        """Where the hyper-parameters come from that nobody gave, a line for each source."""
        groups: dict[str, list[str]] = {}
        for name, source in self.origins.items():
            if source != "given":
                groups.setdefault(source, []).append(f"{name} {getattr(self, name)}")
        return [f"{', '.join(values)}: {source}" for source, values in groups.items()]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """What `to_dict` gave.

        Raises:
            UnknownName: a key that is no hyper-parameter.
        """
        for name in values:
            check_known("hyper-parameter", name, [one.name for one in fields(cls)])
        return cls(**values)

    def differences(self, other: "Recipe") -> list[str]:
        """Names of what differs, apart from what may differ between two parts of one training."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [name for name in mine if mine[name] != theirs[name] and name not in FREE_ON_RESUME]

    def _fill_in(self) -> None:
        epochs = self.epochs
        if epochs is None:
            epochs = 10 if self.dataset == "digits" else 100
        derived: dict[str, Any] = {"epochs": epochs}
        for name, value in DEFAULTS.get(self.method, PROMPT_DEFAULTS).items():
            if getattr(self, name) is None:
                derived[name] = value
        if self.warmup_epochs is None:
            derived["warmup_epochs"] = epochs // 10
        if self.whitening and self.method == "bpt-bilinear":
            derived["bilinear_init"] = "whitening"
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def _check_numbers(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise BurstError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("seed", "workers", "min_lr", "weight_decay", "head_weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise BurstError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not 0 < self.peak_lr < float("inf"):
            raise BurstError(f"lr is {self.lr}; it must be positive")
        if self.min_lr > self.peak_lr:
            raise BurstError(f"min_lr {self.min_lr} is above the learning rate {self.lr}")
        if not 0 <= (self.warmup_epochs or 0) < self.total_epochs:
            raise BurstError(
                f"warmup_epochs is {self.warmup_epochs}; it must be below the {self.epochs} epochs"
            )
        if not 0 < self.layer_decay <= 1:
            raise BurstError(f"layer_decay is {self.layer_decay}; it must lie in 0..1, without 0")
        if not 0 <= self.drop_path < 1:
            raise BurstError(f"drop_path is {self.drop_path}; it must lie in 0..1, without 1")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise BurstError(f"ema_decay is {self.ema_decay}; it must lie in 0..1, without 1")
        if self.batch_size % self.accumulation:
            raise BurstError(
                f"batch_size {self.batch_size} cannot be cut into {self.accumulation} equal parts"
            )


def check_used(method: str, options: Iterable[str]) -> None:
    """Refuse an option that the method makes no use of.

    Raises:
        BurstError: there is one; it is named, and the methods that use it.
    """
    for name in options:
        users = USED_BY.get(name, METHODS)
        if method not in users:
            raise BurstError(
                f"method {method} makes no use of {name}, which is for {', '.join(users)}; "
                "leave it out, or choose another method"
            )
