import pytest
import timm

import burst
from burst.adapters.registry import known_classes


def test_every_architecture_of_timm_is_listed_with_its_weights():
    rows = {row["name"]: row["weights"] for row in burst.library_models("timm")}
    assert rows.keys() == {f"timm:{name}" for name in timm.list_models()}
    assert "mae" in rows["timm:vit_base_patch16_224"].split(", ")


def test_every_vit_of_torchvision_is_listed_by_the_name_that_loads_it(caches):
    rows = {row["name"]: row for row in burst.library_models("torchvision")}
    row = rows["torchvision:vit_b_16.IMAGENET1K_SWAG_E2E_V1"]
    assert (row["pixels"], row["parameters"], row["on disk"]) == ("384", "87 M", "no")
    folder = caches / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "vit_b_16_swag-9ac1b537.pth").touch()
    rows = {row["name"]: row for row in burst.library_models("torchvision")}
    assert rows["torchvision:vit_b_16.IMAGENET1K_SWAG_E2E_V1"]["on disk"] == "yes"


def test_open_clip_s_names_are_listed():
    pytest.importorskip("open_clip")
    rows = {row["name"]: row["weights"] for row in burst.library_models("open_clip")}
    assert "laion2b_s34b_b79k" in rows["open_clip:ViT-B-32"].split(", ")


def test_of_transformers_the_registry_is_listed_measured_or_refused():
    rows = burst.library_models("hf")
    known = [name for name in known_classes() if name.startswith("transformers.models.")]
    assert len(rows) == len(known)
    for row in rows:
        assert row["outcome"] == "measured" or row["outcome"].startswith("refused: ")


def test_another_library_is_unknown():
    with pytest.raises(burst.UnknownName, match="unknown library 'keras'"):
        burst.library_models("keras")
