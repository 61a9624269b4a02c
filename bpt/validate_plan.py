"""What a validation of a whitening would train: the benchmarks at hand, and the methods on each."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpt.cost import dataset_sizes
from bpt.dataset import (
    DatasetInfo,
    dataset_info,
    file_name,
    how_to_get,
    known_datasets,
    locate,
)
from bpt.detection.published import detection_recipe_for
from bpt.detection.recipe import DetectionRecipe
from bpt.methods import METHODS, USED_BY, used_by_any
from bpt.placement import parse_placement
from bpt.published import published_rate
from bpt.recipe import Recipe
from bpt.search import SearchCost, SearchOptions, search_base
from bpt.search.cost import most_costs
from bpt.search.recipes import method_recipes
from bpt.study import AnyRecipe
from burst.backbone import Backbone, load_backbone
from burst.errors import BurstError, CheckpointError, EmptyResult, check_known
from burst.files import at_home
from burst.whitening import Whitening
from burst.whitening_file import load_whitening

COMPARED = ("linear", "vpt", "bpt-fwhiten", "bpt-dwhiten")
ELSEWHERE = ("package:", "http:", "https:", "hf-hub:")  # weights that are no file of the user's


@dataclass(frozen=True)
class PlannedMethod:
    """A method on a benchmark.

    Attributes:
        recipe: its training; where its rates are searched, before that.
        published: where its rates were published; None where they have to be searched.
    """

    recipe: AnyRecipe
    published: str | None


@dataclass(frozen=True)
class PlannedBenchmark:
    """A benchmark that was found.

    Attributes:
        dataset: its name.
        place: where it lies.
        methods: what is tried on it, by name.
        base: what the search of rates starts from; None for a detector.
    """

    dataset: str
    place: str
    methods: Mapping[str, PlannedMethod]
    base: Recipe | None

    @property
    def folder(self) -> str:
        """What its folder is called."""
        return file_name(self.dataset)

    @property
    def searched(self) -> tuple[str, ...]:
        """The methods whose rates have to be searched."""
        return tuple(name for name, one in self.methods.items() if one.published is None)

    @property
    def cross_validates(self) -> bool:
        """Whether rates are searched on folds of the training images."""
        recipes = [self.methods[name].recipe for name in self.searched]
        sizes = [dataset_sizes(one) for one in recipes if isinstance(one, Recipe)]
        return bool(sizes) and SearchOptions().folds_of(sizes[0][1]) is not None

    def search_costs(self, seeds: Sequence[int]) -> Mapping[str, SearchCost]:
        """By method what the search of its rates takes at most; none of a detector's are searched.

        Args:
            seeds: of the final trainings.
        """
        planned = {name: self.methods[name].recipe for name in self.searched}
        recipes = {name: one for name, one in planned.items() if isinstance(one, Recipe)}
        if not recipes:
            return {}
        sizes = dataset_sizes(next(iter(recipes.values())))
        return most_costs(recipes, sizes, SearchOptions(seeds=tuple(seeds)))


@dataclass(frozen=True)
class ValidationPlan:
    """What a validation trains.

    Attributes:
        whitening: the file.
        about: its record, see `Whitening`.
        model, weights: the backbone that it was made of.
        placement: of the prompts.
        seeds: of every method.
        benchmarks: that were found.
        missing: those that were not, with what to do.
        notes: what of the whitening restricts what can be tried, in sentences.
    """

    whitening: Path
    about: Mapping[str, Any]
    model: str
    weights: str | None
    placement: str
    seeds: tuple[int, ...]
    benchmarks: tuple[PlannedBenchmark, ...]
    missing: Mapping[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with what each search takes at most."""
        benchmarks = []
        for one in self.benchmarks:
            searches = {name: asdict(cost) for name, cost in one.search_costs(self.seeds).items()}
            for search in searches.values():
                del search["recipe"]  # the method's own
            methods = {
                name: {
                    "recipe": method.recipe.to_dict(),
                    "published": method.published,
                    "search": searches.get(name),
                }
                for name, method in one.methods.items()
            }
            benchmarks.append({"dataset": one.dataset, "place": one.place, "methods": methods})
        return {
            "whitening": str(self.whitening),
            "model": self.model,
            "weights": self.weights,
            "placement": self.placement,
            "seeds": list(self.seeds),
            "benchmarks": benchmarks,
            "missing": dict(self.missing),
            "notes": list(self.notes),
        }


