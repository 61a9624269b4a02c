"""How good a backbone's features are: nearest neighbours and a linear probe, by scikit-learn."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from burst.errors import ImageError
from tools.pretrain.pixels import Pixels, load_pixels
from tools.pretrain.views import as_images, normalised

NEIGHBOURS = 20
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression
SPLITS = ("train", "val", "test")
Features = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Top-1 accuracies on the test split, in percent; `strength` is the C that was chosen."""

    knn: float
    linear: float
    strength: float


def evaluate(
    model: nn.Module, source: Path, *, pooling: str, size: int = 64, device: str = "cpu"
) -> Scores:
    """k-nearest-neighbour (k = 20, cosine, majority) and linear-probe top-1 of frozen features.

    Args:
        model: a timm VisionTransformer in eval mode.
        source: folder or zip with train/, val/ and test/ folders of class folders.
        pooling: "token" (class token after the final norm) or "avg" (mean of the other tokens,
            then the final norm).
        size: pixels; images are taken as they are stored, without augmentation.
        device: where the features are computed.

    Returns:
        Both fitted on the train split and scored once on the test split; the probe (logistic
        regression on standardised features) takes the C that does best on the val split.

    Raises:
        ImageError: a split is missing or has other classes than the train split.
    """
    splits = {name: load_pixels([source], size=size, under=name) for name in SPLITS}
    for name, pixels in splits.items():
        if pixels.classes != splits["train"].classes:
            raise ImageError(f"{source}: {name}/ has other classes than train/")
    found = {name: features(model, pixels, pooling, device) for name, pixels in splits.items()}
    labels = {name: pixels.labels for name, pixels in splits.items()}
    knn = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(found["train"], labels["train"])
    probes = [_probe(strength, found["train"], labels["train"]) for strength in STRENGTHS]
    best = int(np.argmax([probe.score(found["val"], labels["val"]) for probe in probes]))
    return Scores(
        knn=100 * knn.score(found["test"], labels["test"]),
        linear=100 * probes[best].score(found["test"], labels["test"]),
        strength=STRENGTHS[best],
    )


@torch.inference_mode()
def features(model: nn.Module, pixels: Pixels, pooling: str, device: str) -> Features:
    """(n, d) float32 features of every image, in order."""
    normalise = normalised()
    return np.concatenate(
        [
            pooled(model, normalise(as_images(batch)).to(device), pooling).float().cpu().numpy()
            for batch in _batches(pixels)
        ]
    )


def pooled(model: nn.Module, images: Tensor, pooling: str) -> Tensor:
    """(b, d): what a linear head would read."""
    if pooling == "token":
        tokens: Tensor = model.forward_features(images)  # type: ignore[operator]
        return tokens[:, 0]
    norm, model.norm = model.norm, nn.Identity()
    try:
        tokens = model.forward_features(images)  # type: ignore[operator]
    finally:
        model.norm = norm
    read: Tensor = norm(tokens[:, 1:].mean(dim=1))  # type: ignore[operator]
    return read


def _batches(pixels: Pixels, batch_size: int = 256) -> Iterator[Tensor]:
    for start in range(0, len(pixels), batch_size):
        yield torch.from_numpy(np.array(pixels.values[start : start + batch_size]))


def _probe(strength: float, values: Features, labels: NDArray[np.int64]) -> Pipeline:
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    return probe.fit(values, labels)
