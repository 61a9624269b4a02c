import hashlib
import json
import os
import pickle
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from burst.checkpoint import read_checkpoint
from burst.errors import CheckpointError
from burst.files import sha256_of
from burst.weightfile import read_stored, sha256_of_stored


def refusal(path):
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {f"blocks.{i}.weight": torch.randn(32, 32, generator=generator) for i in range(4)}


@pytest.fixture
def npz(tmp_path, state):
    np.savez(tmp_path / "vit.npz", **{name: value.numpy() for name, value in state.items()})
    return tmp_path / "vit.npz"


class Payload:
    """Unpickled, it makes a folder: the sign that code in a file was run."""

    def __init__(self, sign):
        self.sign = str(sign)

    def __reduce__(self):
        return os.mkdir, (self.sign,)


def save_zip(stored, path):
    torch.save(stored, path)


def save_legacy(stored, path):
    torch.save(stored, path, _use_new_zipfile_serialization=False)


def save_pickle(stored, path):
    path.write_bytes(pickle.dumps(stored))


def save_npz(stored, path):
    with path.open("wb") as stream:
        np.savez(stream, weights=np.array([stored], dtype=object))


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle, save_npz])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, state, save):
    path, sign = tmp_path / "weights.pth", tmp_path / "sign"
    save({"model": state, "extra": Payload(sign)}, path)
    text = refusal(path)
    assert "holds code" in text
    assert "not executed" in text
    assert not sign.exists()


def test_the_payload_of_these_tests_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "sign")))
    assert (tmp_path / "sign").exists()


def test_the_objects_that_a_refused_file_holds_are_named(tmp_path):
    save_zip(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "module.pt")
    save_pickle(Payload("sign"), tmp_path / "module.pkl")
    assert f"{os.mkdir.__module__}.mkdir" in refusal(tmp_path / "module.pkl")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("save", [save_zip, save_legacy, save_file])
def test_a_truncated_file_is_refused(tmp_path, state, save, kept):
    save(state, tmp_path / "weights.pth")
    data = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "weights.pth").write_bytes(data[: int(kept * len(data))])
    assert "truncated or damaged" in refusal(tmp_path / "weights.pth")


def test_a_truncated_npz_is_refused(npz):
    npz.write_bytes(npz.read_bytes()[:5000])
    assert "truncated or damaged" in refusal(npz)


CONTENTS = {
    "is empty": b"",
    "is a text file that begins '<!DOCTYPE html>'": b"<!DOCTYPE html>\n<p>404</p>\n",
    "begins 'version https://git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "is a gzip file": b"\x1f\x8b\x08\x00" + bytes(50),
    "is a tar file": b"x\0".ljust(257, b"\0") + b"ustar".ljust(255, b"\0"),
    "is not a weight file": bytes(range(200, 256)) + bytes(600),
}


@pytest.mark.parametrize("expected", CONTENTS)
def test_what_is_no_weight_file_is_told_apart(tmp_path, expected):
    (tmp_path / "weights.pth").write_bytes(CONTENTS[expected])
    assert expected in refusal(tmp_path / "weights.pth")


def test_a_zip_of_other_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
        archive.writestr("weights.pth", b"...")
    assert "zip archive without weights" in refusal(tmp_path / "weights.zip")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.npz", "weights.index.json"])
def test_a_torch_file_is_known_by_its_content(tmp_path, state, name):
    save_zip(state, tmp_path / name)
    assert read_stored(tmp_path / name)[0] == "torch"
    assert sha256_of_stored(tmp_path / name) == sha256_of(tmp_path / name)


def test_a_folder_is_refused(tmp_path):
    assert "is a folder" in refusal(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "missing.pth")


def test_a_device_is_refused():
    assert "not a regular file" in refusal("/dev/null")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "weights.pth")
    (tmp_path / "weights.pth").chmod(0)
    assert "Permission denied" in refusal(tmp_path / "weights.pth")


NUMBERS = [
    np.float64(76.7),
    np.float32(0.25),
    np.float16(2.0),
    np.int64(-3),
    np.uint8(7),
    np.bool_(True),
    np.complex128(1 + 2j),
    np.array([1.5], ">f8")[0],
]


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.dtype.str)
def test_a_number_of_numpy_s_beside_the_weights_is_read(tmp_path, state, save, number):
    save({"state_dict": state, "best": [number]}, tmp_path / "weights.pth")
    _, stored = read_stored(tmp_path / "weights.pth")
    assert stored["best"] == [number]
    assert stored["best"][0].dtype == number.dtype
    assert read_checkpoint(tmp_path / "weights.pth").keys() == state.keys()


def test_a_number_that_numpy_1_wrote_is_read(tmp_path, state):
    save_legacy({"state_dict": state, "best": np.float64(76.7)}, tmp_path / "weights.pth")
    data = (tmp_path / "weights.pth").read_bytes()
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != data
    (tmp_path / "weights.pth").write_bytes(old)
    assert read_stored(tmp_path / "weights.pth")[1]["best"] == 76.7