def plan_validation(
    whitening: str | Path,
    *,
    data: str | Path | None = None,
    datasets: Sequence[str] | None = None,
    methods: Sequence[str] = COMPARED,
    seeds: Sequence[int] = (0, 1, 2),
    model: str | None = None,
    weights: str | None = None,
    placement: str | None = None,
    **given: Any,  # noqa: ANN401  whatever recipes take
) -> ValidationPlan:
    """What `validate_whitening` would train; nothing is trained or unpacked.

    Args:
        whitening: a file of `burst whiten`.
        data: where benchmarks lie; `data_root()` if not given.
        datasets: which, of `known_datasets` or as "folder:PATH"; all of the former if not given.
        methods: linear and vpt are what the others are compared with.
        seeds: of every method.
        model, weights: the backbone, where the file's own words for it do not find it.
        placement: of the prompts; "shallow" if the whitening has block 0, else as many of the last
            blocks as it has.
        **given: other fields of every recipe, such as epochs.

    Raises:
        CheckpointError: no whitening; its backbone cannot be found, or is another.
        UnknownName: an unknown dataset or method.
        BurstError: no method makes use of a whitening; it lacks a block of the placement, or has
            random weights; or two folders of images have the same name.
        EmptyResult: none of the datasets is there, or a folder that was named is not.
    """
    for method in methods:
        check_known("method", method, METHODS)
    if not set(methods) & set(USED_BY["whitening"]):
        raise BurstError(f"{', '.join(methods)} make no use of a whitening; add bpt-fwhiten")
    path = Path(whitening)
    found = load_whitening(path)
    backbone, weights = _backbone(path, found, model, weights)
    placement, notes = _placement(path, found, placement)
    given = {name: value for name, value in given.items() if value is not None}
    shared = {"model": backbone.name, "weights": weights, "whitening": str(path), **given}
    size = _size(found, backbone)
    benchmarks, missing = [], {}
    listed = datasets or [one.name for one in known_datasets() if one.layout or one.embedded]
    for name in dict.fromkeys(listed):
        info = dataset_info(name)
        place = _place(name, info, data)
        if place is None:
            missing[info.name] = how_to_get(info)
            continue
        own: dict[str, Any] = {}
        if data and info.layout:
            own["data"] = str(data)
        if (size or info.embedded) and info.task == "classification":
            own["image_size"] = size or backbone.image_size[0]  # not a search's small one
        benchmarks.append(_benchmark(name, info, place, methods, placement, own | shared))
    _check_folders(benchmarks)
    if not benchmarks:
        raise EmptyResult(f"nothing to validate on: {'; '.join(missing.values())}")
    return ValidationPlan(
        path,
        found.record,
        backbone.name,
        weights,
        placement,
        tuple(seeds),
        tuple(benchmarks),
        missing,
        (*notes, *_size_notes(size, backbone)),
    )


def _check_folders(benchmarks: Sequence[PlannedBenchmark]) -> None:
    """Each has a folder of its own, called by the last part of its name."""
    there: dict[str, str] = {}
    for one in benchmarks:
        other = there.setdefault(one.folder, one.dataset)
        if other != one.dataset:
            raise BurstError(
                f"{other} and {one.dataset} would share the folder {one.folder}; validate them "
                "one after the other, with another --out"
            )


