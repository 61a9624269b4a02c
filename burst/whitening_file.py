"""A whitening -> a file, and back: tensors and a JSON string, strictly checked."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from burst.adapters import describe_blocks
from burst.backbone import Backbone
from burst.errors import CheckpointError, OutputError
from burst.files import check_name, write_atomically
from burst.fingerprint import Subject, identity, model_differences, subject_of
from burst.weightfile import DAMAGE, read_stored
from burst.whitening import BlockDiagnostics, Whitening

KIND = "burst whitening 1"
SUFFIXES = (".pt", ".safetensors")
TENSORS = {"W": torch.float32, "eigenvalues": torch.float64, "mean": torch.float64}
ADDED = "variances"  # float64; files of earlier versions lack it


def check_whitening_path(path: str | Path) -> None:
    """Say before long work whether `save_whitening` knows this kind of file.

    Raises:
        OutputError: the suffix is neither .pt nor .safetensors, or the name is too long.
    """
    if Path(path).suffix not in SUFFIXES:
        raise OutputError(f"cannot write {path}: a whitening is saved as {' or '.join(SUFFIXES)}")
    check_name(path)


def save_whitening(whitening: Whitening, path: str | Path) -> None:
    """Write a whitening, whole or not at all.

    The file holds `W`, `eigenvalues`, `mean` and, where it is known, `variances`, and a JSON string
    `metadata`: `Whitening.record` with the diagnostics as `per_block`. A .pt file is a dictionary
    that `torch.load(weights_only=True)` reads; in a .safetensors file the string is in the header.
    What is not a finite number is null in JSON.

    Raises:
        OutputError: another suffix, a place that cannot be written, or a full disk.
    """
    check_whitening_path(path)
    tensors = {name: getattr(whitening, name).contiguous() for name in TENSORS}
    if whitening.variances is not None:
        tensors[ADDED] = whitening.variances.contiguous()
    about = {"kind": KIND, **whitening.record}
    about["per_block"] = [_plain(asdict(one)) for one in whitening.blocks]
    metadata = json.dumps(about, allow_nan=False)
    if Path(path).suffix == ".pt":
        buffer = io.BytesIO()  # to a file, both tell a full disk as something else than an OSError
        torch.save({**tensors, "metadata": metadata}, buffer)
        content = buffer.getvalue()
    else:
        content = save(tensors, {"metadata": metadata})
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def load_whitening(path: str | Path, model: nn.Module | Backbone | None = None) -> Whitening:
    """Read what `save_whitening` wrote, and check that it fits a model if one is given.

    It fits a model with the same query and key weights, whatever that is called. A file that was
    written before it held their fingerprint fits the model of its name and weight file.

    Raises:
        CheckpointError: missing, damaged, of another kind, or not finite; made for another model,
            other weights, another d or another number of blocks, each of which is named; or made
            with `through_norm` by a version that did not centre.
    """
    tensors, about = _read(Path(path))
    expected = TENSORS | ({ADDED: torch.float64} if ADDED in tensors else {})
    for name, dtype in expected.items():
        if not isinstance(tensors.get(name), Tensor) or tensors[name].dtype != dtype:
            raise CheckpointError(f"{path} is damaged: it has no {name} of {dtype}")
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(f"{path}: {name} is not finite; make it again")
    try:
        per_block = [_diagnostics(entry) for entry in about.pop("per_block")]
        shape = len(per_block), int(about["dim"]), int(about["dim"])
        named, known = about["blocks"], range(int(about["model_blocks"]))
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged: its metadata lacks {error}") from error
    shapes = {name: tuple(tensors[name].shape) for name in expected}
    if shapes != {name: shape if name == "W" else shape[:2] for name in expected}:
        raise CheckpointError(f"{path} is damaged: its tensors are {shapes}, expected W {shape}")
    blocks = [one.block for one in per_block]
    if named != blocks or any(not isinstance(one, int) or one not in known for one in blocks):
        raise CheckpointError(
            f"{path} is damaged: its blocks are {named}, its entries of {blocks}, and the model "
            f"has {known.stop}"
        )
    if about.get("through_norm") and "qk_sha256" not in about:
        raise CheckpointError(
            f"{path} was made through the norm without its centring, by an earlier version; make "
            "it again"
        )
    if model is not None:
        _check_fits(path, about, subject_of(model))
    return Whitening(**tensors, blocks=tuple(per_block), record=about)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; `burst whiten --out {path}` makes one")
    kind, stored = read_stored(path)
    try:
        if kind == "safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = (file.metadata() or {})["metadata"]
        else:
            metadata = stored["metadata"]
        about = json.loads(metadata)
        if about.pop("kind") == KIND and isinstance(stored, Mapping):
            added = {ADDED: stored[ADDED]} if ADDED in stored else {}
            return {name: stored[name] for name in TENSORS} | added, about
    except DAMAGE:
        pass
    raise CheckpointError(
        f"{path} is not a whitening file; expected what `burst whiten` or save_whitening wrote"
    )


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if isfinite(value) else None for name, value in values.items()}


def _diagnostics(entry: Mapping[str, float | None]) -> BlockDiagnostics:
    entry = {"variance_error": None, **entry}  # which files of earlier versions lack
    values: dict[str, Any] = {one.name: entry[one.name] for one in fields(BlockDiagnostics)}
    missing: dict[str, Any] = {name: nan for name, value in values.items() if value is None}
    return BlockDiagnostics(**values | missing)


def _check_fits(path: str | Path, about: Mapping[str, Any], subject: Subject) -> None:
    described = describe_blocks(subject.model)
    dims = sorted({one.dim or 0 for one in described if one.index in about["blocks"]})
    facts = {
        "number of blocks": (about.get("model_blocks"), len(described)),
        "d": (about.get("dim"), dims[0] if len(dims) == 1 else dims),
    }
    differing = model_differences(about, identity(subject)) + [
        f"{name} {made}, not {given}" for name, (made, given) in facts.items() if made != given
    ]
    if differing:
        raise CheckpointError(f"{path} does not fit {subject.name}: {'; '.join(differing)}")
