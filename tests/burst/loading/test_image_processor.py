import hf_folders
import numpy as np
import pytest
import torch
from PIL import Image

import burst
from burst.errors import ImageError
from burst.loading.image_processor import processor_facts
from burst.preprocess import Preprocess

transformers = pytest.importorskip("transformers")

SQUARE = {"size": {"height": 32, "width": 32}}
CROP = {"crop_size": {"height": 32, "width": 32}}
SHORT = {"size": {"shortest_edge": 32}, **CROP}
SIZES = [(61, 80), (53, 29), (33, 70), (32, 32), (50, 75)]  # width, height; odd margins among them


def processor_of(tmp_path, kind, **options):
    """As it is read from a folder, computed by Pillow where it can be."""
    hf_folders.save_processor(tmp_path, kind, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")
        slow = {} if kind.endswith("Fast") else {"use_fast": False}
        return transformers.AutoImageProcessor.from_pretrained(tmp_path, **slow)


def noise(width, height):
    rng = np.random.default_rng(width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def difference(processor, facts, image) -> float:
    """The largest, in grey levels."""
    facts = facts | {"image_size": facts["image_size"][0]}
    ours = Preprocess(**facts)
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    levels = torch.tensor(facts["std"]).view(3, 1, 1) * 255
    return float(((ours.normalise(ours.centre(image)) - theirs).abs() * levels).max())


@pytest.mark.filterwarnings("ignore")  # of how the processor is to be asked for in later versions
@pytest.mark.parametrize(
    "kind, options",
    [
        ("ViTImageProcessor", SQUARE),
        ("ViTImageProcessor", {**SQUARE, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}),
        ("ViTImageProcessor", {**SQUARE, "do_normalize": False}),
        ("ViTImageProcessor", {**SQUARE, "rescale_factor": 1 / 127.5}),
        ("CLIPImageProcessor", SHORT),
        ("CLIPImageProcessor", {**CROP, "size": {"shortest_edge": 35}}),
        ("BitImageProcessor", {**CROP, "size": {"shortest_edge": 37}}),
        ("DeiTImageProcessor", {**CROP, "size": {"height": 36, "width": 36}}),
        ("BeitImageProcessor", {**CROP, "size": {"height": 36, "width": 36}}),
        ("SiglipImageProcessor", SQUARE),
    ],
)
def test_pixels_are_those_of_the_model_s_own_processor(tmp_path, kind, options):
    """Both resize by Pillow, so nothing but the rounding of float32 may differ."""
    processor = processor_of(tmp_path, kind, **options)
    facts = processor_facts("test", processor)
    assert max(difference(processor, facts, noise(*size)) for size in SIZES) < 1e-3


@pytest.mark.filterwarnings("ignore")
def test_a_processor_of_tensors_differs_by_a_grey_level(tmp_path):
    """DINOv3's resizes float32 tensors and rounds nothing; Pillow rounds to whole levels twice."""
    processor = processor_of(tmp_path, "DINOv3ViTImageProcessorFast", **SQUARE)
    facts = processor_facts("test", processor)
    assert 0 < max(difference(processor, facts, noise(*size)) for size in SIZES) <= 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind, options, words",
    [
        ("CLIPImageProcessor", {**SHORT, "do_center_crop": False}, "to one square"),
        ("CLIPImageProcessor", {**SHORT, "do_resize": False}, "to one square"),
        ("ViTImageProcessor", {"size": {"height": 32, "width": 48}}, "to one square"),
        ("CLIPImageProcessor", {**SHORT, "crop_size": {"height": 32, "width": 24}}, "more than"),
        ("MobileViTImageProcessor", SHORT, "does more than to resize, crop and normalise"),
    ],
)
def test_what_cannot_be_said_is_refused(tmp_path, kind, options, words):
    """MobileViT's turns red into blue, which no attribute of the others tells."""
    processor = processor_of(tmp_path, kind, **options)
    with pytest.raises(ImageError, match=words) as caught:
        processor_facts("test", processor)
    assert "\n" not in str(caught.value)


def test_a_folder_s_images_are_prepared_by_its_processor(tmp_path):
    hf_folders.save_vit(tmp_path)
    mean = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    size = {**CROP, "size": {"shortest_edge": 36}, "resample": 2}
    hf_folders.save_processor(tmp_path, "CLIPImageProcessor", **size, **mean)
    found = burst.load_backbone(f"hf:{tmp_path}")
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (found.interpolation, found.crop_mode) == ("bilinear", "center_floor")
    assert found.preprocess.crop_fraction == pytest.approx(32 / 36)
