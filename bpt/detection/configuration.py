"""What a detector's training starts from, and what its folder says of it."""

from typing import Any

import numpy as np

from bpt.configuration import backbone_record, recipe_record, whitening_record
from bpt.dataset import Split, class_fraction
from bpt.dataset.coco import CocoDataset, CocoSplit
from bpt.detection.evaluate import DetectionScores
from bpt.detection.recipe import DetectionRecipe
from bpt.run_folder import DETECTION_KIND, finite
from burst.backbone import Backbone
from burst.distributed import rank_and_size
from burst.provenance import provenance


def training_images(recipe: DetectionRecipe, coco: CocoDataset) -> CocoSplit:
    """The images to train on: those with objects, or the share of them that is asked for."""
    split = coco.train.for_training()
    if recipe.train_fraction is None:
        return split
    return split.subset(class_fraction(np.zeros(len(split), np.int64), recipe.train_fraction))


def unlabelled(split: CocoSplit) -> Split:
    """Its images, as those of a classifier: for what prompts start from."""
    return Split(split.names, np.zeros(len(split), np.int64), split.opener)


def detection_configuration(
    recipe: DetectionRecipe, coco: CocoDataset, backbone: Backbone, train: CocoSplit
) -> dict[str, Any]:
    """What config.json says before the parameters are counted."""
    return {
        "kind": DETECTION_KIND,
        "recipe": recipe_record(recipe),
        "choices": recipe.choices(),
        "dataset": {
            "name": coco.name,
            "source": coco.source,
            "digest": coco.digest,
            "objects_digest": coco.objects_digest,
            "classes": list(coco.categories.names),
            "category_ids": list(coco.categories.ids),
            "train": len(train),
            "val": len(coco.val),
            "notes": list(coco.notes),
        },
        "backbone": backbone_record(backbone),
        "whitening": whitening_record(recipe),
        "processes": rank_and_size()[1],
        **provenance(),
    }


def score_record(scores: DetectionScores) -> dict[str, Any]:
    """Scores as plain JSON: null where there is nothing to score."""
    return {
        "scores": {name: finite(value) for name, value in scores.values.items()},
        "per_class": {
            name: {key: finite(value) for key, value in one.items()}
            for name, one in scores.per_class.items()
        },
        "evaluator": scores.evaluator,
        "images": scores.images,
        "objects": scores.objects,
    }
