"""What several tests build: a small random ViT, and histograms without our kernels."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import timm
import torch

from burst.axis import FloatAxis
from burst.backbone import Backbone
from burst.histogram import Histogram
from burst.images import ImageStream
from burst.moments import Moments

DIM, DEPTH, HEADS, SIZE = 32, 3, 4, 16


def vit(**changes) -> torch.nn.Module:
    """A timm ViT of random but fixed weights, 17 tokens of 32 dimensions, 3 blocks, 4 heads."""
    torch.manual_seed(0)
    shape = {"img_size": SIZE, "patch_size": 4, "embed_dim": DIM, "depth": DEPTH}
    options = {**shape, "num_heads": HEADS, "num_classes": 0, **changes}
    return timm.models.vision_transformer.VisionTransformer(**options)


def backbone_of(model: torch.nn.Module, **changes) -> Backbone:
    """A model as `load_backbone` would give it."""
    facts = {
        "name": "test",
        "model": model.eval().requires_grad_(False),
        "pretraining": "random",
        "pooling": "token",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "image_size": (SIZE, SIZE),
        "interpolation": "bicubic",
        "weights_source": "random",
        "weights_sha256": None,
    }
    return Backbone(**facts | changes)


def in_thread(function, *args):
    """What a function returns, or raises, in a thread of its own."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(function, *args).result()


def few_at_a_time(images: ImageStream) -> ImageStream:
    """The same images in batches of four: few of them are several batches."""
    names = images.names
    return images.of_batches([names[i : i + 4] for i in range(0, len(names), 4)])


def float_histogram(values, bits=7) -> Histogram:
    """Counts on the float grid, by NumPy alone."""
    y = np.asarray(values, np.float32)
    axis = FloatAxis(bits)
    raw = y.view(np.int32)
    key = ((raw ^ ((raw >> 31) & 0x7FFFFFFF)) - (raw >> 31)) >> axis.shift
    counts = np.bincount(1 + key - axis.first, minlength=axis.bins + 2)
    return Histogram(axis, counts, moments=Moments.of(y))


def regular_histogram(values, axis) -> Histogram:
    """Counts on a regular axis with flow, by NumPy alone."""
    inside, _ = np.histogram(values, axis.edges)
    counts = [(values < axis.lo).sum(), *inside, (values > axis.hi).sum()]
    return Histogram(axis, counts, moments=Moments.of(values))
