"""A weight file's bytes -> what it stores; nothing that it stores is ever run."""

import argparse
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from burst.errors import CheckpointError

EXPECTED = "expected a torch file (.pth, .pt, .bin), a .safetensors or a Flax .npz"
OTHER_KINDS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7-Zip",
    b"\x89HDF": "HDF5",
}
LEGACY_TORCH = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # the number with which torch began files before 1.6

# What zipfile, numpy and torch's unpicklers raise on damaged bytes.
DAMAGE = (
    *(EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error),
    *(pickle.UnpicklingError, SafetensorError, SyntaxError),
)


def read_stored(path: Path, *, mapped: bool = False) -> tuple[str, Any]:
    """The kind of a weight file, told by its content and not by its name, and what it holds.

    Args:
        path: the file.
        mapped: map the tensors of a torch file into memory, to be read when they are first used;
            for a file that nobody changes in place.

    Returns:
        `"torch"` and whatever was saved, `"safetensors"` and name -> tensor, or `"npz"` and
        name -> array. All tensors are on the CPU, in the dtype of the file.

    Raises:
        CheckpointError: missing, unreadable, empty, not a file, text, another kind of file,
            truncated or damaged, or holding objects whose loading would run code.
    """
    kind = _kind(path, _head(path))
    if kind == "pickle":
        raise _code_error(path, _imports(path))
    try:
        return kind, _read_torch(path, mmap=mapped) if kind == "torch" else READERS[kind](path)
    except DAMAGE as error:
        raise _reading_error(path, error) from error


def _head(path: Path) -> bytes:
    try:
        if not path.exists():
            raise CheckpointError(f"weight file {path} does not exist; {EXPECTED}")
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a weight file; {EXPECTED}")
        if not path.is_file():
            raise CheckpointError(f"{path} is not a regular file; {EXPECTED}")
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes); was its download cut short?")
    return head


def _kind(path: Path, head: bytes) -> str:
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        return "safetensors"  # the limit on a header is the format's own
    if LEGACY_TORCH in head[:32]:
        return "torch"
    if re.match(rb"\x80[\x02-\x05]", head):  # the protocols that say which they are
        return "pickle"
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        start = head[:40].decode("utf-8", errors="replace").splitlines()[0]
        raise CheckpointError(
            f"{path} is a text file that begins {start!r}, not weights; "
            f"was an error page or a Git LFS pointer saved in its place?"
        )
    other = next((name for magic, name in OTHER_KINDS.items() if head.startswith(magic)), "")
    other = "tar" if head[257:262] == b"ustar" else other
    raise CheckpointError(
        f"{path} is a {other} file, not weights; {EXPECTED}; unpack it if it is an archive"
        if other
        else f"{path} is not a weight file; {EXPECTED}"
    )


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGE as error:
        raise _reading_error(path, error) from error
    if any("/code/" in name for name in names):
        raise _code_error(path, "a TorchScript program")
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    raise CheckpointError(f"{path} is a zip archive without weights; {EXPECTED}; unpack it first")


def _read_torch(path: Path, *, mmap: bool = False) -> object:
    # A Namespace of plain values is what MAE's and timm's training scripts store under `args`.
    with torch.serialization.safe_globals([argparse.Namespace]):
        stored: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    return stored


def _read_npz(path: Path) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


READERS: dict[str, Callable[[Path], object]] = {
    "torch": _read_torch,
    "safetensors": load_file,
    "npz": _read_npz,
}


def _reading_error(path: Path, error: BaseException) -> CheckpointError:
    text = str(error)
    refused = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, pickle.UnpicklingError) and refused:
        return _code_error(path, refused.group(1))
    if isinstance(error, ValueError) and "allow_pickle" in text:
        return _code_error(path, "pickled objects")
    reason = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, pickle.UnpicklingError):
        reason = "its pickle cannot be decoded"  # torch's own text is advice on loading unsafely
    return CheckpointError(f"{path} is truncated or damaged ({reason}); get it again")


def _code_error(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds code or Python objects ({what}) beside or instead of tensors; it was not "
        f"executed; save the weights alone, as torch.save(model.state_dict(), FILE) does"
    )


def _imports(path: Path) -> str:
    """What a bare pickle would import, found by reading its opcodes and running none."""
    names: list[str] = []
    strings: list[str] = []
    try:
        with path.open("rb") as stream:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in {"GLOBAL", "INST"}:
                    names.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except DAMAGE as error:
        raise _reading_error(path, error) from error
    return f"a pickle of {names[0]}" if names else "a bare pickle"
