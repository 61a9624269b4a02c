"""A backbone run over images, for what its attention reads."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from burst.adapters import num_prefix_tokens
from burst.images import ImageStream
from burst.tokens import capture

TOKENS = ("all", "patch")
Progress = Callable[[int, int], None]


def read_tokens(
    model: nn.Module,
    images: ImageStream,
    blocks: Iterable[int],
    on_tokens: Callable[[int, Tensor], None],
    *,
    tokens: str = "all",
    progress: Progress | None = None,
) -> None:
    """Run a model over images and hand over what each block's attention reads, as it reads it.

    Args:
        model: a timm model; images go to its device.
        images: batches, of one process.
        blocks: indices as in `find_blocks`.
        on_tokens: called as on_tokens(block, x) with x (B, N, d), inside the forward pass.
        tokens: "all", or "patch" to leave class, distillation and register tokens out.
        progress: called as progress(batches done, batches in all).

    Raises:
        UnsupportedModel: see `capture` and, for patch tokens, `num_prefix_tokens`.
        ImageError: see `ImageStream`.
    """
    prefix = num_prefix_tokens(model) if tokens == "patch" else 0
    chosen = tuple(blocks)
    device = next(model.parameters()).device

    def receive(block: int, x: Tensor) -> None:
        on_tokens(block, x[:, prefix:])

    with torch.inference_mode():
        for done, batch in enumerate(images, start=1):
            with capture(model, chosen, on_tokens=receive):
                model(batch.to(device))
            if progress:
                progress(done, images.batches)
