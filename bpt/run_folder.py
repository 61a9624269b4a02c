"""The folder of one training: written so that a kill at any moment loses nothing, and read back.

config.json          the recipe, and what it was run on; written once, before the first step
metrics.jsonl        a line an epoch
prompt.safetensors   the trained tensors of the best epoch
whitening.safetensors   the matrices that were used, where the method uses any
checkpoint.pt        the last state that training can go on from
events.out.tfevents* for TensorBoard
predictions.safetensors   of each test image, in order, the class that was named and its own
result.json          the end: what the test split says
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from bpt.construction import Model, open_backbone, restore_model
from bpt.dataset.split import distinct_names
from bpt.errors import RunExists
from bpt.prompt import FROZEN
from bpt.prompt_matrices import prompt_matrices
from bpt.recipe import Recipe
from bpt.tuning import Tuning
from burst.backbone import Backbone
from burst.errors import BurstError, CheckpointError
from burst.files import write_atomically
from burst.loading.common import RANDOM
from burst.weightfile import read_stored
from burst.whitening import Whitening
from burst.whitening_file import load_whitening

if TYPE_CHECKING:
    from bpt.detection.run_folder import DetectionRun

KIND, DETECTION_KIND = "bpt run 1", "bpt detection run 1"
SHARED_KIND = "bpt shared run 1"
CONFIG, METRICS, RESULT = "config.json", "metrics.jsonl", "result.json"
PROMPT, WHITENING, CHECKPOINT = "prompt.safetensors", "whitening.safetensors", "checkpoint.pt"
PREDICTIONS = "predictions.safetensors"
USED_WHITENING = "used_whitening"  # of config.json: the fingerprint of what WHITENING holds
# Earlier versions noted the file's SHA-256 alone, which is another each time that it is made.
WHITENING_KEYS = ("fingerprint", "sha256")
# What identifies the files that a run was made of, whatever their paths.
IDENTITY = {
    "images": ("dataset", "digest"),
    "masks or crowds": ("dataset", "objects_digest"),
    "weights": ("backbone", "weights_sha256"),
    "whitening": ("whitening", *WHITENING_KEYS),
}


@dataclass(frozen=True)
class RunFolder:
    """The folder of any training, read.

    Attributes:
        folder: where it lies.
        config: the content of config.json.
    """

    folder: Path
    config: dict[str, Any]

    @property
    def recipe(self) -> Tuning:
        """What it was trained with."""
        raise NotImplementedError

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the labels, all different: see `distinct_names`."""
        return distinct_names(self.config["dataset"]["classes"])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One entry an epoch, so far.

        Raises:
            CheckpointError: metrics.jsonl is damaged.
        """
        return read_metrics(self.folder)

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None as long as the training is not at its end.

        Raises:
            CheckpointError: it is damaged.
        """
        path = self.folder / RESULT
        return read_json(path) if path.exists() else None

    def trained_state(self) -> dict[str, Tensor]:
        """The trained tensors that were kept, on the CPU: of a classifier of its best epoch.

        Raises:
            CheckpointError: there are none yet, or they are damaged.
        """
        path = self.folder / PROMPT
        if not path.exists():
            raise CheckpointError(f"{self.folder} holds no {PROMPT}: its first epoch never ended")
        _, tensors = read_stored(path)
        return dict(tensors)

    def load_backbone(self, device: str | torch.device = "cpu") -> Backbone:
        """The backbone that it was trained on, images cropped as then.

        Raises:
            CheckpointError: its weights are others now, or not there.
            BurstError: else see `burst.load_backbone`.
        """
        recipe, about = self.recipe, self.config["backbone"]
        if recipe.weights not in (None, RANDOM) and not Path(recipe.weights).exists():
            raise CheckpointError(
                f"{self.folder} was trained on the weights {recipe.weights}, which are not there; "
                "put them there, or name the file that they are now to evaluate, predict or export "
                "(--weights FILE, in Python open_run(FOLDER, weights=FILE))"
            )
        backbone = open_backbone(recipe, device)
        if backbone.weights_sha256 != about["weights_sha256"]:
            raise CheckpointError(
                f"{self.folder} was trained on other weights of {recipe.model}: SHA-256 "
                f"{about['weights_sha256']}, not {backbone.weights_sha256}"
            )
        fraction, mode = crop_of(self.config)
        return replace(backbone, crop_fraction=fraction, crop_mode=mode)

    def frozen_whitening(self, backbone: Backbone) -> dict[int, Tensor]:
        """Block -> what its prompt is multiplied by, where that is frozen: (d, d), or (d,) gains.

        Raises:
            CheckpointError: see `used_whitening`.
        """
        if self.recipe.method not in FROZEN:
            return {}
        return prompt_matrices(self.used_whitening(backbone), self.recipe.method)

    def used_whitening(self, backbone: Backbone) -> Whitening:
        """What its prompts are multiplied by, or begin with, see `prompt_whitening`.

        Raises:
            CheckpointError: it is missing, or another file lies in its place; or see
                `load_whitening`.
        """
        path = self.folder / WHITENING
        advice = "get the run's own back, or train anew"
        if not path.exists():
            raise CheckpointError(
                f"{self.folder} lacks its {WHITENING}, the matrices that it was trained with; "
                f"{advice}"
            )
        used = load_whitening(path, backbone)
        noted = self.config.get(USED_WHITENING)  # not of runs of versions before
        if noted is not None and noted != used.fingerprint:
            raise CheckpointError(
                f"{path} holds other matrices than {self.folder} was trained with; {advice}"
            )
        return used


