"""Twelve blocks of ViT-B (d = 768): what does it cost to go from moments to whitening matrices?

    python benchmarks/whitening.py [--repeats 5] [--out results.csv]

The peer is what the authors of arXiv 2506.22908 do, block after block: `torch.svd` of the
covariance in float32 and U diag(S^(-1/2)) V^T; it is handed the covariance. `burst` starts from the
moments of X and the query and key weights, and works in float64. Weights and tokens are random with
the spectra of a trained model. Runs alternate in one process; times are medians.

How right is each? On the directions above the floor, ||U^T W Sigma W^T U - I||_F / sqrt(k).
"""

import argparse
import csv
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from timeit import timeit

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from burst.adapters import find_blocks
from burst.backbone import Backbone
from burst.decorrelation import covariance_factor, decorrelate
from burst.interaction import response_matrix
from burst.second_moments import SecondMoments, TokenMoments
from burst.whitening import whiten_moments

D, BLOCKS, IMAGES, TOKENS = 768, 12, 100, 197


def graded(decades: float) -> Tensor:
    """A random (D, D) matrix whose singular values fall by so many decades."""
    u, v = (torch.linalg.qr(torch.randn(D, D))[0] for _ in range(2))
    return u * torch.logspace(0, -decades, D) @ v


def model() -> Backbone:
    torch.manual_seed(0)
    vit = VisionTransformer(depth=BLOCKS, num_classes=0, global_pool="token")
    for block in vit.blocks:  # A's singular values fall by five decades
        block.attn.qkv.weight.data[: 2 * D] = torch.cat([graded(2.5), graded(2.5)])
    return Backbone(
        "random", vit.eval().requires_grad_(False), "random", "token",
        (0.5,) * 3, (0.5,) * 3, (224, 224), "bicubic", "random", None,
    )  # fmt: skip


def moments() -> TokenMoments:
    """Of tokens behind a LayerNorm, whose singular values fall by two decades."""
    blocks = {}
    for block in range(BLOCKS):
        tokens = torch.layer_norm(torch.randn(IMAGES, TOKENS, D) @ graded(2.0), (D,))
        blocks[block] = SecondMoments.of(tokens)
    return TokenMoments(blocks, "random", None, "all", IMAGES, ())


def as_the_authors(sigmas: list[Tensor]) -> list[Tensor]:
    found = []
    for sigma in sigmas:
        u, s, v = torch.svd(sigma)
        found.append(u @ torch.diag(s ** (-1 / 2)) @ v.T)
    return found


def one_svd_after_the_other(factors: list[Tensor]) -> list[Tensor]:
    """The same W as ours by the plain float64 SVD of each factor, which is handed over."""
    found = []
    for factor in factors:
        square = torch.nn.functional.pad(factor, (0, D - factor.shape[1]))
        u, s, _ = torch.linalg.svd(square)
        found.append(((u / s.clamp(min=1e-3 * s[0].item())) @ u.T).float())
    return found


def worst_error(matrices: list[Tensor], factors: list[Tensor]) -> float:
    errors = []
    for w, factor in zip(matrices, factors, strict=True):
        right = decorrelate(factor.numpy())
        kept = torch.from_numpy(right.basis[:, : right.kept])
        white = kept.T @ w.double() @ factor
        error = torch.linalg.norm(white @ white.T - torch.eye(right.kept, dtype=torch.float64))
        errors.append(error.item() / right.kept**0.5)
    return max(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the table as CSV")
    options = parser.parse_args()
    backbone, known = model(), moments()
    factors = [
        response_matrix(block)
        @ torch.from_numpy(covariance_factor(known.blocks[block.index].covariance().numpy()))
        for block in find_blocks(backbone.model)
    ]
    sigmas = [(factor @ factor.T).float() for factor in factors]
    ways: dict[str, Callable[[], list[Tensor]]] = {
        "authors: torch.svd of Sigma, float32": lambda: as_the_authors(sigmas),
        "torch.linalg.svd of the factor, float64": lambda: one_svd_after_the_other(factors),
        "burst, from the moments, float64": lambda: list(whiten_moments(backbone, known).W),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats + 1):
        for name, way in ways.items():
            times[name].append(timeit(way, number=1))
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores (load {load:.1f}), "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, numpy {np.__version__}"
    )
    base = statistics.median(next(iter(times.values()))[1:])
    rows = []
    for name, seconds in times.items():
        median = statistics.median(seconds[1:])
        error = worst_error(ways[name](), factors)
        rows.append((name, round(median, 3), round(base / median, 2), f"{error:.1e}"))
    header = ("what", "seconds", "times faster", "worst error")
    for row in (header, *rows):
        print("{:44}{:>10}{:>14}{:>13}".format(*row))
    if options.out:
        with options.out.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    main()
