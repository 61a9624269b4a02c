"""What a training would do, for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from bpt import (
    DetectionCost,
    DetectionRecipe,
    Recipe,
    SearchCost,
    TrainingCost,
    TrainingPlan,
    dataset_sizes,
    default_folder,
    known_detection_cost,
    training_cost,
)
from bpt.construction import check_trainable
from bpt.detection.published import OFFICIAL
from bpt.image_batches import unseen_images
from burst.backbone_spec import known_backbone
from burst.progress import spoken_time
from reports.tables import facts_table

GPU_HOURS = (
    "GPU hours are arithmetic: of classifiers on an A100 in bfloat16, of detectors on an H100; of "
    "benchmarks as they were published."
)

Cost = TrainingCost | DetectionCost


def training_plan_table(plan: TrainingPlan) -> Table:
    """A fact a line; what no step was made for is not there."""
    recipe, (train, val, test) = plan.recipe, plan.images
    splits = {"to train": train, "to choose the epoch": val, "to test": test}
    counted = ", ".join(f"{count:,} {use}" for use, count in splits.items() if count)
    total, unseen = plan.steps * recipe.total_epochs, unseen_images(recipe, train)
    facts = {
        "method": _method(recipe, plan),
        "backbone": recipe.model + (f", {plan.depth} blocks" if plan.depth else ""),
        "trained": _parameters(plan),
        "images": f"{counted}; {plan.classes:,} classes"
        + ("" if plan.counted else ", as published: none was read"),
        "steps": f"{recipe.epochs} epochs of {plan.steps:,}, {recipe.batch_size} images each: "
        f"{total:,}{f'; {unseen}' if unseen else ''}",
        "operations": f"{plan.operations:.1e}" if plan.operations else "unknown",
        "time": f"about {spoken_time(plan.seconds)} on this {plan.device}, without reading images"
        if plan.seconds
        else "unknown before the backbone is here",
        "memory": f"about {_size(plan.memory)} on the {plan.device}" if plan.memory else "",
        "disk": _disk(plan),
        "run folder": str(plan.folder),
        "not at hand": "\n".join(plan.notes),
    }
    return facts_table(facts)


def detection_plan_table(recipe: DetectionRecipe, folder: Path | None = None) -> Table:
    """The same of a detector, by arithmetic alone; `folder` is where its run would lie.

    Raises:
        BurstError: see `bpt.known_detection_cost`.
    """
    spec = known_backbone(recipe.model)
    cost = known_detection_cost(recipe, spec) if spec else None
    place = f", placement {recipe.placement}" if recipe.prompted else ""
    facts = {
        "method": f"{recipe.detector} on {recipe.method}{place}",
        "backbone": f"{recipe.model}, images of {recipe.size} pixels",
        "steps": f"{recipe.total_epochs} epochs, {recipe.batch_size} images a step",
        "images seen": _seen(recipe, cost),
        "operations": f"{cost.operations:.1e}" if cost else "unknown",
        "time": f"about {spoken_time(3600 * cost.hours)} on one H100" if cost else "unknown",
        "run folder": str(folder or default_folder(recipe)),
    }
    return facts_table(facts)


def _seen(recipe: DetectionRecipe, cost: DetectionCost | None) -> str:
    if cost is None:
        return "unknown"
    published = recipe.dataset == OFFICIAL  # which is not opened for that
    return f"{cost.images:,}{', of COCO as it was published' if published else ''}"


def search_plan_table(costs: Mapping[str, SearchCost]) -> Table:
    """What a search would train at most, with its estimated cost, for a terminal.

    Args:
        costs: by method, from `bpt.search_costs`.
    """
    table = cost_table(("method", "placement"), ("epochs",))
    for name, one in costs.items():
        recipe, found = one.recipe, planned(one.recipe, one, one.seeds)
        place = recipe.placement if recipe.prompted else ""
        epochs = str(recipe.total_epochs)
        table.add_row(name, place, epochs, found.trainings, *found.figures)
    return table


def cost_table(texts: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    """An empty table of what would be trained: these columns, then what it takes."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in (*texts, *numbers, "trainings", "images seen", "PFLOP", "GPU hours"):
        table.add_column(name, justify="left" if name in texts else "right", overflow="fold")
    table.caption, table.caption_justify = GPU_HOURS, "left"
    return table


class Planned(NamedTuple):
    """What one recipe takes: how many trainings, in words, and how many times a cost."""

    trainings: str
    times: int
    cost: Cost | None

    @property
    def figures(self) -> list[str]:
        """Images seen, PFLOP and GPU hours in all, as text; "?" where nobody knows the backbone."""
        if self.cost is None:
            return ["?"] * 3
        parts = (self.times * self.cost.operations / 1e15, self.times * self.cost.hours)
        texts = ("<0.01" if x < 0.005 else f"{x:,.2f}" for x in parts)
        return [f"{self.times * self.cost.images:,}", *texts]


def planned(recipe: Recipe | DetectionRecipe, search: SearchCost | None, seeds: int) -> Planned:
    """A search of its rates and trainings with so many seeds, or these trainings alone.

    Raises:
        UnsupportedModel: nothing can be put on its model.
    """
    check_trainable(recipe.model)
    if search:
        return Planned(f"≤ {search.trials} + {search.seeds}", 1, search.cost)
    return Planned(str(seeds), seeds, recipe_cost(recipe))


def recipe_cost(recipe: Recipe | DetectionRecipe) -> Cost | None:
    """Of one training; None for a backbone that is not known."""
    if isinstance(recipe, Recipe):
        return training_cost(recipe, dataset_sizes(recipe))
    spec = known_backbone(recipe.model)
    return known_detection_cost(recipe, spec) if spec else None


def _method(recipe: Recipe, plan: TrainingPlan) -> str:
    if not recipe.prompted:
        return recipe.method
    where = f" of {plan.depth} blocks" if plan.depth else ""
    count = f"{len(plan.blocks)}{where}" if plan.blocks else "its blocks"
    return (
        f"{recipe.method}, placement {recipe.placement}: {recipe.num_prompts} prompt tokens in "
        f"front of {count}"
    )


def _parameters(plan: TrainingPlan) -> str:
    counts = plan.parameters
    if counts is None:
        return "unknown before the backbone is here"
    parts = [f"{name} {counts[name]:,}" for name in ("prompts", "backbone", "head") if counts[name]]
    return f"{counts['trained']:,} of {counts['total']:,} parameters ({', '.join(parts)})"


def _disk(plan: TrainingPlan) -> str:
    recipe, found = plan.recipe, []
    if plan.kept:
        found.append(f"{_size(plan.kept)} of tokens in front of block {plan.blocks[0]}")
    if plan.files and recipe.cache and recipe.total_epochs > 1 and recipe.method != "linear":
        found.append("the pixels of images that are files")
    return f"{', and '.join(found)}, in {plan.cache}" if found else ""


def _size(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size > 2**30 else f"{max(1, round(size / 2**20)):,} MiB"
