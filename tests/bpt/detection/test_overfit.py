"""All of a detector learns: pictures of shapes by heart, on a frozen backbone. Takes minutes."""

import pytest
from shapes import write_shapes

import bpt

FEW = {"image_size": 128, "channels": 32, "batch_size": 2, "num_prompts": 8, "rank": 8}


@pytest.mark.versions
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("detector", ["mask-rcnn", "cascade"])
def test_eight_pictures_are_learned_by_heart_in_600_steps(detector, tmp_path):
    folder = write_shapes(tmp_path / "shapes", 8, size=128, count=5)
    recipe = bpt.DetectionRecipe(
        dataset=f"coco:{folder}",
        detector=detector,
        schedule="150",  # of 4 steps
        lr=1e-3,
        smallest_scale=1.0,
        largest_scale=1.0,
        **FEW,
    )
    scores = bpt.train(recipe, tmp_path / "run", device="cpu")["scores"]
    assert scores["box_AP"] > 95
    assert scores["mask_AP"] > 90
