"""`bpt train`: whatever a training can be told."""

import json
import shlex
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import _training_options as options
from cli._common import (
    Device,
    Json,
    Quiet,
    check_not_typed,
    parse_seeds,
    plain_console,
    reported_errors,
    training_told,
    was_typed,
)
from cli._panels import COCO, DATA, OUTPUT, PROMPTS, STEPS, option

if TYPE_CHECKING:
    from bpt import DetectionRecipe, Recipe


def train(
    context: typer.Context,
    dataset: Annotated[
        str,
        typer.Argument(help="A name from `bpt datasets`, or folder:PATH, coco:PATH, vtab:TASK."),
    ] = "digits",
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file of dataset and options; what is typed beside it wins."),
    ] = None,
    save_config: Annotated[Path | None, typer.Option(help="Write such a file, then train.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be trained, with time, memory and disk."),
    ] = False,
    data: options.Data = None,
    train_fraction: options.TrainFraction = None,
    train_list: options.TrainList = None,
    protocol: Annotated[
        str | None,
        option(
            "`standard` (if not given): epoch chosen on val, test read once; `last`: trained on "
            "train + val, last epoch, test read once; `authors`: the same images, last epoch and "
            "best on test. Not for coco.",
            DATA,
        ),
    ] = None,
    augmentation: options.Augmentation = None,
    views: options.Views = None,
    randaugment: options.Randaugment = None,
    random_erasing: options.RandomErasing = None,
    mixup: options.Mixup = None,
    cutmix: options.Cutmix = None,
    model: options.Model = None,
    weights: options.Weights = None,
    image_size: options.ImageSize = None,
    normalisation: options.Normalisation = "native",
    method: Annotated[
        str,
        option(
            "vpt, gatevpt, spt, bpt-fwhiten, bpt-twhiten, bpt-dwhiten, bpt-bilinear; linear "
            "(a head on frozen features) or full (fine-tuning of all weights); lora, adapter or "
            "bitfit (of few).",
            PROMPTS,
        ),
    ] = "bpt-bilinear",
    placement: options.Placement = None,
    num_prompts: options.NumPrompts = None,
    rank: options.Rank = None,
    spt_tokens: options.SptTokens = None,
    bilinear_init: options.BilinearInit = None,
    whitening: options.Whitening = None,
    prompt_scale: options.PromptScale = None,
    null_gain: options.NullGain = None,
    floor: options.Floor = None,
    shrinkage: options.Shrinkage = None,
    through_norm: options.ThroughNorm = None,
    pooling: options.Pooling = None,
    after: options.After = None,
    gate_init: options.GateInit = None,
    prompt_dropout: options.PromptDropout = None,
    bottleneck: options.Bottleneck = None,
    head_norm: options.HeadNorm = None,
    epochs: Annotated[
        int | None,
        option("Passes over the images; 100, for digits 10. For coco: --schedule.", STEPS),
    ] = None,
    warmup_epochs: options.WarmupEpochs = None,
    batch_size: options.BatchSize = None,
    optimizer: options.Optimizer = None,
    lr: Annotated[
        float | None,
        option(
            "Peak learning rate. If not given, this and the options below are as published, if so.",
            STEPS,
        ),
    ] = None,
    min_lr: options.MinLr = None,
    weight_decay: Annotated[
        float | None,
        option("Of prompts; without prompts, of all matrices.", STEPS),
    ] = None,
    head_weight_decay: Annotated[
        float | None,
        option("Of the head; for prompts and linear.", STEPS),
    ] = None,
    layer_decay: options.LayerDecay = None,
    drop_path: options.DropPath = None,
    label_smoothing: options.LabelSmoothing = None,
    ema_decay: options.EmaDecay = None,
    seed: Annotated[int, option("Of start, order and augmentation.", STEPS)] = 0,
    seeds: Annotated[str | None, option("Several, such as 0,1,2: mean and spread.", STEPS)] = None,
    detector: Annotated[
        str | None,
        option("coco: mask-rcnn (if not given) or cascade.", COCO),
    ] = None,
    schedule: Annotated[
        str | None,
        option("coco: 1x, 3x (12 and 37 epochs), or a number of epochs.", COCO),
    ] = None,
    channels: Annotated[
        int | None,
        option("coco: of pyramid and heads; 256.", COCO),
    ] = None,
    smallest_scale: Annotated[
        float | None,
        option("coco: of images in training, where 1 fills the square; 0.1.", COCO),
    ] = None,
    largest_scale: Annotated[float | None, option("coco: the same; 2.", COCO)] = None,
    sampling_ratio: Annotated[
        int | None,
        option("coco: points a bin that regions are read at; 0 (if not given) adapts.", COCO),
    ] = None,
    eval_every: Annotated[
        int | None,
        option("coco: epochs between scores on the way; 0: at the end.", COCO),
    ] = None,
    device: Device = "auto",
    precision: options.Precision = "float32",
    accumulation: options.Accumulation = 1,
    checkpoint_activations: options.CheckpointActivations = None,
    use_compile: options.Compile = False,
    cache: options.Cache = None,
    workers: options.Workers = 0,
    out: Annotated[
        Path | None, option("Run folder; runs/DATASET-MODEL-METHOD-... if not given.", OUTPUT)
    ] = None,
    resume: Annotated[
        bool, option("Go on with the run in --out, if there is one.", OUTPUT, "--resume")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train prompts and a head on a frozen backbone, and say how good they are.

    On coco, or one's own images in its format, the head is a detector: boxes and masks.
    """
    typed = {
        name: value for name, value in locals().items() if was_typed(context, name)
    }  # of what was not, a file's value or a published one is taken
    with reported_errors():
        import bpt
        import burst

        given = options.of_recipe(typed)
        if config:
            recipe = bpt.load_recipe(config, **given)
        else:
            recipe = bpt.make_recipe(**{"dataset": dataset} | given)
        if seeds:
            check_not_typed(context, ("seed",), "and --seeds: leave one of them out")
        several = parse_seeds(seeds) if seeds else None
        where = out or bpt.default_folder(recipe, several=several is not None)
        if save_config and burst.is_first_process():
            bpt.save_recipe(recipe, save_config)
        if dry_run:
            count = len(several or [0])
            _show_plan(recipe, where, device, seeds=count, saved=save_config, as_json=as_json)
            return

        with training_told(quiet=quiet) as told:
            shared: dict[str, Any] = {"device": device, "resume": resume, **told}
            if several is None:
                result = bpt.train(recipe, where, **shared)
            else:
                result = bpt.train_seeds(recipe, several, where, **shared)
        if not burst.is_first_process():
            return
        if as_json:
            typer.echo(json.dumps(result, indent=2))
        elif not quiet:
            _show(result, recipe, where, several)


def _show_plan(
    recipe: "Recipe | DetectionRecipe",
    where: Path,
    device: str,
    *,
    seeds: int,
    saved: Path | None,
    as_json: bool,
) -> None:
    import bpt
    import reports
    from bpt.construction import check_trainable

    console = plain_console()
    if isinstance(recipe, bpt.DetectionRecipe):
        check_trainable(recipe.model)
        if as_json:
            content = {"recipe": recipe.to_dict(), "folder": str(where)}
            typer.echo(json.dumps(content, indent=2))
            return
        console.print(reports.detection_plan_table(recipe, where))
    else:
        plan = replace(bpt.plan_training(recipe, device=device), folder=where)
        if as_json:
            typer.echo(json.dumps(plan.to_dict(), indent=2))
            return
        console.print(reports.training_plan_table(plan))
    if seeds > 1:
        console.print(f"the same {seeds} times, once with each seed", highlight=False)
    nothing = "nothing was trained, written or downloaded"
    if saved:
        nothing = f"nothing but {saved} was written, nothing trained or downloaded"
    console.print(nothing, highlight=False, soft_wrap=True)


def _show(
    result: dict[str, Any],
    recipe: "Recipe | DetectionRecipe",
    where: Path,
    seeds: tuple[int, ...] | None,
) -> None:
    """How good it is, where it lies, and what one may want to type next."""
    import reports

    console = plain_console()
    ended = reports.detection_result if "scores" in result else reports.result_table
    console.print(ended(result))
    console.print(f"written to {where}", highlight=False, soft_wrap=True)
    runs = [where] if seeds is None else [where / f"seed_{seed}" for seed in seeds]
    for what, command in _next_commands(recipe, runs).items():
        line = f"{what}: {shlex.join(command)}"
        console.print(line, highlight=False, soft_wrap=True)


def _next_commands(recipe: "Recipe | DetectionRecipe", runs: list[Path]) -> dict[str, list[str]]:
    """What it is for -> the words of a command that works as it stands."""
    commands = {}
    if photos := _own_photos(recipe):
        commands["to name what is in photos"] = ["bpt", "predict", str(runs[0]), str(photos)]
    page = runs[0].parent / "report" if len(runs) > 1 else runs[0] / "report"
    commands["for a page of it"] = ["bpt", "report", *map(str, runs), "--out", str(page)]
    return commands


def _own_photos(recipe: "Recipe | DetectionRecipe") -> Path | None:
    """Photos to try a training on one's own with; None of a benchmark."""
    from bpt.dataset.coco_layout import image_place, own_jsons
    from burst.errors import ImageError
    from burst.files import at_home

    kind, _, path = recipe.dataset.partition(":")
    place = at_home(path or recipe.data or "")
    if kind == "folder":
        return place / "test" if (place / "test").is_dir() else place
    if kind == "coco" and path:
        with suppress(ImageError):  # they may be gone by now
            found = own_jsons(place)
            return image_place(found, found.val or found.train)
    return None
