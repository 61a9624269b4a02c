"""A trained prompt in other people's code: a PyTorch module that prepares its images itself."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from bpt.construction import Model
from bpt.export import open_exported
from bpt.hub import fetch_shared
from bpt.hub_folder import SharedRun
from bpt.run_folder import Run, open_run
from burst.backbone import Backbone
from burst.errors import BurstError, ShapeError
from burst.preprocess import Preprocess, rgb


class PromptClassifier(nn.Module):
    """A trained prompt, its backbone and head; in eval mode, no parameter requires a gradient.

    Attributes:
        classes: names, in the order of the logits.
        backbone: name of the backbone.
        transform: how an image is prepared, see `burst.preprocess.Preprocess`.
    """

    def __init__(self, model: Model, backbone: Backbone, classes: Sequence[str]) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.classes: tuple[str, ...] = tuple(classes)
        self.backbone: str = backbone.name
        self.transform: Preprocess = backbone.preprocess
        self.eval()

    def preprocess(self, images: Image.Image | Sequence[Image.Image]) -> Tensor:
        """What the model reads of an image, (3, H, W), or of several, (B, 3, H, W): float32.

        Resized, cropped at the centre and normalised as in the training; on the model's device.

        Raises:
            ImageError: an image is too narrow, or of a mode without a fixed range.
            ShapeError: an empty sequence.
        """
        if isinstance(images, Image.Image):
            return self.preprocess([images])[0]
        if not images:
            raise ShapeError("no image to prepare; give at least one")
        pixels = torch.stack([self.transform.centre(rgb(image)) for image in images])
        return self.transform.normalise(pixels).to(next(self.model.parameters()).device)

    def forward(self, batch: Tensor) -> Tensor:
        """(B, classes) logits of a (B, 3, H, W) batch that `preprocess` gave.

        Raises:
            ShapeError: it is of another shape.
        """
        side = self.transform.image_size
        if batch.ndim != 4 or batch.shape[1:] != (3, side, side):
            raise ShapeError(
                f"a batch of shape {tuple(batch.shape)}, expected (B, 3, {side}, {side}); "
                "give preprocess a list of images"
            )
        logits: Tensor = self.model(batch)
        return logits


def load_prompt(
    place: str | Path,
    *,
    weights: str | Path | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
) -> PromptClassifier:
    """A trained prompt, ready to classify images.

    Args:
        place: ORG/NAME on the hub, from the hub's cache where it is there already; a folder that
            `bpt pull` or `bpt train` wrote; or a file of `bpt export`.
        weights: of the backbone, if they do not come with the package and lie elsewhere.
        revision: branch, tag or commit on the hub.
        device: where it goes.

    Raises:
        CheckpointError: there is none, it cannot be had, or is damaged; the backbone's weights are
            not here, or are others.
        BurstError: it is a detector; or `weights` is given for the folder of a training, which
            knows its own.

    >>> model = load_prompt("org/birds")  # doctest: +SKIP
    >>> logits = model(model.preprocess([image]))  # doctest: +SKIP
    >>> model.classes[logits.argmax()]  # doctest: +SKIP
    """
    if Path(place).is_file():
        model, backbone, about = open_exported(place, weights, device=device)
        return PromptClassifier(model, backbone, about["classes"])
    folder = Path(place) if Path(place).is_dir() else fetch_shared(str(place), revision)
    run = open_run(folder)
    if not isinstance(run, Run):
        raise BurstError(f"{place} is a detector; see `bpt.load_exported_detector`")
    if isinstance(run, SharedRun):
        model, backbone = run.load_model(device, weights)
    elif weights is None:
        model, backbone = run.load_model(device)
    else:
        raise BurstError(f"{place} is the folder of a training, which knows its weights; give none")
    return PromptClassifier(model, backbone, run.classes)
