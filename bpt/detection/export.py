"""A detector's run -> one file: plain prompt tokens, pyramid and heads."""

from pathlib import Path

import torch

from bpt.detection.backbone import PromptedMap
from bpt.detection.construction import restore_detector
from bpt.detection.detector import Detector
from bpt.detection.recipe import DetectionRecipe
from bpt.detection.run_folder import DetectionRun
from bpt.export import (
    SUFFIX,
    about_run,
    check_suffix,
    exported_backbone,
    read_exported,
    write_exported,
)
from burst.errors import BurstError, CheckpointError

KIND = "bpt detector 1"


def export_detector(run: DetectionRun, out: str | Path) -> None:
    """Write the detector for use elsewhere.

    The file holds `trunk.prompts.BLOCK.values` (m, d), the product of whatever the prompt was made
    of, and the tensors of pyramid, proposals, boxes and masks; of a fine-tuned one all weights. A
    JSON string in its header says which backbone belongs to it, its SHA-256, how images are
    prepared, the classes with their category ids, and the recipe.

    Args:
        run: from `open_run`.
        out: a .safetensors file.

    Raises:
        OutputError: another suffix, or a place that cannot be written.
        CheckpointError: see `DetectionRun.load_detector`.
    """
    check_suffix(out, SUFFIX)
    detector, backbone = run.load_detector()
    if isinstance(detector.trunk, PromptedMap):
        detector.trunk = detector.trunk.folded()
    about = {
        "kind": KIND,
        **about_run(run, backbone),
        "category_ids": list(run.category_ids),
        "recipe": {
            **run.recipe.to_dict(),
            "method": _plain(run.recipe.method),
            "whitening": None,  # it is in the tokens
        },
    }
    write_exported(out, detector.trained_state(), about)


def load_exported_detector(
    path: str | Path, weights: str | Path | None = None, *, device: str | torch.device = "cpu"
) -> tuple[Detector, dict[int, str]]:
    """The detector of a file that `export_detector` wrote, in eval mode, and its classes.

    Args:
        path: the file.
        weights: of the backbone, if they do not come with the package and lie elsewhere now.
        device: where it goes.

    Returns:
        The detector; and by category id, in the order of the labels, the names of the classes.

    Raises:
        CheckpointError: missing, damaged, of another kind; or the backbone's weights are others, or
            not here.
    """
    tensors, about = read_exported(Path(path), KIND)
    try:
        backbone = exported_backbone(about, path, weights, device)
        names = dict(zip(about["category_ids"], about["classes"], strict=True))
        recipe = DetectionRecipe.from_dict(about["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its metadata lacks {error}") from error
    except CheckpointError:
        raise
    except BurstError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return restore_detector(recipe, backbone, len(names), tensors), names


def _plain(method: str) -> str:
    """What restores the same prompts as plain tokens."""
    return method if method in ("full", "linear", "gatevpt") else "vpt"
