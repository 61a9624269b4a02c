"""Google's Flax `.npz` layout of a ViT -> timm's names and orientation.

Flax stores a linear map as (in, out), a convolution as (height, width, in, out), and attention with
one axis a head; torch wants (out, in), (out, in, height, width) and the heads merged.

Source: github.com/google-research/vision_transformer, whose files are the original and the AugReg
checkpoints; the original ones hold a `pre_logits` layer that is no part of the encoder.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burst.errors import CheckpointError

Array = NDArray[Any]

BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")
ATTENTION = "MultiHeadDotProductAttention_1"
PLAIN = {
    "cls": "cls_token",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
}
BLOCK_NORMS = {"LayerNorm_0": "norm1", "LayerNorm_2": "norm2"}
BLOCK_DENSE = {"MlpBlock_3/Dense_0": "mlp.fc1", "MlpBlock_3/Dense_1": "mlp.fc2"}
PRE_LOGITS = "representation layer between the class token and the head, no part of the encoder"


def from_flax(
    arrays: Mapping[str, Array], path: Path
) -> tuple[dict[str, Tensor], dict[str, str], int]:
    """Rename, transpose and merge.

    Returns:
        The state dict in timm's names, float32; what was left out and why; the number of heads,
        which torch's merged matrices no longer tell. An array that is no part of the layout keeps
        its name, so that a strict load names it.

    Raises:
        CheckpointError: an array is missing, has another number of axes, or is not of floats.
    """
    source = _Arrays(arrays, path)
    dropped = {name: PRE_LOGITS for name in arrays if name.startswith("pre_logits/")}
    state = {ours: source.take(theirs) for theirs, ours in PLAIN.items()}
    state["patch_embed.proj.weight"] = source.take("embedding/kernel", axes=4).transpose(3, 2, 0, 1)
    if "head/kernel" in arrays:
        state["head.weight"] = source.take("head/kernel", axes=2).T
        state["head.bias"] = source.take("head/bias")
    heads = 0
    for block in range(len({match[1] for match in map(BLOCK.match, arrays) if match})):
        heads = _block(source, block, state)
    state |= source.rest(but=dropped)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in state.items()}
    return tensors, dropped, heads


class _Arrays:
    """The arrays of one file, each taken once."""

    def __init__(self, arrays: Mapping[str, Array], path: Path) -> None:
        self._left = dict(arrays)
        self._path = path

    def take(self, name: str, *, axes: int | None = None) -> Array:
        if name not in self._left:
            raise CheckpointError(
                f"{self._path} is an .npz without {name}, which every Flax ViT file has; "
                f"expected the layout of google-research/vision_transformer"
            )
        array = self._left.pop(name)
        if axes is not None and array.ndim != axes:
            raise CheckpointError(
                f"{self._path}: {name} has shape {array.shape}, expected {axes} axes"
            )
        return self._checked(name, array)

    def check_equal(self, name: str, kernels: list[Array]) -> None:
        if len({kernel.shape for kernel in kernels}) > 1:
            shapes = ", ".join(str(kernel.shape) for kernel in kernels)
            raise CheckpointError(
                f"{self._path}: query, key and value kernels of {name} differ in shape ({shapes})"
            )

    def rest(self, *, but: Mapping[str, str]) -> dict[str, Array]:
        return {k: self._checked(k, v) for k, v in self._left.items() if k not in but}

    def _checked(self, name: str, array: Array) -> Array:
        if not np.issubdtype(array.dtype, np.floating):
            raise CheckpointError(
                f"{self._path}: {name} is of type {array.dtype}, expected floats; "
                f"convert the file to float32"
            )
        with np.errstate(over="ignore"):  # an overflow becomes infinite, and is reported as such
            return array.astype(np.float32)


def _block(source: _Arrays, block: int, state: dict[str, Array]) -> int:
    theirs, ours = f"Transformer/encoderblock_{block}", f"blocks.{block}"
    for norm, name in BLOCK_NORMS.items():
        state[f"{ours}.{name}.weight"] = source.take(f"{theirs}/{norm}/scale")
        state[f"{ours}.{name}.bias"] = source.take(f"{theirs}/{norm}/bias")
    for dense, name in BLOCK_DENSE.items():
        state[f"{ours}.{name}.weight"] = source.take(f"{theirs}/{dense}/kernel", axes=2).T
        state[f"{ours}.{name}.bias"] = source.take(f"{theirs}/{dense}/bias")
    parts = [f"{theirs}/{ATTENTION}/{part}" for part in ("query", "key", "value")]
    kernels = [source.take(f"{part}/kernel", axes=3) for part in parts]  # each (d, heads, d_h)
    biases = [source.take(f"{part}/bias", axes=2) for part in parts]  # each (heads, d_h)
    source.check_equal(f"{theirs}/{ATTENTION}", kernels)
    state[f"{ours}.attn.qkv.weight"] = np.concatenate([k.reshape(len(k), -1).T for k in kernels])
    state[f"{ours}.attn.qkv.bias"] = np.concatenate([bias.ravel() for bias in biases])
    out = source.take(f"{theirs}/{ATTENTION}/out/kernel", axes=3)  # (heads, d_h, d)
    state[f"{ours}.attn.proj.weight"] = out.reshape(-1, out.shape[2]).T
    state[f"{ours}.attn.proj.bias"] = source.take(f"{theirs}/{ATTENTION}/out/bias")
    return int(out.shape[0])
