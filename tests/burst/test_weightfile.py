import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from burst.checkpoint import read_checkpoint
from burst.errors import CheckpointError


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
