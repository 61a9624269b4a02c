"""Where a training finds its files, and how the machine goes about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What changes nothing of what is learned, but for the order of floating-point sums.

    A training that goes on may do so with other values of it, and with the same files wherever they
    lie; of all else with the same. In a detector parts and processes matter a little more: its mask
    loss is a mean over the regions of a part, so in small parts an image of few regions counts for
    more.

    Attributes:
        data: the folder or archive of the dataset.
        weights: the backbone's checkpoint, or "random".
        whitening: a file of `burst whiten`; made from the training images where a method needs
            one and none is given.
        accumulation: parts that each process cuts its share of a step into, one after another.
        eval_batch_size: images a step of an evaluation, on each process.
        checkpoint_activations: keep the inputs of blocks alone for the way back, and compute the
            rest again (Chen et al. 2016, arXiv 1604.06174): less memory, more time.
        compile: use torch.compile.
        workers: processes that read images.
        origins: of each hyper-parameter that was chosen, by whom; see `recipe_for`.
    """

    data: str | None = None
    weights: str | None = None
    whitening: str | None = None
    accumulation: int = 1
    eval_batch_size: int = 128
    checkpoint_activations: bool = False
    compile: bool = False
    workers: int = 0
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)


RENAMED = {"recompute": "checkpoint_activations"}
"""A field as runs of earlier versions call it -> its name now."""

FREE_ON_RESUME = frozenset(one.name for one in fields(Machine))
