"""Weights that lie in another installed package: found by its metadata, read, kept in the cache.

Nothing of that package is imported. Its file counts only with the SHA-256 of the registry; what was
read of it is kept under that digest, and loads from then on without the package.
"""

import hashlib
import importlib
import logging
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from burst.checkpoint import LoadReport
from burst.errors import CheckpointError, OutputError
from burst.files import cache_folder, write_atomically
from burst.loading.common import first_line, fit
from burst.loading.onnx import read_dinov2

if TYPE_CHECKING:
    from burst.backbone_spec import BackboneSpec

logger = logging.getLogger(__name__)
READERS = "onnx ml_dtypes"  # the second is all that onnx needs beyond what this package does
LAYOUT = "ONNX, names of transformers' Dinov2Model"


def load_packaged(model: nn.Module, spec: "BackboneSpec") -> LoadReport:
    """Load a backbone of another package into a model, from the cache or else from that package.

    Returns:
        What was loaded; its `sha256` is of the package's file.

    Raises:
        CheckpointError: the package or onnx is not installed, is of another version, or its file
            is missing or was changed.
    """
    kept = kept_file(spec)
    state = (kept and _read_kept(kept)) or _converted(spec, kept)
    file = kept or _find(spec)
    fit(model, state, file, whose=spec.name)
    return LoadReport(file, LAYOUT, str(spec.sha256), len(state), dropped={})


def kept_file(spec: "BackboneSpec") -> Path | None:
    """Where what was read of the package is kept: $BURST_CACHE, or burst in the user's cache.

    None where there is no such place: no home directory is known.
    """
    name = f"{spec.name}-{str(spec.sha256)[:16]}.safetensors"
    try:
        return cache_folder("BURST_CACHE", "burst") / "weights" / name
    except OutputError:
        return None


def installed_file(spec: "BackboneSpec") -> Path | None:
    """The package's file, if the package is installed, of the right version, and has it."""
    try:
        return _find(spec)
    except CheckpointError:
        return None


def install_command(spec: "BackboneSpec") -> str:
    """What brings the package and what reads its file, without what the package itself needs."""
    return f"pip install --no-deps {spec.distribution} {READERS}"


def _find(spec: "BackboneSpec") -> Path:
    name, _, version = str(spec.distribution).partition("==")
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise CheckpointError(
            f"the weights of {spec.name} are in the package {name} {version}, which is not "
            f"installed; {install_command(spec)}"
        ) from error
    if found.version != version:
        raise CheckpointError(
            f"{name} {found.version} is installed, expected {version}, which has the weights of "
            f"{spec.name}; {install_command(spec)}"
        )
    file = Path(str(found.locate_file(str(spec.package_file))))
    if not file.is_file():
        raise CheckpointError(f"{file} is missing from {spec.distribution}; {_again(spec)}")
    return file


def _converted(spec: "BackboneSpec", kept: Path | None) -> dict[str, Tensor]:
    content = _content(spec, _find(spec))
    _check_onnx(spec)
    state = read_dinov2(content)
    if kept is None:
        return state
    try:
        with write_atomically(kept) as temporary:
            temporary.write_bytes(save(state, {"tensors_sha256": _digest(state)}))
    except OutputError as error:
        logger.info("%s is read from its package each time: %s", spec.name, error)
    return state


def _content(spec: "BackboneSpec", file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != spec.sha256:
        raise CheckpointError(
            f"{file} has SHA-256 {digest}, expected {spec.sha256}; {_again(spec)}"
        )
    return content


def _check_onnx(spec: "BackboneSpec") -> None:
    try:
        importlib.import_module("onnx")
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{error.name} is not installed, which is needed to read the weights of {spec.name}; "
            f"{install_command(spec)}"
        ) from error
    except Exception as error:  # with an old protobuf, one of its own
        raise CheckpointError(
            f"onnx cannot be imported ({first_line(error)}); pip install --upgrade onnx"
        ) from error


def _again(spec: "BackboneSpec") -> str:
    return f"pip install --force-reinstall --no-deps {spec.distribution}"


def _read_kept(file: Path) -> dict[str, Tensor] | None:
    """What is kept, if it is there and as it was written."""
    try:
        with safe_open(file, framework="pt") as stream:
            written = (stream.metadata() or {}).get("tensors_sha256")
            state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return state if written == _digest(state) else None


def _digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}\n".encode())
        digest.update(state[name].contiguous().numpy().data)
    return digest.hexdigest()
