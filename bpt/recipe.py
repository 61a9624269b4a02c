"""Every hyper-parameter of a classifier's training, in one object that checks itself."""

from dataclasses import dataclass

from bpt.augmentation import check_randaugment
from bpt.dataset.folds import parse_fold
from bpt.heads import HEADS
from bpt.methods import DEFAULTS, PROMPT_DEFAULTS, check_used
from bpt.pooling import OF_PROMPTS, POOLINGS
from bpt.tuning import Tuning
from burst.errors import BurstError, check_known

# By protocol the split that chooses the epoch.
PROTOCOLS = {"standard": "val", "last": None, "authors": "test"}
AUGMENTATIONS = ("crop", "flip", "none")
OF_CROPS = ("randaugment", "random_erasing")  # what becomes of random crops, and of no others
OPTIMIZERS = ("adamw", "sgd", "lars")


@dataclass(frozen=True, kw_only=True)
class Recipe(Tuning):
    """How a classifier is trained.

    Attributes:
        train_list: for imagenet: a file that names the training images.
        image_size: pixels a side that the backbone reads, where not its pretraining's; its
            position embeddings are resampled, see `burst.load_backbone`.
        pooling: see `PromptedViT`.
        head_norm: "none", or "batch" for MAE's batch normalisation in front of a probe's head, see
            `NormedHead`.
        randaugment: operations on each crop in training, in timm's words, see `RandAugment`.
        random_erasing: share of the crops in training that lose a rectangle, see `Erasing`.
        mixup, cutmix: alpha of either, see `Mixing`; 0 for none.
        label_smoothing: share of the answer that goes to all classes alike (Szegedy et al. 2016,
            arXiv 1512.00567); in training alone.
        epochs: passes over the training images; 100, and 10 for digits.
        warmup_epochs: of them with a rising learning rate; a tenth.
        optimizer: "adamw"; "sgd" or "lars", both with momentum 0.9.
        lr: at its peak; 0.05, for linear 0.01, for full 0.000125, for the adapted 0.001.
        min_lr: at the end of the cosine.
        weight_decay: 0.005, for linear 0, for full 0.05, for the adapted 0.0001.
        head_weight_decay: of the head's matrix, for prompts and linear; 0.5, for linear 0.
        bottleneck: r, numbers between the two matrices of lora (its rank) or an adapter.
        ema_decay: evaluate and keep the moving average of the trained tensors, not their last
            values.
        protocol: "standard": train on the training split, choose the epoch on the validation
            split, read the test split once. "last": train on both, keep the last epoch, read the
            test split once. "authors": train on both and report the last epoch and the best one on
            the test split, as the paper's own numbers do.
        fold: such as "2/5", for cross-validation: training and validation images together are cut
            into five parts, see `bpt.dataset.fold_of`; the second is the validation split, and the
            others are trained on.
        augmentation: of training images: "crop", a random crop, mirrored or not; "flip", the
            centre crop, mirrored or not; "none", the centre crop. linear, whose features are
            computed once, takes "crop" for "none".
        views: of each training image: epoch e draws the same crops and flips as epoch e mod
            `views`. None: each epoch draws others.
        cache: decode each image once, into a memory-mapped file, see `bpt.pixels`; and where the
            first prompted block is not the first of all, compute the tokens in front of it once,
            see `bpt.prefix`: of evaluation images, and of training images if there are `views` or
            the augmentation is not "crop".

    Raises:
        UnknownName: a name that is not known; the nearest are offered.
        BurstError: a number out of range, or options that contradict each other.
    """

    dataset: str = "digits"
    train_list: str | None = None
    image_size: int | None = None
    pooling: str = "default"
    head_norm: str = "none"
    randaugment: str | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    epochs: int | None = None
    warmup_epochs: int | None = None
    optimizer: str = "adamw"
    min_lr: float = 1e-8
    head_weight_decay: float | None = None
    bottleneck: int = 8
    ema_decay: float | None = None
    protocol: str = "standard"
    fold: str | None = None
    augmentation: str = "crop"
    views: int | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        check_known("augmentation", self.augmentation, AUGMENTATIONS)
        check_known("pooling", self.pooling, POOLINGS)
        check_known("head_norm", self.head_norm, HEADS)
        check_known("protocol", self.protocol, PROTOCOLS)
        check_known("optimizer", self.optimizer, OPTIMIZERS)
        super().__post_init__()
        if self.fold is not None:
            parse_fold(self.fold)
            if self.protocol != "standard":
                raise BurstError(
                    f"protocol {self.protocol} trains on all images, so it has no fold "
                    f"{self.fold}; leave one of them out"
                )
        if self.pooling in OF_PROMPTS and not self.prompted:
            raise BurstError(f"method {self.method} has no prompts to pool; leave the pooling out")
        wanted = {"head_norm": self.head_norm == "batch", "randaugment": bool(self.randaugment)}
        shares = ("random_erasing", "mixup", "cutmix")
        wanted |= {name: getattr(self, name) > 0 for name in shares}
        if not self.origins or "method" in self.origins:  # the base of a search names no method yet
            check_used(self.method, [name for name, asked in wanted.items() if asked])
        if self.head_norm == "batch" and self.accumulation > 1:
            raise BurstError(
                "head_norm batch normalises by the whole batch, which accumulation would cut; "
                "leave accumulation out"
            )

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def keeps_tokens(self) -> bool:
        """Whether tokens in front of the first prompt are computed once, if there are blocks."""
        redrawn = self.mixes or self.randaugment or self.random_erasing  # pixels anew each epoch
        return self.cache and self.total_epochs > 1 and self.prompted and not redrawn

    @property
    def chooses(self) -> str | None:
        """The split that chooses the epoch; None where the last one is kept."""
        return PROTOCOLS[self.protocol]

    @property
    def total_epochs(self) -> int:
        """`epochs`, which is filled in by now."""
        assert self.epochs is not None
        return self.epochs

    def _fill_in(self) -> None:
        self._derive({"epochs": 10 if self.dataset == "digits" else 100})
        self._derive({"warmup_epochs": self.total_epochs // 10})
        self._derive(DEFAULTS.get(self.method, PROMPT_DEFAULTS))

    def _check_numbers(self) -> None:
        optional = [name for name in ("image_size", "views") if getattr(self, name) is not None]
        self._check_positive("epochs", "bottleneck", *optional)
        super()._check_numbers()
        self._check_not_negative("min_lr", "head_weight_decay", "mixup", "cutmix")
        if not 0 <= self.label_smoothing < 1:
            raise BurstError(
                f"label_smoothing is {self.label_smoothing}; it must lie in 0..1, without 1"
            )
        if not 0 <= self.random_erasing <= 1:
            raise BurstError(f"random_erasing is {self.random_erasing}; it must lie in 0..1")
        if self.randaugment is not None:
            check_randaugment(self.randaugment)
        for name in OF_CROPS:
            if getattr(self, name) and self.augmentation != "crop":
                raise BurstError(
                    f"{name} changes random crops, and augmentation is {self.augmentation}; "
                    "leave one of them out"
                )
        if self.min_lr > self.peak_lr:
            raise BurstError(f"min_lr {self.min_lr} is above the learning rate {self.lr}")
        if not 0 <= (self.warmup_epochs or 0) < self.total_epochs:
            raise BurstError(
                f"warmup_epochs is {self.warmup_epochs}; it must be below the {self.epochs} epochs"
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise BurstError(f"ema_decay is {self.ema_decay}; it must lie in 0..1, without 1")
