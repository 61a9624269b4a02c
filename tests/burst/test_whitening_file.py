"""A whitening's file: what comes back, and what is refused."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import backbone_of, vit

from burst.errors import CheckpointError, OutputError
from burst.survey import images_for
from burst.whitened import whitened_histograms
from burst.whitening import whiten
from burst.whitening_file import check_whitening_path, load_whitening, save_whitening
from burst.whitening_options import WhiteningOptions

DIM = 24
SUFFIXES = (".pt", ".safetensors")


def make_backbone(dim=DIM, depth=2, **changes):
    facts = {"weights_source": "somewhere", "weights_sha256": "a" * 64}
    return backbone_of(vit(embed_dim=dim, depth=depth, num_heads=2), **facts | changes)


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


@pytest.fixture(scope="module")
def whitening(backbone):
    return whiten(backbone, images_for(backbone, "sample", num_images=10))


def rewritten(path, **changes):
    """The .pt file with some entries changed or, if None, left out."""
    stored = torch.load(path, weights_only=True) | changes
    torch.save({name: value for name, value in stored.items() if value is not None}, path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_saved_comes_back(suffix, backbone, whitening, tmp_path):
    path = tmp_path / f"W{suffix}"
    save_whitening(whitening, path)
    for found in (load_whitening(path), load_whitening(str(path), backbone)):
        for name in ("W", "eigenvalues", "mean", "variances"):
            assert torch.equal(getattr(found, name), getattr(whitening, name))
        assert found.blocks == whitening.blocks
        assert found.fingerprint == whitening.fingerprint
        assert found.record == json.loads(json.dumps(whitening.record))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["floor", "qk_sha256", "W", "variances", "created"])
def test_a_fingerprint_tells_what_a_whitening_is_not_when_it_was_made(name, whitening):
    if name in ("W", "variances"):
        changed = dataclasses.replace(whitening, **{name: getattr(whitening, name) + 1})
    else:
        changed = dataclasses.replace(whitening, record=whitening.record | {name: 0.5})
    assert (changed.fingerprint == whitening.fingerprint) == (name == "created")


@pytest.mark.usefixtures("short_files")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_told(suffix, whitening, tmp_path):
    large = dataclasses.replace(whitening, W=torch.zeros(2, 100, 100))
    with pytest.raises(OutputError, match=f"cannot write .*W{suffix}: File too large"):
        save_whitening(large, tmp_path / f"W{suffix}")
    assert os.listdir(tmp_path) == []


def test_a_missing_whiteness_error_comes_back_as_nan(backbone, tmp_path):
    found = whiten(backbone, images_for(backbone, "sample", num_images=4))
    save_whitening(found, tmp_path / "W.pt")
    metadata = json.loads(torch.load(tmp_path / "W.pt", weights_only=True)["metadata"])
    assert metadata["per_block"][0]["whiteness_error"] is None
    error = load_whitening(tmp_path / "W.pt").blocks[0].whiteness_error
    assert error != error


def test_the_file_can_be_read_without_this_library(whitening, tmp_path):
    save_whitening(whitening, tmp_path / "W.pt")
    save_whitening(whitening, tmp_path / "W.safetensors")
    plain = torch.load(tmp_path / "W.pt", weights_only=True)
    names = ["W", "eigenvalues", "mean", "metadata", "variances"]
    assert sorted(plain) == names
    assert sorted([*load_file(tmp_path / "W.safetensors"), "metadata"]) == names
    with safe_open(tmp_path / "W.safetensors", "pt") as file:
        assert file.metadata() == {"metadata": plain["metadata"]}
    metadata = json.loads(plain["metadata"])
    assert metadata["model"] == "test"
    assert metadata["weights_sha256"] == "a" * 64
    assert metadata["token_count"] == 8 * 17
    for name in ("images", "method", "shrinkage", "floor", "convention", "through_norm"):
        assert name in metadata
    for name in ("kept", "condition_number", "effective_rank", "whiteness_error", "variance_error"):
        assert [block[name] for block in metadata["per_block"]] == [
            getattr(block, name) for block in whitening.blocks
        ]


def test_a_file_of_before_there_were_variances_is_read(backbone, whitening, tmp_path):
    path = tmp_path / "W.pt"
    save_whitening(whitening, path)
    about = json.loads(torch.load(path, weights_only=True)["metadata"])
    for entry in about["per_block"]:
        del entry["variance_error"]
    rewritten(path, variances=None, metadata=json.dumps(about))
    found = load_whitening(path, backbone)
    assert found.variances is None
    assert torch.equal(found.W, whitening.W)
    assert all(one.variance_error != one.variance_error for one in found.blocks)
    (entries,) = whitened_histograms(
        backbone,
        images_for(backbone, "sample", num_images=10),
        found,
        WhiteningOptions(blocks=(1,)),
    ).values()
    assert entries.diagonal is None
    save_whitening(found, path)
    assert load_whitening(path).variances is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_diagonal_whitening_comes_back_as_one(suffix, backbone, tmp_path):
    images = images_for(backbone, "sample", num_images=10)
    made = whiten(backbone, images, WhiteningOptions(method="diagonal"))
    save_whitening(made, tmp_path / f"W{suffix}")
    found = load_whitening(tmp_path / f"W{suffix}", backbone)
    assert found.record["method"] == "diagonal"
    assert torch.equal(found.W, made.W)
    entries = whitened_histograms(backbone, images, found, WhiteningOptions())[0]
    assert entries.diagonal is entries.after


def without_fingerprint(path, **changes):
    """The .pt file as it was written before it held the fingerprint of the weights."""
    about = json.loads(torch.load(path, weights_only=True)["metadata"])
    del about["qk_sha256"]
    return rewritten(path, metadata=json.dumps(about | changes))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"dim": 32}, "query and key weights .*; d 24, not 32"),
        ({"depth": 3}, "query and key weights .*; number of blocks 2, not 3"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(changes, words, whitening, tmp_path):
    save_whitening(whitening, tmp_path / "W.pt")
    with pytest.raises(CheckpointError, match=f"does not fit .*{words}") as refusal:
        load_whitening(tmp_path / "W.pt", make_backbone(**changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"name": "mae_vitb"}, "model test, not mae_vitb"),
        ({"weights_sha256": "b" * 64}, r"weights sha256 aaaaaaaaaaaa\.\.\., not bbbbbbbbbbbb"),
        ({"weights_sha256": None}, r"weights sha256 aaaaaaaaaaaa\.\.\., not None"),
        ({"dim": 32}, "d 24, not 32"),
        ({"name": "x", "depth": 1}, "model test, not x; number of blocks 2, not 1"),
    ],
)
def test_a_file_of_before_fits_by_name_and_weight_file(changes, words, whitening, tmp_path):
    save_whitening(whitening, tmp_path / "W.pt")
    old = without_fingerprint(tmp_path / "W.pt")
    assert torch.equal(load_whitening(old, make_backbone()).W, whitening.W)
    with pytest.raises(CheckpointError, match=f"does not fit .*: {words}"):
        load_whitening(old, make_backbone(**changes))


def test_a_file_of_before_that_left_centring_out_is_refused(whitening, tmp_path):
    save_whitening(whitening, tmp_path / "W.pt")
    old = without_fingerprint(tmp_path / "W.pt", through_norm=True)
    with pytest.raises(CheckpointError, match="through the norm without its centring") as refusal:
        load_whitening(old)
    assert "\n" not in str(refusal.value)


def test_files_of_another_kind_are_refused(whitening, tmp_path):
    torch.save({"model": torch.zeros(2)}, tmp_path / "model.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    save_file({"W": torch.zeros(2)}, tmp_path / "W.safetensors")
    for name in ("model.pt", "list.pt", "W.safetensors"):
        with pytest.raises(CheckpointError, match="is not a whitening file"):
            load_whitening(tmp_path / name)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_whitening(tmp_path / "none.pt")
    save_whitening(whitening, tmp_path / "W.pt")
    (tmp_path / "W.pt").write_bytes((tmp_path / "W.pt").read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="W.pt"):
        load_whitening(tmp_path / "W.pt")


def test_damaged_contents_are_refused(whitening, tmp_path):
    path = tmp_path / "W.pt"
    broken = whitening.W.clone()
    broken[1, 2, 3] = torch.nan
    for changes, words in (
        ({"W": broken}, "W is not finite"),
        ({"W": whitening.W.double()}, "no W of torch.float32"),
        ({"W": whitening.W[:1]}, "its tensors are"),
        ({"variances": whitening.W[0, 0]}, "no variances of torch.float64"),
        ({"variances": whitening.mean[0]}, "its tensors are"),
        ({"mean": None}, "is not a whitening file"),
        ({"metadata": '{"kind": "burst whitening 1"}'}, "its metadata lacks"),
        ({"metadata": "no JSON"}, "is not a whitening file"),
    ):
        save_whitening(whitening, path)
        with pytest.raises(CheckpointError, match=words):
            load_whitening(rewritten(path, **changes))


@pytest.mark.parametrize("blocks", [None, 1, "01", {}, [0], [1, 0], [0, "1"], [0, 2], [0, 1.5]])
def test_blocks_that_are_not_those_of_its_entries_are_refused(
    blocks, backbone, whitening, tmp_path
):
    save_whitening(whitening, tmp_path / "W.pt")
    about = json.loads(torch.load(tmp_path / "W.pt", weights_only=True)["metadata"])
    path = rewritten(tmp_path / "W.pt", metadata=json.dumps(about | {"blocks": blocks}))
    with pytest.raises(CheckpointError, match=r"W\.pt is damaged: its blocks are") as refusal:
        load_whitening(path, backbone)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("block", [None, -1, 2, 1.5, "1", []])
def test_an_entry_of_a_block_that_no_model_has_is_refused(block, backbone, whitening, tmp_path):
    save_whitening(whitening, tmp_path / "W.pt")
    about = json.loads(torch.load(tmp_path / "W.pt", weights_only=True)["metadata"])
    about["blocks"][1] = about["per_block"][1]["block"] = block
    path = rewritten(tmp_path / "W.pt", metadata=json.dumps(about))
    with pytest.raises(CheckpointError, match=r"W\.pt is damaged: its blocks are"):
        load_whitening(path, backbone)


def test_another_suffix_or_too_long_a_name_is_refused_before_anything_is_written(
    whitening, tmp_path
):
    with pytest.raises(OutputError, match=r"\.pt or \.safetensors"):
        save_whitening(whitening, tmp_path / "W.npz")
    with pytest.raises(OutputError, match=r"\.pt or \.safetensors"):
        check_whitening_path("W")
    check_whitening_path("W.pt")
    with pytest.raises(OutputError, match="File name too long"):
        check_whitening_path(tmp_path / f"{'W' * 253}.pt")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_path_that_cannot_be_written_is_one_line(suffix, whitening, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write") as refusal:
        save_whitening(whitening, tmp_path / "file" / f"W{suffix}")
    assert "\n" not in str(refusal.value)
