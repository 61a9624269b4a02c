"""What several tests build: a small random ViT, histograms without our kernels, two processes."""

import os
import socket
import subprocess
import sys
import time

import numpy as np
import timm
import torch

from burst.axis import FloatAxis
from burst.backbone import Backbone
from burst.histogram import Histogram
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


def two_processes(program: str, *arguments: str) -> list[subprocess.CompletedProcess]:
    """A program run as both processes of a group, without a launcher that ends one with the other.

    Gloo listens on this machine alone; both are killed after 4 minutes.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    single = {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2", **group}
    command = [sys.executable, "-c", program, *arguments]
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **single, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    deadline = time.monotonic() + 240
    try:
        texts = [one.communicate(timeout=deadline - time.monotonic()) for one in processes]
    finally:
        for one in processes:
            one.kill()
    return [
        subprocess.CompletedProcess(command, one.returncode, *text)
        for one, text in zip(processes, texts, strict=True)
    ]
