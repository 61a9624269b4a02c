"""Recipes as TOML files: the dataset, and hyper-parameters as one types them."""

import dataclasses
import json
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpt.dataset import dataset_info
from bpt.detection.published import detection_recipe_for
from bpt.detection.recipe import DETECTION_USED_BY, DetectionRecipe
from bpt.methods import METHODS, USED_BY
from bpt.published import COSTS, recipe_for
from bpt.recipe import Recipe
from bpt.tuning import Tuning
from burst.archive import reason
from burst.errors import BurstError, check_known
from burst.files import write_atomically

ORIGINS = "origins"  # a table in the file: of each hyper-parameter that nobody gave, its source
DEFAULT = "the default"
WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def make_recipe(dataset: str, **given: Any) -> Recipe | DetectionRecipe:  # noqa: ANN401
    """`recipe_for`, or `detection_recipe_for` where the dataset is for detection; arguments alike.

    Raises:
        UnknownName, BurstError: see there.
    """
    detection = dataset_info(dataset).task == "detection"
    return (detection_recipe_for if detection else recipe_for)(dataset, **given)


def load_recipe(path: str | os.PathLike[str], **typed: Any) -> Recipe | DetectionRecipe:  # noqa: ANN401
    """The recipe of a TOML file.

    Its keys are `dataset` (digits if not given) and the fields of `Recipe`, or of `DetectionRecipe`
    where the dataset is for detection; what it leaves out is published, as in `recipe_for`. Paths
    are as one would type them: of the working folder. What its table `origins` names was nobody's
    choice, unless it was changed in the file since: it is looked up anew where another dataset,
    backbone, method or placement is typed.

    Args:
        path: the file.
        **typed: fields, which win over the file's; None is as good as left out.

    Raises:
        UnknownName: a key that is no field; the nearest are offered.
        BurstError: there is no such file; it is no TOML; a value of another type; else see
            `recipe_for`.
    """
    values = _read(Path(path))
    origins = _not_chosen(values, values.pop(ORIGINS, {}))
    typed = {name: value for name, value in typed.items() if value is not None}
    changed = {name for name, value in typed.items() if value != values.get(name)}
    stale = set(origins) if changed & set(COSTS) else {"warmup_epochs"} & set(origins)
    if changed & {*COSTS, "epochs"}:
        values = {name: value for name, value in values.items() if name not in stale}
    given = values | typed
    recipe = make_recipe(given.pop("dataset", "digits"), **given)
    sources = dict(recipe.origins)
    for name, text in origins.items():
        if name in values and name not in typed:
            sources[name] = text
    sources = {name: text for name, text in sources.items() if text != DEFAULT}
    return dataclasses.replace(recipe, origins=sources)


def _not_chosen(values: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, str]:
    """`origins` without what now has another value than its origin gives: somebody changed it.

    The warm-up follows from the epochs, so that another value may come of a change of those.
    """
    own = {name: value for name, value in values.items() if name not in origins}
    try:
        found = make_recipe(own.pop("dataset", "digits"), **own) if origins else None
    except BurstError:  # it is what is typed besides that makes a recipe of it
        found = None

    def changed(name: str, text: str) -> bool:
        same = found is not None and text == found.origins.get(name, DEFAULT)
        return same and name in values and values[name] != getattr(found, name, None)

    return {
        name: text
        for name, text in origins.items()
        if name == "warmup_epochs" or not changed(name, text)
    }


def save_recipe(recipe: Recipe | DetectionRecipe, path: str | os.PathLike[str]) -> Path:
    """Write what `load_recipe` reads: every hyper-parameter that has an effect, with its source.

    Rates and the like are written out, so that the file means the same when other ones have been
    published. What stands at the default of all recipes is left out, unless it was chosen.

    Args:
        recipe: of a classifier or a detector.
        path: of the file.

    Returns:
        The file.

    Raises:
        OutputError: it cannot be written.
    """
    values = _effective(recipe)
    sources = {name: recipe.origins.get(name, DEFAULT) for name in values if name != "dataset"}
    origins = {name: text for name, text in sources.items() if text != "given"}
    lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
    if origins:
        lines += ["", f"[{ORIGINS}]"]
        lines += [f"{name} = {_toml(text)}" for name, text in origins.items()]
    target = Path(path)
    with write_atomically(target) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def _effective(recipe: Tuning) -> dict[str, Any]:
    """Name -> value of what decides something, the dataset first."""
    used_by = DETECTION_USED_BY if isinstance(recipe, DetectionRecipe) else USED_BY
    values = {"dataset": recipe.dataset, "method": recipe.method}
    for one in dataclasses.fields(recipe):
        value = getattr(recipe, one.name)
        chosen = one.name in recipe.origins or value != one.default
        used = recipe.method in used_by.get(one.name, METHODS)
        if chosen and used and value is not None and one.name != ORIGINS:
            values[one.name] = value
    return values


def _read(path: Path) -> dict[str, Any]:
    """The keys of a file by the names of fields, their types checked.

    Raises:
        UnknownName, BurstError: see `load_recipe`.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BurstError(
            f"{path} does not exist; `bpt train ... --save-config {path}` writes one"
        ) from None
    except OSError as error:
        raise BurstError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:  # of TOML, or of UTF-8
        raise BurstError(f"{path} is no TOML: {error}") from error
    hints = typing.get_type_hints(Recipe) | typing.get_type_hints(DetectionRecipe)
    kinds = (Recipe, DetectionRecipe)  # which of them it is, the command line may decide
    fields = {one.name for kind in kinds for one in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        check_known(f"key in {path}:", name, fields)
        if name in values:
            raise BurstError(f"{path} has {name} twice, once as {key}; leave one of them out")
        values[name] = (
            _table(path, value) if name == ORIGINS else _checked(path, name, value, hints)
        )
    return values


def _table(path: Path, value: Any) -> Mapping[str, str]:  # noqa: ANN401
    if isinstance(value, Mapping) and all(isinstance(one, str) for one in value.values()):
        return value
    raise BurstError(f"{path}: {ORIGINS} must be a table of texts; leave it out")


def _checked(path: Path, name: str, value: Any, hints: Mapping[str, Any]) -> Any:  # noqa: ANN401
    allowed = [one for one in _members(hints[name]) if one is not types.NoneType]
    kind = type(value)
    if kind in allowed:
        return value
    if kind is int and float in allowed:
        return float(value)
    wanted = " or ".join(WORDS[one] for one in allowed)
    shown = json.dumps(value, default=str, ensure_ascii=False)
    raise BurstError(f"{path}: {name} is {shown}, expected {wanted}")


def _members(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _toml(value: str | float | bool) -> str:
    """A value as TOML writes it; of JSON it differs in one character that must be escaped."""
    if isinstance(value, float):
        return repr(value)
    return re.sub("\x7f", r"\\u007f", json.dumps(value, ensure_ascii=False))
