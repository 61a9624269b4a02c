"""A published checkpoint, in whatever layout -> timm's names, strictly loaded.

| file                               | layout                                                    |
|------------------------------------|-----------------------------------------------------------|
| MAE `.pth`                         | timm's names under `model`; `_full` files add the decoder |
| MoCo v3 `.pth.tar`, pretraining    | `state_dict`, `module.base_encoder.*` beside its teacher  |
| MoCo v3 `.pth.tar`, linear probe   | `state_dict`, `module.*` and a 1000-way `module.head`     |
| Google `.npz`, original and AugReg | Flax names, (in, out) kernels, one axis a head            |
| MAWS `.pt`, timm `.pth` and `.bin` | timm's names, flat                                        |
| timm `.safetensors`                | timm's names, flat                                        |

A layout is told by what a file holds, never by its name: three MAWS checkpoints are all called
`vit_2b14.pt`. What identifies a file is its SHA-256, which every report carries.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from burst._flax import from_flax
from burst._weightfile import read_stored
from burst.errors import CheckpointError
from burst.files import sha256_of

WRAPPERS = ("model", "state_dict")
BESIDE = "stored beside the weights"
HEAD = "classification head, which the model has not"


@dataclass(frozen=True)
class LoadReport:
    """What was loaded from a checkpoint, and what was left out of it.

    `dropped` maps each name in the file that was not loaded to the reason; `sha256` is of the file.
    """

    path: Path
    layout: str
    sha256: str
    tensors: int
    dropped: Mapping[str, str]


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The encoder in a checkpoint, in timm's names.

    Decoder, projector, predictor, momentum encoder and `pre_logits` are left out; a classification
    head stays, as `head.weight` and `head.bias`. `pos_embed` is the stored one.

    Returns:
        Name -> tensor on the CPU: floats as float32 (from float16, bfloat16 or float64), integers
        as they are.

    Raises:
        CheckpointError: no readable weight file, code in it, no layout that we know, a value that
            is no plain tensor, or weights that are not finite.
    """
    return _translate(Path(path)).state


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> LoadReport:
    """Load a checkpoint of any known layout into a timm model, all of it or not at all.

    The values are copied into the model's parameters, dtype and device of which stay; a model on
    the meta device is given the tensors themselves, float32 on the CPU. A head in the file is
    dropped if the model has none. After an error the model is as it was.

    Raises:
        CheckpointError: see `read_checkpoint`; or the file fits another model: width, depth, patch
            size, number of heads (where the file tells), position grid, names or shapes differ.
    """
    found = _translate(Path(path))
    expected = model.state_dict()
    found = _without_head(found, model, expected)
    _check_size(found, expected)
    _check_heads(found, model)
    _check_names(found, expected)
    _check_grid(found, expected)
    _check_shapes(found, expected)
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(found.state, strict=True, assign=on_meta)
    sha256 = sha256_of(found.path)
    return LoadReport(found.path, found.layout, sha256, len(found.state), found.dropped)


@dataclass(frozen=True)
class _Found:
    path: Path
    layout: str
    state: dict[str, Tensor]
    dropped: dict[str, str]
    heads: int | None = None  # only Flax files tell


@dataclass(frozen=True)
class _Prefixes:
    """A layout of torch's that is known by its prefixes."""

    name: str
    mark: str  # only this layout has names that begin so
    strip: str = ""
    drop: Mapping[str, str] = field(default_factory=dict)  # prefix -> why it is left out


LAYOUTS = (
    _Prefixes(
        "MoCo v3 pretraining",
        mark="module.base_encoder.",
        strip="module.base_encoder.",
        drop={
            "module.base_encoder.head.": "projector of the contrastive loss",
            "module.predictor.": "predictor of the contrastive loss",
            "module.momentum_encoder.": "momentum encoder, a running average of the one loaded",
        },
    ),
    _Prefixes("MoCo v3 linear probe, or any DataParallel model", mark="module.", strip="module."),
    _Prefixes(
        "MAE with decoder",
        mark="decoder_embed.",
        drop={"decoder_": "MAE decoder", "mask_token": "input of the MAE decoder"},
    ),
)
PLAIN_LAYOUTS = {
    "model": "timm names under `model` (MAE encoder)",
    "state_dict": "timm names under `state_dict`",
    "": "timm names, flat (timm or MAWS)",
}


def _translate(path: Path) -> _Found:
    kind, stored = read_stored(path)
    state: Mapping[str, object]
    heads = None
    if kind == "npz":
        layout = "Google Flax npz"
        state, dropped, heads = from_flax(stored, path)
    else:
        layout, state, dropped = _from_torch(path, stored)
    if kind == "safetensors":
        layout = f"{layout}, safetensors"
    plain = {name: _plain(path, name, value) for name, value in state.items()}
    return _Found(path, layout, plain, dropped, heads)


def _from_torch(path: Path, stored: object) -> tuple[str, Mapping[str, object], dict[str, str]]:
    wrapper, entries, dropped = _unwrap(path, stored)
    layout = next((x for x in LAYOUTS if any(name.startswith(x.mark) for name in entries)), None)
    if layout is None:
        return PLAIN_LAYOUTS[wrapper], entries, dropped
    state = {}
    for name, value in entries.items():
        reason = next((why for prefix, why in layout.drop.items() if name.startswith(prefix)), None)
        if reason is None:
            state[name.removeprefix(layout.strip)] = value
        else:
            dropped[name] = reason
    return layout.name, state, dropped


