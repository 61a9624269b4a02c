"""A trained prompt as it is shared: what `bpt push` uploads, and `bpt pull` fetches.

model.safetensors   prompts and head, see `bpt.export_run`
config.json         the run's own, and SHA-256 of the file of tensors
result.json         the end of the training
metrics.jsonl       a line an epoch
README.md           the card, see `bpt.model_card`

Folders of the machine that it was trained on are left out of all of them.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from bpt.construction import Model
from bpt.export import KIND as EXPORTED
from bpt.export import export_run, open_exported, read_exported, write_exported
from bpt.model_card import model_card
from bpt.run_folder import (
    CONFIG,
    METRICS,
    RESULT,
    SHARED_KIND,
    Run,
    RunFolder,
    save_metrics,
)
from burst.backbone import Backbone
from burst.errors import BurstError, CheckpointError
from burst.files import save_json, sha256_of
from burst.loading.common import CODE

MODEL, CARD = "model.safetensors", "README.md"
FILES = (MODEL, CONFIG, RESULT, METRICS, CARD)
PLACE = re.compile(r"((?:[\w.-]+[:=])?)(?:~[^/]*)?/(?!/)(.*)", re.DOTALL)  # an absolute path


@dataclass(frozen=True)
class SharedRun(Run):
    """A prompt that was shared, in the folder of it; what it was trained on may be elsewhere."""

    def load_model(
        self, device: str | torch.device = "cpu", weights: str | Path | None = None
    ) -> tuple[Model, Backbone]:
        """The model in eval mode, and its backbone.

        Args:
            device: where both go.
            weights: of the backbone, if they do not come with the package and lie elsewhere.

        Raises:
            CheckpointError: the file of tensors is missing, or is not the one that was shared; or
                see `load_exported`.
        """
        self.check()
        model, backbone, _ = open_exported(
            self.folder / MODEL, weights or self.recipe.weights, device=device, trusted=False
        )
        return model, backbone

    def load_backbone(self, device: str | torch.device = "cpu") -> Backbone:
        """The backbone that it was trained on; errors as of `load_model`."""
        return self.load_model(device)[1]

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors as they were shared: plain prompts, head.

        Raises:
            CheckpointError: they are missing or damaged.
        """
        self.check()
        return read_exported(self.folder / MODEL, EXPORTED)[0]

    def check(self) -> None:
        """Refuse another file of tensors than was shared.

        Raises:
            CheckpointError: it is missing, damaged or changed.
        """
        file, expected = self.folder / MODEL, self.config["sha256"]
        if not file.is_file():
            raise CheckpointError(f"{self.folder} holds no {MODEL}; pull it again")
        if (found := sha256_of(file)) != expected:
            raise CheckpointError(
                f"{file} has SHA-256 {found}, and {CONFIG} says {expected}: it came damaged, or "
                "was changed; pull it again"
            )


def write_hub_folder(run: RunFolder, folder: Path, repository: str) -> list[Path]:
    """Write what is shared of a run.

    Args:
        run: from `open_run`; of a classifier, at its end.
        folder: where to; there already.
        repository: ORG/NAME, for the card.

    Returns:
        The files.

    Raises:
        BurstError: the run is a detector, not at its end, or stands on a model that is code.
        CheckpointError: see `Run.load_model`.
        OutputError: the folder cannot be written.
    """
    checked = _shareable(run)
    export_run(checked, folder / MODEL)
    tensors, about = read_exported(folder / MODEL, EXPORTED)
    places = _places(checked.config)
    about = without_folders(about, keep=("classes",), places=places)
    write_exported(folder / MODEL, tensors, about)
    config = without_folders(checked.config, keep=("classes",), places=places)
    digest = {"kind": SHARED_KIND, "sha256": sha256_of(folder / MODEL)}
    images = {name: about[name] for name in ("mean", "std", "interpolation")}
    config["backbone"] |= images | {"crop_fraction": about["crop_fraction"]}
    config["backbone"]["crop_mode"] = about["crop_mode"]
    config |= digest
    save_json(folder / CONFIG, config)
    result = without_folders(checked.result or {}, places=places)
    save_json(folder / RESULT, result)
    save_metrics(folder, checked.metrics)
    card = model_card(config, result, repository)
    (folder / CARD).write_text(card, encoding="utf-8")
    return [folder / name for name in FILES]


def _shareable(run: RunFolder) -> Run:
    if not isinstance(run, Run):
        raise BurstError(
            f"{run.folder} is a detector, and only classifiers are pushed; "
            f"`bpt export {run.folder} --out FILE.safetensors` makes a file of it"
        )
    if isinstance(run, SharedRun):
        raise BurstError(f"{run.folder} was pulled; push the run that it was made of")
    if run.result is None:
        raise BurstError(f"{run.folder} is not at its end; train it on with --resume, then push")
    if run.recipe.model.startswith(CODE):
        raise BurstError(
            f"{run.folder} stands on {run.recipe.model}, which is code that others do not run; "
            "push the model to the hub, and train on hf-hub:ORG/NAME"
        )
    return run


def _places(config: Mapping[str, Any]) -> list[str]:
    """Absolute paths that the run was given or found; sentences in its configuration name them."""
    told = [*config["recipe"].values(), *(config["command"] or []), config["dataset"]["source"]]
    found = [PLACE.fullmatch(one) for one in told if isinstance(one, str)]
    return [one[0].removeprefix(one[1]) for one in found if one and PurePosixPath(one[2]).name]


def without_folders(
    value: Any,  # noqa: ANN401  JSON
    *,
    keep: Collection[str] = (),
    places: Collection[str] = (),
) -> Any:  # noqa: ANN401
    """JSON with every absolute path cut to its last part; values named in `keep` stay.

    Args:
        value: the JSON.
        keep: keys.
        places: paths that are cut within sentences too.

    >>> without_folders({"command": ["bpt", "train", "folder:/home/me/photos"]})
    {'command': ['bpt', 'train', 'folder:photos']}
    >>> without_folders("/home/me/photos: 9 to train, 1/2", places=["/home/me/photos"])
    'photos: 9 to train, 1/2'
    """
    if isinstance(value, str):
        for place in sorted(places, key=len, reverse=True):
            name = PurePosixPath(place).name.replace("\\", r"\\")
            value = re.sub(rf"(?<![\w.-]){re.escape(place)}", name, value)
        found = PLACE.fullmatch(value)
        return found[1] + PurePosixPath(found[2]).name if found else value
    if isinstance(value, list):
        return [without_folders(one, keep=keep, places=places) for one in value]
    if isinstance(value, dict):
        return {
            key: one if key in keep else without_folders(one, keep=keep, places=places)
            for key, one in value.items()
        }
    return value
