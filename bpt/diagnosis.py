"""What learned prompts do to what a head reads: their scale, their rank, the share of an image."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from bpt.dataset import Split
from bpt.inference import run_benchmark
from bpt.loading import eval_batches
from bpt.model import PromptedTokens, PromptedViT
from bpt.pooling import pooled
from bpt.run_folder import Run
from bpt.transforms import eval_transform
from burst.backbone import Backbone
from burst.device import choose_device
from burst.errors import BurstError, EmptyResult

NUM_IMAGES = 128
BATCH_SIZE = 64


@dataclass(frozen=True)
class BlockDiagnosis:
    """A prompt among the tokens that it stands among, in front of its block.

    Attributes:
        block: its index.
        prompt_rms: root mean square of the entries of its m tokens.
        patch_rms: the same of the patch tokens, of all images.
        effective_rank: exp of the entropy of the shares of the energy, s_i^2 / sum s^2, over the
            singular values s of the m x d tokens: 1 where all are multiples of one, m where they
            are orthogonal and as large, 0 for a prompt that is zero. It is that of P P^T by the
            definition of Roy and Vetterli 2007 (EUSIPCO, definition 1), who take shares of the s_i
            for a matrix itself.
    """

    block: int
    prompt_rms: float
    patch_rms: float
    effective_rank: float

    @property
    def scale(self) -> float:
        """How many times larger the prompt is than the patches."""
        return self.prompt_rms / self.patch_rms


@dataclass(frozen=True)
class PromptDiagnosis:
    """What prompts do to what a head reads.

    Attributes:
        images: how many it was measured on.
        num_prompts: m.
        image_share: share of the energy of what the head reads, before the final norm, that depends
            on the image: 1 - |mean z|^2 / mean |z|^2 over the images' vectors z. 0 if all are
            equal. None for a detector, whose head reads no such vector.
        patches_share: the same of the mean of the patches alone, in the same pass.
        blocks: each prompted block.
    """

    images: int
    num_prompts: int
    image_share: float | None
    patches_share: float
    blocks: tuple[BlockDiagnosis, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON gives it back."""
        return {**asdict(self), "blocks": [asdict(one) for one in self.blocks]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PromptDiagnosis":
        """What `to_dict` gave."""
        blocks = tuple(BlockDiagnosis(**one) for one in values["blocks"])
        return cls(**{**values, "blocks": blocks})


@torch.inference_mode()
def diagnose_prompts(model: PromptedTokens, batches: Iterable[Tensor]) -> PromptDiagnosis:
    """Scale and effective rank of each prompt, and how much of an image the head still reads.

    Args:
        model: with prompts; in the mode that it is in.
        batches: (b, 3, H, W) normalised images, on the model's device.

    Raises:
        BurstError: the model has no prompts.
        EmptyResult: no image.
    """
    if not model.blocks:
        raise BurstError("this model has no prompts to diagnose")
    prompts = model.prompt_values()
    read, patches, squares = _Spread(), _Spread(), dict.fromkeys(model.blocks, 0.0)
    images = 0
    with _patches_before(model, squares):
        for batch in batches:
            images += len(batch)
            x, present = model.tokens(batch)
            patches.add(x[:, model.prefix + present :].mean(dim=1))
            if isinstance(model, PromptedViT):
                read.add(pooled(x, model.pooling, prefix=model.prefix, prompts=present))
    if not images:
        raise EmptyResult("no image to diagnose prompts on")
    blocks = tuple(
        BlockDiagnosis(
            block,
            float(prompts[block].double().square().mean().sqrt()),
            (squares[block] / images) ** 0.5,
            effective_rank(prompts[block]),
        )
        for block in model.blocks
    )
    share = read.share if isinstance(model, PromptedViT) else None
    return PromptDiagnosis(images, model.num_prompts, share, patches.share, blocks)


def prompt_diagnosis(
    run: Run, *, data: str | Path | None = None, device: str = "cpu"
) -> PromptDiagnosis:
    """That of the prompts that a run kept, on up to 128 images spread over a split.

    It is the split that chose the epoch, or the training split where the last one was kept: the one
    that `prompt_diagnosis` in its result is of.

    Args:
        run: from `open_run`, of a classifier.
        data: where the dataset lies now, if it was moved.
        device: to run on: "auto", "cpu", "cuda", ...

    Raises:
        BurstError: it has no prompts; or see `evaluate_run`.
    """
    benchmark = run_benchmark(run, data)
    model, backbone = run.load_model(choose_device(device))
    if not isinstance(model, PromptedViT):
        raise BurstError(f"method {run.recipe.method} has no prompts to diagnose")
    split = getattr(benchmark, run.recipe.chooses or "train")
    return diagnose_prompts(model, spread_images(split, backbone))


def spread_images(split: Split, backbone: Backbone) -> Iterator[Tensor]:
    """Batches of up to 128 images at even distances in a split, in centre crops, on the device."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(NUM_IMAGES, len(split))).astype(int))
    device = next(backbone.model.parameters()).device
    batches = eval_batches(split.subset(chosen), eval_transform(backbone), batch_size=BATCH_SIZE)
    for images, _, _ in batches:
        yield images.to(device)


def effective_rank(prompt: Tensor) -> float:
    """exp of the entropy of the shares of the energy over the singular values, see above; (m, d).

    0 for a prompt that is zero.
    """
    energies = torch.linalg.svdvals(prompt.detach().double().cpu()).square()
    total = energies.sum()
    if not total > 0:
        return 0.0
    shares = energies / total
    return float(torch.special.entr(shares).sum().exp())


class _Spread:
    """Share of the energy of vectors that is not that of their mean."""

    def __init__(self) -> None:
        self.count, self.energy = 0, 0.0
        self.sum: Tensor | float = 0.0

    def add(self, vectors: Tensor) -> None:
        """(b, d) more of them."""
        exact = vectors.double().cpu()
        self.count += len(exact)
        self.sum = self.sum + exact.sum(dim=0)
        self.energy += float(exact.square().sum())

    @property
    def share(self) -> float:
        """0 to 1."""
        if not self.energy > 0:
            return 0.0
        mean = torch.as_tensor(self.sum) / self.count
        return max(0.0, 1.0 - float(mean.square().sum()) / (self.energy / self.count))


@contextmanager
def _patches_before(model: PromptedTokens, squares: dict[int, float]) -> Iterator[None]:
    """While it is open, adds up each image's mean square of the patches before prompted blocks."""
    behind = model.prefix + model.num_prompts

    def watch(block: int) -> RemovableHandle:
        def look(_: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
            patches = given[0][:, behind:].double()
            squares[block] += float(patches.square().mean(dim=(1, 2)).sum())

        return model.vit.blocks[block].register_forward_pre_hook(look)

    handles = [watch(block) for block in squares]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
