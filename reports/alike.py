"""What decides a training beside its method: runs that differ in it say nothing of the method."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Protocol, TypeVar

from bpt import Run
from bpt.machine import FREE_ON_RESUME
from bpt.methods import TRAINED_ON_IMAGES, USED_BY
from bpt.tuning import OF_MATRICES
from reports.names import readable

RATES = ("lr", "warmup_epochs", "min_lr", "weight_decay", "head_weight_decay")
OF_METHODS = {name for name, users in USED_BY.items() if users != TRAINED_ON_IMAGES}
FREE = FREE_ON_RESUME | OF_METHODS | {"method", "seed", "precision", "cache", *RATES}
FREE |= {"dataset", "train_list"}  # told by the digest of the images
OF_A_RUN = FREE_ON_RESUME | {"seed", "cache", "dataset", "train_list"}  # of a training free
SPOKEN = {"digest": "images"}
PLAIN = ("detector", "model", "schedule")  # their values say what they are


class Trained(Protocol):
    """What is read of any run, of a classifier or a detector."""

    @property
    def folder(self) -> Path: ...  # noqa: D102
    @property
    def recipe(self) -> Any: ...  # noqa: ANN401, D102
    @property
    def config(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def metrics(self) -> Sequence[Mapping[str, Any]]: ...  # noqa: D102
    @property
    def result(self) -> Mapping[str, Any] | None: ...  # noqa: D102


AnyRun = TypeVar("AnyRun", bound=Trained)


def conditions(run: Run) -> dict[str, Any]:
    """By name, what decides a classifier's training beside its method and that method's rates.

    `digest` stands for the images of all splits, `weights` for the backbone's.
    """
    recipe, config = run.recipe.to_dict(), run.config
    found = {"digest": config["dataset"]["digest"]}
    found |= {name: value for name, value in recipe.items() if name not in FREE}
    found["train_fraction"] = recipe["train_fraction"] or 1.0
    return found | {"weights": config["backbone"]["weights_sha256"]}


def training_key(run: Run) -> str:
    """What the runs of one training with several seeds, on whatever machine, have in common."""
    own = {name: value for name, value in run.recipe.to_dict().items() if name not in OF_A_RUN}
    return json.dumps(own | conditions(run), sort_keys=True)


def differing(rows: Iterable[Mapping[Any, Any]], names: Iterable[str] = ()) -> list[str]:
    """What is not the same in all rows, in words, of these names; of all names if none is given."""
    first, *rest = rows
    return [
        SPOKEN.get(name, name)
        for name in names or first
        if any(one[name] != first[name] for one in rest)
    ]


def named_datasets(runs: Iterable[Trained]) -> list[str]:
    """What the images of each run are called: cub, folder:photos.

    Of one's own images the last part of their place, and all of it where two would be called alike.
    """
    named = []
    for run in runs:
        kind, _, place = run.recipe.dataset.partition(":")
        if kind == "folder" and not place:  # which was given apart
            place = run.config["dataset"]["source"]
        named.append((kind, place))
    short = [_joined(kind, PurePath(place).name) for kind, place in named]
    whole = {one: set[str]() for one in short}
    for one, (_, place) in zip(short, named, strict=True):
        whole[one].add(place)
    return [
        _joined(*full) if len(whole[one]) > 1 else one
        for one, full in zip(short, named, strict=True)
    ]


def told_apart(runs: Sequence[AnyRun], names: Iterable[str]) -> dict[str, AnyRun]:
    """The runs by method and placement, and by what more of `names` is needed until all differ.

    A name is needed where it tells apart what those before it did not. What images a run is of is
    told wherever these differ. Those that nothing tells apart, not even their folders' names, are
    numbered.
    """
    parts = []
    for run, dataset in zip(runs, named_datasets(runs), strict=True):
        recipe = run.recipe
        part = {"method": recipe.method, "placement": recipe.placement if recipe.prompted else ""}
        part |= {name: _told(recipe, name) for name in names}
        parts.append(part | {"dataset": dataset, "folder": run.folder.name})
    used = ["method", "placement"]
    if len({part["dataset"] for part in parts}) > 1:
        used.append("dataset")
    for name in parts[0]:
        told = {tuple(part[one] for one in used) for part in parts}
        if len({tuple(part[one] for one in (*used, name)) for part in parts}) > len(told):
            used.append(name)
    texts: list[str] = []
    for part in parts:
        text = readable(", ".join(filter(None, (part[one] for one in used))))
        texts.append(text if text not in texts else f"{text} ({len(texts) + 1})")
    return dict(zip(texts, runs, strict=True))


def _told(recipe: Any, name: str) -> str:  # noqa: ANN401  of either kind
    value = getattr(recipe, name)
    if name == "image_size":
        return f"{value} pixels" if value else ""
    if name == "train_fraction":
        return f"{name} {value or 1:g}"
    if recipe.method not in USED_BY.get(name, (recipe.method,)):
        return ""
    if name in OF_MATRICES and not recipe.needs_whitening:
        return ""
    return str(value) if name in PLAIN else f"{name} {value}"


def _joined(kind: str, place: str) -> str:
    return readable(f"{kind}:{place}") if place else kind
