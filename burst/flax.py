"""Google's `.npz` of a Flax ViT -> timm's names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burst.errors import CheckpointError
from burst.weightfile import DAMAGE

FLAX = {  # how many axes the arrays of a Flax ViT have
    1: r"(embedding|head|.*(encoder_norm|LayerNorm_[02]|out|MlpBlock_3/Dense_[01]))/(bias|scale)",
    2: r"head/kernel|Transformer/.*(MlpBlock_3/Dense_[01]/kernel|(query|key|value)/bias)",
    3: r"cls|Transformer/(posembed_input/pos_embedding|.*(query|key|value|out)/kernel)",
    4: r"embedding/kernel",
}


def read_flax(path: Path, arrays: Mapping[str, Any]) -> tuple[dict[str, Tensor], int]:
    """What timm reads of Google's `.npz`, beside what it does not; and the number of heads."""
    from timm.models.vision_transformer import VisionTransformer

    known = {x: axes for x in arrays for axes, names in FLAX.items() if re.fullmatch(names, x)}
    for name, axes in known.items():
        array, what = arrays[name], f"{path}: {name}"
        if not np.issubdtype(array.dtype, np.floating):
            raise CheckpointError(f"{what} is of type {array.dtype}, expected floats")
        if array.ndim != axes:
            raise CheckpointError(f"{what} has shape {array.shape}, expected {axes} axes")
    try:
        patch, _, channels, width = arrays["embedding/kernel"].shape
        positions = arrays["Transformer/posembed_input/pos_embedding"].shape[1]
        ratio = (len(arrays["Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias"]) + 0.5) / width
        projections = [arrays[x] for x in known if re.search("/(query|key|value)/", x)]
        (heads, _), *others = {array.shape[-2:] for array in projections}
        depth = len({name.split("/")[1] for name in known if "encoderblock_" in name})
        with torch.device("meta"):
            image = {"img_size": (patch, patch * (positions - 1)), "patch_size": patch}
            sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "in_chans": channels}
            classes = len(arrays.get("head/bias", ()))
            model = VisionTransformer(**image, **sizes, num_classes=classes, mlp_ratio=ratio)
        for parameter in model.to_empty(device="cpu").requires_grad_(False).parameters():
            parameter.fill_(torch.nan)
        with path.open("rb") as stream:  # timm leaves open what it opens, after an error
            model.load_pretrained(stream)
        state = dict(model.state_dict())
        surplus = sum(arrays[x].size for x in known) - sum(map(torch.numel, state.values()))
        if surplus or others:
            raise ValueError("queries and keys differ in heads, or an array fills no parameter")
        return state | {x: torch.from_numpy(arrays[x]) for x in arrays if x not in known}, heads
    except KeyError as error:
        missing = f"{error.args[0].split()[0]}, which google-research/vision_transformer's have"
        raise CheckpointError(f"{path} is an .npz without {missing}") from error
    except DAMAGE as error:
        raise CheckpointError(f"{path} holds no ViT that timm can read ({error})") from error