@dataclass(frozen=True)
class Run(RunFolder):
    """The folder of a classifier's training, read: see `open_run`."""

    @cached_property
    def recipe(self) -> Recipe:
        """What it was trained with."""
        return Recipe.from_dict(self.config["recipe"])

    def load_model(self, device: str | torch.device = "cpu") -> tuple[Model, Backbone]:
        """The model with the best epoch's tensors, in eval mode, and its backbone.

        Raises:
            CheckpointError: the backbone's weights are not those that it was trained on; or the
                tensors are missing, damaged or do not fit.
        """
        backbone = self.load_backbone(device)
        state, whitening = self.trained_state(), self.frozen_whitening(backbone)
        count = len(self.classes)
        return restore_model(self.recipe, backbone, count, state, whitening=whitening), backbone


def open_run(folder: str | Path, *, weights: str | Path | None = None) -> "Run | DetectionRun":
    """The run in a folder that `train` or `pull_prompt` wrote.

    Args:
        folder: where it lies.
        weights: where the backbone's lie now, if they were moved.

    Raises:
        CheckpointError: there is no run, or its config.json is damaged; or no such weights.
    """
    folder = Path(folder)
    path = folder / CONFIG
    try:
        config = read_json(path)
    except OSError as error:
        raise CheckpointError(
            f"{folder} is not the folder of a run: it holds no readable {CONFIG}; "
            "name a folder that a training wrote, as `bpt train --out FOLDER` does"
        ) from error
    kind = config.get("kind")
    if kind not in (KIND, DETECTION_KIND, SHARED_KIND):
        raise CheckpointError(f"{path} is not the configuration of a run")
    from bpt.detection.run_folder import DetectionRun
    from bpt.hub_folder import SharedRun

    kinds: dict[str, type[Run | DetectionRun]] = {
        **{KIND: Run, SHARED_KIND: SharedRun, DETECTION_KIND: DetectionRun}
    }
    if weights is not None and not Path(weights).exists():
        raise CheckpointError(f"{weights} does not exist: it is to hold the weights of {folder}")
    try:
        if weights is not None:
            moved = {**config["recipe"], "weights": str(Path(weights).absolute())}
            config = {**config, "recipe": moved}
        run = kinds[kind](folder, config)
        _ = run.recipe, run.classes, config["backbone"]["weights_sha256"]
        _ = kind != SHARED_KIND or config["sha256"]
        if not all(isinstance(one, str) for one in (run.recipe.model, *run.classes)):
            raise TypeError("the names of its model and classes must be texts")
    except (LookupError, TypeError, BurstError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return run


def crop_of(config: Mapping[str, Any]) -> tuple[float, str]:
    """How a run's images are cropped; runs from before they said so cut all at 0.875."""
    about = config["backbone"]
    return about.get("crop_fraction", 0.875), about.get("crop_mode", "center")


def check_same(run: RunFolder, recipe: Tuning, config: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of another recipe, other images, weights or whitening.

    Raises:
        RunExists: it names what differs.
    """
    if type(run.recipe) is not type(recipe):
        raise RunExists(f"{run.folder} holds a run of another kind; choose another folder")
    described = [*run.recipe.differences_in_words(recipe), *other_files(run, config)]
    if described:
        raise RunExists(
            f"{run.folder} holds a run of another recipe: {'; '.join(described)}; "
            "choose another folder"
        )


def identity(config: Mapping[str, Any]) -> dict[str, str | None]:
    """Of each kind of file that a run is made of, what a configuration says of it."""
    return {what: (config.get(part) or {}).get(key) for what, (part, key, *_) in IDENTITY.items()}


def other_files(run: RunFolder, config: Mapping[str, Any]) -> list[str]:
    """In words what a run was made of other files than a configuration of now names.

    A whitening that is not given again is not asked for, since a run keeps what it made of it; nor
    is what a run is too old to have noted down.
    """

    return [
        f"other {what}"
        for what, (part, *keys) in IDENTITY.items()
        if part in run.config and differs(run.config[part], config.get(part) or {}, keys)
    ]


def differs(noted: Mapping[str, Any] | None, asked: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Whether two records of a file differ in the first of these keys that both have."""
    if noted is None:
        return any(key in asked for key in keys)
    shared = [key for key in keys if key in asked and key in noted]
    return bool(shared) and noted[shared[0]] != asked[shared[0]]


def finite(value: float) -> float | None:
    """None for what JSON cannot hold."""
    return value if math.isfinite(value) else None


def read_json(path: Path, *, needs: Iterable[str] = ()) -> dict[str, Any]:
    """What `burst.files.save_json` wrote.

    Raises:
        CheckpointError: it is damaged, or lacks one of the keys that are needed.
        OSError: it is not there, or cannot be read.
    """
    found = _parsed(path.read_bytes(), path)
    if lacking := [name for name in needs if name not in found]:
        raise CheckpointError(f"{path} is damaged: it lacks {', '.join(lacking)}")
    return found


def save_metrics(folder: Path, metrics: list[dict[str, Any]]) -> None:
    """Write all epochs so far, whole or not at all."""
    with write_atomically(folder / METRICS) as temporary:
        lines = [json.dumps(one, allow_nan=False) + "\n" for one in metrics]
        temporary.write_text("".join(lines), "utf-8")


def read_metrics(folder: Path, *, needs: Iterable[str] = ()) -> list[dict[str, Any]]:
    """What `save_metrics` wrote, an entry an epoch; empty where it is not there yet.

    Raises:
        CheckpointError: it is damaged, or an epoch lacks a number that is needed.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    found = [_parsed(line, path) for line in path.read_bytes().splitlines()]
    needed = [*needs]
    if not all(
        _is_epoch(line) and all(line.get(one) is not None for one in needed) for line in found
    ):
        raise CheckpointError(f"{path} is damaged: not all of its lines are numbers of an epoch")
    return found


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with write_atomically(path) as temporary:
        temporary.write_bytes(save(plain))


def save_checkpoint(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the state that training can go on from, whole or not at all, tensor after tensor."""
    with write_atomically(folder / CHECKPOINT) as temporary, temporary.open("wb") as stream:
        try:
            torch.save({"kind": KIND, **content}, stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # a full disk, say, in torch's words
                raise error.__context__ from error
            raise


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote, on the CPU; None if nothing was saved yet.

    Its tensors are mapped: each is read from the file when it is first used.

    Raises:
        CheckpointError: damaged, or of another kind.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    _, content = read_stored(path, mapped=True)
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise CheckpointError(f"{path} is not the state of a training")
    return dict(content)


def read_predictions(folder: Path, *, classes: float = math.inf) -> dict[str, Tensor] | None:
    """Of each test image the class that was named, `predicted`, and its own, `labels`; (N,) int64.

    None where there are none: no training came to its end, or an earlier version's did.

    Args:
        folder: of the run.
        classes: how many there are; all numbers are below it.

    Raises:
        CheckpointError: they are damaged, or are not of as many images as result.json says.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        return None
    kept = dict(read_stored(path)[1])
    found: list[Any] = [kept.get(name) for name in ("predicted", "labels")]
    if not all(isinstance(one, Tensor) and one.dtype == torch.int64 for one in found):
        raise CheckpointError(f"{path} is damaged: it holds no predicted and labels of torch.int64")
    shapes = [tuple(one.shape) for one in found]
    result = read_json(folder / RESULT) if (folder / RESULT).exists() else {}
    images = result.get("test_images", found[0].numel())
    if shapes != [(images,)] * 2:
        raise CheckpointError(f"{path} is damaged: it is of {shapes} images, expected {images}")
    if any(((one < 0) | (one >= classes)).any() for one in found):
        raise CheckpointError(f"{path} is damaged: some of its numbers are no classes")
    return kept


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        found = json.loads(content.decode(), parse_constant=refuse)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged: it holds no object")
    return found


def _is_epoch(line: Mapping[str, Any]) -> bool:
    """Whether a line of metrics.jsonl is of an epoch, its values numbers, or None for none."""
    return type(line.get("epoch")) is int and all(
        isinstance(value, dict if name == "losses" else int | float | None)
        for name, value in line.items()
    )