class Calls:
    """Pickled as a call of any function with any arguments, and then a state."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def scalar(dtype, value):
    return Calls(np._core.multiarray.scalar, dtype, value)


def dtype_of(name, *, state=None):
    return Calls(np.dtype, name, False, True, state=state)


HIDDEN = {
    "an object as a number": lambda sign: scalar(dtype_of("O"), Payload(sign)),
    "bytes as an object": lambda sign: scalar(dtype_of("O"), bytes(8)),
    "fields": lambda sign: scalar(dtype_of([("a", "O")]), bytes(8)),
    "a string of fields": lambda sign: scalar(dtype_of("i8,O"), bytes(16)),
    "a dtype with fields as its state": lambda sign: scalar(
        dtype_of("f8", state=(3, "<", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 8, 0)),
        Payload(sign),
    ),
    "an array": lambda sign: np.arange(3),
    "an array of objects": lambda sign: np.array([Payload(sign)], object),
    "a function of numpy's": lambda sign: Calls(np.save, str(sign), [1]),
    "a number's type": lambda sign: Calls(np.float64, "3"),
    "a dtype that calls": lambda sign: dtype_of(Payload(sign)),
}


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("kind", HIDDEN)
def test_code_that_hides_as_a_number_of_numpy_s_is_not_run(tmp_path, state, save, kind):
    path, sign = tmp_path / "weights.pth", tmp_path / "sign"
    save({"model": state, "best": HIDDEN[kind](sign)}, path)
    assert "holds code" in refusal(path)
    assert not sign.exists()
    assert not sign.with_suffix(".npy").exists()


def test_too_few_bytes_for_a_number_are_refused(tmp_path, state):
    save_zip({"model": state, "best": scalar(np.dtype("f8"), b"123")}, tmp_path / "weights.pth")
    assert "truncated or damaged" in refusal(tmp_path / "weights.pth")


def test_reading_numbers_changes_no_type_of_numpy_s(tmp_path, state):
    swapped = dtype_of("f8", state=(3, ">", None, None, None, -1, -1, 0))
    save_zip({"model": state, "best": scalar(swapped, bytes(8))}, tmp_path / "weights.pth")
    before = torch.serialization.get_safe_globals()
    read_checkpoint(tmp_path / "weights.pth")
    assert np.dtype("f8").byteorder == "="
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_an_object_beside_the_weights_is_refused_by_its_name(tmp_path, state):
    save_legacy({"model": state, "cfg": Fraction(1, 2)}, tmp_path / "weights.pth")
    assert "holds code or Python objects (fractions.Fraction)" in refusal(tmp_path / "weights.pth")


def shards(folder, state, **changes):
    """A model in two shards, as transformers and huggingface_hub save it."""
    names = sorted(state)
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    places = {name: files[index % 2] for index, name in enumerate(names)}
    for file in files:
        save_file({name: state[name] for name in names if places[name] == file}, folder / file)
    index = {"metadata": {"total_size": 16384}, "weight_map": places | changes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


@pytest.mark.parametrize("named", ["folder", "index"])
def test_shards_are_read_as_one_file(tmp_path, state, named):
    index = shards(tmp_path, state)
    kind, tensors = read_stored(tmp_path if named == "folder" else index)
    assert kind == "safetensors"
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)


def test_the_sha256_of_shards_is_of_one_after_the_other(tmp_path, state):
    index = shards(tmp_path, state)
    files = sorted(file for file in tmp_path.iterdir() if file != index)
    expected = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert sha256_of_stored(tmp_path) == sha256_of_stored(index) == expected


def test_a_missing_shard_is_named(tmp_path, state):
    shards(tmp_path, state)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors does not exist" in refusal(tmp_path)


def test_a_damaged_shard_is_named(tmp_path, state):
    shards(tmp_path, state)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-7])
    assert f"{shard} is truncated or damaged" in refusal(tmp_path)


def test_a_shard_of_another_kind_is_refused_and_not_run(tmp_path, state):
    shards(tmp_path, state)
    save_zip(Payload(tmp_path / "sign"), tmp_path / "model-00002-of-00002.safetensors")
    assert "holds code" in refusal(tmp_path)
    assert not (tmp_path / "sign").exists()


@pytest.mark.parametrize(
    "place", ["../other.safetensors", "/etc/x.safetensors", "..", "a/b.safetensors"]
)
def test_a_shard_outside_the_folder_is_refused(tmp_path, state, place):
    (tmp_path / "model").mkdir()
    save_file({"blocks.0.weight": state["blocks.0.weight"]}, tmp_path / "other.safetensors")
    shards(tmp_path / "model", state, **{"blocks.0.weight": place})
    assert f"names {place!r}, expected a .safetensors beside it" in refusal(tmp_path / "model")


def test_a_tensor_in_two_shards_is_refused_by_its_name(tmp_path, state):
    shards(tmp_path, state)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    save_file({name: torch.zeros(3) for name in state}, shard)
    text = refusal(tmp_path)
    assert f"{shard} holds blocks.0.weight, which model.safetensors.index.json places in" in text


def test_a_tensor_that_its_shard_lacks_is_refused_by_its_name(tmp_path, state):
    index = shards(tmp_path, state, **{"norm.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"lacks norm.weight, which model\S+ places in model"):
        read_checkpoint(index)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}']
)
def test_what_is_no_index_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "is truncated or damaged" in refusal(tmp_path)
