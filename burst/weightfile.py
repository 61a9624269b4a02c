"""A weight file's bytes -> what it stores; nothing that it stores is ever run."""

import argparse
import json
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from burst.errors import CheckpointError
from burst.files import sha256_of

EXPECTED = "expected a torch file (.pth, .pt, .bin), a .safetensors or a Flax .npz"
IN_A_FOLDER = ("model.safetensors.index.json", "model.safetensors")  # as transformers saves them
OTHER_KINDS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
OTHER_KINDS |= {b"7z\xbc\xaf": "7-Zip", b"\x89HDF": "HDF5"}
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
        path: the file, the index of a sharded safetensors model, or the folder of one.
        mapped: map the tensors of a torch file into memory, to be read when they are first used;
            for a file that nobody changes in place.

    Returns:
        `"torch"` and whatever was saved, `"safetensors"` and name -> tensor, or `"npz"` and
        name -> array. All tensors are on the CPU, in the dtype of the file.

    Raises:
        CheckpointError: missing, unreadable, empty, not a file, text, another kind of file,
            truncated or damaged, shards unlike their index, or objects whose loading runs code.
    """
    try:
        path = _meant(path)
        kind = _kind(path)
        if kind == "torch":
            return kind, _read_torch(path, mmap=mapped)
        if kind == "npz":
            with np.load(path, allow_pickle=False) as arrays:
                return kind, dict(arrays)
        if kind == "pickle":
            with path.open("rb") as stream:
                _NoImports(stream).load()  # only to name what it would import
            raise _code_error(path, "a bare pickle")
        return "safetensors", _read_shards(path) if kind == "index" else load_file(path)
    except DAMAGE as error:
        raise _reading_error(path, error) from error


def sha256_of_stored(path: Path) -> str:
    """Hexadecimal SHA-256 of the file, or of the shards of a model, one after the other."""
    path = _meant(path)
    shards = sorted(set(_weight_map(path).values())) if _kind(path) == "index" else [path.name]
    return sha256_of(*(path.parent / name for name in shards))


def _meant(path: Path) -> Path:
    return next((path / name for name in IN_A_FOLDER if (path / name).is_file()), path)


def _kind(path: Path) -> str:
    if not path.exists():
        raise CheckpointError(f"weight file {path} does not exist; {EXPECTED}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder without {IN_A_FOLDER[1]}; {EXPECTED}")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file; {EXPECTED}")
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes); was its download cut short?")
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        return "safetensors"  # the limit on a header is the format's own
    if LEGACY_TORCH in head[:32]:
        return "torch"
    if re.match(rb"\x80[\x02-\x05]", head):  # the protocols that say which they are
        return "pickle"
    if path.name.endswith(".index.json"):
        return "index"
    raise CheckpointError(f"{path} {_other_kind(head)}")


def _other_kind(head: bytes) -> str:
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        start = head[:40].decode("utf-8", errors="replace").splitlines()[0]
        return (
            f"is a text file that begins {start!r}, not weights; "
            f"was an error page or a Git LFS pointer saved in its place?"
        )
    kinds = (name for magic, name in OTHER_KINDS.items() if head.startswith(magic))
    kind = "tar" if head[257:262] == b"ustar" else next(kinds, "")
    told = f"is a {kind} file, not weights; {EXPECTED}; unpack it if it is an archive"
    return told if kind else f"is not a weight file; {EXPECTED}"


def _kind_of_zip(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name for name in names):
        raise _code_error(path, "a TorchScript program")
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    raise CheckpointError(f"{path} is a zip archive without weights; {EXPECTED}; unpack it first")


class _Dtype:
    """In the place of `numpy.dtype` while a file is read: the name of a type, and no code."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.name = f"{state[1]}{self.name}"  # with the order of its bytes


def _scalar(dtype: _Dtype, value: bytes) -> object:
    """In the place of NumPy's own function, which would take objects too."""
    if not re.fullmatch(r"[<>|=]?[biufc]\d+", str(dtype.name)):
        raise pickle.UnpicklingError(f"GLOBAL numpy.dtype({dtype.name!r})")
    return np.frombuffer(value, dtype.name, count=1)[0]


def _read_torch(path: Path, *, mmap: bool) -> object:
    # Training scripts store a Namespace of plain values as `args`, and metrics as NumPy's numbers.
    scalars = [(_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed: list[Any] = [argparse.Namespace, (_Dtype, "numpy.dtype"), *scalars]
    with torch.serialization.safe_globals(allowed), path.open("rb") as stream:
        file = path if mmap else stream  # of a path, torch would believe the suffix
        stored: object = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    return stored


class _NoImports(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    places = _weight_map(index)
    for file in sorted({index.parent / shard for shard in places.values()}):
        _, held = read_stored(file)
        for name in sorted(held.keys() ^ {x for x, shard in places.items() if shard == file.name}):
            does, place = "holds" if name in held else "lacks", places.get(name, "no shard")
            raise CheckpointError(f"{file} {does} {name}, which {index.name} places in {place}")
        tensors |= held
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    for name in places.values():
        if not re.fullmatch(r"[^/\\]+\.safetensors", name):
            raise CheckpointError(f"{index} names {name!r}, expected a .safetensors beside it")
    return places


def _reading_error(path: Path, error: BaseException) -> CheckpointError:
    text = str(error)
    refused = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, OSError) and error.strerror:
        return CheckpointError(f"cannot read {path}: {error.strerror}")
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