def _backbone(
    path: Path, found: Whitening, model: str | None, weights: str | None
) -> tuple[Backbone, str | None]:
    """The backbone that a whitening was made of, and its weights as a recipe names them."""
    about = found.record
    source = weights if model not in (None, about["model"]) else weights or about.get("weights")
    if source == "random":
        raise BurstError(
            f"{path} was made of random weights, which every seed draws anew; give the file of the "
            "weights"
        )
    if not weights and source and not source.startswith(ELSEWHERE):
        if not Path(source).is_file() and "/" in source:
            raise CheckpointError(
                f"{path} was made with the weights {source}, which are not there; give their file "
                "as weights"
            )
        weights = source if Path(source).is_file() else None
    backbone = load_backbone(model or about["model"], weights)
    load_whitening(path, backbone)  # or says what does not fit
    return backbone, weights


def _placement(path: Path, found: Whitening, asked: str | None) -> tuple[str, list[str]]:
    """Where prompts stand, and what is to be said of it."""
    depth = int(found.record["model_blocks"])
    has = {one.block for one in found.blocks}

    def fits(placement: str) -> bool:
        return has.issuperset(parse_placement(placement, depth))

    kinds = ["shallow", *(f"last:{count}" for count in range(depth, 0, -1))]
    kinds += [f"first:{count}" for count in range(depth, 1, -1)]
    possible = [one for one in kinds if fits(one)]
    if asked is not None:
        if not fits(asked):
            offer = f"such as {possible[0]}" if possible else "none of the usual"
            raise BurstError(
                f"{path} has matrices for blocks {_listed(has)} alone, which {asked} does not "
                f"keep to; choose another placement, {offer}, or make it again of all blocks"
            )
        return asked, []
    if not possible:
        raise BurstError(
            f"{path} has matrices for blocks {_listed(has)} alone; give a placement that keeps to "
            "them, or make it again of all blocks"
        )
    notes = []
    if len(has) < depth:
        notes.append(
            f"The whitening has matrices for {len(has)} of {depth} blocks ({_listed(has)}), so "
            f"prompts can stand in these alone; here they are placed {possible[0]}."
        )
    return possible[0], notes


def _size(found: Whitening, backbone: Backbone) -> int | None:
    """Pixels of the images that a whitening was made from, where not the backbone's own."""
    sources = (found.record.get("images") or {}).get("sources") or []
    sizes = {source.get("image_size") for source in sources}
    other = sizes - {None, backbone.image_size[0]}
    return int(other.pop()) if len(sizes) == len(other) == 1 else None


def _size_notes(size: int | None, backbone: Backbone) -> list[str]:
    if size is None:
        return []
    return [
        f"The whitening was made from images of {size} pixels, not of the backbone's "
        f"{backbone.image_size[0]}, so classifiers are trained at that size; its matrices fit any "
        "block at any size, but tell of the tokens of those images."
    ]


def _listed(blocks: set[int]) -> str:
    return ", ".join(str(block) for block in sorted(blocks))


def _place(name: str, info: DatasetInfo, data: str | Path | None) -> str | None:
    """Where a dataset lies, in words; None where it does not."""
    if info.embedded:
        return info.source
    if info.layout is None:
        folder = name.partition(":")[2]
        if folder and not at_home(folder).exists():
            raise EmptyResult(f"{name}: there is no such folder")
        return folder or None
    found = locate(info, data)[0]
    return str(found) if found else None


def _benchmark(
    name: str,
    info: DatasetInfo,
    place: str,
    methods: Sequence[str],
    placement: str,
    shared: Mapping[str, Any],
) -> PlannedBenchmark:
    asked = {"placement": placement, **shared}
    recipes: Mapping[str, AnyRecipe]
    base = None
    if info.task == "detection":
        known = {one.name for one in dataclasses.fields(DetectionRecipe)}
        asked = {key: value for key, value in asked.items() if key in known}
        recipes = {
            method: detection_recipe_for(name, method=method, **used_by_any(asked, (method,)))
            for method in methods
        }
    else:
        base = search_base(name, **asked)
        recipes = method_recipes(base, methods)
    found = {one: PlannedMethod(recipe, published_rate(recipe)) for one, recipe in recipes.items()}
    planned = PlannedBenchmark(name, place, found, base)
    if base and planned.searched:  # a search refuses what none of its methods makes use of
        base = search_base(name, **used_by_any(asked, planned.searched))
    return dataclasses.replace(planned, base=base)
