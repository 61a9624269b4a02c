"""Parts of a cross-validation: each image is validated on once, by a model that never saw it."""

import dataclasses
import re
import warnings

import numpy as np

from bpt.dataset.benchmark import Benchmark
from bpt.dataset.split import Labels, Split, cut
from burst.errors import BurstError

FOLD = re.compile(r"([1-9]\d*)/([1-9]\d*)")
SEED = 0  # of the draw: the same folds for every seed of a training


def parse_fold(text: str) -> tuple[int, int]:
    """`2/5` -> (2, 5): the second of five.

    Raises:
        BurstError: anything else.
    """
    found = FOLD.fullmatch(text)
    number, count = (int(part) for part in found.groups()) if found else (0, 0)
    if not 1 <= number <= count or count < 2:
        raise BurstError(f"fold {text!r} is no part of at least two, such as 2/5")
    return number, count


def fold_of(benchmark: Benchmark, fold: str | None) -> Benchmark:
    """Training and validation images together, cut anew: the fold is validated on, the rest not.

    Source: scikit-learn's StratifiedKFold, shuffled with seed 0: every fold has its share of each
    class. Of copies, see `Benchmark`, the first is drawn and the others go with it; those in
    several classes are in no fold, and so only trained on.

    Args:
        benchmark: whose test images stay as they are.
        fold: such as "2/5"; None: the benchmark stays as it is.

    Raises:
        BurstError: `fold` is no fold, or no class has so many images.
    """
    if fold is None:
        return benchmark
    number, count = parse_fold(fold)
    images = all_training_images(benchmark)
    train, val = cut(
        images, benchmark.copies, lambda labels: _folds(labels, count, benchmark.name)[number - 1]
    )
    return dataclasses.replace(benchmark, train=train, val=val)


def all_training_images(benchmark: Benchmark) -> Split:
    """Those to train on and those to validate on, in one split."""
    return benchmark.train if benchmark.val is None else benchmark.train + benchmark.val


def _folds(labels: Labels, count: int, name: str) -> list[np.ndarray]:
    """Of each fold the places that it holds out, in order."""
    from sklearn.model_selection import StratifiedKFold

    most = int(np.bincount(labels).max(initial=0))
    if most < count:
        raise BurstError(
            f"{name} has at most {most} training images of a class; they cannot be cut into "
            f"{count} folds, take fewer"
        )
    with warnings.catch_warnings():  # a class of fewer images is missing in some folds
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = StratifiedKFold(count, shuffle=True, random_state=SEED)
        return [np.sort(held) for _, held in folds.split(np.zeros(len(labels)), labels)]
