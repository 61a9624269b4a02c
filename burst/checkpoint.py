"""A published checkpoint, in whatever layout -> a model's own names, strictly loaded.

A file is told by what it holds, never by its name: three MAWS checkpoints are all called
`vit_2b14.pt`. The encoder is where most names are the model's: flat, in `state_dict`, behind
`module.base_encoder.` or whatever else; `burst.checkpoint_places` chooses between copies. timm's
filter for the model reads foreign names, and its loader Google's `.npz`.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from burst.checkpoint_places import Score, apart, find_places, flat_names
from burst.errors import CheckpointError, some
from burst.flax import read_flax
from burst.weightfile import DAMAGE, read_stored, sha256_of_stored

LAYOUTS = {  # what stands before the encoder's names -> what such a file is
    "state_dict|module.base_encoder.": "MoCo v3 pretraining",
    "state_dict|module.": "MoCo v3 linear probe, or any DataParallel model",
    "model|": "timm names under `model` (MAE encoder)",
    "": "names, flat (timm or MAWS)",
}
BESIDE = "stored beside the weights"
COPY = "another copy of the encoder, such as a momentum encoder"
FILTERED = "left out or merged into others by timm's filter for this model"
HEAD = "classification head or the like, which the model has not"
OUTSIDE = "outside the model, all of whose tensors are under another name"
FITTING = "choose the model that fits the file"
BUILT = f"{FITTING}, or build it in Python: --model python:MODULE:FUNCTION"
HEADS = r"(\w+_)?(heads?|neck)(_\w+)?|fc|classifier|linear|cls|pooler"
NORM = "the last norm acts on the pooled tokens in one (fc_norm) and on each token in the other"
NORMS = ("norm.", "fc_norm.")
ASIDE = {  # how a name goes on behind what it shares with the encoder's -> why it is left out
    r"(\w+_)?(momentum|target|ema|teacher|student)(_\w+)?": COPY,
    r"head\.(\d+|mlp|last_layer)|(\w+_)?proj(ector|ection)(_\w+)?": "projector of the training",
    r"predictor\w*": "predictor of the training",
    r"(\w+_)?loss\w*|criterion\w*|queue\w*|n_averaged": "state of the training",
    r"decoder\w*|mask_token|masked_embed": "decoder of masked patches, or its input",
    r"text\w*|logit_(scale|bias)": "text tower",
    r"pre_logits": "representation layer between the class token and the head",
}
VIT_NAMES = {  # width, depth -> timm's word
    (192, 12): "tiny",
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1280, 32): "huge",
}
MOCO_SMALL = re.compile("vit_(conv_)?small")  # of its published code: 12 heads, where timm's have 6
ADAPTED = re.compile(r"\.(base_layer|lora_[AB])\.")  # by peft
OF_A_BLOCK = re.compile(r"(^|\.)blocks\.\d+\..+\.(weight|bias)$")
PATCHES, POSITIONS = "patch_embed.proj.weight", re.compile("pos(_|it)")
Named = dict[str, Tensor]
Reasons = dict[str, str]


@dataclass(frozen=True)
class LoadReport:
    """What was loaded from a checkpoint, and what was left out of it.

    `layout` says in words what kind of file it is, `tensors` how many of the model's were loaded.
    `dropped` maps each name in the file that was not loaded to the reason, `resampled` a tensor
    whose grid of positions has another size in the file to both sizes, `kept` a tensor that stays
    as the model has it to the reason. `copies` names the places of the model in a file that holds
    it several times, such as a teacher and a student, the loaded one first. `trained_at` is the
    side in pixels of the square images that the file's positions are of, None if they do not tell.
    `sha256` is of the file, or of all shards together.
    """

    path: Path
    layout: str
    sha256: str
    tensors: int
    dropped: Mapping[str, str]
    resampled: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    trained_at: int | None = None


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The encoder in a checkpoint, in timm's names or, if it has others, in its own.

    Decoder, projector, predictor, momentum encoder and `pre_logits` are left out; a classification
    head stays, as `head.weight` and `head.bias`. `pos_embed` is the stored one.

    Returns:
        Name -> tensor on the CPU, floats as float32, integers as they are.

    Raises:
        CheckpointError: no readable weight file, code in it, no encoder or several, a value that is
            no plain tensor, or weights that are not finite.
    """
    state = _find(Path(path), lambda name, _: int(name == PATCHES)).state
    return {x: value for x, value in state.items() if PATCHES not in state or not _reason(x)}


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> LoadReport:
    """Load a checkpoint of any known layout into a model, all of it or not at all.

    The values are copied into the model's parameters, dtype and device of which stay; a model on
    the meta device is given the tensors themselves, float32 on the CPU. Position embeddings of
    another grid are resampled (bicubic, as timm does). What attention does not need is left out: a
    head that the model has not, decoders, projectors, copies of the encoder; and a last norm, if
    one of both has it before the pooling (norm) and the other behind (fc_norm).

    Args:
        model: of timm, or any module whose names the file has, behind a prefix or not.
        path: a file, the index of a sharded safetensors model, or the folder of one.

    Raises:
        CheckpointError: see `read_checkpoint`; or the file fits another model: width, depth, patch
            size, heads (where the file tells), names or shapes differ. The model is as it was.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile, whose names are its own
    expected = model.state_dict()

    def ours(name: str, value: Tensor) -> int:  # the name counts, the shape decides between equals
        return 10**6 + (value.shape == expected[name].shape) if name in expected else 0

    found = _find(Path(path), ours)
    _check_size(found, expected, model)
    trained_at = _trained_at(found.state, model)
    found = _in_names_of(model, found, expected)
    dropped, kept = _left_aside(found, expected, model)
    state = {name: found.state.get(name, value) for name, value in expected.items()}
    new = [name for name in kept if expected[name].is_meta]  # they begin as norms do
    state |= {x: torch.full(expected[x].shape, float(x.endswith("weight"))) for x in new}
    digest, count = sha256_of_stored(found.path), len(state) - len(kept)
    model.load_state_dict(state, assign=any(x.is_meta for x in model.parameters()))
    return LoadReport(
        path=found.path,
        layout=found.layout,
        sha256=digest,
        tensors=count,
        dropped=dropped,
        resampled=found.resampled,
        kept=kept,
        copies=found.places if len(found.places) > 1 else (),
        trained_at=trained_at,
    )


@dataclass(frozen=True)
class _Found:
    path: Path
    layout: str
    state: Named  # of the encoder, without what stands before its names
    dropped: Mapping[str, str]
    entries: Mapping[str, object]  # the state dict as it is stored
    prefix: str
    places: tuple[str, ...]  # of it and of its copies
    copies: tuple[str, ...]  # other prefixes in `entries` that lead to the same names
    heads: int | None  # Flax files and MoCo's tell
    resampled: Mapping[str, str] = field(default_factory=dict)


def _find(path: Path, ours: Score) -> _Found:
    kind, stored = read_stored(path)
    stored, heads = read_flax(path, stored) if kind == "npz" else (stored, None)
    if not isinstance(stored, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(stored).__name__}, expected a state dict (names and tensors)"
        )
    named = [(name.replace("_orig_mod.", ""), value) for name, value in flat_names(stored)]
    flat = dict(named)
    if len(flat) < len(named):
        raise CheckpointError(f"{path} holds a tensor twice, compiled and not; save one of both")
    place, *others = places = find_places(path, flat, ours)
    wrapper, _, prefix = place.rpartition("|")
    entries = {x.rpartition("|")[2]: v for x, v in flat.items() if x.rpartition("|")[0] == wrapper}
    outside = (x for x in flat if x.rpartition("|")[0] != wrapper)
    dropped = {apart(x, f"{wrapper}|").split("|")[0]: BESIDE for x in outside}
    state = {x.removeprefix(prefix): v for x, v in entries.items() if x.startswith(prefix)}
    layout = LAYOUTS.get(place, f"names under `{place[:-1]}`")
    layout = "MAE with decoder" if any(x.startswith("decoder_") for x in state) else layout
    layout = {"npz": "Google Flax npz", "torch": layout}.get(kind, f"{layout}, safetensors")
    plain = {name: _plain(path, name, value) for name, value in state.items()}
    if layout.startswith("MoCo v3") and MOCO_SMALL.fullmatch(str(flat.get("arch"))):
        heads = 12
    copies = tuple(y for x, _, y in (z.rpartition("|") for z in others) if x == wrapper and y)
    shown = tuple(x[:-1] for x in places)
    return _Found(path, layout, plain, dropped, entries, prefix, shown, copies, heads)


def _plain(path: Path, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        reason = f"is a {type(value).__name__}, expected a tensor; save the weights alone"
    elif value.layout is not torch.strided or value.is_quantized or value.is_complex():
        reason = "is sparse, quantised or complex, expected plain numbers"
    elif value.is_meta:
        reason = "has a shape but no values (a meta tensor)"
    elif not value.is_floating_point():
        return value.detach()
    elif value.float().sum().isfinite() or value.float().isfinite().all():  # a sum is quicker
        return value.detach().float()
    else:
        bad = int((~value.float().isfinite()).sum())
        name = f"{bad} of {value.numel()} values of {name}"
        reason = "are not finite (NaN or infinite); the file is damaged or its training diverged"
    raise CheckpointError(f"{path}: {name} {reason}")


def _check_size(found: _Found, expected: Named, model: nn.Module) -> None:
    sizes = [size for state in (found.state, expected) if (size := _size_of(state))]
    attention = dict(model.named_modules()).get("blocks.0.attn")
    heads = found.heads, getattr(attention, "num_heads", None)
    if len(set(sizes)) > 1:
        texts = ("width {}, depth {}, patch {}".format(*size) for size in sizes)
        what = "holds a ViT of {}, but the model is of {}".format(*texts)
        fits = _name_of(found.state, *sizes[0])
    elif None not in heads and heads[0] != heads[1]:
        what, fits = "holds a ViT of {} heads, but the model has {}".format(*heads), ""
        if name := (getattr(model, "pretrained_cfg", None) or {}).get("architecture"):
            fits = f"timm.create_model({name!r}, num_heads={heads[0]}), in Python"
    else:
        return
    such = f"{FITTING}, such as {fits}" if fits else BUILT
    raise CheckpointError(f"{found.path} {what}; {such}")


def _trained_at(state: Named, model: nn.Module) -> int | None:
    """Pixels a side of the images that the positions are of, by the pixels of the model's."""
    positions, embed = state.get("pos_embed"), getattr(model, "patch_embed", None)
    match [getattr(embed, name, None) for name in ("img_size", "grid_size")]:
        case [[int(pixels), _], [int(patches), _]] if positions is not None and positions.ndim == 3:
            side = isqrt(positions.shape[1])
            prefix = positions.shape[1] - side**2  # class token, registers
            known = prefix in {0, 1, getattr(model, "num_prefix_tokens", 0)}
            return side * (pixels // patches) if known else None
    return None


def _size_of(state: Named) -> tuple[int, int, int] | None:
    """Width, depth and patch of a ViT; None of anything else."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if not depth or PATCHES not in state or state[PATCHES].ndim != 4:
        return None
    return state[PATCHES].shape[0], depth, state[PATCHES].shape[-1]


def _name_of(state: Named, width: int, depth: int, patch: int) -> str:
    """timm's ViT of these sizes, plain at 224 pixels or DINOv2's; empty where it has none."""
    from timm import is_model

    kind = "dinov2" if "blocks.0.ls1.gamma" in state else "224"
    registers = "reg4_" if {"reg_token", "register_tokens"} & state.keys() else ""
    name = f"vit_{VIT_NAMES.get((width, depth))}_patch{patch}_{registers}{kind}"
    return f"timm:{name}" if is_model(name) else ""


def _in_names_of(model: nn.Module, found: _Found, expected: Named) -> _Found:
    """As timm's filter for the model reads the file, if that fits and the file itself does not."""
    from timm.models import clean_state_dict

    def fits(state: Named) -> bool:
        names = (name for name in expected if not name.startswith(NORMS))
        return all(name in state and state[name].shape == expected[name].shape for name in names)

    if fits(found.state):
        return found
    module = sys.modules.get(type(model).__module__)
    converters = getattr(module, "checkpoint_filter_fn", _as_torchvision), _as_torchvision
    tensors = {name: value for name, value in found.entries.items() if isinstance(value, Tensor)}
    whole = replace(found, state=clean_state_dict(tensors), prefix="", places=())
    for one, convert in product((found, whole), converters):
        state: Named = {}
        with contextlib.suppress(*DAMAGE), contextlib.redirect_stdout(io.StringIO()):  # some print
            state = convert(dict(one.state), model)
        if fits(state):
            return _converted(one, state)
    return found


def _as_torchvision(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Positions of the model's grid, and an MLP as torchvision now names it."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    for name, value in model.state_dict().items():
        if POSITIONS.search(name) and value.ndim == 3 and name in state:
            side = isqrt(value.shape[1])
            before = value.shape[1] - side**2  # class token
            state[name] = resample_abs_pos_embed(state[name], [side] * 2, num_prefix_tokens=before)
    now = {"linear_1": "0", "linear_2": "3"}
    return {re.sub("linear_[12]", lambda x: now[x[0]], name): v for name, v in state.items()}


def _converted(found: _Found, state: Named) -> _Found:
    """With what became of the tensors: moved as they were, made anew, or left out.

    Raises:
        CheckpointError: patches of another size; or a weight or bias of a block is left out that is
            not zero, and nothing was made of it, so that the model is another.
    """
    before, after = (
        {value.untyped_storage().data_ptr(): name for name, value in tensors.items()}
        for tensors in (found.state, state)
    )
    gone = [name for place, name in before.items() if place not in after and name not in state]
    made = {after[place] for place in after.keys() - before.keys()}
    if PATCHES in made:
        raise CheckpointError(f"{found.path} holds patches of another size than the model's")
    _check_nothing_is_lost(found, gone, made)
    counts = [value.shape[-2] for name, value in found.state.items() if POSITIONS.search(name)]
    grids = {name: state[name].shape[-2] for name in made if POSITIONS.search(name)}
    return replace(
        found,
        state={name: _plain(found.path, name, value) for name, value in state.items()},
        dropped={**found.dropped, **{found.prefix + name: FILTERED for name in gone}},
        resampled={x: f"from {counts[0]} positions to {n}" for x, n in grids.items()},
    )


def _check_nothing_is_lost(found: _Found, gone: Iterable[str], made: Iterable[str]) -> None:
    remade = {name.rpartition(".")[0] for name in made}
    for name in gone:
        module = name.rpartition(".")[0]
        if OF_A_BLOCK.search(name) and module not in remade and bool(found.state[name].any()):
            raise CheckpointError(
                f"{found.path} holds {name}, which is not zero, and the model has no place for it; "
                "choose the model that has (of DINOv3's, timm's names end in _qkvb)"
            )


def _left_aside(found: _Found, expected: Named, model: nn.Module) -> tuple[Reasons, Reasons]:
    """Why names of the file, and of the model, are without the other; or an error."""
    norms = [{x.split(".")[0] + "." for x in names} & {*NORMS} for names in (found.state, expected)]
    other_norm = len(norms[0]) == len(norms[1]) == 1 and norms[0] != norms[1]
    rests = {found.prefix + x: x for x in found.state if x not in expected}
    rests |= {x: apart(x, found.prefix) for x in found.entries if not x.startswith(found.prefix)}
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = [classifier] if isinstance(classifier, str) else [*classifier]
    heads += {x.split(".")[0] for x in rests.values() if re.match(rf"({HEADS})\.", x)}
    heads = [f"{x}." for x in heads if not any(name.startswith(f"{x}.") for name in expected)]
    kept = {x: NORM for x in expected if other_norm and x.startswith(NORMS)}
    missing = [name for name in expected if name not in found.state and name not in kept]
    dropped, unexpected = dict(found.dropped), []
    for name, rest in rests.items():
        reason = NORM if other_norm and rest.startswith(NORMS) else _reason(rest, heads)
        reason = reason or (COPY if name.startswith(found.copies) else None)
        if not (missing or name.startswith(found.prefix) or ADAPTED.search(name)):
            reason = reason or OUTSIDE
        if not isinstance(found.entries.get(name, found.state.get(rest)), Tensor):
            reason = BESIDE
        told = rest if found.prefix == "module." else name
        dropped |= {told: reason} if reason else {}
        unexpected += [] if reason else [told]
    if adapters := [name for name in unexpected if ADAPTED.search(name)]:
        raise CheckpointError(
            f"{found.path} holds adapters of peft, such as {adapters[0]}; merge them before "
            f"saving: model.merge_and_unload().state_dict()"
        )
    if missing or unexpected:
        raise CheckpointError(
            f"{found.path} ({found.layout}) does not fit the model: "
            f"{len(missing)} missing ({some(missing) or 'none'}), "
            f"{len(unexpected)} unexpected ({some(unexpected) or 'none'}); nothing was loaded; "
            f"{BUILT}"
        )
    for name, value in found.state.items():
        theirs, ours = tuple(value.shape), tuple(expected.get(name, value).shape)
        if theirs != ours:
            what = f"{found.path}: {name} has shape {theirs}"
            raise CheckpointError(f"{what}, but the model expects {ours}; {BUILT}")
    return dropped, kept


def _reason(rest: str, heads: Iterable[str] = ()) -> str | None:
    known = (why for how, why in ASIDE.items() if re.match(rf"(?:{how})(?:[./]|$)", rest))
    return next(known, HEAD if rest.startswith(tuple(heads)) else None)