def _unwrap(path: Path, stored: object) -> tuple[str, dict[str, object], dict[str, str]]:
    """The wrapper's name, the state dict in it, and what else lies beside that."""
    if not isinstance(stored, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(stored).__name__}, expected a state dict (names and tensors)"
        )
    wrapper = next((name for name in WRAPPERS if isinstance(stored.get(name), Mapping)), "")
    entries = stored[wrapper] if wrapper else stored
    if not any(isinstance(value, Tensor) for value in entries.values()):
        raise CheckpointError(
            f"{path} holds {_some(map(str, stored)) or 'nothing'}, "
            f"but no state dict, alone or under `model` or `state_dict`"
        )
    beside = [str(name) for name in stored if wrapper and name != wrapper]
    return wrapper, {str(k): v for k, v in entries.items()}, dict.fromkeys(beside, BESIDE)


def _plain(path: Path, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise CheckpointError(
            f"{path}: {name} is a {type(value).__name__}, expected a tensor; save the weights alone"
        )
    if value.layout is not torch.strided or value.is_quantized or value.is_complex():
        raise CheckpointError(
            f"{path}: {name} is sparse, quantised or complex, expected plain numbers"
        )
    if value.is_meta:
        raise CheckpointError(f"{path}: {name} has a shape but no values (a meta tensor)")
    tensor: Tensor = value.detach()
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(torch.float32)
    if (
        tensor.sum().isfinite()
    ):  # a sum is never finite with a NaN or infinity in it: one quick pass
        return tensor
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise CheckpointError(
            f"{path}: {bad} of {tensor.numel()} values of {name} are not finite (NaN or infinite); "
            f"the file is damaged or its training diverged"
        )
    return tensor


def _without_head(found: _Found, model: nn.Module, expected: Mapping[str, Tensor]) -> _Found:
    config = getattr(model, "pretrained_cfg", None) or {}
    named = config.get("classifier") or ()
    named = (named,) if isinstance(named, str) else tuple(named)
    prefixes = [f"{name}." for name in ("head", "head_dist", *named)]
    absent = tuple(p for p in prefixes if not any(name.startswith(p) for name in expected))
    heads = [name for name in found.state if absent and name.startswith(absent)]
    return replace(
        found,
        state={name: value for name, value in found.state.items() if name not in heads},
        dropped=found.dropped | dict.fromkeys(heads, HEAD),
    )


def _check_size(found: _Found, expected: Mapping[str, Tensor]) -> None:
    ours, theirs = _size(expected), _size(found.state)
    if ours and theirs and ours != theirs:
        raise CheckpointError(
            f"{found.path} holds a ViT of {theirs}, but the model is of {ours}; "
            f"choose the model that fits the file"
        )


def _size(state: Mapping[str, Tensor]) -> str | None:
    patches = state.get("patch_embed.proj.weight")
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if patches is None or patches.ndim != 4 or not depth:
        return None
    return f"width {patches.shape[0]}, depth {depth}, patch {patches.shape[-1]}"


def _check_heads(found: _Found, model: nn.Module) -> None:
    blocks = getattr(model, "blocks", None)
    attention = (
        getattr(blocks[0], "attn", None)
        if isinstance(blocks, nn.Sequential | nn.ModuleList)
        else None
    )
    ours = getattr(attention, "num_heads", None)
    if ours and found.heads and ours != found.heads:
        raise CheckpointError(
            f"{found.path} holds a ViT of {found.heads} heads, but the model has {ours}; "
            f"choose the model that fits the file"
        )


def _check_names(found: _Found, expected: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in found.state]
    unexpected = [name for name in found.state if name not in expected]
    if missing or unexpected:
        raise CheckpointError(
            f"{found.path} ({found.layout}) does not fit the model: "
            f"{len(missing)} missing ({_some(missing) or 'none'}), "
            f"{len(unexpected)} unexpected ({_some(unexpected) or 'none'}); nothing was loaded"
        )


def _check_grid(found: _Found, expected: Mapping[str, Tensor]) -> None:
    ours, theirs = expected.get("pos_embed"), found.state.get("pos_embed")
    if ours is None or theirs is None or ours.ndim != 3 or theirs.ndim != 3:
        return
    if ours.shape[1] != theirs.shape[1]:
        prefix = 1 if "cls_token" in found.state else 0
        raise CheckpointError(
            f"{found.path}: pos_embed has {_positions(theirs, prefix)}, but the model "
            f"{_positions(ours, prefix)}; build the model for the image size of the file"
        )


def _positions(pos_embed: Tensor, prefix: int) -> str:
    count = pos_embed.shape[1]
    side = isqrt(count - prefix)
    grid = f", a {side} x {side} grid" if side * side == count - prefix else ""
    return f"{count} positions{grid}"


def _check_shapes(found: _Found, expected: Mapping[str, Tensor]) -> None:
    wrong = [name for name, value in found.state.items() if value.shape != expected[name].shape]
    if wrong:
        theirs, ours = (tuple(x[wrong[0]].shape) for x in (found.state, expected))
        more = f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{found.path}: {wrong[0]} has shape {theirs}, but the model expects {ours}{more}"
        )


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more."""
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more
